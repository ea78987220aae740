r"""Final answers: the last \boxed{...}, and when two answers are the same.

Equal texts and plain numbers are decided here, the rest by math-verify. That is made for honest answers: what
a policy could be rewarded for without knowing the answer, and what would burn the deadline, is refused before
math-verify sees it. An answer whose text is that of the right one is never refused.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from entropy_rl.tasks.task import Verdict

MAX_BOXED = 300  # characters; the longest answer of MATH-500 has 159


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}.

    math-verify joins several boxed answers to a set, which makes `\boxed{41} wait, \boxed{42}` wrong.

    Args:
      text: A completion of any length; only its last box is looked at.

    Returns:
      The content; None where there is no box, or the last one is empty, not closed or longer than
      `MAX_BOXED` characters.
    """
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    end = _closing_brace(text[start : start + MAX_BOXED + 1])
    if end is None:
        return None
    content = text[start : start + end]
    return content if content.strip() else None


def canonical(answer: str) -> str:
    """A text that is equal for equal answers: for majority votes and for counting distinct answers.

    Two answers have the same one exactly where `compare_simple` calls them CORRECT. A number becomes a whole
    number or a fraction in lowest terms; anything else loses its typography.

    Args:
      answer: An answer, out of its box.

    Returns:
      The text. It is no LaTeX any more.
    """
    return str(_value(_tidy(answer)))


def compare_simple(gold: str, answer: str) -> Verdict | None:
    """Decides equal texts, plain numbers, and answers that are refused, without a process.

    Args:
      gold: The right answer.
      answer: The given one, out of its box.

    Returns:
      The verdict, or None where it takes more than this. That includes a number so close to the right one
      that it may be its rounding: math-verify rounds to 6 decimals, so that 0.333333 is 1/3.
    """
    gold, answer = _tidy(gold), _tidy(answer)
    a, b = _value(gold), _value(answer)
    if str(a) == str(b):
        return Verdict.CORRECT
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        whole = a.denominator == b.denominator == 1
        return Verdict.WRONG if whole or abs(a - b) > abs(a) * _ROUNDING else None
    return _refuse(gold, answer)


def check_equal(gold: str, answer: str) -> Verdict:
    """Compares two answers by math-verify. Runs in a worker of the pool, which alone limits its time.

    Args:
      gold: The right answer. Where math-verify cannot read it, only the same text is correct.
      answer: The given one, out of its box. `compare_simple` has left it open.

    Returns:
      CORRECT, WRONG, or UNPARSABLE where there is nothing to read.
    """
    gold, answer = _tidy(gold), _tidy(answer)
    names, value, rounded = _read_chain(answer)
    for name in names:
        # math-verify looks at the last part alone, so that 41 = 42 would be 42.
        if not (_is_name(name) or _same(value, name)):
            return Verdict.WRONG
    if not all(_rounds_to(value, text) for text in rounded):
        return Verdict.WRONG
    if names and _read_chain(gold)[0]:
        value = f"{names[0]}={value}"  # the right answer is an equation, too
    gold, value = _without_unit(gold), _without_unit(_tidy(value))
    verdict = compare_simple(gold, value)
    if verdict is not None:
        return verdict
    if _WORDS.fullmatch(gold) and _WORDS.fullmatch(value):
        # math-verify takes a word for a product of letters, which may be in any order.
        return Verdict.CORRECT if _letters(gold) == _letters(value) else Verdict.WRONG
    same = _same(_keep_variables(gold, gold), _keep_variables(value, gold))
    return Verdict.UNPARSABLE if same is None else Verdict.CORRECT if same else Verdict.WRONG


_ROUNDING = Fraction(1, 100_000)  # relative: 0.000001 is no rounding of 1/1048576


def _same(gold: str, answer: str) -> bool | None:
    """Whether math-verify calls them equal; None where it reads no answer."""
    parse, verify = _load()
    right, given = parse(gold), parse(answer)
    if not given:
        return None
    if not right:
        return False
    same = None if "%" in gold + answer else _compare_values(right[0], given[0])
    # The comparison is not symmetric: the right answer comes first.
    return verify(right, given) if same is None else same


