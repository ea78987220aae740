"""The normal form of an answer's typography: one spelling for what a reader sees as the same.

Right answers and completions pass through `tidy` alike, before anything is compared or parsed.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from entropy_rl.tasks.math.equality.arguments import brace_arguments
from entropy_rl.tasks.math.equality.latex import closing_brace
from entropy_rl.tasks.math.equality.notation import rewrite
from entropy_rl.tasks.math.equality.numerals import join_groups, rewrite_numerals


def _fraction(sign: str) -> str:
    value = unicodedata.numeric(sign)
    denominator = next(d for d in range(2, 11) if abs(value * d - round(value * d)) < 1e-9)
    return rf"\frac{{{round(value * denominator)}}}{{{denominator}}}"


_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi . pi rho . sigma"
_GREEK_LETTERS = {
    chr(0x3B1 + i): rf"\{name} "
    for i, name in enumerate(f"{_GREEK} tau upsilon phi chi psi omega".split())
    if name != "."
}
_SIGNS = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
    | {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0x1D400, 0x1D800)}
    | {sign: _fraction(sign) for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
    | dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufe0f", "")  # of no width
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63", "-")
    | dict.fromkeys("\u2032\u2019\u02b9", "'")
    | dict.fromkeys("\u201c\u201d", '"')
    | dict.fromkeys("≤⩽≦", r"\le ")
    | dict.fromkeys("≥⩾≧", r"\ge ")
    | dict.fromkeys("°º˚", r"^\circ ")
    | dict.fromkeys("…⋯", r"\ldots ")
    | dict.fromkeys("·⋅∙", r"\cdot ")
    | dict.fromkeys("⁄∕", "/")  # noqa: RUF001
    | _GREEK_LETTERS
    | {
        "×": r"\times ", "÷": r"\div ", "∞": r"\infty ", "≠": r"\ne ", "≈": r"\approx ",  # noqa: RUF001
        "≡": r"\equiv ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",  # noqa: RUF001
        "∅": r"\emptyset ", "∖": r"\setminus ", "∨": r"\lor ", "∧": r"\land ", "″": "''",  # noqa: RUF001
        "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}",  # noqa: RUF001
        "∶": ":", "⟨": r"\langle ", "⟩": r"\rangle ", "Δ": r"\Delta ", "Ω": r"\Omega ",  # noqa: RUF001
        "。": ".", "、": ",", "℃": r"^\circ\text{C}", "‰": r"\text{ permille}",
    }
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

_END = r"(?![A-Za-z])"  # of the name of a command
_FUNCTIONS = (
    "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp"  # longest first
)
_TRANSPOSE = rf"(?:\\(?:top|intercal){_END}|\\text\s*\{{\s*T\s*\}})"
# math-verify takes 2(3) for 2 + 3. The 2 of \log_2(3) is no factor.
_PRODUCT = r"(?<=[0-9)])(?<![_^][0-9])(?<!_[0-9][0-9])\s*\((?=-?[0-9.]+\))"
_RULES = [
    (re.compile(pattern), by)
    for pattern, by in [
        # Size, fonts and colors.
        (rf"\\(?:left|right|[bB]igg?[lrm]?){_END}\s*\.?", ""),
        (
            r"\\(?:display|text|script)style(?![A-Za-z])|\\(?:no)?limits(?![A-Za-z])"
            r"|\\(?:bf|it|rm|sf|tt|bfseries|itshape|boldmath|tiny|scriptsize|footnotesize|small"
            rf"|normalsize|large|Large|LARGE|huge|Huge){_END}",
            " ",
        ),
        (r"\\(?:text)?color\s*\{[A-Za-z]+\}", ""),
        (
            r"\\(?:textrm|textit|textbf|textsf|texttt|textnormal|textup|textsc|emph|mbox|hbox"
            rf"|mathrm|mathit|mathsf|mathtt|mathnormal|mathup){_END}\s*",
            r"\\text",
        ),
        (r"\\text\s*([A-Za-z0-9])(?=[^A-Za-z{]|$)", r"\1"),
        (
            rf"\\(?:mathbf|boldsymbol|bm|bold|pmb|underline|ensuremath){_END}\s*"
            r"(?:\{([0-9]+)\}|(?=[0-9]))",
            r"\1",
        ),
        (
            rf"\\(?:mathbf|boldsymbol|bm|bold|pmb|underline|ensuremath){_END}\s*"
            r"(?:\{([0-9A-Za-z]+)\}|(?=\S))",
            r" \1",
        ),
        (r"\*\*([A-Za-z ]+:?)\*\*", r"\1"),
        # Spaces and dollar signs; the comma of thousands.
        (r"\\?\$|(?<!\\)\\!", ""),
        (r"\{\s*,\s*\}", ","),
        (r"(?<=[0-9])\{\s*\.\s*\}", "."),
        (r"(?<=[0-9])'(?=[0-9]{3}(?![0-9']))", ""),
        (r"\\[hv]space\*?\s*\{[^{}]*\}|\\(?:enspace|thinspace|hfill)(?![A-Za-z])", " "),
        (r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z]))|(?<!\\)~", " "),
        # One spelling for each sign.
        (r"(?<!\\)%", r"\\%"),
        (r"\\[dtc]frac", r"\\frac"),
        (
            r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}"
            r"\s*((?:\^\s*\{?[0-9]\}?)?)\s*\}",
            r"\\text{\1/\2\3}",
        ),
        (
            r"(?:\{\})?\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])"
            r"|\\text\s*\{\s*o\s*\}|\{\s*\\text\s*\{\s*o\s*\}\s*\}|(?<=[0-9]\^)o(?![A-Za-z])"
            rf"|(?<=[0-9]\^)\{{\s*o\s*\}})|\\(?:text)?degree{_END}|\\textdegree{_END}",
            r"^\\circ ",
        ),
        (rf"\\leq(?:q|slant|qslant)?{_END}|<=|=<|\\le{_END}", r"\\le "),
        (rf"\\geq(?:q|slant|qslant)?{_END}|>=|\\ge{_END}", r"\\ge "),
        (rf"\\neq?{_END}|!=", r"\\ne "),
        (rf"\\lt{_END}", "<"),
        (rf"\\gt{_END}", ">"),
        (rf"\\(?:[lcv]|d)?dots[bcmio]?{_END}|\.\.\.", r"\\ldots "),
        (r"\^\s*\{?\s*((?:\\prime\s*)+)\}?", lambda m: "'" * m[1].count("prime")),
        (rf"\\ast{_END}", r"\\cdot "),
        (rf"\^\s*(?:{_TRANSPOSE}|\{{\s*{_TRANSPOSE}\s*\}})", "^{T}"),
        (rf"\\varnothing{_END}", r"\\emptyset"),
        (r"\\text\s*\{([eij])\}", r" \1"),  # not to be dropped as units
        (rf"\\(?:text|operatorname\*?)\s*\{{\s*({_FUNCTIONS})\s*\}}(?!\s*$)", r"\\\1 "),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS})(?=\s*[({{\\^]|\s[0-9]*[A-Za-z](?![A-Za-z]))", r"\\\1 "),
        # \sin^21 has the argument 1: its exponent is one digit, as nothing follows.
        (rf"\\({_FUNCTIONS})\s*\^\s*([0-9])(?=[0-9]+\s*(?:[-+=,)}}]|$))", r"\\\1^{\2} "),
        (r"(?<![\\A-Za-z])sqrt(?=\s*[({])", r"\\sqrt"),
        (r"\\pmod\s*([A-Za-z0-9])", r"\\pmod{\1}"),
        (
            rf"\(\s*(?:\\b?mod{_END}|\\text\s*\{{\s*mod\s*\}}|mod\s)\s*\{{?\s*(\w+)\s*\}}?\s*\)",
            r"\\pmod{\1}",
        ),
        (
            r",?\s*\\text\s*\{\s*or\s*\}|,?\s*(?<![A-Za-z\\])or(?![A-Za-z])|,?\s*\\(?:lor|vee)"
            r"(?![A-Za-z])",
            r"\\lor ",
        ),
        (
            r",?\s*\\text\s*\{\s*and\s*\}|,?\s*(?<![A-Za-z\\])and(?![A-Za-z])|,?\s*\\(?:land|wedge)"
            r"(?![A-Za-z])",
            r"\\land ",
        ),
        (r"\\text\s*\{\s*(?:all )?reals?(?: numbers?)?\s*\}|(?:all )?real numbers", r"\\mathbb{R}"),
        (_PRODUCT, r"\\cdot ("),
        (r":\s*=|={2,}", "="),
    ]
]
# The modulus of a congruence without parentheses.
_MODULUS = re.compile(
    r"(?<!\()(?<!\(\s)\\(?:b?mod|text\s*\{\s*mod\s*\}|operatorname\s*\{\s*mod\s*\})(?![A-Za-z])\s*"
    r"\{?\s*(\w+)\s*\}?"
)
_SYSTEM = re.compile(
    r"(?:\\\{\s*)?\\begin\s*\{(cases|aligned|align\*?|gather(?:ed|\*)?|split|array|equation\*?"
    r"|displaymath|math)\}(?:\{[lcr]+\})?(.*)"
    r"\\end\s*\{\1\}$",
    re.DOTALL,
)
_DECORATION = re.compile(
    r"(?:\\(?:checkmark|qed|blacksquare)|[✓✔✅☑∎■]|(?<!\\)\\\\|(?<=[^\s])[,;]"
    r"|\\text\s*\{[\s.,;]*\})\s*$"
)
_WORDS = r"[^\W\d_]{2,}(?:[ '-][^\W\d_]{2,})*"
# "The final answer is", "Answer:", "Area:": words before the answer that say nothing of it.
_LEAD = (
    r"(?:(?:so|thus|hence|therefore|then|and),? )?(?:the |our |my )?(?:final |correct |right )?"
    r"(?:answer|result|solution|ans)\b\.?(?: (?:is|are|equals)\b\s*:?|\s*[:=])"
    rf"|(?!(?:not|except|unless|if|but|or|wrong|false|incorrect)\b)(?=[^:]{{3,40}}:){_WORDS}\s*:"
    r"|答案?(?:是|为|:)+"
)
_LEAD_IN = re.compile(rf"(?:{_LEAD})\s*(?=\S)", re.IGNORECASE)
_TEXT_LEAD_IN = re.compile(r"\\text\s*\{\s*([^{}]*?)\s*\}\s*(?=\S)")
_TEXT = re.compile(r"\\text\s*\{")
_INFIX = re.compile(r"\\(?:choose|over|atop)(?![A-Za-z])")  # needs the braces around it
_SIGN = re.compile(r"(?:\+|=|\\approx(?![A-Za-z]))\s*")
_ROOT = re.compile(r"\\sqrt\s*(\[[^\[\]]*\])?\s*\(")
_PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'), ("'", "'"))


@functools.lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    r"""Remove the typography of an answer: spaces, \left, fonts, Unicode signs, words before it.

    Args:
      text: An answer in LaTeX or Unicode.

    Returns:
      The same answer in one spelling.
    """
    if not text.isascii():
        text = write_signs(text)
        for sign, root in _ROOTS.items():
            if sign in text:
                text = re.sub(
                    sign + r"\s*([0-9]+|[A-Za-z])", lambda m, r=root: f"{r}{{{m[1]}}}", text
                )
                text = text.replace(sign, root + " ")
    if r"\equiv" in text:
        text = _MODULUS.sub(r"\\pmod{\1}", text)
    text = join_groups(text)
    for pattern, by in _RULES:
        text = pattern.sub(by, text)
    text = rewrite_numerals(_brace_roots(brace_arguments(" ".join(text.split()))))
    while True:
        inner = _unwrap(text)
        if inner == text:
            return rewrite(text)
        text = inner.strip()


def write_signs(text: str) -> str:
    """Replace Unicode signs of mathematics, except roots, by LaTeX: ≤ by \\le, ² by ^{2}."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda run: f"_{{{run[0].translate(_LOWERED)}}}", text)
    return text.translate(_SIGNS)


