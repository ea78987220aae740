"""Rare behaviors: sentences far from all sentences of the base model.

Sentences are embedded as unit vectors, by TF-IDF or by a user's encoder. Source: arXiv 2506.14758,
section 2, with SBERT, k = 5 and the top 10%; it names neither the checkpoint nor the distance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from entropy_rl.analysis.contrasts import Contrast, Group, adjusted, contrast

# f[n, features]; rows have norm 1, or 0 for a text without words.
Vectors = np.ndarray | sparse.csr_array

_TERM = re.compile(r"\w+|[^\w\s]")
_ROWS_AT_ONCE = 1024
_ITERATIONS = 32
_OVERSAMPLING = 8


class Rare(NamedTuple):
    """Rare sentences.

    Attributes:
      contrast: Entropy of the rare sentences against the common ones.
      distances: f64[n], mean distance of each sentence to its nearest base sentences.
      is_rare: bool[n].
      places: f64[n, 2], principal components of the sentences.
      base_places: f64[m, 2], principal components of the base sentences.
    """

    contrast: Contrast
    distances: np.ndarray
    is_rare: np.ndarray
    places: np.ndarray
    base_places: np.ndarray


def rare_sentences(
    sentences: Group,
    vectors: Vectors,
    base: Vectors,
    *,
    neighbors: int,
    share: float,
    seed: int = 0,
) -> Rare:
    """Find the sentences farthest from the base, and contrast their entropy with the others'.

    Args:
      sentences: Mean entropy of each sentence, and its problem.
      vectors: f[n, features], embeddings of the sentences.
      base: f[m, features], embeddings of the base model's sentences, m >= neighbors.
      neighbors: The distance is the mean over this many nearest base sentences.
      share: Fraction of the sentences that count as rare, as in `most_distant`.
      seed: Seed of the resampling.
    """
    distances = mean_nearest_distance(vectors, base, neighbors)
    is_rare = most_distant(distances, share)
    rare, common = (Group(sentences.values[m], sentences.problems[m]) for m in (is_rare, ~is_rare))
    line = adjusted([contrast("rare", rare, "common sentences", common, seed=seed)])[0]
    stack = sparse.vstack if sparse.issparse(vectors) else np.concatenate
    places = principal_components(stack([vectors, base]))
    return Rare(line, distances, is_rare, places[: len(distances)], places[len(distances) :])


def tf_idf(texts: Sequence[str]) -> sparse.csr_array:
    """TF-IDF vectors of lower-case words and punctuation.

    v_t = tf_t (ln((1 + n) / (1 + df_t)) + 1), divided by its norm, for n texts, df_t of which
    contain term t

    Args:
      texts: All texts to compare with one another; they determine the weights.

    Returns:
      f64[texts, terms].
    """
    terms: dict[str, int] = {}
    columns, row_ends = [], [0]
    for text in texts:
        columns += [terms.setdefault(term, len(terms)) for term in _TERM.findall(text.lower())]
        row_ends.append(len(columns))
    shape = len(texts), max(len(terms), 1)
    counts = sparse.csr_array((np.ones(len(columns)), columns, row_ends), shape=shape)
    counts.sum_duplicates()
    frequency = np.bincount(counts.indices, minlength=shape[1])
    counts.data *= (np.log((1 + shape[0]) / (1 + frequency)) + 1)[counts.indices]
    norms = np.sqrt(np.add.reduceat(np.append(counts.data**2, 0), counts.indptr[:-1]))
    # `reduceat` returns an element of another row for an empty row.
    norms = np.where(np.diff(counts.indptr) > 0, norms, 1)
    counts.data /= np.repeat(norms, np.diff(counts.indptr))
    return counts


def mean_nearest_distance(vectors: Vectors, base: Vectors, k: int = 5) -> np.ndarray:
    """Mean cosine distance of each vector to its k nearest base vectors.

    d_i = 1/k Σ_j (1 - v_iᵀ b_j) over the k nearest b_j

    Args:
      vectors: f[n, features], rows of norm 1.
      base: f[m, features], m >= k.
      k: Number of neighbors.

    Returns:
      f64[n].

    Raises:
      ValueError: The base has fewer than k vectors.
    """
    if not 1 <= k <= base.shape[0]:
        raise ValueError(
            f"mean_nearest_distance: k must be from 1 to {base.shape[0]}, the base size, got {k}"
        )
    distances = np.empty(vectors.shape[0])
    for start in range(0, len(distances), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        products = vectors[rows] @ base.T
        products = products.toarray() if sparse.issparse(products) else products
        nearest = np.partition(products, products.shape[1] - k, axis=1)[:, -k:]
        distances[rows] = 1 - nearest.astype(np.float64).mean(axis=1)
    # Equal sentences must tie, whatever the rounding of their sums.
    return np.maximum(distances.round(6), 0)


def most_distant(distances: np.ndarray, share: float) -> np.ndarray:
    """bool[n]: the fraction of largest distances, rounded up.

    Of distances that equal the last one, all count or none, whichever comes nearer to the fraction,
    but at least one distance counts: equal sentences do not depend on their order.
    """
    count = int(np.ceil(round(share * len(distances), 9)))  # 0.07 * 100 is more than 7
    last = np.sort(distances)[-count]
    with_ties, without = distances >= last, distances > last
    is_nearer = count - without.sum() < with_ties.sum() - count
    return without if is_nearer and without.any() else with_ties


def principal_components(vectors: Vectors, count: int = 2, *, seed: int = 0) -> np.ndarray:
    """Principal components by subspace iteration.

    The covariance matrix is not formed, and the mean is subtracted from the products, so that
    sparse rows stay sparse. The largest component of each direction is made positive, so that the
    sign is defined. Source: Halko, Martinsson & Tropp, https://arxiv.org/abs/0909.4061, algorithm
    4.4.

    Args:
      vectors: f[n, features].
      count: Number of components.
      seed: Seed of the initial basis; affects the result only by rounding.

    Returns:
      f64[n, count]; zeros for components beyond the rank.
    """
    mean = np.asarray(vectors.mean(axis=0), np.float64)
    size = min(count + _OVERSAMPLING, *vectors.shape)
    basis = np.random.default_rng(seed).standard_normal((vectors.shape[1], size))
    for _ in range(_ITERATIONS):
        basis, _ = np.linalg.qr(basis)
        centered = vectors @ basis - mean @ basis
        basis = vectors.T @ centered - np.outer(mean, centered.sum(axis=0))
    basis, _ = np.linalg.qr(basis)
    _, _, right = np.linalg.svd(vectors @ basis - mean @ basis, full_matrices=False)
    directions = (basis @ right.T)[:, :count]
    directions *= np.sign(
        directions[np.argmax(np.abs(directions), axis=0), np.arange(directions.shape[1])]
    )
    places = vectors @ directions - mean @ directions
    return np.pad(places, ((0, 0), (0, count - places.shape[1])))
