"""Parts of a mini-batch: every row once, cut to what it needs, none larger than the budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.micro_batches import buckets, fold_micro_batches
from entropy_rl.types import TrainBatch

S, N = 5, 24


def make_batch(lengths, prompt_lengths):
    rows = len(lengths)
    numbers = jnp.arange(rows, dtype=jnp.float32)
    tokens = jnp.where(jnp.arange(N)[None] < jnp.array(lengths)[:, None], numbers[:, None], -1)
    return TrainBatch(
        ids=jnp.tile(jnp.arange(S + N)[None], (rows, 1)),
        prompt_length=jnp.array(prompt_lengths),
        completion_ids=jnp.zeros((rows, N), jnp.int32),
        completion_mask=tokens >= 0,
        old_log_probs=tokens,
        old_entropy=tokens,
        sampler_log_probs=tokens,
        rewards=numbers,
        valid=jnp.ones(rows, bool),
    )


def record(batch, counts, tokens):
    """How often each row came, its sum over what counted, and (rows, length) of the parts in order."""
    shapes = []

    def step(carry, part, extra, numbers):
        seen, sums, sizes, i = carry
        shape = part.ids.shape
        shapes.append((shape, part.completion_mask.shape, extra.shape))
        inside = part.completion_mask.sum(-1) > 0
        seen = seen.at[numbers].add(1, mode="drop")
        sums = sums.at[numbers].add(
            jnp.where(part.completion_mask, part.old_log_probs, 0).sum(-1), mode="drop"
        )
        live = jnp.where(inside, part.prompt_length + part.completion_mask.sum(-1), 0).max()
        sizes = sizes.at[i].set(jnp.array([shape[0], shape[1], live, inside.sum()]))
        return seen, sums, sizes, i + 1

    rows = len(batch.rewards)
    start = (jnp.zeros(rows, int), jnp.zeros(rows), jnp.zeros((rows, 4), int), 0)
    run = jax.jit(lambda b, c: fold_micro_batches(step, start, b, b.rewards[:, None], c, tokens))
    seen, sums, sizes, count = run(batch, counts)
    return seen.tolist(), sums, sizes[: int(count)].tolist(), shapes


@pytest.mark.parametrize("tokens", [None, S + N, 50, 100, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_that_counts_comes_once_with_all_that_counts_of_it(tokens, seed):
    draw = np.random.default_rng(seed)
    lengths, prompts = draw.integers(1, N + 1, 23), draw.integers(1, S + 1, 23)
    counts = draw.random(23) < 0.8
    batch = make_batch(lengths, prompts)
    seen, sums, sizes, _ = record(batch, jnp.array(counts), tokens)
    assert seen == counts.astype(int).tolist()
    np.testing.assert_array_equal(sums, np.where(counts, lengths * np.arange(23), 0))
    for rows, length, live, _ in sizes:
        assert live <= length and (tokens is None or rows * length <= tokens)
    assert sum(inside for *_, inside in sizes) == counts.sum()


def test_short_rows_are_not_padded_to_the_longest():
    lengths = [N] + [3] * 40
    _, _, sizes, _ = record(make_batch(lengths, [2] * 41), jnp.ones(41, bool), S + N)
    assert sizes[0] == [1, 29, 26, 1]
    assert sizes[1:] == [[3, 8, 5, 3]] * 13 + [[3, 8, 5, 1]]


def test_nothing_that_counts_is_no_part_at_all():
    seen, _, sizes, _ = record(make_batch([1, 2], [1, 1]), jnp.zeros(2, bool), 40)
    assert seen == [0, 0] and sizes == []


def test_the_shapes_are_few_and_keep_to_the_budget():
    shapes = [tuple(bucket) for bucket in buckets(4096, 10_240, 81_920)]
    assert shapes == [(2560, 32), (5120, 16), (10_240, 8)]
    assert [tuple(b) for b in buckets(3, 20, 40)] == [(8, 3), (16, 2), (20, 2)]
    assert [tuple(b) for b in buckets(7, 20, None)] == [(20, 7)]
    with pytest.raises(ValueError, match="tokens_per_micro_batch: 19 is not allowed; allowed: >= 20"):
        buckets(3, 20, 19)
