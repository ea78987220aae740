"""The structure of LaTeX answers: groups, lists at the top level, and chains of equations."""

from __future__ import annotations

import re


def closing_brace(text: str) -> int | None:
    """The index of the brace that closes a group whose content begins with `text`."""
    depth = 1
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)  # escaped braces do not count
        if depth == 0:
            return token.start()
    return None


def split_top(text: str, *separators: str) -> list[str]:
    """Split a text at separators outside of all brackets.

    Args:
      text: Tidied LaTeX.
      *separators: Tokens, such as a comma.

    Returns:
      The stripped parts; one part if brackets are not balanced.
    """
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += _DEPTH.get(token, 0)
        if depth == 0 and token in separators:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts] if depth == 0 else [text]


def bracketed(text: str) -> tuple[str, list[str], str] | None:
    r"""Split a tuple, an interval or a set.

    Args:
      text: Tidied LaTeX.

    Returns:
      The opening bracket, the parts and the closing bracket; None if the whole text is not in one
      pair of brackets.
    """
    match = _BRACKETED.fullmatch(text)
    if match is None:
        return None
    depth, inner = 0, match["inner"]
    for token in _TOKEN.findall(inner):
        depth += _DEPTH.get(token, 0)
        if depth < 0:
            return None
    if depth:
        return None
    return match["open"], split_top(inner, ",", r"\land", r"\lor"), match["close"]


_BRACKETED = re.compile(
    r"(?P<open>[(\[]|\\\{|\\langle(?![A-Za-z]))"
    r"(?P<inner>.*)(?P<close>[)\]]|\\\}|\\rangle)",
    re.DOTALL,
)

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[<>!]=|.", re.DOTALL)
_DEPTH = {
    "(": 1,
    "[": 1,
    "{": 1,
    r"\{": 1,
    r"\begin": 1,
    ")": -1,
    "]": -1,
    "}": -1,
    r"\}": -1,
    r"\end": -1,
}
_EQUAL = ("=", r"\equiv")
_ROUNDED = (r"\approx", r"\thickapprox", r"\simeq")
_NO_CHAIN = (
    ",", ";", "<", ">", "<=", ">=", "!=", r"\lt", r"\gt", r"\le", r"\ge", r"\ne", r"\in", r"\lor",
    r"\land",
)  # fmt: skip
_SYMBOL = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\([^()]*\))?")
_LETTER = re.compile(r"[A-Za-z]")
_NOT_OF_A_NAME = [
    (re.compile(pattern), by)
    for pattern, by in [
        (
            r"_(?:\{[^{}]*\}|\w)|\^(?:\{(?:[0-9a-z]|-1(?=\}\())\}|[0-9a-z])|\[[0-9]\]",
            "",
        ),  # x_1, x^2, a third root
        (r"(?<=[A-Za-z])(?:\([^()]*\)|\[[^\[\]]*\])", ""),  # of a function
        (r"\((?:\s*[A-Za-z]\s*,)+\s*[A-Za-z]\s*\)", "x"),  # (x, y)
        (
            r"\\(?:frac|cdot|times|div|sqrt|pi|d?binom)(?![A-Za-z])",
            " ",
        ),  # arithmetic alone is no name
    ]
]
_NO_NAME = re.compile(
    r"[0-9,;=<>]|\b(?:or|and|if|not|unless|except)\b|\\(?:to|q?quad|i(?:mplies|ff)|(?:Long)?(?:left)?[Rr]ightarrow)\b"
)


def read_chain(text: str) -> tuple[list[str], str, list[str]]:
    r"""Split a chain of equations such as `x = 84/2 = 42 \approx 40`.

    Returns:
      The parts before the last equals sign, the value, and the rounded values after it. The value
      is the whole text if it is not a chain, such as a list of equations or an inequality.
    """
    tokens = _TOKEN.findall(text)
    closed = sum(_DEPTH.get(token, 0) for token in tokens) == 0
    depth, exact, rounded = 0, [""], []
    parts = exact
    for token in tokens:
        depth += _DEPTH.get(token, 0)
        if depth and closed:
            parts[-1] += token
        elif token in _NO_CHAIN:
            return [], text, []
        elif token in _ROUNDED:
            parts = rounded
            parts.append("")
        elif token in _EQUAL:
            parts.append("")
        else:
            parts[-1] += token
    exact, rounded = [part.strip() for part in exact], [part.strip() for part in rounded]
    if (
        len(exact) == 1
        and rounded
        and _SYMBOL.fullmatch(exact[0])
        and exact[0] not in ("e", r"\pi")
    ):
        exact.append(rounded.pop(0))
    return exact[:-1], exact[-1], rounded


def is_name(text: str) -> bool:
    """Whether a value can be assigned to it: x, f(3), a+b, x^2+y^2 or the area of ABC.

    A number next to a variable makes an unsolved equation, an `or` a second answer.
    """
    for pattern, by in _NOT_OF_A_NAME:
        text = pattern.sub(by, text)
    return bool(_LETTER.search(text)) and not _NO_NAME.search(text)
