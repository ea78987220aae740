"""Readers of what runs have recorded: config.yaml, metrics.jsonl, names in checkpoints and dumps.

All code that reads a run reads it here, where names of the first edition are translated; see
`entropy_rl.config.renames`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from entropy_rl.config import renames
from entropy_rl.config.files import error_text
from entropy_rl.runs.jsonl import read_jsonl
from entropy_rl.yaml_text import load_yaml, yaml_problem

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
# A config.yaml beside one of these was recorded by a run, an evaluation or a warm start.
_RECORDS = (METRICS_FILE, "starts.jsonl", "evaluation.json")


def read_recorded_config(path: Any) -> dict[str, Any]:
    """Read a recorded config; empty if there is no such file.

    Args:
      path: The file, on a disk or in a bucket.

    Returns:
      The config with current names.

    Raises:
      ValueError: The file is not a config.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else "{}"
        plain = load_yaml(text, recorded=True)
    except (yaml.YAMLError, RecursionError) as error:
        where, problem = yaml_problem(error)
        raise ValueError(f"{path}{where}: must be YAML, got an error: {problem}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be YAML, got {error_text(error)}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: must be a mapping of config fields, got {plain!r:.60}")
    return renames.current_config(plain)


def is_recorded(path: Path) -> bool:
    """Whether a YAML file is the recorded config of a run, and not one that a user wrote."""
    return path.name == CONFIG_FILE and any((path.parent / name).exists() for name in _RECORDS)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of metrics.jsonl, with current names."""
    return [current_metrics(row) for row in read_jsonl(path)]


def current_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl, with current names."""
    return renames.current_metrics(row)


def find_file(directory: Path, name: str) -> Path:
    """Return the path of a file or directory of a run, with its name of the first edition if it is
    there by that name only.
    """
    old = renames.first_edition_name(renames.FILES, name)
    by_old_name = old is not None and (directory / old).exists() and not (directory / name).exists()
    return directory / (old if by_old_name else name)


def is_update_kind(name: str, kind: str) -> bool:
    """Whether the name of an update that was not applied has this kind."""
    kinds = (kind, renames.first_edition_name(renames.UPDATE_KINDS, kind))
    return any(f"_{known}_" in name for known in kinds if known is not None)


def current_batch(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recorded `TrainBatch` by their current names."""
    return {renames.BATCH_FIELDS.get(name, name): arrays[name] for name in arrays}


class StateNames:
    """Names of the fields of a `TrainState` in a checkpoint.

    Args:
      recorded: The tree of a checkpoint, as orbax describes it.
    """

    def __init__(self, recorded: Mapping[str, Any]):
        self._old = {
            current: old for old, current in renames.STATE_FIELDS.items() if _has(recorded, old)
        }

    def recorded(self, tree: Any, above: str = "") -> Any:
        """Give a tree the names that its checkpoint has.

        Args:
          tree: A mapping of fields; inside of it a dataclass with a renamed field becomes a
            mapping.
          above: The path of the tree.
        """
        if not any(path.startswith(above) for path in self._old):
            return tree
        fields = _fields(tree)
        if fields is None:
            return tree
        return {
            self._old.get(above + name, name).rpartition("/")[2]: self.recorded(
                value, f"{above}{name}/"
            )
            for name, value in fields.items()
        }

    def current(self, like: Any, tree: Any, above: str = "") -> Any:
        """Give what was restored the structure of `like`: the reverse of `recorded`."""
        if not any(path.startswith(above) for path in self._old) or _fields(like) is None:
            return tree
        values = {
            name: self.current(
                value,
                tree[self._old.get(above + name, name).rpartition("/")[2]],
                f"{above}{name}/",
            )
            for name, value in _fields(like).items()
        }
        return dataclasses.replace(like, **values) if dataclasses.is_dataclass(like) else values


def _fields(tree: Any) -> Mapping[str, Any] | None:
    if dataclasses.is_dataclass(tree):
        return vars(tree)
    return tree if isinstance(tree, Mapping) else None


def _has(tree: Any, path: str) -> bool:
    for name in path.split("/"):
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
