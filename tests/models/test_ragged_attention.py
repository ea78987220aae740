"""Partial attention: merged parts are one softmax, and the ragged kernel equals the reference."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import TINY, mesh_of

from entropy_rl.models import make_policy
from entropy_rl.models.attention import cached as cached_attention
from entropy_rl.models.attention.parts import Part, attention_part, merge_parts
from entropy_rl.models.attention.ragged import ragged_attention
from entropy_rl.models.attention.ragged_gpu import ragged_attention_gpu
from entropy_rl.runs.load_model import check_heads
from entropy_rl.types import DecodeCache


def case(key, rows=5, kv_heads=2, r=3, columns=300, h=16, dtype=jnp.float32):
    """q, keys, values, first and length of empty rows, full rows, and rows with any bounds."""
    shapes = [(rows, kv_heads, r, h)] + [(rows, kv_heads, columns, h)] * 2
    keys = jax.random.split(key, 5)
    q, k, v = (
        jax.random.normal(key, s).astype(dtype) for key, s in zip(keys, shapes, strict=False)
    )
    length = jax.random.randint(keys[3], (rows,), 1, columns).at[0].set(0).at[1].set(columns)
    first = jnp.where(
        jnp.arange(rows) % 2 == 0, jax.random.randint(keys[4], (rows,), 0, length + 1), 0
    )
    return q, k, v, first.astype(jnp.int32), length


def seen_columns(k, first, length):
    column = jnp.arange(k.shape[2])[None]
    return ((column >= first[:, None]) & (column < length[:, None]))[:, None, None]


@jax.jit
def reference(q, k, v, first, length):
    return attention_part(q, k, v, seen_columns(k, first, length))


def float64_attention(q, k, v, seen):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("gkrh,gknh->gkrn", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("gkrn,gknh->gkrh", weights / weights.sum(-1, keepdims=True), v)


def assert_same_part(actual, expected, atol):
    """Outputs to `atol` when they are divided by their sum, statistics to float32."""
    np.testing.assert_allclose(merge_parts([actual]), merge_parts([expected]), atol=atol, rtol=0)
    np.testing.assert_allclose(actual.max, expected.max, rtol=1e-5)
    np.testing.assert_allclose(actual.sum, expected.sum, rtol=1e-5)


# --- parts ---


def test_merged_parts_are_one_softmax_over_both_regions(key):
    """A prompt that the rows of a group share, in one product; and each row's own new tokens."""
    prompts, group, kv_heads, r, length, new, h = 3, 2, 2, 3, 7, 5, 8
    keys = jax.random.split(key, 5)
    q = jax.random.normal(keys[0], (prompts * group, kv_heads, r, h))
    prompt_k, prompt_v = (
        3 * jax.random.normal(k, (prompts, kv_heads, length, h)) for k in keys[1:3]
    )
    new_k, new_v = (jax.random.normal(k, (prompts * group, kv_heads, new, h)) for k in keys[3:])
    seen_prompt = jnp.arange(length)[None] < jnp.array([7, 3, 1])[:, None]
    seen_new = jnp.arange(new)[None] < jnp.array([5, 1, 2, 0, 3, 4])[:, None]

    shared = (
        q.reshape(prompts, group, kv_heads, r, h)
        .swapaxes(1, 2)
        .reshape(prompts, kv_heads, group * r, h)
    )
    part = jax.jit(attention_part)(shared, prompt_k, prompt_v, seen_prompt[:, None, None])

    def per_row(x):
        x = x.reshape((prompts, kv_heads, group, r) + x.shape[3:]).swapaxes(1, 2)
        return x.reshape((prompts * group, kv_heads, r) + x.shape[4:])

    new_part = jax.jit(attention_part)(q, new_k, new_v, seen_new[:, None, None])
    merged = merge_parts([Part(*map(per_row, part)), new_part])

    whole = lambda prompt, new: np.concatenate([np.repeat(prompt, group, axis=0), new], axis=2)  # noqa: E731
    seen = np.concatenate([np.repeat(seen_prompt, group, axis=0), seen_new], axis=1)[:, None, None]
    expected = float64_attention(q, whole(prompt_k, new_k), whole(prompt_v, new_v), seen)
    np.testing.assert_allclose(merged, expected, atol=2e-6)


def test_an_empty_part_changes_nothing_and_empty_parts_alone_give_zero(key):
    q, k, v, first, length = case(key)
    part, empty = reference(q, k, v, first * 0, length), reference(q, k, v, first * 0, length * 0)
    np.testing.assert_array_equal(merge_parts([part, empty]), merge_parts([part]))
    assert not np.asarray(merge_parts([empty, empty])).any()


# --- the kernel ---


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("block", [128, None])  # three blocks, the last one cut off; one
def test_the_kernel_agrees_with_the_reference(dtype, atol, block, key):
    x = case(key, dtype=dtype)
    kernel = jax.jit(lambda *x: ragged_attention(*x, block=block, interpret=True))
    assert_same_part(kernel(*x), reference(*x), atol)


def test_the_kernel_reads_nothing_outside_of_the_bounds_not_even_nan(key):
    q, k, v, first, length = case(key)
    outside = ~seen_columns(k, first, length).swapaxes(2, 3)
    broken = ragged_attention(
        q, jnp.where(outside, jnp.nan, k), jnp.where(outside, jnp.nan, v), first, length,
        block=128, interpret=True,
    )  # fmt: skip
    assert_same_part(broken, reference(q, k, v, first, length), atol=2e-6)


