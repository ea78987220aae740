"""Origin of the samples in a directory: model and problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.config.files import error_text
from entropy_rl.distributed import multihost as hosts
from entropy_rl.evaluation.samples import has_samples
from entropy_rl.experience.prompts import Prompts
from entropy_rl.runs.digests import sha256_of_values
from entropy_rl.runs.identity import model_file_digests
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.runs.load_model import Model
from entropy_rl.tasks.task import Problem
from entropy_rl.types import Params

ORIGIN_FILE = "origin.json"
_VALUES = 64  # hashed of each weight array, from its first row; every update changes them
_FACTOR = 1_000_003  # odd, so that the weights of a checksum are odd


def check_origin(directory: Path, model: Model, params: Params, prompts: Prompts) -> None:
    """Check that the samples of a directory come from this model and these problems; collective.

    The config names paths, and the files there may change between two starts. The first call
    records the origin. What an earlier version did not record is not compared.

    Args:
      directory: Directory of the evaluation.
      model: Its config and tokenizer.
      params: Weights of the policy.
      prompts: The problems, encoded.

    Raises:
      ValueError: The directory holds samples of something else, or another process has a model or
        problems of its own; names what differs.
    """
    ours = {
        "weights": fingerprint(params),
        "problems": _of_problems(prompts.problems),
        "all weights": checksum(params),
        "prompts": sha256_of_values(prompts.encoded),
        "model files": sha256_of_values([model_file_digests(model.directory)]),
    }
    hosts.check_same(ours)
    path = directory / ORIGIN_FILE
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            theirs = ours | {"weights": theirs["weights"], "problems": theirs["problems"]} | theirs
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}: must be the origin of samples ({error_text(error)}); remove the "
                "directory to start over"
            ) from error
        changed = [what for what in ours if theirs[what] != ours[what]]
        if changed:
            raise ValueError(
                f"{directory}: must hold samples of the same {changed[0].removeprefix('all ')}, "
                "which have changed since the evaluation began; choose another directory"
            )
    elif has_samples(directory):
        raise ValueError(
            f"{directory}: must hold {ORIGIN_FILE} with its samples, got none; choose another "
            "directory"
        )
    else:
        write_atomically(path, json.dumps(ours, indent=1) + "\n")


def fingerprint(params: Params) -> str:
    """Hash of the weights: path, shape, dtype and first values of each array."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return _hash(leaves, [leaf[(0,) * (leaf.ndim - 1)][:_VALUES] for _, leaf in leaves])


def checksum(params: Params) -> str:
    """Hash of all values of the weights, whatever their sharding."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return _hash(leaves, _sums([leaf for _, leaf in leaves]))


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    """Sum the bits of each array, times odd numbers that depend on the position, modulo 2^32."""
    sums = []
    for x in arrays:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        weights = jnp.uint32(1)
        for axis in range(x.ndim):
            place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            weights = weights * jnp.uint32(_FACTOR) + jnp.uint32(2) * place
        sums.append(jnp.sum(bits * weights, dtype=jnp.uint32))
    return sums


def _hash(leaves: Sequence[tuple[Any, jax.Array]], values: Sequence[jax.Array]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for (path, leaf), value in zip(leaves, hosts.fetch(values), strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _of_problems(problems: Sequence[Problem]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for problem in problems:
        parts = [problem.id, problem.prompt, problem.answer]
        if problem.messages or problem.chat_template_kwargs:
            parts += [problem.messages, dict(problem.chat_template_kwargs)]
        digest.update(json.dumps(parts).encode())
    return digest.hexdigest()
