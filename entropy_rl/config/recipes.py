"""Recipes: config files that ship with the package, found by name."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from entropy_rl.config.checks import shown

DIRECTORY = Path(__file__).parents[1] / "recipes"
# Recipes whose names an error does not list one by one.
_FAMILIES = ("qwen2_5_", "study/")


def recipe_names() -> list[str]:
    """Return the names of all recipes, such as `countdown_grpo` and `study/tiny`."""
    files = DIRECTORY.rglob("*.yaml")
    return sorted(file.relative_to(DIRECTORY).with_suffix("").as_posix() for file in files)


def find_config(given: str) -> Path:
    """Find the config file that a path or the name of a recipe stands for.

    A file of that name comes first, and a directory of that name, such as that of a run, last. The
    name of a recipe may end in `.yaml`, and may begin with `configs/`, the directory of the recipes
    in a checkout, so that the commands of the documentation also work outside of one.

    Args:
      given: The path or the name.

    Raises:
      ValueError: If there is neither; the line has the names of recipes.
    """
    if not given:
        raise ValueError("--config: must be a file or the name of a recipe, got ''")
    path = Path(os.path.expanduser(given))
    names = recipe_names()
    name = given.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    try:
        if os.path.lexists(path) and not (name in names and path.is_dir()):
            return path
    except ValueError:  # an embedded null byte, which the reader of the file refuses
        return path
    if name in names:
        return DIRECTORY / f"{name}.yaml"
    near = difflib.get_close_matches(name[:100], names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    listed = [name for name in names if not name.startswith(_FAMILIES)]
    listed += [f"{family}NAME" for family in _FAMILIES]
    raise ValueError(
        f"--config: must be a file or one of the recipes {', '.join(listed)}, "
        f"got {shown(given)}{hint}"
    )
