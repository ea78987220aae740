"""The wheel, outside of a checkout: recipes, assets and templates are in it, and are found."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from tiny_runs import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A directory with what the wheel of a copy of the source installs.

    pip builds it in an environment of its own, for which it gets setuptools from its index.
    """
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("entropy_rl", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    target = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--retries", "0", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *options, str(source)],
        capture_output=True,
        text=True,
    )
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip(f"pip needs an index, or PIP_FIND_LINKS, with setuptools: {done.stderr:.400}")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    return target


def run(installed, directory, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "entropy_rl.cli.main", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(installed)},
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


def test_a_recipe_is_found_by_name_without_a_checkout(installed, tmp_path):
    for given in ("countdown_grpo_entropy", "configs/countdown_grpo_entropy.yaml"):
        arguments = ["train", "--config", given, "--advantage.1.alpha", "0.5", "--print_config"]
        done = run(installed, tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert yaml.safe_load(done.stdout)["advantage"][1]["alpha"] == 0.5
    done = run(installed, tmp_path, "train", "--config", "countdown")
    assert done.returncode == 2 and "countdown_grpo_entropy" in done.stderr
