"""Origin of the samples in a directory (weights and problems), and a lock for writers."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from entropy_rl.distributed import multihost as hosts
from entropy_rl.runs.directory import SAMPLES_FILE
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.tasks.task import Problem
from entropy_rl.types import Params

ORIGIN_FILE = "origin.json"
_VALUES = 64  # hashed of each weight array, from its first row; every update changes them


def check_origin(directory: Path, params: Params, problems: Sequence[Problem]) -> None:
    """Check that the samples of a directory come from these weights and problems.

    The config names paths, and the files there may change between two starts. The first call
    records the origin.

    Args:
      directory: Directory of the evaluation.
      params: Weights of the policy.
      problems: The problems.

    Raises:
      ValueError: The directory holds samples of other weights or problems.
    """
    ours = {"weights": fingerprint(params), "problems": _of_problems(problems)}
    path = directory / ORIGIN_FILE
    if path.exists():
        try:
            theirs = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path}: must be JSON ({error}); remove the directory to start over"
            ) from error
        for what, value in ours.items():
            if theirs.get(what) != value:
                raise ValueError(
                    f"{directory}: must hold samples of the same {what}, which have changed since "
                    "the evaluation began; choose another directory"
                )
    elif _has_samples(directory):
        raise ValueError(
            f"{directory}: must hold {ORIGIN_FILE} with its samples, got none; choose another "
            "directory"
        )
    else:
        write_atomically(path, json.dumps(ours, indent=1) + "\n")


def fingerprint(params: Params) -> str:
    """Hash of the weights: path, shape, dtype and first values of each array."""
    digest = hashlib.blake2b(digest_size=16)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    beginnings = hosts.fetch([leaf[(0,) * (leaf.ndim - 1)][:_VALUES] for _, leaf in leaves])
    for (path, leaf), values in zip(leaves, beginnings, strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Lock a samples file against other writers.

    Raises:
      ValueError: Another process holds the lock.
    """
    with file.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{file}: must have one writer, got a second process; give each its own shard"
            ) from error
        yield


def _of_problems(problems: Sequence[Problem]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for problem in problems:
        parts = [problem.id, problem.prompt, problem.answer]
        if problem.messages or problem.chat_template_kwargs:
            parts += [problem.messages, dict(problem.chat_template_kwargs)]
        digest.update(json.dumps(parts).encode())
    return digest.hexdigest()


def _has_samples(directory: Path) -> bool:
    stem, _, suffix = SAMPLES_FILE.partition(".")
    return any(path.stat().st_size for path in directory.glob(f"{stem}*.{suffix}"))
