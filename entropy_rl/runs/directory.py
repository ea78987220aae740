"""Layout and ownership of run directories."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import socket
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from entropy_rl.config.checks import require, shown
from entropy_rl.config.common import RunConfig
from entropy_rl.config.files import check_creatable
from entropy_rl.config.values import default_of, differences, has_default
from entropy_rl.runs.gcs import AnyPath, is_bucket, open_path
from entropy_rl.runs.hub import MODEL_FIELDS
from entropy_rl.runs.jsonl import TEMPORARY, write_atomically
from entropy_rl.runs.lock import LOCK_FILE, check_unlocked, one_writer
from entropy_rl.runs.stored import CONFIG_FILE, read_recorded_config
from entropy_rl.yaml_text import dump_yaml

SAMPLES_FILE = "samples.jsonl"
CHECKPOINT_DIRECTORY = "checkpoints"
NONFINITE_UPDATES_DIRECTORY = "nonfinite_updates"
PROFILE_DIRECTORY = "profile"
EVALUATIONS_DIRECTORY = "evaluations"  # of the steps: 0/, 10/, ...
# config.json and tokenizer of the run's model; the weights are in its checkpoints.
MODEL_DIRECTORY = "model"

# Fields that may change between two starts of a run, because they change no result. With another
# `run.checkpoints` a run would start over and drop its records, so that one is not among them.
FREE_OF_RUN = tuple(
    f"run.{f.name}" for f in dataclasses.fields(RunConfig) if f.name != "checkpoints"
)
IDENTITY_FILE = "identity.json"
_VISIBLE_SECONDS = 3
# Kernels and memory of a model.
FREE_OF_MODEL = ("model.remat", "model.attention", "model.decode_attention")
# How training is computed, and where.
FREE_OF_TRAINING = (
    *FREE_OF_RUN,
    *FREE_OF_MODEL,
    *("decoding", "mesh", "optimizer.offload"),
    *("batching.max_tokens_per_micro_batch", "critic.max_tokens_per_micro_batch"),
)
# How an evaluation is computed. Earlier versions took a split to train on, and did not use it.
FREE_OF_EVALUATION = (
    *FREE_OF_MODEL,
    *("evaluation.rows_per_call", "decoding", "mesh", "task.train_split"),
)
_FREE = (
    *FREE_OF_TRAINING,
    *("steps", "evaluation", "gate", "log_every", "batching.max_nonfinite_updates"),
    "rollout.dynamic_sampling.max_rounds",  # a run that ended at this limit can go on
)


def free_fields(config: Any) -> Collection[str]:
    """Return the fields of a training run that may change between two starts.

    The number of steps is not among them if the learning rate decays until the last one, nor is the
    interval of validations that `patience` counts. The path of a model is, if the run has a record
    of what is there.
    """
    optimizer, fixed = config.optimizer, []
    if optimizer.schedule != "constant" and optimizer.decay_updates is None:
        fixed.append("steps")
    if getattr(config, "patience", None) is not None:
        fixed.append("run.evaluate_every")
    free = tuple(name for name in _FREE if name not in fixed)
    identified = (Path(config.run.directory) / IDENTITY_FILE).exists()
    return (*free, *MODEL_FIELDS) if identified else free


def check_run(config: Any) -> None:
    """Check that a run can start in or resume from its directories. Writes nothing.

    Args:
      config: The run's config, with `run.directory` and `run.checkpoints`.

    Raises:
      ValueError: As in `check_directory`, if a bucket cannot be reached, or if the checkpoints are
        to be kept within the run's directory.
    """
    _check_apart(config.run)
    for directory, field, of_this in _directories(config, free_fields(config)):
        check_characters(directory, field)
        check_directory(directory, config, field=field, free=of_this)


def _check_apart(run: RunConfig) -> None:
    """Check that `run.checkpoints` is outside of `run.directory`, whose files are the run's."""
    if run.checkpoints is None or is_bucket(run.checkpoints):
        return
    directory, checkpoints = Path(run.directory).resolve(), Path(run.checkpoints).resolve()
    require(
        not checkpoints.is_relative_to(directory),
        "run.checkpoints",
        run.checkpoints,
        f"outside of run.directory, or null for {Path(run.directory) / CHECKPOINT_DIRECTORY}",
    )


