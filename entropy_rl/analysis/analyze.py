"""The full analysis of annotated responses."""

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
    """A sentence on the map of rare behaviors.

    Attributes:
      text: The sentence.
      x: First principal component.
      y: Second principal component.
      entropy: Mean entropy of its tokens, nats; None for a sentence of the base model.
      distance: Mean distance to its nearest base sentences; None for one of the base model.
      rare: Whether it is rare; None for one of the base model.
    """

    text: str
    x: float
    y: float
    entropy: float | None = None
    distance: float | None = None
    rare: bool | None = None


@dataclasses.dataclass(frozen=True)
class RareBehaviors:
    """Rare sentences of responses, relative to a base model.

    Attributes:
      contrast: Entropy of the rare sentences against the common ones.
      base: Name of the base model's samples.
      problems: Number of problems that the responses are to.
      sentences: Number of sentences of the responses.
      base_sentences: Number of sentences of the base model.
      threshold: Smallest distance of a rare sentence.
      placed: All sentences, those of the base model last.
    """

    contrast: Contrast
    base: str
    problems: int
    sentences: int
    base_sentences: int
    threshold: float
    placed: list[PlacedSentence]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Entropy analysis of responses.

    Attributes:
      responses: Number of responses.
      problems: Number of problems, the independent units.
      tokens: Number of tokens.
      tokens_without_text: Tokens that belong to no group, such as the end of a response.
      sentences: Number of sentences.
      entropy: Mean over all tokens, nats.
      pivotal: Word classes, against other tokens and against other words.
      most_entropic: Tokens with the highest mean entropy.
      reflective: Reflective sentences against other sentences.
      rare: Rare sentences against common ones; None without responses of a base model.
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
        """The contrasts of sentences: reflective and, if available, rare ones."""
        return [self.reflective, *([] if self.rare is None else [self.rare.contrast])]


def analyze(annotated: Sequence[Annotated], *, min_count: int, seed: int = 0) -> Analysis:
    """Compare the entropy of behaviors that need no base model.

    Args:
      annotated: At least one response.
      min_count: As in `most_entropic`.
      seed: Seed of the resampling.
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
    base_name: str = "the base",
    embed: Embed = tf_idf,
    neighbors: int = 5,
    share: float = 0.1,
    max_sentences: int | None = None,
    seed: int = 0,
) -> RareBehaviors | None:
    """Find rare sentences of responses, by their distance to the sentences of a base model.

    Args:
      annotated: The responses.
      base: Responses of the base model to the same problems.
      base_name: Name of their source, for tables and figures.
      embed: Maps texts to unit vectors; called once with all texts.
      neighbors: As in `rare_sentences`.
      share: As in `rare_sentences`.
      max_sentences: Maximum number of sentences of each, sampled at random; None for all.
      seed: Seed of sampling and resampling.

    Returns:
      The rare sentences; None without sentences, or with fewer base sentences than neighbors.
    """
    if not annotated or not base:  # no common problems
        return None
    texts, group = _sample_sentences(annotated, max_sentences, seed)
    base_texts, _ = _sample_sentences(base, max_sentences, seed)
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
        base=base_name,
        problems=len({a.response.problem for a in annotated}),
        sentences=len(texts),
        base_sentences=len(base_texts),
        threshold=float(found.distances[found.is_rare].min()),
        placed=placed,
    )


def _sample_sentences(
    annotated: Sequence[Annotated], limit: int | None, seed: int
) -> tuple[list[str], Group]:
    texts = [sentence.text for a in annotated for sentence in a.sentences]
    group = gather(annotated, lambda a: a.sentence_entropy)
    if limit is None or len(texts) <= limit:
        return texts, group
    kept = np.sort(np.random.default_rng(seed).choice(len(texts), limit, replace=False))
    return [texts[i] for i in kept], Group(group.values[kept], group.problems[kept])