def test_no_block_is_fetched_but_those_with_columns_that_are_seen():
    from entropy_rl.models.attention.ragged import _fetched_blocks

    first = np.array([0, 0, 300, 0, 128, 50])
    length = np.array([0, 129, 300, 384, 256, 40])
    row, low, high = map(np.asarray, _fetched_blocks(jnp.array(first), jnp.array(length), 128))
    steps = [(row[i], np.clip(j, low[i], high[i])) for i in range(6) for j in range(3)]
    fetched = {b for a, b in zip([None, *steps], steps, strict=False) if a != b}
    assert fetched - {(0, 0)} == {
        (1, 0),
        (1, 1),
        (3, 0),
        (3, 1),
        (3, 2),
        (4, 1),
    }  # (0, 0): the first of all


def test_the_kernel_over_a_mesh_agrees_with_the_reference(key):
    x, mesh = case(key, rows=8), mesh_of(2, 2, 2)
    kernel = jax.jit(lambda *x: ragged_attention(*x, mesh=mesh, block=128, interpret=True))
    assert_same_part(kernel(*x), reference(*x), atol=2e-6)


def test_rows_that_the_mesh_does_not_divide_are_padded(key):
    x, mesh = case(key, rows=5), mesh_of(2, 2, 2)
    kernel = jax.jit(lambda *x: ragged_attention(*x, mesh=mesh, block=128, interpret=True))
    assert_same_part(kernel(*x), reference(*x), atol=2e-6)


def test_heads_that_the_mesh_does_not_divide_are_refused_in_a_line(key):
    with pytest.raises(
        ValueError, match=r"must be a multiple of the mesh axis tensor \(4\), got 2"
    ):
        ragged_attention(*case(key), mesh=mesh_of(1, 1, 4))
    check_heads(TINY, mesh_of(1, 1, 4))
    check_heads(TINY, mesh_of(1, 1, 2), "ragged")
    with pytest.raises(
        ValueError, match=r"^model\.decode_attention: must be auto or xla if .* the model's 2"
    ):
        check_heads(TINY, mesh_of(1, 1, 4), "ragged")


def test_auto_decodes_in_xla_where_every_device_has_all_kv_heads(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = dataclasses.replace(TINY, head_dim=16)

    def shape_of_keys(tensor):
        return make_policy(config, mesh=mesh_of(1, 1, tensor)).empty_rows(4, 10)[0].keys.shape

    assert shape_of_keys(2) == (4, 2, 10, 16)  # as the kernel reads them
    assert shape_of_keys(4) == (4, 2, 16, 10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_on_a_tpu_agrees_with_the_reference(dtype, key):
    if jax.default_backend() != "tpu":
        pytest.skip(f"the kernel needs the backend tpu, this is {jax.default_backend()}")
    x = case(key, rows=16, columns=3000, h=128, dtype=dtype)
    with jax.default_matmul_precision("highest"):
        expected = reference(*x)
    assert_same_part(
        jax.jit(ragged_attention)(*x), expected, atol=1e-4 if dtype == jnp.float32 else 5e-2
    )


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 5])
def test_the_decoder_decodes_the_same_with_the_kernel(key, window, monkeypatch):
    monkeypatch.setattr(
        cached_attention, "ragged_attention", partial(ragged_attention, interpret=True)
    )
    config = dataclasses.replace(
        TINY, sliding_window=window, sliding_layers=(True,) * TINY.num_layers
    )
    outputs = []
    for implementation in ("xla", "ragged"):
        policy = make_policy(config, decode_attention=implementation)
        params = policy.to_decode(policy.init(key))
        ids, mask = (
            jax.random.randint(key, (2, 6), 0, 32),
            jnp.arange(6)[None] < jnp.array([[6], [3]]),
        )
        _, prompts = policy.prefill(params, ids, mask)
        cache = DecodeCache(prompts, mask, policy.empty_rows(4, 16))
        for t in range(8):
            hidden, cache = policy.decode(params, ids.reshape(-1)[t : t + 4], jnp.int32(t), cache)
        per_row, _ = policy.decode(params, ids[0, :4], jnp.array([8, 3, 1, 8]), cache)
        outputs.append((hidden, per_row))
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


# --- the kernel for GPUs ---


@pytest.mark.parametrize("splits", [None, 1, 2, 7])
@pytest.mark.parametrize("r", [1, 6])
def test_the_kernel_for_gpus_is_the_reference(r, splits, key):
    """Seven programs for a row of five blocks: some have nothing to do."""
    x = case(key, r=r)
    run = jax.jit(partial(ragged_attention_gpu, splits=splits, interpret=True))
    assert_same_part(run(*x), reference(*x), atol=2e-5)


def test_the_kernel_for_gpus_does_not_read_what_is_not_seen(key):
    q, k, v, first, length = case(key)
    hidden = ~seen_columns(k, first, length)[:, :, 0, :, None]
    spoilt = (jnp.where(hidden, jnp.nan, x) for x in (k, v))
    run = jax.jit(partial(ragged_attention_gpu, interpret=True))
    assert_same_part(run(q, *spoilt, first, length), reference(q, k, v, first, length), atol=2e-5)


@pytest.mark.parametrize("rows", [5, 300])
def test_the_kernel_for_gpus_on_its_device_is_the_reference(rows, key):
    if jax.default_backend() != "gpu":
        pytest.skip(f"the kernel needs the backend gpu, this is {jax.default_backend()}")
    x = case(key, rows=rows, r=6, columns=700, h=128, dtype=jnp.bfloat16)
    actual, expected = jax.jit(ragged_attention)(*x), reference(*x)
    # bfloat16 has 8 bits: the weights are rounded to it before the product with the values.
    np.testing.assert_allclose(merge_parts([actual]), merge_parts([expected]), atol=1e-2, rtol=0)
    np.testing.assert_allclose(actual.sum, expected.sum, rtol=1e-2)