def check_characters(directory: AnyPath, field: str) -> None:
    """Refuse a path that orbax would take for a pattern: its checkpoints could not be read back.

    Args:
      directory: The directory of a run, or one above it.
      field: The config field that names it.

    Raises:
      ValueError: If it has one of the characters.
    """
    path = None if is_bucket(directory) else directory.resolve()
    require(
        path is None or not set("[]*?") & set(str(path)),
        field,
        str(path),
        "a path without the characters [ ] * ?, whose checkpoints could not be read back",
    )


def check_only_writer(config: Any) -> None:
    """Check that this process can write to the directories of a run, and no other does.

    Raises:
      ValueError: If one cannot be created, or another process writes to it; names that and its
        host.
      OSError: If this user may not write there.
    """
    for directory, field, _ in _directories(config, ()):
        if not is_bucket(directory):
            check_creatable(directory, field)
    if config.run.checkpoints is None:
        check_creatable(Path(config.run.directory) / CHECKPOINT_DIRECTORY, "run.directory")
    for file, where in _locks(config):
        check_unlocked(file, where)


def check_run_visible(config: Any) -> None:
    """Check that all processes see the directories of a run; see `check_visible`."""
    for directory, field, _ in _directories(config, ()):
        if not is_bucket(directory):
            check_visible(directory, field)


def check_visible(directory: Path, field: str) -> None:
    """Check that all processes see a directory, or the one that it will be created in; collective.

    Args:
      directory: The directory. The first process must be able to write to it.
      field: The config field that names it, for the error.

    Raises:
      ValueError: In all processes, if one does not see a file of the first one.
    """
    from entropy_rl.distributed import multihost as hosts  # imports jax

    if hosts.count() == 1:
        return
    # A name that no process has looked for: a network file system may remember a missing file.
    # Left by a killed process, it is taken for a temporary file of a run.
    name = f"{CONFIG_FILE}.{uuid.uuid4().int}{TEMPORARY}"

    def write() -> str:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        (existing / name).touch()
        return str(existing / name)

    file = Path(hosts.on_first(write))
    found = hosts.gather([_appears(file), socket.gethostname()])
    if hosts.is_first():
        file.unlink()
    for number, (seen, host) in enumerate(found):
        if not seen:
            raise ValueError(
                f"{field}: must be visible to all processes, got {directory}, which process "
                f"{number} on {host} does not share with process 0"
            )


def _appears(file: Path) -> bool:
    """Whether a file exists, or does so within seconds, as on a network file system."""
    for _ in range(_VISIBLE_SECONDS):
        if file.exists():
            return True
        time.sleep(1)
    return file.exists()


@contextlib.contextmanager
def claimed_run(config: Any) -> Iterator[list[str]]:
    """Hold the directories of a run as their only writer; create them, or resume from them.

    Yields:
      The settings that have changed since the last start, as `PATH: OLD -> NEW`, without those of
      the section `run`.

    Raises:
      ValueError: As in `check_run` and `check_only_writer`.
    """
    check_run(config)
    # Changes are accepted for one start.
    stored = dataclasses.replace(config, run=dataclasses.replace(config.run, accept_changes=False))
    with contextlib.ExitStack() as stack:
        for file, where in _locks(config):
            _create(file.parent, where.partition(":")[0])
            stack.enter_context(one_writer(file, where))
        changed = _changed_settings(Path(config.run.directory), config)
        for directory, field, of_this in _directories(config, free_fields(config)):
            claim_directory(directory, stored, field=field, free=of_this)
        yield changed


def _changed_settings(directory: Path, config: Any) -> list[str]:
    path = directory / CONFIG_FILE
    if not path.exists():
        return []
    theirs = _completed(read_recorded_config(path), config)
    found = differences(_without(theirs, ["run"]), _without(to_plain(config), ["run"]))
    return [f"{name}: {shown(old, 60)} -> {shown(new, 60)}" for name, old, new in found]


def _locks(config: Any) -> list[tuple[Path, str]]:
    """Return (lock file, what it protects) of the directories of a run; a bucket has none."""
    return [
        (directory / LOCK_FILE, f"{field}: {directory}")
        for directory, field, _ in _directories(config, ())
        if not is_bucket(directory)
    ]


def _directories(config: Any, free: Collection[str]) -> list[tuple[AnyPath, str, Collection[str]]]:
    """Return (directory, config field, free fields) of each directory of a run."""
    run = config.run
    found = [(Path(run.directory), "run.directory", free)]
    if run.checkpoints is not None:
        # Runs with the same settings in different directories do not share checkpoints.
        of_one = [path for path in free if path != "run.directory"]
        found.append((open_path(run.checkpoints, "run.checkpoints"), "run.checkpoints", of_one))
    return found


