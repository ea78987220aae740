"""Run the code cells of a notebook in one namespace, as a kernel does, without Jupyter.

    python notebook_cells.py NOTEBOOK [OLD=>NEW ...]

OLD is replaced by NEW, which shortens a run; each must occur. The last line of the output is the
directory of the package that was used.
"""

import json
import sys
from pathlib import Path


def code_of(notebook: Path) -> list[str]:
    """The sources of the code cells, in order."""
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


if __name__ == "__main__":
    sources = code_of(Path(sys.argv[1]))
    for argument in sys.argv[2:]:
        old, _, new = argument.partition("=>")
        assert any(old in source for source in sources), old
        sources = [source.replace(old, new) for source in sources]
    names: dict = {"__name__": "__main__"}
    for number, source in enumerate(sources):
        exec(compile(source, f"cell {number}", "exec"), names)
    print(Path(names["er"].__file__).parent)
