"""Reverse KL divergence on the top-k tokens and a tail: values, laws, gradients, memory."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from entropy_rl.lm_head import top_k_reverse_kl
from entropy_rl.lm_head.vocabulary import HeadWeights

B, N, D, D_T, V = 13, 5, 6, 9, 37


@pytest.fixture
def arrays(key):
    """Hidden states and head of a student and of a wider teacher, token weights and mask."""
    k = jax.random.split(key, 6)
    return (
        jax.random.normal(k[0], (B, N, D)),
        jax.random.normal(k[1], (V, D)),
        jax.random.normal(k[2], (B, N, D_T)),
        jax.random.normal(k[3], (V, D_T)),
        jax.random.uniform(k[4], (B, N)),
        jax.random.bernoulli(k[5], 0.6, (B, N)),
    )


def log_softmax64(hidden, head, temperature):
    z = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T / temperature
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def by_definition(log_p, log_q, k):
    """The definition in float64, from log-probs [..., V]."""
    order = np.argsort(-log_p, axis=-1, kind="stable")
    log_p, log_q = (np.take_along_axis(x, order, axis=-1) for x in (log_p, log_q))
    p, q = np.exp(log_p), np.exp(log_q)
    found = (p[..., :k] * (log_p - log_q)[..., :k]).sum(-1)
    if k < log_p.shape[-1]:
        p_tail, q_tail = p[..., k:].sum(-1), q[..., k:].sum(-1)
        found = found + p_tail * np.log(p_tail / q_tail)
    return found


def naive(hidden, head, teacher_hidden, teacher_head, weights, mask, *, top_k, temperature):
    """Σ weights L with whole logits, for `jax.grad`."""
    log_p, log_q = (
        jax.nn.log_softmax(h @ w.T / temperature)
        for h, w in ((hidden, head), (teacher_hidden, teacher_head))
    )
    _, ids = jax.lax.top_k(jax.lax.stop_gradient(log_p), top_k)
    inside = jax.nn.one_hot(ids, V).sum(-2) > 0
    p_in = jnp.where(inside, jnp.exp(log_p) * (log_p - log_q), 0).sum(-1)
    tail_p, tail_q = (
        jax.nn.logsumexp(jnp.where(inside, -jnp.inf, x), axis=-1) for x in (log_p, log_q)
    )
    kl = p_in + jnp.exp(tail_p) * (tail_p - tail_q)
    return jnp.where(mask, weights * kl, 0).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("top_k", [1, 4, 36, 37])
def test_values_are_those_of_the_definition_in_float64(arrays, top_k, temperature):
    hidden, head, teacher_hidden, teacher_head, weights, mask = arrays
    settings = dict(top_k=top_k, temperature=temperature)
    total, kl = top_k_reverse_kl(*arrays, **settings)
    log_p = log_softmax64(hidden, head, temperature)
    log_q = log_softmax64(teacher_hidden, teacher_head, temperature)
    expected = np.where(mask, by_definition(log_p, log_q, top_k), 0)
    assert kl.dtype == jnp.float32 and expected.max() > 1
    np.testing.assert_allclose(kl, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, (expected * np.asarray(weights)).sum(), rtol=1e-5)


def test_it_grows_with_k_up_to_the_divergence_over_the_vocabulary(arrays):
    hidden, head, teacher_hidden, teacher_head, *_, mask = arrays
    log_p = log_softmax64(hidden, head, 1.0)
    whole = (np.exp(log_p) * (log_p - log_softmax64(teacher_hidden, teacher_head, 1.0))).sum(-1)
    some = (1, 2, 4, 16, 36, 37)
    found = [np.asarray(top_k_reverse_kl(*arrays, top_k=k)[1])[mask] for k in some]
    assert all((b >= a - 1e-5).all() for a, b in itertools.pairwise(found))
    assert found[0].min() >= 0 and (found[0] < whole[mask] - 0.1).any()
    np.testing.assert_allclose(found[-1], whole[mask], rtol=1e-5)


def test_it_is_zero_for_equal_buckets_and_for_them_alone(key):
    log_p = jax.nn.log_softmax(jax.random.normal(key, (1, 8)))
    order = jnp.argsort(-log_p[0])
    # Another order of the tail: the buckets for k = 3 are equal, those for k = 4 are not.
    log_q = log_p.at[0, order[3:]].set(log_p[0, order[3:]][::-1])
    kl = [
        float(top_k_reverse_kl(log_p, jnp.eye(8), log_q, jnp.eye(8), jnp.ones(1), top_k=k)[1][0])
        for k in (3, 4)
    ]
    assert abs(kl[0]) < 1e-6 < 1e-3 < kl[1]


@pytest.mark.parametrize("top_k", [1, 4, 37])
@pytest.mark.parametrize("chunk_size", [2, 64])
def test_gradients_are_those_of_whole_logits(arrays, top_k, chunk_size):
    settings = dict(top_k=top_k, temperature=0.7)
    expected = jax.grad(naive, (0, 1))(*arrays, **settings)

    def loss(hidden, head, *rest):
        return 3.0 * top_k_reverse_kl(hidden, head, *rest, **settings, chunk_size=chunk_size)[0]

    found = jax.jit(jax.grad(loss, (0, 1)))(*arrays)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, 3 * want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_teacher_weights_and_values_have_no_gradient(arrays):
    def loss(*arrays):
        total, kl = top_k_reverse_kl(*arrays, arrays_mask, top_k=4)
        return total, kl

    *arrays, arrays_mask = arrays
    of_constants = jax.grad(lambda *x: loss(*x)[0], (2, 3, 4))(*arrays)
    of_values = jax.grad(lambda *x: loss(*x)[1].sum(), (0, 1))(*arrays)
    assert not any(np.asarray(x).any() for x in (*of_constants, *of_values))


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 2, 2)], ids=str)
def test_devices_that_share_the_vocabulary_give_the_result_of_one(arrays, shape):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def run(top_k, mesh=None):
        def loss(hidden, head, *rest):
            return top_k_reverse_kl(hidden, head, *rest, top_k=top_k, chunk_size=4, mesh=mesh)

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*arrays)

    for top_k in (4, 37):  # 37: more than the entries of a device
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            run(top_k, mesh),
            run(top_k),
        )


def test_of_equally_likely_tokens_the_lower_ids_are_taken_on_every_mesh():
    teacher = jnp.array([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    arguments = jnp.zeros((1, 6)), jnp.eye(6), teacher, jnp.eye(6), jnp.ones(1)
    expected = by_definition(np.full((1, 6), np.log(1 / 6)), np.log(jax.nn.softmax(teacher)), 4)
    axes = ("data", "fsdp", "tensor")
    for tensor in (1, 2, 4):
        mesh = jax.make_mesh((1, 1, tensor), axes, axis_types=(AxisType.Auto,) * 3)
        found = jax.jit(lambda *x, mesh=mesh: top_k_reverse_kl(*x, top_k=4, mesh=mesh)[1])
        np.testing.assert_allclose(found(*arguments), expected, rtol=1e-5)


def test_a_tail_whose_probability_underflows_is_no_nan_and_keeps_its_digits():
    # p_tail = e^-200 underflows; p_tail = 7 e^-20 has no digit in 1 - Σ p.
    for depth in (200.0, 20.0):
        z, teacher_z = jnp.array([[depth] + [0.0] * 7]), jnp.array([[0.0] * 8])
        loss = lambda z, t=teacher_z: top_k_reverse_kl(  # noqa: E731
            z, jnp.eye(8), t, jnp.eye(8), jnp.ones(1), top_k=1
        )[0]
        log_p, log_q = (log_softmax64(x, np.eye(8), 1.0) for x in (z, teacher_z))
        np.testing.assert_allclose(loss(z), by_definition(log_p, log_q, 1)[0], rtol=1e-6)
        # ∂L/∂z_v = p_v (r_tail - L) in the tail
        r_tail = np.log(np.exp(log_p[0, 1:]).sum() / np.exp(log_q[0, 1:]).sum())
        expected = np.exp(log_p[0, 1]) * (r_tail - by_definition(log_p, log_q, 1)[0])
        np.testing.assert_allclose(jax.grad(loss)(z)[0, 1], expected, rtol=1e-5, atol=1e-37)


def test_unused_rows_have_no_probability_and_vocabularies_may_be_padded_differently(arrays):
    hidden, head, teacher_hidden, teacher_head, *rest = arrays
    unused = ((5, 7), (30, 37))
    used = np.array([i for i in range(V) if not any(a <= i < b for a, b in unused)])
    expected = top_k_reverse_kl(
        hidden, head[used], teacher_hidden, teacher_head[used], *rest, top_k=9
    )
    student = HeadWeights(head[:33], ((5, 7), (30, 33)))
    teacher = HeadWeights(teacher_head, unused)
    for pair in ((student, teacher), (HeadWeights(head, unused), teacher)):
        found = top_k_reverse_kl(hidden, pair[0], teacher_hidden, pair[1], *rest, top_k=9)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
        )
    whole = top_k_reverse_kl(hidden, student, teacher_hidden, teacher, *rest, top_k=len(used))
    assert np.isfinite(whole[1]).all() and (whole[1] >= found[1] - 1e-5).all()


def test_nan_where_nothing_counts_does_no_harm(arrays):
    *arrays, mask = arrays
    hidden, head, teacher_hidden, teacher_head, weights = arrays
    hole = lambda x: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, jnp.nan)  # noqa: E731
    dirty = hole(hidden), head, hole(teacher_hidden), teacher_head, hole(weights)

    def run(*x):
        loss = lambda h, w: top_k_reverse_kl(h, w, *x[2:], mask, top_k=4)  # noqa: E731
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(*x[:2])

    jax.tree.map(np.testing.assert_array_equal, run(*dirty), run(*arrays))


def test_memory_is_that_of_a_chunk_and_no_buffer_holds_the_logits_of_all_tokens():
    tokens, vocab, width, chunk = 4096, 4096, 16, 64

    def loss(h, w, teacher_h, teacher_w, weights, mask):
        return top_k_reverse_kl(
            h, w, teacher_h, teacher_w, weights, mask, top_k=32, chunk_size=chunk
        )[0]

    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    shapes = of(tokens, width), of(vocab, width), of(tokens, 24), of(vocab, 24), of(tokens)
    mask = jax.ShapeDtypeStruct((tokens,), bool)
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes, mask).compile()
    sizes = {
        int(np.prod([int(d) for d in dims.split(",")]))
        for dims in re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text())
    }
    assert max(sizes) < tokens * vocab
    assert chunk * vocab in sizes
    assert compiled.memory_analysis().temp_size_in_bytes < 12 * chunk * vocab * 4


@pytest.mark.parametrize("top_k", [0, 38])
def test_a_k_outside_of_the_vocabulary_is_refused(arrays, top_k):
    with pytest.raises(ValueError, match=rf"^top_k: must be from 1 to 37, .* got {top_k}$"):
        top_k_reverse_kl(*arrays, top_k=top_k)


def test_shapes_and_vocabularies_that_do_not_fit_are_refused(arrays):
    hidden, head, teacher_hidden, teacher_head, weights, mask = arrays
    with pytest.raises(ValueError, match=r"^teacher_hidden, weights, mask: must have shapes"):
        top_k_reverse_kl(hidden, head, teacher_hidden[:1], teacher_head, weights, mask, top_k=1)
    with pytest.raises(ValueError, match=r"^head_weights, teacher_head_weights: must have the sa"):
        top_k_reverse_kl(hidden, head, teacher_hidden, teacher_head[:30], weights, mask, top_k=1)
