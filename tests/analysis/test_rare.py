"""Rare sentences: vectors, distances and the map against values by hand and brute force."""

import math

import numpy as np
import pytest
from scipy import sparse

from entropy_rl.analysis import (
    Group,
    mean_nearest_distance,
    principal_components,
    rare_sentences,
    tf_idf,
)
from entropy_rl.analysis.rare import most_distant


def random_vectors(rows, features, seed):
    vectors = np.random.default_rng(seed).normal(size=(rows, features))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_tf_idf_equals_its_values_by_hand():
    found = tf_idf(["A a b", "b = c", ""]).toarray()
    # Terms in the order a, b, =, c; of 3 texts 1, 2, 1 and 1 have them.
    one, two = math.log(4 / 2) + 1, math.log(4 / 3) + 1
    rows = np.array([[2 * one, two, 0, 0], [0, two, one, one], [0, 0, 0, 0]])
    rows[:2] /= np.linalg.norm(rows[:2], axis=1, keepdims=True)
    np.testing.assert_allclose(found, rows, atol=1e-12)


@pytest.mark.parametrize("texts", [[""], ["", "a", ""], ["   ", "\n"], ["a"] * 3, ["🤔 x", "数学"]])
def test_texts_without_words_have_zeros_and_all_others_the_norm_1(texts):
    norms = np.linalg.norm(tf_idf(texts).toarray(), axis=1)
    np.testing.assert_allclose(norms, [float(bool(text.strip())) for text in texts], atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_distances_equal_brute_force_over_more_rows_than_are_taken_at_once(k):
    vectors, base = random_vectors(1500, 6, 0), random_vectors(40, 6, 1)
    cosine = np.sort(1 - vectors @ base.T, axis=1)[:, :k].mean(axis=1)
    np.testing.assert_allclose(mean_nearest_distance(vectors, base, k), cosine, atol=1e-6)
    both = sparse.csr_array(vectors), sparse.csr_array(base)
    np.testing.assert_allclose(mean_nearest_distance(*both, k), cosine, atol=1e-6)


@pytest.mark.parametrize("k", [0, 41])
def test_more_neighbors_than_there_are_are_refused(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to 40, the base size, got {k}"):
        mean_nearest_distance(random_vectors(3, 4, 0), random_vectors(40, 4, 1), k)


def test_the_most_distant_are_a_share_rounded_up_with_all_ties_or_none():
    assert most_distant(np.array([1.0, 3, 2, 3, 0]), 0.3).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]
    # Equal texts get equal labels, in any order of the file.
    ties = np.array([3.0, 1, 3, 2, 3])
    np.testing.assert_array_equal(most_distant(ties, 0.2), ties == 3)
    many = np.append([2.0, 1, 2], np.zeros(9))
    np.testing.assert_array_equal(most_distant(many, 0.3), many > 0)  # 3 of 4, and not all 12
    assert most_distant(np.ones(11), 0.1).all()
    assert most_distant(np.arange(100), 0.07).sum() == 7  # 0.07 * 100 is above 7


@pytest.mark.parametrize("as_stored", [np.asarray, sparse.csr_array])
def test_the_map_is_that_of_a_full_decomposition(as_stored):
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(200, 30)) * np.append([5.0, 3.0], np.ones(28)) + draw.normal(
        size=30
    )
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    found = principal_components(as_stored(vectors))
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :2] * values[:2]), atol=1e-6)
    np.testing.assert_allclose(found, principal_components(as_stored(vectors), seed=1), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (2, 2), (4, 1)])
def test_a_map_of_little_has_zeros_for_what_there_is_not(shape):
    found = principal_components(np.random.default_rng(0).normal(size=shape))
    assert found.shape == (shape[0], 2) and np.isfinite(found).all()
    assert (principal_components(np.ones(shape)) == 0).all()


def test_sentences_unlike_the_base_are_rare_and_their_entropy_is_compared():
    texts = ["the sum is five", "the sum is six"] * 18 + ["zebras juggle"] * 4
    problems = np.concatenate([np.arange(36) % 4, np.arange(4)])
    draw = np.random.default_rng(0)
    entropy = draw.exponential(0.1, 40) + np.append(np.zeros(36), np.ones(4))
    vectors = tf_idf([*texts, *["the sum is five", "the sum is six"] * 5])
    group = Group(entropy, problems)
    found = rare_sentences(group, vectors[:40], vectors[40:], neighbors=5, share=0.1)
    assert np.flatnonzero(found.is_rare).tolist() == [36, 37, 38, 39]
    assert found.contrast.problems == 4 and found.contrast.difference > 0.8
    assert found.places.shape == (40, 2) and found.base_places.shape == (10, 2)
