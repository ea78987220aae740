"""The responses of a run for reading: some of them, token by token, with what is known of each
token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from entropy_rl.advantages import build_advantage
from entropy_rl.analysis import Response, TokenSpans
from entropy_rl.config.train import RewardConfig
from entropy_rl.evaluation import read_samples
from entropy_rl.evaluation.load_samples import model_of
from entropy_rl.learner.advantage_log import advantage_fields, make_advantages
from entropy_rl.runs.load_model import load_tokenizer, model_files
from entropy_rl.tasks.task import Verdict
from entropy_rl.types import TrainBatch

LONGEST = 2000  # tokens of a response that are shown
_UNKNOWN_GROUP = 8  # samples of a problem that are shown where no run says how many are a group

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much of a file is taken.

    Attributes:
      rows: Responses to read.
      tokens: Their tokens, about.
      analysed_tokens: Tokens of the responses that are analyzed, about.
    """

    rows: int
    tokens: int
    analysed_tokens: int


@dataclasses.dataclass(frozen=True)
class Samples:
    """Some of the samples of a directory.

    Attributes:
      total: How many the directory has.
      shown: As plain values, for the page.
      note: What is known of their advantages, or why nothing is.
      analyzed: For the analysis, spread evenly over the whole.
    """

    total: int
    shown: dict[str, Any]
    note: str
    analyzed: list[Response]


def read_some(
    directory: Path, limits: Limits, config: dict[str, Any] | None, temperature: float | None
) -> Samples:
    """Reads samples, whole groups of them as far as they are there.

    Args:
      directory: A training run or an evaluation.
      limits: How many.
      config: That of the training run; None if there is none.
      temperature: That the samples were drawn with; None if nothing says it.

    Raises:
      ValueError: There are none, or a line is no sample.
    """
    index = _index(directory)
    group = int(config["rollout"]["group_size"]) if config and "rollout" in config else None
    wanted = _some_groups(index, limits, group)
    analyzed = _spread(index, limits.analysed_tokens)
    kept = {i: row for i, row in enumerate(read_samples(directory)) if i in wanted or i in analyzed}
    rows = [kept[i] for i in sorted(wanted, key=lambda i: _place(index[i]))]
    if any("advantage_before" in row for row in rows):
        note = "as recorded while training, of the first update on each rollout"
    else:
        rows, note = _with_advantages(rows, config, group, temperature)
    spans, raw = _decoder(directory)
    responses = [] if spans is None else [_response(spans, kept[i]) for i in sorted(analyzed)]
    return Samples(len(index), _plain(rows, spans, raw), note, responses)


def read_responses(directory: Path, tokens: int) -> list[Response]:
    """Some responses for an analysis, spread evenly over the whole; none if their tokens are not
    known.

    Args:
      directory: As of `read_some`.
      tokens: Their tokens, about.

    Raises:
      ValueError: As `read_some`.
    """
    chosen = _spread(_index(directory), tokens)
    spans, _ = _decoder(directory)
    rows = () if spans is None else enumerate(read_samples(directory))
    return [_response(spans, row) for i, row in rows if i in chosen]


def _index(directory: Path) -> list[tuple]:
    rows = read_samples(directory)
    index = [(row.get("step"), row["problem"], row["sample"], row["length"]) for row in rows]
    if not index:
        raise ValueError(f"{directory}: holds no samples")
    return index


def _place(entry: tuple) -> tuple[int, int, int]:
    step, problem, sample, _ = entry
    return step or 0, problem, sample


def _some_groups(index: Sequence[tuple], limits: Limits, group: int | None) -> set[int]:
    """Places of the first samples of some problems, or of all samples of some steps; spread
    evenly.
    """
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
    """Places of samples at equal distances, with so many tokens about."""
    total = sum(length for *_, length in index)
    count = max(1, min(len(index), int(len(index) * tokens / max(total, 1))))
    return set(np.linspace(0, len(index) - 1, count).round().astype(int).tolist())


# --- advantages of evaluations
# -----------------------------------------------------------------------------


