"""Rewards and bonuses from what the caller knows, against loops in float64 and numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import table_policy
from update_problem import G, N, P, V, make_data

from entropy_rl.advantages import chain, group_normalize
from entropy_rl.contrib import external_token_weight, meds_reward, oger_reward
from entropy_rl.learner.gradient import make_gradient
from entropy_rl.learner.pass_settings import PassSettings


def test_an_error_costs_more_the_more_often_it_was_made_up_to_a_limit():
    rewards, correct = jnp.array([0.0, 0.0, 0.0, 1.0]), jnp.array([False, False, False, True])
    sizes = jnp.array([0, 1, 1000, 1])
    found = meds_reward(rewards, correct, sizes)
    np.testing.assert_allclose(found, [0, -0.1 * np.log(2), -0.2, 1], rtol=1e-6)
    found = meds_reward(rewards, correct, sizes, penalize_correct=True)
    np.testing.assert_allclose(found[3], 1 / (1 + 0.1 * np.log(2)), rtol=1e-6)


def test_a_correct_row_is_paid_for_its_distance_to_the_nearest_teacher():
    embeddings = jnp.array([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    offline = jnp.array(
        [[[0.0, 3.0], [-1.0, 0.0]], [[5.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [0.0, 1.0]]]
    )
    found = oger_reward(
        jnp.array([1.0, 1.0, -1.0]), jnp.array([True, True, False]), embeddings, offline,
        jnp.array([1.0, 0.5, 1.0]), coef=0.2,
    )  # fmt: skip
    np.testing.assert_allclose(found, [1.2, 1 + 0.1 * (1 - np.sqrt(0.5)), -1.0], rtol=1e-6)


WEIGHTED = chain(group_normalize(G), external_token_weight())


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_tokens_per_micro_batch": 9}, {"max_tokens_per_micro_batch": 30, "fuse_loss": True}],
    ids=["at once", "in parts", "fused"],
)
def test_weights_from_outside_are_those_of_their_tokens(key, settings):
    weights = np.random.default_rng(0).uniform(0, 2, (P * G, N)).astype(np.float32)
    policy, data = table_policy(V), make_data()
    params = policy.init(key)
    found, metrics = make_gradient(policy, WEIGHTED, settings=PassSettings(**settings))(
        params, data.replace(extras={"external_weights": jnp.array(weights)})
    )
    # A function that holds them gets the whole mini-batch, as rows in their order.
    held = chain(group_normalize(G), lambda advantages, stats: advantages * weights)
    wanted, _ = make_gradient(policy, held)(params, data)
    plain, _ = make_gradient(policy, group_normalize(G))(params, data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)
    assert abs(found["table"] - plain["table"]).max() > 1e-3
    changed = np.abs(weights - 1)[np.asarray(data.completion_mask)]
    assert 0 < metrics["bonus"] < changed.max() * metrics["advantage"]


def test_without_weights_from_outside_it_is_said_what_is_missing(key):
    policy = table_policy(V)
    with pytest.raises(
        ValueError, match=r"^external_token_weight: TrainBatch\.extras must have 'external_weights'"
    ):
        make_gradient(policy, WEIGHTED)(policy.init(key), make_data())
