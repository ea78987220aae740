"""Load responses to analyze: recorded samples with entropies, or texts to be scored."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.analysis import REFLECTIVE, WORDS, Response, TokenSpans, WordLists
from entropy_rl.analysis.behaviors import check_expressions
from entropy_rl.config.checks import at_place, is_int
from entropy_rl.config.files import error_text
from entropy_rl.evaluation.samples import find_samples_files
from entropy_rl.lm_head.vocabulary import is_unused, unused_ranges
from entropy_rl.runs.directory import CONFIG_FILE, EVALUATIONS_DIRECTORY, SAMPLES_FILE
from entropy_rl.runs.model_files import find_model, is_run
from entropy_rl.runs.stored import read_recorded_config
from entropy_rl.tasks import words_of_task

log = logging.getLogger(__name__)

_MUST_BE = "must be a JSONL file or the directory of an evaluation or a training run"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a samples file; tokens and entropy are None for a text that is to be scored."""

    where: str  # "file:line", for errors
    problem: int
    prompt: str
    completion: str
    tokens: list[int] | None
    entropy: list[float] | None
    step: int | None


def read_rows(path: Path) -> list[Row]:
    """Read recorded samples of evaluations and runs, or texts as {"prompt": .., "completion": ..}.

    Args:
      path: A JSONL file, or a directory with samples.jsonl or its shards.

    Returns:
      All complete lines: either all recorded samples or all texts. Problems are identified by their
      "problem" field, or by their prompt, and numbered in its order: an analysis does not depend on
      the order of the lines.

    Raises:
      ValueError: The file does not exist or is empty, or a line is neither.
    """
    rows, problems = [], {}
    for where, plain in _lines(path):
        row = _row(where, plain, problems)
        if rows and (row.tokens is None) != (rows[0].tokens is None):
            raise ValueError(
                f"{where}: must have entropies in all lines of the file or in none, got a mixture"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: must hold samples, got none")
    in_order = sorted(problems, key=lambda problem: (isinstance(problem, str), problem))
    numbers = {problems[problem]: number for number, problem in enumerate(in_order)}
    return [dataclasses.replace(row, problem=numbers[row.problem]) for row in rows]


def model_of(path: Path) -> Path:
    """Find the model of recorded samples: their run, or the model in their evaluation's config.

    Raises:
      ValueError: It is unknown or does not exist.
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
            f"model.path: must be given, because no config next to {path} names its model"
        )
    return find_model(named)


def words_of(path: Path) -> tuple[WordLists, Sequence[str]]:
    """The words and expressions to look for in samples: those of their task, or else for English.

    Args:
      path: The samples of an evaluation or a run; the config next to them names the task.

    Raises:
      ValueError: Those of the task are empty or invalid.
    """
    directory = path if path.is_dir() else path.parent
    places = [directory]
    if directory.parent.name == EVALUATIONS_DIRECTORY:  # whose config has no task
        places.append(directory.parent.parent)
    for place in places:
        task = read_recorded_config(place / CONFIG_FILE).get("task")
        if isinstance(task, dict) and isinstance(task.get("name"), str):
            try:
                words, reflective = words_of_task(task["name"])
            except ValueError as error:  # a module that is not here
                log.warning("%s; the word lists for English are used", error)
                continue
            with at_place(f"task.name: {task['name']}"):
                check_expressions(words, reflective)
            return words or WORDS, reflective or REFLECTIVE
    return WORDS, REFLECTIVE


def responses_of(rows: list[Row], tokenizer: Any, vocab_size: int | None = None) -> list[Response]:
    """Decode recorded samples with the tokenizer of their model.

    Args:
      rows: The samples.
      tokenizer: The tokenizer.
      vocab_size: Entries of the model's vocabulary, of which those beyond the tokenizer were
        sampled by earlier versions: they have no text, and are counted in the log. None if the
        model is unknown.

    Raises:
      ValueError: A token id is outside of the vocabulary.
    """
    spans = TokenSpans(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
    ids = tokenizer.get_vocab().values()
    size = max(max(ids) + 1, vocab_size or 0)  # there may be gaps between the ids
    unused = unused_ranges(ids, size)
    responses, without_text = [], 0
    for row in rows:
        if row.tokens and not 0 <= min(row.tokens) <= max(row.tokens) < size:
            raise ValueError(
                f"{row.where}: tokens: must be ids below {size}, the size of the tokenizer, got "
                f"{min(row.tokens)} to {max(row.tokens)}"
            )
        arrays = np.array(row.tokens, np.int32), np.array(row.entropy, np.float64)
        without_text += int(is_unused(arrays[0], unused).sum())
        responses.append(Response(row.problem, *spans(row.tokens), *arrays, row.step))
    if without_text:
        log.warning(
            "%s: %d recorded tokens have no token in the tokenizer, and no text",
            rows[0].where.rpartition(":")[0], without_text,
        )  # fmt: skip
    return responses


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    files = find_samples_files(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: {_MUST_BE}, got a directory without {SAMPLES_FILE}")
    if not files[0].exists():
        raise ValueError(f"{path}: {_MUST_BE}, got no such file")
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        plain = json.loads(line.removesuffix(b"\n"))
                    except (ValueError, RecursionError) as error:
                        if not line.endswith(b"\n"):  # incomplete last line
                            break
                        text = error_text(error)
                        raise ValueError(f"{file}:{number}: must be JSON: {text}") from None
                    yield f"{file}:{number}", plain


def _row(where: str, plain: Any, problems: dict[int | str, int]) -> Row:
    if not isinstance(plain, dict):
        raise ValueError(f"{where}: must be a JSON object, got {plain!r:.60}")
    for name in ("prompt", "completion"):
        if not isinstance(plain.get(name), str):
            raise ValueError(f"{where}: {name}: must be a string, got {plain.get(name)!r:.60}")
    problem = plain.get("problem", plain["prompt"])
    tokens, entropy, step = (plain.get(name) for name in ("tokens", "entropy", "step"))
    if not (is_int(problem) or isinstance(problem, str)):
        raise ValueError(f"{where}: problem: must be an integer or a string, got {problem!r:.60}")
    if not (step is None or is_int(step)):
        raise ValueError(f"{where}: step: must be an integer, got {step!r:.60}")
    if entropy is None:
        tokens = None  # the text is encoded again when it is scored
    elif not (isinstance(tokens, list) and all(map(is_int, tokens))):
        raise ValueError(f"{where}: tokens: must be a list of token ids, got {tokens!r:.60}")
    elif not (
        isinstance(entropy, list) and all(map(_is_entropy, entropy)) and len(entropy) == len(tokens)
    ):
        raise ValueError(
            f"{where}: entropy: must be a number >= 0 for each of the {len(tokens)} tokens, got "
            f"{entropy!r:.60}"
        )
    number = problems.setdefault(problem, len(problems))
    return Row(where, number, plain["prompt"], plain["completion"], tokens, entropy, step)


def _is_entropy(value: Any) -> bool:
    # Rounding may put an entropy near zero slightly below it.
    return isinstance(value, float | int) and math.isfinite(value) and value >= -1e-3
