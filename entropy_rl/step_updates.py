"""The updating half of a step: judged mini-batches in, the next state out."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from entropy_rl.bad_updates import BadUpdates
from entropy_rl.critic_step import CriticPrograms, mean_critic_metrics
from entropy_rl.revisit_step import Kept, RevisitPrograms, Rows
from entropy_rl.revisits import REVISIT_WEIGHT
from entropy_rl.train_step import UpdateFn
from entropy_rl.types import TrainBatch, TrainState
from entropy_rl.update_metrics import mean_metrics

Metrics = dict[str, float]


def run_updates(
    update: UpdateFn,
    critic: CriticPrograms | None,
    revisit: RevisitPrograms | None,
    state: TrainState,
    data: list[TrainBatch],
    bad_updates: BadUpdates,
    only_critic: bool = False,
) -> tuple[TrainState, Metrics]:
    """All updates of a step.

    Args:
      update: That of the policy.
      critic: Of the critic, if there is one, which then has an update before each of the policy.
      revisit: Of earlier rollouts, if they are learned from once more.
      state: With what is kept of those.
      data: The judged mini-batches of the step.
      bad_updates: Where those go that cannot be applied.
      only_critic: Whether the policy stays as it is.

    Returns:
      (the state, metrics: means over the updates that were applied; of a revisit they begin with `revisit/`).
    """
    on_data = functools.partial(_run, update, critic, data=data, bad_updates=bad_updates)
    if revisit is None:
        return on_data(state, only_critic=only_critic)
    # No update looks at what is kept.
    kept, state = state.kept, state.replace(kept=None)
    rows, (memory, signals) = kept.rows, revisit.look(kept.memory, state.step, data)
    signals = {name: float(value) for name, value in jax.device_get(signals).items()}
    weight, of_revisit = signals[REVISIT_WEIGHT], {}
    if revisit.rules.before:
        state, of_revisit = _revisit(revisit, state, rows, weight, bad_updates)
    state, metrics = on_data(state)
    rows = revisit.keep(rows, data)
    if not revisit.rules.before:
        state, of_revisit = _revisit(revisit, state, rows, weight, bad_updates)
    metrics["bad_updates"] += of_revisit.pop("bad_updates", 0.0)
    metrics |= signals | {f"revisit/{name}": value for name, value in of_revisit.items()}
    return state.replace(kept=Kept(rows, memory)), metrics


def _run(
    update: UpdateFn,
    critic: CriticPrograms | None,
    state: TrainState,
    data: list[TrainBatch],
    bad_updates: BadUpdates,
    only_critic: bool = False,
) -> tuple[TrainState, Metrics]:
    """One optimizer step per mini-batch, in the order of the prompts."""
    of_policy, of_critic = [], []
    for number, batch in enumerate(data, 1):
        if critic is not None:
            keep = functools.partial(bad_updates.keep_of_critic, number=number)
            state = _update(critic.update, state, batch, of_critic, keep)
        if not only_critic:
            state = _update(update, state, batch, of_policy, bad_updates.keep)
    means = _mean_over_applied(mean_metrics, of_policy) | _mean_over_applied(mean_critic_metrics, of_critic)
    return state, means | {"bad_updates": _count_bad(of_policy + of_critic)}


def _revisit(
    revisit: RevisitPrograms, state: TrainState, rows: Rows, weight: float, bad_updates: BadUpdates
) -> tuple[TrainState, Metrics]:
    """The updates on kept rows; without weight there are none."""
    if weight == 0:
        return state, {}
    # Rows that are forgotten anyway make an update even if there are few of them.
    least = 1 if revisit.rules.only_last else revisit.rows_of_update
    found = []
    for number in np.flatnonzero(jax.device_get(revisit.count(rows)) >= least).tolist():
        batch = revisit.part(rows, weight, number)
        state = _update(revisit.update, state, batch, found, bad_updates.keep_of_revisit)
    return state, _mean_over_applied(mean_metrics, found) | {"bad_updates": _count_bad(found)}


def _update(
    update: UpdateFn,
    state: TrainState,
    batch: TrainBatch,
    found: list[Metrics],
    keep_bad: Callable[[TrainState, TrainBatch], None],
) -> TrainState:
    """One update, whose metrics are added to those found; if it was not applied it is kept."""
    state, metrics = update(state, batch)
    found.append(metrics := jax.device_get(metrics))
    if not _is_finite(metrics):
        keep_bad(state, batch)
    return state


def _is_finite(metrics: Metrics) -> bool:
    return bool(np.isfinite(metrics["grad_norm"]))


def _count_bad(metrics: list[Metrics]) -> float:
    return float(sum(not _is_finite(row) for row in metrics))


def _mean_over_applied(mean: Callable[[list[Metrics]], Metrics], metrics: list[Metrics]) -> Metrics:
    return mean([row for row in metrics if _is_finite(row)] or metrics) if metrics else {}
