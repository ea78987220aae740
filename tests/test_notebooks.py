"""The notebooks run from top to bottom, and are committed without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    pytest.importorskip("nbmake", reason="needs the extra `notebooks`")
    pytest.importorskip("matplotlib")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--nbmake",
        "--nbmake-timeout=600",
    ]
    # A kernel has one device, as a notebook's user has, and this suite's compiled programs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-n", "0", str(path)],
        cwd=ROOT,
        env=environment | cache,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
