"""Responses to analyze: recorded samples with their entropies, or texts that a model gives them
to.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.analysis import Response, TokenSpans
from entropy_rl.runs.directory import CONFIG_FILE, EVALUATIONS_DIRECTORY, SAMPLES_FILE
from entropy_rl.runs.load_model import find_model, is_run
from entropy_rl.runs.stored import read_recorded_config

_ALLOWED = "allowed: a JSONL file, or the directory of an evaluation or a training run"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a file; of a text that is to be scored, tokens and entropy are None."""

    where: str  # file and line, for errors
    problem: int
    prompt: str
    completion: str
    tokens: list[int] | None
    entropy: list[float] | None
    step: int | None


def read_rows(path: Path) -> list[Row]:
    """Reads samples that evaluations and runs have recorded, or texts as {"prompt": ..,
    "completion": ..}.

    Args:
      path: A JSONL file, or a directory with samples.jsonl or its shards.

    Returns:
      All complete lines; either all recorded, or all texts. Problems are numbered by appearance,
      and told apart by what is called "problem", or by their prompts.

    Raises:
      ValueError: There is no such file, it holds nothing, or a line is neither; with the line.
    """
    rows, problems = [], {}
    for where, plain in _lines(path):
        row = _row(where, plain, problems)
        if rows and (row.tokens is None) != (rows[0].tokens is None):
            raise ValueError(
                f"{where}: allowed: a file with entropies in all its lines, or in none"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: holds no samples")
    return rows


def model_of(path: Path) -> Path:
    """The model that the samples of a path come from: of their run, or that their evaluation's
    config names.

    Raises:
      ValueError: It is not known, or not there.
    """
    directory = path if path.is_dir() else path.parent
    inside = directory.parent.name == EVALUATIONS_DIRECTORY
    for run in (directory, directory.parent.parent) if inside else (directory,):
        if is_run(run):
            return run
    try:
        named = read_recorded_config(directory / CONFIG_FILE)["model"]["path"]
    except (ValueError, TypeError, KeyError):
        named = None
    if not isinstance(named, str):
        raise ValueError(
            f"model.path: missing: nothing beside {path} says which model its tokens are of"
        )
    return find_model(named)


def responses_of(rows: list[Row], tokenizer: Any) -> list[Response]:
    """Recorded samples as responses, decoded by the tokenizer that their tokens are of.

    Raises:
      ValueError: A token that the tokenizer does not have; with the line.
    """
    spans = TokenSpans(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
    size = len(tokenizer)
    responses = []
    for row in rows:
        if row.tokens and not 0 <= min(row.tokens) <= max(row.tokens) < size:
            raise ValueError(
                f"{row.where}: has tokens that the tokenizer, with {size}, does not have"
            )
        arrays = np.array(row.tokens, np.int32), np.array(row.entropy, np.float64)
        responses.append(Response(row.problem, *spans(row.tokens), *arrays, row.step))
    return responses


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    stem, _, suffix = SAMPLES_FILE.partition(".")
    files = sorted(path.glob(f"{stem}*.{suffix}")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: has no {SAMPLES_FILE}; {_ALLOWED}")
    if not files[0].exists():
        raise ValueError(f"{path}: there is no such file; {_ALLOWED}")
    for file in files:
        lines = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    plain = json.loads(line)
                except ValueError as error:
                    if number == len(lines):  # cut off while it was written
                        break
                    raise ValueError(f"{file}:{number}: is no JSON: {error}") from None
                yield f"{file}:{number}", plain


def _row(where: str, plain: Any, problems: dict[int | str, int]) -> Row:
    if not isinstance(plain, dict):
        raise ValueError(f"{where}: {plain!r:.60} is not allowed; allowed: a JSON object")
    for name in ("prompt", "completion"):
        if not isinstance(plain.get(name), str):
            raise ValueError(
                f"{where}: {name}: {plain.get(name)!r:.60} is not allowed; allowed: a text"
            )
    problem = plain.get("problem", plain["prompt"])
    tokens, entropy, step = (plain.get(name) for name in ("tokens", "entropy", "step"))
    if not (_is_whole(problem) or isinstance(problem, str)):
        raise ValueError(
            f"{where}: problem: {problem!r:.60} is not allowed; allowed: a number or a text"
        )
    if not (step is None or _is_whole(step)):
        raise ValueError(f"{where}: step: {step!r:.60} is not allowed; allowed: a whole number")
    if entropy is None:
        tokens = None  # they are scored anew
    elif not (isinstance(tokens, list) and all(map(_is_whole, tokens))):
        raise ValueError(
            f"{where}: tokens: {tokens!r:.60} is not allowed; allowed: the ids of the tokens"
        )
    elif not (
        isinstance(entropy, list) and all(map(_is_entropy, entropy)) and len(entropy) == len(tokens)
    ):
        raise ValueError(
            f"{where}: entropy: {entropy!r:.60} is not allowed; allowed: a number >= 0 for each "
            "of the "
            f"{len(tokens)} tokens"
        )
    number = problems.setdefault(problem, len(problems))
    return Row(where, number, plain["prompt"], plain["completion"], tokens, entropy, step)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_entropy(value: Any) -> bool:
    # Rounding may leave the entropy of a decided token a little below zero.
    return isinstance(value, float | int) and math.isfinite(value) and value >= -1e-3
