"""Records of non-finite updates, which are skipped, for `entropy-rl debug-update`."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from entropy_rl.distributed import multihost as hosts
from entropy_rl.runs.checkpoint import check_room, reported_failure
from entropy_rl.runs.directory import NONFINITE_UPDATES_DIRECTORY
from entropy_rl.runs.jsonl import TEMPORARY, naming
from entropy_rl.runs.stored import current_batch, find_file, is_update_kind
from entropy_rl.types import Params, TrainBatch, TrainState

log = logging.getLogger(__name__)

_BATCH_FILE = "batch.npz"
# Of the policy, or of the critic.
_PARAMS, _CRITIC = "params", "critic"
# In the name of an update on rows of earlier rollouts.
_REPLAY = "replay"
# Leaves of the controller's state and the step, in order.
_CONTROLLER_FILE = "controller.npz"
_EXTRAS = "extras/"


class NonfiniteUpdates:
    """Directory of a run's non-finite updates, named by step and update.

    Args:
      run: The run's directory.
      limit: The run stops at this number of recorded updates.

    Raises:
      ValueError: If the limit is already reached.
    """

    def __init__(self, run: Path, limit: int):
        self._directory, self._limit = find_file(run, NONFINITE_UPDATES_DIRECTORY), limit
        count = self._count()
        if count >= limit:
            raise ValueError(
                f"{self._directory} holds {count} updates that were not applied; "
                f"look at them with `entropy-rl debug-update {self._directory}/NAME`, then delete "
                "them, or raise batching.max_nonfinite_updates"
            )

    def keep(self, state: TrainState, batch: TrainBatch) -> None:
        """Record an update of the policy, and log a warning.

        Args:
          state: The state, unchanged by the update.
          batch: The mini-batch.

        Raises:
          FloatingPointError: If the limit is reached, to stop the run.
          OSError: If it cannot be written.
        """
        self._keep_of_policy(state, "update", batch)

    def keep_of_replay(self, state: TrainState, batch: TrainBatch) -> None:
        """Record an update on the replay buffer; otherwise like `keep`."""
        self._keep_of_policy(state, _REPLAY, batch)

    def _keep_of_policy(self, state: TrainState, kind: str, batch: TrainBatch) -> None:
        # The counter of updates counts this one too.
        name = f"step_{int(state.step) + 1}_{kind}_{int(state.updates)}"
        self._keep(name, _PARAMS, state.params, batch, controller=(state.controller, state.step))

    def keep_of_critic(self, state: TrainState, batch: TrainBatch, number: int) -> None:
        """Record the `number`-th update of the critic in its step; otherwise like `keep`."""
        self._keep(
            f"step_{int(state.step) + 1}_critic_{number}", _CRITIC, state.critic.params, batch
        )

    def _keep(
        self, name: str, whose: str, params: Params, batch: TrainBatch, controller: Any = None
    ) -> None:
        path = self._directory / name
        if not hosts.on_first(path.exists):  # a run that was killed repeats its steps
            temporary = path.with_name(path.name + TEMPORARY)
            batch, controller = hosts.fetch((batch, controller))
            if hosts.is_first():
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                check_room(temporary, (batch, params), "an update that was not applied")
                with naming(temporary):
                    np.savez(temporary / _BATCH_FILE, **_named(batch))
                    np.savez(temporary / _CONTROLLER_FILE, *jax.tree.leaves(controller))
            hosts.wait_for_all("bad update: batch")
            with (
                reported_failure(self._directory, "an update that was not applied"),
                ocp.StandardCheckpointer() as checkpointer,
            ):
                checkpointer.save(temporary.resolve() / whose, params)
            if hosts.is_first():
                temporary.replace(path)
            hosts.wait_for_all("bad update: parameters")
        count = self._count()
        if count >= self._limit:
            raise FloatingPointError(
                f"{self._directory} holds {count} updates whose gradient was not finite "
                "(batching.max_nonfinite_updates); none was applied; see `entropy-rl debug-update "
                f"{path}`"
            )
        if hosts.is_first():
            log.warning(
                "%s was not applied: its gradient is not finite; the run stops at %d such updates "
                "(batching.max_nonfinite_updates); see `entropy-rl debug-update %s`",
                name,
                self._limit,
                path,
            )

    def _count(self) -> int:
        """Count the updates; one process does, so that all stop alike."""
        names = lambda: [path.name for path in self._directory.glob("step_*")]  # noqa: E731
        return sum(not name.endswith(TEMPORARY) for name in hosts.on_first(names))


def is_of_critic(path: Path) -> bool:
    """Whether a recorded update is one of the critic."""
    return (path / _CRITIC).is_dir()


def is_of_replay(path: Path) -> bool:
    """Whether a recorded update is one on the replay buffer."""
    return is_update_kind(path.name, _REPLAY)


def read_nonfinite_update(path: Path, abstract_params: Any) -> tuple[Params, TrainBatch]:
    """Read the parameters and the mini-batch of a recorded update.

    Args:
      path: Its directory.
      abstract_params: Shapes and types of the parameters, the policy's or the critic's.

    Raises:
      ValueError: If there is none.
    """
    if not (path / _BATCH_FILE).is_file():
        raise ValueError(
            f"dump: must be a directory RUN/{NONFINITE_UPDATES_DIRECTORY}/NAME, got {str(path)!r}"
        )
    with np.load(path / _BATCH_FILE) as arrays:
        batch = _from_named(current_batch(arrays))
    with ocp.StandardCheckpointer() as checkpointer:
        whose = _CRITIC if is_of_critic(path) else _PARAMS
        return checkpointer.restore(path.resolve() / whose, abstract_params), batch


def read_controller(path: Path, like: Any) -> tuple[Any, np.ndarray]:
    """Read the state of the controller before a recorded update, and the step.

    Args:
      path: The directory of an update of the policy.
      like: A pytree with the structure of the controller state.

    Returns:
      (`TrainState.controller`, `TrainState.step`).
    """
    with np.load(find_file(path, _CONTROLLER_FILE)) as arrays:
        return jax.tree.unflatten(jax.tree.structure((like, 0)), [arrays[name] for name in arrays])


def _named(batch: TrainBatch) -> dict[str, np.ndarray]:
    """The arrays of a mini-batch by name; those of `extras` by `extras/NAME`."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    extras = {f"{_EXTRAS}{name}": array for name, array in fields.pop("extras").items()}
    return {name: array for name, array in fields.items() if array is not None} | extras


def _from_named(arrays: Mapping[str, np.ndarray]) -> TrainBatch:
    """The mini-batch of arrays by name."""
    is_extra = lambda name: name.startswith(_EXTRAS)  # noqa: E731
    extras = {name.removeprefix(_EXTRAS): arrays[name] for name in filter(is_extra, arrays)}
    return TrainBatch(**{n: a for n, a in arrays.items() if not is_extra(n)}, extras=extras)
