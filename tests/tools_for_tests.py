"""Tools for tests, as a user would write them: annotated functions with docstrings."""

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
