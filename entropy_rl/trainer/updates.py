"""The updates of a step: scored mini-batches in, the next state out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from entropy_rl.distributed.host_memory import trim_heap
from entropy_rl.distributed.sharding import move
from entropy_rl.learner.critic import CriticPrograms, mean_critic_metrics
from entropy_rl.learner.metrics import mean_metrics
from entropy_rl.learner.replay import ReplayPrograms, ReplayState, Rows
from entropy_rl.learner.replay_rule import REPLAY_WEIGHT
from entropy_rl.learner.update import UpdateFn
from entropy_rl.runs.logging import Clock
from entropy_rl.runs.nonfinite_updates import NonfiniteUpdates
from entropy_rl.trainer.prepare import TrainData
from entropy_rl.trainer.programs import Programs
from entropy_rl.types import TrainBatch, TrainState

Metrics = dict[str, float]
Observe = Callable[[Any, Mapping[int, float]], tuple[Any, Metrics]]


@dataclasses.dataclass(frozen=True)
class Update:
    """All updates of a step, as `(state, data) -> (state, metrics)`.

    Attributes:
      programs: The compiled updates.
      nonfinite_updates: Where updates go that cannot be applied.
      clock: Records the phase `updates`.
      critic_warmup_steps: In the first steps, as many as this, only the critic is updated.
      offload: Whether the moments of the optimizers are in host memory between the updates of two
        steps.
      old_log_probs: The `old_log_probs` of the config.
      observe: With a curriculum, (its state, outcomes) -> (its next state, metrics).
    """

    programs: Programs
    nonfinite_updates: NonfiniteUpdates
    clock: Clock
    critic_warmup_steps: int = 0
    offload: bool = False
    old_log_probs: Literal["trainer", "sampler"] = "trainer"
    observe: Observe | None = None

    def __call__(self, state: TrainState, data: TrainData) -> tuple[TrainState, Metrics]:
        """Run the updates of a step.

        Args:
          state: The training state, which is donated.
          data: The mini-batches.

        Returns:
          (the state of the next step, metrics as in `run_updates`).
        """
        with self.clock("updates"):
            if jax.default_backend() == "cpu":
                trim_heap()  # of what sampling used
            if self.offload:
                state = moments_in("device", state)
            # No update reads the curriculum, which would be donated.
            curriculum, state = state.curriculum, state.replace(curriculum=None)
            only_critic = self.programs.critic is not None and (
                int(state.step) < self.critic_warmup_steps
            )
            state, metrics = run_updates(
                self.programs.update,
                self.programs.critic,
                self.programs.replay,
                state,
                data.batches,
                self.nonfinite_updates,
                only_critic,
            )
            if not only_critic:
                metrics["time/micro_batch_fill"] = self.programs.micro_batch_fill(data.batches)
            rounds = None if state.rounds is None else state.rounds + data.rounds
            if self.observe is not None:
                curriculum, found = self.observe(curriculum, data.outcomes)
                metrics |= found
            state = state.replace(step=state.step + 1, rounds=rounds, curriculum=curriculum)
            if self.offload:
                state = moments_in("pinned_host", state)
        if self.old_log_probs == "sampler":  # then they are equal by construction
            metrics = {n: v for n, v in metrics.items() if not n.endswith("logprob_diff")}
        return state, metrics


def moments_in(memory: Literal["device", "pinned_host"], state: TrainState) -> TrainState:
    """Move the moments of all optimizers to a memory."""
    state = state.replace(opt_state=move(state.opt_state, memory))
    if state.critic is None:
        return state
    opt_state = move(state.critic.opt_state, memory)
    return state.replace(critic=state.critic.replace(opt_state=opt_state))


def run_updates(
    update: UpdateFn,
    critic: CriticPrograms | None,
    replay: ReplayPrograms | None,
    state: TrainState,
    data: list[TrainBatch],
    nonfinite_updates: NonfiniteUpdates,
    only_critic: bool = False,
) -> tuple[TrainState, Metrics]:
    """Run all updates of a step: one per mini-batch, and those of a replay buffer.

    Args:
      update: Of the policy.
      critic: Of the critic, if there is one. It is updated before the policy on each mini-batch.
      replay: Of the replay buffer, if there is one.
      state: The training state, which is donated.
      data: The scored mini-batches of the step.
      nonfinite_updates: Where updates go that cannot be applied.
      only_critic: Skip the updates of the policy.

    Returns:
      (the state, metrics: means over the updates that were applied; those of the replay buffer
      begin with `replay/`).
    """
    on_data = functools.partial(
        _run, update, critic, data=data, nonfinite_updates=nonfinite_updates
    )
    if replay is None:
        return on_data(state, only_critic=only_critic)
    # No update reads the buffer, which would be donated.
    buffer, state = state.replay_buffer, state.replace(replay_buffer=None)
    rows, (controller, coefficients) = buffer.rows, replay.look(buffer.controller, state.step, data)
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
    """One update per mini-batch, in order."""
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
    """The updates on the rows of the replay buffer; none if their weight is 0."""
    if weight == 0:
        return state, {}
    # A buffer that is cleared each step uses partial batches too.
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
    """One update. Its metrics are appended to `found`; it is dumped if it was not applied."""
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
    applied = [row for row in metrics if _is_finite(row) and row["tokens"] > 0]
    return mean(applied or metrics) if metrics else {}
