"""Records the command, commit, package versions and devices of each start of a run."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import flax
import jax
import jaxlib
import numpy as np
import optax

from entropy_rl.runs.jsonl import cut_broken_line, write_jsonl
from entropy_rl.version import __version__

STARTS_FILE = "starts.jsonl"
_PACKAGES = (jax, jaxlib, flax, optax, np)


def record_start(
    directory: Path,
    step: int | None = None,
    changed_settings: Sequence[str] = (),
    accepted_changes: Sequence[str] = (),
) -> None:
    """Append a line to starts.jsonl, because versions may change when a run resumes.

    Args:
      directory: Directory of the run or the evaluation.
      step: Steps already completed; None for an evaluation.
      changed_settings: Settings that have changed since the last start.
      accepted_changes: What has changed since the run began; see `runs.identity`.
    """
    devices = jax.devices()
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    start = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": command,
        "commit": _commit(),
        "versions": {"entropy_rl": __version__, "python": platform.python_version()}
        | {package.__name__: package.__version__ for package in _PACKAGES},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
    if changed_settings:
        start["changed_settings"] = list(changed_settings)
    if accepted_changes:
        start["accepted_changes"] = list(accepted_changes)
    cut_broken_line(directory / STARTS_FILE)  # of a start when the disk was full
    write_jsonl(directory / STARTS_FILE, [start])


def _commit() -> str | None:
    """Return the commit of this checkout, with "+" if files differ; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # An installed copy may be in a directory of another checkout.
        git("ls-files", "--error-unmatch", "version.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
