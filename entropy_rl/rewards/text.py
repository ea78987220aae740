"""Rewards of texts: format, repetition and language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence, Set
from types import MappingProxyType
from typing import Literal

from entropy_rl.config.checks import require
from entropy_rl.rewards.reward import Reward
from entropy_rl.tasks.patterns import compiled, matches
from entropy_rl.tasks.pool import VerifierPool
from entropy_rl.tasks.task import Verdict

_DEADLINE_S = 1.0  # CPU seconds of one match; a pattern without backtracking needs microseconds

# Words in the Unicode names of the letters of a script, where they are not its own name.
_HAN, _KANA = {"CJK", "IDEOGRAPHIC"}, {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}
_LETTERS = MappingProxyType(
    {
        "chinese": _HAN | {"BOPOMOFO"},
        "japanese": _HAN | _KANA | {"KANA", "HENTAIGANA"},
        "korean": {"HANGUL"},
    }
)


def format(pattern: str) -> Reward:
    """Reward the format: 1 if the whole text matches a regular expression, else 0.

    Matching runs in killable processes, as a pattern may take exponential time on some texts: a
    match that takes more than a second of CPU time is None, and the sample has no reward.

    Args:
      pattern: In the syntax of Python's `re`; `.` matches line breaks too.

    Raises:
      ValueError: The pattern does not compile.
    """
    try:
        compiled(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        require(False, "format.pattern", pattern, f"a regular expression ({error})")
    pool = VerifierPool(f"{matches.__module__}:{matches.__name__}", deadline_s=_DEADLINE_S)

    def match(completions: Sequence[str]) -> list[float | None]:
        values = {Verdict.CORRECT: 1.0, Verdict.WRONG: 0.0}
        return [values.get(verdict) for verdict in pool.map([(pattern, t) for t in completions])]

    return Reward(match, pool.close, bounds=(0.0, 1.0))


def repetition(n: int = 4) -> Reward:
    """Penalize repeated n-grams of words: -(1 - |distinct n-grams| / |n-grams|), in (-1, 0].

    Words are separated by white space and compared in lower case; a text with fewer than n words
    has 0. Source: the repetition penalty of https://arxiv.org/abs/2502.03373, as in open-r1
    (`repetition_penalty_reward`), where `weight` is the largest penalty.

    Args:
      n: Words of an n-gram, at least 1.

    Raises:
      ValueError: `n` is below 1.
    """
    require(n >= 1, "repetition.n", n, "a whole number >= 1")

    def penalize(completions: Sequence[str]) -> list[float]:
        return [-_repeated_share(text.lower().split(), n) for text in completions]

    return Reward(penalize, bounds=(-1.0, 0.0))


def _repeated_share(words: Sequence[str], n: int) -> float:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def language(
    script: Literal[
        "arabic",
        "bengali",
        "chinese",
        "cyrillic",
        "devanagari",
        "greek",
        "hebrew",
        "japanese",
        "korean",
        "latin",
        "tamil",
        "thai",
    ],
) -> Reward:
    """Reward the share of a text's letters that are of a script; 1 for a text without letters.

    Source: the language consistency reward of DeepSeek-R1, https://arxiv.org/abs/2501.12948,
    §2.3.2, by letters in place of words.

    Args:
      script: The script, or the language that has it for itself.
    """
    names = _LETTERS.get(script, {script.upper()})

    def share(completions: Sequence[str]) -> list[float]:
        return [_share_of_letters(text, names) for text in completions]

    return Reward(share, bounds=(0.0, 1.0))


def _share_of_letters(text: str, names: Set[str]) -> float:
    of_script = letters = 0
    for char, count in Counter(text).items():
        if char.isalpha():
            # Wide, bold and other variants of a letter have names that begin otherwise.
            plain = unicodedata.normalize("NFKC", char)
            words = {word for c in plain for word in unicodedata.name(c, "").split()}
            if words & names:
                of_script, letters = of_script + count, letters + count
            elif "MODIFIER" not in words:  # those are of no script, such as an apostrophe
                letters += count
    return of_script / letters if letters else 1.0