@functools.cache
def _load() -> tuple[Callable, Callable]:
    """math-verify's parse and verify, without limits of time; the first call takes seconds."""
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    # It warns that it has no limit of time, once per module, and prints what it cannot parse.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    # As LaTeX or not at all: its other ways take the last number of any text that it cannot read.
    ways = [LatexExtractionConfig(boxed_match_priority=-1)]

    def read(text: str) -> list:
        return parse(f"${text}$", ways, extraction_mode="first_match", parsing_timeout=None)

    def compare(right: list, given: list) -> bool:
        return verify(right, given, timeout_seconds=None, allow_set_relation_comp=True)

    # What is imported and filled at first use costs no answer's time.
    for gold, answer in ((r"\sin^2 x+\cos^2 x", "1"), ("[0,1)", r"0\le x<1"), ("x", "abc")):
        compare(read(gold), read(answer))
    return read, compare


def _compare_values(gold: Any, given: Any) -> bool | None:
    """Compares two expressions where their variables have some values.

    It spares what is wrong a proof by `simplify`, which may take for ever. It does not confuse small numbers,
    where math-verify's 6 decimals make 2^{-30} the same as 0.0. And what it says does not depend on what
    sympy has in its caches, as math-verify's word on decimals in expressions does.

    Returns:
      False where the values differ, True for equal constants, None where it takes more than this.
    """
    from sympy import Expr, Rational, Symbol

    if not all(isinstance(side, Expr) and not isinstance(side, Symbol) for side in (gold, given)):
        return None  # a symbol may be a word
    # The same value for the same name: the symbols of the two sides may be of different kinds.
    variables = gold.free_symbols | given.free_symbols
    point = {x: Rational(zlib.crc32(x.name.encode()) % 1000 + 501, 1000) for x in variables}
    try:
        a, b = gold.evalf(subs=point), given.evalf(subs=point)
        if abs(a - b) > abs(a) * float(_ROUNDING) + 1e-15:
            return False
        return True if not variables and abs(a - b) < abs(a) * 1e-13 else None
    except MemoryError:
        raise
    except Exception:  # of any kind, by sympy: there is no value, so there is nothing to say
        return None


# --------------------------------------------------------------------------------------------- typography


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
def _tidy(text: str) -> str:
    r"""The same LaTeX without its typography: spaces, \left, \text{} around the whole, signs of Unicode."""
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
    if wrapper and _closing_brace(text[wrapper.end() :]) == len(text) - wrapper.end() - 1:
        return text[wrapper.end() : -1]
    return text


def _closing_brace(text: str) -> int | None:
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
def _value(tidy: str) -> Fraction | str:
    """A plain number as such; anything else as a text without spaces that is no LaTeX any more."""
    for pattern, by in _SQUEEZED:
        tidy = pattern.sub(by, tidy)
    if len(tidy) > _MAX_NUMBER:
        return tidy
    match = _DECIMAL.fullmatch(tidy)
    if match and (match["whole"] or match["decimals"] or match["repeated"]):
        decimals, repeated = match["decimals"] or "", match["repeated"]
        period = _PERIODS.fullmatch(decimals) if match["dots"] else None
        if period:
            decimals, repeated = period.groups()
        value = Fraction(int(re.sub("[, ]", "", match["whole"]) + decimals or "0"), 10 ** len(decimals))
        if repeated:
            value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(decimals))
        value *= Fraction(10) ** int(match["exponent"] or 0)
        return -value if match["sign"] else value
    match = _FRACTION.fullmatch(tidy)
    if match is None:
        return tidy
    whole = int(match["whole"] or 0)
    a, b = (int(match["a"]), int(match["b"])) if match["a"] else (int(match["c"]), int(match["d"]))
    if b == 0 or (match["whole"] and not 0 <= a < b):
        return tidy
    return (whole + Fraction(a, b)) * (-1 if match["sign"] else 1)


# -------------------------------------------------------------- refusals, before math-verify is asked


def _refuse(gold: str, answer: str) -> Verdict | None:
    """The verdict on an answer that math-verify is not asked about; None for all others."""
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in answer) or _is_endless(answer):
        return Verdict.UNPARSABLE
    value = _read_chain(answer)[1]
    new = set(_OPEN.findall(value)).union(_MISREAD.findall(answer)).difference(_COMMAND.findall(gold))
    if new or bool(_DOTS.search(gold)) != bool(_DOTS.search(value)):
        return Verdict.WRONG
    if _loses_maths(value) or _loses_maths(gold):
        return Verdict.WRONG
    for sign in (_BASE, _HALF_DAY):
        a, b = sign.search(gold), sign.search(value)
        if a and b and a[1].casefold() != b[1].casefold():
            return Verdict.WRONG
    return None


