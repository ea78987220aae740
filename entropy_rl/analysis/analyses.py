"""The whole analysis of responses, from annotated texts to the numbers of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from entropy_rl.analysis.behaviors import Annotated, gather, pivotal_contrasts, reflective_contrast
from entropy_rl.analysis.contrasts import Contrast, Group
from entropy_rl.analysis.rare import Vectors, rare_sentences, tf_idf
from entropy_rl.analysis.words import TokenCount, most_entropic

Embed = Callable[[Sequence[str]], Vectors]

_TOP_TOKENS = 20


@dataclasses.dataclass(frozen=True)
class PlacedSentence:
    """A sentence on the map; `entropy`, `distance` and `rare` are None for one of the base
    model.
    """

    text: str
    x: float
    y: float
    entropy: float | None = None
    distance: float | None = None
    rare: bool | None = None


@dataclasses.dataclass(frozen=True)
class RareBehaviors:
    """Rare sentences.

    Attributes:
      contrast: Their entropy against that of the common ones.
      sentences: How many were looked at.
      base_sentences: How many of the base model they were held against.
      threshold: The smallest distance that was called rare.
      placed: All of them, those of the base model last.
    """

    contrast: Contrast
    sentences: int
    base_sentences: int
    threshold: float
    placed: list[PlacedSentence]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What is said of some responses.

    Attributes:
      responses: How many.
      problems: Problems they belong to: the units that are independent.
      tokens: Tokens of all.
      tokens_without_text: Tokens that no group has, such as those that end a response.
      sentences: Sentences of all.
      entropy: Mean over all tokens, nats.
      pivotal: Classes of words, against other tokens and against other words.
      most_entropic: The tokens with the highest mean entropy.
      reflective: Reflective sentences against the others.
      rare: Rare sentences against common ones; None without a base model's responses.
    """

    responses: int
    problems: int
    tokens: int
    tokens_without_text: int
    sentences: int
    entropy: float
    pivotal: list[Contrast]
    most_entropic: list[TokenCount]
    reflective: Contrast
    rare: RareBehaviors | None = None

    @property
    def of_sentences(self) -> list[Contrast]:
        """The comparisons of sentences that there are."""
        return [self.reflective, *([] if self.rare is None else [self.rare.contrast])]


def analyze(annotated: Sequence[Annotated], *, min_count: int, seed: int = 0) -> Analysis:
    """Compares the behaviors that can be told from the responses alone.

    Args:
      annotated: One response or more.
      min_count: As of `most_entropic`.
      seed: Of the resampling.
    """
    responses = [a.response for a in annotated]
    entropy = np.concatenate([r.entropy for r in responses])
    return Analysis(
        responses=len(responses),
        problems=len({r.problem for r in responses}),
        tokens=len(entropy),
        tokens_without_text=sum(int(np.sum(r.spans[:, 0] == r.spans[:, 1])) for r in responses),
        sentences=sum(len(a.sentences) for a in annotated),
        entropy=float(entropy.mean()) if len(entropy) else float("nan"),
        pivotal=pivotal_contrasts(annotated, seed=seed),
        most_entropic=most_entropic(responses, min_count, _TOP_TOKENS),
        reflective=reflective_contrast(annotated, seed=seed),
    )


def find_rare(
    annotated: Sequence[Annotated],
    base: Sequence[Annotated],
    *,
    embed: Embed = tf_idf,
    neighbors: int = 5,
    share: float = 0.1,
    max_sentences: int | None = None,
    seed: int = 0,
) -> RareBehaviors | None:
    """Rare sentences of the responses, by their distance to the sentences of a base model.

    Args:
      annotated: The responses.
      base: Those of the base model.
      embed: From texts to unit vectors, of both at once.
      neighbors: As of `rare_sentences`.
      share: As of `rare_sentences`.
      max_sentences: So many of each at most, drawn at random; None for all.
      seed: Of that and of the resampling.

    Returns:
      The comparison; None if there is no sentence to look at, or fewer of the base than neighbors.
    """
    texts, group = _some(annotated, max_sentences, seed)
    base_texts, _ = _some(base, max_sentences, seed)
    if not texts or len(base_texts) < neighbors:
        return None
    vectors = embed([*texts, *base_texts])
    found = rare_sentences(
        group,
        vectors[: len(texts)],
        vectors[len(texts) :],
        neighbors=neighbors,
        share=share,
        seed=seed,
    )
    columns = texts, *found.places.T, group.values, found.distances, found.is_rare
    placed = [
        PlacedSentence(text, *map(float, numbers), bool(rare))
        for text, *numbers, rare in zip(*columns, strict=True)
    ]
    placed += [
        PlacedSentence(text, float(x), float(y))
        for text, (x, y) in zip(base_texts, found.base_places, strict=True)
    ]
    return RareBehaviors(
        contrast=found.contrast,
        sentences=len(texts),
        base_sentences=len(base_texts),
        threshold=float(found.distances[found.is_rare].min()),
        placed=placed,
    )


def _some(annotated: Sequence[Annotated], limit: int | None, seed: int) -> tuple[list[str], Group]:
    texts = [sentence.text for a in annotated for sentence in a.sentences]
    group = gather(annotated, lambda a: a.sentence_entropy)
    if limit is None or len(texts) <= limit:
        return texts, group
    kept = np.sort(np.random.default_rng(seed).choice(len(texts), limit, replace=False))
    return [texts[i] for i in kept], Group(group.values[kept], group.problems[kept])
