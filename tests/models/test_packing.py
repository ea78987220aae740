"""Packed tokens: the same numbers as whole rows, and gradients that are gathers too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import TINY

from entropy_rl.models.decoder import make_policy
from entropy_rl.models.packing import make_packing, pack_tokens

R, T, PROMPT = 6, 12, 5


def pack(seed=0, shards=1, extra=0):
    draw = np.random.default_rng(seed)
    first = draw.integers(0, PROMPT, R)
    last = np.where(draw.random(R) < 0.8, draw.integers(PROMPT, T + 1, R), first)
    room = int((last - first).reshape(shards, -1).sum(-1).max()) + extra
    shapes = ((8, R // shards), (T, R // shards))

    @jax.jit
    def packed(first, last):
        return pack_tokens(first, last, jnp.int32(1), shapes, room=room, shards=shards)

    return packed(first, last)


def inside(tokens):
    column = np.arange(T)[None]
    return (column >= np.array(tokens.first)[:, None]) & (column < np.array(tokens.last)[:, None])


def round_trip(tokens, x, begin=None):
    """An array [R, columns, ...] packed, and unpacked again."""

    @jax.jit
    def pack_and_unpack(tokens, x):
        packing = make_packing(tokens, x.shape[1], begin=begin)
        packed = packing.pack(x)
        return packed, packing.unpack(packed)

    return jax.device_get(pack_and_unpack(tokens, x))


@pytest.mark.parametrize(("shards", "extra"), [(1, 0), (1, 7), (2, 0), (3, 4)])
def test_packing_keeps_the_order_of_tokens_and_unpacking_inverts_it(key, shards, extra):
    tokens, x = pack(0, shards, extra), np.array(jax.random.normal(key, (R, T, 3)))
    packed, unpacked = round_trip(tokens, x)
    mask, per_shard = inside(tokens), R // shards
    for c in range(shards):
        shard = slice(c * per_shard, (c + 1) * per_shard)
        rows, columns = np.nonzero(mask[shard])
        np.testing.assert_array_equal(packed[c, : len(rows)], x[shard][rows, columns])
        np.testing.assert_array_equal(packed[c, len(rows) :], 0)
        np.testing.assert_array_equal(
            np.array(tokens.segment_ids)[c],
            np.pad(rows, (0, packed.shape[1] - len(rows)), constant_values=per_shard),
        )
        np.testing.assert_array_equal(np.array(tokens.positions)[c, : len(rows)], columns)
    np.testing.assert_array_equal(unpacked, np.where(mask[..., None], x, 0))


@pytest.mark.parametrize("shards", [1, 2])
def test_the_window_of_an_array_can_begin_elsewhere_in_each_row(key, shards):
    tokens, begin, columns = pack(2, shards), np.array([-2, 0, 1, 3, 4, 9]), 6
    x = np.array(jax.random.normal(key, (R, columns, 3)))
    mask = inside(tokens)
    expected = np.zeros((R, columns, 3))
    for r in range(R):
        for t in range(columns):
            if 0 <= begin[r] + t < T and mask[r, begin[r] + t]:
                expected[r, t] = x[r, t]
    np.testing.assert_array_equal(round_trip(tokens, x, begin)[1], expected)


def test_the_gradients_of_packing_and_unpacking_are_those_of_the_library(key):
    tokens = pack()
    packing, room = make_packing(tokens, T), tokens.segment_ids.shape[1]
    x, y = jax.random.normal(key, (R, T, 3)), jax.random.normal(key, (1, room, 3))
    rows, columns = np.nonzero(inside(tokens))
    for ours, plain, value in (
        (packing.pack, lambda x: x[rows, columns][None], x),
        (packing.unpack, lambda y: jnp.zeros((R, T, 3)).at[rows, columns].set(y[0]), y),
    ):
        gradients = (
            jax.jit(jax.grad(lambda v, f=f: jnp.sum(jnp.sin(f(v)))))(value) for f in (ours, plain)
        )
        np.testing.assert_allclose(*gradients, atol=1e-6)


WINDOWED = dataclasses.replace(TINY, sliding_window=4, sliding_layers=(True, False))


@pytest.mark.parametrize(
    ("config", "shards", "remat"),
    [
        pytest.param(TINY, 1, "none", marks=pytest.mark.slow),
        (TINY, 2, "full"),
        pytest.param(WINDOWED, 1, "dots", marks=pytest.mark.slow),
    ],
)
def test_packed_tokens_after_shared_prompts_are_those_of_whole_rows(key, config, shards, remat):
    policy = make_policy(config, remat=remat)
    params = jax.jit(policy.init)(key)
    prompts = jax.random.randint(key, (4, PROMPT), 0, 37)
    tokens = pack(3, shards)
    owner = jnp.array([0, 1, 1, 0, 0, 1])  # in its shard
    in_all = owner + (jnp.arange(R) // (R // shards)) * (4 // shards)
    known = jnp.arange(T)[None] < tokens.first[:, None]
    ids = jax.random.randint(jax.random.key(1), (R, T), 0, 37)
    ids = jnp.where(known, jnp.pad(prompts, ((0, 0), (0, T - PROMPT)))[in_all], ids)
    mask, target = inside(tokens)[..., None], jax.random.normal(key, (R, T, 32))

    def plain(params):
        return jnp.where(mask, policy.apply(params, ids), 0)

    def packed(params):
        ends = jnp.full(4, PROMPT)
        whole = pack_tokens(
            0 * ends, ends, 0, ((PROMPT, 4 // shards),), room=4 * PROMPT // shards, shards=shards
        )
        prefix = policy.prefix(params, make_packing(whole, PROMPT).pack(prompts), whole, PROMPT)
        packing = make_packing(tokens, T)
        behind = tokens.replace(prefix=prefix, prompt=owner)
        return packing.unpack(policy.apply_packed(params, packing.pack(ids), behind))

    def run(f):
        of = lambda p: (jnp.sum(target * (hidden := f(p))), hidden)  # noqa: E731
        return jax.jit(jax.grad(of, has_aux=True))(params)

    (one, hidden), (other, expected) = run(packed), run(plain)
    # float32, sums in another order; hidden states are of size 1, gradients up to 10.
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, other)
