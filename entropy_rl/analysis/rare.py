"""Rare behaviors: sentences unlike anything that the base model writes.

Sentences become unit vectors, by TF-IDF here or by an encoder elsewhere. Source: arXiv 2506.14758,
section 2, which takes SBERT, k = 5 and the top 10%, and names neither its checkpoint nor its
distance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from entropy_rl.analysis.contrasts import Contrast, Group, adjusted, contrast

Vectors = (
    np.ndarray | sparse.csr_array
)  # f[n, features], rows of norm 1, or 0 for a text without words

_TERM = re.compile(r"\w+|[^\w\s]")
_ROWS_AT_ONCE = 1024
_ITERATIONS = 32
_OVERSAMPLING = 8


class Rare(NamedTuple):
    """Attributes:
    contrast: Entropy of the rare sentences against that of the common ones.
    distances: f64[n], of each sentence to its nearest ones of the base.
    is_rare: bool[n].
    places: f64[n, 2], on the map of all sentences.
    base_places: f64[m, 2].
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
    """Calls the sentences rare that are farthest from the base, and compares their entropy with the
    others'.

    Args:
      sentences: The mean entropy of each sentence, and its problem.
      vectors: f[n, features] of the sentences.
      base: f[m, features] of the base model's sentences, m >= neighbors.
      neighbors: The distance is the mean one to so many.
      share: Of the sentences that are called rare.
      seed: Of the resampling.
    """
    distances = mean_nearest_distance(vectors, base, neighbors)
    is_rare = most_distant(distances, share)
    rare, common = (Group(sentences.values[m], sentences.problems[m]) for m in (is_rare, ~is_rare))
    line = adjusted([contrast("rare", rare, "common sentences", common, seed=seed)])[0]
    stack = sparse.vstack if sparse.issparse(vectors) else np.concatenate
    places = principal_components(stack([vectors, base]))
    return Rare(line, distances, is_rare, places[: len(distances)], places[len(distances) :])


def tf_idf(texts: Sequence[str]) -> sparse.csr_array:
    """TF-IDF vectors of words and signs in lower case.

    v_t = tf_t (ln((1 + n) / (1 + df_t)) + 1), divided by its norm, for n texts of which df_t have
    term t

    Args:
      texts: All texts that are to be held against one another: the weights are theirs.

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
    norms = np.where(
        np.diff(counts.indptr) > 0, norms, 1
    )  # an empty row has the sum of another one
    counts.data /= np.repeat(norms, np.diff(counts.indptr))
    return counts


def mean_nearest_distance(vectors: Vectors, base: Vectors, k: int = 5) -> np.ndarray:
    """Mean cosine distance of each vector to its k nearest ones of a base.

    d_i = 1/k Σ of the k smallest 1 - v_iᵀ b_j over j

    Args:
      vectors: f[n, features], rows of norm 1.
      base: f[m, features], m >= k.
      k: Neighbors.

    Returns:
      f64[n].

    Raises:
      ValueError: There are fewer than k vectors in the base.
    """
    if not 1 <= k <= base.shape[0]:
        raise ValueError(
            f"mean_nearest_distance: k={k} is not allowed; 1 <= k <= {base.shape[0]}, the base"
        )
    distances = np.empty(vectors.shape[0])
    for start in range(0, len(distances), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        products = vectors[rows] @ base.T
        products = products.toarray() if sparse.issparse(products) else products
        nearest = np.partition(products, products.shape[1] - k, axis=1)[:, -k:]
        distances[rows] = 1 - nearest.astype(np.float64).mean(axis=1)
    # Sentences that are equal tie, whatever the order of sums made of them.
    return np.maximum(distances.round(6), 0)


def most_distant(distances: np.ndarray, share: float) -> np.ndarray:
    """bool[n]: the share of the largest distances, rounded up; of those that tie the first ones."""
    rare = np.zeros(len(distances), bool)
    rare[np.argsort(-distances, kind="stable")[: int(np.ceil(share * len(distances)))]] = True
    return rare


def principal_components(vectors: Vectors, count: int = 2, *, seed: int = 0) -> np.ndarray:
    """Coordinates along the directions of largest variance, by subspace iteration.

    The matrix of covariances is never formed, and the mean not taken from the rows but from the
    products. The component of each direction that is largest in size is positive, so that the map
    does not flip. Source: Halko, Martinsson & Tropp, https://arxiv.org/abs/0909.4061, algorithm
    4.4.

    Args:
      vectors: f[n, features].
      count: Directions.
      seed: Of the first guess, on which the result depends only by rounding.

    Returns:
      f64[n, count]; zeros for directions that there are not.
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