# A task that is repeated instead of solved: sympy would solve it.
_OPEN = re.compile(r"\\(?:i{0,3}nt|oint|sum|prod|lim|max|min|sup|gcd|lcm|b?mod|det|operatorname)(?![A-Za-z])")
# math-verify looks at nothing but the frame, takes \not= for =, and a backslash for no end.
_MISREAD = re.compile(r"\\(?:fbox|not)(?![A-Za-z])|\\$")
_COMMAND = re.compile(r"\\[A-Za-z]+|\\$")
_DOTS = re.compile(r"\\[lc]?dots(?![A-Za-z])|\.\.\.")  # math-verify deletes them
_BASE = re.compile(r"[0-9]\s*_\s*\{?([0-9]+)\}?$")  # math-verify ignores it
_HALF_DAY = re.compile(r"\b([ap])\.?\s?m\b", re.IGNORECASE)  # and this

_MAX_DEPTH = 10  # of brackets; the time to parse them grows exponentially
_MAX_EXPONENTS = 2  # of exponents in exponents, as in 2^{2^{n}}
_MAX_EXPONENT = 9999
_FACTORIAL = re.compile(
    r"[0-9]{5,}[)}\]\s]*!"
    r"|\^\s*\{?\s*[0-9]+\s*[)}\]][)}\]\s]*!"  # of a power
    r"|![)}\]\s]*!"  # of a factorial; math-verify takes n!! for it, too
)
_BINOMIAL = re.compile(r"binom\s*\{?\s*[0-9]{5,}\s*\}?\s*\{?\s*[0-9]{4,}")
_FLAT = str.maketrans({"(": "", "{": "", ")": " ", "}": " "})
_POWERS = re.compile(r"[0-9]*(?:\s*\^\s*-?[0-9]+!?)+")


def _is_endless(text: str) -> bool:
    """Whether it is nested deeper than any answer, or holds a number of more digits than any answer has."""
    nested = []  # the brackets around; True for those of an exponent
    for bracket in re.findall(r"\^\s*[({]|[(\[{)\]}]", text):
        if bracket[-1] in "([{":
            nested.append(bracket[0] == "^")
            if len(nested) > _MAX_DEPTH or sum(nested) > _MAX_EXPONENTS:
                return True
        elif nested:
            nested.pop()
    if _FACTORIAL.search(text) or _BINOMIAL.search(text):
        return True
    flat = text.replace("**", "^").translate(_FLAT)
    return any(_is_tower(run[0]) for run in _POWERS.finditer(flat))


def _is_tower(run: str) -> bool:
    """Whether an exponent in a ^ b ^ c ... is greater than `_MAX_EXPONENT`."""
    exponent = 1
    for part in reversed(run.split("^")[1:]):
        digits = part.strip(" -!")
        if len(digits) > 4 or ("!" in part and int(digits) > 7) or (int(digits) > 1 and exponent > 13):
            return True
        exponent = (math.factorial(int(digits)) if "!" in part else int(digits)) ** exponent
        if exponent > _MAX_EXPONENT:
            return True
    return False


_GROUP = r"\\(?:text[a-z]*|mbox|math(?:rm|it|bf))\s*\{"
_DROPPED = re.compile(_GROUP + r".*\}(?:\^[0-9]|\{\^[0-9]\})?$", re.DOTALL)  # by math-verify, as a unit
_UNIT = re.compile(rf"(?:{_GROUP}[^{{}}0-9,;]*\}}\s*(?:\^\s*[0-9]|\^\s*\{{-?[0-9]\}})?\s*)+")
_HEDGE = re.compile(r"\b(?:or|not|if|unless|except|maybe|perhaps|possibly|at (?:least|most))\b")


def _loses_maths(text: str) -> bool:
    r"""Whether math-verify would drop more than a unit: of 41\text{ or }\frac{1}{2}\text{ cm} it reads 41."""
    dropped = _DROPPED.search(text)
    if dropped is None or not text[: dropped.start()].strip():
        return False
    return not _UNIT.fullmatch(dropped[0]) or bool(_HEDGE.search(dropped[0]))


