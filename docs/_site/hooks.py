"""MkDocs hooks: pages made from the package and from files outside of docs/, and formulas.

The reference is generated: settings from the config dataclasses, recipes from `configs/`, the API
from the docstrings of what each public namespace lists. README, CHANGELOG and the like become
pages, so that each text exists once; links to them and to recipes are rewritten.
"""

import html
import importlib
import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import entropy_rl
from entropy_rl.cli.help import config_sections
from entropy_rl.cli.main import _VERBS
from entropy_rl.config.registry import import_object

ROOT = Path(__file__).parents[2]
# File of the repository -> its page.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "entropy_rl/assets/countdown/README.md": "countdown-model.md",
    "notebooks/quickstart.ipynb": "notebooks/quickstart.md",
    "notebooks/analysis.ipynb": "notebooks/analysis.md",
}
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
API = "reference/api"
SETTINGS = "reference/settings"


def namespaces() -> list[ModuleType]:
    """Return the package and its public namespaces."""
    found = [getattr(entropy_rl, name) for name in entropy_rl.__all__]
    return [entropy_rl, *(value for value in found if inspect.ismodule(value))]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for each verb and each namespace into the navigation."""
    generated = {
        f"{API}/*": {"API": [{m.__name__: f"{API}/{m.__name__}.md"} for m in namespaces()]},
        f"{SETTINGS}/*": {"Settings": [{verb: _settings_page(verb)} for verb in _VERBS]},
    }
    for section in config.nav:
        (entries,) = section.values()
        if isinstance(entries, list):
            entries[:] = [generated.get(str(entry), entry) for entry in entries]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {page: _text(ROOT / source) for source, page in OUTSIDE.items()}
    pages["reference/recipes.md"] = recipes_page()
    pages |= {_settings_page(verb): settings_page(verb) for verb in _VERBS}
    pages |= {f"{API}/{module.__name__}.md": api_page(module) for module in namespaces()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def _text(source: Path) -> str:
    return (
        notebook_page(source) if source.suffix == ".ipynb" else source.read_text(encoding="utf-8")
    )


def notebook_page(path: Path) -> str:
    """Return a page with the cells of a notebook and their outputs; pictures are in the page."""
    lines = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        lines += [source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```", ""]
        for output in cell.get("outputs", ()):
            if picture := output.get("data", {}).get("image/png"):
                source = f"data:image/png;base64,{''.join(picture.split())}"
                lines += [f'<img alt="The plot of this cell" src="{source}">', ""]
            elif text := "".join(output.get("text", "")).rstrip():
                lines += [f"```text\n{text}\n```", ""]
    return "\n".join(lines)


def _settings_page(verb: str) -> str:
    return f"{SETTINGS}/{verb.replace(' ', '-')}.md"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between files of the repository to links between pages."""
    source = next((s for s, p in OUTSIDE.items() if p == page.file.src_uri), None)
    folder = posixpath.dirname(source or f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        target, hash_, anchor = match[1].partition("#")
        if not target or ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        return f"]({_page_of(path, page)}{hash_}{anchor})"

    parts = re.split(r"(```.*?```)", markdown, flags=re.S)
    return "".join(p if p.startswith("```") else re.sub(r"\]\(([^)\s]+)\)", link, p) for p in parts)


def _page_of(path: str, page: Page) -> str:
    """Return the link from a page to the page of a file of the repository."""
    if path in OUTSIDE:
        target = OUTSIDE[path]
    elif path.startswith("docs/"):
        target = path.removeprefix("docs/")
    elif ROOT / path in RECIPES:
        target = f"reference/recipes.md#{Path(path).stem}"
    else:
        raise PluginError(f"{page.file.src_uri}: a link leads to {path}, which has no page")
    return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")


def on_page_content(html_: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn formulas into MathML, which browsers render without a script or a font to fetch."""
    marked = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    display = {"span": "inline", "div": "block"}
    return re.sub(
        marked, lambda m: convert(html.unescape(m[2]), display=display[m[1]]), html_, flags=re.S
    )


def settings_page(verb: str) -> str:
    """Return a page with the settings of a verb."""
    cls, _, about = _VERBS[verb]
    lines = [f"# {verb}", "", f"`entropy-rl {verb}`: {about}.", ""]
    link = "[configs and options](../../command-line.md#configs-and-options)"
    lines += [f"How to set them: {link}.", ""]
    for path, document, settings in config_sections(import_object(verb, cls)):
        if path:
            lines += [f"## {path}", "", _plain(document), ""]
        if settings:
            lines += ["| setting | meaning |", "| --- | --- |"]
        for name, type_, meaning, default in settings:
            code = _plain(type_.replace("|", " or "))
            lines += [f"| `{name}`<br>{code} | {_plain(meaning)} {_plain(default)} |"]
        lines += [""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Escape a text for a cell of a table; code between backticks stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    escaped = [
        p if p.startswith("`") else re.sub(r"([\\*_<>\[\]$])", r"\\\1", p) for p in parts if p
    ]
    return "".join(escaped).replace("|", "\\|")


def recipes_page() -> str:
    """Return a page with the text of every recipe."""
    lines = [
        "# Recipes",
        "",
        "The configs that ship, in `configs/` of a checkout and in the installed package. "
        "`--config` takes their names.",
    ]
    for path in RECIPES:
        lines += ["", f"## {path.stem}", "", f"`{path.relative_to(ROOT)}`", ""]
        lines += ["```yaml", path.read_text().rstrip(), "```"]
    return "\n".join([*lines, ""])


def api_page(module: ModuleType) -> str:
    """Return a page with the docstrings of what a namespace lists.

    A name that a namespace and the package list has its entry on the page of the namespace.
    """
    lines = [f"# {module.__name__}", "", inspect.cleandoc(module.__doc__ or "")]
    paths = list(_listed(module))
    if module is entropy_rl:
        elsewhere = {path for other in namespaces()[1:] for path in _listed(other)}
        names = [f"[`{p.rpartition('.')[2]}`][{p}]" for p in paths if p in elsewhere]
        lines += ["", f"Also in a namespace: {', '.join(names)}."]
        paths = [path for path in paths if path not in elsewhere]
    for path in paths:
        lines += ["", f"::: {path}"]
    return "\n".join([*lines, ""])


def _listed(module: ModuleType) -> Iterator[str]:
    """Return the dotted path of the definition of each public function and class."""
    for name in sorted(getattr(module, "__all__", vars(module)), key=str.lower):
        value = getattr(module, name)
        home = getattr(value, "__module__", None) or ""
        if name.startswith("_") or not callable(value) or not home.startswith("entropy_rl"):
            continue
        if getattr(importlib.import_module(home), value.__qualname__, None) is value:
            yield f"{home}.{value.__qualname__}"
