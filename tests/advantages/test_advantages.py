"""Advantage transforms: numbers by hand, the laws of the entropy-shaped advantage, chains,
configs.
"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from error_lines import says

from entropy_rl.advantages import (
    Transform,
    baseline_and_shaping,
    build_advantage,
    chain,
    group_center,
    group_normalize,
    maxrl,
    rloo,
    shape_by_entropy,
    whiten,
)
from entropy_rl.contrib import eapo
from entropy_rl.types import TokenStats

REWARDS_3_OF_8 = jnp.array([1.0, 1, 1, -1, -1, -1, -1, -1])
GROUP_BASELINES = [group_normalize, group_center, rloo]


def make_stats(
    rows, tokens=4, *, entropy=None, old_entropy=None, mask=None, has_reward=None
) -> TokenStats:
    has_reward = jnp.ones(rows, bool) if has_reward is None else jnp.asarray(has_reward)
    mask = jnp.ones((rows, tokens), bool) if mask is None else jnp.asarray(mask)
    zeros = jnp.zeros((rows, tokens))
    return TokenStats(
        log_probs=zeros,
        old_log_probs=zeros,
        entropy=zeros if entropy is None else jnp.asarray(entropy),
        old_entropy=zeros if old_entropy is None else jnp.asarray(old_entropy),
        mask=mask & has_reward[:, None],
        has_reward=has_reward,
    )


def random_problem(rows=32, tokens=6, seed=0):
    """Rewards with two unjudged rows, rows of many lengths, and random entropies."""
    rng = np.random.default_rng(seed)
    has_reward = np.ones(rows, bool)
    has_reward[[1, rows - 2]] = False
    mask = np.arange(tokens) < rng.integers(0, tokens + 1, (rows, 1))
    rewards = jnp.asarray(rng.choice([1.0, -1.0], rows), jnp.float32)
    entropy, old_entropy = (
        jnp.asarray(rng.exponential(1, (rows, tokens)), jnp.float32) for _ in range(2)
    )
    return rewards, make_stats(
        rows, tokens, entropy=entropy, old_entropy=old_entropy, mask=mask, has_reward=has_reward
    )


def shape_one(advantage: float, entropy: float, **kwargs) -> float:
    stats = make_stats(1, 1, entropy=[[entropy]])
    return float(shape_by_entropy(**kwargs)(jnp.array([[advantage]]), stats)[0, 0])


# ------------------------------------------------------------------------------------ group
# baselines


@pytest.mark.parametrize("ddof, right, wrong", [(1, 1.207615, -0.724569), (0, 1.290994, -0.774597)])
def test_group_normalize_gives_the_hand_computed_values_for_three_of_eight(ddof, right, wrong):
    advantages = group_normalize(8, eps=0.0, ddof=ddof)(REWARDS_3_OF_8[:, None], make_stats(8))
    np.testing.assert_allclose(advantages[:, 0], [right] * 3 + [wrong] * 5, atol=1e-6)


def test_group_normalize_adds_eps_to_the_standard_deviation():
    rewards = jnp.array([[1.0], [-1.0]])
    advantages = group_normalize(2, eps=0.5)(rewards, make_stats(2))
    np.testing.assert_allclose(advantages[:, 0], np.array([1, -1]) / (np.sqrt(2) + 0.5), rtol=1e-6)


def test_group_center_subtracts_the_group_mean():
    advantages = group_center(4)(REWARDS_3_OF_8[:, None], make_stats(8))
    np.testing.assert_allclose(advantages[:, 0], [0.5, 0.5, 0.5, -1.5, 0, 0, 0, 0], atol=1e-7)


def test_maxrl_divides_by_the_mean_and_refuses_negative_rewards_with_nan():
    rewards = jnp.array([1, 0, 0, 0, 0.2, 0.8, 0, 0, 0, 0, 0, 0, 1, -1, 1, 1, 1, 0, 1, -9])
    stats = make_stats(20, has_reward=np.arange(20) != 19)
    advantages = maxrl(4)(rewards[:, None], stats)[:, 0]
    expected = [[3, -1, -1, -1], [-0.2, 2.2, -1, -1], [0] * 4, [np.nan] * 4, [0.5, -1, 0.5, 0]]
    np.testing.assert_allclose(advantages.reshape(-1, 4), expected, rtol=1e-6)


def test_rloo_subtracts_the_mean_of_the_others():
    rewards = np.random.default_rng(0).normal(size=8).astype(np.float32)
    advantages = rloo(4)(jnp.asarray(rewards)[:, None], make_stats(8))
    expected = [
        r - np.mean(np.delete(rewards[i // 4 * 4 : i // 4 * 4 + 4], i % 4))
        for i, r in enumerate(rewards)
    ]
    np.testing.assert_allclose(advantages[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("factory", GROUP_BASELINES)
@pytest.mark.parametrize("reward", [-1.0, 0.1, 1 / 3, 1e-3])
def test_a_group_of_equal_rewards_has_exactly_zero_advantage(factory, reward):
    advantages = factory(7)(jnp.full((14, 1), reward), make_stats(14))
    np.testing.assert_array_equal(advantages, 0)


def test_a_group_of_equal_rewards_is_zero_and_not_nan_without_eps():
    np.testing.assert_array_equal(group_normalize(4, eps=0.0)(jnp.ones((4, 1)), make_stats(4)), 0)


@pytest.mark.parametrize("factory", GROUP_BASELINES)
@pytest.mark.parametrize("reward_of_the_unjudged", [0.0, 100.0, np.nan, np.inf])
def test_an_unjudged_row_is_outside_of_every_baseline(factory, reward_of_the_unjudged):
    judged = jnp.array([1.0, -1.0, -1.0])
    without = factory(3)(judged[:, None], make_stats(3))
    rewards = jnp.array([1.0, -1.0, reward_of_the_unjudged, -1.0])
    advantages = factory(4)(rewards[:, None], make_stats(4, has_reward=[True, True, False, True]))
    np.testing.assert_allclose(advantages[jnp.array([0, 1, 3])], without, rtol=1e-6)
    assert advantages[2, 0] == 0


@pytest.mark.parametrize("factory", GROUP_BASELINES)
@pytest.mark.parametrize("has_reward", [[True, False, False], [False, False, False]])
def test_a_group_with_fewer_than_two_judged_rows_has_no_advantage(factory, has_reward):
    advantages = factory(3)(
        jnp.array([[1.0], [-1.0], [-1.0]]), make_stats(3, has_reward=has_reward)
    )
    np.testing.assert_array_equal(advantages, 0)


@pytest.mark.parametrize("factory", GROUP_BASELINES)
def test_group_baselines_do_not_depend_on_the_micro_batch(factory):
    rewards, stats = random_problem()
    transform = chain(factory(4), shape_by_entropy())
    advantage = jax.jit(transform)
    whole = advantage(rewards[:, None], stats)
    parts = [
        advantage(rewards[i : i + 8, None], jax.tree.map(lambda x, i=i: x[i : i + 8], stats))
        for i in range(0, 32, 8)
    ]
    np.testing.assert_allclose(jnp.concatenate(parts), whole, rtol=1e-6, atol=1e-7)
    assert transform.scope == "group"


@pytest.mark.parametrize("factory", GROUP_BASELINES)
def test_a_row_count_that_is_no_multiple_of_the_group_is_refused(factory):
    with pytest.raises(ValueError, match=r"must be a multiple of group_size \(4\), got 6"):
        factory(4)(jnp.ones((6, 1)), make_stats(6))


@pytest.mark.parametrize("factory", GROUP_BASELINES)
def test_a_group_baseline_refuses_token_advantages(factory):
    message = r"must have shape \(4, 1\), one for each sequence, got \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        factory(4)(jnp.ones((4, 3)), make_stats(4, 3))


@pytest.mark.parametrize("factory", GROUP_BASELINES)
def test_a_group_baseline_refuses_a_group_of_one(factory):
    with pytest.raises(
        ValueError, match=r"at least 2 completions per prompt \(rollout.group_size\)"
    ):
        factory(1)


@pytest.mark.parametrize("kwargs", [{"eps": -1e-6}, {"ddof": 2}])
def test_group_normalize_refuses_arguments_out_of_range(kwargs):
    with pytest.raises(ValueError, match=rf"group_normalize\.{next(iter(kwargs))}: "):
        group_normalize(4, **kwargs)


# -------------------------------------------------------------------------------------------
# whitening


def test_whitened_tokens_have_zero_mean_and_unit_sample_variance():
    rewards, stats = random_problem()
    tokens = rewards[:, None] + stats.entropy
    whitened = np.asarray(whiten()(tokens, stats))
    mask = np.asarray(stats.mask)
    kept = np.asarray(tokens, np.float64)[mask]
    expected = (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(whitened[mask], expected, atol=1e-5)
    assert not whitened[~mask].any()


def test_whitening_weighs_a_row_by_its_tokens():
    mask = jnp.array([[True, True, True], [True, False, False]])
    whitened = whiten()(jnp.array([[1.0], [-1.0]]), make_stats(2, 3, mask=mask))
    # 1, 1, 1, -1 have mean 1/2 and sample variance 1
    np.testing.assert_allclose(whitened, [[0.5, 0.5, 0.5], [-1.5, 0, 0]], atol=1e-6)


def test_whitening_adds_eps_to_the_variance():
    # 1, 1, 1, -1 have mean 1/2 and sample variance 1; √(1 + 3) = 2
    found = whiten(eps=3.0)(jnp.array([[1.0], [1], [1], [-1]]), make_stats(4, 1))
    np.testing.assert_allclose(found[:, 0], [0.25, 0.25, 0.25, -0.75], rtol=1e-6)


def test_whitening_equal_advantages_gives_exactly_zero():
    np.testing.assert_array_equal(whiten()(jnp.full((3, 1), 0.1), make_stats(3, 7)), 0)


def test_whitening_depends_on_the_whole_mini_batch_and_says_so():
    rewards, stats = random_problem()
    half = whiten()(rewards[:16, None], jax.tree.map(lambda x: x[:16], stats))
    assert not np.allclose(half, whiten()(rewards[:, None], stats)[:16], atol=1e-3)
    assert whiten().scope == "batch"
    assert chain(group_center(4), whiten(), shape_by_entropy()).scope == "batch"


def test_whitening_refuses_eps_zero():
    with pytest.raises(ValueError, match=r"whiten\.eps: must be a number > 0, got 0"):
        whiten(eps=0)


# ------------------------------------------------------------------------- the entropy-shaped
# advantage


@pytest.mark.parametrize(
    "alpha, advantage, entropy, shaped",
    [
        (0.4, 1, 0.5, 1.2),
        (0.4, 1, 2, 1.5),
        (0.4, -1, 0.5, -0.8),
        (0.4, -1, 2, -0.5),
        (0.4, 0, 1, 0),
        (0.4, 0.2, 1, 0.3),
        (0.4, -0.2, 0.1, -0.16),
        (0.1, 1, 0.5, 1.05),
        (0.1, 1, 2, 1.2),
        (0.1, -1, 2, -0.8),
        (0.1, -0.2, 0.1, -0.19),
    ],
)
def test_the_shaped_advantage_has_the_hand_computed_value(alpha, advantage, entropy, shaped):
    assert shape_one(advantage, entropy, alpha=alpha, kappa=2.0) == pytest.approx(shaped, abs=1e-7)


def test_the_defaults_are_those_of_the_paper_for_grpo():
    assert shape_one(1, 0.5) == pytest.approx(1.2)
    assert shape_one(1, 2) == pytest.approx(1.5)


@pytest.mark.parametrize("alpha, kappa", [(0.4, 2.0), (0.1, 2.0), (3.0, 1.1), (10.0, 5.0)])
def test_the_bonus_is_bounded_and_never_flips_a_sign(alpha, kappa):
    rng = np.random.default_rng(1)
    a = np.float32(rng.normal(size=(64, 16)) * rng.choice([0, 1e-4, 1, 100], (64, 16)))
    entropy = np.float32(rng.exponential(2, (64, 16)) * rng.choice([0, 1], (64, 16)))
    shaped = np.asarray(
        shape_by_entropy(alpha, kappa)(jnp.asarray(a), make_stats(64, 16, entropy=entropy))
    )
    assert (np.sign(shaped) == np.sign(a)).all()
    assert (a <= shaped).all()
    assert (shaped <= a + np.abs(a) / kappa * (1 + 1e-6)).all()
    assert (shaped[a == 0] == 0).all()


def test_alpha_zero_is_the_identity():
    rewards, stats = random_problem()
    shaped = shape_by_entropy(alpha=0.0)(rewards[:, None], stats)
    np.testing.assert_array_equal(shaped, jnp.broadcast_to(rewards[:, None], shaped.shape))


def test_a_group_without_variance_gets_no_bonus():
    stats = make_stats(4, entropy=jnp.full((4, 4), 2.0))
    advantages = chain(group_normalize(4), shape_by_entropy())(jnp.full((4, 1), 0.1), stats)
    np.testing.assert_array_equal(advantages, 0)


def test_an_entropy_that_rounding_made_negative_changes_nothing():
    assert shape_one(1, -1e-7) == 1
    assert shape_one(0, -1e-7) == 0


@pytest.mark.parametrize("kappa", [1.5, 2.0, 4.0])
def test_saturation_multiplies_positives_and_negatives_by_one_plus_and_minus_one_over_kappa(kappa):
    assert shape_one(0.7, 1e3, kappa=kappa) == pytest.approx(0.7 * (1 + 1 / kappa))
    assert shape_one(-0.7, 1e3, kappa=kappa) == pytest.approx(-0.7 * (1 - 1 / kappa))


def test_there_is_no_gradient_through_the_entropy():
    rewards, stats = random_problem()

    def total(entropy, old_entropy, source):
        changed = stats.replace(entropy=entropy, old_entropy=old_entropy)
        return jnp.sum(shape_by_entropy(entropy_source=source)(rewards[:, None], changed))

    for source in ("current", "old"):
        gradients = jax.grad(total, argnums=(0, 1))(stats.entropy, stats.old_entropy, source)
        np.testing.assert_array_equal(gradients, 0)


def test_the_entropy_source_selects_the_policy():
    stats = make_stats(1, 1, entropy=[[0.5]], old_entropy=[[1.0]])
    one = jnp.ones((1, 1))
    assert shape_by_entropy()(one, stats)[0, 0] == pytest.approx(1.2)
    assert shape_by_entropy(entropy_source="old")(one, stats)[0, 0] == pytest.approx(1.4)


def test_tokens_that_do_not_count_get_no_bonus_whatever_their_entropy():
    stats = make_stats(1, 2, entropy=[[0.5, jnp.nan]], mask=[[True, False]])
    np.testing.assert_allclose(shape_by_entropy()(jnp.ones((1, 1)), stats), [[1.2, 1.0]])


def expected_gradient_of_bonus(alpha, kappa, rewards, logits):
    """E_a[ψ(H) ∇ log π(a)] of one state, exactly, in float64; kappa None leaves the bound away."""
    probs = np.exp(logits) / np.exp(logits).sum()
    entropy = -(probs * np.log(probs)).sum()
    advantages = rewards - (probs * rewards).sum()
    bonus = np.full_like(probs, alpha * entropy)
    if kappa is not None:
        bonus = np.minimum(bonus, np.abs(advantages) / kappa)
        stats = make_stats(1, len(probs), entropy=np.full((1, len(probs)), entropy, np.float32))
        shaped = shape_by_entropy(alpha, kappa)(jnp.asarray(advantages[None], jnp.float32), stats)
        np.testing.assert_allclose(shaped[0], advantages + bonus, atol=1e-6)
    # ∂ log π(a) / ∂ logits_v = [a = v] - π(v)
    score = np.eye(len(probs)) - probs
    return (probs * bonus) @ score


def test_only_the_bound_gives_the_bonus_an_expected_effect_on_policy():
    logits = np.array([0.3, -1.2, 0.8, 0.0, -0.4])
    rewards = np.array([1.0, -1.0, -1.0, 1.0, -1.0])
    unbounded = expected_gradient_of_bonus(0.4, None, rewards, logits)
    np.testing.assert_allclose(unbounded, 0, atol=1e-15)
    assert np.abs(expected_gradient_of_bonus(0.4, 2.0, rewards, logits)).max() > 1e-2


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"kappa": 0.5},
            "shape_by_entropy.kappa: must be a number > 1, so that the bonus flips no sign, "
            "got 0.5",
        ),
        (
            {"kappa": 1.0},
            "shape_by_entropy.kappa: must be a number > 1, so that the bonus flips no sign, "
            "got 1.0",
        ),
        (
            {"kappa": float("nan")},
            "shape_by_entropy.kappa: must be a number > 1, so that the bonus flips no sign, "
            "got nan",
        ),
        ({"alpha": -0.1}, "shape_by_entropy.alpha: must be a number >= 0, got -0.1"),
        ({"alpha": float("inf")}, "shape_by_entropy.alpha: must be a number >= 0, got inf"),
        (
            {"entropy_source": "rollout"},
            "shape_by_entropy.entropy_source: must be current or old, got 'rollout'",
        ),
    ],
)
def test_shape_by_entropy_refuses_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError) as error:
        shape_by_entropy(**kwargs)
    assert message in str(error.value)


# ----------------------------------------------------------------------------------------------
# chains


def test_a_chain_is_a_left_fold():
    rewards, stats = random_problem()
    step = group_normalize(4)(rewards[:, None], stats)
    np.testing.assert_array_equal(
        chain(group_normalize(4), shape_by_entropy())(rewards[:, None], stats),
        shape_by_entropy()(step, stats),
    )


def test_chain_is_associative_and_the_empty_chain_is_its_identity():
    rewards, stats = random_problem()
    a, b, c = group_normalize(4), whiten(), shape_by_entropy()
    chains = [
        chain(a, b, c),
        chain(chain(a, b), c),
        chain(a, chain(b, c)),
        chain(chain(), a, chain(), b, c),
    ]
    values = [transform(rewards[:, None], stats) for transform in chains]
    for transform, value in zip(chains, values, strict=True):
        assert transform.members == (a, b, c)
        assert transform.scope == "batch"
        np.testing.assert_array_equal(value, values[0])
    np.testing.assert_array_equal(chain()(rewards[:, None], stats), rewards[:, None])
    assert chain().scope == "token"


def test_the_scope_of_a_chain_is_the_widest_of_its_members():
    assert chain(shape_by_entropy()).scope == "token"
    assert chain(group_center(2), shape_by_entropy()).scope == "group"
    assert chain(shape_by_entropy(), whiten(), shape_by_entropy()).scope == "batch"
    assert chain(whiten(), eapo(), whiten()).scope == "batch"


def test_a_plain_function_is_a_member_of_batch_scope():
    rewards, stats = random_problem()
    transform = chain(group_center(4), lambda advantages, stats: 2 * advantages)
    assert transform.scope == "batch"
    np.testing.assert_allclose(
        transform(rewards[:, None], stats), 2 * group_center(4)(rewards[:, None], stats)
    )


@pytest.mark.parametrize(
    "transform",
    [chain(baseline(4), shape_by_entropy()) for baseline in GROUP_BASELINES]
    + [chain(group_center(4), whiten(), shape_by_entropy(0.1, entropy_source="old"))],
)
def test_a_jitted_chain_equals_an_eager_one(transform):
    rewards, stats = random_problem()
    np.testing.assert_allclose(
        jax.jit(transform)(rewards[:, None], stats),
        transform(rewards[:, None], stats),
        rtol=1e-6,
        atol=1e-7,
    )


def test_a_chain_cuts_into_baseline_and_shaping():
    a, b, c = group_normalize(4), whiten(), shape_by_entropy()
    baseline, shaping = baseline_and_shaping(chain(a, b, c, b))
    assert (baseline.members, shaping.members) == ((a, b), (c, b))
    baseline, shaping = baseline_and_shaping(a)
    assert (baseline.members, shaping.members) == ((a,), ())
    baseline, shaping = baseline_and_shaping(c)
    assert (baseline.members, shaping.members) == ((), (c,))
    row = Transform(lambda advantages, stats: advantages, "sequence")
    baseline, shaping = baseline_and_shaping(chain(a, row, c))
    assert (baseline.members, shaping.members) == ((a,), (row, c)) and shaping.scope == "sequence"


def test_chain_refuses_what_cannot_be_called():
    with pytest.raises(
        TypeError,
        match=r"^chain: member 1 must be a Transform or a function .*, got the factory shape_by_",
    ):
        chain(group_normalize(4), shape_by_entropy)
    with pytest.raises(
        TypeError, match=r"chain: member 1 must be a Transform or a function .*, got 0\.4"
    ):
        chain(whiten(), 0.4)


def test_an_unknown_scope_is_refused():
    with pytest.raises(
        ValueError,
        match=r"Transform\.scope: must be one of token, sequence, group, batch, got 'line'",
    ):
        Transform(lambda advantages, stats: advantages, "line")


def test_wrong_shapes_are_refused_with_both_shapes():
    stats = make_stats(4, 3)
    with pytest.raises(
        ValueError, match=r"input must have shape \(4, 1\) or \(4, 3\), .* got \(4,\)"
    ):
        shape_by_entropy()(jnp.ones(4), stats)
    with pytest.raises(ValueError, match=r"result of .*flat must have shape .*, got \(4,\)"):

        def flat(advantages, stats):
            return advantages[:, 0]

        chain(flat)(jnp.ones((4, 1)), stats)


# ---------------------------------------------------------------------------------------------
# configs


@pytest.fixture
def own_module():
    """A user's file with transforms of their own."""
    module = types.ModuleType("entropy_rl_test_user_file")

    def scale(factor: float, group_size: int = 0):
        return lambda advantages, stats: factor * group_size * advantages

    def unreadable(x: "NoSuchName" = 1):  # noqa: F821
        return shape_by_entropy(alpha=x)

    module.scale, module.unreadable = scale, unreadable
    module.number, module.makes_a_number = 3, lambda: 3
    module.anything = lambda **kwargs: chain()
    sys.modules[module.__name__] = module
    yield module.__name__
    del sys.modules[module.__name__]