# -------------------------------------------------------------------------------------- reading an answer


_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[<>!]=|.", re.DOTALL)
_DEPTH = {"(": 1, "[": 1, "{": 1, r"\{": 1, r"\begin": 1, ")": -1, "]": -1, "}": -1, r"\}": -1, r"\end": -1}
_EQUAL = ("=", r"\equiv")
_ROUNDED = (r"\approx", r"\thickapprox", r"\simeq")
_NO_CHAIN = (
    ",", ";", "<", ">", "<=", ">=", "!=", r"\lt", r"\gt", r"\le", r"\leq", r"\leqslant", r"\ge", r"\geq",
    r"\geqslant", r"\ne", r"\neq", r"\in",
)  # fmt: skip
_SYMBOL = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\([^()]*\))?")
_LETTER = re.compile(r"[A-Za-z_]")
_ARITHMETIC = re.compile(r"\\(?:frac|cdot|times|div|sqrt|pi|binom|dbinom)(?![A-Za-z])")


def _read_chain(text: str) -> tuple[list[str], str, list[str]]:
    r"""Takes `x = 84/2 = 42 \approx 40` apart.

    Returns:
      What stands before the last equals sign, the value, and what follows it as rounded. The value is all of
      the text where it is no chain but, say, a list of equations or an inequality.
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
    if len(exact) == 1 and rounded and _SYMBOL.fullmatch(exact[0]) and exact[0] not in ("e", r"\pi"):
        exact.append(rounded.pop(0))
    return exact[:-1], exact[-1], rounded


def _is_name(text: str) -> bool:
    """Whether something like x, f(3) or the area of ABC, which a value may be given to."""
    return _LETTER.search(_ARITHMETIC.sub("", text)) is not None


def _rounds_to(value: str, rounded: str) -> bool:
    """False for a number that differs from the value in more than its last decimal."""
    a, b = _value(value), _value(rounded)
    if isinstance(a, str) or isinstance(b, str):
        return True
    return abs(a - b) < Fraction(1, 10 ** len(rounded.partition(".")[2]))


# Those that math-verify does not know, and those that it takes for variables.
_UNIT_WORD = re.compile(
    r"(?:cent|centi?met(?:er|re)|cm|cubic|day|degree|dollar|euro|feet|foot|ft|g|gram|hour|inch|inche|item|kg"
    r"|kilogram|kilomet(?:er|re)|km|m|met(?:er|re)|mile|minute|ml|mm|month|mph|people|person|point|pound"
    r"|radian|second|sq|square|student|time|unit|way|week|yard|year)s?"
)
_MEASURE = re.compile(
    r"(?:[€£¥]|USD )? *(?P<number>.*?[0-9}])"
    r"(?: *\^ *\\circ| ?[€£¥]|(?P<space> *)(?P<words>[A-Za-z][A-Za-z. ]*)(?:\^\{?[23]\}?)?)?"
)
_UNIT_TAIL = re.compile(rf"(?<=\S)\s*{_UNIT.pattern}$")


def _without_unit(text: str) -> str:
    """The text without a unit at its end, in words or signs."""
    tail = _UNIT_TAIL.search(text)
    if tail:
        text = text[: tail.start()]
    match = _MEASURE.fullmatch(text)
    if match is None or isinstance(_value(match["number"]), str):
        return text
    words = (match["words"] or "").replace(".", " ").split()
    if not all(map(_UNIT_WORD.fullmatch, words)) or (match["space"] == "" and len(match["words"]) == 1):
        return text  # 2m is a product
    return match["number"]


_WORDS = re.compile(r"(?=(?:[^A-Za-z]*[A-Za-z]){3})[A-Za-z .'-]+")  # two letters may be two variables


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text)).casefold()


def _keep_variables(text: str, gold: str) -> str:
    """Puts braces around the variables at the end, which math-verify may take for a unit: 2t would be 2."""
    end = re.search(r"(?<![A-Za-z\\])[a-hj-z]{1,2}$", text)
    if end and set(end[0]) <= set(re.sub(r"\\[A-Za-z]+", "", gold)):
        return f"{text[: end.start()]}{{{end[0]}}}"
    return text
