"""Exit codes and one-line errors for whatever ends a verb.

2 is bad input, 1 what the machine or a program has refused. ENTROPY_RL_TRACEBACK=1 shows the
traceback instead.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from entropy_rl.tasks.task import JudgeError

BAD_INPUT = (ValueError, FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


class DoesNotFit(MemoryError):
    """A plan that no memory was allocated for; its text says what is too large."""


# Their text says what is wrong.
_STATED = (ValueError, OSError, FloatingPointError, JudgeError, DoesNotFit)
_PACKAGE = Path(__file__).parents[1]
_LONGEST = 2000

# Part of the package -> (what it was doing, what takes less memory there). The innermost counts.
_MEMORY: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "rollout": (
            "sampling",
            "lower decoding.slots or decoding.memory_share, or rollout.max_new_tokens",
        ),
        "learner": (
            "an update",
            "lower batching.max_tokens_per_micro_batch, set model.remat to full, or "
            "optimizer.offload to true",
        ),
        "runs/checkpoint.py": ("a checkpoint", "use more devices (mesh.fsdp) or a smaller model"),
        "runs/load_model.py": (
            "loading the model",
            "use more devices (mesh.fsdp) or a smaller model",
        ),
        "evaluation": (
            "an evaluation",
            "lower evaluation.rows_per_call, decoding.slots or evaluation.max_new_tokens",
        ),
    }
)
# The modules that call the programs of the parts above, whose own frames jax leaves out.
_CALLERS = {
    "experience/sampler.py": "rollout",
    "commands/sample.py": "rollout",
    "evaluation/sampling.py": "evaluation",
    "trainer/updates.py": "learner",
    "trainer/prepare.py": "learner",
    "commands/sft.py": "learner",
    "trainer/supervised.py": "learner",
}
_ANYWHERE = (
    "this run",
    "lower batching.max_tokens_per_micro_batch or decoding.slots, set model.remat to full, or use "
    "more devices",
)


def exit_code(error: BaseException) -> int:
    """Return 2 for bad input, 1 for anything else."""
    return 2 if isinstance(error, BAD_INPUT) else 1


def wants_traceback() -> bool:
    """True where the user asks for tracebacks."""
    return os.environ.get("ENTROPY_RL_TRACEBACK", "") not in ("", "0")


def error_line(error: BaseException) -> str:
    """Return the text of an error in one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    lines = (line.strip() for line in str(error).splitlines())
    text = " ".join(lines) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def failure_line(error: BaseException) -> str | None:
    """Return the line for an error that ends a verb; None for a programming error.

    Running out of memory names the settings to lower. What a library raises on a user's file is a
    `ValueError` by then (see `config.files.reading`); any other exception is a mistake in a
    program, ours or the user's, and keeps its traceback.
    """
    if is_out_of_memory(error):
        return _memory_line(error)
    return error_line(error) if isinstance(error, _STATED) else None


def is_out_of_memory(error: BaseException) -> bool:
    """True if a device or the host has no memory left."""
    if isinstance(error, MemoryError):
        return not isinstance(error, DoesNotFit)
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and bool(
        re.search(r"RESOURCE_EXHAUSTED|out of memory|Out of memory|OOM", str(error))
    )


def _memory_line(error: BaseException) -> str:
    doing, remedy = _ANYWHERE
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = _inside(frame.f_code.co_filename)
        if name is None:
            continue
        part = _CALLERS.get(name) or next((p for p in _MEMORY if name.startswith(p)), None)
        if part is not None:
            doing, remedy = _MEMORY[part]
    where = "the host" if isinstance(error, MemoryError) else "the device"
    found = re.search(r"allocat\w*\s+(?:of\s+)?([\d.,]+\s*(?:[KMGTPE]?i?B|bytes?))", str(error))
    size = f", which asked for {found[1]}" if found else ""
    return f"out of memory on {where} in {doing}{size}: {remedy}"


def _inside(filename: str) -> str | None:
    """Return the path of a module of this package below its root, None for another."""
    try:
        return str(Path(filename).relative_to(_PACKAGE))
    except ValueError:
        return None
