"""Units of measured answers: a number, then words or unit symbols with powers.

A unit is recognized by its form, not by a list: words behind a number, or symbols of the SI and
customary systems, in products and quotients. Numerals (`thousand`, `dozen`) change the number.
Words that hedge, negate or compute are no units.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

Factor = tuple[str, int]  # a word or symbol, and its power


class Quantity(NamedTuple):
    """A number or expression with its unit."""

    value: str
    scale: int  # of numerals behind the value: 1000 for `3 thousand`
    unit: tuple[Factor, ...]
    percent: bool


SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
}  # fmt: skip
# Closed classes of words that are no units: a number with them is not that number.
_NO_UNIT_WORDS = """
or and not if unless except maybe perhaps possibly but than more less least most fewer at
greater over under above below between about around approximately is are was were be been has
have had does do wrong correct false true to no none neither nor either when where while plus
minus times divided multiplied by squared cubed factorial choose mod modulo root power zero one
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety half halves
third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth
eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths score gross pair
pairs double twice triple negative base remainder
"""
_NO_UNIT = frozenset(_NO_UNIT_WORDS.split())
_NO_UNIT_SIGNS = frozenset("或和与不非至到以上下左右约多少于零一二三四五六七八九十两半倍是对错")
_FILLERS = frozenset(("of", "the", "a", "an", "each", "in", "total", "per", "apiece", "altogether"))
_ANY = frozenset(("unit", "item", "thing"))  # compatible with every unit
_PREFIXES = ("", "k", "c", "d", "m", "n", "M", "G", "T", "µ", "μ", "h")
_BASES = """
m g s A K mol Hz N Pa J W C V F L l B eV cal bar rad ohm
"""
_CUSTOMARY = """
Rs am pm AM PM
ft in yd mi oz lb lbs gal qt pt mph kph kmh hr hrs min mins sec secs h d wk yr yrs mo deg ha
acre USD EUR AUD CAD sq cu rpm dB atm Torr mmHg kWh cc tsp tbsp bp pp psi
"""
_SYMBOLS = frozenset(
    [prefix + base for prefix in _PREFIXES for base in _BASES.split()] + _CUSTOMARY.split()
)
_IRREGULAR = {"feet": "foot", "people": "person", "men": "man", "women": "woman", "inches": "inch"}
_IRREGULAR |= {"children": "child", "geese": "goose", "mice": "mouse", "teeth": "tooth"}
_NAMES = {"oz": "ounce", "lb": "pound", "lbs": "pound", "hr": "hour", "hrs": "hour"}

_COMPOUNDS = {
    "mph": (("mile", 1), ("hour", -1)),
    "kph": (("km", 1), ("h", -1)),
    "kmh": (("km", 1), ("h", -1)),
    "rpm": (("revolution", 1), ("minute", -1)),
}

_CURRENCY = "€£¥₹₽₩₿¢"
_PREFIX = re.compile(rf"(?:[{_CURRENCY}]|(?:[A-Z]{{3}}|Rs\.?)\s)\s*(?=[-0-9.])")
_POWER = r"\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9])"
_TEXT = r"\\text\s*\{(?:[^{}]|\{[^{}]*\})*\}"
_ATOM = (
    rf"{_TEXT}|\^\s*\\circ|{_POWER}|[^\W\d_]+\.?|[{_CURRENCY}]|/"
    r"|\\(?:cdot|times|Omega)(?![A-Za-z])"
    r"|\{\}|[-.,]?\s|-"
)
# The tail is possessive: atoms split a run of letters in exponentially many ways.
_MEASURE = re.compile(
    r"(?P<value>.*?(?:[0-9)}\]!%]|\\pi))"
    rf"(?P<tail>(?!\s*\^\s*[{{0-9-])\s*(?:{_ATOM})++)",
    re.DOTALL,
)
_ORDINAL = re.compile(r"(?<=[0-9])\s*(?:st|nd|rd|th|\^\s*\{\s*(?:st|nd|rd|th)\s*\})$")
_TAIL_TOKEN = re.compile(rf"[^\W\d_]+|\^\{{?-?[0-9]\}}?|/|[{_CURRENCY}]")


def read_quantity(text: str) -> Quantity:
    """Split an answer into a value, the scale of numerals, a unit and a percent sign.

    Args:
      text: A tidied answer.

    Returns:
      The parts; the value is the whole text where there is no unit.
    """
    unit: list[Factor] = []
    prefix = _PREFIX.match(text)
    if prefix:
        unit.append((prefix[0].strip(), 1))
        text = text[prefix.end() :]
    scale, percent = 1, False
    text = _ORDINAL.sub("", text)
    match = _MEASURE.fullmatch(text)
    if match and not re.search(r"\w", re.sub(_TEXT, "", match["value"])):
        match = None  # words alone are no number
    if match and not re.search(r"[_^]\s*\{?$|\\[A-Za-z]+$", match["value"].removesuffix(r"\pi")):
        read = _read_tail(match["tail"], match["value"])
        if read is not None:
            scale, found, percent = read
            unit += found
            text = match["value"]
    if re.search(r"(?<!\\)\\%$", text) and not percent:
        percent, text = True, text[:-2].rstrip()
    return Quantity(text, scale, tuple(unit), percent)


def compatible(gold: Sequence[Factor], given: Sequence[Factor]) -> bool:
    """Whether two units may be the same; a missing unit fits every unit.

    Args:
      gold: Factors of the right answer's unit.
      given: Factors of the given answer's unit.
    """
    if not gold or not given:
        return True
    if any(word in _ANY for word, _ in (*gold, *given)):
        return True
    if any(power != 1 for _, power in (*gold, *given)):
        return len(gold) == len(given) and _covers(gold, given)
    return _covers(gold, given) or _covers(given, gold)


def _covers(many: Sequence[Factor], few: Sequence[Factor]) -> bool:
    """Whether each factor of `few` is like one of `many`."""
    return all(any(p == q and _alike(a, b) for b, q in many) for a, p in few)


def _alike(a: str, b: str) -> bool:
    """Whether two words name the same unit: equal, an abbreviation, or of different scripts."""
    if a.isascii() != b.isascii():
        return True
    known = a in _SYMBOLS and b in _SYMBOLS
    a, b = _NAMES.get(a, a), _NAMES.get(b, b)
    if a == b or (not known and a.casefold() == b.casefold()):
        return True
    short, long = sorted((a.casefold(), b.casefold()), key=len)
    if known or len(short) > 3 or short[0] != long[0]:
        return False
    letters = iter(long)
    return all(letter in letters for letter in short)


def _singular(word: str) -> str:
    if word in _SYMBOLS:
        return word
    low = word.casefold()
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if low.endswith("ies") and len(low) > 4:
        return low[:-3] + "y"
    if low.endswith(("shes", "ches", "xes", "sses")):
        return low[:-2]
    return low[:-1] if len(low) > 3 and low.endswith("s") and not low.endswith("ss") else low


def _read_tail(tail: str, value: str) -> tuple[int, list[Factor], bool] | None:
    """The scale, unit factors and percent behind a value; None if the tail is no unit."""
    is_text = r"\text" in tail
    attached = tail[:1] not in (" ", "\\") and not is_text
    plain = re.sub(r"\\text\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 ", tail)
    plain = re.sub(r"\\Omega(?![A-Za-z])\s*", "ohm ", plain)
    plain = re.sub(r"\^\s*\\circ(?![A-Za-z])", " degree ", plain)
    plain = re.sub(r"\\cdot|\\times|\{\}", " ", plain)
    plain = re.sub(r"\^\s*\{\s*(-?[0-9])\s*\}|\^\s*(-?[0-9])", r"^\1\2", plain)
    if re.search(r"[0-9]", re.sub(r"\^-?[0-9]", "", plain)):
        return None
    if re.sub(r"[\s.,'()-]", "", _TAIL_TOKEN.sub("", plain)):
        return None
    scale, percent, factors = 1, False, []
    sign, power, is_plain_number = 1, 1, bool(re.fullmatch(r"-?[0-9.,]+", value))
    words = _TAIL_TOKEN.findall(plain)
    if re.search(r"\\(?:cdot|times)\s*$|[-/]\s*$", tail):
        return None  # 42\times
    behind_digit = value[-1].isdigit()
    quotient = "/" in words or "per" in words
    for index, word in enumerate(words):
        if word == "/":
            sign = -1
        elif word[0] == "^":
            if not factors:
                return None
            factors[-1] = (factors[-1][0], factors[-1][1] * int(word[1:]))
        elif word in _CURRENCY:
            factors.append((word, sign))
        else:
            low = word.casefold()
            if low == "per":
                sign = -1
            elif low in ("percent", "percentage"):
                percent = True
            elif low in ("square", "sq", "平方"):
                power = 2
            elif low in ("cubic", "cu", "立方"):
                power = 3
            elif low == "squared" and factors and factors[-1][0] != "degree":
                factors[-1] = (factors[-1][0], factors[-1][1] * 2)
            elif low.removesuffix("s") in SCALES and not factors and is_plain_number:
                scale *= SCALES[low.removesuffix("s")]
            elif low == "times" and index == len(words) - 1:
                factors.append(("time", sign))
            elif low in SCALES or low in _NO_UNIT or _NO_UNIT_SIGNS & set(word):
                leading = [sign_ for sign_ in word if sign_ in SCALES]
                if not (leading and word[0] in SCALES and is_plain_number and not factors):
                    return None
                scale *= SCALES[word[0]]
                if len(word) > 1 and not _NO_UNIT_SIGNS & set(word[1:]):
                    factors.append((word[1:], sign))
            elif low in _FILLERS and (factors or scale > 1) and index < len(words):
                continue
            elif _may_be_word(word, is_text, attached and index == 0, quotient, behind_digit):
                if word[0] in SCALES and not word.isascii() and is_plain_number and not factors:
                    scale, word = scale * SCALES[word[0]], word[1:]
                for before, raised in (("平方", 2), ("立方", 3)):
                    if word.startswith(before):
                        word, power = word.removeprefix(before), raised
                factors += _COMPOUNDS.get(low, ((_singular(word), sign * power),))
                power = 1
            else:
                return None
    return scale, factors, percent


def _may_be_word(
    word: str, is_text: bool, attached: bool, quotient: bool, behind_digit: bool
) -> bool:
    """Whether letters behind a number are a word or a symbol rather than a product of variables."""
    if is_text or not word.isascii():
        return not word.startswith("\\")
    if word in _SYMBOLS and (len(word) > 1 or quotient or (behind_digit and not attached)):
        return True
    if len(word) < (4 if attached else 3):
        return False
    low = word.casefold()
    run = all(ord(b) - ord(a) == 1 for a, b in itertools.pairwise(low))
    return not run and bool(set(low) & set("aeiou"))
