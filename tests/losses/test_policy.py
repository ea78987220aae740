"""Losses: independent NumPy loops, gradients by hand, and micro-batches that add up to the
whole.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.config.train import LossConfig
from entropy_rl.losses import TokenWeights, ppo_clip
from entropy_rl.losses.aggregation import aggregation_weights, counts
from entropy_rl.losses.build import build_loss
from entropy_rl.losses.kl import kl_estimate
from entropy_rl.losses.loss import Loss
from entropy_rl.types import TokenStats

AGGREGATIONS = ["token-mean", "sequence-mean", "constant"]


def random_arrays(rows=16, tokens=8, seed=0) -> dict[str, jax.Array]:
    """Arrays of tokens, by name; the mask is ragged and has an empty row."""
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(1, (rows, tokens))
    others = ("old_log_probs", "sampler_log_probs", "ref_log_probs")
    arrays = {
        "log_probs": log_probs,
        **{name: log_probs + rng.normal(0, 0.5, (rows, tokens)) for name in others},
        "entropy": rng.exponential(1, (rows, tokens)),
        "old_entropy": rng.exponential(1, (rows, tokens)),
        "advantages": rng.normal(size=(rows, tokens)),
        "weight": rng.exponential(1, (rows, tokens)),
        "kl_penalty": rng.exponential(1, (rows, tokens)),
    }
    mask = np.arange(tokens) < rng.integers(0, tokens + 1, (rows, 1))
    mask[3] = False
    return {
        **{name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()},
        "mask": jnp.asarray(mask),
    }


ARRAYS = random_arrays()


def stats_of(arrays) -> TokenStats:
    names = ("log_probs", "old_log_probs", "entropy", "old_entropy", "mask", "sampler_log_probs")
    return TokenStats(
        has_reward=jnp.any(arrays["mask"], axis=1), **{name: arrays[name] for name in names}
    )


# ------------------------------------------------------------------------------------- the KL term


def test_kl_estimators_have_their_values_and_gradients():
    log_prob, ref = -1.0, -0.3
    d = ref - log_prob
    expected = {
        "k1": (-d, 1.0),
        "k2": (d * d / 2, -d),
        "k3": (math.exp(d) - d - 1, 1 - math.exp(d)),
    }
    for kind, (value, gradient) in expected.items():

        def loss(x, kind=kind):
            return kl_estimate(x.reshape(1, 1), jnp.full((1, 1), ref), kind)[0, 0]

        got = jax.value_and_grad(loss)(jnp.float32(log_prob))
        np.testing.assert_allclose(got, (value, gradient), rtol=1e-5)


def exact_gradients(logits, ref_logits):
    """Exact E_{a~π}[∇ k(a)] in float64 for each kind, with ∇KL(π ‖ ref) and ∇KL(ref ‖ π)."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)

    def expected(kind):
        def loss(x):
            estimates = kl_estimate(jax.nn.log_softmax(x)[None, :], log_q[None, :], kind)[0]
            return jnp.sum(
                jax.lax.stop_gradient(jnp.exp(log_p)) * estimates
            )  # a sampled from a fixed π

        return jax.grad(loss)(logits)

    def kl(x):
        return jnp.sum(jnp.exp(jax.nn.log_softmax(x)) * (jax.nn.log_softmax(x) - log_q))

    def other_kl(x):
        return jnp.sum(jnp.exp(log_q) * (log_q - jax.nn.log_softmax(x)))

    kinds = {kind: expected(kind) for kind in ("k1", "k2", "k3")}
    return kinds, jax.grad(kl)(logits), jax.grad(other_kl)(logits)


def test_on_policy_k1_has_no_gradient_k2_the_right_one_and_k3_that_of_the_other_kl():
    with jax.enable_x64(True):
        logits = jnp.array([0.3, -1.2, 0.8, 0.0, -0.4], jnp.float64)
        ref_logits = jnp.array([-0.5, 0.1, 0.9, 0.2, -1.0], jnp.float64)
        kinds, gradient, other_gradient = exact_gradients(logits, ref_logits)
        np.testing.assert_allclose(kinds["k1"], 0, atol=1e-15)
        np.testing.assert_allclose(kinds["k2"], gradient, atol=1e-15)
        np.testing.assert_allclose(kinds["k3"], other_gradient, atol=1e-15)
        assert np.abs(gradient - other_gradient).max() > 1e-2


def test_k1_and_k3_are_unbiased_on_policy():
    with jax.enable_x64(True):
        log_p = jax.nn.log_softmax(jnp.array([[0.3, -1.2, 0.8]], jnp.float64))
        log_q = jax.nn.log_softmax(jnp.array([[-0.5, 0.1, 0.9]], jnp.float64))
        kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q))
        for kind in ("k1", "k3"):
            np.testing.assert_allclose(
                jnp.sum(jnp.exp(log_p) * kl_estimate(log_p, log_q, kind)), kl
            )


