"""The controls of the entropy-shaped advantage: as much bonus elsewhere, and its limit for a large
weight.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from advantage_problem import G, N, make_problem, rows_of

from entropy_rl.advantages import chain, group_normalize, shape_by_entropy
from entropy_rl.contrib import misplace_entropy_bonus, scale_by_sign, unbounded_entropy_bonus
from entropy_rl.types import TokenStats

PLACEMENTS = ("uniform", "shuffled")
both = pytest.mark.parametrize("placement", PLACEMENTS)


def bonus_of(shaping, advantages, stats):
    """float64[B, N]: what a shaping adds, 0 where nothing counts."""
    added = np.asarray(shaping(advantages, stats), np.float64) - np.asarray(advantages, np.float64)
    return np.where(np.asarray(stats.mask), added, 0)


@pytest.fixture(scope="module")
def problem():
    rewards, stats = make_problem()
    return group_normalize(G)(rewards, stats), stats


@both
def test_each_row_gets_the_bonus_that_shaping_would_give_it(placement, problem):
    shaped = bonus_of(shape_by_entropy(0.4, 2.0), *problem)
    misplaced = bonus_of(misplace_entropy_bonus(placement), *problem)
    assert (shaped.sum(1) > 0).sum() > 10
    np.testing.assert_allclose(misplaced.sum(1), shaped.sum(1), atol=1e-6)
    assert np.abs(misplaced - shaped).max() > 0.1


def test_uniform_gives_all_tokens_of_a_row_their_mean():
    stats = make_row([0.1, 0.5, 3.0, 9.9], [True, True, True, False])
    shaped = misplace_entropy_bonus("uniform", alpha=0.4, kappa=2.0)(jnp.array([[1.0]]), stats)
    np.testing.assert_allclose(shaped[0, :3], 1 + (0.04 + 0.2 + 0.5) / 3, rtol=1e-6)
    assert shaped[0, 3] == 1.0


def test_shuffled_permutes_the_bonus_within_the_row(problem):
    shaped = bonus_of(shape_by_entropy(), *problem)
    shuffled = bonus_of(misplace_entropy_bonus("shuffled"), *problem)
    np.testing.assert_allclose(np.sort(shuffled, 1), np.sort(shaped, 1), atol=1e-6)


def make_row(entropy, mask):
    entropy, mask = jnp.array([entropy], jnp.float32), jnp.array([mask])
    zeros = jnp.zeros(entropy.shape)
    return TokenStats(zeros, zeros, entropy, zeros, mask, jnp.array([True]))


def test_all_places_are_about_as_likely_over_the_lengths():
    longest, moves = 64, np.zeros(4)
    for length in range(16, longest):
        entropy = jnp.arange(longest) / longest
        stats = make_row(entropy, np.arange(longest) < length)
        bonus = bonus_of(misplace_entropy_bonus("shuffled", alpha=1.0), jnp.array([[9.0]]), stats)[
            0, :length
        ]
        source = np.round(bonus * longest).astype(int)
        assert sorted(source) == list(range(length))
        moves += np.bincount(source[: length // 4] * 4 // length, minlength=4)
    share = (
        moves / moves.sum()
    )  # of what the first quarter of a row gets, from which quarter it comes
    assert np.abs(share - 0.25).max() < 0.06, share


def test_another_seed_is_another_permutation_and_the_same_one_the_same(problem):
    one, same, other = (
        bonus_of(misplace_entropy_bonus("shuffled", seed=s), *problem) for s in (0, 0, 1)
    )
    assert (one == same).all() and (one != other).any()


@both
def test_a_row_does_not_depend_on_the_other_rows_nor_on_padding(placement, problem):
    advantages, stats = problem
    shaping = misplace_entropy_bonus(placement)
    whole = np.asarray(shaping(advantages, stats))
    rows = [5, 2, 30]
    np.testing.assert_array_equal(
        shaping(advantages[jnp.array(rows)], rows_of(stats, rows)), whole[rows]
    )
    padded = jax.tree.map(
        lambda x: x if x.ndim < 2 else jnp.pad(x, ((0, 0), (0, 5)), constant_values=0), stats
    )
    np.testing.assert_allclose(jax.jit(shaping)(advantages, padded)[:, :N], whole, atol=1e-6)


@both
def test_the_laws_of_the_entropy_shaped_advantage_hold(placement, problem):
    advantages, stats = problem
    misplaced = bonus_of(misplace_entropy_bonus(placement, alpha=1.0, kappa=2.0), advantages, stats)
    size = np.abs(np.asarray(advantages, np.float64))
    assert (misplaced >= -1e-6).all() and (misplaced <= size / 2 + 1e-6).all()
    assert (misplaced[size[:, 0] == 0] == 0).all()
    assert (bonus_of(misplace_entropy_bonus(placement, alpha=0.0), advantages, stats) == 0).all()

    def total(entropy):
        changed = stats.replace(entropy=entropy)
        return jnp.sum(misplace_entropy_bonus(placement)(advantages, changed))

    assert (np.nan_to_num(jax.grad(total)(jnp.where(stats.mask, stats.entropy, 0.5))) == 0).all()


def test_scaling_by_the_sign_is_the_limit_of_a_large_weight(problem):
    advantages, stats = problem
    limit = shape_by_entropy(alpha=1e9, kappa=2.0)(advantages, stats)
    scaled = jnp.broadcast_to(scale_by_sign()(advantages, stats), limit.shape)
    np.testing.assert_allclose(scaled[stats.mask], limit[stats.mask], rtol=1e-6)
    np.testing.assert_array_equal(
        scale_by_sign(2.0, 0.0)(jnp.array([[3.0], [0.0], [-3.0]]), rows_of(stats, [0, 1, 2])),
        [[6.0], [0.0], [-0.0]],
    )


def test_a_bonus_without_bound_is_the_weighted_entropy_of_every_token_that_counts(problem):
    advantages, stats = problem
    entropy = np.where(np.asarray(stats.mask), np.asarray(stats.entropy, np.float64), 0)
    added = bonus_of(unbounded_entropy_bonus(0.4), *problem)
    np.testing.assert_allclose(added, 0.4 * entropy, atol=1e-6)
    large = jnp.full_like(advantages, 64.0)  # so that nothing is bounded
    np.testing.assert_allclose(added, bonus_of(shape_by_entropy(0.4), large, stats), atol=1e-5)
    assert (bonus_of(unbounded_entropy_bonus(0.0), *problem) == 0).all()
    grad = jax.grad(
        lambda h: jnp.sum(unbounded_entropy_bonus()(advantages, stats.replace(entropy=h)))
    )
    assert (grad(jnp.where(stats.mask, stats.entropy, 0.5)) == 0).all()


def test_scopes_are_as_narrow_as_the_functions():
    assert (
        chain(group_normalize(G), scale_by_sign()).scope == "group"
        and scale_by_sign().scope == "token"
    )
    assert all(misplace_entropy_bonus(placement).scope == "sequence" for placement in PLACEMENTS)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: misplace_entropy_bonus("random"),
            "misplace_entropy_bonus.placement: must be uniform or shuffled, got 'random'",
        ),
        (
            lambda: misplace_entropy_bonus("uniform", kappa=1.0),
            "shape_by_entropy.kappa: must be a number > 1, so that the bonus flips no sign, "
            "got 1.0",
        ),
        (
            lambda: unbounded_entropy_bonus(-1),
            "unbounded_entropy_bonus.alpha: must be a number >= 0, got -1",
        ),
        (
            lambda: scale_by_sign(negative=-1.0),
            "scale_by_sign.negative: must be a number >= 0, got -1.0",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
