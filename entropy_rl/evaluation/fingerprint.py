"""Where the samples of a directory come from, and who may add to them."""

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
_VALUES = 64  # of the first row of each array of weights; an update changes all of them


def check_origin(directory: Path, params: Params, problems: Sequence[Problem]) -> None:
    """Checks that the samples of a directory are of these weights and problems, and notes it at the
    first.

    A path names a model or a file of problems, and what is there may change between two starts.

    Args:
      directory: Of the evaluation.
      params: The weights that more samples would be drawn from.
      problems: What they would be drawn for.

    Raises:
      ValueError: If there are samples of others.
    """
    ours = {"weights": fingerprint(params), "problems": _of_problems(problems)}
    path = directory / ORIGIN_FILE
    if path.exists():
        try:
            theirs = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path}: is no JSON ({error}); remove the directory to begin anew"
            ) from error
        for what, value in ours.items():
            if theirs.get(what) != value:
                raise ValueError(
                    f"{directory}: holds samples of other {what} than these, which have changed "
                    "since it was "
                    "begun; choose another directory"
                )
    elif _has_samples(directory):
        raise ValueError(f"{directory}: holds samples of unknown origin; choose another directory")
    else:
        write_atomically(path, json.dumps(ours, indent=1) + "\n")


def fingerprint(params: Params) -> str:
    """A text that differs for weights that differ; it reads a part of each array, exactly."""
    digest = hashlib.blake2b(digest_size=16)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    beginnings = hosts.fetch([leaf[(0,) * (leaf.ndim - 1)][:_VALUES] for _, leaf in leaves])
    for (path, leaf), values in zip(leaves, beginnings, strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Keeps other processes from adding to a file of samples.

    Raises:
      ValueError: If one is at it already.
    """
    with file.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{file}: another process is adding samples; allowed: one process, or a shard for "
                "each"
            ) from error
        yield


def _of_problems(problems: Sequence[Problem]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.prompt, problem.answer]).encode())
    return digest.hexdigest()


def _has_samples(directory: Path) -> bool:
    stem, _, suffix = SAMPLES_FILE.partition(".")
    return any(path.stat().st_size for path in directory.glob(f"{stem}*.{suffix}"))
