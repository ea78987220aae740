"""Returns, generalized advantages and the value loss against independent float64 computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.advantages import build_advantage, gae
from entropy_rl.advantages.returns import lambda_returns
from entropy_rl.contrib import length_adaptive_gae
from entropy_rl.losses.value import value_loss
from entropy_rl.types import TokenStats

B, N = 7, 9


def make_problem(holes=False):
    """Rewards, values and masks of completions of different lengths, one of them empty; NaN off
    the mask.
    """
    rng = np.random.default_rng(0)
    mask = np.arange(N) < np.array([1, 9, 4, 0, 7, 2, 9])[:, None]
    if holes:
        mask &= rng.random((B, N)) < 0.6
    values = np.where(mask, rng.normal(size=(B, N)), np.nan)
    rewards = np.where(mask.any(1), rng.normal(size=B), np.nan)
    return rewards.astype(np.float32), values.astype(np.float32), mask


def float64_advantages(rewards, values, mask, gamma, lam):
    """A_t = Σ_k (γλ)^k δ_{t+k}, as it is written, over the tokens that count."""
    result = np.zeros((B, N))
    for b in range(B):
        live = np.flatnonzero(mask[b])
        v = [*values[b, live].astype(np.float64), 0.0]
        delta = [gamma * v[i + 1] - v[i] for i in range(len(live))]
        if delta:
            delta[-1] += float(rewards[b])
        for i, t in enumerate(live):
            result[b, t] = sum((gamma * lam[b]) ** k * d for k, d in enumerate(delta[i:]))
    return result


def stats_of(values, mask):
    zeros = jnp.zeros(mask.shape)
    mask, values = jnp.array(mask), None if values is None else jnp.array(values)
    return TokenStats(zeros, zeros, zeros, zeros, mask=mask, has_reward=mask.any(1), values=values)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("gamma, lam", [(1, 1), (1, 0.95), (0.9, 1), (0.9, 0.5), (0.7, 0)])
def test_generalised_advantages_equal_a_float64_sum_of_temporal_differences(gamma, lam, holes):
    rewards, values, mask = make_problem(holes)
    found = gae(gamma, lam)(jnp.array(rewards)[:, None], stats_of(values, mask))
    np.testing.assert_allclose(
        found, float64_advantages(rewards, values, mask, gamma, np.full(B, lam)), atol=1e-6
    )


def test_lambda_may_differ_from_row_to_row():
    rewards, values, mask = make_problem()
    lam = np.linspace(0, 1, B).astype(np.float32)
    arrays = map(jnp.array, (rewards[:, None], values, mask))
    returns = lambda_returns(*arrays, gamma=0.9, lam=jnp.array(lam))
    wanted = float64_advantages(rewards, values, mask, 0.9, lam.astype(np.float64))
    np.testing.assert_allclose(np.where(mask, returns - values, 0), wanted, atol=1e-6)


def test_rewards_of_turns_are_at_their_tokens_and_the_last_token_has_the_rest():
    mask = jnp.array([[True, True, False, False, True, True, False]])
    values = jnp.array([[0.5, 0.25, 9.0, 9.0, 1.0, 2.0, 9.0]])
    early = jnp.array([[0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]])  # of 5, after the second token
    returns = lambda_returns(jnp.array([[5.0]]), values, mask, gamma=0.5, turn_rewards=early)
    np.testing.assert_array_equal(returns, [[0.5 * 3.5, 3 + 0.5 * 1.0, 0, 0, 0.5 * 2, 2, 0]])
    stats = stats_of(values, mask).replace(extras={"turn_rewards": early})
    one_step = gae(gamma=0.5, lam=0.0)(jnp.array([[5.0]]), stats)
    np.testing.assert_allclose(
        one_step[0], [0.125 - 0.5, 3 + 0.5 - 0.25, 0, 0, 1.0 - 1.0, 2.0 - 2.0, 0], atol=1e-6
    )


def test_without_discount_the_return_is_the_reward_and_the_advantage_its_excess_exactly():
    rewards, values, mask = make_problem()
    returns = lambda_returns(*map(jnp.array, (rewards[:, None], values, mask)))
    np.testing.assert_array_equal(returns, np.where(mask, rewards[:, None], 0))
    advantages = gae()(jnp.array(rewards)[:, None], stats_of(values, mask))
    np.testing.assert_array_equal(advantages, np.where(mask, rewards[:, None] - values, 0))


def test_a_long_completion_has_a_lambda_near_one_and_a_short_one_is_held_at_zero():
    rewards, values, mask = make_problem()
    lengths = np.maximum(mask.sum(1), 1)
    lam = np.maximum(0, 1 - 1 / (0.25 * lengths))
    assert lam.min() == 0 and lam.max() > 0.5
    found = length_adaptive_gae(0.95, 0.25)(jnp.array(rewards)[:, None], stats_of(values, mask))
    np.testing.assert_allclose(
        found, float64_advantages(rewards, values, mask, 0.95, lam), atol=1e-6
    )


def test_by_hand():
    # δ = (0.9·0.5 - 0.2, 1 - 0.5) = (0.25, 0.5);  A = (0.25 + 0.9·0.8·0.5, 0.5)
    advantages = gae(0.9, 0.8)(
        jnp.array([[1.0]]), stats_of(np.array([[0.2, 0.5]]), np.ones((1, 2), bool))
    )
    np.testing.assert_allclose(advantages, [[0.61, 0.5]], rtol=1e-6)


@pytest.mark.parametrize(
    "factory, arguments, message",
    [
        (gae, {"gamma": 0}, "gae.gamma: must be a number > 0 and <= 1, got 0"),
        (gae, {"lam": 1.1}, "gae.lam: must be a number from 0 to 1, got 1.1"),
        (
            length_adaptive_gae,
            {"gamma": 2},
            "length_adaptive_gae.gamma: must be a number > 0 and <= 1, got 2",
        ),
        (
            length_adaptive_gae,
            {"alpha": 0},
            "length_adaptive_gae.alpha: must be a number > 0, got 0",
        ),
    ],
)
def test_an_argument_out_of_range_is_refused(factory, arguments, message):
    with pytest.raises(ValueError, match=message):
        factory(**arguments)


def test_shapes_and_values_that_are_missing_are_refused():
    rewards, values, mask = make_problem()
    column = jnp.array(rewards)[:, None]
    with pytest.raises(ValueError, match=r"gae: stats.values must be .*, got None"):
        gae()(column, stats_of(None, mask))
    with pytest.raises(
        ValueError, match=r"rewards: must have shape \(7, 1\), one for each row, got \(7, 9\)"
    ):
        gae()(jnp.zeros((B, N)), stats_of(values, mask))


def of_entropy(advantages, stats):
    return advantages + stats.entropy.mean(axis=1, keepdims=True)


GAE, SHAPE, GROUP = {"name": "gae"}, {"name": "shape_by_entropy"}, {"name": "group_normalize"}


@pytest.mark.parametrize(
    "specs, gamma, message",
    [
        (
            [GAE, SHAPE],
            None,
            r"advantage\[0\]: needs the values of a critic; add a section `critic:`",
        ),
        (
            [GROUP, SHAPE],
            1.0,
            "critic: must be null where no transform of the advantage reads values, got a critic",
        ),
        (
            [{"name": f"{__name__}:of_entropy"}, GAE],
            0.9,
            r"advantage\[0\]: must be of another scope and without the policy before a transform",
        ),
        (
            [GAE | {"gamma": 1.0}],
            0.9,
            r"advantage\[0\].gamma: must be that of critic.gamma \(0.9\), got 1.0; leave it out",
        ),
    ],
)
def test_a_chain_and_a_critic_that_do_not_fit_are_refused(specs, gamma, message):
    with pytest.raises(ValueError, match=message):
        build_advantage(specs, 4, gamma)


def test_the_discount_of_a_chain_is_that_of_the_critic():
    rewards, values, mask = make_problem()
    column, stats = jnp.array(rewards)[:, None], stats_of(values, mask)
    built = build_advantage([GAE | {"lam": 0.5}], 4, 0.9)
    np.testing.assert_array_equal(built(column, stats), gae(0.9, 0.5)(column, stats))


# --- the value loss
# ----------------------------------------------------------------------------------------


def test_the_value_loss_is_the_larger_of_two_squares_by_hand():
    #        inside    further than 0.5, nearer to 1    further, away from 1    off the mask
    values = jnp.array([[0.2, 0.9, -0.8, jnp.nan]])
    mask = jnp.array([[True, True, True, False]])
    returns, old = jnp.array([[1.0, 1.0, 1.0, jnp.nan]]), jnp.zeros((1, 4))
    loss, clipped = value_loss(values, old, returns, mask, clip_range=0.5)
    np.testing.assert_allclose(loss, [[0.5 * 0.8**2, 0.5 * 0.5**2, 0.5 * 1.8**2, 0]], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [[False, True, False, False]])
    gradient = jax.grad(lambda v: value_loss(v, old, returns, mask, clip_range=0.5)[0].sum())(
        values
    )
    np.testing.assert_allclose(gradient, [[-0.8, 0, -1.8, 0]], rtol=1e-6)


def test_the_gradient_of_the_value_loss_equals_finite_differences():
    rng = np.random.default_rng(1)
    values, old, returns = rng.normal(size=(3, B, N))
    mask = make_problem()[2]

    def float64_loss(v):
        clipped = np.clip(v, old - 0.5, old + 0.5)
        return (mask * 0.5 * np.maximum((v - returns) ** 2, (clipped - returns) ** 2)).sum()

    h, wanted = 1e-6, np.zeros((B, N))
    for place in np.ndindex(B, N):
        step = np.zeros((B, N))
        step[place] = h
        wanted[place] = (float64_loss(values + step) - float64_loss(values - step)) / (2 * h)
    arrays = (jnp.array(x, jnp.float32) for x in (values, old, returns))
    v, old_values, targets = arrays
    found = jax.grad(
        lambda v: value_loss(v, old_values, targets, jnp.array(mask), clip_range=0.5)[0].sum()
    )(v)
    assert (wanted[mask] == 0).sum() > 5, "the case must reach the clip"
    np.testing.assert_allclose(found, wanted, atol=1e-5)
