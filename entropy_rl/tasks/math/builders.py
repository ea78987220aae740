"""TFDS builders of the published math sets and of user sets."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from entropy_rl.config.checks import is_int
from entropy_rl.tasks.data_files import fields, files
from entropy_rl.tasks.data_files.messages import is_messages
from entropy_rl.tasks.math import sets
from entropy_rl.tasks.math.builder import CACHED, MathBuilder, base_fields, text_fields
from entropy_rl.tasks.math.catalog import DAPO_PROMPT


class DapoMath17k(MathBuilder, skip_registration=True):
    """DAPO-Math-17k without its prompt wrapper, each problem once."""

    name = "dapo_math_17k"
    SCHEMAS = (("prompt", "reward_model", "extra_info"),)
    EXTRA: ClassVar = {"source_id": tfds.features.Text()}
    COLUMNS_ONLY = True
    DEDUPLICATE = True

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        messages, reward, extra = row["prompt"], row["reward_model"], row["extra_info"]
        if (
            not isinstance(messages, list)
            or len(messages) != 1
            or not isinstance(messages[0], dict)
        ):
            raise ValueError(f"'prompt': must be a list of one message, got {messages!r:.80}")
        if messages[0].get("role") != "user" or not isinstance(messages[0].get("content"), str):
            raise ValueError(
                "'prompt': must have the role 'user' and a text as content, "
                f"got {messages[0]!r:.80}"
            )
        for field, value, inner in (
            ("reward_model", reward, "ground_truth"),
            ("extra_info", extra, "index"),
        ):
            if not isinstance(value, dict) or inner not in value:
                raise ValueError(f"{field!r}: must be an object with {inner!r}, got {value!r:.80}")
        return {
            "problem": unwrap_dapo(messages[0]["content"]),
            "answer": fields.take_answer(reward, "ground_truth"),
        } | text_fields(extra, source_id="index")


@functools.lru_cache(CACHED)
def unwrap_dapo(prompt: str) -> str:
    """Extract the problem from DAPO's prompt.

    Raises:
      ValueError: If the prompt is not exactly DAPO's.
    """
    before, after = DAPO_PROMPT.split("{problem}")
    problem = prompt.removeprefix(before).removesuffix(after)
    if len(problem) + len(before) + len(after) != len(prompt) or not problem.strip():
        raise ValueError(
            "'prompt': must be DAPO's instruction, a blank line, the problem, a blank line and "
            f"DAPO's reminder, got {prompt!r:.60}"
        )
    return problem


class Math500(MathBuilder, skip_registration=True):
    """MATH-500."""

    name = "math_500"
    SCHEMAS = (("problem", "solution", "answer", "subject", "level", "unique_id"),)
    EXTRA: ClassVar = dict.fromkeys(("solution", "subject", "source_id"), tfds.features.Text()) | {
        "level": np.int32
    }

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        level = row["level"]
        if not is_int(level):
            raise ValueError(f"'level': must be an integer, got {level!r:.60}")
        texts = text_fields(row, solution="solution", subject="subject", source_id="unique_id")
        return base_fields(row, "problem", "answer") | texts | {"level": level}


class Aime2024(MathBuilder, skip_registration=True):
    """AIME 2024, in the two schemas in use."""

    name = "aime_2024"
    SCHEMAS = (
        ("id", "problem", "solution", "answer", "url", "year"),
        ("ID", "Problem", "Solution", "Answer"),
    )
    EXTRA: ClassVar = dict.fromkeys(("solution", "url", "source_id"), tfds.features.Text())

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        if "ID" in row:  # such as 2024-I-4
            _require_year(2024, "ID", str(row["ID"])[:4])
            texts = text_fields(row, solution="Solution", source_id="ID") | {"url": ""}
            return _integer(base_fields(row, "Problem", "Answer")) | texts
        _require_year(2024, "year", row["year"])
        texts = text_fields(row, solution="solution", url="url", source_id="id")
        return _integer(base_fields(row, "problem", "answer")) | texts


class Aime2025(MathBuilder, skip_registration=True):
    """AIME 2025."""

    name = "aime_2025"
    SCHEMAS = (("id", "problem", "answer"),)
    EXTRA: ClassVar = {"source_id": tfds.features.Text()}

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        # AIME 2024 has these fields too, and a year.
        _require_year(2025, "year", row.get("year", 2025))
        return _integer(base_fields(row, "problem", "answer")) | text_fields(row, source_id="id")


class Amc2023(MathBuilder, skip_registration=True):
    """The 83 problems of AI-MO/aimo-validation-amc."""

    name = "amc_2023"
    SCHEMAS = (("id", "problem", "answer", "url"),)
    EXTRA: ClassVar = dict.fromkeys(("url", "source_id"), tfds.features.Text())

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        return base_fields(row, "problem", "answer") | text_fields(row, url="url", source_id="id")

    def explain_fields(self, found: list[str]) -> str:
        if {"id", "question", "answer"} <= set(found):
            return " (those of math-ai/amc23, another set of the same name with 40 problems)"
        return ""


class Gsm8k(MathBuilder, skip_registration=True):
    """GSM8K: the answer is the number after `#### `; the rationale is kept as `solution`."""

    name = "gsm8k"
    SCHEMAS = (("question", "answer"),)
    EXTRA: ClassVar = {"solution": tfds.features.Text()}

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        solution, mark, answer = fields.take_text(row, "answer").rpartition("#### ")
        answer = answer.strip().replace(",", "")
        if not mark or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", answer):
            raise ValueError(
                f"'answer': must end with '#### ' and a number, got {row['answer'][-40:]!r}"
            )
        return {
            "problem": fields.take_text(row, "question"),
            "answer": answer,
            "solution": solution.strip(),
        }


class UserMath(MathBuilder, skip_registration=True):
    """A user's set, named by its BuilderConfig."""

    name = sets.USER

    def __init__(self, *, names: Sequence[str], **kwargs):
        self._names = tuple(names)
        super().__init__(**kwargs)

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        problem, answer = self._names
        fields.require_field(row, problem, "problem_field")
        fields.require_field(row, answer, "answer_field")
        if is_messages(fields.get_field(row, problem)):
            raise ValueError(
                f"{problem!r}: must be a text to be prepared, got a list of messages; name the "
                f"file itself in task.args, or the text by a field such as {problem}.0.content"
            )
        return base_fields(row, problem, answer)

    def _check_fields(self, paths: Sequence[Path]) -> tuple[tuple[str, ...], list[str]]:
        found = files.field_names(paths)
        used = {name if name in found else name.partition(".")[0] for name in self._names}
        return self._names, sorted(set(found) - used)


def _integer(row: dict[str, Any]) -> dict[str, Any]:
    """Normalize an answer of AIME: an integer 0 to 999 without leading zeros and degree sign."""
    match = re.fullmatch(r"\$?0*([0-9]{1,3})(?:\^\{?\\circ\}?)?\$?", row["answer"])
    if match is None:
        raise ValueError(f"the answer: must be an integer from 0 to 999, got {row['answer']!r:.60}")
    return row | {"answer": match[1]}


def _require_year(year: int, field: str, found: Any) -> None:
    if str(found) != str(year):
        raise ValueError(f"{field!r}: must be {year}, got {found!r:.20}")


BUILDERS = {
    builder.name: builder for builder in (DapoMath17k, Math500, Aime2024, Aime2025, Amc2023, Gsm8k)
}
