"""The decoder: decoding step by step is the full forward pass, padding and the future are
invisible.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import TINY

from entropy_rl.models.decoder import make_policy
from entropy_rl.types import DecodeCache

VARIANTS = {
    "every switch on": TINY,
    "qwen2": dataclasses.replace(TINY, qk_norm=False, tie_embeddings=True, rope_scaling=None),
    "sliding window in one layer": dataclasses.replace(
        TINY, sliding_window=5, sliding_layers=(True, False)
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_prefill_and_cached_decoding_agree_with_the_full_forward_pass(name, key):
    policy = make_policy(VARIANTS[name])
    params = policy.init(key)
    group, new, lengths = 2, 9, [5, 8, 3]
    ids = np.array(jax.random.randint(key, (6, 17), 0, 32))
    ids[1::2, :8] = ids[::2, :8]  # the two rows of a group share their prompt
    full = policy.apply(params, jnp.array(ids))
    prompt_mask = jnp.arange(8)[None] < jnp.array(lengths)[:, None]
    hidden, prompts = policy.prefill(policy.to_decode(params), jnp.array(ids[::2, :8]), prompt_mask)
    cache = DecodeCache(prompts, prompt_mask, policy.empty_rows(6, new))
    for p, n in enumerate(lengths):
        np.testing.assert_allclose(hidden[p], full[2 * p, n - 1], atol=2e-5)
    decode = jax.jit(policy.decode)
    for t in range(new):
        columns = [lengths[b // group] + t for b in range(6)]
        token = jnp.array(ids[np.arange(6), columns])
        hidden, cache = decode(policy.to_decode(params), token, jnp.int32(t), cache)
        np.testing.assert_allclose(hidden, full[np.arange(6), np.array(columns)], atol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_token_sees_neither_the_future_nor_the_padding_after_it(name, key):
    policy = make_policy(VARIANTS[name])
    params = policy.init(key)
    ids = jax.random.randint(key, (2, 12), 0, 32)
    changed = policy.apply(params, ids.at[:, 7:].set(3))
    np.testing.assert_allclose(policy.apply(params, ids)[:, :7], changed[:, :7], atol=1e-6)
    np.testing.assert_allclose(policy.apply(params, ids[:, :7]), changed[:, :7], atol=1e-5)


def test_rematerialisation_changes_neither_values_nor_gradients(key):
    ids, config = jax.random.randint(key, (2, 12), 0, 32), VARIANTS["sliding window in one layer"]
    params = make_policy(config).init(key)

    def value_and_gradients(remat):
        policy = make_policy(config, remat=remat)
        return jax.jit(jax.value_and_grad(lambda p: (policy.apply(p, ids) ** 2).sum()))(params)

    expected = value_and_gradients("none")
    assert_same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # noqa: E731
    for remat in ("dots", "full"):
        jax.tree.map(assert_same, value_and_gradients(remat), expected)


def test_rematerialisation_takes_less_memory_the_more_is_computed_again():
    config = dataclasses.replace(
        TINY, num_layers=8, hidden_size=64, intermediate_size=192, head_dim=16
    )
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def temporary_bytes(remat):
        policy = make_policy(config, remat=remat)
        params = jax.eval_shape(policy.init, jax.random.key(0))
        gradient = jax.jit(jax.grad(lambda params, ids: policy.apply(params, ids).sum()))
        return gradient.lower(params, ids).compile().memory_analysis().temp_size_in_bytes

    none, dots, full = (temporary_bytes(remat) for remat in ("none", "dots", "full"))
    assert none > 2 * dots > 2 * full


def test_an_unknown_rematerialisation_is_refused_in_a_line():
    with pytest.raises(
        ValueError, match=r"^model\.remat: must be one of none, dots, full, got True$"
    ):
        make_policy(TINY, remat=True)


def test_bfloat16_compute_stays_close_to_float32_and_keeps_float32_masters(key):
    ids = jax.random.randint(key, (2, 12), 0, 32)
    full, half = make_policy(TINY), make_policy(TINY, compute_dtype=jnp.bfloat16)
    params = full.init(key)
    assert {x.dtype for x in jax.tree.leaves(half.init(key))} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(half.to_decode(params))} == {jnp.dtype("bfloat16")}
    difference = half.apply(params, ids).astype(jnp.float32) - full.apply(params, ids)
    assert abs(difference).mean() < 0.05
