"""Run notebooks and keep their outputs. Needs the extra `notebooks`.

Progress and timings, which go to stderr, are left out, and so is what
depends on the machine. The run is in a temporary directory.
"""

import argparse
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def execute(path: Path) -> None:
    """Run the notebook in a file from top to bottom, and write it back."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        NotebookClient(
            notebook, timeout=1200, resources={"metadata": {"path": directory}}
        ).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _joined(out for out in cell.outputs if out.get("name") != "stderr")
            for output in cell.outputs:
                output.pop("metadata", None)
                if output.output_type in ("display_data", "execute_result"):
                    output.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def _joined(outputs: Iterable[Any]) -> list[Any]:
    """Join streams that follow one another; where they are cut depends on the time."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", nargs="+", type=Path)
    os.environ.pop("MPLBACKEND", None)
    for file in parser.parse_args().notebook:
        execute(file)
