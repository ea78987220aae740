"""One update against an independent float64 computation, and its independence of the
micro-batches.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from policies import mesh_of, table_policy, tiny_policy
from update_problem import (
    ALPHA,
    BATCH_SCOPE,
    EOS,
    EVERY_TERM,
    KAPPA,
    ON_POLICY,
    PAD,
    RECORDED_SCOPE,
    SHAPED,
    G,
    N,
    P,
    V,
    make_data,
    make_rollout,
    sgd_update,
)

from entropy_rl.advantages import Transform, chain, gae, group_normalize, shape_by_entropy, whiten
from entropy_rl.config.optimizer import OptimizerConfig
from entropy_rl.config.train import LossConfig
from entropy_rl.learner.batch import join_prompt_and_completion, make_batch, token_stats
from entropy_rl.learner.gradient import make_gradient
from entropy_rl.learner.metrics import mean_metrics
from entropy_rl.learner.optimizer import make_optimizer
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.learner.update import apply_gradient, init_state, make_update
from entropy_rl.losses.build import build_loss
from entropy_rl.rollout import make_generate
from entropy_rl.tasks.task import Verdict
from entropy_rl.types import DATA_AXES


def float64_gradient(table, data, temperature):
    """d loss / d table of GRPO with the shaped advantage, token by token, in NumPy."""
    table = np.asarray(table, np.float64)
    log_p = table / temperature
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    ids, lengths = np.asarray(data.ids), np.asarray(data.prompt_length)
    mask, has_reward = np.asarray(data.completion_mask), np.asarray(data.has_reward)
    rewards, old = np.asarray(data.rewards, np.float64), np.asarray(data.old_log_probs, np.float64)
    learned = (
        has_reward if data.loss_row_mask is None else has_reward & np.asarray(data.loss_row_mask)
    )
    tokens = (mask & learned[:, None]).sum()
    loss, grad, bonus, magnitude = 0.0, np.zeros_like(table), 0.0, 0.0
    for b in range(P * G):
        group = [i for i in range(b // G * G, b // G * G + G) if has_reward[i]]
        if not learned[b] or len(group) < 2:
            continue
        r = rewards[group]
        base = 0.0 if r.std() == 0 else (rewards[b] - r.mean()) / (r.std(ddof=1) + 1e-6)
        for t in range(int(mask[b].sum())):
            state, action = ids[b, lengths[b] + t - 1], ids[b, lengths[b] + t]
            psi = min(ALPHA * entropy[state], abs(base) / KAPPA)
            shaped = base + psi
            ratio = np.exp(log_p[state, action] - old[b, t])
            clipped = np.clip(ratio, 0.8, 1.28)
            loss += max(-ratio * shaped, -clipped * shaped) / tokens
            if -ratio * shaped >= -clipped * shaped:  # else the clip holds the token back
                onehot = np.eye(V)[action]
                grad[state] -= (
                    ratio * shaped / tokens * (onehot - np.exp(log_p[state])) / temperature
                )
            bonus, magnitude = bonus + psi, magnitude + abs(base)
    return loss, grad, bonus / magnitude


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("some_without_judgement", [False, True])
def test_loss_gradient_and_bonus_share_equal_a_float64_loop_over_tokens(
    key, temperature, some_without_judgement
):
    has_reward = np.ones(P * G, bool)
    if some_without_judgement:
        has_reward[[5, 8, 9, 10]] = (
            False  # the group 8-11 keeps one judged row: nothing to compare it with
        )
    policy, data = table_policy(V), make_data(has_reward=has_reward)
    params = policy.init(key)
    new, metrics = sgd_update(policy, data, params, temperature=temperature)
    loss, grad, share = float64_gradient(params["table"], data, temperature)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["bonus_share"], share, rtol=1e-5)
    np.testing.assert_allclose(params["table"] - new["table"], grad, atol=2e-6)
    assert metrics["clip_high"] > 0 and metrics["clip_low"] > 0, "the case must reach both clips"


def cut_off(data):
    """Some rows cut off at the limit: one of each group, and all of the last."""
    return data.replace(
        loss_row_mask=jnp.array([b % G != 1 and b < (P - 1) * G for b in range(P * G)])
    )


def test_a_row_that_was_cut_off_stays_in_the_baseline_and_has_no_loss(key):
    policy, params = table_policy(V), table_policy(V).init(key)
    data = cut_off(make_data(has_reward=np.arange(P * G) != 6))
    new, metrics = sgd_update(policy, data, params)
    loss, grad, share = float64_gradient(params["table"], data, 1.0)
    np.testing.assert_allclose([metrics["loss"], metrics["bonus_share"]], [loss, share], rtol=1e-5)
    np.testing.assert_allclose(params["table"] - new["table"], grad, atol=2e-6)
    assert metrics["tokens"] == data.completion_mask[data.has_reward & data.loss_row_mask].sum()
    # Its reward counts: with another one, the others of its group have other advantages.
    other = data.replace(rewards=data.rewards.at[G + 1].set(3.0))
    assert (sgd_update(policy, other, params)[0]["table"] != new["table"]).any()
    # And it does so without any of its tokens.
    other = data.replace(old_log_probs=data.old_log_probs.at[G + 1].set(-jnp.inf))
    np.testing.assert_array_equal(sgd_update(policy, other, params)[0]["table"], new["table"])


@pytest.mark.parametrize(
    "advantage",
    [
        pytest.param(SHAPED, id="local", marks=pytest.mark.slow),
        pytest.param(chain(SHAPED, whiten()), id="batch"),
    ],
)
def test_with_rows_cut_off_micro_batches_give_what_one_gives(key, advantage):
    policy, data = tiny_policy(), cut_off(make_data())
    whole, parts = (
        sgd_update(
            policy,
            data,
            policy.init(key),
            advantage=advantage,
            tokens=tokens,
            group_size=group_size,
        )
        for tokens, group_size in ((None, None), (30, G))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, parts)


def test_rows_that_ended_by_themselves_are_learned_from_and_others_are_not():
    reasons = jnp.array(([0, 1, 2, 0] * P)[: P * G], jnp.int32)
    rollout = make_rollout().replace(finish_reason=reasons)
    judged = jnp.zeros(P * G), jnp.ones(P * G, bool)
    batch = make_batch(rollout, *judged, pad_id=PAD, mask_truncated=True)
    assert batch.loss_row_mask.tolist() == [True, False, True, True] * P
    assert make_batch(rollout, *judged, pad_id=PAD).loss_row_mask is None


def test_the_end_of_sequence_token_gets_a_gradient(key):
    policy = table_policy(V)
    rollout = make_rollout()
    ids = jnp.full_like(rollout.completion_ids, PAD).at[:, 0].set(EOS)
    rollout = rollout.replace(
        completion_ids=ids, completion_mask=ids == EOS, log_probs=jnp.zeros(ids.shape)
    )
    rewards = jnp.tile(jnp.array([1.0, 0, 0, 0]), P)
    data = make_batch(rollout, rewards, jnp.ones(P * G, bool), pad_id=PAD)
    params = policy.init(key)
    data = data.replace(
        old_log_probs=make_stats_pass(policy, settings=PassSettings(temperature=1.0))(params, data)[
            0
        ]
    )
    new, _ = sgd_update(policy, data, params, advantage=group_normalize(G))
    last = data.ids[jnp.arange(P * G), data.prompt_length - 1]
    # Ratio 1 everywhere and the same state within a group: its advantages cancel exactly ...
    np.testing.assert_allclose(new["table"], params["table"], atol=1e-6)
    # ... and with the shaping, which does not cancel, ending becomes more likely.
    new, _ = sgd_update(policy, data, params)
    assert (new["table"][last, EOS] > params["table"][last, EOS]).all()


@pytest.mark.parametrize(
    "policy, advantage, aggregation",
    [
        (table_policy(V), SHAPED, "token-mean"),
        (table_policy(V), SHAPED, "sequence-mean"),
        (table_policy(V), SHAPED, "constant"),
        (table_policy(V), RECORDED_SCOPE, "token-mean"),
        (table_policy(V), BATCH_SCOPE, "token-mean"),
        pytest.param(tiny_policy(), BATCH_SCOPE, "sequence-mean", marks=pytest.mark.slow),
    ],
)
def test_micro_batches_of_any_size_give_what_one_gives(key, policy, advantage, aggregation):
    loss = dataclasses.replace(EVERY_TERM, aggregation=aggregation)
    data, params = make_data(has_reward=np.arange(P * G) != 6), policy.init(key)
    data = data.replace(ref_log_probs=data.old_log_probs - 0.1)
    whole, *parts = (
        sgd_update(
            policy, data, params, advantage=advantage, loss=loss, tokens=m, group_size=g, rate=0.1
        )
        for m, g in ((None, None), (3 + N, None), (30, G))
    )
    # Sums in another order, of gradients up to 10 in size; a count per micro-batch would be off by
    # 0.1.
    for part in parts:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, part
        )


@pytest.mark.parametrize("critic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_whitening_what_was_recorded_takes_no_forward_pass_and_changes_no_number(key, critic):
    data, before = make_data(has_reward=np.arange(P * G) != 6), group_normalize(G)
    if critic:
        data, before = data.replace(values=0.1 * data.old_log_probs), gae()
    recorded, plain, nothing = (
        chain(before, *more, shape_by_entropy()) for more in ([whiten()], [whiten().fn], [])
    )

    def products_with_the_vocabulary(advantage):
        gradient, params = (
            make_gradient(tiny_policy(), advantage),
            jax.eval_shape(tiny_policy().init, key),
        )
        lines = str(jax.make_jaxpr(gradient)(params, data)).splitlines()
        return sum("dot_general[" in line and ",37]" in line.split("=")[0] for line in lines)

    assert [
        products_with_the_vocabulary(advantage) for advantage in (recorded, plain, nothing)
    ] == [2, 3, 2]
    policy = table_policy(V)
    one, other, without = (
        jax.device_get(sgd_update(policy, data, policy.init(key), advantage=advantage, tokens=30))
        for advantage in (recorded, plain, nothing)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)
    assert abs(one[0]["table"] - without[0]["table"]).max() > 1e-3


def test_a_fused_loss_on_a_mesh_of_eight_devices_gives_what_one_device_gives(key):
    mesh = mesh_of(2, 2, 2)
    rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((DATA_AXES,), ()))
    policy, optimizer = tiny_policy(), optax.sgd(0.1)
    data, params = make_data(has_reward=np.arange(P * G) != 6), policy.init(key)
    results = []
    for where, batch in ((None, data), (mesh, jax.device_put(data, rows))):
        update = make_update(
            policy,
            SHAPED,
            optimizer,
            settings=PassSettings(max_tokens_per_micro_batch=15, fuse_loss=True, mesh=where),
        )
        state = init_state(params, optimizer)
        state, metrics = update(state if where is None else jax.device_put(state, whole), batch)
        results.append(jax.device_get((state.params, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)


@pytest.mark.slow
def test_columns_behind_the_longest_completion_change_nothing(key):
    rollout, policy = make_rollout(), tiny_policy()
    wider = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, 9))) if x.shape[1:] == (N,) else x, rollout
    )
    rewards = jnp.tile(jnp.array([1.0, 0, 0, 1.0]), P)
    params = policy.init(key)
    narrow, wide = (
        sgd_update(
            policy,
            make_batch(r, rewards, jnp.ones(P * G, bool), pad_id=PAD),
            params,
            loss=LossConfig(aggregation="constant"),
            tokens=40,
        )
        for r in (rollout, wider)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), narrow, wide)


def test_metrics_of_an_update_are_means_of_the_arrays_of_its_tokens(key):
    policy, data = table_policy(V), make_data(has_reward=np.arange(P * G) != 6)
    noise = jnp.array(np.random.default_rng(0).normal(0, 0.3, (P * G, N)), jnp.float32)
    data = data.replace(
        sampler_log_probs=data.old_log_probs + noise, ref_log_probs=data.old_log_probs - 0.1
    )
    params = policy.init(key)
    log_probs, _ = make_stats_pass(policy)(params, data)
    loss = LossConfig(
        surrogate={"name": "ppo_clip", "dual_clip": 1.5},
        token_weights=[{"name": "token_tis", "cap": 1.1}, {"name": "kl_cov", "fraction": 0.2}],
        kl_coef=0.1,
    )
    _, metrics = sgd_update(policy, data, params, advantage=group_normalize(G), loss=loss)
    mask = np.asarray(data.completion_mask & data.has_reward[:, None])
    rows = group_normalize(G)(data.rewards[:, None], token_stats(data))
    a = np.broadcast_to(rows, mask.shape)[mask]
    lp, old, sampler, ref = (
        np.asarray(x, np.float64)[mask]
        for x in (log_probs, data.old_log_probs, data.sampler_log_probs, data.ref_log_probs)
    )
    ratio, d, r = np.exp(lp - old), lp - sampler, ref - lp
    expected = {
        "clip_low": (a < 0) & (ratio < 0.8),
        "clip_high": (a > 0) & (ratio > 1.28),
        "clip_dual": (a < 0) & (ratio > 1.5),
        "kl_sampler": np.expm1(d) - d,
        "logprob_diff": abs(old - sampler),
        "kl_reference": np.expm1(r) - r,
        "token_weight": np.minimum(np.exp(old - sampler), 1.1),
        "tokens_kept": np.ones_like(a),
        "tokens_held": np.arange(a.size) < math.floor(0.2 * a.size),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name], np.mean(values), rtol=1e-4, err_msg=name)
    assert metrics["clip_low"] != metrics["clip_high"]


def test_metrics_of_several_updates_are_means_over_all_their_tokens():
    one = {
        "loss": 1.0,
        "grad_norm": 2.0,
        "tokens": 30,
        "entropy": 1.0,
        "bonus": 0.1,
        "advantage": 1.0,
        "bonus_share": 0.1,
    }
    two = {
        "loss": 3.0,
        "grad_norm": 4.0,
        "tokens": 10,
        "entropy": 2.0,
        "bonus": 0.6,
        "advantage": 2.0,
        "bonus_share": 0.3,
    }
    expected = {
        "loss": 2.0,
        "grad_norm": 3.0,
        "tokens": 40.0,
        "entropy": 1.25,
        "bonus": 0.225,
        "advantage": 1.25,
    }
    assert mean_metrics([one, two]) == pytest.approx(expected | {"bonus_share": 0.18})
    # An entropy of 0 would be that of a policy that has collapsed.
    nothing = mean_metrics([one | {"tokens": 0, "entropy": 0.0}])
    assert nothing["tokens"] == 0 and nothing["grad_norm"] == one["grad_norm"]
    assert all(np.isnan(nothing[name]) for name in ("entropy", "bonus", "advantage", "bonus_share"))


def test_rewards_may_be_lists_or_of_another_type_and_have_one_entry_for_each_row():
    rollout, count = make_rollout(), P * G
    rewards, judged = np.arange(count) % 2, (np.arange(count) % 3 > 0).astype(int)
    expected = make_batch(rollout, rewards.astype(np.float32), judged.astype(bool), pad_id=0)
    for given in ((rewards.tolist(), judged.tolist()), (rewards.astype(bool), judged)):
        found = make_batch(rollout, *given, pad_id=0)
        assert (found.rewards.dtype, found.has_reward.dtype) == (jnp.float32, bool)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    for wrong in ((rewards[:, None], judged), (rewards, judged[1:]), (1.0, judged)):
        with pytest.raises(ValueError, match=r"^make_batch: .*: must be of shape \(16,\), got \("):
            make_batch(rollout, *wrong, pad_id=0)


@pytest.mark.parametrize(
    "not_flags",
    [np.linspace(-1, 1, P * G), [np.nan] * P * G, [Verdict.TIMEOUT] * P * G, [None] * P * G],
)
def test_what_says_which_rows_have_a_reward_is_not_the_rewards_nor_the_verdicts(not_flags):
    # A cast to bool makes them True, and rows whose check timed out would be trained on.
    for given in (not_flags, np.array(not_flags)):
        with pytest.raises(ValueError, match=r"^make_batch: has_reward: must be booleans, or 0 "):
            make_batch(make_rollout(), np.zeros(P * G), given, pad_id=0)


def test_a_row_that_does_not_fit_into_a_micro_batch_is_refused(key):
    policy = table_policy(V)
    with pytest.raises(
        ValueError, match="max_tokens_per_micro_batch: must be >= 9, the length of a row, got 8"
    ):
        sgd_update(policy, make_data(), policy.init(key), tokens=8)


def test_a_baseline_that_reads_the_current_policy_must_say_that_it_needs_the_batch(key):
    policy = table_policy(V)
    read = lambda advantages, stats: advantages - stats.entropy  # noqa: E731
    with pytest.raises(
        ValueError, match="must set needs_policy=True to read log_probs or entropy of the policy"
    ):
        sgd_update(policy, make_data(), policy.init(key), advantage=Transform(read, "group"))
    reads = Transform(read, "batch", needs_policy=True)
    sgd_update(policy, make_data(), policy.init(key), advantage=reads)


def test_a_group_transform_behind_a_token_transform_sees_whole_groups(key):
    policy, data, params = table_policy(V), make_data(), table_policy(V).init(key)

    def center(advantages, stats):
        mean = advantages.reshape(P, G, -1).mean(axis=1, keepdims=True)
        return (advantages.reshape(P, G, -1) - mean).reshape(advantages.shape)

    turned = chain(group_normalize(G), shape_by_entropy(ALPHA, KAPPA), Transform(center, "group"))
    whole, parts = (sgd_update(policy, data, params, advantage=turned, tokens=m) for m in (None, 9))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, parts)


def test_the_parameters_given_to_init_state_outlive_the_donated_state(key):
    policy, optimizer = table_policy(V), optax.sgd(1.0)
    params = policy.init(key)
    make_update(policy, SHAPED, optimizer)(init_state(params, optimizer), make_data())
    assert np.isfinite(params["table"]).all()


def test_a_row_without_judgement_changes_nothing_whatever_it_holds(key):
    policy, has_reward = table_policy(V), np.arange(P * G) != 9
    data, params = make_data(has_reward=has_reward), policy.init(key)
    other = data.replace(
        rewards=data.rewards.at[9].set(jnp.nan),
        completion_ids=data.completion_ids.at[9].set(3),
        old_log_probs=data.old_log_probs.at[9].set(-jnp.inf),
    )
    one, two = sgd_update(policy, data, params), sgd_update(policy, other, params)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_mini_batch_without_any_judgement_leaves_the_parameters_alone(key):
    # With momentum and weight decay, which would move them without any gradient.
    policy, optimizer = table_policy(V), optax.adamw(1e-2, weight_decay=0.1)
    update = make_update(policy, SHAPED, optimizer, settings=PassSettings(temperature=1.0))
    state, _ = update(init_state(policy.init(key), optimizer), make_data())
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    state, metrics = update(state, make_data(has_reward=np.zeros(P * G, bool)))
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)
    assert all(np.isfinite(value) for value in metrics.values())


def test_the_second_update_is_shaped_by_the_entropy_of_the_policy_as_it_has_become(key):
    policy, data = table_policy(V), make_data()
    params = {
        "table": 4 * policy.init(key)["table"]
    }  # peaked enough for α·H to be the smaller term
    first, _ = sgd_update(policy, data, params, rate=300.0)
    _, metrics = sgd_update(policy, data, first)
    _, _, share = float64_gradient(first["table"], data, 1.0)
    _, _, stale = float64_gradient(params["table"], data, 1.0)
    np.testing.assert_allclose(metrics["bonus_share"], share, rtol=1e-5)
    assert abs(share - stale) > 0.01, "the two must differ for the test to say anything"


def test_an_entropy_bonus_raises_the_entropy_and_a_shaped_advantage_has_no_gradient_through_it(key):
    policy, data = table_policy(V), make_data()
    data = data.replace(rewards=jnp.ones(P * G))  # no advantage anywhere
    params = policy.init(key)
    unmoved, _ = sgd_update(policy, data, params)
    np.testing.assert_array_equal(unmoved["table"], params["table"])
    raised, metrics = sgd_update(
        policy, data, params, loss=dataclasses.replace(ON_POLICY, entropy_coef=0.5)
    )
    _, entropy = make_stats_pass(policy, settings=PassSettings(temperature=1.0))(raised, data)
    assert entropy.sum() / data.completion_mask.sum() > metrics["entropy"]


def test_parameters_and_optimizer_state_are_donated(key):
    policy, optimizer, data = tiny_policy(), optax.adam(1e-3), make_data()
    update = make_update(
        policy,
        SHAPED,
        optimizer,
        build_loss(ON_POLICY, N),
        settings=PassSettings(temperature=1.0, max_tokens_per_micro_batch=20),
    )
    state = init_state(policy.init(key), optimizer)
    size = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
    assert update.lower(state, data).compile().memory_analysis().alias_size_in_bytes >= size


def test_the_moments_are_not_copied_when_the_update_is_applied():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3))
    params = {"kernel": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    metrics = {
        "tokens": jax.ShapeDtypeStruct((), jnp.int32),
        "grad_norm": jax.ShapeDtypeStruct((), jnp.float32),
    }
    apply = jax.jit(
        lambda grads, params, opt_state, metrics: apply_gradient(
            optimizer, grads, params, opt_state, metrics
        ),
        donate_argnums=(1, 2),
    )
    lowered = apply.lower(params, params, jax.eval_shape(optimizer.init, params), metrics)
    # The clipped gradient, and nothing else of its size.
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 1.01 * 4 * 512**2


def test_a_second_step_of_the_same_shape_compiles_nothing(key):
    policy, optimizer = table_policy(V), optax.sgd(1.0)
    update = make_update(
        policy,
        SHAPED,
        optimizer,
        build_loss(ON_POLICY, N),
        settings=PassSettings(temperature=1.0, max_tokens_per_micro_batch=20),
    )
    state = init_state(policy.init(key), optimizer)
    for seed in range(3):
        state, _ = update(state, make_data(seed))
    assert update._cache_size() == 1 and int(state.updates) == 3


def test_a_completion_follows_its_prompt_without_a_gap():
    prompt_ids = jnp.array([[5, 6, 7], [8, 9, 9]])
    prompt_mask = jnp.array([[True, True, True], [True, False, False]])
    completions = jnp.array([[2, 3], [4, 1], [2, 1], [1, 0]])
    ids, lengths = join_prompt_and_completion(prompt_ids, prompt_mask, completions, PAD)
    assert ids.tolist() == [[5, 6, 7, 2, 3], [5, 6, 7, 4, 1], [8, 2, 1, 0, 0], [8, 1, 0, 0, 0]]
    assert lengths.tolist() == [3, 3, 1, 1]


@pytest.mark.parametrize("dtype, limit", [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_the_stats_pass_of_the_trainer_agrees_with_the_sampler(key, dtype, limit):
    policy = tiny_policy(compute_dtype=dtype)
    params = policy.init(key)
    rollout = make_rollout()
    run = make_generate(
        policy, group_size=G, max_new_tokens=N, eos_ids=[EOS], pad_id=PAD, temperature=0.8
    )
    rollout = run(params, rollout.prompt_ids, rollout.prompt_mask, jnp.arange(P), key)
    data = make_batch(rollout, jnp.zeros(P * G), jnp.ones(P * G, bool), pad_id=PAD)
    log_probs, entropy = make_stats_pass(
        policy, settings=PassSettings(temperature=0.8, max_tokens_per_micro_batch=20)
    )(params, data)
    tokens = data.completion_mask.sum()
    assert abs(log_probs - rollout.log_probs).sum() / tokens < limit
    assert abs(entropy - rollout.entropy).sum() / tokens < limit
