"""Parts of a mini-batch: every row once, cut to what it needs, no more live tokens than the
budget.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.learner.fold import Rows, fold_micro_batches, micro_batch_shapes
from entropy_rl.models.packing import make_packing

T = 29


def make_rows(rows, seed=0):
    """Rows of which some are not needed, each token with the number of its row, -1 behind the
    end.
    """
    draw = np.random.default_rng(seed)
    first = draw.integers(0, 6, rows)
    last = np.where(draw.random(rows) < 0.8, draw.integers(6, T + 1, rows), first)
    tokens = np.where(np.arange(T) < last[:, None], np.arange(rows)[:, None], -1)
    return Rows((jnp.array(tokens), jnp.arange(rows)), jnp.array(first), jnp.array(last))


def record(rows, tokens, shards=1):
    """How often each row came, its tokens that were listed, and of each part: shape and live
    tokens.
    """
    count = len(rows.first)
    shapes = micro_batch_shapes(count // shards, T, tokens)

    def step(carry, part):
        seen, listed, sizes, i = carry
        ids, numbers = part.arrays
        packed = part.packed
        packing = make_packing(packed, T)
        of_row = packing.unpack(
            packing.pack(ids) == packing.pack(jnp.broadcast_to(numbers[:, None], ids.shape))
        )
        seen = part.put(seen, part.take(seen) + (packed.last > packed.first))
        listed = part.put(listed, of_row.sum(-1))
        of_share = (packed.last - packed.first).reshape(shards, -1)
        columns, room = jnp.array(shapes)[packed.shape_index]
        facts = (
            columns,
            (packed.last - packed.first).max(),
            room,
            (of_share > 0).sum(-1).max(),
            of_share.sum(-1).max(),
        )
        return seen, listed, sizes.at[i].set(jnp.stack(facts)), i + 1

    start = (jnp.zeros(count, int), jnp.zeros(count, int), jnp.zeros((count, 5), int), 0)
    run = jax.jit(lambda rows: fold_micro_batches(step, start, rows, shapes, tokens, shards))
    seen, listed, sizes, parts = run(rows)
    return seen, listed, sizes[: int(parts)].tolist()


@pytest.mark.parametrize(
    ("tokens", "seed", "shards"), [(T, 0, 1), (50, 1, 1), (T, 2, 2), (100, 3, 4), (10_000, 4, 2)]
)
def test_every_row_that_is_needed_comes_once_with_all_that_is_live_of_it(tokens, seed, shards):
    rows = make_rows(24, seed)
    seen, listed, sizes = record(rows, tokens, shards)
    np.testing.assert_array_equal(seen, rows.last > rows.first)
    np.testing.assert_array_equal(listed, rows.last - rows.first)
    for columns, longest, room, in_share, live in sizes:
        assert longest <= columns and in_share <= room and live <= tokens


def test_a_part_takes_rows_until_the_next_one_would_not_fit():
    lengths = jnp.array([T, 3, 3] + [6] * 10)
    rows = Rows((jnp.zeros((13, T)), jnp.arange(13)), jnp.zeros(13, int), lengths)
    _, _, sizes = record(rows, 35)
    # The long row and one of 6; 5 of 6, for a seventh would be too many; 4 of 6 and both of 3.
    assert [(columns, live) for columns, *_, live in sizes] == [(29, 35), (8, 30), (8, 30)]


def test_nothing_that_is_needed_is_no_part_at_all():
    seen, _, sizes = record(Rows((jnp.zeros((2, T)), jnp.arange(2)), *jnp.zeros((2, 2), int)), 40)
    assert seen.tolist() == [0, 0] and sizes == []


def test_the_shapes_are_few_and_keep_to_the_budget():
    shapes = [tuple(shape) for shape in micro_batch_shapes(4096, 10_240, 81_920)]
    assert shapes == [(1280, 128), (2560, 64), (5120, 32), (7680, 21), (10_240, 16)]
    assert [tuple(s) for s in micro_batch_shapes(3, 20, 40)] == [(8, 3), (16, 3), (20, 3)]
    # Of a row of 10 tokens after a prompt of 100, attention has 110 columns.
    shapes = [tuple(shape) for shape in micro_batch_shapes(64, 40, 128, prompt=100)]
    assert shapes == [(8, 9), (16, 8), (24, 8), (32, 7), (40, 6)]
    with pytest.raises(
        ValueError, match="max_tokens_per_micro_batch: must be >= 20, the length of a row, got 19"
    ):
        micro_batch_shapes(3, 20, 19)
