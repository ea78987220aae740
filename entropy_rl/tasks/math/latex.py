"""LaTeX of answers: its typography removed, plain numbers, and chains of equations taken apart."""

from __future__ import annotations

import functools
import re
import unicodedata
from fractions import Fraction


def _fraction(sign: str) -> str:
    value = Fraction(unicodedata.numeric(sign)).limit_denominator(10)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


_SIGNS = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
    | {sign: _fraction(sign) for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
    | dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", "")  # of no width
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-")
    | {
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ",  # noqa: RUF001
        "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ",  # noqa: RUF001
        "⁄": "/", "∕": "/", "…": r"\ldots ", "θ": r"\theta ", "。": ".", "、": ",",  # noqa: RUF001
    }
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

# math-verify takes 2(3) for 2 + 3. The 2 of \log_2(3) is no factor.
_PRODUCT = r"(?<=[0-9)])(?<![_^][0-9])(?<!_[0-9][0-9])\s*\((?=-?[0-9.]+\))"
_TYPOGRAPHY = [
    (re.compile(pattern), by)
    for pattern, by in [
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:display|text|script)style(?![A-Za-z])|\\(?:no)?limits(?![A-Za-z])", " "),
        (r"\\(?:text)?color\s*\{[A-Za-z]+\}", ""),
        (r"\\?\$|(?<!\\)\\!", ""),
        (r"\{\s*,\s*\}", ","),
        (r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z]))|(?<!\\)~", " "),
        (r"(?<!\\)%", r"\\%"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9])", r"\\sqrt{\1}"),
        (r"\\(?:text)?degree(?![A-Za-z])|(?:\{\})?\^\s*\{\s*\\circ\s*\}", r"^\\circ "),
        (r"\\(?:mathrm|text|mathit)\s*\{([eij])\}", r" \1"),  # not to be dropped as units
        (r"\\(?:mathbf|boldsymbol|bm)\s*\{([A-Za-z])\}", r" \1"),
        (r",?\s*\\text\s*\{\s*(?:and|or)\s*\}|,?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])", ", "),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (_PRODUCT, r"\\cdot ("),
        (r":\s*=|={2,}", "="),
    ]
]
_WRAPPER = re.compile(
    r"(?:\\(?:text(?:bf|it|rm|normal|tt|sf)?|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm|mbox)\s*)?\{"
)
_INFIX = re.compile(r"\\(?:choose|over|atop)(?![A-Za-z])")  # needs the braces around
_LEAD = re.compile(r"(?:\+|=|\\approx(?![A-Za-z]))\s*")


@functools.lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    r"""The same LaTeX without its typography: spaces, \left, \text{} around the whole, signs of
    Unicode."""
    if not text.isascii():
        text = text.translate(_SIGNS)
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
        text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda run: f"_{{{run[0].translate(_LOWERED)}}}", text)
        text = re.sub("√([0-9]+|[A-Za-z])", r"\\sqrt{\1}", text).replace("√", r"\sqrt ")
    for pattern, by in _TYPOGRAPHY:
        text = pattern.sub(by, text)
    text = " ".join(text.split())
    while True:
        inner = _unwrap(text)
        if inner == text:
            return text
        text = inner.strip()


def _unwrap(text: str) -> str:
    if text.endswith(".") and not text.endswith(".."):
        return text[:-1]
    lead = _LEAD.match(text)
    if lead:
        return text[lead.end() :]
    for before, after in ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**")):
        if text.startswith(before) and text.endswith(after) and len(text) > 4:
            return text[2:-2]
    wrapper = None if _INFIX.search(text) else _WRAPPER.match(text)
    if wrapper and closing_brace(text[wrapper.end() :]) == len(text) - wrapper.end() - 1:
        return text[wrapper.end() : -1]
    return text


def closing_brace(text: str) -> int | None:
    """The place of the brace that closes a group whose content begins with `text`."""
    depth = 1
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)  # an escaped brace counts nothing
        if depth == 0:
            return token.start()
    return None


