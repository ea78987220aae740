"""On-policy distillation: no advantage from an equal teacher, and the gradient of reverse KL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import table_policy
from update_problem import make_data

from entropy_rl.advantages import chain, group_normalize, on_policy_distillation
from entropy_rl.learner.gradient import make_gradient
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.losses import Loss, unclipped
from entropy_rl.types import TEACHER_LOG_PROBS, TokenStats, TrainBatch

V = 5


def stats_of(log_probs, teacher, mask):
    arrays = dict(old_log_probs=log_probs, entropy=log_probs, old_entropy=log_probs)
    return TokenStats(
        log_probs=log_probs,
        mask=mask,
        has_reward=mask.any(-1),
        extras={TEACHER_LOG_PROBS: teacher},
        **arrays,
    )


def test_the_advantage_is_the_difference_of_log_probs_and_zero_for_an_equal_teacher():
    rng = np.random.default_rng(0)
    own, teacher = (jnp.array(rng.normal(-2, 1, (4, 6)), jnp.float32) for _ in range(2))
    mask = jnp.arange(6)[None] < jnp.array([[6], [3], [1], [2]])
    rewards = jnp.ones((4, 1))
    found = on_policy_distillation(0.5)(rewards, stats_of(own, teacher, mask))
    np.testing.assert_array_equal(found, jnp.where(mask, 0.5 * (teacher - own), 0))
    added = on_policy_distillation(0.5, add=True)(rewards, stats_of(own, teacher, mask))
    np.testing.assert_array_equal(added, rewards + found)
    assert not on_policy_distillation()(rewards, stats_of(own, own, mask)).any()
    # The log-prob of the policy is a constant.
    slope = jax.grad(lambda x: on_policy_distillation()(rewards, stats_of(x, teacher, mask)).sum())(
        own
    )
    assert not slope.any()


def test_the_advantage_reads_the_policy_that_is_updated():
    own, teacher, mask = jnp.full((1, 2), -1.0), jnp.full((1, 2), -0.5), jnp.ones((1, 2), bool)
    stats = stats_of(own, teacher, mask).replace(old_log_probs=own - 3)
    found = on_policy_distillation()(jnp.ones((1, 1)), stats)
    np.testing.assert_array_equal(found, [[0.5, 0.5]])


def single_token_rows(teacher_table):
    """One row for each action that follows token 0, with the teacher's log-probs of it."""
    actions, zeros = jnp.arange(V)[:, None], jnp.zeros((V, 1))
    return TrainBatch(
        ids=jnp.concatenate([jnp.zeros_like(actions), actions], axis=1),
        prompt_length=jnp.ones(V, jnp.int32),
        completion_ids=actions,
        completion_mask=jnp.ones((V, 1), bool),
        old_log_probs=zeros,
        old_entropy=zeros,
        sampler_log_probs=zeros,
        rewards=jnp.zeros(V),
        has_reward=jnp.ones(V, bool),
        extras={TEACHER_LOG_PROBS: jax.nn.log_softmax(teacher_table[0])[:, None]},
    )


@pytest.mark.parametrize("tokens", [None, 16])
def test_the_expected_gradient_is_that_of_the_reverse_kl_divergence(tokens):
    policy = table_policy(V)
    params, teacher = (policy.init(jax.random.key(seed)) for seed in (0, 1))
    settings = PassSettings(max_tokens_per_micro_batch=tokens)
    gradient = make_gradient(policy, on_policy_distillation(2.0), Loss(unclipped()), settings)
    rows = single_token_rows(teacher["table"])
    # With old log-probs equal to the current ones, the ratio is 1.
    log_p = jax.nn.log_softmax(params["table"][0])
    rows = rows.replace(old_log_probs=log_p[:, None])
    expected = np.zeros((V, V))
    for action, p in enumerate(np.exp(np.asarray(log_p, np.float64))):
        alone = rows.replace(has_reward=jnp.arange(V) == action)
        expected += p * np.asarray(gradient(params, alone)[0]["table"], np.float64)

    def kl(table):
        log_p = jax.nn.log_softmax(table[0])
        return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(teacher["table"][0])))

    closed_form = 2 * jax.grad(kl)(params["table"])
    assert np.abs(closed_form).max() > 0.1
    np.testing.assert_allclose(expected, closed_form, atol=1e-6)
    equal = rows.replace(extras={TEACHER_LOG_PROBS: log_p[:, None]})
    np.testing.assert_allclose(gradient(params, equal)[0]["table"], 0, atol=1e-7)


def test_without_a_teacher_it_says_what_is_missing():
    policy, data = table_policy(11), make_data()
    advantage = chain(group_normalize(4), on_policy_distillation())
    with pytest.raises(ValueError, match=r"stats.extras must have 'teacher_log_probs', got"):
        make_gradient(policy, advantage)(policy.init(jax.random.key(0)), data)
    with pytest.raises(ValueError, match=r"on_policy_distillation.coef: must be a number > 0"):
        on_policy_distillation(0.0)