def _with_advantages(
    rows: list[Row], config: dict[str, Any] | None, group: int | None, temperature: float | None
) -> tuple[list[Row], str]:
    """The rows with what training would have made of them, where that is known exactly; and a
    note.
    """
    if config is None or group is None:
        return rows, "not known: nothing says how the model was trained, or would be"
    if "step" in rows[0]:
        return rows, "not known: this run was made before they were recorded"
    own = config["rollout"].get("temperature", 1.0)
    if own != temperature:
        drawn = (
            "a temperature that is not known"
            if temperature is None
            else f"temperature {temperature:g}"
        )
        return (
            rows,
            f"not known: these entropies are of {drawn}, and training shapes by those of {own:g}",
        )
    if any(":" in str(spec["name"]) for spec in config["advantage"]):
        # To read a run must not run what its config names.
        return rows, "not known: they need a transform that is not the library's"
    try:
        advantage = build_advantage(config["advantage"], group)
    except ValueError as error:
        return rows, f"not known: {error}"
    if advantage.scope == "batch":
        return rows, "not known: they depend on a whole mini-batch, of which this is a part"
    of_problem: dict[int, list[Row]] = {}
    for row in rows:
        of_problem.setdefault(row["problem"], []).append(row)
    whole = [r for r in of_problem.values() if [row["sample"] for row in r] == list(range(group))]
    if not whole:
        most = max(map(len, of_problem.values()))
        return (
            rows,
            f"not known: a group is {group} samples of a problem, and {most} at most are here",
        )
    members = [row for r in whole for row in r]
    batch = _batch(members, RewardConfig(**config.get("reward", {})))
    found = jax.device_get(make_advantages(advantage, len(members))(batch))
    fields = advantage_fields(found, len(members))
    known = {id(row): field for row, field in zip(members, fields, strict=True)}
    rest = len(rows) - len(members)
    note = (
        f"what the run's own transforms make of samples 0 to {group - 1} of a problem as one "
        "group; it was "
        "not trained on them"
    )
    note += f"; not known for {rest} samples whose group is not complete" if rest else ""
    return [row | known.get(id(row), {}) for row in rows], note


def _batch(rows: Sequence[Row], reward: RewardConfig) -> TrainBatch:
    """The rows as a mini-batch, as far as an advantage looks at it."""
    lengths = np.array([len(row["tokens"]) for row in rows])
    columns = int(lengths.max())
    verdicts = [Verdict(row["verdict"]) for row in rows]

    def padded(name: str, dtype: Any) -> np.ndarray:
        array = np.zeros((len(rows), columns), dtype)
        for b, row in enumerate(rows):
            array[b, : lengths[b]] = row[name]
        return array

    log_probs, entropy = padded("log_probs", np.float32), padded("entropy", np.float32)
    correct = np.array([verdict is Verdict.CORRECT for verdict in verdicts])
    return TrainBatch(
        ids=np.zeros((len(rows), 0), np.int32),
        prompt_length=np.zeros(len(rows), np.int32),
        completion_ids=padded("tokens", np.int32),
        completion_mask=np.arange(columns)[None] < lengths[:, None],
        old_log_probs=log_probs,
        old_entropy=entropy,
        sampler_log_probs=log_probs,
        rewards=np.where(correct, reward.correct, reward.wrong).astype(np.float32),
        has_reward=np.array([verdict.is_judgement for verdict in verdicts]),
    )


# --- texts of tokens
# ---------------------------------------------------------------------------------------


def _decoder(directory: Path) -> tuple[TokenSpans | None, Callable[[int], str]]:
    """What finds the texts of tokens, and the name of one that has no text; None if the model has
    gone.
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
    """[text, whether it is only a name] of each token: a token without text of its own has a
    name.
    """
    text, places = spans(tokens)
    texts, shown = [], 0
    for token, (begin, end) in zip(tokens, places.tolist(), strict=True):
        # Of tokens that only together make a character the first one has it.
        own = text[begin:end] if begin >= shown else ""
        texts.append([own or name_of(token), not own])
        shown = max(shown, end)
    return texts


def _plain(
    rows: Sequence[Row], spans: TokenSpans | None, name_of: Callable[[int], str]
) -> dict[str, Any]:
    """Prompts and texts of tokens once each, and the rows with their numbers."""
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
                "text": row.get("completion", "")[: 8 * LONGEST] if ids is None else None,
                "tokens": ids,
                "entropies": _rounded(row["entropy"]),
                "log_probs": _rounded(log_probs),
                "before": _rounded(row.get("advantage_before")),
                "after": _rounded(row.get("advantage_after")),
            }
        )
    return {"prompts": list(prompts), "pieces": [list(piece) for piece in pieces], "rows": shown}


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [round(float(x), 4) for x in values[:LONGEST]]
