"""Parts of a mini-batch with prompts that are computed once: how much is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import tiny_policy

from entropy_rl.config.common import MeshConfig
from entropy_rl.distributed.sharding import make_mesh
from entropy_rl.learner.micro_batches import MicroBatches
from entropy_rl.learner.pass_settings import PassSettings, shares_prompts
from entropy_rl.types import TrainBatch

PROMPTS, G, S, N = 4, 2, 16, 24


def make_batch():
    rows = PROMPTS * G
    of_tokens = jnp.zeros((rows, N))
    return TrainBatch(
        ids=jnp.ones((rows, S + N), jnp.int32),
        prompt_length=jnp.full(rows, S),
        completion_ids=jnp.ones((rows, N), jnp.int32),
        completion_mask=jnp.ones((rows, N), bool),
        old_log_probs=of_tokens,
        old_entropy=of_tokens,
        sampler_log_probs=of_tokens,
        rewards=jnp.zeros(rows),
        has_reward=jnp.ones(rows, bool),
    )


def lists_of(tokens, group_size, shards):
    """The shapes of the lists that the policy gets: of prompts, and of what learns."""
    policy, seen = tiny_policy(), {"prompts": set(), "parts": set()}
    mesh = make_mesh(MeshConfig(), jax.devices()[:shards])
    settings = PassSettings(max_tokens_per_micro_batch=tokens, group_size=group_size, mesh=mesh)

    def recorded(name, function):
        def call(params, ids, *rest):
            seen[name].add(ids.shape)
            return function(params, ids, *rest)

        return call

    recorder = policy._replace(
        prefix=recorded("prompts", policy.prefix),
        apply_packed=recorded("parts", policy.apply_packed),
    )

    def gradient(params, batch):
        parts = MicroBatches(recorder, batch, batch.completion_mask, settings)

        def loss(params, prefix, part):
            return (parts.hidden(params, prefix, part, part.arrays).hidden ** 2).sum(), jnp.zeros(
                ()
            )

        return parts.gradient(loss, params, batch)

    jax.eval_shape(gradient, jax.eval_shape(policy.init, jax.random.key(0)), make_batch())
    return seen


@pytest.mark.parametrize("shards", [1, 2])
def test_lists_have_room_for_what_there_is_and_no_more(shards):
    rows, prompts = PROMPTS * G // shards, PROMPTS // shards
    shared = lists_of(4096, G, shards)
    assert shared == {"prompts": {(shards, prompts * S)}, "parts": {(shards, rows * N)}}
    assert lists_of(4096, None, shards) == {"prompts": set(), "parts": {(shards, rows * (S + N))}}


def test_lists_have_no_more_room_than_a_micro_batch():
    assert lists_of(40, G, 1) == {"prompts": {(1, 40)}, "parts": {(1, 40)}}


@pytest.mark.parametrize(
    ("prompts", "group_size", "prompt_tokens", "new_tokens", "shards", "shares"),
    [
        (16, 16, 16, 160, 1, False),  # the quickstart: 9% of the tokens
        (8, 8, 56, 24, 1, True),  # 61%
        (8, 1, 56, 24, 1, False),  # nothing to share
        (8, 8, 56, 24, 16, False),  # groups are cut by the shards
    ],
)
def test_prompts_are_shared_where_that_saves_half_of_the_tokens(
    prompts, group_size, prompt_tokens, new_tokens, shards, shares
):
    assert shares_prompts(prompts, group_size, prompt_tokens, new_tokens, shards) is shares


def test_tokens_are_counted_as_by_hand():
    policy, batch = tiny_policy(), make_batch()
    mask = batch.completion_mask & (jnp.arange(N)[None] < 10)

    def count(mask, tokens, group_size):
        settings = PassSettings(max_tokens_per_micro_batch=tokens, group_size=group_size)
        return [float(x) for x in MicroBatches(policy, batch, mask, settings).count_tokens()]

    rows = PROMPTS * G
    # The last token of a row predicts nothing.
    assert count(mask, None, None) == [rows * (S + 10 - 1), rows * (S + N)]
    assert count(mask, 2 * (S + N), None) == [rows * (S + 10 - 1), 3 * 2 * (S + N)]
    # 8 completions of 10 tokens in lists of 48, 4 prompts in lists of 48.
    assert count(mask, 48, G) == [rows * 10 + PROMPTS * (S - 1), 2 * 48 + 2 * 48]
    first_group = mask & (jnp.arange(rows)[:, None] < G)
    assert count(first_group, 48, G) == [G * 10 + S - 1, 2 * 48]


def test_micro_batches_of_long_prompts_with_short_completions_are_filled():
    prompts, group_size, prompt_tokens, new = 16, 16, 900, 512
    rows, rng = prompts * group_size, np.random.default_rng(0)
    lengths = jnp.array(np.minimum(rng.geometric(1 / 150, rows), new))
    shape = jax.ShapeDtypeStruct
    of_tokens = shape((rows, new), jnp.float32)
    batch = TrainBatch(
        ids=jnp.ones((rows, prompt_tokens + new), jnp.int32),
        prompt_length=jnp.full(rows, prompt_tokens),
        completion_ids=shape((rows, new), jnp.int32),
        completion_mask=shape((rows, new), bool),
        old_log_probs=of_tokens,
        old_entropy=of_tokens,
        sampler_log_probs=of_tokens,
        rewards=shape((rows,), jnp.float32),
        has_reward=shape((rows,), bool),
    )
    settings = PassSettings(max_tokens_per_micro_batch=8192, group_size=group_size)
    mask = jnp.arange(new)[None] < lengths[:, None]
    needed, computed = MicroBatches(tiny_policy(), batch, mask, settings).count_tokens()
    assert computed < 1.4 * needed
