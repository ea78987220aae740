"""The Countdown task."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from entropy_rl.config.checks import is_int, is_number, require
from entropy_rl.tasks.countdown import game, judge, traces
from entropy_rl.tasks.countdown.tokenizer import build_tokenizer
from entropy_rl.tasks.task import Demonstration, Problem, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Band:
    """A range of difficulty: `size` inputs, low <= p1 < high, and its weight `share` in a split."""

    size: int
    low: float
    high: float
    share: int = 1


# A random search needs 5 to 20 attempts, so a policy gets rewards right after fine-tuning.
_USUAL = (Band(4, 0.05, 0.2), Band(5, 0.05, 0.2))
# A random search of a few hundred attempts fails on these, so Pass@K does not saturate.
_HARD = (Band(4, 0.002, 0.006), Band(5, 0.0005, 0.003))
_BANDS = {
    "sft": _USUAL,
    "train": _USUAL,
    "validation": (*(dataclasses.replace(band, share=5) for band in _USUAL), *_HARD),
    "test": _USUAL + _HARD,
}
# Keys of the random streams of splits that were renamed: the problems must stay the same.
_STREAMS = {"sft": "warmstart"}
_COUNTS = {"sft": 256, "train": 2048, "validation": 128, "test": 256}


class Countdown:
    """Combine 4 or 5 numbers by + - * so that each is used once and the last result is the target.

    Problems are selected by p1, the exact probability that one random legal attempt solves them. By
    default p1 is in 0.05..0.2, half of the problems with 4 and half with 5 numbers. One half of
    "test" and one sixth of "validation" are hard: p1 in 0.002..0.006 with 4 numbers and in
    0.0005..0.003 with 5.

    Splits share no multiset of inputs, so memorizing one split does not help on another.

    Args:
      seed: Seed of the problems and their order. The assignment of inputs to splits does not
        depend on it.
      counts: Problems per split; other splits keep their default. The first k problems of a split
        are the same for every count.
      bands: Difficulties per split, each a mapping with `size`, `low`, `high` and `share`; other
        splits keep their default.
      traces: Fields of `TraceConfig` with other values than the default.

    Raises:
      ValueError: If an argument is out of range; the message starts with `task.args.` and its name.
    """

    words: ClassVar = {
        "operators": ("+", "-", "*"),
        "results": ("=",),
        "back": ("wait", "undo"),
        "end": ("stop", "done"),
    }
    reflective: ClassVar = (r"\b(?:wait|undo)\b",)

    def __init__(
        self,
        *,
        seed: int = 0,
        counts: Mapping[str, int] | None = None,
        bands: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        traces: Mapping[str, Any] | None = None,
    ):
        _require(is_int(seed), "seed", seed, "an integer")
        self._seed = seed
        self._counts = _COUNTS | _by_split("counts", counts)
        for split, count in self._counts.items():
            _require(is_int(count) and count >= 1, f"counts.{split}", count, "an integer >= 1")
        self._bands = _BANDS | {
            split: _read_bands(f"bands.{split}", value)
            for split, value in _by_split("bands", bands).items()
        }
        self._traces = _read_traces(traces or {})
        self._problems: dict[str, tuple[Problem, ...]] = {}

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of "sft", "train", "validation" or "test", in a fixed order.

        Bands alternate by their shares, so every prefix of the list has about the same shares.

        Raises:
          ValueError: If there is no such split, or it has fewer problems than requested.
        """
        if split not in game.SPLITS:
            raise ValueError(f"split: must be one of {', '.join(game.SPLITS)}, got {split!r}")
        if split not in self._problems:
            self._problems[split] = tuple(self._draw(split))
        return self._problems[split]

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """Judge completions.

        CORRECT for a flawless live chain to the target and `done`; UNPARSABLE for a syntax error.
        A completion that follows the grammar but was truncated, or is empty, is WRONG. Errors in
        attempts that `wait` or `undo` abandoned do not matter.
        """
        return [
            judge.judge_one(p.answer, text) for p, text in zip(problems, completions, strict=True)
        ]

    def final_answers(self, completions: Sequence[str]) -> list[str | None]:
        """The steps of each claimed solution; None without a claim."""
        return [judge.claimed_steps(text) for text in completions]

    def probe(
        self, problems: Sequence[Problem], completions: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """Skill metrics as name -> (numerator, denominator).

        Per step: `arithmetic` (the equation holds), `operands` (both are in the pool printed
        before), `rules` (the step is legal). Per printed state: `pools` (correct numbers and
        target). Per completion: `false_done` (ends with `done` and is not correct), `stopped`,
        `format_errors`, and the counts `waits`, `undos` (words), `steps`. A denominator of 0 means
        that there was nothing to count.
        """
        return judge.probe_all([problem.answer for problem in problems], completions)

    def demonstration(self, seed: int, index: int) -> Demonstration:
        """The worked example of (seed, index), on inputs of the "sft" split."""
        return traces.make_demonstration(Random(f"{seed} {index}"), self._traces)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The word-level tokenizer of the grammar."""
        return build_tokenizer()

    def _draw(self, split: str) -> Iterator[Problem]:
        bands = self._bands[split]
        sources = [self._candidates(split, band) for band in bands]
        # With shares 1 and 3 the order is 0 1 1 1 0 1 1 1 ...
        turns = itertools.cycle([k for k, band in enumerate(bands) for _ in range(band.share)])
        for i, k in zip(range(self._counts[split]), turns, strict=False):
            drawn = next(sources[k], None)
            _require(
                drawn is not None,
                f"counts.{split}",
                self._counts[split],
                f"at most {i}, the number of problems in {bands[k]}",
            )
            prompt = traces.write_prompt(*drawn)
            yield Problem(id=i, prompt=prompt, answer=prompt)

    def _candidates(self, split: str, band: Band) -> Iterator[tuple[list[int], int]]:
        """All problems of a band: one target of each multiset, then a second of each, and so on."""
        multisets = list(game.multisets(split, band.size))
        stream = f"{self._seed} {_STREAMS.get(split, split)}"
        # Each band has its own order: two bands of one size should not begin with the same inputs.
        Random(f"{stream} {band.size} {band.low}").shuffle(multisets)
        targets: dict[tuple[int, ...], list[int]] = {}
        for turn in itertools.count():
            found = False
            for numbers in multisets:
                if numbers not in targets:
                    p1 = game.target_probabilities(numbers)
                    inside = [t for t, p in enumerate(p1.tolist()) if band.low <= p < band.high]
                    Random(f"{stream} {numbers}").shuffle(inside)
                    targets[numbers] = inside
                if turn < len(targets[numbers]):
                    found = True
                    target = targets[numbers][turn]
                    order = list(numbers)
                    Random(f"{stream} {numbers} {target}").shuffle(order)
                    yield order, target
            if not found:
                return


def _require(condition: bool, name: str, value: Any, must_be: str) -> None:
    require(condition, f"task.args.{name}", value, must_be)


def _by_split(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    _require(isinstance(value, Mapping | None), name, value, "a mapping from splits")
    for split in value or {}:
        _require(split in game.SPLITS, name, split, f"one of {', '.join(game.SPLITS)}")
    return dict(value or {})


def _fields(name: str, value: Any, kind: type) -> dict[str, Any]:
    """`value`, if it is a mapping that names fields of the dataclass `kind` only."""
    allowed = [field.name for field in dataclasses.fields(kind)]
    _require(isinstance(value, Mapping), name, value, f"a mapping of {', '.join(allowed)}")
    for key in value:
        _require(key in allowed, name, key, f"a mapping of {', '.join(allowed)}")
    return dict(value)


def _read_bands(name: str, value: Sequence[Mapping[str, Any]]) -> tuple[Band, ...]:
    _require(isinstance(value, list | tuple) and len(value) > 0, name, value, "a non-empty list")
    bands = []
    for i, item in enumerate(value):
        at = f"{name}[{i}]"
        given = _fields(at, item, Band)
        for needed in ("size", "low", "high"):
            _require(needed in given, at, item, f"a mapping with a field {needed!r}")
        band = Band(**given)
        _require(is_int(band.size) and 2 <= band.size <= 6, f"{at}.size", band.size, "in 2..6")
        for end in ("low", "high"):
            p1 = getattr(band, end)
            _require(is_number(p1) and 0 <= p1 <= 1, f"{at}.{end}", p1, "a probability")
        _require(band.low < band.high, f"{at}.high", band.high, f"> low ({band.low})")
        # A target that no attempt reaches has p1 = 0: a problem without a solution.
        _require(band.low > 0, f"{at}.low", band.low, "> 0")
        _require(
            is_int(band.share) and band.share >= 1, f"{at}.share", band.share, "an integer >= 1"
        )
        for other in bands:
            apart = other.size != band.size or other.high <= band.low or band.high <= other.low
            _require(apart, at, item, f"disjoint from {other}")
        bands.append(band)
    return tuple(bands)


def _read_traces(value: Mapping[str, Any]) -> traces.TraceConfig:
    given = _fields("traces", value, traces.TraceConfig)
    for name in ("sizes", "chains"):
        if name in given:
            _require(isinstance(given[name], list | tuple), f"traces.{name}", given[name], "a list")
            given[name] = tuple(given[name])
    config = traces.TraceConfig(**given)
    for name, low, high in (("sizes", 3, 6), ("chains", 1, 64)):
        numbers = getattr(config, name)
        good = numbers and all(is_int(n) and low <= n <= high for n in numbers)
        _require(good, f"traces.{name}", numbers, f"a list of integers in {low}..{high}")
    for name in ("p_solve", "p_near", "p_stop", "p_undo", "p_undo_two", "p_fix", "drills"):
        p = getattr(config, name)
        _require(is_number(p) and 0 <= p <= 1, f"traces.{name}", p, "a probability")
    _require(config.p_solve + config.p_near <= 1, "traces.p_near", config.p_near, "<= 1 - p_solve")
    for name in ("facts", "max_pieces"):
        n = getattr(config, name)
        _require(is_int(n) and n >= 1, f"traces.{name}", n, "an integer >= 1")
    return config
