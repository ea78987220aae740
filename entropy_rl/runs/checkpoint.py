"""Checkpoints of a run: written atomically, checked for damage when read."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from entropy_rl.distributed import multihost as hosts
from entropy_rl.distributed.host_memory import trim_heap
from entropy_rl.runs.digests import STATE, describe_damage, record_digests
from entropy_rl.runs.gcs import AnyPath, is_bucket, is_complete, set_aside
from entropy_rl.runs.preemption import Interrupted
from entropy_rl.runs.stored import StateNames
from entropy_rl.types import TrainState

log = logging.getLogger(__name__)

# Beside the arrays, a checkpoint has descriptions of them.
_DESCRIPTION_BYTES = 2**20
# In errors of collective operations, some of which jax raises as a ValueError.
_COLLECTIVE = re.compile("Gloo|NCCL|All(Gather|Reduce)|[Cc]oordination")


class Checkpoints:
    """Checkpoint manager of a run; a thin layer over orbax.

    A checkpoint is written completely or not at all. One that was damaged later is renamed and
    reported, and the newest of the others is the latest. Arrays of accelerators are written in the
    background, those of CPUs before `save` returns. Leaving the context waits for pending writes.

    Args:
      directory: Directory on a disk or in a bucket; created if it does not exist.
      keep: Number of newest checkpoints to keep.

    Raises:
      ValueError: If all are damaged.
    """

    def __init__(self, directory: AnyPath, keep: int):
        self._directory = directory
        self._saving = 0
        hosts.on_first(self._set_damaged_aside)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,  # of a process that was killed while it saved
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._record_digests),
        )
        self._manager = ocp.CheckpointManager(_absolute(directory), options=options)

    def _set_damaged_aside(self) -> None:
        if not self._directory.is_dir():
            return
        step, damaged = newest_undamaged(self._directory)
        for other, damage in damaged.items():
            path = self._directory / str(other)
            names = (f"damaged_{other}_{i}" for i in itertools.count())
            name = next(name for name in names if not path.with_name(name).exists())
            set_aside(path, name)
            log.warning(
                "%s: damaged: %s; kept as %s, and that of step %d is used", path, damage, name, step
            )

    @property
    def latest(self) -> int | None:
        """Return the step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Save the state under its step, unless that step has a checkpoint.

        Raises:
          OSError: If there is not enough space, or an earlier checkpoint could not be written.
        """
        step = int(state.step)
        if step == self.latest:
            return
        with reported_failure(self._directory, "a checkpoint"):
            self._manager.wait_until_finished()
        check_room(self._directory, state, f"the checkpoint of step {step}")
        self._saving = step
        args = ocp.args.Composite(**{STATE: ocp.args.StandardSave(_parts(state))})
        with reported_failure(self._directory, "a checkpoint"):
            saved = self._manager.save(step, args=args, force=True)
        # orbax says no by a return value, for a step that is not newer than the last one.
        if not saved:
            raise RuntimeError(
                f"the checkpoint of step {step} was not saved; the newest is {self.latest}"
            )
        if _is_on_cpu(state):
            # orbax writes from the arrays themselves, whose memory the next update could not reuse.
            with reported_failure(self._directory, "a checkpoint"):
                self._manager.wait_until_finished()
            trim_heap()

    def restore(self, state: TrainState) -> TrainState:
        """Restore the newest checkpoint with the shapes, dtypes and sharding of `state`.

        Args:
          state: The target. Its arrays are deleted first, so that memory need not hold two states.

        Raises:
          ValueError: If it cannot be read.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            _parts(state),
        )
        checkpoint = self._directory / str(self.latest)
        with _reading(checkpoint):
            found = ocp.StandardCheckpointHandler().metadata(_absolute(checkpoint) / STATE)
        names = StateNames(found.tree)
        for x in jax.tree.leaves(state):
            x.delete()
        wanted = ocp.args.StandardRestore(names.recorded(abstract))
        args = ocp.args.Composite(**{STATE: wanted})
        with _reading(checkpoint):
            restored = self._manager.restore(self.latest, args=args)[STATE]
        state = state.replace(**names.current(abstract, restored))
        _check_step(checkpoint, int(state.step))
        return state

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints of later steps."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def _record_digests(self) -> None:
        """Finish a checkpoint; orbax calls this before it renames the directory."""
        # In a bucket it has that name already.
        of_step = str(self._saving) if is_bucket(self._directory) else f"{self._saving}.*"
        for directory in self._directory.glob(of_step):
            record_digests(directory, self._saving)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        try:
            with reported_failure(self._directory, "a checkpoint"):
                self._manager.wait_until_finished()
        except OSError:
            # After an interruption "everything is saved" would be wrong; any other error came first
            # and is the one to report.
            if error is None or isinstance(error, Interrupted):
                raise
        finally:
            self._manager.close()


def _parts(state: TrainState) -> dict[str, Any]:
    """Return the fields of a state that are not None; orbax would store a None."""
    return {name: part for name, part in vars(state).items() if part is not None}


def _is_on_cpu(tree: Any) -> bool:
    """Whether the arrays are on CPU devices."""
    return all(d.platform == "cpu" for x in jax.tree.leaves(tree) for d in x.sharding.device_set)


def _absolute(directory: AnyPath) -> AnyPath:
    return directory if is_bucket(directory) else directory.resolve()


