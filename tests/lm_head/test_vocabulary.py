"""Entries of the vocabulary that are no token: as if the head had no such rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from entropy_rl.lm_head import fused_head_loss, log_prob_and_entropy
from entropy_rl.lm_head.vocabulary import HeadWeights, is_unused, unused_ranges
from entropy_rl.rollout.sampling import sample

VOCAB, WIDTH, TOKENS = 37, 12, 24
UNUSED = ((5, 7), (30, 37))  # a hole, and the padding at the end
USED = np.array([i for i in range(VOCAB) if not (5 <= i < 7 or i >= 30)])


@functools.cache
def problem():
    random = np.random.RandomState(0)
    hidden = random.standard_normal((8, TOKENS // 8, WIDTH)).astype(np.float32)
    weights = random.standard_normal((VOCAB, WIDTH)).astype(np.float32)
    weights[~np.isin(np.arange(VOCAB), USED)] *= 5  # what is excluded would matter
    ids = random.choice(USED, (8, TOKENS // 8)).astype(np.int32)
    return jnp.asarray(hidden), jnp.asarray(weights), jnp.asarray(ids)


def meshes():
    devices = np.array(jax.devices())
    yield None
    yield Mesh(devices[:4].reshape(1, 1, 4), ("data", "fsdp", "tensor"))
    yield Mesh(devices.reshape(2, 2, 2), ("data", "fsdp", "tensor"))


@pytest.mark.parametrize("mesh", list(meshes()), ids=lambda m: "one" if m is None else str(m.shape))
def test_values_and_gradients_are_those_of_a_head_cut_to_the_tokens(mesh):
    hidden, weights, ids = problem()
    renumbered = jnp.asarray(np.searchsorted(USED, ids), jnp.int32)

    def total(hidden, weights, ids, mesh):
        log_probs, entropy = log_prob_and_entropy(hidden, weights, ids, temperature=0.7, mesh=mesh)
        return jnp.sum(log_probs * 0.3 + entropy), (log_probs, entropy)

    grad = jax.value_and_grad(total, (0, 1), has_aux=True)
    marked = jax.jit(lambda h, w, i: grad(h, HeadWeights(w, UNUSED), i, mesh))
    (_, found), (d_hidden, d_weights) = marked(hidden, weights, ids)
    (_, expected), (expected_h, expected_w) = grad(hidden, weights[USED], renumbered, None)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_hidden, expected_h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d_weights.weights[USED], expected_w, rtol=1e-4, atol=1e-5)
    rest = np.setdiff1d(np.arange(VOCAB), USED)
    np.testing.assert_array_equal(d_weights.weights[rest], 0)


def test_the_loss_of_one_pass_excludes_them_too():
    hidden, weights, ids = problem()
    loss = lambda log_prob, entropy, x: (log_prob + 0.1 * entropy, ())  # noqa: E731
    marked = fused_head_loss(hidden, HeadWeights(weights, UNUSED), ids, None, loss, ())
    renumbered = jnp.asarray(np.searchsorted(USED, ids), jnp.int32)
    cut = fused_head_loss(hidden, weights[USED], renumbered, None, loss, ())
    for a, b in zip(marked[:3], cut[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.7, 50.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_they_are_never_sampled_and_count_in_no_log_prob_or_entropy(temperature, top_p):
    hidden, weights, _ = problem()
    logits = jnp.tile(hidden.reshape(TOKENS, WIDTH) @ weights.T, (20, 1))
    uniforms = jnp.asarray(np.random.RandomState(1).uniform(size=len(logits)), jnp.float32)
    draw = functools.partial(sample, uniforms=uniforms, temperature=temperature, top_p=top_p)
    ids, log_probs, entropy = draw(logits, unused=UNUSED)
    assert np.isin(ids, USED).all()
    cut_ids, cut_log_probs, cut_entropy = draw(logits[:, USED])
    np.testing.assert_array_equal(ids, USED[cut_ids])
    np.testing.assert_allclose(log_probs, cut_log_probs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, cut_entropy, rtol=1e-5, atol=1e-5)


def test_a_recorded_token_that_is_none_has_a_finite_log_prob_and_no_probability():
    hidden, weights, ids = problem()
    log_probs, entropy = log_prob_and_entropy(
        hidden, HeadWeights(weights, UNUSED), ids.at[0, 0].set(31)
    )
    assert np.isfinite(log_probs).all() and np.isfinite(entropy).all()
    assert np.exp(log_probs[0, 0]) == 0


def test_ranges_are_those_of_the_missing_ids():
    assert unused_ranges(range(10), 10) == ()
    assert unused_ranges(range(7), 10) == ((7, 10),)
    assert unused_ranges([0, 1, 4, 9], 10) == ((2, 4), (5, 9))
    assert unused_ranges([3], 5) == ((0, 3), (4, 5))
    np.testing.assert_array_equal(
        is_unused(np.arange(5), ((0, 3), (4, 5))), [True, True, True, False, True]
    )
