"""Tensors of a Hugging Face checkpoint, opened without reading values."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from entropy_rl.config.checks import shown
from entropy_rl.config.files import error_text, require_file
from entropy_rl.models.decoder import DecoderConfig
from entropy_rl.models.hf_config import read_config, read_json

log = logging.getLogger(__name__)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT_TYPES = ("F32", "F16", "BF16")  # of the tensors that are read
_ROWS = 4096  # of a table that are compared at once


def some_of(names: Iterable[str]) -> str:
    """List the first names, and counts the others."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_float(file: Path, name: str, tensor: Any) -> None:
    """Refuse a tensor of another type than `FLOAT_TYPES`, before its values are read."""
    dtype = tensor.get_dtype()
    if dtype not in FLOAT_TYPES:
        raise ValueError(f"{file}: tensor {name} must be F32, F16 or BF16, got {dtype}")


def open_tensors(directory: Path, warn: bool = True) -> dict[str, tuple[Path, Any]]:
    """Return file and slice of every tensor of a checkpoint, without reading values.

    Args:
      directory: The checkpoint.
      warn: Whether files that are not read are named in the log.

    Raises:
      FileNotFoundError: If there are no weights, or a shard is absent.
      ValueError: If the index or a file is damaged.
    """
    weight_map: dict[str, str] = {}
    if (directory / WEIGHTS).exists():  # preferred if both exist, as in transformers
        files = [directory / WEIGHTS]
        if warn and (directory / INDEX).exists():
            log.warning("%s: not read, since there is a %s", directory / INDEX, WEIGHTS)
    elif (directory / INDEX).exists():
        weight_map = _read_weight_map(directory / INDEX)
        files = [directory / name for name in sorted(set(weight_map.values()))]
    else:
        raise FileNotFoundError(
            f"{directory}: has no {WEIGHTS} and no {INDEX}; other formats are not supported"
        )
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise FileNotFoundError(
            f"{directory}: {INDEX} names files that do not exist: {some_of(absent)}"
        )

    tensors = {}
    for file in files:
        require_file(file)
        try:
            handle = safe_open(file, framework="numpy")
        except (SafetensorError, ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{file}: is damaged or truncated: {error_text(error)}") from None
        for name in handle.keys():  # noqa: SIM118  (the handle is not a mapping)
            if name in tensors:
                raise ValueError(f"{file}: tensor {name} is also in {tensors[name][0].name}")
            tensors[name] = (file, handle.get_slice(name))
    read = {file.name for file in files}
    for pattern in ("model*.safetensors", "adapter*.safetensors"):
        others = {file.name for file in directory.glob(pattern)} - read
        if warn and others:
            log.warning("%s: not read: %s", directory, some_of(others))
    absent = weight_map.keys() - tensors.keys()
    if absent:
        raise ValueError(
            f"{directory / INDEX}: names tensors that are in no file ({len(absent)}): "
            f"{some_of(absent)}"
        )
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map: must map tensors to files, got {shown(weight_map)}")
    for tensor, name in weight_map.items():
        # A path could lead out of the directory.
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(
                f"{index}: weight_map: must name files of this directory, got {shown(name)} for "
                f"{shown(tensor)}"
            )
    return weight_map


def read_checkpoint_config(directory: str | Path) -> DecoderConfig:
    """Read the architecture of a checkpoint: config.json, and whether it has a head of its own.

    With `tie_word_embeddings: true` and an `lm_head.weight` that differs from the embedding, as
    after fine-tuning or a change of the vocabulary, the head is kept, as in transformers.

    Raises:
      FileNotFoundError, ValueError: As `read_config`, or if the weights cannot be read.
    """
    directory = Path(directory)
    config = read_config(directory)
    if not config.tie_embeddings:
        return config
    tensors = open_tensors(directory, warn=False)
    names = ("lm_head.weight", "model.embed_tokens.weight")
    if any(name not in tensors for name in names):
        return config
    for name in names:
        check_float(tensors[name][0], name, tensors[name][1])
    if _equal(*(tensors[name][1] for name in names)):
        return config
    log.warning(
        "%s: tie_word_embeddings is true, but lm_head.weight differs from the embedding: "
        "the head is used",
        directory,
    )
    return dataclasses.replace(config, tie_embeddings=False)


def _equal(a: Any, b: Any) -> bool:
    """Compare two tables of a file, some rows at a time; other tensors are never equal."""
    shape = tuple(a.get_shape())
    if len(shape) != 2 or tuple(b.get_shape()) != shape:
        return False
    for first in range(0, shape[0], _ROWS):
        rows = slice(first, min(first + _ROWS, shape[0]))
        pair = (np.asarray(tensor[rows]).astype(np.float32) for tensor in (a, b))
        if not np.array_equal(*pair, equal_nan=True):
            return False
    return True
