"""Tools for tests, as a user would write them: annotated functions with docstrings."""

import functools

from environments_for_tests import fail


def repeat(text: str, times: int = 2) -> str:
    """Repeat a text.

    Args:
      text: What is repeated.
      times: How often.
    """
    return text * times


def hostile(action: str) -> str:
    """Do what the action says."""
    fail(action)
    return "\ud800" if action == "surrogate" else action * 100_000


def undocumented(text: str) -> str:
    return text


def listed(texts: list[str]) -> str:
    """Take a list."""
    return str(texts)


async def waits(text: str) -> str:
    """Wait."""
    return text


def yields(text: str):
    """Yield."""
    yield text


class Lookup:
    """Look a key up.

    Args:
      key: What is looked up.
    """

    def __init__(self, found: str = "nothing"):
        self.found = found

    def __call__(self, key: str) -> str:
        return f"{key}: {self.found}"


class Waits(Lookup):
    """Wait."""

    async def __call__(self, key: str) -> str:
        return key


lookup, async_lookup, shouting = Lookup("gold"), Waits(), functools.partial(repeat, times=3)
