"""Pivotal tokens: words of given classes, found in the text and mapped to tokens."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from entropy_rl.analysis.responses import Response

WordLists = Mapping[str, Sequence[str]]

# arXiv 2506.14758, section 2, defines these four classes, and lists of their words only because,
# therefore, however, although, first, then, suggest, demonstrate, recall and thus. All other words
# are this library's.
WORDS: WordLists = {
    "causal": (
        *("because", "therefore", "thus", "hence", "since", "so", "consequently", "accordingly"),
        *("as a result", "due to", "it follows"),
    ),
    "contrastive": (
        *("however", "but", "although", "though", "yet", "whereas", "while", "instead"),
        *("otherwise", "nevertheless", "on the other hand", "alternatively", "unless", "despite"),
    ),
    "sequential": (
        *("first", "firstly", "second", "secondly", "third", "next", "then", "now", "finally"),
        *("lastly", "after", "before", "subsequently"),
    ),
    "reasoning verbs": (
        *("suggest", "suggests", "demonstrate", "demonstrates", "recall", "imply", "implies"),
        *("show", "shows", "assume", "suppose", "consider", "conclude", "deduce", "infer"),
        *("note", "notice", "observe", "prove", "find", "let"),
    ),
}


class Pivotal(NamedTuple):
    """Positions of tokens in a response; each int64[...], sorted and unique.

    Attributes:
      classes: Class -> first tokens of its words.
      other: Tokens with text that do not overlap a word of any class.
      other_words: Those of `other` in which a word begins.
    """

    classes: dict[str, np.ndarray]
    other: np.ndarray
    other_words: np.ndarray


# "don't", "3.14" and "1,000" are one word each.
_WORD = re.compile(r"\w+(?:(?:['\u2019]|(?<=\d)\.(?=\d)|(?<=\d),(?=\d{3}(?!\d)))\w+)*")


def word_patterns(words: WordLists) -> dict[str, re.Pattern[str]]:
    """Compile one pattern for each class.

    Words match as a whole, ignoring case: "then" does not match in "strengthen". Entries that begin
    or end with a symbol, such as "+" or "=", need no word boundary there.

    Args:
      words: Class -> words; an entry may have several words, separated by any white space.
    """
    return {name: _pattern(listed) for name, listed in words.items()}


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    def whole(word: str) -> str:
        inner = r"\s+".join(map(re.escape, word.split()))
        before = r"(?<!\w)" if re.match(r"\w", word.strip()) else ""
        return before + inner + (r"(?!\w)" if re.search(r"\w\Z", word.strip()) else "")

    # Longest first, so that a prefix does not shadow a longer entry.
    return re.compile(
        "|".join(whole(w) for w in sorted(words, key=len, reverse=True)), re.IGNORECASE
    )


def find_pivotal(response: Response, patterns: Mapping[str, re.Pattern[str]]) -> Pivotal:
    """Find the tokens of each class.

    A word is represented by its first token, which covers its first character: there the model
    chooses the word. Its other tokens are in no group, because their number depends on the
    tokenizer and their entropy is near zero.

    Args:
      response: The response.
      patterns: From `word_patterns`.

    Returns:
      The positions. A word in two classes counts in both.
    """
    tokens = len(response.tokens)
    untouched = response.spans[:, 1] > response.spans[:, 0]
    classes = {}
    for name, pattern in patterns.items():
        found = [match.span() for match in pattern.finditer(response.text)]
        begins, ends = np.array(found, np.int64).reshape(-1, 2).T
        classes[name] = np.unique(response.token_at(begins))
        # All tokens from the first to the last character, including those that share one.
        touched = np.zeros(tokens + 1, np.int64)
        np.add.at(touched, response.token_at(begins), 1)
        np.add.at(touched, np.searchsorted(response.spans[:, 0], ends, side="left"), -1)
        untouched &= np.cumsum(touched)[:tokens] == 0
    begins = response.token_at([match.start() for match in _WORD.finditer(response.text)])
    beginning = np.zeros(tokens, bool)
    beginning[begins] = True
    return Pivotal(classes, np.flatnonzero(untouched), np.flatnonzero(untouched & beginning))


@dataclasses.dataclass(frozen=True)
class TokenCount:
    """A token with its text, count, number of problems, and mean entropy (nats)."""

    token: int
    text: str
    count: int
    problems: int
    entropy: float


def most_entropic(responses: Sequence[Response], min_count: int, top: int) -> list[TokenCount]:
    """Tokens with the highest mean entropy.

    The entropy is that of the distribution from which the token was sampled.

    Args:
      responses: The responses.
      min_count: Minimum count; a maximum over means of few values is mostly noise.
      top: Maximum number of tokens.

    Returns:
      Tokens by decreasing entropy; ties by id.
    """
    tokens = np.concatenate([r.tokens for r in responses])
    ids, first, place, count = np.unique(
        tokens, return_index=True, return_inverse=True, return_counts=True
    )
    entropy = np.bincount(place, np.concatenate([r.entropy for r in responses]), len(ids)) / count
    problems = np.concatenate([np.full(len(r.tokens), r.problem) for r in responses])
    in_problems = Counter(np.unique(np.stack([tokens, problems]), axis=1)[0].tolist())
    ends = np.cumsum([len(r.tokens) for r in responses])

    def text_of(place: int) -> str:
        response = responses[(i := int(np.searchsorted(ends, place, side="right")))]
        begin, end = response.spans[place - ends[i] + len(response.tokens)]
        return response.text[begin:end]

    enough = np.flatnonzero(count >= min_count)
    order = enough[np.argsort(-entropy[enough], kind="stable")][:top]
    return [
        TokenCount(
            int(ids[i]), text_of(first[i]), int(count[i]), in_problems[ids[i]], float(entropy[i])
        )
        for i in order
    ]
