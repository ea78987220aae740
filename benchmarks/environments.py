"""A virtual environment for each system that is compared; ours is the one that runs this
program.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SYSTEMS = ("ours", "tunix", "trl")

# Steps of pip, one after the other; within a step the alternatives in turn, until one works. The
# build with CUDA, gigabytes of no use here, never has the local version "+cpu".
_PIP_STEPS = {
    "tunix": [[["google-tunix==0.1.7", "qwix==0.1.8", "jax==0.10.2"]]],
    "trl": [
        [
            ["torch==2.13.0+cpu"],
            ["torch==2.13.0+cpu", "--index-url", "https://download.pytorch.org/whl/cpu"],
        ],
        [["torch==2.13.0+cpu", "trl==1.16.0", "peft==0.21.2"]],
    ],
}


class EnvironmentFailed(Exception):
    """An environment cannot be made; the message is one line."""


def python_of(system: str, directory: Path) -> Path:
    """The interpreter of a system, installed below `directory` if it is not yet there.

    Raises:
      EnvironmentFailed: If pip fails, with its last error.
    """
    if system == "ours":
        return Path(sys.executable)
    home = (directory / system).absolute()
    python, stamp, steps = home / "bin" / "python", home / "installed", _PIP_STEPS[system]
    if stamp.is_file() and stamp.read_text() == repr(steps):
        return python
    print(f"installing {system} into {home} (minutes, once)", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(home)])
    for alternatives in steps:
        errors = []
        for arguments in alternatives:
            try:
                _run([str(python), "-m", "pip", "install", "--quiet", *arguments])
                break
            except EnvironmentFailed as error:
                errors.append(error)
        else:
            raise errors[0]
    stamp.write_text(repr(steps))
    return python


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise EnvironmentFailed(errors[-1][:300])


def environment_of(system: str) -> dict[str, str]:
    """The variables of its process: nothing that another's packages or compiled programs could come
    in by.

    Threads of OpenMP (torch) sleep while they wait. By default they spin, which costs CPU-seconds,
    and the more of them the busier the machine is with other work.
    """
    foreign = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "JAX_", "XLA_", "OMP_", "MKL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    paths = {"PYTHONPATH": str(ROOT)} if system == "ours" else {}
    fixed = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return kept | paths | fixed | {"OMP_WAIT_POLICY": "PASSIVE"}
