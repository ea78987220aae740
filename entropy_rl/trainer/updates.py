"""The updating half of a step: judged mini-batches in, the next state out."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from entropy_rl.learner.critic import CriticPrograms, mean_critic_metrics
from entropy_rl.learner.metrics import mean_metrics
from entropy_rl.learner.replay import ReplayPrograms, ReplayState, Rows
from entropy_rl.learner.replay_rule import REPLAY_WEIGHT
from entropy_rl.learner.update import UpdateFn
from entropy_rl.runs.nonfinite_updates import NonfiniteUpdates
from entropy_rl.types import TrainBatch, TrainState

Metrics = dict[str, float]


def run_updates(
    update: UpdateFn,
    critic: CriticPrograms | None,
    replay: ReplayPrograms | None,
    state: TrainState,
    data: list[TrainBatch],
    nonfinite_updates: NonfiniteUpdates,
    only_critic: bool = False,
) -> tuple[TrainState, Metrics]:
    """All updates of a step.

    Args:
      update: That of the policy.
      critic: Of the critic, if there is one, which then has an update before each of the policy.
      replay: Of earlier rollouts, if they are learned from once more.
      state: With what is kept of those.
      data: The judged mini-batches of the step.
      nonfinite_updates: Where those go that cannot be applied.
      only_critic: Whether the policy stays as it is.

    Returns:
      (the state, metrics: means over the updates that were applied; of a replay they begin with
      `replay/`).
    """
    on_data = functools.partial(
        _run, update, critic, data=data, nonfinite_updates=nonfinite_updates
    )
    if replay is None:
        return on_data(state, only_critic=only_critic)
    # No update looks at what is kept.
    kept, state = state.replay_buffer, state.replace(replay_buffer=None)
    rows, (controller, coefficients) = kept.rows, replay.look(kept.controller, state.step, data)
    coefficients = {name: float(value) for name, value in jax.device_get(coefficients).items()}
    weight, of_replay = coefficients[REPLAY_WEIGHT], {}
    if replay.rules.before:
        state, of_replay = _replay(replay, state, rows, weight, nonfinite_updates)
    state, metrics = on_data(state)
    rows = replay.keep(rows, data)
    if not replay.rules.before:
        state, of_replay = _replay(replay, state, rows, weight, nonfinite_updates)
    metrics["nonfinite_updates"] += of_replay.pop("nonfinite_updates", 0.0)
    metrics |= coefficients | {f"replay/{name}": value for name, value in of_replay.items()}
    return state.replace(replay_buffer=ReplayState(rows, controller)), metrics


def _run(
    update: UpdateFn,
    critic: CriticPrograms | None,
    state: TrainState,
    data: list[TrainBatch],
    nonfinite_updates: NonfiniteUpdates,
    only_critic: bool = False,
) -> tuple[TrainState, Metrics]:
    """One optimizer step per mini-batch, in the order of the prompts."""
    of_policy, of_critic = [], []
    for number, batch in enumerate(data, 1):
        if critic is not None:
            keep = functools.partial(nonfinite_updates.keep_of_critic, number=number)
            state = _update(critic.update, state, batch, of_critic, keep)
        if not only_critic:
            state = _update(update, state, batch, of_policy, nonfinite_updates.keep)
    means = _mean_over_applied(mean_metrics, of_policy) | _mean_over_applied(
        mean_critic_metrics, of_critic
    )
    return state, means | {"nonfinite_updates": _count_bad(of_policy + of_critic)}


def _replay(
    replay: ReplayPrograms,
    state: TrainState,
    rows: Rows,
    weight: float,
    nonfinite_updates: NonfiniteUpdates,
) -> tuple[TrainState, Metrics]:
    """The updates on kept rows; without weight there are none."""
    if weight == 0:
        return state, {}
    # Rows that are forgotten anyway make an update even if there are few of them.
    least = 1 if replay.rules.only_last else replay.rows_of_update
    found = []
    for number in np.flatnonzero(jax.device_get(replay.count(rows)) >= least).tolist():
        batch = replay.part(rows, weight, number)
        state = _update(replay.update, state, batch, found, nonfinite_updates.keep_of_replay)
    return state, _mean_over_applied(mean_metrics, found) | {"nonfinite_updates": _count_bad(found)}


def _update(
    update: UpdateFn,
    state: TrainState,
    batch: TrainBatch,
    found: list[Metrics],
    keep_nonfinite: Callable[[TrainState, TrainBatch], None],
) -> TrainState:
    """One update, whose metrics are added to those found; if it was not applied it is kept."""
    state, metrics = update(state, batch)
    found.append(metrics := jax.device_get(metrics))
    if not _is_finite(metrics):
        keep_nonfinite(state, batch)
    return state


def _is_finite(metrics: Metrics) -> bool:
    return bool(np.isfinite(metrics["grad_norm"]))


def _count_bad(metrics: list[Metrics]) -> float:
    return float(sum(not _is_finite(row) for row in metrics))


def _mean_over_applied(mean: Callable[[list[Metrics]], Metrics], metrics: list[Metrics]) -> Metrics:
    return mean([row for row in metrics if _is_finite(row)] or metrics) if metrics else {}