def test_k3_keeps_the_digits_of_a_small_difference_and_is_finite_for_a_huge_one():
    ref = jnp.array([[1e-3, 200.0, -200.0]])
    value = kl_estimate(jnp.zeros((1, 3)), ref, "k3")
    np.testing.assert_allclose(value[0, 0], 0.5e-6 + 1e-9 / 6, rtol=1e-3)
    np.testing.assert_allclose(value[0, 2], 199)
    assert np.isfinite(value).all()


def test_an_unknown_kl_estimator_is_refused():
    with pytest.raises(ValueError, match="kl_estimate: kind: must be one of k1, k2, k3, got 'k4'"):
        kl_estimate(jnp.zeros((1, 1)), jnp.zeros((1, 1)), "k4")


# ----------------------------------------------------------------------------------------
# aggregation

MASK = jnp.array([[True, True, True, False], [True, False, False, False], [False] * 4])


def test_counts_leave_out_rows_without_a_token():
    assert [int(x) for x in counts(MASK)] == [4, 2]


@pytest.mark.parametrize(
    "aggregation, long, short",
    [("token-mean", 1 / 4, 1 / 4), ("sequence-mean", 1 / 6, 1 / 2), ("constant", 1 / 8, 1 / 8)],
)
def test_token_weights_have_the_hand_computed_values(aggregation, long, short):
    tokens, sequences = counts(MASK)
    weights = aggregation_weights(
        MASK, aggregation, tokens=tokens, sequences=sequences, max_tokens=4
    )
    np.testing.assert_allclose(weights, [[long] * 3 + [0], [short, 0, 0, 0], [0] * 4], rtol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_add_up_to_the_whole_in_value_and_gradient(aggregation):
    log_probs, old, advantages = (ARRAYS[x] for x in ("log_probs", "old_log_probs", "advantages"))
    mask = ARRAYS["mask"].at[4:8].set(False)  # one part has nothing at all
    tokens, sequences = counts(mask)

    @jax.jit
    @jax.value_and_grad
    def loss(scale, log_probs, old, advantages, mask):
        zeros = jnp.zeros_like(old)
        stats = TokenStats(scale * log_probs, old, zeros, zeros, mask, mask.any(1))
        per_token, _ = ppo_clip()(advantages, stats)
        weights = aggregation_weights(
            mask, aggregation, tokens=tokens, sequences=sequences, max_tokens=8
        )
        return jnp.sum(weights * per_token)

    arrays = (log_probs, old, advantages, mask)
    whole = loss(1.0, *arrays)
    parts = [loss(1.0, *(x[i : i + 4] for x in arrays)) for i in range(0, 16, 4)]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_to_average_gives_zero_weights(aggregation):
    mask = jnp.zeros((2, 3), bool)
    tokens, sequences = counts(mask)
    weights = aggregation_weights(
        mask, aggregation, tokens=tokens, sequences=sequences, max_tokens=3
    )
    np.testing.assert_array_equal(weights, 0)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(
        ValueError,
        match="aggregation: must be one of token-mean, sequence-mean, constant, got 'mean'",
    ):
        aggregation_weights(MASK, "mean", tokens=1, sequences=1, max_tokens=1)


# ------------------------------------------------------------------------------- the composed loss

FULL = Loss(kl_coef=0.1, kl_estimator="k2", entropy_coef=0.01)


def compose(loss=FULL, **changes):
    arrays = {**ARRAYS, **changes}
    weights = (
        None if arrays["weight"] is None else TokenWeights(arrays["weight"], arrays["kl_penalty"])
    )
    return loss(
        arrays["advantages"],
        stats_of(arrays),
        weights=weights,
        ref_log_probs=arrays["ref_log_probs"],
    )


def test_a_loss_has_every_setting_of_its_section():
    config = LossConfig(aggregation="constant", kl_coef=0.3, kl_estimator="k2", entropy_coef=0.2)
    loss = build_loss(config, max_new_tokens=7)
    names = ("aggregation", "max_tokens", "kl_coef", "kl_estimator", "entropy_coef")
    assert [getattr(loss, name) for name in names] == ["constant", 7, 0.3, "k2", 0.2]


def test_the_constant_aggregation_needs_the_limit_of_new_tokens():
    with pytest.raises(ValueError, match=r"^Loss\.max_tokens: must be the limit of new tokens"):
        Loss(aggregation="constant")


def test_the_policy_loss_is_the_weighted_sum_of_its_terms():
    array = {name: np.asarray(x, np.float64) for name, x in ARRAYS.items()}
    mask, d = np.asarray(ARRAYS["mask"]), array["log_probs"] - array["old_log_probs"]
    a, ratio = array["advantages"], np.exp(d)
    surrogate = np.where(a >= 0, -np.minimum(ratio, 1.28) * a, -np.maximum(ratio, 0.8) * a)
    kl = 0.5 * (array["log_probs"] - array["ref_log_probs"]) ** 2
    loss, terms = compose()
    selected = array["weight"] * (surrogate + array["kl_penalty"] * abs(d))
    expected = np.where(mask, selected + 0.1 * kl - 0.01 * array["entropy"], 0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms.kl, np.where(mask, kl, 0), rtol=1e-5, atol=1e-6)


def test_terms_that_are_off_are_absent_and_need_no_arrays():
    loss, terms = compose(Loss(), weight=None, ref_log_probs=None)
    assert terms.kl is None and terms.weights is None and terms.clipped.dual is None
    surrogate, _ = ppo_clip(0.2, 0.28)(ARRAYS["advantages"], stats_of(ARRAYS))
    np.testing.assert_array_equal(loss, surrogate)


def test_the_part_that_holds_a_token_pulls_its_log_prob_to_the_old_one():
    arrays = {name: jnp.ones((1, 3)) for name in ("advantages", "weight", "kl_penalty")}
    arrays |= {
        "log_probs": jnp.array([[-1.0, -2.0, -3.0]]),
        "old_log_probs": jnp.full((1, 3), -2.0),
    }
    arrays |= {"mask": jnp.ones((1, 3), bool)}
    arrays |= {name: jnp.zeros((1, 3)) for name in ("entropy", "old_entropy", "sampler_log_probs")}

    def loss(log_probs, kl_penalty):
        changes = {
            **arrays,
            "log_probs": log_probs,
            "kl_penalty": kl_penalty,
            "ref_log_probs": None,
        }
        return jnp.sum(compose(Loss(), **changes)[0])

    held = jax.grad(loss)(arrays["log_probs"], jnp.full((1, 3), 0.5))
    free = jax.grad(loss)(arrays["log_probs"], jnp.zeros((1, 3)))
    np.testing.assert_allclose(held - free, [[0.5, 0.0, -0.5]], rtol=1e-6)


CONSTANTS = ["advantages", "old_log_probs", "sampler_log_probs", "ref_log_probs"]


@pytest.mark.parametrize("name", CONSTANTS)
def test_advantages_and_recorded_log_probs_are_constants_of_the_loss(name):
    gradient = jax.grad(lambda x: jnp.sum(compose(**{name: x})[0]))(jnp.full((16, 8), -0.5))
    np.testing.assert_array_equal(gradient, 0)


def test_the_entropy_has_a_gradient_only_through_its_coefficient():
    entropy, mask = ARRAYS["entropy"], ARRAYS["mask"]

    def gradient(config):
        return jax.grad(lambda x: jnp.sum(compose(config, entropy=x)[0]))(entropy)

    np.testing.assert_array_equal(gradient(Loss()), 0)
    np.testing.assert_allclose(
        gradient(Loss(entropy_coef=0.01)), np.where(mask, -0.01, 0), rtol=1e-6
    )


def test_the_terms_have_no_gradient():
    def total(log_probs):
        return sum(jnp.sum(x) for x in jax.tree.leaves(compose(log_probs=log_probs)[1]))

    np.testing.assert_array_equal(jax.grad(total)(ARRAYS["log_probs"]), 0)


def test_what_is_off_the_mask_reaches_neither_loss_nor_gradient():
    mask, not_cleaned = (
        ARRAYS["mask"],
        ("mask", "weight", "kl_penalty"),
    )  # a token_weighting cleans its weights
    dirty = {
        name: jnp.where(mask, x, jnp.nan) for name, x in ARRAYS.items() if name not in not_cleaned
    }
    loss, gradient = jax.value_and_grad(lambda x: jnp.sum(compose(**{**dirty, "log_probs": x})[0]))(
        dirty["log_probs"]
    )
    np.testing.assert_allclose(loss, jnp.sum(compose()[0]), rtol=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(mask)], 0)


def test_the_jitted_policy_loss_equals_the_eager_one():
    log_probs = ARRAYS["log_probs"]
    eager, jitted = compose(), jax.jit(lambda x: compose(log_probs=x))(log_probs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), eager, jitted)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ref_log_probs": None}, "Loss: ref_log_probs must be given with a kl_coef, got None"),
        (
            {"mask": jnp.ones((16, 1), bool)},
            "surrogate: advantages must have shape (16, 1), that of mask, got (16, 8)",
        ),
        (
            {"log_probs": jnp.zeros((16, 1))},
            "surrogate: log_probs must have shape (16, 8), that of mask, got (16, 1)",
        ),
        (
            {"ref_log_probs": jnp.zeros((16, 1))},
            "Loss: ref_log_probs must have shape (16, 8), that of mask, got (16, 1)",
        ),
        (
            {"advantages": jnp.zeros((1, 8))},
            "(16, 8) or (16, 1), that of mask, got (1, 8)",
        ),
    ],
)
def test_arrays_that_are_missing_or_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError) as error:
        compose(**changes)
    assert message in str(error.value)
