"""Decoding plans: the same samples from all, bounded work, and the loop on the host."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import TINY, table_policy, tiny_policy

from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.models.decoder import make_policy
from entropy_rl.rollout import make_generate
from entropy_rl.rollout.batching import (
    DecodingPlan,
    cache_bytes,
    column_counts,
    describe_decoding,
    plan_decoding,
    row_counts,
    rows_that_fit,
)
from entropy_rl.rollout.programs import SamplerPrograms
from entropy_rl.rollout.state import Sampling
from entropy_rl.rollout.stop_strings import StopStrings
from entropy_rl.types import FinishReason

EOS, PAD, V = 1, 0, TINY.vocab_size
PROMPTS, GROUP, NEW = 5, 4, 96  # enough rows to compact and columns to grow
SEEDS = (4, 2)

STATIC = None  # the reference, which no config can ask for
DECODING = {
    "all rows in one program": DecodingConfig(chunk_steps=None),
    "all rows in chunks of 7": DecodingConfig(chunk_steps=7),
    "8 slots in one program": DecodingConfig(slots=8, chunk_steps=None),
    "8 slots in chunks of 7": DecodingConfig(slots=8, chunk_steps=7),
    "3 slots in chunks of 1": DecodingConfig(slots=3, chunk_steps=1),
    "the default": DecodingConfig(),
}


def prompts(seed):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 9, PROMPTS)
    ids = draw.integers(2, V, (PROMPTS, 8)).astype(np.int32)
    mask = np.arange(8)[None] < lengths[:, None]
    return np.where(mask, ids, PAD), mask, draw.permutation(100)[:PROMPTS].astype(np.int32)


@functools.cache
def sampler(policy, decoding, stop=None):
    """Made once for each decoding: its programs are compiled once for all tests."""
    settings = dict(group_size=GROUP, max_new_tokens=NEW, eos_ids=[EOS, 7], pad_id=PAD)
    static = decoding is STATIC
    decoding = DecodingConfig() if static else decoding
    return make_generate(policy, **settings, decoding=decoding, static=static, stop=stop)


def run(policy, params, decoding, seed=SEEDS[0], stop=None, **kwargs):
    generate = sampler(policy, decoding, stop)
    return jax.device_get(generate(params, *prompts(seed), jax.random.key(seed), **kwargs))


def assert_same(rollout, reference):
    """Tokens to the bit; log-probs and entropies to the rounding of sums in another order."""
    for name in ("completion_ids", "completion_mask", "finish_reason", "prompt_ids", "prompt_mask"):
        np.testing.assert_array_equal(
            getattr(rollout, name), getattr(reference, name), err_msg=name
        )
    np.testing.assert_allclose(rollout.log_probs, reference.log_probs, atol=2e-5)
    np.testing.assert_allclose(rollout.entropy, reference.entropy, atol=2e-5)


@pytest.fixture(scope="module")
def references(decoder):
    return [run(*decoder, STATIC, seed) for seed in SEEDS]


def test_the_lengths_of_the_reference_are_spread(references):
    for reference in references:
        lengths = reference.completion_mask.sum(-1)
        assert lengths.min() < 8 and lengths.max() == NEW and len(set(lengths)) > 8


@pytest.mark.parametrize("name", DECODING)
def test_every_decoding_gives_the_samples_of_the_static_one(decoder, references, name):
    policy, params = decoder
    for seed, reference in zip(SEEDS, references, strict=True):
        assert_same(run(policy, params, DECODING[name], seed), reference)


@pytest.mark.parametrize(
    "decoding",
    [
        pytest.param(dict(static=True), id="static"),
        pytest.param(
            dict(decoding=DecodingConfig(chunk_steps=9)), id="compact", marks=pytest.mark.slow
        ),
        pytest.param(dict(decoding=DecodingConfig(slots=16, chunk_steps=9)), id="refill"),
    ],
)
def test_eight_devices_give_the_samples_of_one(decoder, decoding):
    policy, params = decoder
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    ids, mask, index = (np.concatenate([x, x[:3]]) for x in prompts(0))
    index[5:] += 100
    arguments = (ids, mask, index)
    generate = make_generate(
        policy,
        group_size=GROUP,
        max_new_tokens=NEW,
        eos_ids=[EOS],
        pad_id=PAD,
        **decoding,
    )
    one = jax.device_get(generate(params, *arguments, jax.random.key(0)))
    placed = [jax.device_put(x, rows) for x in arguments]
    eight = generate(
        jax.device_put(params, whole), *placed, jax.device_put(jax.random.key(0), whole)
    )
    assert len(eight.completion_ids.devices()) == 8
    assert_same(jax.device_get(eight), one)


@pytest.mark.parametrize(
    "name", [pytest.param("the default", marks=pytest.mark.slow), "8 slots in chunks of 7"]
)
def test_a_sliding_window_does_not_depend_on_the_slot(name):
    policy = make_policy(dataclasses.replace(TINY, sliding_window=5, sliding_layers=(True, False)))
    params = policy.init(jax.random.key(3))
    assert_same(run(policy, params, DECODING[name]), run(policy, params, STATIC))


@pytest.mark.parametrize("name", ["all rows in chunks of 7", "8 slots in one program"])
def test_rows_of_one_token_and_rows_that_never_end_need_no_special_case(name):
    policy = table_policy(V)
    table = (
        jnp.full((V, V), -1e9).at[:, 5].set(0.0).at[2:20, EOS].set(0.0)
    )  # ends at once, or never
    params = {"table": table}
    out = run(policy, params, DECODING[name])
    assert_same(out, run(policy, params, STATIC))
    assert set(out.completion_mask.sum(-1)) <= set(range(1, NEW + 1))
    assert {FinishReason.EOS, FinishReason.LENGTH} >= set(out.finish_reason)


@pytest.mark.parametrize("name", ["all rows in chunks of 7", "8 slots in one program"])
def test_each_prompt_can_have_a_limit_of_its_own(decoder, references, name):
    limits = np.array([1, 3, NEW, 1000, 9], np.int32)
    out = run(*decoder, DECODING[name], limits=limits)
    per_row = np.repeat(np.minimum(limits, NEW), GROUP)
    whole = references[0].completion_mask.sum(-1)
    np.testing.assert_array_equal(out.completion_mask.sum(-1), np.minimum(whole, per_row))
    np.testing.assert_array_equal(
        out.completion_ids, np.where(out.completion_mask, references[0].completion_ids, PAD)
    )
    was_cut = (whole > per_row) | (references[0].finish_reason == FinishReason.LENGTH)
    np.testing.assert_array_equal(out.finish_reason == FinishReason.LENGTH, was_cut)


def test_the_cache_grows_and_the_slots_shrink_as_rows_end(decoder, references):
    seen = []
    run(*decoder, DECODING["all rows in chunks of 7"], on_chunk=seen.append)
    slots, columns = [p.slots for p in seen], [p.columns for p in seen]
    assert slots == sorted(slots, reverse=True) and (slots[0], slots[-1]) == (20, 16)
    assert columns == sorted(columns) and (columns[0], columns[-1]) == (64, 96)
    assert [p.finished for p in seen] == sorted(p.finished for p in seen)
    assert seen[-1].finished == seen[-1].rows == 20
    assert seen[-1].tokens <= references[0].completion_mask.sum(-1).max()


def test_refilled_slots_take_fewer_steps_than_batches_would(decoder, references):
    seen = []
    run(*decoder, DECODING["3 slots in chunks of 1"], on_chunk=seen.append)
    lengths = references[0].completion_mask.sum(-1)
    batches = sum(lengths[i : i + 3].max() for i in range(0, 20, 3))
    assert -(-lengths.sum() // 3) <= len(seen) < batches


def test_an_exception_in_on_chunk_ends_the_rollout(decoder):
    def refuse(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*decoder, DecodingConfig(), on_chunk=refuse)


def test_a_second_rollout_of_the_same_lengths_compiles_nothing(decoder):
    policy, params = decoder
    run(policy, params, DecodingConfig())
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    run(policy, params, DecodingConfig())
    assert not compiled


def test_the_state_is_donated_and_the_cache_is_not_copied_in_a_step(decoder):
    policy, params = decoder
    programs = SamplerPrograms(policy, Sampling(GROUP, NEW, (EOS,), PAD, 1.0, 1.0))
    rows, columns = 512, 4096  # so large that a copy could not hide
    decode_params = jax.eval_shape(policy.to_decode, params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shape = lambda *s, dtype=jnp.int32: jax.ShapeDtypeStruct(s, dtype)  # noqa: E731
    p = rows // GROUP
    asked = (shape(p, 8), shape(p, 8, dtype=bool), shape(p), shape(p))
    request, state, _ = jax.eval_shape(
        lambda *a: programs.begin(rows, columns, *a), decode_params, asked, key, shape()
    )
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.slots.cache.rows))
    compiled = programs.decode.lower(decode_params, request, state, shape(), shape()).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < 0.6 * cache


# --- what is chosen ---


def test_all_rows_are_in_flight_if_they_fit_and_otherwise_as_many_as_do():
    def chosen(config, fits):
        return plan_decoding(config, 64, lambda: fits)

    assert chosen(DecodingConfig(), 64) == DecodingPlan("compact", 64, 128)
    assert chosen(DecodingConfig(), 63) == DecodingPlan("refill", 56, 128)
    assert chosen(DecodingConfig(), 5) == DecodingPlan("refill", 5, 128)
    assert chosen(DecodingConfig(), 0) == DecodingPlan("refill", 1, 128)
    assert chosen(DecodingConfig(slots=64), 0) == DecodingPlan("compact", 64, 128)
    assert chosen(DecodingConfig(slots=12), 0) == DecodingPlan("refill", 8, 128)
    assert chosen(DecodingConfig(slots=99), 0) == DecodingPlan("compact", 64, 128)


def test_the_log_says_how_rows_are_decoded():
    all_rows = "decoding: 64 rows at once, finished ones compacted away"
    assert describe_decoding(64, 64) == all_rows
    queued = "decoding: 64 rows in 56 slots, finished ones replaced by queued ones"
    assert describe_decoding(64, 56) == queued


def test_rows_fit_if_their_prompts_fit_once_and_the_rows_that_move_fit_beside_them():
    # 64 rows of 8 prompts; with 32 and fewer slots each row has its own prompt.
    fit = functools.partial(rows_that_fit, rows=64, prompts=8, prompt_bytes=60, row_bytes=40)
    all_rows = 8 * 60 + 64 * 40
    assert fit(all_rows + 32 * 100) == 64
    assert fit(all_rows + 32 * 100 - 1) == (all_rows + 32 * 100 - 1 - 8 * 60) // 150 < 64
    # With long prompts the second move, from 32 to 16 slots, needs the most.
    fit = functools.partial(rows_that_fit, rows=64, prompts=1, prompt_bytes=1000, row_bytes=1)
    assert fit(48 * 1001) == 64 and fit(48 * 1001 - 1) == (48 * 1001 - 1001) // 1501.5
    # With short ones and half of the columns, it is the growth of the cache of all rows.
    fit = functools.partial(
        rows_that_fit, rows=64, prompts=8, prompt_bytes=1, row_bytes=100, growth=0.9
    )
    assert fit(8 + 64 * 190) == 64 > fit(8 + 64 * 190 - 1)
    # The smallest number of slots is 16: 17 rows are in memory with 16.
    fit = functools.partial(rows_that_fit, rows=17, prompts=1, prompt_bytes=0, row_bytes=100)
    assert fit(3300) == 17 and fit(3299) == 16


def test_slots_with_their_own_prompts_count_one_and_a_half_times_because_rows_move():
    fit = functools.partial(rows_that_fit, rows=999, prompts=8, prompt_bytes=50, row_bytes=50)
    assert fit(64 * 150 + 400) == 64 and fit(64 * 150 + 399) == 63
    assert fit(300) == 0


def test_the_cache_of_a_row_is_counted_from_the_model(decoder):
    policy, params = decoder
    per_token = (
        2 * TINY.num_layers * TINY.num_kv_heads * TINY.head_dim * 4
    )  # keys and values, float32
    assert cache_bytes(policy, params, 5, 0) == 5 * per_token
    assert cache_bytes(policy, params, 5, 30) == 35 * per_token


def test_few_shapes_are_compiled():
    assert row_counts(256) == [256, 128, 64, 32, 16] and row_counts(100) == [100, 56, 32, 16]
    assert row_counts(20) == [20, 16] and row_counts(16) == [16] and row_counts(3) == [3]
    assert column_counts(8192) == [1024, 2048, 4096, 8192]
    assert column_counts(256) == [64, 128, 256] and column_counts(160) == [64, 160]
    assert column_counts(72) == [72]


# --- stop strings ---


class Letters:
    """Tokens of one or two letters, so that stop strings cross tokens and end inside them."""

    def decode(self, ids, skip_special_tokens):
        return "".join("" if i in (EOS, 7) else "abc"[i % 3] * (1 + i % 2) for i in ids)


STOPS = ["abba", "caab", "bbb"]


def stopped(ids, reason):
    """By definition: the fewest tokens whose text contains a stop string."""
    for n in range(1, len(ids) + 1):
        if any(stop in Letters().decode(ids[:n], True) for stop in STOPS):
            return ids[:n], FinishReason.STOP
    return ids, reason


@pytest.mark.parametrize(
    "decoding",
    [
        DECODING[name]
        for name in (
            "all rows in chunks of 7",
            "the default",
            "3 slots in chunks of 1",
            "8 slots in chunks of 7",
        )
    ],
)
def test_a_completion_ends_with_the_token_that_completes_a_stop_string(
    decoder, references, decoding
):
    rule = StopStrings(Letters(), STOPS)
    for seed, reference in zip(SEEDS, references, strict=True):
        out = run(*decoder, decoding, seed, stop=rule)
        reasons = []
        for b, mask in enumerate(reference.completion_mask):
            ids, reason = stopped(
                reference.completion_ids[b, mask].tolist(), reference.finish_reason[b]
            )
            assert out.completion_ids[b, out.completion_mask[b]].tolist() == ids
            assert out.finish_reason[b] == reason
            assert (
                not out.log_probs[b, len(ids) :].any()
                and (out.completion_ids[b, len(ids) :] == PAD).all()
            )
            reasons.append(reason)
        assert reasons.count(FinishReason.STOP) > 3 and reasons.count(FinishReason.EOS) > 3


def test_stop_strings_save_the_tokens_after_them(decoder, references):
    seen = []
    everywhere = StopStrings(Letters(), ["a", "b", "c"])
    out = run(*decoder, DECODING["all rows in chunks of 7"], stop=everywhere, on_chunk=seen.append)
    assert len(seen) <= 2 and out.completion_mask.sum(-1).max() <= 2


@pytest.mark.parametrize(
    "slots, group, stops", [(3, 4, ["bb"]), pytest.param(32, 16, ["a"], marks=pytest.mark.slow)]
)
def test_queued_rows_get_the_slots_of_rows_that_stop_strings_end(decoder, slots, group, stops):
    """Stop strings may free all slots between two chunks, or more than compaction waits for."""
    policy, params = decoder
    settings = dict(group_size=group, max_new_tokens=NEW, eos_ids=[EOS, 7], pad_id=PAD)
    rule, calls = StopStrings(Letters(), stops), []

    def on_chunk(progress):
        calls.append(progress)
        assert len(calls) < 200, f"no progress: {progress}"

    outs = []
    for decoding in (
        DecodingConfig(chunk_steps=7),
        DecodingConfig(slots, chunk_steps=7),
    ):
        generate = make_generate(policy, **settings, decoding=decoding, stop=rule)
        outs.append(
            jax.device_get(
                generate(params, *prompts(SEEDS[0]), jax.random.key(4), on_chunk=on_chunk)
            )
        )
    assert (outs[0].finish_reason == FinishReason.STOP).sum() > len(outs[0].finish_reason) / 2
    for name in ("completion_ids", "completion_mask", "finish_reason"):
        np.testing.assert_array_equal(getattr(outs[0], name), getattr(outs[1], name))


@pytest.mark.parametrize("decoding", [STATIC, DecodingConfig(chunk_steps=None)])
def test_stop_strings_in_one_program_are_refused(decoding):
    with pytest.raises(ValueError, match="stop: must be None"):
        run(tiny_policy(), None, decoding, stop=StopStrings(Letters(), ["a"]))