def test_a_config_builds_the_chain_it_lists():
    rewards, stats = random_problem()
    built = build_advantage(
        [
            {"name": "group_normalize", "eps": "1e-4"},
            {"name": "shape_by_entropy", "alpha": 1, "kappa": 3.0},
        ],
        4,
    )
    expected = chain(group_normalize(4, eps=1e-4), shape_by_entropy(1.0, 3.0))
    np.testing.assert_array_equal(built(rewards[:, None], stats), expected(rewards[:, None], stats))
    assert built.scope == "group"


@pytest.mark.parametrize("name", ["group_normalize", "group_center", "rloo"])
def test_a_config_fills_in_the_group_size(name):
    stats = make_stats(8)
    whole = build_advantage([{"name": name}], 8)(REWARDS_3_OF_8[:, None], stats)
    given = build_advantage([{"name": name, "group_size": 8}], 8)(REWARDS_3_OF_8[:, None], stats)
    np.testing.assert_array_equal(whole, given)
    assert not np.allclose(
        whole, build_advantage([{"name": name}], 4)(REWARDS_3_OF_8[:, None], stats)
    )


def test_an_empty_config_is_the_identity():
    assert build_advantage([], 1).members == ()


def test_shaping_may_stand_before_a_baseline_or_alone():
    assert build_advantage([{"name": "shape_by_entropy"}], 1).scope == "token"
    assert build_advantage([{"name": "shape_by_entropy"}, {"name": "whiten"}], 1).scope == "batch"


