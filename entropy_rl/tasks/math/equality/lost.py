"""What the parser drops of an answer: primes, subscripts of numbers, inverses, words, bars."""

from __future__ import annotations

import re
from collections import Counter

from entropy_rl.tasks.math.equality.units import read_quantity

_PRIMES = re.compile(r"([A-Za-z0-9)\]}])('+)")
# The parser takes f^{-1}(x) for the reciprocal of f(x); x^{-1}(x+1) is a product.
_INVERSES = re.compile(
    r"(\\(?:var)?(?:phi|psi|sigma)|\\(?:Phi|Psi)|(?<![A-Za-z])[A-Za-z])"
    r"\s*\^\s*\{\s*-\s*1\s*\}(?=\s*\([^()+-]*\))"
)
_SUBSCRIPTS = re.compile(r"([0-9])\s*_\s*\{?\s*(\w+)\s*\}?")
_TEXTS = re.compile(r"\\text\s*\{([^{}]*)\}")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}(?![A-Za-z])")


def lost_parts(text: str) -> Counter[str]:
    """Count the parts of a tidied answer, without its unit, that the parser does not read."""
    quantity = read_quantity(text)
    text = quantity.value
    lost = Counter(f"{match[1]}{match[2]}" for match in _PRIMES.finditer(text))
    lost.update(f"{name}^-1" for name in _INVERSES.findall(text))
    base = re.fullmatch(r"[0-9]+_\{?([0-9]+)\}?", text.replace(" ", ""))
    if not (base and 2 <= int(base[1]) <= 36):
        lost.update(f"_{match[2]}" for match in _SUBSCRIPTS.finditer(text))
    for words in _TEXTS.findall(text):
        lost.update(re.findall(r"\w+", words.casefold()))
    bare = re.sub(r"\\(?:begin|end)\s*\{[a-zA-Z*]+\}|\\[A-Za-z]+", " ", _TEXTS.sub(" ", text))
    lost.update(word.casefold() for word in _PROSE.findall(bare) if is_prose(word))
    if text.count("|") % 2:
        lost["|"] += 1
    return lost


def is_prose(word: str) -> bool:
    """Whether letters are a word rather than a product of variables, such as `abc` or `ABC`."""
    return not word.isupper() and len(word) > 3 and bool(set(word.casefold()) & set("aeiou"))
