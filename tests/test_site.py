"""The documentation site: every page is in its navigation, and it builds without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import entropy_rl as er
from entropy_rl.cli.help import config_sections
from entropy_rl.cli.main import _VERBS
from entropy_rl.config.registry import import_object

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
CLICKS = {"guides/index.html": ["reward", "one GPU", "resume"]}  # what the page of a tab leads to


def entries(nav):
    """The pages of a navigation, in order."""
    for entry in nav:
        value = entry if isinstance(entry, str) else next(iter(entry.values()))
        yield from [value] if isinstance(value, str) else entries(value)


def test_the_navigation_lists_every_page_of_the_docs_once():
    listed = list(entries(CONFIG["nav"]))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(listed) and len(listed) == len(set(listed))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for library in ("material", "mkdocstrings_handlers.python", "latex2mathml"):
        pytest.importorskip(library, reason="the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(out)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.html")}


def test_the_site_builds_without_a_warning_and_loads_nothing_from_the_network(site):
    assert len(site) > 40
    for name, text in site.items():
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', text)
        assert loaded == [], name


def test_no_formula_of_the_site_is_left_as_tex(site):
    assert any("<math " in text for text in site.values())
    assert [name for name, text in site.items() if 'class="arithmatex"' in text] == []


def test_the_reference_has_every_public_name_and_the_settings_of_every_verb(site):
    pages = {name: text for name, text in site.items() if name.startswith("reference/")}
    anchors = set(re.findall(r'id="entropy_rl\.([\w.]+)"', "".join(pages.values())))
    named = {anchor.rpartition(".")[2] for anchor in anchors}
    modules = {name.split(".")[1] for name in pages if name.startswith("reference/api/entropy_rl.")}
    assert set(er.__all__) - {"__version__"} <= named | modules
    for verb, (cls, _, _) in _VERBS.items():
        text = pages[f"reference/settings/{verb.replace(' ', '-')}.html"]
        for section in config_sections(import_object("verb", cls)):
            assert all(f"<code>{s.path}</code>" in text for s in section.settings)


def test_a_stranger_finds_rewards_one_gpu_and_resumption_in_two_clicks(site):
    for page, wanted in CLICKS.items():
        assert f'href="{page}"' in site["index.html"]
        rows = re.findall(r"<td>(.*?)</td>\s*<td>(.*?)</td>", site[page], flags=re.S)
        for text in wanted:
            assert any(text in left and "href=" in right for left, right in rows), text