def _brace_roots(text: str) -> str:
    r"""Replace \sqrt(x) by \sqrt{x}."""
    start = 0
    for _ in range(20):
        match = _ROOT.search(text, start)
        if match is None:
            return text
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            return text
        inner = text[match.end() : end - 1]
        text = f"{text[: match.start()]}\\sqrt{match[1] or ''}{{{inner}}}{text[end:]}"
        start = match.start() + 5
    return text


def _unwrap(text: str) -> str:
    """Remove one layer around the answer, or return the same text."""
    if text.endswith(".") and not text.endswith(".."):
        return text[:-1]
    decoration = _DECORATION.search(text)
    if decoration and decoration.start():
        return text[: decoration.start()]
    lead = _SIGN.match(text) or _LEAD_IN.match(text)
    if lead and lead.end():
        return text[lead.end() :]
    lead = _TEXT_LEAD_IN.match(text)
    if lead and re.fullmatch(_LEAD, lead[1], re.IGNORECASE):
        return text[lead.end() :]
    for before, after in _PAIRS:
        if text.startswith(before) and text.endswith(after) and len(text) > len(before + after):
            inner = text[len(before) : -len(after)]
            if after not in inner:
                return inner
    system = _SYSTEM.fullmatch(text)
    if system and not ("&" in system[2] and system[1] == "array" and not text.startswith(r"\{")):
        entries = [entry.replace("&", " ").strip(" ,;") for entry in system[2].split(r"\\")]
        if "&" not in system[2] or all("=" in entry for entry in entries if entry):
            return r"\land ".join(entry for entry in entries if entry)
    wrapper = None if _INFIX.search(text) else re.match(r"(?:\\text\s*)?\{", text)
    if wrapper and closing_brace(text[wrapper.end() :]) == len(text) - wrapper.end() - 1:
        return text[wrapper.end() : -1]
    return text