def test_a_config_names_a_function_of_the_users_own(own_module):
    built = build_advantage([{"name": f"{own_module}:scale", "factor": 2}], 4)
    np.testing.assert_array_equal(built(jnp.ones((1, 1)), make_stats(1)), 8)
    assert built.scope == "batch"
    assert build_advantage([{"name": f"{own_module}:anything", "x": 1}], 4).members == ()
    assert build_advantage([{"name": f"{own_module}:unreadable", "x": 2}], 4).scope == "token"


@pytest.mark.parametrize(
    "specs, message",
    [
        (
            [{"name": "group_normalize"}, {"name": "shape_by_entropy", "alhpa": 0.4}],
            "advantage[1].alhpa: must be one of alpha, kappa, entropy_source, got 'alhpa' "
            "(did you mean 'alpha'?)",
        ),
        (
            [{"name": "group_normalise"}],
            "advantage[0].name: must be one of gpg, group_center, ..., got 'group_normalise' "
            "(did you mean 'group_normalize'?)",
        ),
        (
            [{"name": ["whiten"]}],
            "advantage[0].name: must be one of gpg, group_center, ..., got ['whiten'] (did "
            "you mean 'whiten'?)",
        ),
        ([{"name": None}], "advantage[0].name: must be one of gpg, group_center, ..., got None"),
        ([{"alpha": 0.4}], "advantage[0].name: must be given, one of: gpg, group_center"),
        (["whiten"], "advantage[0]: must be a mapping {name: ..., arguments}, got 'whiten'"),
        (
            {"name": "whiten"},
            "advantage: must be a list of {name: ..., arguments}, got {'name': 'whiten'}",
        ),
        ("whiten", "advantage: must be a list of {name: ..., arguments}, got 'whiten'"),
        (
            [{"name": "shape_by_entropy", "alpha": "high"}],
            "advantage[0].alpha: must be a number, got 'high'",
        ),
        (
            [{"name": "shape_by_entropy", "alpha": True}],
            "advantage[0].alpha: must be a number, got True",
        ),
        (
            [{"name": "shape_by_entropy", "kappa": None}],
            "advantage[0].kappa: must be a number, got None",
        ),
        (
            [{"name": "shape_by_entropy", "entropy_source": "olt"}],
            "advantage[0].entropy_source: must be one of current, old, got 'olt' (did you "
            "mean 'old'?)",
        ),
        (
            [{"name": "group_normalize", "ddof": 0.5}],
            "advantage[0].ddof: must be an integer, got 0.5",
        ),
        (
            [{"name": "group_normalize", "group_size": 4}],
            "advantage[0].group_size: must be that of rollout.group_size (8), got 4; leave it out",
        ),
        (
            [{"name": "whiten", "group_size": 8}],
            "advantage[0].group_size: must be eps, got 'group_size'",
        ),
        (
            [{"name": "shape_by_entropy", "kappa": 0.5}],
            "advantage[0]: shape_by_entropy.kappa: must be a number > 1, so that the bonus "
            "flips no sign, got 0.5",
        ),
        (
            [{"name": "no_such_module:f"}],
            "advantage[0].name: cannot import 'no_such_module:f': No module named 'no_such_module'",
        ),
        ([{"name": ":f"}], "advantage[0].name: cannot import ':f'"),
        ([{"name": "USER:nothing"}], "advantage[0].name: cannot import 'USER:nothing'"),
        (
            [{"name": "USER:number"}],
            "advantage[0].name: must be a Transform or a function (advantages, stats) -> "
            "advantages, or its factory, got 3 (USER:number)",
        ),
        (
            [{"name": "USER:makes_a_number"}],
            "advantage[0].name: must return a Transform or a function (advantages, stats) -> "
            "advantages, got 3 from USER:makes_a_number",
        ),
        ([{"name": "USER:scale"}], "advantage[0].factor: must be given"),
    ],
)
def test_a_config_error_names_the_place_the_value_and_the_way_out(specs, message, own_module):
    if isinstance(specs, list):
        specs = [
            {**spec, "name": spec["name"].replace("USER", own_module)}
            if isinstance(spec, dict) and isinstance(spec.get("name"), str)
            else spec
            for spec in specs
        ]
    with pytest.raises(ValueError) as error:
        build_advantage(specs, 8)
    assert says(str(error.value), message.replace("USER", own_module))


@pytest.mark.parametrize("name", ["group_normalize", "group_center", "rloo"])
def test_a_config_refuses_a_group_baseline_over_groups_of_one(name):
    with pytest.raises(
        ValueError, match=r"advantage\[0\]: .* at least 2 completions .*rollout.group_size"
    ):
        build_advantage([{"name": name}], 1)