_SQUEEZED = [
    (re.compile(pattern), by)
    for pattern, by in [
        (r"(?<=[0-9]), (?=[0-9]{3}(?![0-9]))", ";"),  # "1, 234" are two numbers
        (r"(?<![0-9]) | (?![0-9])", ""),  # "1 2" is not 12
        (r"([\^_])\{(\w)\}", r"\1\2"),
        (r"\\([lgn]e)q(?![A-Za-z])", r"\\\1"),
        (r"^\(([A-Z])\)$", r"\1"),  # a choice
    ]
]
_DECIMAL = re.compile(
    r"(?P<sign>-?)(?P<whole>[0-9]+|[0-9]{1,3}(?:[, ][0-9]{3})+|)"
    r"(?:\.(?P<decimals>[0-9]*)(?:\\(?:overline|bar|dot)\{(?P<repeated>[0-9]+)\}|(?P<dots>\\l?dots|\.\.\.)?))?"
    r"(?:(?:[eE]|(?:\\times|\\cdot|\*)10\^\{?)(?P<exponent>-?[0-9]{1,3})\}?)?"
)
_FRACTION = re.compile(
    r"(?P<sign>-?)(?:(?P<whole>[0-9]+) ?)??"
    r"(?:\\frac\{(?P<a>-?[0-9]+)\}\{(?P<b>-?[0-9]+)\}|(?P<c>[0-9]+)/(?P<d>[0-9]+))"
)
_PERIODS = re.compile(r"([0-9]*?)([0-9]{1,6}?)\2{2,}")
_MAX_NUMBER = 100  # characters; longer ones are no plain numbers


@functools.lru_cache(maxsize=4096)
def value_of(text: str) -> Fraction | str:
    """A plain number as such; anything else as a text without spaces that is no LaTeX any more.

    Args:
      text: Tidied LaTeX.
    """
    for pattern, by in _SQUEEZED:
        text = pattern.sub(by, text)
    if len(text) > _MAX_NUMBER:
        return text
    match = _DECIMAL.fullmatch(text)
    if match and (match["whole"] or match["decimals"] or match["repeated"]):
        decimals, repeated = match["decimals"] or "", match["repeated"]
        period = _PERIODS.fullmatch(decimals) if match["dots"] else None
        if period:
            decimals, repeated = period.groups()
        value = Fraction(
            int(re.sub("[, ]", "", match["whole"]) + decimals or "0"), 10 ** len(decimals)
        )
        if repeated:
            value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(decimals))
        value *= Fraction(10) ** int(match["exponent"] or 0)
        return -value if match["sign"] else value
    match = _FRACTION.fullmatch(text)
    if match is None:
        return text
    whole = int(match["whole"] or 0)
    a, b = (int(match["a"]), int(match["b"])) if match["a"] else (int(match["c"]), int(match["d"]))
    if b == 0 or (match["whole"] and not 0 <= a < b):
        return text
    return (whole + Fraction(a, b)) * (-1 if match["sign"] else 1)


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
    ",", ";", "<", ">", "<=", ">=", "!=", r"\lt", r"\gt", r"\le", r"\leq", r"\leqslant", r"\ge",
    r"\geq", r"\geqslant", r"\ne", r"\neq", r"\in",
)  # fmt: skip
_SYMBOL = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\([^()]*\))?")
_LETTER = re.compile(r"[A-Za-z]")
_NOT_OF_A_NAME = [
    (re.compile(pattern), by)
    for pattern, by in [
        (r"_(?:\{[^{}]*\}|\w)|\^(?:\{[0-9a-z]\}|[0-9a-z])|\[[0-9]\]", ""),  # x_1, x^2, a third root
        (r"(?<=[A-Za-z])\([^()]*\)", ""),  # of a function
        (r"\((?:\s*[A-Za-z]\s*,)+\s*[A-Za-z]\s*\)", "x"),  # (x, y)
        (
            r"\\(?:frac|cdot|times|div|sqrt|pi|d?binom)(?![A-Za-z])",
            " ",
        ),  # arithmetic alone is no name
    ]
]
_NO_NAME = re.compile(
    r"[0-9,;]|\b(?:or|and|if|not|unless|except)\b|\\(?:to|q?quad|i(?:mplies|ff)|(?:Long)?(?:left)?[Rr]ightarrow)\b"
)


def read_chain(text: str) -> tuple[list[str], str, list[str]]:
    r"""Takes `x = 84/2 = 42 \approx 40` apart.

    Returns:
      What stands before the last equals sign, the value, and what follows it as rounded. The value
      is all of the text where it is no chain but, say, a list of equations or an inequality.
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
    """Whether something like x, f(3), a+b, x^2+y^2 or the area of ABC, which a value may be given
    to.

    A number beside a variable makes it an equation that is not solved, and an `or` a second answer.
    """
    for pattern, by in _NOT_OF_A_NAME:
        text = pattern.sub(by, text)
    return bool(_LETTER.search(text)) and not _NO_NAME.search(text)


def rounds_to(value: str, rounded: str) -> bool:
    """False for a number that differs from the value in more than its last decimal."""
    a, b = value_of(value), value_of(rounded)
    if isinstance(a, str) or isinstance(b, str):
        return True
    return abs(a - b) < Fraction(1, 10 ** len(rounded.partition(".")[2]))


# Those that math-verify does not know, and those that it takes for variables.
