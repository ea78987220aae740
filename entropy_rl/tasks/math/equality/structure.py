"""Collections in answers: lists, sets, tuples and matrices as their parts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from entropy_rl.tasks.math.equality.latex import bracketed, read_chain, split_top
from entropy_rl.tasks.math.equality.plain_numbers import value_of


def squeeze(text: str) -> str:
    """The text of a tidied answer that is the same for equal texts and equal plain numbers."""
    return str(value_of(text))


def is_plain(*collections: tuple[str, list[str]]) -> bool:
    """Whether the parts are values or equations, with no relations or brackets open."""
    return (
        not any(
            re.search(r"[<>|:]|\\(?:le|ge|ne|in|mid|cup|cap|setminus|mathbb)(?![A-Za-z])", part)
            or (r"\pm" in part and len(parts) > 1)
            for _, parts in collections
            for part in parts
        )
        and len({tuple(_names(parts)) for _, parts in collections}) == 1
    )


def _names(parts: Sequence[str]) -> list[str]:
    return sorted(name for part in parts for name in map(squeeze, read_chain(part)[0]))


def read_parts(text: str) -> tuple[str, list[str]] | None:
    """The kind of brackets around a collection, and its parts; no kind for a list."""
    read = bracketed(text)
    if read is not None:
        opening, parts, closing = read
        if opening == r"\{" and closing == r"\}":
            return "{", parts
        if len(parts) > 1:
            return opening + closing, parts
    parts = [part for part in split_top(text, ",", ";", r"\lor", r"\land")]
    if len(parts) == 1 and (text.startswith(r"\pm") or re.search(r"[^\s(]\s*\\pm", text)):
        before, _, after = text.partition(r"\pm")
        if r"\pm" not in after and r"\mp" not in text and not re.search(r"[({\[]", before):
            return "", [f"{before}+{after}" if before else after.strip(), f"{before}-{after}"]
    names = [read_chain(part)[0] for part in parts]
    if len(parts) > 1 and all(len(name) == 1 for name in names):
        variables = {squeeze(name[0]) for name in names}
        if len(variables) == 1:  # x=1, x=2
            return "", [read_chain(part)[1] for part in parts]
    if len(parts) > 1 and len(names[0]) == 1 and not any(names[1:]):  # x=1, 2
        return "", [read_chain(parts[0])[1], *parts[1:]]
    return "", parts


_NAME = re.compile(r"(\\?[A-Za-z]+)(?:_(?:\w|\{\w+\}))?'*")


def read_named(parts: Sequence[str]) -> tuple[str, list[str]] | None:
    """The values of different variables: a tuple for x=3, y=4, a list for x_1=3, x_2=4."""
    chains = [read_chain(part) for part in parts]
    names = [_NAME.fullmatch(chain[0][0]) for chain in chains if len(chain[0]) == 1]
    if not 1 < len({name and name[0] for name in names}) == len(parts) or None in names:
        return None
    is_list = len({name[1] for name in names}) == 1
    return "" if is_list else "()", [value for _, value, _ in chains]


def distinct(collection: tuple[str, list[str]]) -> list[str]:
    kind, parts = collection
    return list({squeeze(part): part for part in parts}.values()) if kind == "{" else parts


_MATRIX = re.compile(
    r"(?:[(\[]\s*)?\\begin\s*\{([bpBvV]?matrix|array)\}(?:\{[lcr| ]+\})?(?P<body>.*)"
    r"\\end\s*\{\1\}(?:\s*[)\]])?",
    re.DOTALL,
)


def read_matrix(text: str) -> list[str] | None:
    """The entries of a matrix, with the ends of its rows."""
    match = _MATRIX.fullmatch(text)
    if match is None or match[1] in ("vmatrix", "Vmatrix") or r"\begin" in match["body"]:
        return None
    rows = [row.split("&") for row in match["body"].strip().removesuffix(r"\\").split(r"\\")]
    return [entry.strip() for row in rows for entry in (*row, "\\\\")][:-1]


def row_ends(entries: Sequence[str]) -> list[bool]:
    return [entry == r"\\" for entry in entries]


def read_vector(text: str) -> tuple[str, list[str]] | None:
    """A matrix of one row or one column as a tuple: its kind of brackets, and its entries."""
    entries = read_matrix(text)
    if entries is None:
        return None
    ends = [index for index, entry in enumerate(entries) if entry == r"\\"]
    values = [entry for entry in entries if entry != r"\\"]
    is_column = ends == list(range(1, len(entries), 2))
    return ("()", values) if len(values) > 1 and (not ends or is_column) else None
