"""The fused head: equal to the plain one, over unmasked tokens only, without [B, T, V] logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.lm_head.log_probs import log_prob_and_entropy, log_prob_and_entropy_from_logits

B, N, D, V = 3, 7, 8, 37


@pytest.fixture
def inputs(key):
    k = jax.random.split(key, 4)
    hidden = jax.random.normal(k[0], (B, N, D))
    weights = jax.random.normal(k[1], (V, D))
    ids = jax.random.randint(k[2], (B, N), 0, V)
    mask = jax.random.bernoulli(k[3], 0.6, (B, N))
    return hidden, weights, ids, mask


def float64_reference(hidden, weights, ids, temperature):
    z = np.asarray(hidden, np.float64) @ np.asarray(weights, np.float64).T / temperature
    log_p = (
        z
        - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - z.max(-1, keepdims=True)
    )
    log_prob = np.take_along_axis(log_p, np.asarray(ids)[..., None], -1)[..., 0]
    return log_prob, -(np.exp(log_p) * log_p).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_size", [1, 4, 21, 100])
def test_values_equal_a_float64_softmax_for_every_chunk_size(inputs, temperature, chunk_size):
    hidden, weights, ids, mask = inputs
    got = log_prob_and_entropy(
        hidden, weights, ids, mask, temperature=temperature, chunk_size=chunk_size
    )
    want = float64_reference(hidden, weights, ids, temperature)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, np.where(mask, w, 0), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_of_both_outputs_equal_those_of_the_plain_version(inputs, temperature):
    hidden, weights, ids, mask = inputs
    cotangents = jax.random.normal(jax.random.key(7), (2, B, N))

    def fused(h, w):
        lp, ent = log_prob_and_entropy(h, w, ids, mask, temperature=temperature, chunk_size=4)
        return (cotangents[0] * lp + cotangents[1] * ent).sum()

    def plain(h, w):
        lp, ent = log_prob_and_entropy_from_logits(h @ w.T / temperature, ids)
        return jnp.where(mask, cotangents[0] * lp + cotangents[1] * ent, 0).sum()

    got, want = jax.grad(fused, (0, 1))(hidden, weights), jax.grad(plain, (0, 1))(hidden, weights)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_a_uniform_distribution_has_entropy_log_v_and_a_certain_one_zero():
    log_prob, entropy = log_prob_and_entropy(
        jnp.zeros((1, D)), jnp.ones((V, D)), jnp.zeros(1, jnp.int32)
    )
    np.testing.assert_allclose(entropy, np.log(V), rtol=1e-6)
    np.testing.assert_allclose(log_prob, -np.log(V), rtol=1e-6)
    certain = jnp.full((1, V), -jnp.inf).at[0, 3].set(0.0)
    log_prob, entropy = log_prob_and_entropy_from_logits(certain, jnp.array([3]))
    assert log_prob[0] == 0 and entropy[0] == 0


def test_tokens_that_do_not_count_are_never_read_and_get_no_gradient(inputs):
    hidden, weights, ids, mask = inputs
    poisoned = jnp.where(mask[..., None], hidden, jnp.nan)

    def loss(h, w):
        lp, ent = log_prob_and_entropy(h, w, ids, mask, chunk_size=4)
        return lp.sum() + ent.sum()

    clean, dirty = (jax.value_and_grad(loss, (0, 1))(h, weights) for h in (hidden, poisoned))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert not np.asarray(dirty[1][0])[~np.asarray(mask)].any()


def test_a_mask_without_any_true_gives_zeros(inputs):
    hidden, weights, ids, mask = inputs
    lp, ent = log_prob_and_entropy(hidden, weights, ids, jnp.zeros_like(mask))
    assert not lp.any() and not ent.any()


def test_the_weight_gradient_is_summed_in_float32_when_computing_in_bfloat16(key):
    tokens = 4096
    hidden = jnp.ones((tokens, 1), jnp.bfloat16)
    weights, ids = jnp.zeros((2, 1)), jnp.zeros(tokens, jnp.int32)
    grad = jax.grad(lambda w: log_prob_and_entropy(hidden, w, ids, chunk_size=16)[0].sum())(weights)
    # Each token adds 1/2; a bfloat16 sum in chunks of 8 would stall at 2048.
    np.testing.assert_array_equal(grad[:, 0], [tokens / 2, -tokens / 2])
    assert grad.dtype == jnp.float32


def test_no_buffer_holds_the_logits_of_all_tokens_and_memory_is_that_of_a_chunk():
    tokens, vocab, width, chunk = 4096, 4096, 16, 64

    def loss(h, w, ids, mask):
        lp, ent = log_prob_and_entropy(h, w, ids, mask, chunk_size=chunk)
        return lp.sum() + ent.sum()

    shapes = (
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), bool),
    )
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
    sizes = {
        int(np.prod([int(d) for d in dims.split(",")]))
        for dims in re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text())
    }
    assert max(sizes) < tokens * vocab
    assert chunk * vocab in sizes
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * chunk * vocab * 4


def test_shapes_that_do_not_fit_are_refused_with_all_of_them_named():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(5, 4\).*\(2,\)"):
        log_prob_and_entropy(jnp.zeros((2, 3)), jnp.zeros((5, 4)), jnp.zeros(2, jnp.int32))