def checkpoint_directory(directory: Path, checkpoints: str | None) -> AnyPath:
    """Return the checkpoint directory of a run.

    Args:
      directory: The run's directory.
      checkpoints: `run.checkpoints` of its config.

    Raises:
      ValueError: If a bucket cannot be reached.
    """
    if checkpoints is None:
        return directory / CHECKPOINT_DIRECTORY
    return open_path(checkpoints, "run.checkpoints")


def checkpoints_of(directory: Path) -> AnyPath:
    """Return the checkpoint directory of an existing run, from its config.yaml."""
    plain = read_recorded_config(directory / CONFIG_FILE)
    section = plain.get("run")
    if not isinstance(section, dict):
        raise ValueError(f"{directory / CONFIG_FILE}: run: must be a mapping, got {section!r:.60}")
    return checkpoint_directory(directory, section.get("checkpoints"))


def check_directory(
    directory: AnyPath, config: Any, *, field: str = "run.directory", free: Collection[str] = _FREE
) -> None:
    """Check that a run can start in or resume from a directory. Writes nothing.

    Args:
      directory: The run's directory.
      config: The run's config, a dataclass.
      field: The config's field that names the directory, for the error.
      free: Dotted paths of config fields that may change between two starts, because they change
        no result.

    Raises:
      ValueError: If the directory holds something else; names the first field that differs.
    """
    path = directory / CONFIG_FILE
    if path.exists():
        theirs = _completed(read_recorded_config(path), config)
        found = differences(_without(theirs, free), _without(to_plain(config), free))
        for name, old, new in found:
            raise ValueError(
                f"{field}: {directory} holds another run (its {name} is {old!r}, here it is "
                f"{new!r}); "
                "repeat its settings to resume it, or choose another directory"
            )
    elif directory.exists():
        if not directory.is_dir():
            raise ValueError(f"{field}: {directory} is a file; choose another directory")
        # A killed process leaves its lock, and the temporary file of config.yaml.
        ours = re.compile(rf"{LOCK_FILE}|{re.escape(CONFIG_FILE)}\.[0-9]+{re.escape(TEMPORARY)}")
        if not all(ours.fullmatch(path.name) for path in directory.iterdir()):
            raise ValueError(
                f"{field}: {directory} is not empty and holds no run; choose another directory"
            )


def claim_directory(
    directory: AnyPath, config: Any, *, field: str = "run.directory", free: Collection[str] = _FREE
) -> None:
    """Create the directory of a run, or resume from it.

    Args:
      directory: The run's directory; created if it does not exist.
      config: The run's config, a dataclass; stored as config.yaml.
      field: See `check_directory`.
      free: See `check_directory`.

    Raises:
      ValueError: If the directory holds something else; names the first field that differs.
    """
    check_directory(directory, config, field=field, free=free)
    _create(directory, field)
    write_atomically(directory / CONFIG_FILE, dump_yaml(to_plain(config)))


def _create(directory: AnyPath, field: str) -> None:
    """Create a directory where there is none.

    Raises:
      ValueError: If the path cannot be one, such as below a file or in /proc.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{field}: must be a directory that can be created, got {shown(str(directory))} "
            f"({error.strerror})"
        ) from error


def to_plain(config: Any) -> Any:
    """Convert a config to dicts, lists and plain values, as in YAML and JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _completed(plain: dict[str, Any], config: Any) -> dict[str, Any]:
    """Fill in the defaults of fields that a stored config lacks because they were added later.

    The default of a new option is the earlier behavior, so that a run can resume with a newer
    version.
    """
    completed = dict(plain)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in plain and has_default(field):
            default = default_of(field)
            completed[field.name] = (
                to_plain(default) if dataclasses.is_dataclass(default) else default
            )
        elif dataclasses.is_dataclass(value) and isinstance(plain.get(field.name), dict):
            completed[field.name] = _completed(plain[field.name], value)
    return completed


def _without(plain: dict[str, Any], free: Collection[str]) -> dict[str, Any]:
    """Return a copy without the values at some dotted paths."""
    kept = {}
    for name, value in plain.items():
        if name not in free:
            inner = [path.removeprefix(f"{name}.") for path in free if path.startswith(f"{name}.")]
            kept[name] = _without(value, inner) if inner and isinstance(value, dict) else value
    return kept
