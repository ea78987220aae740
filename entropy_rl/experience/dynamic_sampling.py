"""Dynamic sampling: groups without contrast are dropped, and further prompts are sampled in their
place.

A round samples the next `rollout.prompts` prompts of the order. Rounds follow one another until
enough groups have rewards that differ, and a step trains on the first so many, in the order of the
prompts; what the last round has beyond that is not trained on. Source: DAPO,
https://arxiv.org/abs/2503.14476, §3.2, and veRL's code of it, which does the same. The rewards
looked at are those of the verdicts (`reward:`), DAPO's accuracy; what the advantage makes of them,
such as a penalty for length, does not matter here.

Which groups these are is decided by the rewards of all processes, and so alike in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from entropy_rl.config.train import RewardConfig, TrainConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.experience.metrics import gather_judged, judged_rows, pool_judged, rollout_metrics
from entropy_rl.experience.prompts import PromptBatch, Prompts
from entropy_rl.experience.records import Row, completion_rows
from entropy_rl.experience.scoring import Scores, judged_before
from entropy_rl.tasks.task import Task, Verdict
from entropy_rl.types import Rollout

OF_PROMPTS = (
    "prompt_ids",
    "prompt_mask",
)  # in a rollout; the other arrays have a row for each completion
_VERDICTS = list(Verdict)


class ScoredGroups(NamedTuple):
    """The judged groups of this process in one round."""

    prompts: PromptBatch
    rollout: Rollout  # host copies
    scores: Scores
    round: np.ndarray  # int32[P]; the samples of a group begin with G times this
    greedy: Scores | None = None  # of the greedy completion of each prompt, where there is one
    explored: np.ndarray | None = (
        None  # bool[P], whether a group took the place of one that had failed
    )
    failed: tuple[Rollout, Scores] | None = (
        None  # all groups, those that failed instead of the explored ones
    )

    @property
    def before_exploration(self) -> tuple[Rollout, Scores]:
        """All groups before any exploration."""
        return self.failed or (self.rollout, self.scores)

    @property
    def has_reward(self) -> np.ndarray:
        """bool[B], which rows have a judgement, and a greedy completion that has one where there
        is one.
        """
        if self.greedy is None:
            return self.scores.has_reward
        return self.scores.has_reward & np.repeat(self.greedy.has_reward, self.group_size)

    @property
    def judged(self) -> int:
        """How many completions were judged: those of the groups, greedy ones, and those of
        explorations.
        """
        count = len(self.scores.verdicts)
        if self.greedy is not None:
            count += len(self.greedy.verdicts)
        return (
            count if self.explored is None else count + int(self.explored.sum()) * self.group_size
        )

    @property
    def group_size(self) -> int:
        """G."""
        return len(self.rollout.completion_ids) // len(self.prompts.index)


class Place(NamedTuple):
    """Where a group stands among all of a step; groups are taken in the order of the first three
    numbers.
    """

    dropped: bool
    round: int
    prompt: int  # its number in the round
    host: int
    number: int  # among the groups of this process, round after round


class TrainGroups(NamedTuple):
    """The judged groups of this process that a step trains on, update after update."""

    rollout: Rollout
    rewards: np.ndarray  # f32[B]
    has_reward: np.ndarray  # bool[B]; False for all of a group that only fills a place
    verdicts: np.ndarray  # int32[B], places in the list of all verdicts
    greedy_rewards: np.ndarray | None  # f32[B]
    loss_row_mask: np.ndarray | None  # bool[B], where not all judged rows are learned from
    prompt_index: np.ndarray  # int32[P]
    round: np.ndarray  # int32[P]; the samples of a group begin with G times this


def has_contrast(rewards: np.ndarray, has_reward: np.ndarray, group_size: int) -> np.ndarray:
    """Whether the judged rewards of a group differ.

    Args:
      rewards: f32[B].
      has_reward: bool[B], which of them are judged. A group with less than two of these has no contrast.
      group_size: Rows of a group, which stand together.

    Returns:
      bool[P].
    """
    rewards, has_reward = rewards.reshape(-1, group_size), has_reward.reshape(-1, group_size)
    largest = np.max(np.where(has_reward, rewards, -np.inf), axis=1)
    return largest > np.min(np.where(has_reward, rewards, np.inf), axis=1)


def worth_learning(
    rewards: np.ndarray, has_reward: np.ndarray, explored: np.ndarray, group_size: int
) -> np.ndarray:
    """Which rows are learned from where failed groups were explored: A ≠ 0, and of explored groups
    A ≥ 0.

    A is the reward above the mean of the group, so that a group without contrast has no such row.
    Source: UEC-RL, https://arxiv.org/abs/2604.14646, from a summary.

    Args:
      rewards: f32[B].
      has_reward: bool[B], which of them are judged.
      explored: bool[P].
      group_size: Rows of a group, which stand together.

    Returns:
      bool[B].
    """
    contrast = has_contrast(rewards, has_reward, group_size)[:, None]
    values = rewards.reshape(-1, group_size)
    judged = has_reward.reshape(-1, group_size)
    mean = np.where(judged, values, 0).sum(1, keepdims=True) / np.maximum(
        judged.sum(1, keepdims=True), 1
    )
    return (judged & contrast & (~explored[:, None] | (values >= mean))).reshape(-1)


def draw_rounds(draw: Callable[[int], ScoredGroups], config: TrainConfig) -> list[ScoredGroups]:
    """Draws rounds until there are enough groups with contrast; every process must ask.

    Args:
      draw: Samples and judges the groups of this process in a round of the step, counted from 0.
      config: With `rollout.dynamic_sampling`.

    Returns:
      The rounds, in order.

    Raises:
      ValueError: If there are too few groups after the last round, and that is an error.
    """
    limits, wanted = config.rollout.dynamic_sampling, config.rollout.prompts
    rounds, found = [], 0
    while found < wanted and len(rounds) < limits.max_rounds:
        rounds.append(draw(len(rounds)))
        found += sum(hosts.gather(int(_contrast(rounds[-1], config.reward).sum())))
    if found < wanted and limits.at_limit == "error":
        raise ValueError(
            f"rollout.dynamic_sampling.max_rounds: {limits.max_rounds} is not enough: in so many "
            "rounds of "
            f"{wanted} prompts only {found} groups have rewards that differ; the same command "
            "goes on with a "
            "larger number"
        )
    return rounds


def all_groups(drawn: ScoredGroups, reward: RewardConfig) -> TrainGroups:
    """A step that trains on all groups of its only round."""
    return TrainGroups(drawn.rollout, *_of_rows(drawn, reward), drawn.prompts.index, drawn.round)


def take_groups(rounds: Sequence[ScoredGroups], config: TrainConfig, updates: int) -> TrainGroups:
    """The groups that a step trains on: the first with contrast, shared out among the processes.

    Where there are too few, others fill the places, with rows that count nowhere. Every process
    must ask.

    Args:
      rounds: The rounds of the step, those of this process.
      config: The config.
      updates: Equal parts of the step that are trained on one after the other.
    """
    wanted = config.rollout.prompts
    places = choose(hosts.gather(_places_of(rounds, config.reward)), wanted)
    own = own_places(wanted, updates, hosts.index(), hosts.count())
    trained = _trained(_exchange(_groups(rounds, config.reward), places, own))
    filler = np.array([places[k].dropped for k in own], bool)
    return trained._replace(
        has_reward=trained.has_reward & ~np.repeat(filler, rounds[0].group_size)
    )


def recorded_rows(
    trained: TrainGroups, task: Task, tokenizer: Any, prompts: Prompts, rows: int
) -> list[Row]:
    """The first so many rows as plain values, for a JSONL file."""
    rows = min(rows, len(trained.verdicts))
    group_size = len(trained.verdicts) // len(trained.prompt_index)
    by_id = {problem.id: problem for problem in prompts.problems}
    problems = [by_id[int(trained.prompt_index[b // group_size])] for b in range(rows)]
    samples = [
        int(trained.round[b // group_size]) * group_size + b % group_size for b in range(rows)
    ]
    first = trained.rollout.replace(
        completion_ids=trained.rollout.completion_ids[:rows],
        completion_mask=trained.rollout.completion_mask[:rows],
    )
    verdicts = [_VERDICTS[i] for i in trained.verdicts[:rows]]
    return completion_rows(
        problems, samples, first, judged_before(task, tokenizer, first, verdicts)
    )


def sampling_metrics(
    rounds: Sequence[ScoredGroups], config: TrainConfig
) -> tuple[dict[str, float], int]:
    """What a step sampled; every process must ask.

    Returns:
      (numbers by the names of metrics.jsonl, tokens sampled); those of an exploration are not among
      the rows.
    """
    own = (judged_rows(*drawn.before_exploration, config.reward) for drawn in rounds)
    judged = gather_judged(pool_judged(own))
    metrics, tokens = rollout_metrics(judged, config.rollout.group_size), int(judged.lengths.sum())
    if config.rollout.dynamic_sampling is not None:
        metrics |= round_metrics(rounds, config.reward) | {"tokens_sampled": float(tokens)}
    if rounds[0].explored is not None:
        metrics |= exploration_metrics(rounds)
    if rounds[0].greedy is not None:
        metrics |= greedy_metrics(rounds, config.reward)
    return metrics, tokens


def round_metrics(rounds: Sequence[ScoredGroups], reward: RewardConfig) -> dict[str, float]:
    """What dynamic sampling dropped; every process must ask."""
    own = np.concatenate([_contrast(drawn, reward) for drawn in rounds])
    prompts, dropped = np.sum(hosts.gather([len(own), int((~own).sum())]), axis=0).tolist()
    return {"groups_dropped": dropped / prompts, "prompts_sampled": float(prompts)}


def exploration_metrics(rounds: Sequence[ScoredGroups]) -> dict[str, float]:
    """How many groups were explored, and how many of these found an answer; every process must
    ask.
    """
    explored = np.concatenate([drawn.explored for drawn in rounds])
    correct = np.concatenate(
        [drawn.scores.correct.reshape(-1, drawn.group_size).any(1) for drawn in rounds]
    )
    found = [len(explored), int(explored.sum()), int((explored & correct).sum())]
    groups, tried, solved = np.sum(hosts.gather(found), axis=0).tolist()
    return {"groups_explored": tried / groups, "explored_solved": solved / tried if tried else 0.0}


def greedy_metrics(rounds: Sequence[ScoredGroups], reward: RewardConfig) -> dict[str, float]:
    """The mean reward of the greedy completions that were judged; every process must ask."""
    own = np.concatenate(
        [drawn.greedy.rewards(reward)[drawn.greedy.has_reward] for drawn in rounds]
    )
    rewards = [value for part in hosts.gather(own.tolist()) for value in part]
    return {"greedy_reward": float(np.mean(rewards)) if rewards else float("nan")}


def choose(places: Sequence[Sequence[Sequence[int]]], wanted: int) -> list[Place]:
    """The groups that are taken, in their order.

    Args:
      places: For each process the places of its groups, as plain lists.
      wanted: How many are taken.
    """
    return sorted(Place(*place) for of_host in places for place in of_host)[:wanted]


def own_places(wanted: int, updates: int, host: int, host_count: int) -> list[int]:
    """Which of the groups of a step a process trains on: a contiguous part of those of each
    update.
    """
    of_update = wanted // updates
    part = of_update // host_count
    starts = (update * of_update + host * part for update in range(updates))
    return [k for start in starts for k in range(start, start + part)]


def _contrast(drawn: ScoredGroups, reward: RewardConfig) -> np.ndarray:
    return has_contrast(drawn.scores.rewards(reward), drawn.has_reward, drawn.group_size)


def _places_of(rounds: Sequence[ScoredGroups], reward: RewardConfig) -> list[list[int]]:
    """The places of the groups of this process, as plain lists."""
    places: list[list[int]] = []
    for number, drawn in enumerate(rounds):
        first = hosts.index() * len(drawn.prompts.index)
        for i, contrast in enumerate(_contrast(drawn, reward).tolist()):
            places.append([int(not contrast), number, first + i, hosts.index(), len(places)])
    return places


def _of_rows(drawn: ScoredGroups, reward: RewardConfig) -> tuple[np.ndarray | None, ...]:
    """Of rows what `TrainGroups` has of them, in its order."""
    rewards, has_reward, of_greedy, learned = (
        drawn.scores.rewards(reward),
        drawn.has_reward,
        None,
        None,
    )
    if drawn.greedy is not None:
        of_greedy = np.repeat(drawn.greedy.rewards(reward), drawn.group_size)
    numbers = np.array([_VERDICTS.index(verdict) for verdict in drawn.scores.verdicts], np.int32)
    if drawn.explored is not None:
        learned = worth_learning(rewards, has_reward, drawn.explored, drawn.group_size)
    return rewards, has_reward, numbers, of_greedy, learned


def _groups(rounds: Sequence[ScoredGroups], reward: RewardConfig) -> dict[str, Any]:
    """All groups of this process, as a nest of arrays [P, ...]."""
    parts = []
    for drawn in rounds:
        in_groups = lambda x, size=drawn.group_size: x.reshape(-1, size, *x.shape[1:])  # noqa: E731
        rollout = vars(drawn.rollout).items()
        parts.append(
            {
                "rollout": {name: x if name in OF_PROMPTS else in_groups(x) for name, x in rollout},
                "rows": jax.tree.map(in_groups, _of_rows(drawn, reward)),
                "prompts": [drawn.prompts.index, drawn.round],
            }
        )
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _exchange(groups: Any, taken: Sequence[Place], own: Sequence[int]) -> Any:
    """Of the groups that are taken those that this process trains on, wherever they were sampled.

    Args:
      groups: A nest of arrays [P, ...] of the groups of this process.
      taken: The groups that are taken, over all processes.
      own: Which of these this process trains on.
    """
    counts = [0] * hosts.count()
    rank = []  # of each among those of the process that has it
    for place in taken:
        rank.append(counts[place.host])
        counts[place.host] += 1
    sent = [place.number for place in taken if place.host == hosts.index()]
    sent += [0] * (max(counts) - len(sent))  # all send equally many
    everything = hosts.concatenate(jax.tree.map(lambda x: x[sent], groups))
    wanted = [taken[k].host * max(counts) + rank[k] for k in own]
    return jax.tree.map(lambda x: x[wanted], everything)


def _trained(groups: dict[str, Any]) -> TrainGroups:
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    rollout = {name: x if name in OF_PROMPTS else flat(x) for name, x in groups["rollout"].items()}
    return TrainGroups(Rollout(**rollout), *jax.tree.map(flat, groups["rows"]), *groups["prompts"])
