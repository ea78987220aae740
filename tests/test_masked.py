"""Statistics over the entries that count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimized import optimized

from entropy_rl.masked import masked_center, masked_mean, masked_sum, masked_var

X = jnp.array([[1.0, 2.0, jnp.nan], [5.0, jnp.inf, 7.0]])
MASK = jnp.array([[True, True, False], [True, False, True]])
NOTHING = jnp.zeros((2, 3), bool)


def test_statistics_match_those_of_the_selected_entries():
    kept = np.array([1.0, 2.0, 5.0, 7.0])
    np.testing.assert_allclose(masked_sum(X, MASK), 15)
    np.testing.assert_allclose(masked_mean(X, MASK), 3.75)
    np.testing.assert_allclose(masked_var(X, MASK), kept.var(), rtol=1e-6)
    np.testing.assert_allclose(masked_var(X, MASK, ddof=1), kept.var(ddof=1), rtol=1e-6)
    np.testing.assert_allclose(masked_center(X, MASK), [[-2.75, -1.75, 0], [1.25, 0, 3.25]])


def test_statistics_along_an_axis_match_those_of_each_row():
    np.testing.assert_allclose(masked_sum(X, MASK, axis=1), [3, 12])
    np.testing.assert_allclose(masked_mean(X, MASK, axis=1, keepdims=True), [[1.5], [6]])
    np.testing.assert_allclose(masked_var(X, MASK, axis=1, ddof=1), [0.5, 2])
    np.testing.assert_allclose(masked_center(X, MASK, axis=1), [[-0.5, 0.5, 0], [-1, 0, 1]])


def test_statistics_of_nothing_are_zero():
    for statistic in (masked_sum, masked_mean, masked_var):
        assert statistic(X, NOTHING) == 0
        np.testing.assert_array_equal(statistic(X, NOTHING, axis=1), [0, 0])
    np.testing.assert_array_equal(masked_center(X, NOTHING), jnp.zeros((2, 3)))


def test_sample_variance_of_a_single_entry_is_zero():
    assert masked_var(jnp.array([3.0, 9.0]), jnp.array([True, False]), ddof=1) == 0


@pytest.mark.parametrize("value", [0.1, 1e-3, 1 / 3, -7.7, 1e6])
@pytest.mark.parametrize("n", [3, 7])
def test_equal_entries_have_exactly_zero_deviation_and_variance(value, n):
    x, mask = jnp.full((n,), value), jnp.arange(n) != 1
    assert not np.any(masked_center(x, mask))
    assert masked_var(x, mask, ddof=1) == 0


@pytest.mark.parametrize("weight", [0.3, 0.7, 1 / 3])
def test_equal_products_have_exactly_zero_deviation_where_they_are_fused(weight):
    x, mask = jnp.full((4, 7), 0.1), jnp.ones((4, 7), bool)
    deviation = optimized(lambda x: masked_center(weight * x, mask, axis=1))
    assert not np.any(deviation(x))


def test_the_gradient_is_that_of_a_plain_difference_also_of_equal_entries():
    x, mask, cotangent = jnp.array([3.0, 5, 5, 1]), jnp.ones(4, bool), jnp.array([1.0, 2, 7, -3])
    _, pull = jax.vjp(lambda x: masked_center(x, mask), x)
    np.testing.assert_allclose(pull(cotangent)[0], cotangent - cotangent.mean(), rtol=1e-6)


def test_masked_entries_get_a_zero_gradient_even_where_they_are_not_finite():
    gradient = jax.grad(lambda x: masked_sum(jnp.square(masked_center(x, MASK)), MASK))(X)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(MASK)], 0)


def test_a_mask_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\) and mask of shape \(2, 1\)"):
        masked_mean(X, MASK[:, :1])
