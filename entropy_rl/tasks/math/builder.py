"""The base TFDS builder of the math sets: from a downloaded file to an array_record data set.

TFDS needs no TensorFlow with the file format array_record and reading through `as_data_source`.
Importing this module imports TFDS: import it inside functions.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from entropy_rl.tasks.data_files import fields, files
from entropy_rl.tasks.math import catalog, sets
from entropy_rl.tasks.math.answers import canonical

_REPORT_EVERY = 10_000  # rows
CACHED = 50_000  # problems; DAPO-Math-17k has 17 k in 1.79 M rows


class MathBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base class: `id`, `problem`, `answer` and extra fields. The id counts the rows kept.

    Args:
      sources: The files of each split.
      facts: Metadata to store with the counts.
      progress: Called from time to time with a split and the number of rows read.
      **kwargs: Passed to the TFDS builder.
    """

    VERSION = tfds.core.Version(sets.VERSION)
    # TFDS would look for checksums of downloads next to the code, with an optional library.
    code_path = None
    EXTRA: ClassVar[Mapping[str, Any]] = {}  # fields besides id, problem and answer
    SCHEMAS: ClassVar[tuple[tuple[str, ...], ...]] = ()  # accepted sets of fields
    COLUMNS_ONLY: ClassVar[bool] = False  # read only those fields of a file
    DEDUPLICATE: ClassVar[bool] = False  # keep each problem once, and none with two answers

    def __init__(
        self,
        *,
        sources: Mapping[str, Sequence[Path]],
        facts: Mapping[str, Any],
        progress: Callable[[str, int], None],
        **kwargs,
    ):
        self._sources, self._progress = sources, progress
        self._metadata = tfds.core.MetadataDict(facts)
        super().__init__(file_format="array_record", **kwargs)

    def convert(self, row: dict[str, Any]) -> dict[str, Any]:
        """The problem, answer and extra fields of a row; raises ValueError for an invalid row."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        published = catalog.PUBLISHED.get(self.name)
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=published.title if published else "A user's set.",
            homepage=f"https://huggingface.co/datasets/{published.repository}"
            if published
            else None,
            license=published.license if published else None,
            features=tfds.features.FeaturesDict(
                {"id": np.int64, "problem": text, "answer": text} | dict(self.EXTRA)
            ),
            metadata=self._metadata,
            # keeps the order of the file for readers that do not sort
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # All files are read before anything is written, so an invalid row leaves nothing behind.
        return {split: self._generate_examples(self._collect(split)) for split in self._sources}

    def _generate_examples(
        self, rows: list[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, row in enumerate(rows):
            yield i, {"id": i} | row

    def _collect(self, split: str) -> list[dict[str, Any]]:
        """Read the rows to keep and store counts in the metadata."""
        paths = self._sources[split]
        schema, left_out = self._check_fields(paths)
        # Per problem: the first row, the number of rows, the first row with another answer.
        rows, first, count, contradiction, identities = [], {}, collections.Counter(), {}, set()
        number = 0
        for where, given in files.read_rows(paths, schema if self.COLUMNS_ONLY else None):
            number += 1
            try:
                row = self.convert(given)
            except KeyError as error:
                raise ValueError(
                    f"{where}: must have the fields {', '.join(schema)}, got none named {error}"
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
                raise ValueError(
                    f"{_title(paths)}: must have a problem with one answer, got two different "
                    "answers for every problem"
                )
        self._metadata.setdefault("splits", {})[split] = {
            "rows": number,
            "kept": len(rows),
            "deduplicated": self.DEDUPLICATE,
            "duplicates": sum(n - 1 for key, n in count.items() if key not in contradiction),
            "contradictory_problems": len(contradiction),
            "contradictory_rows": sum(count[key] for key in contradiction),
            "first_contradiction": _describe(paths, first, contradiction),
            "distinct_source_ids": len(identities) if "source_id" in self.EXTRA else None,
            "longest_problem": _longest(rows),
            "fields_left_out": left_out,
        }
        return rows

    def _check_fields(self, paths: Sequence[Path]) -> tuple[tuple[str, ...], list[str]]:
        """The schema of a file and its extra fields."""
        found = files.field_names(paths)
        for schema in self.SCHEMAS:
            if set(schema) <= set(found):
                return schema, sorted(set(found) - set(schema))
        allowed = " or ".join(", ".join(schema) for schema in self.SCHEMAS)
        raise ValueError(
            f"{paths[0]}: must have the fields {allowed} of {self.name}, "
            f"got {', '.join(found)}{self.explain_fields(found)}"
        )

    def explain_fields(self, found: list[str]) -> str:
        """A hint about fields of a different set."""
        return ""


@functools.lru_cache(CACHED)
def _normalize(problem: str) -> str:
    return " ".join(problem.split())


def _differ(answer: str, other: str) -> bool:
    return answer != other and canonical(answer) != canonical(other)


def _describe(paths: Sequence[Path], first: Mapping, contradiction: Mapping) -> str | None:
    for key, later in contradiction.items():
        said = [
            f"{_place(where, paths)} has {row['answer']!r:.40}"
            for where, row in (first[key], later)
        ]
        return f"{', '.join(said)}: {key:.60}"
    return None


def _place(where: str, paths: Sequence[Path]) -> str:
    if len(paths) > 1:
        return where
    place = where.removeprefix(f"{paths[0]}:")
    return place.strip() if place.startswith(" ") else f"line {place}"


def _title(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _longest(rows: list[dict[str, Any]]) -> dict[str, int]:
    i = max(range(len(rows)), key=lambda i: len(rows[i]["problem"]))
    return {"id": i, "characters": len(rows[i]["problem"])}


def base_fields(row: dict[str, Any], problem: str, answer: str) -> dict[str, Any]:
    """The problem and the answer of a row."""
    return {"problem": fields.take_text(row, problem), "answer": fields.take_answer(row, answer)}


def text_fields(row: dict[str, Any], **fields: str) -> dict[str, str]:
    """Extra fields as texts; null becomes the empty text because TFDS has no null."""
    return {
        ours: "" if row[theirs] is None else str(row[theirs]) for ours, theirs in fields.items()
    }
