"""Reads and writes Hugging Face checkpoints: config.json, *.safetensors, tokenizer; without torch.

Parameters have Hugging Face's names, so that a checkpoint is converted in three steps: strip
`model.`, transpose the kernels of the layers, stack the layers. `_tensor_names` and
`_is_transposed` define this mapping for both loading and saving; shapes are those of the decoder.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from entropy_rl.models.decoder import DecoderConfig, make_policy
from entropy_rl.models.hf_config import config_json
from entropy_rl.models.hf_tensors import (
    FLOAT_TYPES,
    INDEX,
    WEIGHTS,
    check_float,
    open_tensors,
    read_checkpoint_config,
    some_of,
)
from entropy_rl.models.rope import rope_frequencies
from entropy_rl.types import Params

log = logging.getLogger(__name__)

_ADAPTER = "adapter_config.json"
_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


# --------------------------------------------------------------------------------------------------
# Mapping of names
# --------------------------------------------------------------------------------------------------


def _leaf_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Return path and shape of every parameter, such as `layers/mlp/up_proj/kernel`: (L, D, I)."""
    tree = jax.eval_shape(make_policy(config).init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def _tensor_names(path: str, num_layers: int) -> list[str]:
    """Return the names of a leaf's tensors: one per layer, or one."""
    *modules, leaf = path.split("/")
    kind = "bias" if leaf == "bias" else "weight"
    if modules[0] == "layers":
        return [".".join(["model.layers", str(i), *modules[1:], kind]) for i in range(num_layers)]
    return [".".join([*modules, kind] if modules[0] == "lm_head" else ["model", *modules, kind])]


def _is_transposed(path: str) -> bool:
    return path.startswith("layers/") and path.endswith("/kernel")


def _tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the checkpoint, in the order of the leaves."""
    shapes = {}
    for path, shape in _leaf_shapes(config).items():
        shape = shape[1:] if path.startswith("layers/") else shape
        for name in _tensor_names(path, config.num_layers):
            shapes[name] = shape[::-1] if _is_transposed(path) else shape
    return shapes


# --------------------------------------------------------------------------------------------------
# Loading
# --------------------------------------------------------------------------------------------------


def _check_tensors(
    directory: Path, config: DecoderConfig, tensors: dict[str, tuple[Path, Any]]
) -> None:
    expected = _tensor_shapes(config)
    missing = expected.keys() - tensors.keys()
    if missing:
        raise ValueError(f"{directory}: missing tensors ({len(missing)}): {some_of(missing)}")
    # Older checkpoints have buffers that follow from the config, or a second name for the tied
    # embedding.
    unexpected = tensors.keys() - expected.keys()
    buffers = {name for name in unexpected if name.endswith("rotary_emb.inv_freq")}
    _check_frequencies(config, {name: tensors[name] for name in buffers})
    unexpected -= buffers
    if config.tie_embeddings:
        unexpected.discard("lm_head.weight")
    if unexpected:
        raise ValueError(
            f"{directory}: unexpected tensors ({len(unexpected)}): {some_of(unexpected)}"
        )
    for name, shape in expected.items():
        file, tensor = tensors[name]
        found = tuple(tensor.get_shape())
        if found != shape:
            raise ValueError(
                f"{file}: tensor {name} must have shape {shape} (config.json), got {found}"
            )
        check_float(file, name, tensor)


def _check_frequencies(config: DecoderConfig, buffers: dict[str, tuple[Path, Any]]) -> None:
    """Warn of stored rotary frequencies that differ from those of config.json, which are used."""
    expected = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    for name, (file, tensor) in sorted(buffers.items()):
        shape = tuple(tensor.get_shape())
        is_read = shape == expected.shape and tensor.get_dtype() in (*FLOAT_TYPES, "F64")
        # They may be stored in bfloat16.
        if not is_read or not np.allclose(
            np.asarray(tensor[:]).astype(np.float32), expected, rtol=1e-2
        ):
            log.warning("%s: %s is not used: it differs from config.json", file, name)
            return


def _load_leaf(
    path: str,
    shape: tuple[int, ...],
    slices: list[Any],
    dtype: Any,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    """Read one leaf: only the blocks of this host's devices."""

    @functools.cache  # devices with the same block share one read
    def read(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        layers, *inner = bounds if path.startswith("layers/") else ((0, 1), *bounds)
        index = tuple(slice(*bound) for bound in (inner[::-1] if _is_transposed(path) else inner))
        block = np.empty([stop - start for start, stop in (layers, *inner)], dtype)
        for row, tensor in zip(block, slices[slice(*layers)], strict=True):
            row[...] = tensor[index].T if _is_transposed(path) else tensor[index]
        return block if path.startswith("layers/") else block[0]

    if sharding is None:
        return jnp.asarray(read(tuple((0, n) for n in shape)))
    return jax.make_array_from_callback(
        shape,
        sharding,
        lambda index: read(tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))),
    )


