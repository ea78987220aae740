"""Lists the names of the first edition: what a config, a command line and a run could hold.

    PYTHONPATH=../first .venv/bin/python tests/golden/first_edition/make_names.py

with `../first` as for make.py. Writes names.json beside this file: `verbs` (verb -> dotted paths of
its config), `methods` (name -> arguments), `tasks`, `splits` of countdown, `metrics` (of the table
in its README), `state` (fields of `TrainState`, of its replay buffer and rows), `batch` (fields of
`TrainBatch`) and `files` (names in the directory of a run).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import entropy_rl
from entropy_rl import bad_updates, cli, run_directory, types
from entropy_rl.tasks import _BUILT_IN
from entropy_rl.tasks.countdown import game

HERE = Path(__file__).parent
README = Path(entropy_rl.__file__).parents[1] / "README.md"
FACTORIES = (
    "advantages.build",
    "surrogates.build",
    "selection.build",
    "entropy_control",
    "revisits",
)


def paths(cls: type, above: str = "") -> Iterator[str]:
    """Dotted paths of a config."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{above}{field.name}"
        options = (hints[field.name], *typing.get_args(hints[field.name]))
        for section in filter(dataclasses.is_dataclass, options):
            yield from paths(section, f"{above}{field.name}.")


def load(reference: str) -> type:
    """Imports module:attribute."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def main() -> None:
    """Writes names.json."""
    factories = {}
    for module in FACTORIES:
        factories |= importlib.import_module(f"entropy_rl.{module}")._FACTORIES
    methods = {name: list(inspect.signature(f).parameters) for name, f in factories.items()}
    cells = [line.split("|")[1] for line in README.read_text().splitlines() if line[:1] == "|"]
    metrics = sorted({name for cell in cells for name in re.findall(r"`([a-z_]+(?:/\*)?)`", cell)})
    state = [field.name for field in dataclasses.fields(types.TrainState)]
    state += ["kept/rows", "kept/memory", "kept/rows/valid"]
    files = [
        value
        for name, value in vars(run_directory).items()
        if re.search("_(FILE|DIRECTORY)$", name)
    ]
    files += [bad_updates._BATCH_FILE, bad_updates._MEMORY_FILE]
    names = {
        "verbs": {verb: list(paths(load(entry[0]))) for verb, entry in cli._VERBS.items()},
        "methods": methods,
        "tasks": list(_BUILT_IN),
        "splits": list(game.SPLITS),
        "metrics": metrics,
        "state": state,
        "batch": [field.name for field in dataclasses.fields(types.TrainBatch)],
        "files": files,
    }
    (HERE / "names.json").write_text(json.dumps(names, indent=1) + "\n")


if __name__ == "__main__":
    main()