def check_room(directory: AnyPath, tree: Any, what: str) -> None:
    """Check that arrays fit on the disk, before orbax's threads fail with pages of tracebacks.

    Args:
      directory: Target directory; buckets are not checked.
      tree: The arrays, or their shapes.
      what: Name of the arrays, for the error.

    Raises:
      OSError: If there is not enough space.
    """
    if is_bucket(directory):
        return
    needed = sum(x.nbytes for x in jax.tree.leaves(tree)) + _DESCRIPTION_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            f"{directory}: no room for {what}: it takes {needed / 1e9:.3g} GB, free are "
            f"{free / 1e9:.3g} GB; make room, and the same command goes on"
        )


@contextlib.contextmanager
def reported_failure(directory: AnyPath, what: str) -> Iterator[None]:
    """Turn the errors that orbax raises when it cannot write into one line.

    Raises:
      OSError: Instead of orbax's errors.
      JaxRuntimeError: If it is the connection to another process that has failed.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if _COLLECTIVE.search(str(error)):
            raise jax.errors.JaxRuntimeError(str(error)) from error
        code = re.search(
            r"os_error_code='(\d+)'|Errno (\d+)", str(error)
        )  # tensorstore's, Python's
        reason = os.strerror(int(code[1] or code[2])) if code else str(error).splitlines()[0]
        raise OSError(
            f"{directory}: {what} could not be written: {reason}; those before it are complete"
        ) from error


def _steps(directory: AnyPath) -> list[int]:
    """Return the steps of the complete checkpoints, newest first."""
    named = (path for path in directory.iterdir() if path.name.isdigit())
    return sorted((int(path.name) for path in named if is_complete(path)), reverse=True)


def newest_undamaged(
    directory: AnyPath, contents: bool = True
) -> tuple[int | None, dict[int, str]]:
    """Return the step of the newest undamaged checkpoint, and the damage of newer ones by step.

    Args:
      directory: The run's checkpoints.
      contents: Verify the digests of their files, which reads them, rather than the sizes alone.

    Raises:
      ValueError: If all are damaged.
    """
    damaged = {}
    for step in _steps(directory):
        damage = describe_damage(directory / str(step), contents)
        if damage is None:
            return step, damaged
        damaged[step] = damage
    if damaged:
        step = max(damaged)
        raise ValueError(
            f"{directory / str(step)}: damaged: {damaged[step]}; there is no other to go on from: "
            f"delete {directory} to begin anew"
        )
    return None, damaged


def undamaged_steps(directory: AnyPath) -> list[int]:
    """Return the steps of the complete, undamaged checkpoints; none without a directory."""
    if not directory.is_dir():
        return []
    return [step for step in _steps(directory) if describe_damage(directory / str(step)) is None]


@contextlib.contextmanager
def _reading(checkpoint: AnyPath) -> Iterator[None]:
    """Turn the errors of orbax for damaged files into one line."""
    try:
        yield
    except Exception as error:  # it raises all kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{checkpoint}: cannot be read: {reason:.200}; try the versions of jax and orbax that "
            "wrote it, or move it away for the one before"
        ) from error


@contextlib.contextmanager
def _without_warnings_of_absl() -> Iterator[None]:
    """Keep quiet what orbax warns of when it only reads; its errors are raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@_without_warnings_of_absl()
def restore_params(directory: AnyPath, abstract_params: Any) -> Any:
    """Restore only the parameters of the newest checkpoint of a run.

    Args:
      directory: The run's checkpoints.
      abstract_params: Their shapes and types.

    Returns:
      The parameters, on the devices.

    Raises:
      ValueError: If there is no complete checkpoint, all are damaged, or the one used cannot be
        read or has other parameters.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: there is no complete checkpoint yet")
    handlers = {STATE: ocp.PyTreeCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(read_only=True)  # the run may be in the middle of a save
    # One process reads all files.
    step, damaged = hosts.on_first(lambda: _plain(*newest_undamaged(directory)))
    if step is None:
        raise ValueError(f"{directory}: there is no complete checkpoint yet")
    for other, damage in damaged:
        log.warning(
            "%s: damaged: %s; that of step %d is used", directory / str(other), damage, step
        )
    with ocp.CheckpointManager(
        _absolute(directory), options=options, item_handlers=handlers
    ) as manager:
        with _reading(directory / str(step)):
            found = manager.item_metadata(step)[STATE].tree
        _check_params(directory / str(step), found["params"], abstract_params)
        counter = jax.ShapeDtypeStruct(found["step"].shape, found["step"].dtype)
        target = {"params": abstract_params, "step": counter}
        args = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        with _reading(directory / str(step)):
            restored = manager.restore(step, args=ocp.args.Composite(**{STATE: args}))[STATE]
    _check_step(directory / str(step), int(restored["step"]))
    # Where no mesh says on which devices they lie, orbax leaves them on the host.
    return jax.tree.map(jnp.asarray, restored["params"])


def _plain(step: int | None, damaged: dict[int, str]) -> list[Any]:
    return [step, list(damaged.items())]


def _check_step(checkpoint: AnyPath, step: int) -> None:
    """Check that the state of a checkpoint is that of the step in its name.

    Raises:
      ValueError: If it is not; digests.json tells before, where it exists.
    """
    if step != int(checkpoint.name):
        raise ValueError(
            f"{checkpoint}: must hold the state of step {checkpoint.name}, got that of step "
            f"{step}; delete it, and the one before is used"
        )


def _check_params(checkpoint: AnyPath, found: Any, abstract_params: Any) -> None:
    """Check the parameters of a checkpoint before a partial restore, which orbax does not check.

    Raises:
      ValueError: If names or shapes differ from the model's.
    """
    found, wanted = _shapes(found), _shapes(abstract_params)
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{checkpoint}: {name}: must be {wanted.get(name, 'absent')}, as in the model, got "
                f"{found.get(name, 'nothing')}"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape) for path, x in leaves
    }
