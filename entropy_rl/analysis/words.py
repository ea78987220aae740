"""Pivotal tokens: words that steer a text, found in its characters and brought back to tokens."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from entropy_rl.analysis.responses import Response

WordLists = Mapping[str, Sequence[str]]

# arXiv 2506.14758, section 2, has these four classes, and of their words no more than because,
# therefore, however, although, first, then, suggest, demonstrate, recall and thus. The lists are
# ours.
WORDS: WordLists = {
    "causal": (
        *("because", "therefore", "thus", "hence", "since", "so", "consequently", "accordingly"),
        *("as a result", "due to", "it follows"),
    ),
    "contrastive": (
        *(
            "however",
            "but",
            "although",
            "though",
            "yet",
            "whereas",
            "while",
            "instead",
            "otherwise",
        ),
        *("nevertheless", "on the other hand", "alternatively", "unless", "despite"),
    ),
    "sequential": (
        *(
            "first",
            "firstly",
            "second",
            "secondly",
            "third",
            "next",
            "then",
            "now",
            "finally",
            "lastly",
        ),
        *("after", "before", "subsequently"),
    ),
    "reasoning verbs": (
        *(
            "suggest",
            "suggests",
            "demonstrate",
            "demonstrates",
            "recall",
            "imply",
            "implies",
            "show",
        ),
        *(
            "shows",
            "assume",
            "suppose",
            "consider",
            "conclude",
            "deduce",
            "infer",
            "note",
            "notice",
        ),
        *("observe", "prove", "find", "let"),
    ),
}


class Pivotal(NamedTuple):
    """Places of tokens in a response; each int64[...] without repetition, in order.

    Attributes:
      classes: Class -> the first token of each of its words.
      other: Tokens with text that no word of any class touches.
      other_words: Those of them in which a word begins.
    """

    classes: dict[str, np.ndarray]
    other: np.ndarray
    other_words: np.ndarray


# A word begins once: not again in "don't", "3.14" or "1,000".
_WORD = re.compile(r"\w+(?:(?:['\u2019]|(?<=\d)\.(?=\d)|(?<=\d),(?=\d{3}(?!\d)))\w+)*")


def word_patterns(words: WordLists) -> dict[str, re.Pattern[str]]:
    """One pattern for each class.

    A word is found whatever its case, and as a whole: "then" is not in "strengthen". What begins or
    ends with another sign than a letter or digit, such as "+" or "=", is found wherever it stands.

    Args:
      words: Class -> words; one can be several words, with any white space between them.
    """
    return {name: _pattern(listed) for name, listed in words.items()}


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    def whole(word: str) -> str:
        inner = r"\s+".join(map(re.escape, word.split()))
        before = r"(?<!\w)" if re.match(r"\w", word.strip()) else ""
        return before + inner + (r"(?!\w)" if re.search(r"\w\Z", word.strip()) else "")

    # The longest first, so that "on the other hand" is not cut short by a word it begins with.
    return re.compile(
        "|".join(whole(w) for w in sorted(words, key=len, reverse=True)), re.IGNORECASE
    )


def find_pivotal(response: Response, patterns: Mapping[str, re.Pattern[str]]) -> Pivotal:
    """Finds the tokens of each class.

    A word counts by its first token, the one that covers its first character. There the model
    decides to say it; the rest of its pieces spell what has been decided, and how many these are is
    the tokenizer's doing. The others of its tokens are in no group.

    Args:
      response: The response.
      patterns: From `word_patterns`.

    Returns:
      The places. A word in two classes counts in both.
    """
    tokens = len(response.tokens)
    untouched = response.spans[:, 1] > response.spans[:, 0]
    classes = {}
    for name, pattern in patterns.items():
        found = [match.span() for match in pattern.finditer(response.text)]
        begins, ends = np.array(found, np.int64).reshape(-1, 2).T
        classes[name] = np.unique(response.token_at(begins))
        # Each token from the first character to the last, tokens of a shared character included.
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
    """Attributes: a token, its text, how often it occurs, in how many problems, its mean entropy
    (nats).
    """

    token: int
    text: str
    count: int
    problems: int
    entropy: float


def most_entropic(responses: Sequence[Response], min_count: int, top: int) -> list[TokenCount]:
    """The tokens at which the model was least decided, on average.

    The entropy is that of the place at which the token was drawn, not of the token.

    Args:
      responses: The responses.
      min_count: Tokens that occur less often are left out: the mean of a few is noise, and the
        largest of many such means is sure to be large.
      top: So many at most.

    Returns:
      From high to low; ties by id.
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
