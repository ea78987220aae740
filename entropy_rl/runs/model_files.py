"""Find a model: the directory that a `model.path` names, and its config and tokenizer files."""

from __future__ import annotations

import os
from pathlib import Path

from entropy_rl.config.checks import shown
from entropy_rl.models.peft import ADAPTER_CONFIG, read_base_name
from entropy_rl.runs.directory import CONFIG_FILE, MODEL_DIRECTORY
from entropy_rl.runs.hub import MODEL_PATH, hub_directory, is_hub_id
from entropy_rl.runs.smollm2 import smollm2_directory

ASSETS = Path(__file__).parent.parent / "assets"


def find_model(path: str, weights: bool = True, field: str = "model.path") -> Path:
    """The directory that a `model.path` names; a Hub model is downloaded.

    Args:
      path: As `model.path`.
      weights: Whether a download needs the weights, beside config and tokenizer.
      field: The config field that names it, for errors.

    Raises:
      ValueError: If it does not exist, or holds no model.
    """
    if path == "asset:smollm2":
        return smollm2_directory(field)
    if path.startswith("asset:"):
        found = ASSETS / path.removeprefix("asset:")
        names = sorted(p.name for p in ASSETS.iterdir() if p.is_dir()) if ASSETS.is_dir() else []
        if found.name not in names or found.parent != ASSETS:
            raise ValueError(
                f"{field}: must be asset:NAME with a NAME of {', '.join(names + ['smollm2'])}, "
                f"got {shown(path)}"
            )
        return found
    found = Path(os.path.expanduser(path))
    if is_hub_id(path):
        found = hub_directory(path, weights, field)
    # `os.path` takes a name that no file can have for one that does not exist.
    elif not path or not os.path.isdir(found):
        raise ValueError(f"{field}: must be {MODEL_PATH}, got {shown(path)}")
    if is_run(found) or (found / "config.json").exists():
        return found
    if (found / ADAPTER_CONFIG).is_file():
        base = read_base_name(found)
        raise ValueError(
            f"{field}: must be a model, got the adapter {shown(path)}: merge it into its base, "
            f"or name it as model.lora.path, with its base{f' ({base})' if base else ''} as "
            "model.path"
        )
    raise ValueError(f"{field}: must be {MODEL_PATH}, got {shown(path)} without a config.json")


def find_adapter(path: str) -> Path:
    """The directory that a `model.lora.path` names; a Hub adapter is downloaded.

    Raises:
      ValueError: If the hub has none.
    """
    if is_hub_id(path):
        return hub_directory(path, where="model.lora.path")
    return Path(os.path.expanduser(path))


def is_local(path: str) -> bool:
    """Whether `find_model` finds a `model.path` without a download or a conversion."""
    return path != "asset:smollm2" and not is_hub_id(path)


def model_files(path: Path) -> Path:
    """Where config.json and the tokenizer of a model or a run lie."""
    return path / MODEL_DIRECTORY if is_run(path) else path


def is_run(path: Path) -> bool:
    """True for the directory of a training run, even if it has no checkpoint yet."""
    return (path / CONFIG_FILE).is_file() and (path / MODEL_DIRECTORY).is_dir()
