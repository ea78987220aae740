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

from entropy_rl.config.values import leaf_fields
from entropy_rl.tasks.task import JudgeError

BAD_INPUT = (ValueError, FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


class DoesNotFit(MemoryError):
    """A plan that no memory was allocated for; its text says what is too large."""


# Their text says what is wrong.
_STATED = (ValueError, OSError, FloatingPointError, JudgeError, DoesNotFit)
_PACKAGE = Path(__file__).parents[1]
_LONGEST = 2000

# What takes less memory -> the fields that it is about, all of which a verb must have.
_REMEDIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lower batching.max_tokens_per_micro_batch": ("batching.max_tokens_per_micro_batch",),
        "lower max_tokens_per_micro_batch": ("max_tokens_per_micro_batch",),
        "set model.remat to full": ("model.remat", "batching.max_tokens_per_micro_batch"),
        "set optimizer.offload to true": ("optimizer.offload", "rollout.prompts"),
        "lower evaluation.rows_per_call": ("evaluation.rows_per_call",),
        "lower decoding.slots or decoding.memory_share": ("decoding.slots",),
        "lower rollout.max_new_tokens": ("rollout.max_new_tokens",),
        "lower evaluation.max_new_tokens": ("evaluation.max_new_tokens",),
        "lower max_new_tokens": ("max_new_tokens",),
        "use more devices (mesh.fsdp)": ("mesh.fsdp",),
        "use a smaller model": (),
    }
)
_ALWAYS = ("use more devices (mesh.fsdp)", "use a smaller model")
_ANYWHERE = (
    *("lower batching.max_tokens_per_micro_batch", "lower max_tokens_per_micro_batch"),
    *("lower decoding.slots or decoding.memory_share", "set model.remat to full"),
)
# Part of the package -> (what it was doing, what takes less memory there). The innermost counts.
_PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "rollout": (
            "sampling",
            (
                *("lower decoding.slots or decoding.memory_share", "lower rollout.max_new_tokens"),
                "lower max_new_tokens",
            ),
        ),
        "learner": (
            "an update",
            (
                *("lower batching.max_tokens_per_micro_batch", "set model.remat to full"),
                "set optimizer.offload to true",
            ),
        ),
        "runs/checkpoint.py": ("a checkpoint", ()),
        "runs/load_model.py": ("loading the model", ()),
        "evaluation": (
            "an evaluation",
            (
                *("lower evaluation.rows_per_call", "lower evaluation.max_new_tokens"),
                "lower decoding.slots or decoding.memory_share",
            ),
        ),
        "scoring": ("scoring texts", ("lower max_tokens_per_micro_batch",)),
    }
)
# The modules that call the programs of the parts above, whose own frames jax leaves out.
_CALLERS = {
    "experience/sampler.py": "rollout",
    "trainer/stack.py": "rollout",
    "commands/sample.py": "rollout",
    "evaluation/sampling.py": "evaluation",
    "evaluation/score_texts.py": "scoring",
    "trainer/updates.py": "learner",
    "trainer/prepare.py": "learner",
    "commands/sft.py": "learner",
    "trainer/supervised.py": "learner",
}


def exit_code(error: BaseException) -> int:
    """Return 2 for bad input, 1 for anything else."""
    return 2 if isinstance(error, BAD_INPUT) else 1


def wants_traceback() -> bool:
    """True where the user asks for tracebacks."""
    return os.environ.get("ENTROPY_RL_TRACEBACK", "") not in ("", "0")


def error_line(error: BaseException) -> str:
    """Return the text of an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = (line.strip() for line in str(error).splitlines())
    text = " ".join(lines) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def failure_line(error: BaseException, config: type | None = None) -> str | None:
    """Return the line for an error that ends a verb; None for a programming error.

    Running out of memory names the settings to lower. What a library raises on a user's file is a
    `ValueError` by then (see `config.files.reading`); any other exception is a mistake in a
    program, ours or the user's, and keeps its traceback.

    Args:
      error: What was raised.
      config: The verb's config class, whose settings are named; None for those of all verbs.
    """
    if is_out_of_memory(error):
        return _memory_line(error, config)
    return error_line(error) if isinstance(error, _STATED) else None


def is_out_of_memory(error: BaseException) -> bool:
    """True if a device or the host has no memory left."""
    if isinstance(error, MemoryError):
        return not isinstance(error, DoesNotFit)
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and bool(
        re.search(r"RESOURCE_EXHAUSTED|out of memory|Out of memory|OOM", str(error))
    )


def _memory_line(error: BaseException, config: type | None) -> str:
    doing, remedies = "this run", _ANYWHERE
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = _inside(frame.f_code.co_filename)
        if name is None:
            continue
        part = _CALLERS.get(name) or next((p for p in _PARTS if name.startswith(p)), None)
        if part is not None:
            doing, remedies = _PARTS[part]
    remedies += _ALWAYS
    if config is not None:
        settings = {path for path, _ in leaf_fields(config)}
        remedies = tuple(r for r in remedies if settings.issuperset(_REMEDIES[r]))
    where = "the host" if isinstance(error, MemoryError) else "the device"
    found = re.search(r"allocat\w*\s+(?:of\s+)?([\d.,]+\s*(?:[KMGTPE]?i?B|bytes?))", str(error))
    size = f", which asked for {found[1]}" if found else ""
    advice = " or ".join(filter(None, (", ".join(remedies[:-1]), remedies[-1])))
    return f"out of memory on {where} in {doing}{size}: {advice}"


def _inside(filename: str) -> str | None:
    """Return the path of a module of this package below its root, None for another."""
    try:
        return str(Path(filename).relative_to(_PACKAGE))
    except ValueError:
        return None
