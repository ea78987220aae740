"""Identity of a run: digests of the data, prompts, chat template and model it began with.

The config names paths, and the files there may change between two starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from entropy_rl.config.files import error_text, require_file
from entropy_rl.config.values import field_at
from entropy_rl.distributed import multihost as hosts
from entropy_rl.models.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from entropy_rl.runs.checkpoint import newest_undamaged
from entropy_rl.runs.digests import DIGESTS_FILE, SIZES_FILE, sha256_of, sha256_of_values
from entropy_rl.runs.directory import IDENTITY_FILE, checkpoints_of, to_plain
from entropy_rl.runs.gcs import file_sizes, is_bucket
from entropy_rl.runs.hub import MODEL_FIELDS
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.runs.model_files import find_adapter, find_model, is_run, model_files
from entropy_rl.runs.tokenizer import TOKENIZER_PARTS
from entropy_rl.version import __version__

# Component of a run -> {name of a part of it, such as a file or a split: digest}.
Identity = dict[str, dict[str, str]]

# Their parts may be added and dropped between two starts, as the split of the evaluations.
_OPEN = ("data",)
_END_BYTES = 2**16


def models_identity(config: Any, whole: bool = True) -> Identity:
    """Return digests of the models that a config names, as `model_identity`."""
    identity: Identity = {"weights": {}, "model files": {}}
    for field in MODEL_FIELDS:
        path = field_at(config, field)
        if path is None:
            continue
        if field == "model.lora.path":
            identity["weights"] |= adapter_digests(path)
        else:
            for name, parts in model_identity(path, field, whole).items():
                identity[name] |= parts
    return identity


def check_same_config(config: Any, but: str | None = None) -> None:
    """Check that all processes run the same config with the same versions; collective.

    Args:
      config: The config of this process.
      but: A field that may differ.

    Raises:
      ValueError: In all processes; names the first difference.
    """
    plain = {name: value for name, value in to_plain(config).items() if name != but}
    versions = {f"version of {package.__name__}": package.__version__ for package in (jax, jaxlib)}
    hosts.check_same({"version of entropy_rl": __version__} | versions | plain)


def model_identity(path: str, field: str = "model.path", whole: bool = True) -> Identity:
    """Return digests of the files of a model, or of the newest checkpoint of a run.

    Args:
      path: As `model.path`.
      field: The config field, which begins the names of the files.
      whole: Whether to read whole files of weights, rather than their ends, which is cheap.

    Returns:
      The components "weights" and "model files", which are the config and the tokenizer.
    """
    found = find_model(path)
    if is_run(found):
        weights = _checkpoint_identity(found)
    else:
        names = sorted(p.name for p in found.iterdir() if ".safetensors" in p.name and p.is_file())
        weights = sha256_of(found, names) if whole else _digests_of_ends(found, names)
    components = {"weights": weights, "model files": model_file_digests(model_files(found))}
    return {
        name: {f"{field}/{part}": digest for part, digest in found.items()}
        for name, found in components.items()
    }


def _digests_of_ends(directory: Path, names: Sequence[str]) -> dict[str, str]:
    """Return digests of the size and the last bytes of files, by name."""
    digests = {}
    for name in names:
        with (directory / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END_BYTES))
            digests[name] = hashlib.sha256(b"%d " % size + file.read()).hexdigest()
    return digests


def adapter_digests(path: str) -> dict[str, str]:
    """Return digests of the adapter of a `model.lora.path`, as parts of the weights."""
    found, names = find_adapter(path), (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    try:
        for name in names:
            require_file(found / name)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.lora.path: {error_text(error)}") from error
    digests = sha256_of(found, names)
    return {f"model.lora.path/{name}": digest for name, digest in digests.items()}


def model_file_digests(directory: Path) -> dict[str, str]:
    """Return digests of the config and tokenizer of a model, by file name."""
    names = (*TOKENIZER_PARTS, "generation_config.json")
    return sha256_of(directory, [name for name in names if (directory / name).is_file()])


def _checkpoint_identity(run: Path) -> dict[str, str]:
    """Return the digest of the digests of a checkpoint; loading it verifies them."""
    directory = checkpoints_of(run)
    step = newest_undamaged(directory, contents=False)[0] if directory.is_dir() else None
    if step is None:
        raise ValueError(f"{directory}: there is no complete checkpoint yet")
    checkpoint = directory / str(step)
    names = [DIGESTS_FILE]
    if not (checkpoint / DIGESTS_FILE).exists():  # of an earlier version
        names = [SIZES_FILE] if is_bucket(checkpoint) else list(file_sizes(checkpoint))
    digests = sha256_of(checkpoint, names)
    return {f"{step}/{name}": digest for name, digest in digests.items()}


def prompts_identity(
    problems: Sequence[Any], prompts: Iterable[Sequence[int]], tokenizer: Any
) -> Identity:
    """Return digests of prompts as the model sees them.

    Args:
      problems: The problems, which say whether a chat template is used.
      prompts: Their tokens.
      tokenizer: Has the chat template.
    """
    identity = {
        "encoded prompts": {"": sha256_of_values(np.array(ids, np.int32) for ids in prompts)}
    }
    if any(problem.chat for problem in problems):
        identity["chat template"] = {"": sha256_of_values([tokenizer.chat_template])}
    return identity


def data_identity(splits: Mapping[str, Sequence[Any]]) -> Identity:
    """Return digests of the problems of each split, as read."""
    return {
        "data": {
            split: sha256_of_values([p.id, p.prompt, p.answer] for p in problems)
            for split, problems in splits.items()
        }
    }


def recorded_weights(directory: Path) -> dict[str, str]:
    """Return the digests of the weights that a run began with, as in `model_identity`.

    Empty for a run without a record. Those of other fields than `model.path` are left out.
    """
    weights = _read(directory).get("weights", {})
    return {part: d for part, d in weights.items() if part.startswith("model.path/")}


def check_identity(directory: Path, identity: Identity, accept: bool) -> list[str]:
    """Compare a run with the one recorded in its directory; one without a record is not compared.

    Args:
      directory: The run's directory.
      identity: What the run is made of now.
      accept: `run.accept_changes`.

    Returns:
      What has changed.

    Raises:
      ValueError: If something has changed and that is not accepted.
    """
    changes = _changes(_read(directory), identity)
    if changes and not accept:
        raise ValueError(
            f"{directory}: must be resumed with what it began with, got other "
            f"{' and '.join(changes)}; restore that, choose another directory, or set "
            "run.accept_changes to true"
        )
    return changes


def record_identity(directory: Path, identity: Identity) -> None:
    """Write identity.json; splits that are not used now keep their digests."""
    recorded = _read(directory)
    merged = identity | {
        name: recorded.get(name, {}) | identity.get(name, {})
        for name in _OPEN
        if name in recorded | identity
    }
    if merged != recorded:
        write_atomically(directory / IDENTITY_FILE, json.dumps(merged, indent=1) + "\n")


def _read(directory: Path) -> Identity:
    path = directory / IDENTITY_FILE
    if not path.exists():
        return {}
    try:
        recorded = json.loads(path.read_bytes().decode())
        valid = all(isinstance(parts, dict) for parts in recorded.values())
    except (ValueError, RecursionError, AttributeError):
        valid = False
    if not valid:
        raise ValueError(
            f"{path}: must be the digests of a run, got other content; delete it to record those "
            "of the next start"
        )
    # Earlier versions recorded those of an adapter one level deeper.
    deeper = recorded.get("weights", {}).pop("weights", {})
    if isinstance(deeper, dict) and deeper:
        recorded["weights"] |= deeper
    return recorded


def _changes(recorded: Identity, identity: Identity) -> list[str]:
    """Describe the components that differ, with their parts."""
    changes = []
    for name in recorded:
        old, new = recorded[name], identity.get(name, {})
        parts = old.keys() & new.keys() if name in _OPEN else old.keys() | new.keys()
        changed = sorted(part for part in parts if old.get(part) != new.get(part))
        if changed:
            parts = ", ".join(part for part in changed if part)
            changes.append(f"{name} ({parts})" if parts else name)
    return changes
