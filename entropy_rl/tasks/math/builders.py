"""TFDS builders of the math sets: from a downloaded file to an array_record data set.

TFDS does this without TensorFlow as long as the file format is array_record and reading goes
through `as_data_source`. Importing this imports TFDS: import it inside functions.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from entropy_rl.tasks.math import files, sets
from entropy_rl.tasks.math.answers import canonical

_REPORT_EVERY = 10_000  # rows
_CACHED = 50_000  # problems; DAPO-Math-17k has 17 k in 1.79 M rows


class MathBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A math set: `id`, `problem`, `answer`, and what else it has. The id is the place among the
    rows kept.

    Args:
      sources: The file of each split.
      facts: What is to be noted in the metadata beside the counts.
      progress: Is called now and then with a split and the number of rows read of its file.
      **kwargs: As of TFDS' own builders.
    """

    VERSION = tfds.core.Version(sets.VERSION)
    # TFDS looks for sums of downloads beside the code, by a library that it does not require.
    code_path = None
    EXTRA: ClassVar[Mapping[str, Any]] = {}  # fields beside id, problem and answer
    SCHEMAS: ClassVar[tuple[tuple[str, ...], ...]] = ()  # the fields that a file may have
    COLUMNS_ONLY: ClassVar[bool] = False  # read no other fields of a file than those
    DEDUPLICATE: ClassVar[bool] = False  # keep a problem once, and none with two answers

    def __init__(
        self,
        *,
        sources: Mapping[str, Path],
        facts: Mapping[str, Any],
        progress: Callable[[str, int], None],
        **kwargs,
    ):
        self._sources, self._progress = sources, progress
        self._metadata = tfds.core.MetadataDict(facts)
        super().__init__(file_format="array_record", **kwargs)

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        """The problem, answer and extra fields of a row; a ValueError says what is wrong with
        it.
        """
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        published = sets.PUBLISHED.get(self.name)
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=published.title if published else "A set of the user's own.",
            homepage=f"https://huggingface.co/datasets/{published.repository}"
            if published
            else None,
            license=published.license if published else None,
            features=tfds.features.FeaturesDict(
                {"id": np.int64, "problem": text, "answer": text} | dict(self.EXTRA)
            ),
            metadata=self._metadata,
            # the order of the file, also for those who read it without sorting
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # All files are read before anything is written: a wrong row ends it here.
        return {split: self._generate_examples(self._collect(split)) for split in self._sources}

    def _generate_examples(
        self, rows: list[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, row in enumerate(rows):
            yield i, {"id": i} | row

    def _collect(self, split: str) -> list[dict[str, Any]]:
        """The rows to keep; what was counted goes into the metadata."""
        path = self._sources[split]
        fields, left_out = self._check_fields(path)
        # The first row of every problem, how many rows have it, and the first that answers it
        # otherwise.
        rows, first, count, contradiction, identities = [], {}, collections.Counter(), {}, set()
        number = 0
        for where, given in files.read_rows(path, fields if self.COLUMNS_ONLY else None):
            number += 1
            try:
                row = self.convert(given)
            except KeyError as error:
                raise ValueError(
                    f"{where}: no field {error}; allowed: {', '.join(fields)}"
                ) from error
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            key = _normalize(row["problem"])
            if key not in count:
                first[key] = (where, row)
            elif key not in contradiction and _differ(first[key][1]["answer"], row["answer"]):
                contradiction[key] = (where, row)
            count[key] += 1
            if not self.DEDUPLICATE:
                rows.append(row)
            identities.add(row.get("source_id"))
            if number % _REPORT_EVERY == 0:
                self._progress(split, number)
        if number % _REPORT_EVERY:
            self._progress(split, number)
        if self.DEDUPLICATE:
            rows = [row for key, (_, row) in first.items() if key not in contradiction]
            if not rows:
                raise ValueError(f"{path}: no row is left: every problem has two different answers")
        self._metadata.setdefault("splits", {})[split] = {
            "rows": number,
            "kept": len(rows),
            "deduplicated": self.DEDUPLICATE,
            "duplicates": sum(n - 1 for key, n in count.items() if key not in contradiction),
            "contradictory_problems": len(contradiction),
            "contradictory_rows": sum(count[key] for key in contradiction),
            "first_contradiction": _describe(path, first, contradiction),
            "distinct_source_ids": len(identities) if "source_id" in self.EXTRA else None,
            "longest_problem": _longest(rows),
            "fields_left_out": left_out,
        }
        return rows

    def _check_fields(self, path: Path) -> tuple[tuple[str, ...], list[str]]:
        """The schema that a file has, and its fields beyond that."""
        found = files.field_names(path)
        for schema in self.SCHEMAS:
            if set(schema) <= set(found):
                return schema, sorted(set(found) - set(schema))
        allowed = " or ".join(", ".join(schema) for schema in self.SCHEMAS)
        raise ValueError(
            f"{path}: the fields are {', '.join(found)}{self.explain_fields(found)}; "
            f"allowed for {self.name}: {allowed}"
        )

    def explain_fields(self, found: list[str]) -> str:
        """What is known about fields that are not those of this set."""
        return ""


@functools.lru_cache(_CACHED)
def _normalize(problem: str) -> str:
    return " ".join(problem.split())


def _differ(answer: str, other: str) -> bool:
    return answer != other and canonical(answer) != canonical(other)


def _describe(path: Path, first: Mapping, contradiction: Mapping) -> str | None:
    for key, later in contradiction.items():
        said = [
            f"{_place(where, path)} has {row['answer']!r:.40}" for where, row in (first[key], later)
        ]
        return f"{', '.join(said)}: {key:.60}"
    return None


def _place(where: str, path: Path) -> str:
    place = where.removeprefix(f"{path}:")
    return place.strip() if place.startswith(" ") else f"line {place}"


def _longest(rows: list[dict[str, Any]]) -> dict[str, int]:
    i = max(range(len(rows)), key=lambda i: len(rows[i]["problem"]))
    return {"id": i, "characters": len(rows[i]["problem"])}


def _base(row: dict[str, Any], problem: str, answer: str) -> dict[str, Any]:
    return {"problem": files.take_text(row, problem), "answer": files.take_answer(row, answer)}


def _texts(row: dict[str, Any], **fields: str) -> dict[str, str]:
    """Extra fields as texts; TFDS has no null."""
    return {
        ours: "" if row[theirs] is None else str(row[theirs]) for ours, theirs in fields.items()
    }


# --------------------------------------------------------------------------------------------------
# The sets
# --------------------------------------------------------------------------------------------------


class DapoMath17k(MathBuilder, skip_registration=True):
    """DAPO-Math-17k: its prompts without their wrapper, each problem once."""

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
            raise ValueError(f"'prompt' is {messages!r:.80}; allowed: a list of one message")
        if messages[0].get("role") != "user" or not isinstance(messages[0].get("content"), str):
            raise ValueError(
                f"'prompt' is {messages[0]!r:.80}; allowed: role 'user' and a text as content"
            )
        for field, value, inner in (
            ("reward_model", reward, "ground_truth"),
            ("extra_info", extra, "index"),
        ):
            if not isinstance(value, dict) or inner not in value:
                raise ValueError(f"{field!r} is {value!r:.80}; allowed: an object with {inner!r}")
        return {
            "problem": unwrap_dapo(messages[0]["content"]),
            "answer": files.take_answer(reward, "ground_truth"),
        } | _texts(extra, source_id="index")


@functools.lru_cache(_CACHED)
def unwrap_dapo(prompt: str) -> str:
    """The problem inside DAPO's prompt.

    Raises:
      ValueError: If the prompt is not exactly DAPO's.
    """
    before, after = sets.DAPO_PROMPT.split("{problem}")
    problem = prompt.removeprefix(before).removesuffix(after)
    if len(problem) + len(before) + len(after) != len(prompt) or not problem.strip():
        raise ValueError(
            f"'prompt' is {prompt!r:.60}; allowed: DAPO's instruction, a blank line, the problem, "
            "a blank "
            "line, DAPO's reminder"
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
        if not isinstance(level, int) or isinstance(level, bool):
            raise ValueError(f"'level' is {level!r:.60}; allowed: a whole number")
        texts = _texts(row, solution="solution", subject="subject", source_id="unique_id")
        return _base(row, "problem", "answer") | texts | {"level": level}


class Aime2024(MathBuilder, skip_registration=True):
    """AIME 2024, in both schemas that are in use."""

    name = "aime_2024"
    SCHEMAS = (
        ("id", "problem", "solution", "answer", "url", "year"),
        ("ID", "Problem", "Solution", "Answer"),
    )
    EXTRA: ClassVar = dict.fromkeys(("solution", "url", "source_id"), tfds.features.Text())

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        if "ID" in row:  # such as 2024-I-4
            _require_year(2024, "ID", str(row["ID"])[:4])
            texts = _texts(row, solution="Solution", source_id="ID") | {"url": ""}
            return _integer(_base(row, "Problem", "Answer")) | texts
        _require_year(2024, "year", row["year"])
        texts = _texts(row, solution="solution", url="url", source_id="id")
        return _integer(_base(row, "problem", "answer")) | texts


class Aime2025(MathBuilder, skip_registration=True):
    """AIME 2025."""

    name = "aime_2025"
    SCHEMAS = (("id", "problem", "answer"),)
    EXTRA: ClassVar = {"source_id": tfds.features.Text()}

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        _require_year(
            2025, "year", row.get("year", 2025)
        )  # AIME 2024 has these fields too, and a year
        return _integer(_base(row, "problem", "answer")) | _texts(row, source_id="id")


class Amc2023(MathBuilder, skip_registration=True):
    """The 83 problems of AI-MO/aimo-validation-amc."""

    name = "amc_2023"
    SCHEMAS = (("id", "problem", "answer", "url"),)
    EXTRA: ClassVar = dict.fromkeys(("url", "source_id"), tfds.features.Text())

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        return _base(row, "problem", "answer") | _texts(row, url="url", source_id="id")

    def explain_fields(self, found: list[str]) -> str:
        if {"id", "question", "answer"} <= set(found):
            return " (as of math-ai/amc23, another set of the same name with 40 problems)"
        return ""


class Gsm8k(MathBuilder, skip_registration=True):
    """GSM8K: the answer is the number at the end of the rationale, which is kept as `solution`."""

    name = "gsm8k"
    SCHEMAS = (("question", "answer"),)
    EXTRA: ClassVar = {"solution": tfds.features.Text()}

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        solution, mark, answer = files.take_text(row, "answer").rpartition("#### ")
        answer = answer.strip().replace(",", "")
        if not mark or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", answer):
            raise ValueError(
                f"'answer' ends with {row['answer'][-40:]!r}; allowed: '#### ' and a number"
            )
        return {
            "problem": files.take_text(row, "question"),
            "answer": answer,
            "solution": solution.strip(),
        }


class UserMath(MathBuilder, skip_registration=True):
    """A set of the user's own: its name is that of the BuilderConfig."""

    name = sets.USER

    def __init__(self, *, fields: Sequence[str], **kwargs):
        self._fields = tuple(fields)
        super().__init__(**kwargs)

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        return _base(row, *self._fields)

    def _check_fields(self, path: Path) -> tuple[tuple[str, ...], list[str]]:
        found = files.field_names(path)
        try:
            files.require_fields(found, *self._fields)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return self._fields, sorted(set(found) - set(self._fields))


def _integer(row: dict[str, Any]) -> dict[str, Any]:
    """AIME's answers are the integers 0 to 999: without leading zeros and degree sign."""
    match = re.fullmatch(r"\$?0*([0-9]{1,3})(?:\^\{?\\circ\}?)?\$?", row["answer"])
    if match is None:
        raise ValueError(
            f"the answer is {row['answer']!r:.60}; allowed: a whole number from 0 to 999"
        )
    return row | {"answer": match[1]}


def _require_year(year: int, field: str, found: Any) -> None:
    if str(found) != str(year):
        raise ValueError(f"{field!r} is of {found!r:.20}; allowed: {year}")


BUILDERS = {
    builder.name: builder for builder in (DapoMath17k, Math500, Aime2024, Aime2025, Amc2023, Gsm8k)
}
