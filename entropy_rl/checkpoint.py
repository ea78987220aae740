"""Checkpoints of a run, and who owns a directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import yaml

from entropy_rl.types import TrainState

CONFIG_FILE = "config.yaml"
# What may change between two starts of one run: it does not change any result.
_FREE = ("steps", "run", "evaluation", "gate")


class Checkpoints:
    """The checkpoints of a run; a thin layer over orbax.

    A checkpoint is complete or not there at all. As a context manager it waits for what is being written.

    Args:
      directory: Where; made if it is not there.
      keep: The newest so many are kept.
    """

    def __init__(self, directory: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    @property
    def latest(self) -> int | None:
        """The newest complete checkpoint's step; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves the state under its own step; a step that is there already is left alone."""
        step = int(state.step)
        if step == self.latest:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        # orbax says no by a return value, for a step that is not newer than the last one.
        if not self._manager.save(step, args=args, force=True):
            raise RuntimeError(f"the checkpoint of step {step} was not saved; the newest is {self.latest}")

    def restore(self, state: TrainState) -> TrainState:
        """Reads the newest checkpoint into the shapes, types and placement of `state`."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), state
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._manager.restore(self.latest, args=args)["state"]

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def claim_directory(directory: Path, config: Any) -> None:
    """Makes a directory this run's own, or goes on with it if it already is.

    Args:
      directory: The run's directory; made if it is not there.
      config: The run's config, a dataclass. It is stored as config.yaml.

    Raises:
      ValueError: If the directory holds something else, with the first field that differs.
    """
    path = directory / CONFIG_FILE
    ours = to_plain(config)
    if path.exists():
        theirs = yaml.safe_load(path.read_text())
        difference = _first_difference(_science(theirs), _science(ours))
        if difference:
            raise ValueError(
                f"run.directory: {directory} holds another run ({difference}); "
                "repeat its settings to resume it, or choose another directory"
            )
    elif directory.exists() and any(directory.iterdir()):
        raise ValueError(
            f"run.directory: {directory} is not empty and holds no run; choose another directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(ours, sort_keys=False))


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file as a whole: a reader sees the old or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def to_plain(config: Any) -> Any:
    """A config as dicts, lists and plain values, as YAML and JSON hold them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _science(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _FREE}


def _first_difference(theirs: Any, ours: Any, path: str = "") -> str | None:
    """The first place at which two plain values differ, in words; None if there is none."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in [*theirs, *(n for n in ours if n not in theirs)]:
            inner = f"{path}.{name}" if path else name
            found = _first_difference(theirs.get(name), ours.get(name), inner)
            if found:
                return found
        return None
    return None if theirs == ours else f"its {path} is {theirs!r}, here it is {ours!r}"


def restore_params(directory: Path, abstract_params: Any) -> Any:
    """Reads only the parameters of the newest checkpoint of a run.

    Args:
      directory: The run's checkpoints.
      abstract_params: Their shapes and types.

    Raises:
      ValueError: If there is no complete checkpoint.
    """
    handlers = {"state": ocp.PyTreeCheckpointHandler()}
    with ocp.CheckpointManager(directory.resolve(), item_handlers=handlers) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{directory}: there is no complete checkpoint yet")
        target = {"params": abstract_params}
        args = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        return manager.restore(step, args=ocp.args.Composite(state=args))["state"]["params"]
