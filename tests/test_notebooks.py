"""The notebooks are committed with the outputs of a clean run, and run from top to bottom.

`test_wheel.py` runs both, shortened, with the installed package.
"""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def outputs(path):
    return [output for cell in code_cells(path) for output in cell["outputs"]]


def texts(path):
    """The text outputs of a notebook."""
    for output in outputs(path):
        yield "".join(output.get("text", output.get("data", {}).get("text/plain", "")))


@notebooks
def test_the_outputs_are_those_of_one_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert len(list(texts(path))) >= 4
    assert json.loads(path.read_text())["metadata"]["language_info"] == {"name": "python"}


@notebooks
def test_the_outputs_have_no_error_warning_path_or_control_character(path):
    assert {output["output_type"] for output in outputs(path)} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    for text in texts(path):
        assert not re.search(r"Traceback|Warning|Error|[\x00-\x08\x0b-\x1f\x7f\x1b]", text), text
        assert not re.search(r"(?:^|[\s'\"(=:])/\w|/home/|/tmp/|/root/|[A-Z]:\\", text), text
        assert not re.search(r"\d (?:min|s|ms)\b|time/|tokens/s|compiled", text), text


@notebooks
def test_the_figures_are_small_pictures(path):
    figures = [output["data"]["image/png"] for output in outputs(path) if "data" in output]
    assert 1 <= len(figures) <= 2
    for figure in figures:
        assert base64.b64decode(figure).startswith(b"\x89PNG")
    assert path.stat().st_size < 150_000


@notebooks
def test_the_first_code_cell_installs_what_is_missing_from_a_path_or_a_url(path):
    source = "".join(code_cells(path)[0]["source"])
    assert 'SOURCE = ".."' in source and "git+https://" in source
    names = {}
    exec(source, names)  # everything is installed: nothing happens
    assert set(names) >= {"SOURCE"} and code_cells(path)[0]["outputs"] == []


@pytest.mark.slow
@notebooks
def test_a_notebook_runs_as_it_is(path, tmp_path):
    # A kernel has one device, as a notebook's user has.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
    command = [sys.executable, str(ROOT / "tests" / "notebook_cells.py"), str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
