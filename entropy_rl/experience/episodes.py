"""`Episodes`: the environments of a rollout, and what they say about its rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from entropy_rl.config.checks import require
from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.experience.observations import encode_observation
from entropy_rl.tasks.environments.pool import EnvironmentPool, Episode
from entropy_rl.tasks.environments.task import EnvironmentTask
from entropy_rl.tasks.task import Judgement, Problem, Task, Verdict
from entropy_rl.types import FinishReason

log = logging.getLogger(__name__)

_FAILED = {"crash": Verdict.CRASH, "timeout": Verdict.TIMEOUT}


@dataclasses.dataclass
class EpisodeRow:
    """One episode of a rollout.

    Attributes:
      problem: Its problem.
      seed: Of its environment.
      actions: The texts of the turns.
      rewards: Of the turns that were answered by an observation.
      parts: Counts of its observations, summed.
      ends: The column of the last token of each turn.
      length: Columns so far.
      judgement: At the end; None before.
    """

    problem: Problem
    seed: int
    actions: tuple[str, ...] = ()
    rewards: tuple[float, ...] = ()
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    ends: tuple[int, ...] = ()
    length: int = 0
    judgement: Judgement | None = None


class Episodes:
    """Steps the environments of the rows of a rollout; `rollout.Environments` of the sampler.

    An episode has the judgement of its environment, with the sum of the rewards of its turns. One
    that reaches a limit is a wrong one, unless its environment ended it in that turn. One whose
    environment fails has no judgement.
    """

    def __init__(
        self,
        pool: EnvironmentPool,
        tokenizer: Any,
        max_turns: int,
        problems: Sequence[Problem],
        seeds: Sequence[int],
    ):
        """
        Args:
          pool: Steps the environments.
          tokenizer: Decodes turns and encodes observations.
          max_turns: Turns of an episode.
          problems: The problem of each row.
          seeds: The seed of each row.
        """
        self._pool, self._tokenizer, self._max_turns = pool, tokenizer, max_turns
        self.rows = [EpisodeRow(p, seed) for p, seed in zip(problems, seeds, strict=True)]
        self._waiting: dict[int, tuple[Future, int, FinishReason, int]] = {}

    def submit(self, row: int, ids: Sequence[int], reason: FinishReason, room: int) -> None:
        """Send a turn to its environment."""
        episode = self.rows[row]
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        episode.actions += (text,)
        episode.length += len(ids)
        episode.ends += (episode.length - 1,)
        future = self._pool.step(row, _of_pool(episode))
        self._waiting[row] = future, ids[-1], reason, room

    def reply(self, row: int) -> Sequence[int] | FinishReason:
        """Wait for the answer of an environment.

        Raises:
          JudgeError: No worker can be started.
        """
        future, last_id, reason, room = self._waiting.pop(row)
        episode, reply = self.rows[row], future.result()
        if "failed" in reply:
            return self._end(row, Judgement(_FAILED[reply["failed"]]), FinishReason.FAILED)
        if "judgement" in reply:
            verdict, reward, parts = (reply["judgement"][n] for n in ("verdict", "reward", "parts"))
            judgement = Judgement(Verdict(verdict), reward, parts)
            cut_off = reason == FinishReason.LENGTH and room == 0
            return self._end(row, judgement, reason if cut_off else FinishReason.DONE)
        episode.rewards += (reply["reward"],)
        _add(episode.parts, reply.get("parts", {}))
        texts = [reply["text"]] if isinstance(reply["text"], str) else reply["text"]
        if len(episode.actions) >= self._max_turns:
            return self._end(row, Judgement(Verdict.WRONG), FinishReason.TURNS)
        try:
            ids = encode_observation(
                texts, reply["role"], episode.problem, last_id, self._tokenizer
            )
        except ValueError as error:
            log.warning("problem %d: %s", episode.problem.id, error)
            return self._end(row, Judgement(Verdict.CRASH), FinishReason.FAILED)
        if len(ids) >= room:
            return self._end(row, Judgement(Verdict.WRONG), FinishReason.LENGTH)
        episode.length += len(ids)
        return ids

    def judgements(self) -> list[Judgement]:
        """The judgements of all rows, with the rewards of their turns."""
        return [row.judgement for row in self.rows]

    def turn_rewards(self, columns: int) -> np.ndarray:
        """The rewards of turns, f32[B, columns], each at the last token of its turn.

        They are part of the reward of a row; what is left of it belongs to the last token.
        """
        rewards = np.zeros((len(self.rows), columns), np.float32)
        for row, episode in zip(rewards, self.rows, strict=True):
            row[list(episode.ends[: len(episode.rewards)])] = episode.rewards
        return rewards

    def _end(self, row: int, judgement: Judgement, reason: FinishReason) -> FinishReason:
        episode = self.rows[row]
        self._pool.end(row, _of_pool(episode))
        if any(episode.rewards) and judgement.verdict.is_judgement:
            judgement = dataclasses.replace(judgement, turns=sum(episode.rewards))
        if episode.parts and judgement.verdict.is_judgement:
            judgement = dataclasses.replace(judgement, parts=_add(episode.parts, judgement.parts))
        episode.judgement = judgement
        return reason


def _of_pool(row: EpisodeRow) -> Episode:
    return Episode(row.problem, row.seed, row.actions)


def _add(parts: dict[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Add numbers to those of the same name."""
    for name, value in more.items():
        parts[name] = parts.get(name, 0.0) + value
    return parts


def begin_episodes(
    task: Task, tokenizer: Any, problems: Sequence[Problem], first_sample: int, key: jax.Array
) -> Episodes | None:
    """Begin the episodes of a rollout; None for a task that is no environment.

    Args:
      task: The task.
      tokenizer: The tokenizer.
      problems: The problem of each row; the rows of a problem are contiguous.
      first_sample: Index of the first sample of each problem.
      key: Random key of the step.
    """
    if not isinstance(task, EnvironmentTask):
        return None
    words = jax.random.key_data(key).tolist()
    samples = dict.fromkeys((problem.id for problem in problems), first_sample)
    seeds = []
    for problem in problems:
        seeds.append(_seed(words, problem.id, samples[problem.id]))
        samples[problem.id] += 1
    return Episodes(task.pool, tokenizer, task.limits.max_turns, problems, seeds)


def environments_of(episodes: Episodes | None) -> dict[str, Episodes]:
    """The argument of `generate` for episodes."""
    return {} if episodes is None else {"environments": episodes}


def turn_tokens(task: Task, config: DecodingConfig, max_new_tokens: int) -> int | None:
    """The limit of tokens of a turn, for `make_generate`; None for a task that is no environment.

    Raises:
      ValueError: Decoding does not synchronize with the host.
    """
    if not isinstance(task, EnvironmentTask):
        return None
    require(
        config.chunk_steps is not None,
        "decoding.chunk_steps",
        config.chunk_steps,
        "a number for a task with episodes, whose environments answer between chunks",
    )
    return min(task.limits.max_turn_tokens or max_new_tokens, max_new_tokens)


def _seed(words: list[int], problem: int, sample: int) -> int:
    """The seed of an environment, from 0 to 2^63 - 1."""
    text = json.dumps([words, problem, sample]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1
