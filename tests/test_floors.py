"""Layers of the package: a module imports from its own floor, or from those below."""

import ast
import functools
import graphlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import entropy_rl

PACKAGE = Path(entropy_rl.__file__).parent

# The names of each line of the tree in docs/design.md, from the top to the bottom.
DESIGN = (Path(__file__).parents[1] / "docs/design.md").read_text()
(TREE,) = re.findall(r"```\nentropy_rl/\n(.*?)```", DESIGN, re.S)
FLOORS = [line.strip().partition("  ")[0].split() for line in TREE.splitlines()]
FLOOR_OF = {Path(name).stem: floor for floor, names in enumerate(FLOORS[::-1]) for name in names}
HOST_FLOOR = FLOOR_OF["tasks"]  # from here on, libraries of the host may be imported
MAIN_PROGRAMS = {"entropy_rl.train", "entropy_rl.evaluate"}
MOST_MODULES = 20  # of a folder

ONLY_IN_MODELS = {"flax.linen", "safetensors"}
ONLY_ON_UPPER_FLOORS = {
    *("transformers", "tensorflow_datasets", "orbax", "grain"),
    *("tensorboardX", "matplotlib", "yaml", "docstring_parser"),
}
NOWHERE = {"torch", "tensorflow"}
# What is imported under a name that is only known while the program runs; this test cannot see it.
DYNAMIC_ALLOWED = {"entropy_rl", "entropy_rl.config.registry"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
# The package itself is no room of the house: it only lists what is where.
ROOMS = sorted(set(FILES) - {"entropy_rl"})


def room(module: str) -> str:
    return module.split(".")[1]


def floor(module: str) -> int:
    return FLOOR_OF.get(room(module), 0)


def where(module: str) -> str:
    return str(FILES[module].relative_to(PACKAGE.parent))


def is_inside(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def find_imports(
    source: str, module: str = "module", known: frozenset[str] = frozenset()
) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; `from a import b` is a.b or a, if
    `known`.

    An import by name, as by importlib, is found as "importlib".
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                ours = node.module.split(".")[0] == "entropy_rl"
                found.append((node.lineno, node.module if ours and whole not in known else whole))
        elif isinstance(node, ast.Name) and node.id == "__import__":
            found.append((node.lineno, "importlib"))
    return found


@functools.cache
def imports(module: str) -> list[tuple[int, str]]:
    return find_imports(FILES[module].read_text(), module, frozenset(FILES))


def arrows(module: str) -> list[tuple[int, str]]:
    """Imports of this package; those of the package itself, which lead everywhere, apart."""
    return [(line, name) for line, name in imports(module) if name.startswith("entropy_rl.")]


def violations(is_wrong) -> list[str]:
    """One line for each import that is wrong: is_wrong(module, imported name)."""
    return [
        f"{where(module)}:{line} imports {name}"
        for module in FILES
        for line, name in imports(module)
        if is_wrong(module, name)
    ]


# --- the measure itself
# ------------------------------------------------------------------------------------


def test_every_form_of_import_is_seen():
    source = """
import a.b as c, d
from e import f
from entropy_rl.models import decoder, make_policy
def later():
    if True:
        import g
        __import__("h")
"""
    known = frozenset({"entropy_rl.models", "entropy_rl.models.decoder"})
    assert sorted(find_imports(source, known=known)) == [
        (2, "a.b"),
        (2, "d"),
        (3, "e.f"),
        (4, "entropy_rl.models"),
        (4, "entropy_rl.models.decoder"),
        (7, "g"),
        (8, "importlib"),
    ]


# --- the floors
# --------------------------------------------------------------------------------------------


def test_the_tree_of_the_design_has_every_file_and_folder_of_the_package():
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__/"}
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert sorted(itertools.chain(*FLOORS)) == sorted(folders | files)


def test_an_arrow_points_down_or_stays_on_its_floor():
    def points_up(module, name):
        # `from entropy_rl import load_model` goes through the list of all names, to any floor.
        if not is_inside(name, {"entropy_rl"}) or module == "entropy_rl":
            return False
        return name == "entropy_rl" or floor(name) > floor(module)

    assert not violations(points_up)


def test_nobody_imports_a_main_program_but_the_python_api():
    importers = {
        module
        for module in FILES
        for _, name in imports(module)
        if is_inside(name, MAIN_PROGRAMS) and module != name
    }
    assert importers - {"entropy_rl"} == {"entropy_rl.api"}  # the command line names them


def test_no_folder_has_more_modules_than_a_reader_can_survey():
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]
    modules = {
        str(folder.relative_to(PACKAGE)): len({*folder.glob("*.py")} - {folder / "__init__.py"})
        for folder in folders
    }
    assert not {folder: count for folder, count in modules.items() if count > MOST_MODULES}


def test_the_package_itself_imports_its_version_only():
    source = ast.parse(FILES["entropy_rl"].read_text())
    eager = [node.module for node in source.body if isinstance(node, ast.ImportFrom)]
    assert [name for name in eager if is_inside(name, {"entropy_rl"})] == ["entropy_rl.version"]


def test_no_import_goes_round_in_a_circle():
    graph = {module: {name for _, name in arrows(module)} - {module} for module in ROOMS}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_no_room_is_in_a_circle_with_another():
    graph = {room(module): set() for module in ROOMS}
    for module in ROOMS:
        graph[room(module)] |= {room(name) for _, name in arrows(module)} - {room(module)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_only_the_models_know_flax_modules_and_safetensors():
    assert not violations(
        lambda module, name: (
            is_inside(name, ONLY_IN_MODELS) and not is_inside(module, {"entropy_rl.models"})
        )
    )


def test_the_libraries_of_the_host_stay_on_the_upper_floors():
    assert not violations(
        lambda module, name: (
            is_inside(name, ONLY_ON_UPPER_FLOORS)
            and (module == "entropy_rl" or floor(module) < HOST_FLOOR)
        )
    )


def test_torch_and_tensorflow_are_imported_nowhere():
    assert not violations(lambda module, name: is_inside(name, NOWHERE))


def test_imports_by_name_are_made_in_two_places_only():
    assert not violations(
        lambda module, name: (
            is_inside(name, {"importlib", "runpy", "imp"})
            and name != "importlib.metadata"  # versions of packages: it imports none of them
            and module not in DYNAMIC_ALLOWED
        )
    )


# --- what an import loads
# ----------------------------------------------------------------------------------


def run_fresh(code: str):
    """The JSON that a fresh process prints after `code`, without this process's settings of jax."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))
    }
    result = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}"],
        env=environment | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_importing_the_package_loads_its_version_and_the_lazy_importer_only():
    loaded = run_fresh(
        "before = set(sys.modules)\n"
        "import entropy_rl\n"
        "assert len(entropy_rl.__version__) > 0\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    foreign = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert foreign <= {"entropy_rl", "etils", "typing_extensions"}
    assert [name for name in loaded if name.startswith("entropy_rl")] == [
        "entropy_rl",
        "entropy_rl.version",
    ]


def test_the_functional_core_loads_no_library_of_the_host_and_starts_no_device():
    # The names that a loop of one's own needs, as a notebook would have them.
    below = "shape_by_entropy chain make_generate make_batch make_update make_stats_pass init_state"
    below = [*below.split(), "load_hf", "make_policy", "stats", "losses", "contrib", "TrainState"]
    loaded, started, started_by_asking = run_fresh(
        "import jax, flax, optax\n"  # flax itself loads yaml
        "before = set(sys.modules)\n"
        "import entropy_rl\n"
        f"objects = [getattr(entropy_rl, name) for name in {below}]\n"
        "loaded = sorted(set(sys.modules) - before)\n"
        "from jax._src import xla_bridge\n"
        "started = xla_bridge.backends_are_initialized()\n"
        "jax.config.update('jax_platforms', 'cpu'); jax.devices()\n"
        "print(json.dumps([loaded, started, xla_bridge.backends_are_initialized()]))"
    )
    assert "entropy_rl.learner.update" in loaded and "safetensors" in loaded
    assert not {
        name
        for name in loaded
        if is_inside(name, ONLY_ON_UPPER_FLOORS | NOWHERE | {"rich", "wandb"})
    }
    assert (started, started_by_asking) == (False, True)


def test_a_docstring_opens_with_an_imperative():
    third_person = r"(Builds|Checks|Compares|Computes|Judges|Makes|Reads|Returns|Runs|Writes)\b"
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                opening = ast.get_docstring(node) or ""
                assert not re.match(third_person, opening), f"{path}:{node.lineno}: {opening:.60}"


def test_text_files_are_utf_8_whatever_the_locale():
    readers = (".open", ".read_text", ".write_text", "open")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            of = node.func
            name = f".{of.attr}" if isinstance(of, ast.Attribute) else getattr(of, "id", None)
            owner = getattr(getattr(node.func, "value", None), "id", None)
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            is_binary = any("b" in str(getattr(value, "value", "")) for value in values[-1:])
            if name in readers and owner != "os" and not is_binary:
                names = [keyword.arg for keyword in node.keywords]
                assert "encoding" in names, f"{path}:{node.lineno}: {name} without encoding"


def test_no_two_test_files_have_one_name():
    # pytest stops at the second one, but only when both are collected.
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
