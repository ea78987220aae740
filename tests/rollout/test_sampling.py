"""Inverse-CDF sampling: exact frequencies, exact nuclei, exact log-probs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimized import optimized

from entropy_rl.rollout.sampling import inverse_cdf, nucleus, sample


@pytest.mark.parametrize("vocab", [3, 128, 300])
def test_evenly_spread_uniforms_hit_each_token_in_proportion_to_its_probability(key, vocab):
    n = 20_000
    p = jax.nn.softmax(2 * jax.random.normal(key, (vocab,)))
    uniforms = (jnp.arange(n) + 0.5) / n
    ids = inverse_cdf(jnp.broadcast_to(p, (n, vocab)), uniforms)
    frequency = np.bincount(np.asarray(ids), minlength=vocab) / n
    # A stretch of length p holds n*p points, give or take one, and float32 rounds the ends.
    np.testing.assert_allclose(frequency, p, atol=2.5 / n)


def test_a_token_without_mass_is_never_drawn_even_at_the_ends_of_the_interval():
    mass = jnp.zeros((3, 260)).at[:, jnp.array([5, 130, 255])].set(jnp.array([1e-8, 1.0, 1e-8]))
    ids = inverse_cdf(mass, jnp.array([0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))]))
    assert set(np.asarray(ids).tolist()) <= {5, 130, 255}


def test_a_token_without_mass_is_never_drawn_beside_a_boundary_of_a_large_vocabulary():
    """Parallel sums are not monotone to the last bit: an entry without mass may seem to be next."""
    vocab, rows, draw = 151_936, 64, np.random.default_rng(1)
    mass, uniforms = np.zeros((rows, vocab), np.float32), np.zeros(rows, np.float32)
    draw_from = jax.jit(inverse_cdf)
    for _ in range(4):
        mass[:] = 0
        for row in range(rows):
            places = draw.choice(vocab, draw.integers(2, 12), replace=False)
            mass[row, places] = draw.random(len(places))
            ends = np.cumsum(mass[row].astype(np.float64)[np.sort(places)])
            # The uniform number of a token is the middle of one of 2^23 cells.
            cell = np.floor(draw.choice(ends) / ends[-1] * 2**23) + draw.integers(-1, 1)
            uniforms[row] = np.clip(cell, 0, 2**23 - 1) * 2.0**-23 + 2.0**-24
        assert (mass[np.arange(rows), draw_from(mass, uniforms)] > 0).all()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95])
def test_the_nucleus_is_the_one_that_sorting_gives(key, top_p):
    p = np.asarray(jax.nn.softmax(3 * jax.random.normal(key, (16, 200))))
    kept = np.asarray(nucleus(jnp.asarray(p), top_p)) > 0
    for row, got in zip(p.astype(np.float64), kept, strict=True):
        order = np.argsort(-row)
        needed = np.searchsorted(np.cumsum(row[order]), top_p * row.sum()) + 1
        assert set(order[:needed]) == set(np.flatnonzero(got))


def test_log_probs_and_entropy_are_those_of_the_tempered_distribution_before_the_cut(key):
    logits = jax.random.normal(key, (4, 50))
    ids, log_probs, entropy = sample(logits, jnp.full(4, 0.3), temperature=0.6, top_p=0.5)
    log_p = np.asarray(logits, np.float64) / 0.6
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_probs, log_p[np.arange(4), ids], rtol=1e-5)
    np.testing.assert_allclose(entropy, -(np.exp(log_p) * log_p).sum(-1), rtol=1e-5)


def test_temperature_zero_takes_the_first_of_the_most_likely_tokens():
    ids, _, _ = sample(jnp.array([[0.0, 2.0, 2.0], [5.0, 1.0, 0.0]]), jnp.zeros(2), temperature=0)
    assert ids.tolist() == [1, 0]


@pytest.mark.parametrize("vocab", [5, 37, 1000])
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 1.3])
def test_a_greedy_row_takes_the_most_likely_token_as_compiled_for_users(key, vocab, temperature):
    logits = 3 * jax.random.normal(key, (64, vocab))
    greedy, uniforms = jnp.arange(64) % 2 == 0, jnp.full(64, 0.99)
    draw = optimized(lambda *given: sample(*given, temperature=temperature, greedy=greedy)[0])
    found = np.asarray(draw(logits, uniforms))
    np.testing.assert_array_equal(found[::2], np.asarray(logits).argmax(-1)[::2])
    assert temperature == 0 or (found[1::2] != np.asarray(logits).argmax(-1)[1::2]).any()


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9])
@pytest.mark.parametrize("temperature", [0.6, 1.3])
def test_a_token_is_of_the_nucleus_as_compiled_for_users(key, temperature, top_p):
    logits = 3 * jax.random.normal(key, (256, 37))
    draw = optimized(lambda *given: sample(*given, temperature=temperature, top_p=top_p)[0])
    found = np.asarray(draw(logits, jax.random.uniform(key, (256,))))
    z = np.asarray(logits, np.float64) / temperature
    mass = np.exp(z - z.max(-1, keepdims=True))
    mass /= mass.sum(-1, keepdims=True)
    of_token = np.take_along_axis(mass, found[:, None], -1)
    likelier = np.where(mass > of_token * (1 + 1e-5), mass, 0).sum(-1)
    assert (likelier < top_p).all()  # the tokens before it do not have the wanted mass yet


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_nan_give_an_id_of_the_vocabulary_and_a_nan_log_prob(
    temperature,
):
    logits = jnp.full((1, 5), jnp.nan)
    ids, log_probs, entropy = sample(logits, jnp.full(1, 0.5), temperature=temperature)
    assert 0 <= ids[0] < 5 and jnp.isnan(log_probs[0]) and jnp.isnan(entropy[0])
