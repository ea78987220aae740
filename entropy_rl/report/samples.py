"""Samples of a run for the page: a selection of responses, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.analysis import Response, TokenSpans
from entropy_rl.evaluation import read_samples
from entropy_rl.evaluation.load_samples import model_of
from entropy_rl.experience.records import Row, grades_of
from entropy_rl.report.sample_advantages import add_advantages
from entropy_rl.runs.load_model import load_tokenizer, model_files

LONGEST = 2000  # tokens shown of a response
_UNKNOWN_GROUP = 8  # samples shown of a problem if the group size of training is unknown


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many samples of a source to select.

    Attributes:
      rows: Responses to show.
      tokens: Approximate number of their tokens.
      analyzed_tokens: Approximate number of tokens to analyze.
    """

    rows: int
    tokens: int
    analyzed_tokens: int


@dataclasses.dataclass(frozen=True)
class SelectedSamples:
    """A selection of the samples of a directory.

    Attributes:
      total: Number of samples in the directory.
      shown: Samples for the page, as plain values.
      note: Where their advantages come from, or why they are unknown.
      analyzed: Responses for the analysis, spread evenly over all samples.
    """

    total: int
    shown: dict[str, Any]
    note: str
    analyzed: list[Response]


def select_samples(
    directory: Path, limits: Limits, config: dict[str, Any] | None, temperature: float | None
) -> SelectedSamples:
    """Select samples of a directory, in whole groups where possible.

    Args:
      directory: A training run or an evaluation.
      limits: How many to select.
      config: Config of the training run; None if unknown.
      temperature: Sampling temperature; None if unknown.

    Raises:
      ValueError: There are no samples, or a line is not a sample.
    """
    index = _index(directory)
    group = int(config["rollout"]["group_size"]) if config and "rollout" in config else None
    wanted = _some_groups(index, limits, group)
    analyzed = _spread(index, limits.analyzed_tokens)
    kept = {i: row for i, row in enumerate(read_samples(directory)) if i in wanted or i in analyzed}
    rows = [kept[i] for i in sorted(wanted, key=lambda i: _order(index[i]))]
    if any("advantage_before" in row for row in rows):
        note = "as recorded in training, in the first update on each rollout"
    else:
        rows, note = add_advantages(rows, config, group, temperature)
    spans, raw = _decoder(directory)
    responses = [] if spans is None else [_response(spans, kept[i]) for i in sorted(analyzed)]
    return SelectedSamples(len(index), _plain(rows, spans, raw), note, responses)


def select_responses(directory: Path, tokens: int) -> list[Response]:
    """Select responses for an analysis, spread evenly over all samples.

    Args:
      directory: A training run or an evaluation.
      tokens: Approximate number of their tokens.

    Returns:
      The responses; none if the tokenizer is not available.

    Raises:
      ValueError: As in `select_samples`.
    """
    chosen = _spread(_index(directory), tokens)
    spans, _ = _decoder(directory)
    rows = () if spans is None else enumerate(read_samples(directory))
    return [_response(spans, row) for i, row in rows if i in chosen]


def _index(directory: Path) -> list[tuple]:
    rows = read_samples(directory)
    index = [(row.get("step"), row["problem"], row["sample"], row["length"]) for row in rows]
    if not index:
        raise ValueError(f"{directory}: must hold samples, got none")
    return index


def _order(entry: tuple) -> tuple[int, int, int]:
    step, problem, sample, _ = entry
    return step or 0, problem, sample


def _some_groups(index: Sequence[tuple], limits: Limits, group: int | None) -> set[int]:
    """Indices of the first samples of evenly spaced problems, or all samples of such steps."""
    units: dict[tuple, list[int]] = {}
    for i, (step, problem, sample, _) in enumerate(index):
        if step is not None or sample < (group or _UNKNOWN_GROUP):
            units.setdefault((step,) if step is not None else (problem,), []).append(i)
    mean = sum(min(length, LONGEST) for *_, length in index) / len(index)
    room = max(1, min(limits.rows, int(limits.tokens / max(mean, 1))))
    size = max(map(len, units.values()))
    keys = sorted(units)
    places = np.linspace(0, len(keys) - 1, min(len(keys), max(1, room // size))).round().astype(int)
    return {i for place in places for i in units[keys[place]][:room]}


def _spread(index: Sequence[tuple], tokens: int) -> set[int]:
    """Indices of evenly spaced samples with about `tokens` tokens in total."""
    total = sum(length for *_, length in index)
    count = max(1, min(len(index), int(len(index) * tokens / max(total, 1))))
    return set(np.linspace(0, len(index) - 1, count).round().astype(int).tolist())


def _decoder(directory: Path) -> tuple[TokenSpans | None, Callable[[int], str]]:
    """Functions from tokens to text spans, and from a token to its name in the vocabulary.

    The first is None if the model is not available.
    """
    try:
        tokenizer = load_tokenizer(model_files(model_of(directory)))
    except ValueError:
        return None, str
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
    return TokenSpans(decode), lambda token: str(tokenizer.convert_ids_to_tokens(token))


def _response(spans: TokenSpans, row: Row) -> Response:
    arrays = np.array(row["tokens"], np.int32), np.array(row["entropy"], np.float64)
    return Response(row["problem"], *spans(row["tokens"]), *arrays, row.get("step"))


def token_texts(
    spans: TokenSpans, name_of: Callable[[int], str], tokens: Sequence[int]
) -> list[list[Any]]:
    """[text, is_name] of each token; a token without text is shown by its vocabulary name."""
    text, places = spans(tokens)
    texts, shown = [], 0
    for token, (begin, end) in zip(tokens, places.tolist(), strict=True):
        # If several tokens form one character, the first of them shows it.
        own = text[begin:end] if begin >= shown else ""
        texts.append([own or name_of(token), not own])
        shown = max(shown, end)
    return texts


def _plain(
    rows: Sequence[Row], spans: TokenSpans | None, name_of: Callable[[int], str]
) -> dict[str, Any]:
    """Plain values for the page: prompts and token texts are stored once, rows refer to them."""
    prompts: dict[str, int] = {}
    pieces: dict[tuple[str, bool], int] = {}
    shown = []
    for row in rows:
        ids = None
        if spans is not None:
            texts = token_texts(spans, name_of, row["tokens"])[:LONGEST]
            ids = [pieces.setdefault(tuple(text), len(pieces)) for text in texts]
        log_probs = row.get("log_probs")
        shown.append(
            {
                "step": row.get("step"),
                "problem": row["problem"],
                "sample": row["sample"],
                "prompt": prompts.setdefault(row["prompt"], len(prompts)),
                "right": row["right_answer"],
                "answer": row["answer"],
                "verdict": row["verdict"],
                "finish": row.get("finish_reason"),
                "length": row["length"],
                "entropy": float(np.mean(row["entropy"])) if row["entropy"] else None,
                "log_prob": float(np.sum(log_probs)) if log_probs else None,
                "reward": row.get("reward"),
                "rewards": row.get("rewards", {}) | grades_of(row),
                "text": row.get("completion", "")[: 8 * LONGEST] if ids is None else None,
                "tokens": ids,
                # What an environment answered, as [number of tokens before it, text].
                "observations": [o for o in row.get("observations", ()) if o[0] < LONGEST],
                "entropies": _rounded(row["entropy"]),
                "log_probs": _rounded(log_probs),
                "before": _rounded(row.get("advantage_before")),
                "after": _rounded(row.get("advantage_after")),
            }
        )
    return {"prompts": list(prompts), "pieces": [list(piece) for piece in pieces], "rows": shown}


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [round(float(x), 4) for x in values[:LONGEST]]
