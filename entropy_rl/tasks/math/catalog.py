"""The published math sets: repositories, revisions, files and checksums."""

from __future__ import annotations

import dataclasses

# DAPO's prompt, arXiv 2503.14476; its data set stores every problem inside it.
DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
    "\n\n{problem}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of a published set, which becomes one split."""

    split: str  # "train" or "test" by its use here, whatever its repository calls it
    path: str  # in the repository
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class MathSet:
    """A published set: its location and metadata."""

    name: str
    title: str
    repository: str  # on the Hugging Face hub
    revision: str
    files: tuple[SourceFile, ...]
    license: str | None  # None: not stated on its card
    unconfirmed: str  # claims about it that only preparing a file confirms

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""
        return tuple(file.split for file in self.files)

    @property
    def role(self) -> str:
        """Its use: "train", "eval" or "both"."""
        return "both" if len(self.files) > 1 else {"train": "train", "test": "eval"}[self.splits[0]]

    def address(self, file: SourceFile) -> str:
        """The URL of a file."""
        return (
            f"https://huggingface.co/datasets/{self.repository}/resolve/{self.revision}/{file.path}"
        )


_SETS = (
    MathSet(
        name="dapo_math_17k",
        title="DAPO-Math-17k",
        repository="BytedTsinghua-SIA/DAPO-Math-17k",
        revision="65877096c24ffa7abc4e4fa5edb95cf3413a5674",
        files=(
            SourceFile(
                split="train",
                path="data/dapo-math-17k.parquet",
                rows=1_791_700,
                sha256="534375d6bb8630d22ab46a56e11f2ffec1d288d8f7d04099bc82d68948705941",
            ),
        ),
        license="Apache-2.0",
        unconfirmed=(
            "17,917 indices, each in 100 rows; some 17,200 different problems; integer answers"
        ),
    ),
    MathSet(
        name="math_500",
        title="MATH-500",
        repository="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        files=(
            SourceFile(
                split="test",
                path="test.jsonl",
                rows=500,
                sha256="35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
            ),
        ),
        license=None,
        unconfirmed="the license; MATH, which it is taken from, has MIT",
    ),
    MathSet(
        name="aime_2024",
        title="AIME 2024 (I and II)",
        repository="HuggingFaceH4/aime_2024",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        files=(
            SourceFile(
                split="test",
                path="data/train-00000-of-00001.parquet",
                rows=30,
                sha256="26139847601a5037c237d5928b195e7260ca8074cf4f264b794af42847f79ccf",
            ),
        ),
        license=None,
        unconfirmed="whether answers have leading zeros; they are removed",
    ),
    MathSet(
        name="aime_2025",
        title="AIME 2025 (I and II)",
        repository="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        files=(
            SourceFile(
                split="test",
                path="test.jsonl",
                rows=30,
                sha256="b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331",
            ),
        ),
        license="Apache-2.0",
        unconfirmed="whether every answer is a bare integer; a degree sign is removed",
    ),
    MathSet(
        name="amc_2023",
        title="AMC 12 of 2022 and 2023 (the 83 problems that papers call AMC23)",
        repository="AI-MO/aimo-validation-amc",
        revision="69d78a4a2c840e82d69af6bc742bda09005f6316",
        files=(
            SourceFile(
                split="test",
                path="data/train-00000-of-00001.parquet",
                rows=83,
                sha256="4de056fd006062cee46e3900727dd5d00094b8592ed0bfd6b5dfae2267f72dd7",
            ),
        ),
        license="Apache-2.0",
        unconfirmed="that answers are stored as floats, 142.0 for 142",
    ),
    MathSet(
        name="gsm8k",
        title="GSM8K",
        repository="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        files=(
            SourceFile(
                split="train",
                path="main/train-00000-of-00001.parquet",
                rows=7473,
                sha256="ea82612ea9582142387730c793eb67d3b12849002bc0b7fa6f8efafa7351419d",
            ),
            SourceFile(
                split="test",
                path="main/test-00000-of-00001.parquet",
                rows=1319,
                sha256="ee7b8da9e381df27b9e3f7758a159ab2bdaa4dbaa910546cbbc47e0cb44e4f59",
            ),
        ),
        license="MIT",
        unconfirmed="",
    ),
)
PUBLISHED = {published.name: published for published in _SETS}
