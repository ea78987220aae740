"""From problems to token arrays: encoding, the length limit, and the order in which training sees
them.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from entropy_rl.experience.encoding import encode_prompt
from entropy_rl.experience.padding import pad_rows, padded_length
from entropy_rl.runs.logging import track
from entropy_rl.tasks.task import Problem

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Right-padded prompts and the problems behind them."""

    problems: list[Problem]
    ids: np.ndarray  # int32[P, S]
    mask: np.ndarray  # bool[P, S]
    index: np.ndarray  # int32[P], the problems' ids

    def rows(self, group_size: int) -> list[Problem]:
        """The problem of each of the P*G completions: row b belongs to prompt b // G."""
        return [problem for problem in self.problems for _ in range(group_size)]

    def take(self, keep: np.ndarray) -> PromptBatch:
        """Select prompts, bool[P]."""
        problems = [problem for problem, kept in zip(self.problems, keep, strict=True) if kept]
        return PromptBatch(problems, self.ids[keep], self.mask[keep], self.index[keep])


class Prompts:
    """The encoded problems of a split, in a seeded order that any step can be read from directly.

    Args:
      problems: The problems.
      tokenizer: A Hugging Face tokenizer.
      max_tokens: Problems with a longer prompt are left out, and `left_out` counts them.
      seed: Seed of the order; None keeps that of the problems.
      together: Consecutive problems that belong together, as the prompts of one problem do: they
        stay so in the order, and are left out together.

    Raises:
      ValueError: If no problem is left, an id is not a number or occurs twice, a prompt cannot be
        encoded, or the number of problems is no multiple of `together`.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        tokenizer,
        max_tokens: int,
        seed: int | None = None,
        together: int = 1,
    ):
        _check_ids(problems)
        if len(problems) % together:
            raise ValueError(
                f"task: the number of problems must be a multiple of {together}, the prompts of "
                f"each problem, got {len(problems)}"
            )
        encoded = [
            (problem, np.array(encode_prompt(problem, tokenizer), np.int32))
            for problem in track("prompts", problems, len(problems), "encoded")
        ]
        runs = [encoded[i : i + together] for i in range(0, len(encoded), together)]
        runs = [run for run in runs if all(len(ids) <= max_tokens for _, ids in run)]
        self._kept, self._together = [item for run in runs for item in run], together
        self.left_out = len(encoded) - len(self._kept)
        first = next((item for item in encoded if len(item[1]) > max_tokens), None)
        example = f" (such as problem {first[0].id} with {len(first[1])} tokens)" if first else ""
        if not self._kept:
            raise ValueError(
                f"no prompt is left: of {len(encoded)} problems, {self.left_out}{example} have a "
                f"prompt longer than max_prompt_tokens={max_tokens}"
            )
        if self.left_out:
            log.warning(
                "%d of %d problems are left out: their prompt is longer than max_prompt_tokens=%d"
                "%s: %.60r",
                self.left_out, len(encoded), max_tokens, example, first[0].prompt,
            )  # fmt: skip
        # Masks mark padding, so any id can serve for a tokenizer without a padding token.
        self._pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        longest = max(len(ids) for _, ids in self._kept)
        self.length = min(padded_length(longest), max(max_tokens, longest))
        self._by_id = {problem.id: problem for problem, _ in self._kept}
        self._order = self._kept
        if seed is not None:
            import grain  # here: it takes a second to import, and evaluation does without

            # Reshuffled in every epoch; the i-th element is a pure function of (seed, i).
            shuffled = grain.MapDataset.source(runs).seed(seed).shuffle().repeat()
            self._order = _Flat(shuffled, together)

    def __len__(self) -> int:
        """Problems that are kept."""
        return len(self._kept)

    @property
    def problems(self) -> list[Problem]:
        """The problems that are kept."""
        return [problem for problem, _ in self._kept]

    @property
    def encoded(self) -> list[np.ndarray]:
        """The tokens of the prompts that are kept."""
        return [ids for _, ids in self._kept]

    def problem(self, index: int) -> Problem:
        """The problem with an id."""
        return self._by_id[index]

    def step(
        self, step: int, count: int, shard: int = 0, shards: int = 1, updates: int = 1
    ) -> PromptBatch:
        """Return the prompts of a training step.

        An epoch has whole steps only, so that no problem occurs twice in a step; the remainder of
        an epoch is skipped, and each epoch has another order. The prompts are a function of (seed,
        step) alone, so a checkpoint stores only the step, and the number of hosts may change.

        Args:
          step: The step, from 0.
          count: Prompts of the step on all hosts.
          shard: Index of this host, which has a contiguous part of the prompts of each update.
          shards: Number of hosts.
          updates: Equal parts of the step that are trained on in sequence.

        Raises:
          ValueError: There are fewer problems than a step needs, or they are not divisible by the
            hosts.
        """
        own = _checked_places(len(self), count, shard, shards, updates, self._together)
        epoch, place = divmod(step, len(self) // count)
        # Without a seed, every epoch has the order of the problems.
        first = (0 if self._order is self._kept else epoch * len(self)) + place * count
        return self._pad([self._order[first + i] for i in own])

    def at(
        self, places: np.ndarray, shard: int = 0, shards: int = 1, updates: int = 1
    ) -> PromptBatch:
        """Return the prompts of a step by their places among the problems.

        Args:
          places: int[P], those of all hosts.
          shard: As in `step`, as the other arguments are.
          shards: Number of hosts.
          updates: Equal parts of the step.

        Raises:
          ValueError: As in `step`.
        """
        own = _checked_places(len(self), len(places), shard, shards, updates)
        return self._pad([self._kept[places[i]] for i in own])

    def shard(self, index: int, count: int) -> Prompts:
        """Every count-th problem from the index-th on, padded as all of them; for orders without a
        seed. A shard of more than there are problems may be empty.

        Raises:
          ValueError: If the index is out of range.
        """
        if not 0 <= index < count:
            raise ValueError(f"shard: must be >= 0 and < shards, got {index} of {count}")
        part = copy.copy(self)
        part._kept = part._order = self._kept[index::count]
        return part

    def batch(self, start: int, count: int) -> PromptBatch:
        """The prompts from place `start` of the order on."""
        return self._pad([self._order[i] for i in range(start, start + count)])

    def _pad(self, rows: Sequence[tuple[Problem, np.ndarray]]) -> PromptBatch:
        problems, encoded = [problem for problem, _ in rows], [ids for _, ids in rows]
        ids = pad_rows(encoded, self.length, self._pad_id, np.int32)
        mask = np.arange(self.length) < np.array([len(row) for row in encoded])[:, None]
        return PromptBatch(problems, ids, mask, np.array([p.id for p in problems], np.int32))


@dataclasses.dataclass(frozen=True)
class _Flat:
    """Elements of the runs of a sequence, which have equal lengths."""

    runs: Sequence[Sequence[tuple[Problem, np.ndarray]]]
    length: int

    def __getitem__(self, i: int) -> tuple[Problem, np.ndarray]:
        run, place = divmod(i, self.length)
        return self.runs[run][place]


def own_places(count: int, shard: int, shards: int, updates: int) -> list[int]:
    """Return the places of the prompts of a host among those of a step, of which it has a
    contiguous part in each mini-batch.

    Args:
      count: Prompts of the step.
      shard: Index of the host.
      shards: Number of hosts.
      updates: Mini-batches of the step.
    """
    of_update = count // updates
    own = of_update // shards
    starts = (update * of_update + shard * own for update in range(updates))
    return [i for start in starts for i in range(start, start + own)]


def _checked_places(
    problems: int, count: int, shard: int, shards: int, updates: int, together: int = 1
) -> list[int]:
    """As `own_places`.

    Raises:
      ValueError: There are fewer problems than a step needs, or they are not divisible by the
        hosts, in whole runs of problems that belong together.
    """
    if count > problems:
        raise ValueError(
            f"rollout.prompts: must be at most {problems}, the number of problems, got {count}"
        )
    of_update = count // updates
    if of_update % (shards * together):
        several = f" times the prompts of a problem ({together})" if together > 1 else ""
        raise ValueError(
            f"{'rollout.prompts' if updates == 1 else 'batching.mini_batch_prompts'}: must be "
            f"a multiple of the number of hosts ({shards}){several}, got {of_update}"
        )
    return own_places(count, shard, shards, updates)


def _check_ids(problems: Sequence[Problem]) -> None:
    """Two problems of one id would share the randomness of their samples, and be counted as one."""
    for problem in problems:
        if not isinstance(problem.id, int) or not 0 <= problem.id < 2**31:
            raise ValueError(
                f"task: problem ids must be integers from 0 to 2^31 - 1, got {problem.id!r}"
            )
    repeated = [i for i, count in Counter(problem.id for problem in problems).items() if count > 1]
    if repeated:
        raise ValueError(
            f"task: {len(repeated)} problem ids occur more than once, such as {repeated[0]}"
        )
