"""The source distribution and its wheel, outside of a checkout: recipes, assets and templates are
in them and are found, and the first steps of a user work.
"""

import ast
import importlib.metadata
import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib

import pytest
import yaml
from conftest import CACHE
from tiny_runs import ROOT

_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
_SDIST = "import sys; from setuptools import build_meta as b; print(b.build_sdist(sys.argv[1]))"


def pip_install(target, *arguments: str) -> None:
    """Install into a directory; skips the test where pip has no index with setuptools."""
    options = ["--quiet", "--no-deps", "--retries", "0", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *arguments],
        capture_output=True,
        text=True,
    )
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip(f"pip needs an index, or PIP_FIND_LINKS, with setuptools: {done.stderr:.400}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The source distribution of a copy of the source, built by a setuptools of its own."""
    source, tools, out = (tmp_path_factory.mktemp(n) for n in ("source", "tools", "archive"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("entropy_rl", "configs", "notebooks"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    (requirement,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"][
        "requires"
    ]
    pip_install(tools, requirement)
    done = subprocess.run(
        [sys.executable, "-c", _SDIST, str(out)],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(tools)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(archive, tmp_path_factory):
    """A directory with what the wheel of the source distribution installs.

    pip builds it in an environment of its own, for which it gets setuptools from its index.
    """
    target = tmp_path_factory.mktemp("installed")
    pip_install(target, str(archive))
    return target


def run(installed, directory, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "entropy_rl", *arguments],
        cwd=directory,
        env=os.environ | _CACHE | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )


def test_the_wheel_has_every_recipe_asset_and_template(installed):
    package = installed / "entropy_rl"
    for source in (ROOT / "configs", ROOT / "entropy_rl/assets", ROOT / "entropy_rl/report"):
        name = "recipes" if source.name == "configs" else source.name
        files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
        files = {path for path in files if "__pycache__" not in path.parts}
        assert files and files <= {
            p.relative_to(package / name) for p in (package / name).rglob("*")
        }
    assert (package / "py.typed").is_file()


def test_the_source_distribution_has_the_recipes_once_more_and_the_notebooks(archive):
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert recipes <= names
    assert {name.replace("configs/", "entropy_rl/recipes/", 1) for name in recipes} <= names
    assert {"notebooks/quickstart.ipynb", "notebooks/analysis.ipynb", "LICENSE"} <= names


def test_a_recipe_is_found_by_name_without_a_checkout(installed, tmp_path):
    for given in ("countdown_grpo_entropy", "configs/countdown_grpo_entropy.yaml"):
        arguments = ["train", "--config", given, "--advantage.1.alpha", "0.5", "--print_config"]
        done = run(installed, tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert yaml.safe_load(done.stdout)["advantage"][1]["alpha"] == 0.5
    done = run(installed, tmp_path, "train", "--config", "countdown")
    assert done.returncode == 2 and "countdown_grpo_entropy" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, shorter",
    [
        (
            "quickstart",
            ["UPDATES = 30=>UPDATES = 1", "step(step, 8)=>step(step, 4)"],
        ),
        pytest.param(
            "analysis",
            ["--steps=4=>--steps=2", "evaluation.problems=16=>evaluation.problems=8"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_notebook_runs_outside_of_a_checkout(installed, tmp_path, name, shorter):
    script, notebook = ROOT / "tests/notebook_cells.py", ROOT / f"notebooks/{name}.ipynb"
    done = subprocess.run(
        [sys.executable, shutil.copy(script, tmp_path), shutil.copy(notebook, tmp_path), *shorter],
        cwd=tmp_path,
        env=os.environ | _CACHE | {"PYTHONPATH": str(installed), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == str(installed / "entropy_rl")
    if name == "analysis":  # its run is the quickstart's training, cut short
        done = run(installed, tmp_path, "report", "runs/short", "--output", "report.html")
        assert done.returncode == 0, done.stderr
        assert "<html" in (tmp_path / "report.html").read_text()


def test_every_library_that_is_imported_is_declared():
    """So that an installation without the lock and the checkout lacks nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # What jax, math-verify, textarena, transformers and etils require, and modules of
    # mlflow-skinny and google-cloud-storage.
    required = ["jaxlib", "numpy", "libtpu", "sympy", "latex2sympy2-extended", "nltk"]
    required += ["tokenizers", "mlflow", "fsspec", "google"]
    lines = [*project["dependencies"], *itertools.chain(*extras.values()), *required]
    declared = {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}
    own = {"entropy_rl", *sys.stdlib_module_names}
    distributions = importlib.metadata.packages_distributions()
    seen = set()
    for path in (ROOT / "entropy_rl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - own:
                seen.add(name)
                found = {canonical(d) for d in [name, *distributions.get(name, [])]}
                assert found & declared, f"{path.relative_to(ROOT)} imports {name}"
    assert {"jax", "flax", "yaml", "rich"} <= seen


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
