"""Losses: independent NumPy loops, gradients by hand, and micro-batches that add up to the whole."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.config import LossConfig
from entropy_rl.losses import (
    counts,
    importance_weight,
    kl_estimate,
    policy_loss,
    ppo_surrogate,
    token_weights,
)

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
AGGREGATIONS = ["token-mean", "sequence-mean", "constant"]


def random_arrays(rows=16, tokens=8, seed=0) -> dict[str, jax.Array]:
    """The arrays of `policy_loss`, by name; the mask is ragged and has an empty row."""
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(1, (rows, tokens))
    others = ("old_log_probs", "sampler_log_probs", "ref_log_probs")
    arrays = {
        "log_probs": log_probs,
        **{name: log_probs + rng.normal(0, 0.5, (rows, tokens)) for name in others},
        "entropy": rng.exponential(1, (rows, tokens)),
        "advantages": rng.normal(size=(rows, tokens)),
    }
    mask = np.arange(tokens) < rng.integers(0, tokens + 1, (rows, 1))
    mask[3] = False
    return {**{name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}, "mask": jnp.asarray(mask)}


ARRAYS = random_arrays()


def surrogate_of_one(log_ratio, advantage, **kwargs):
    """Loss, its gradient in the log-prob, and the clip masks of a single token."""

    def loss(log_prob):
        value, clipped = ppo_surrogate(
            log_prob.reshape(1, 1), jnp.zeros((1, 1)), jnp.full((1, 1), advantage), **{**CLIP, **kwargs}
        )
        return value[0, 0], clipped

    (value, clipped), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.float32(log_ratio))
    return float(value), float(gradient), tuple(bool(x[0, 0]) for x in clipped)


# -------------------------------------------------------------------------------------- the surrogate


def loop_over_tokens(log_probs, old_log_probs, advantages, low, high, dual):
    """The clipped surrogate once more, one token at a time in float64, by cases and without max or min."""
    loss = np.zeros(log_probs.shape)
    for i, row in enumerate(np.asarray(log_probs, np.float64)):
        for t, log_prob in enumerate(row):
            ratio = math.exp(log_prob - float(old_log_probs[i, t]))
            a = float(advantages[i, t])
            if a >= 0:
                used = ratio if ratio <= 1 + high else 1 + high
            else:
                used = ratio if ratio >= 1 - low else 1 - low
                if dual is not None and used > dual:
                    used = dual
            loss[i, t] = -used * a
    return loss


@pytest.mark.parametrize("dual", [None, 1.5])
@pytest.mark.parametrize("low, high", [(0.2, 0.2), (0.2, 0.28), (0.05, 1.0)])
def test_the_surrogate_equals_a_loop_over_tokens_in_float64(low, high, dual):
    log_probs, old, advantages = (ARRAYS[x] for x in ("log_probs", "old_log_probs", "advantages"))
    loss, clipped = ppo_surrogate(log_probs, old, advantages, clip_low=low, clip_high=high, dual_clip=dual)
    np.testing.assert_allclose(
        loss, loop_over_tokens(log_probs, old, advantages, low, high, dual), rtol=1e-5, atol=1e-6
    )
    ratio = np.exp(np.asarray(log_probs) - np.asarray(old))
    np.testing.assert_array_equal(clipped.low, (ratio < 1 - low) & (np.asarray(advantages) < 0))
    np.testing.assert_array_equal(clipped.high, (ratio > 1 + high) & (np.asarray(advantages) > 0))
    expected = (ratio > dual) & (np.asarray(advantages) < 0) if dual else np.zeros_like(ratio, bool)
    np.testing.assert_array_equal(clipped.dual, expected)


@pytest.mark.parametrize(
    "ratio, advantage, value, gradient, clipped",
    [
        (1.0, 2.0, -2.0, -2.0, ""),
        (1.0, -2.0, 2.0, 2.0, ""),
        (1.27, 2.0, -2.54, -2.54, ""),
        (1.5, 2.0, -2.56, 0.0, "high"),  # -1.28 · 2
        (0.5, -2.0, 1.6, 0.0, "low"),  # 0.8 · 2
        (0.5, 2.0, -1.0, -1.0, ""),  # moved the wrong way: no clip holds it back
        (1.5, -2.0, 3.0, 3.0, ""),
        (1.5, 0.0, 0.0, 0.0, ""),
    ],
)
def test_the_surrogate_has_no_gradient_exactly_where_it_is_clipped(
    ratio, advantage, value, gradient, clipped
):
    got = surrogate_of_one(math.log(ratio), advantage)
    assert got[0] == pytest.approx(value, rel=1e-6)
    assert got[1] == pytest.approx(gradient, rel=1e-6)
    assert got[2] == (clipped == "low", clipped == "high", False)


@pytest.mark.parametrize(
    "ratio, advantage, value, gradient, dual",
    [(5.0, -2.0, 6.0, 0.0, True), (2.0, -2.0, 4.0, 4.0, False), (5.0, 2.0, -2.56, 0.0, False)],
)
def test_the_dual_clip_bounds_the_loss_of_negative_advantages_alone(ratio, advantage, value, gradient, dual):
    got = surrogate_of_one(math.log(ratio), advantage, dual_clip=3.0)
    assert got[0] == pytest.approx(value, rel=1e-6)
    assert got[1] == pytest.approx(gradient, rel=1e-6)
    assert got[2][2] == dual


@pytest.mark.parametrize("log_ratio", [-1e4, 1e4])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_a_huge_log_ratio_keeps_loss_and_gradient_finite(log_ratio, advantage):
    value, gradient, _ = surrogate_of_one(log_ratio, advantage)
    assert math.isfinite(value)
    assert gradient == 0


def test_one_advantage_for_each_row_is_shared_by_its_tokens():
    log_probs, old, advantages = (ARRAYS[x] for x in ("log_probs", "old_log_probs", "advantages"))
    column = advantages[:, :1]
    narrow, _ = ppo_surrogate(log_probs, old, column, **CLIP)
    wide, _ = ppo_surrogate(log_probs, old, jnp.broadcast_to(column, log_probs.shape), **CLIP)
    np.testing.assert_array_equal(narrow, wide)


# ------------------------------------------------------------------------------------- KL and weights


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
            return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_p)) * estimates)  # a sampled from a fixed π

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
            np.testing.assert_allclose(jnp.sum(jnp.exp(log_p) * kl_estimate(log_p, log_q, kind)), kl)


def test_k3_keeps_the_digits_of_a_small_difference_and_is_finite_for_a_huge_one():
    ref = jnp.array([[1e-3, 200.0, -200.0]])
    value = kl_estimate(jnp.zeros((1, 3)), ref, "k3")
    np.testing.assert_allclose(value[0, 0], 0.5e-6 + 1e-9 / 6, rtol=1e-3)
    np.testing.assert_allclose(value[0, 2], 199)
    assert np.isfinite(value).all()


def test_an_unknown_kl_estimator_is_refused():
    with pytest.raises(ValueError, match="kl_estimate: kind='k4' is not allowed; allowed: k1, k2, k3"):
        kl_estimate(jnp.zeros((1, 1)), jnp.zeros((1, 1)), "k4")


def test_the_importance_weight_is_the_truncated_ratio_and_a_constant():
    old, sampler = jnp.log(jnp.array([[0.5, 0.5, 0.5]])), jnp.log(jnp.array([[0.5, 0.4, 0.1]]))
    np.testing.assert_allclose(importance_weight(old, sampler, 2.0), [[1, 1.25, 2]], rtol=1e-6)
    gradients = jax.grad(lambda *x: jnp.sum(importance_weight(*x, 2.0)), argnums=(0, 1))(old, sampler)
    np.testing.assert_array_equal(gradients, 0)


# ---------------------------------------------------------------------------------------- aggregation

MASK = jnp.array([[True, True, True, False], [True, False, False, False], [False] * 4])


def test_counts_leave_out_rows_without_a_token():
    assert [int(x) for x in counts(MASK)] == [4, 2]


@pytest.mark.parametrize(
    "aggregation, long, short",
    [("token-mean", 1 / 4, 1 / 4), ("sequence-mean", 1 / 6, 1 / 2), ("constant", 1 / 8, 1 / 8)],
)
def test_token_weights_have_the_hand_computed_values(aggregation, long, short):
    tokens, sequences = counts(MASK)
    weights = token_weights(MASK, aggregation, tokens=tokens, sequences=sequences, max_tokens=4)
    np.testing.assert_allclose(weights, [[long] * 3 + [0], [short, 0, 0, 0], [0] * 4], rtol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_add_up_to_the_whole_in_value_and_gradient(aggregation):
    log_probs, old, advantages = (ARRAYS[x] for x in ("log_probs", "old_log_probs", "advantages"))
    mask = ARRAYS["mask"].at[4:8].set(False)  # one part has nothing at all
    tokens, sequences = counts(mask)

    @jax.jit
    @jax.value_and_grad
    def loss(scale, log_probs, old, advantages, mask):
        per_token, _ = ppo_surrogate(scale * log_probs, old, advantages, **CLIP)
        weights = token_weights(mask, aggregation, tokens=tokens, sequences=sequences, max_tokens=8)
        return jnp.sum(weights * per_token)

    arrays = (log_probs, old, advantages, mask)
    whole = loss(1.0, *arrays)
    parts = [loss(1.0, *(x[i : i + 4] for x in arrays)) for i in range(0, 16, 4)]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_to_average_gives_zero_weights(aggregation):
    mask = jnp.zeros((2, 3), bool)
    tokens, sequences = counts(mask)
    weights = token_weights(mask, aggregation, tokens=tokens, sequences=sequences, max_tokens=3)
    np.testing.assert_array_equal(weights, 0)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="aggregation='mean' is not allowed; allowed: token-mean, sequence"):
        token_weights(MASK, "mean", tokens=1, sequences=1, max_tokens=1)


# ------------------------------------------------------------------------------- the composed loss

FULL = LossConfig(dual_clip=3.0, kl_coef=0.1, kl_estimator="k2", entropy_coef=0.01, importance_cap=2.0)


def compose(config=FULL, **changes):
    return policy_loss(**{**ARRAYS, **changes}, config=config)


def test_the_policy_loss_is_the_weighted_sum_of_its_terms():
    log_probs, old, sampler, ref, entropy, advantages, mask = map(np.asarray, ARRAYS.values())
    surrogate = loop_over_tokens(log_probs, old, advantages, 0.2, 0.28, 3.0)
    weight = np.minimum(np.exp(old - sampler), 2.0)
    kl = 0.5 * (log_probs - ref) ** 2
    loss, terms = compose()
    expected = np.where(mask, weight * surrogate + 0.1 * kl - 0.01 * entropy, 0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms.surrogate, np.where(mask, surrogate, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms.kl, np.where(mask, kl, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms.importance_weight, np.where(mask, weight, 0), rtol=1e-5)
    np.testing.assert_allclose(terms.log_ratio, np.where(mask, log_probs - old, 0), atol=1e-6)


def test_terms_that_are_off_are_absent_and_need_no_arrays():
    loss, terms = compose(LossConfig(), sampler_log_probs=None, ref_log_probs=None)
    assert terms.kl is None and terms.importance_weight is None
    np.testing.assert_array_equal(loss, terms.surrogate)


CONSTANTS = ["advantages", "old_log_probs", "sampler_log_probs", "ref_log_probs"]


@pytest.mark.parametrize("name", CONSTANTS)
def test_advantages_and_recorded_log_probs_are_constants_of_the_loss(name):
    gradient = jax.grad(lambda x: jnp.sum(compose(**{name: x})[0]))(jnp.full((16, 8), -0.5))
    np.testing.assert_array_equal(gradient, 0)


def test_the_entropy_has_a_gradient_only_through_its_coefficient():
    entropy, mask = ARRAYS["entropy"], ARRAYS["mask"]

    def gradient(config):
        return jax.grad(lambda x: jnp.sum(compose(config, entropy=x)[0]))(entropy)

    np.testing.assert_array_equal(gradient(LossConfig()), 0)
    np.testing.assert_allclose(gradient(LossConfig(entropy_coef=0.01)), np.where(mask, -0.01, 0), rtol=1e-6)


def test_the_terms_have_no_gradient():
    def total(log_probs):
        return sum(jnp.sum(x) for x in jax.tree.leaves(compose(log_probs=log_probs)[1]))

    np.testing.assert_array_equal(jax.grad(total)(ARRAYS["log_probs"]), 0)


def test_what_is_off_the_mask_reaches_neither_loss_nor_gradient():
    mask = ARRAYS["mask"]
    dirty = {name: jnp.where(mask, x, jnp.nan) for name, x in ARRAYS.items() if name != "mask"}
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
        ({"sampler_log_probs": None}, "loss.importance_cap is set, but sampler_log_probs is missing"),
        ({"ref_log_probs": None}, "loss.kl_coef is set, but ref_log_probs is missing"),
        ({"log_probs": jnp.zeros(8)}, "log_probs has shape (8,); expected [B, N]"),
        ({"mask": jnp.ones((16, 1), bool)}, "mask of shape (16, 1) does not fit log_probs of shape (16, 8)"),
        ({"ref_log_probs": jnp.zeros((16, 1))}, "ref_log_probs of shape (16, 1) does not fit log_probs"),
        ({"advantages": jnp.zeros((1, 8))}, "expected (16, 8) or (16, 1)"),
    ],
)
def test_arrays_that_are_missing_or_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError) as error:
        compose(**changes)
    assert str(error.value).startswith("policy_loss: ")
    assert message in str(error.value)
