"""How to install the optional packages of an extra of pyproject.toml."""

from __future__ import annotations

import re
import shlex
from importlib import metadata

_OF_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")


def install_command(extra: str) -> str:
    """Return the `pip install` of what an extra requires.

    It names those packages and not `entropy_rl[extra]`, because this package is on no index: pip
    would look there for the name wherever the package is not installed.

    Args:
      extra: Name of the extra.
    """
    try:
        requirements = metadata.requires("entropy_rl") or []
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        requirements = []
    found = []
    for requirement in requirements:
        package, _, marker = requirement.partition(";")
        if (match := _OF_EXTRA.search(marker)) and match[1] == extra:
            found.append(package.strip())
    return shlex.join(["pip", "install", *(found or ["-e", f".[{extra}]"])])
