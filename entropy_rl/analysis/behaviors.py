"""Pivotal tokens and reflective sentences: contrasts of their entropy with all others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.analysis.contrasts import Contrast, Group, adjusted, contrast
from entropy_rl.analysis.responses import Response
from entropy_rl.analysis.sentences import SentenceEntropy, compile_patterns, sentence_entropies
from entropy_rl.analysis.words import Pivotal, WordLists, find_pivotal
from entropy_rl.config.checks import at_place, require

ALL_CLASSES = "all classes"
OTHER_TOKENS, OTHER_WORDS, OTHER_SENTENCES = "other tokens", "other words", "other sentences"
REFLECTIVE_NAME = "reflective"


def check_expressions(words: WordLists | None, reflective: Sequence[str] | None) -> None:
    """Check word lists and expressions, of a config or a task; None is for none of its own.

    Raises:
      ValueError: One is empty, of another type or invalid.
    """
    is_mapping = isinstance(words, Mapping) and bool(words)
    require(words is None or is_mapping, "words", words, "a mapping with at least one class")
    for name, of_class in (words or {}).items():
        named = isinstance(name, str) and name not in (ALL_CLASSES, REFLECTIVE_NAME)
        require(named, "words", name, f"a name other than {ALL_CLASSES!r} and {REFLECTIVE_NAME!r}")
        good = _are_texts(of_class) and all(word.strip() for word in of_class)
        require(good, f"words.{name}", of_class, "a non-empty list of non-empty words")
    if reflective is None:
        return
    good = _are_texts(reflective)
    require(good, "reflective", reflective, "a non-empty list of non-empty expressions")
    with at_place("reflective"):
        compile_patterns(reflective)


def _are_texts(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and bool(value)
    return is_list and all(isinstance(text, str) and text for text in value)


class Annotated(NamedTuple):
    """A response with its pivotal tokens and reflective sentences."""

    response: Response
    pivotal: Pivotal
    sentences: list[SentenceEntropy]
    reflective: np.ndarray  # bool[sentences]

    @property
    def pivotal_tokens(self) -> np.ndarray:
        """int64[...]: positions of the tokens of any class."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *self.pivotal.classes.values()]))

    @property
    def sentence_entropy(self) -> np.ndarray:
        """f64[sentences]: the mean entropy of each."""
        return np.array([sentence.entropy for sentence in self.sentences], np.float64)


def annotate(
    response: Response, words: Mapping[str, re.Pattern[str]], reflective: Sequence[re.Pattern[str]]
) -> Annotated:
    """Find the tokens of each word class and the reflective sentences of a response."""
    sentences = sentence_entropies(response)
    is_reflective = np.array([any(p.search(s.text) for p in reflective) for s in sentences], bool)
    return Annotated(response, find_pivotal(response, words), sentences, is_reflective)


def gather(annotated: Sequence[Annotated], values_of: Callable[[Annotated], np.ndarray]) -> Group:
    """Concatenate values of all responses, with their problems."""
    values = [np.asarray(values_of(a), np.float64) for a in annotated]
    problems = [np.full(len(v), a.response.problem) for a, v in zip(annotated, values, strict=True)]
    return Group(np.concatenate(values), np.concatenate(problems))


def pivotal_contrasts(annotated: Sequence[Annotated], *, seed: int = 0) -> list[Contrast]:
    """Contrast word classes, and their union, with all other tokens and with other words.

    The paper makes the first comparison (arXiv 2506.14758, section 2). It is biased by
    tokenization: a word of a class is represented by its first token, while the other tokens
    include later pieces of words, whose entropy is near zero. The second comparison, with first
    tokens of other words, removes this bias.

    Args:
      annotated: The responses.
      seed: Seed of the resampling.

    Returns:
      The contrasts, those with other tokens first; p-values are adjusted within each of the two
      tables.
    """

    def entropy_at(places_of: Callable[[Annotated], np.ndarray]) -> Group:
        return gather(annotated, lambda a: a.response.entropy[places_of(a)])

    names = list(annotated[0].pivotal.classes)
    groups = {name: entropy_at(lambda a, n=name: a.pivotal.classes[n]) for name in names}
    if len(names) > 1:
        groups[ALL_CLASSES] = entropy_at(lambda a: a.pivotal_tokens)
    others = {
        OTHER_TOKENS: entropy_at(lambda a: a.pivotal.other),
        OTHER_WORDS: entropy_at(lambda a: a.pivotal.other_words),
    }
    tables = [
        adjusted(
            [contrast(name, group, against, other, seed=seed) for name, group in groups.items()]
        )
        for against, other in others.items()
    ]
    return [line for table in tables for line in table]


def reflective_contrast(annotated: Sequence[Annotated], *, seed: int = 0) -> Contrast:
    """Contrast the mean entropy of reflective sentences with that of other sentences."""
    yes = gather(annotated, lambda a: a.sentence_entropy[a.reflective])
    no = gather(annotated, lambda a: a.sentence_entropy[~a.reflective])
    return adjusted([contrast(REFLECTIVE_NAME, yes, OTHER_SENTENCES, no, seed=seed)])[0]
