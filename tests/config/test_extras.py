"""The command that an error gives for a missing package works wherever this one came from."""

import re
import tomllib
from importlib import metadata

import pytest
from tiny_runs import ROOT

from entropy_rl.config.extras import install_command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requires(name):
    assert name == "entropy_rl"
    rows = [f"{r}; extra == '{extra}'" for extra, rs in EXTRAS.items() for r in rs]
    return [*PROJECT["dependencies"], *rows]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_packages_of_an_extra_are_named_and_never_this_one(extra, monkeypatch):
    monkeypatch.setattr(metadata, "requires", requires)
    command = install_command(extra)
    assert command.startswith("pip install ") and "entropy" not in command
    assert all(requirement in command for requirement in EXTRAS[extra])


def test_without_metadata_it_is_the_command_of_a_checkout(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert install_command("report") == "pip install -e '.[report]'"


BY_NAME = re.compile(r"pip install[^`\n]*\bentropy[_-]rl(?:\[|\b(?![./]))")


def test_no_text_of_the_project_tells_to_install_this_package_by_name():
    # Its name is on no index, where anybody may register it.
    kinds = {".py", ".md", ".yaml", ".yml", ".sh", ".toml", ".ipynb"}
    folders = ("entropy_rl", "docs", "configs", "launch", "notebooks", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    for path in [*files, *ROOT.glob("*.*")]:
        if path.suffix in kinds and path.is_file():
            assert BY_NAME.findall(path.read_text()) == [], path
