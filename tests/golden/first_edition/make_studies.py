"""Makes what the first edition reports of the published records of the study.

    PYTHONPATH=../first .venv/bin/python tests/golden/first_edition/make_studies.py

with `../first` as for make.py. Writes studies.json.xz beside this file: study -> its study.json
without the design, and the lines of tables of its study.md.
"""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import entropy_rl

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs" / "study"
FIRST = Path(entropy_rl.__file__).parents[1]
ARCHIVES = {"countdown": "records.tar.gz", "countdown_length": "length_records.tar.gz"}


def report(name: str, directory: Path) -> tuple[dict, list[str]]:
    """Reports a study from its records."""
    output = directory / "runs" / "study" / name
    with tarfile.open(DOCS / ARCHIVES[name]) as archive:
        archive.extractall(output, filter="data")
    (directory / "configs").symlink_to(FIRST / "configs")
    arguments = ["study", "--config", f"configs/study/{name}.yaml", "--do", "report"]
    subprocess.run([sys.executable, "-m", "entropy_rl.cli", *arguments], cwd=directory, check=True)
    found = json.loads((output / "study.json").read_text())
    del found["design"]
    lines = (output / "study.md").read_text().splitlines()
    return found, [line for line in lines if line.startswith("|")]


def main() -> None:
    """Writes studies.json.xz."""
    found = {}
    for name in ARCHIVES:
        with tempfile.TemporaryDirectory() as directory:
            numbers, tables = report(name, Path(directory))
            found[name] = {"numbers": numbers, "tables": tables}
    (HERE / "studies.json.xz").write_bytes(lzma.compress(json.dumps(found).encode()))


if __name__ == "__main__":
    main()
