"""Rollouts: exact on a table policy, equal to a full forward pass, independent of the layout."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import TINY, table_policy, tiny_policy

from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.lm_head.log_probs import log_prob_and_entropy
from entropy_rl.rollout import decode, make_generate
from entropy_rl.types import FinishReason

EOS, PAD = 1, 0


def generate(
    policy,
    params,
    prompts,
    key,
    *,
    group_size=2,
    new=6,
    prompt_index=None,
    first_sample=0,
    **kwargs,
):
    length = max(map(len, prompts))
    ids = jnp.array([p + [PAD] * (length - len(p)) for p in prompts])
    mask = jnp.array([[True] * len(p) + [False] * (length - len(p)) for p in prompts])
    index = jnp.arange(len(prompts)) if prompt_index is None else jnp.array(prompt_index)
    run = make_generate(
        policy, group_size=group_size, max_new_tokens=new, eos_ids=[EOS], pad_id=PAD, **kwargs
    )
    return run(params, ids, mask, index, key, first_sample)


def test_a_chain_of_certain_tokens_is_followed_to_its_end_token_which_is_kept(key):
    table = jnp.full((5, 5), -1e9).at[jnp.array([2, 3, 4]), jnp.array([3, 4, EOS])].set(0.0)
    out = generate(table_policy(5), {"table": table}, [[2], [4, 3]], key)
    assert out.completion_ids.tolist() == [[3, 4, 1, 0, 0, 0]] * 2 + [[4, 1, 0, 0, 0, 0]] * 2
    assert out.completion_mask.sum(-1).tolist() == [3, 3, 2, 2]
    assert out.finish_reason.tolist() == [FinishReason.EOS] * 4
    assert not out.log_probs.any() and not out.entropy.any()


def test_a_row_that_never_ends_is_cut_off_and_says_so(key):
    table = jnp.full((5, 5), -1e9).at[:, 2].set(0.0)
    out = generate(table_policy(5), {"table": table}, [[2]], key)
    assert out.completion_mask.all() and (out.finish_reason == FinishReason.LENGTH).all()


def test_log_probs_and_entropies_are_those_of_the_table(key):
    policy = table_policy(7)
    params = policy.init(key)
    out = generate(policy, params, [[2], [3]], key, group_size=8)
    log_p = np.asarray(params["table"], np.float64)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    ids, mask = np.asarray(out.completion_ids), np.asarray(out.completion_mask)
    before = np.concatenate([np.repeat([[2], [3]], 8, axis=0), ids[:, :-1]], axis=1)
    np.testing.assert_allclose(out.log_probs, np.where(mask, log_p[before, ids], 0), atol=2e-6)
    np.testing.assert_allclose(out.entropy, np.where(mask, entropy[before], 0), atol=2e-6)


def test_sampled_frequencies_are_those_of_the_table(key):
    policy = table_policy(4)
    params = policy.init(key)
    out = generate(policy, params, [[2]], key, group_size=20_000, new=1)
    frequency = np.bincount(np.asarray(out.completion_ids)[:, 0], minlength=4) / 20_000
    p = np.asarray(jax.nn.softmax(params["table"][2]))
    # Five standard errors.
    assert (abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / 20_000)).all()


def test_cached_decoding_has_the_log_probs_and_entropies_of_a_full_forward_pass(decoder, key):
    policy, params = decoder
    prompts, new = [[5, 6, 7, 8, 9], [10], [11, 12, 13]], 12
    longest = max(map(len, prompts)) + new
    out = jax.device_get(generate(policy, params, prompts, key, new=new, temperature=0.7))

    @jax.jit
    def score(row):
        hidden = policy.apply(params, row[None, :-1])[0]
        return log_prob_and_entropy(hidden, policy.head(params), row[1:], temperature=0.7)

    for b, (ids, mask) in enumerate(zip(out.completion_ids, out.completion_mask, strict=True)):
        prompt, n = prompts[b // 2], int(mask.sum())
        row = prompt + ids[:n].tolist()
        lp, ent = score(np.array(row + [PAD] * (longest - len(row))))
        completion = slice(len(prompt) - 1, len(row) - 1)
        np.testing.assert_allclose(out.log_probs[b, :n], lp[completion], atol=2e-5)
        np.testing.assert_allclose(out.entropy[b, :n], ent[completion], atol=2e-5)


def test_a_sample_does_not_depend_on_the_other_rows_or_on_padding_or_on_how_samples_are_split(
    decoder, key
):
    policy, params = decoder
    prompts = [[5, 6, 7], [10, 4, 2, 3, 9], [11, 12]]
    whole = generate(policy, params, prompts, key, group_size=4, new=10)
    alone = generate(policy, params, prompts[2:], key, group_size=4, new=10, prompt_index=[2])
    np.testing.assert_array_equal(whole.completion_ids[8:], alone.completion_ids)
    turned = generate(
        policy, params, prompts[::-1], key, group_size=4, new=10, prompt_index=[2, 1, 0]
    )
    np.testing.assert_array_equal(whole.completion_ids[:4], turned.completion_ids[8:])
    late = generate(policy, params, prompts, key, group_size=2, new=10, first_sample=2)
    np.testing.assert_array_equal(
        whole.completion_ids.reshape(3, 4, 10)[:, 2:].reshape(6, 10), late.completion_ids
    )


@pytest.mark.parametrize(
    "decoding",
    [
        pytest.param(dict(static=True), id="static", marks=pytest.mark.slow),
        pytest.param(dict(decoding=DecodingConfig(slots=5, chunk_steps=4)), id="refill"),
    ],
)
def test_a_greedy_row_beside_a_group_is_that_at_temperature_0_and_the_others_are_as_without(
    decoder, key, decoding
):
    policy, params = decoder
    prompts, settings = (
        [[5, 6, 7], [10, 4, 2, 3, 9]],
        dict(new=10, temperature=1.3, **decoding),
    )
    with_greedy = generate(policy, params, prompts, key, group_size=3, greedy=True, **settings)
    without = generate(policy, params, prompts, key, group_size=3, **settings)
    greedy = generate(policy, params, prompts, key, group_size=1, new=10, temperature=0.0)
    rows = with_greedy.completion_ids.reshape(2, 4, 10)
    np.testing.assert_array_equal(rows[:, :3].reshape(6, 10), without.completion_ids)
    np.testing.assert_array_equal(rows[:, 3], greedy.completion_ids)


def test_another_key_gives_other_samples_and_the_same_key_the_same(decoder, key):
    policy, params = decoder
    one, two = (generate(policy, params, [[5, 6]], key, new=10) for _ in range(2))
    other = generate(policy, params, [[5, 6]], jax.random.fold_in(key, 1), new=10)
    np.testing.assert_array_equal(one.completion_ids, two.completion_ids)
    assert (one.completion_ids != other.completion_ids).any()


def test_the_smallest_and_the_largest_uniform_draw_no_token_that_is_all_but_impossible(
    key, monkeypatch
):
    table = jnp.full((5, 5), -60.0).at[:, 2].set(0.0)
    for edge in (0.0, 1 - 2.0**-23):  # of what jax.random.uniform can return
        monkeypatch.setattr(jax.random, "uniform", lambda key, edge=edge: jnp.float32(edge))
        out = generate(table_policy(5), {"table": table}, [[2]], key, group_size=1, new=3)
        assert out.completion_ids.tolist() == [[2, 2, 2]]


def test_no_buffer_of_the_compiled_rollout_holds_logits_of_all_positions():
    policy = tiny_policy()
    params = jax.eval_shape(policy.init, jax.random.key(0))
    prompts, length, group, new, vocab = 2, 11, 3, 13, TINY.vocab_size
    run = make_generate(
        policy,
        group_size=group,
        max_new_tokens=new,
        eos_ids=[1],
        pad_id=0,
        decoding=DecodingConfig(slots=prompts * group, chunk_steps=None),
    )
    i32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    mask = jax.ShapeDtypeStruct((prompts, length), bool)
    lowered = jax.jit(run).lower(
        params, i32(prompts, length), mask, i32(prompts), jax.random.key(0)
    )
    shapes = set(re.findall(r"f32\[([\d,]+)\]", lowered.compile().as_text()))
    assert f"{prompts * group},{vocab}" in shapes
    for positions in (length, length - 1, new, new - 1):
        assert not [s for s in shapes if s.endswith(f"{positions},{vocab}") and s.count(",") == 2]


def test_prompts_that_are_computed_in_parts_give_the_same_samples(key, monkeypatch):
    policy = tiny_policy()
    params, prompts = policy.init(key), [[2, 3, 4], [5], [6, 7], [8, 9, 10], [11, 12]]
    whole = generate(policy, params, prompts, key)
    monkeypatch.setattr(
        decode, "_PREFILL_TOKENS", 2 * 3
    )  # two prompts at once, and one that fills up
    parts = generate(policy, params, prompts, key)
    assert parts.completion_ids.tolist() == whole.completion_ids.tolist()
    np.testing.assert_allclose(parts.log_probs, whole.log_probs, atol=1e-5)