def load_hf(
    directory: str | Path,
    dtype: Any = jnp.float32,
    sharding: Callable[[str, tuple[int, ...]], jax.sharding.Sharding] | None = None,
    config: DecoderConfig | None = None,
) -> tuple[DecoderConfig, Params]:
    """Load a checkpoint of Qwen2 / Qwen2.5, Qwen3, Llama 3 or Mistral.

    A host reads only the blocks of its devices, one parameter at a time: neither the checkpoint nor
    a sharded parameter is ever held in full in host memory.

    Args:
      directory: config.json with model.safetensors, or with shards and their index, in bfloat16,
        float16 or float32.
      dtype: Type of the parameters.
      sharding: (path such as `layers/self_attn/q_proj/kernel`, shape) -> sharding of the parameter;
        None for the default device.
      config: The architecture, if `read_checkpoint_config` has returned it already.

    Returns:
      (The architecture, parameters for its policy.) See `read_checkpoint_config` for a head that
      differs from a tied embedding.

    Raises:
      FileNotFoundError: If config.json, the weights or one of their shards do not exist.
      ValueError: If the architecture is not supported, a file is damaged, or the tensors do not
        match config.json.
    """
    directory = Path(directory)
    config = config or read_checkpoint_config(directory)
    if (directory / _ADAPTER).exists():
        raise ValueError(
            f"{directory / _ADAPTER}: must be merged into the weights before loading, or be named "
            "as model.lora.path, with its base as model.path: it would be left out"
        )
    tensors = open_tensors(directory)
    _check_tensors(directory, config, tensors)
    params = {}
    for path, shape in _leaf_shapes(config).items():
        slices = [tensors[name][1] for name in _tensor_names(path, config.num_layers)]
        place = None if sharding is None else sharding(path, shape)
        params[path] = _load_leaf(path, shape, slices, dtype, place)
    return config, traverse_util.unflatten_dict(params, sep="/")


# --------------------------------------------------------------------------------------------------
# Saving
# --------------------------------------------------------------------------------------------------


def _host_tensors(
    config: DecoderConfig, params: Params, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the checkpoint's tensors, one parameter at a time; all processes must iterate."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    for path in _leaf_shapes(config):
        leaf = leaves[path]
        if not getattr(leaf, "is_fully_addressable", True):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        leaf = np.asarray(leaf).astype(dtype, copy=False)
        layers = leaf if path.startswith("layers/") else leaf[None]
        for name, tensor in zip(_tensor_names(path, config.num_layers), layers, strict=True):
            # safetensors would write the buffer of a transposed view untransposed.
            yield name, np.ascontiguousarray(tensor.T if _is_transposed(path) else tensor)


def _write_weights(
    directory: Path,
    shapes: dict[str, tuple[int, ...]],
    tensors: Iterator[tuple[str, np.ndarray]],
    itemsize: int,
    max_shard_bytes: int,
) -> None:
    """Write the tensors, given in the order of `shapes`, with at most one file in memory."""
    sizes = {name: itemsize * math.prod(shape) for name, shape in shapes.items()}
    shards, room = [], 0
    for name, size in sizes.items():
        if not shards or size > room:  # only a single tensor may exceed the limit
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    files = [WEIGHTS]
    if len(shards) > 1:
        files = [
            f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
        ]
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write_json(directory / INDEX, index)
    for file, names in zip(files, shards, strict=True):
        shard = dict(itertools.islice(tensors, len(names)))
        save_file(shard, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)  # safetensors makes it readable by the owner only


def _text_files(directory: Path) -> list[Path]:
    files = [directory / name for name in _TEXT_FILES if (directory / name).is_file()]
    if not any(file.name.startswith(("tokenizer.", "vocab.")) for file in files):
        raise FileNotFoundError(
            f"{directory}: has no tokenizer.json, tokenizer.model or vocab.json"
        )
    return files


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_output(directory: str | Path) -> Path:
    """Check that a directory can be written.

    Raises:
      FileExistsError: If it is a file, or not empty.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(
            f"{directory}: must not exist or be an empty directory; nothing was written"
        )
    return directory


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory that gets the name `directory` if all goes well."""
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:  # which would name the temporary one
        raise OSError(error.errno, error.strerror, str(directory)) from error
    try:
        yield temporary
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def save_hf(
    directory: str | Path,
    config: DecoderConfig,
    params: Params,
    tokenizer_dir: str | Path | None = None,
    dtype: str = "float32",
    source_config: str | Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a Hugging Face checkpoint, atomically.

    All processes must call this; the first one writes.

    Args:
      directory: Output directory; must not exist, or be empty.
      config: The architecture.
      params: Parameters of its policy, in the training layout.
      tokenizer_dir: Directory from which tokenizer files, chat template and
        generation_config.json are copied.
      dtype: `float32` or `bfloat16`, type of the tensors.
      source_config: Original directory of the model, from whose config.json the fields beyond the
        architecture (max_position_embeddings, token ids) are copied.
      max_shard_bytes: Maximum bytes of tensors per file.

    Raises:
      FileExistsError: If `directory` is not empty.
      FileNotFoundError: If `tokenizer_dir` has no tokenizer, or `source_config` no config.json.
      ValueError: If the dtype is not supported, the parameters do not match the config, or the
        architecture does not exist in Hugging Face.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: must be float32 or bfloat16, got {dtype!r}")
    directory = check_output(directory)
    found = {
        path: np.shape(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
    }
    wrong = {path for path, _ in found.items() ^ _leaf_shapes(config).items()}
    if wrong:
        raise ValueError(f"params: must match the config; they differ in: {some_of(wrong)}")
    fields = config_json(config, dtype, source_config)
    copies = [] if tokenizer_dir is None else _text_files(Path(tokenizer_dir))
    # No process checks the directory after the first one has started to write.
    multihost_utils.sync_global_devices("save_hf: checked")

    shapes, tensors = _tensor_shapes(config), _host_tensors(config, params, dtype)
    if jax.process_index() == 0:
        with new_directory(directory) as temporary:
            _write_weights(temporary, shapes, tensors, jnp.dtype(dtype).itemsize, max_shard_bytes)
            _write_json(temporary / "config.json", fields)
            for file in copies:
                shutil.copyfile(file, temporary / file.name)
    else:
        for _ in tensors:  # take part in the gathers
            pass
    multihost_utils.sync_global_devices("save_hf: written")  # on return, the directory exists
