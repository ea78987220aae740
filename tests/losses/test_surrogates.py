"""Each surrogate against its formula, as loops in float64 with the gradient by hand, and the
laws.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from error_lines import says
from loss_problem import B, N, arrays64, make_tokens, tokens_of

from entropy_rl.config.registry import factories_of
from entropy_rl.contrib import archer, aspo, flexible_clip, s_trace
from entropy_rl.losses import (
    ClipMasks,
    Surrogate,
    build_surrogate,
    ce_gppo,
    cispo,
    dppo_tv,
    gmpo,
    gppo,
    gspo,
    no_clips,
    ppo_clip,
    sapo,
    unclipped,
)
from entropy_rl.types import TokenStats

# Each formula once more, for one token: the numbers of its row and its own place -> (loss, the
# derivative of the row's losses that the token's own log-prob is to have). `d` are the log-ratios
# of the row, `p` and `q` the new and old probabilities, `h` the old entropies. By cases, without
# max or min of losses.


def ppo_loop(low, high, dual=None):
    def token(d, a, t, **_):
        ratio = math.exp(d[t])
        if a[t] > 0 and ratio > 1 + high:
            return -(1 + high) * a[t], 0.0
        if a[t] < 0 and ratio < 1 - low:
            return -(1 - low) * a[t], 0.0
        if a[t] < 0 and dual is not None and ratio > dual:
            return -dual * a[t], 0.0
        return -ratio * a[t], -ratio * a[t]

    return token


def of_ratio(ratio_of_token, low, high):
    """PPO with another ratio."""

    def token(d, a, t, **rest):
        d = list(d)
        d[t] = math.log(ratio_of_token(d, t, **rest))
        return ppo_loop(low, high)(d, a, t)

    return token


def geometric_mean(d, t, **_):
    return math.exp(sum(d) / len(d))


def flexible_loop(d, a, t, p, q, **_):
    return ppo_loop(0.2, (1 + 0.5) / (1 + 0.4 * q[t]) - 1)(d, a, t)


def gmpo_loop(low, high):
    def token(d, a, t, **_):
        x = []
        for value, advantage in zip(d, a, strict=True):
            if advantage > 0:
                x.append(value if value < high else high)
            elif advantage < 0:
                x.append(value if value > -low else -low)
            else:
                x.append(0.0)
        loss = -a[t] * math.exp(sum(x) / len(x))
        return loss, loss if x[t] == d[t] else 0.0

    return token


def trace(decay, fraction):
    def ratio(d, t, h, **_):
        inside = sorted(range(len(h)), key=lambda k: -h[k])[: math.ceil(fraction * len(h) - 1e-9)]
        weights = {k: decay ** (t - k) for k in inside if k <= t}
        if not sum(weights.values()):
            return 1.0
        return math.exp(sum(w * d[k] for k, w in weights.items()) / sum(weights.values()))

    return ratio


def cispo_loop(d, a, t, p, **_):
    weight = math.exp(d[t])
    weight = 1.3 if weight > 1.3 else 0.6 if weight < 0.6 else weight
    return -weight * a[t] * math.log(p[t]), -weight * a[t]


def sapo_loop(d, a, t, **_):
    tau, ratio = 1.0 if a[t] > 0 else 1.05, math.exp(d[t])
    sigma = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return -a[t] * 4 / tau * sigma, -a[t] * 4 * sigma * (1 - sigma) * ratio


def dppo_loop(low, high):
    def token(d, a, t, p, q, **_):
        if (a[t] > 0 and p[t] - q[t] > high) or (a[t] <= 0 and p[t] - q[t] < -low):
            return 0.0, 0.0
        weight = min(math.exp(d[t]), 1.5)
        return -weight * a[t] * math.log(p[t]), -weight * a[t]

    return token


def ce_gppo_loop(b1, b2, dual=None):
    def token(d, a, t, **_):
        ratio = math.exp(d[t])
        if a[t] < 0 and ratio < 0.8:
            return -b1 * 0.8 * a[t], -b1 * 0.8 * a[t]
        if a[t] > 0 and ratio > 1.28:
            return -b2 * 1.28 * a[t], -b2 * 1.28 * a[t]
        if a[t] < 0 and dual is not None and ratio > dual:
            return -dual * a[t], 0.0
        return -ratio * a[t], -ratio * a[t]

    return token


def is_high(entropy, t, quantile=0.8):
    return entropy[t] > np.quantile(entropy, quantile)  # interpolated, as in the source


def archer_loop(d, a, t, entropy, **_):
    clip = 0.5 if is_high(entropy, t) else 0.2
    return ppo_loop(clip, clip, 10.0)(d, a, t)


def aspo_loop(d, a, t, p, entropy, **_):
    clip, ratio = 0.4 if is_high(entropy, t) else 0.2, math.exp(d[t])
    if a[t] > 0:
        if 1 / ratio > 1.5:
            return -1.5 * a[t] * math.log(p[t]), -1.5 * a[t]
        return (-a[t] / (1 + clip), 0.0) if ratio > 1 + clip else (-a[t] / ratio, -a[t] / ratio)
    if ratio > 1.5:
        return -1.5 * a[t] * math.log(p[t]), -1.5 * a[t]
    return (-(1 - clip) * a[t], 0.0) if ratio < 1 - clip else (-ratio * a[t], -ratio * a[t])


# name -> (surrogate, its scope, the loop)
FAMILY = {
    "unclipped": (unclipped(), "token", lambda d, a, t, **_: (-math.exp(d[t]) * a[t],) * 2),
    "PPO": (ppo_clip(0.2, 0.2), "token", ppo_loop(0.2, 0.2)),
    "DAPO": (ppo_clip(), "token", ppo_loop(0.2, 0.28)),
    "dual clip": (ppo_clip(0.05, 1.0, dual_clip=1.5), "token", ppo_loop(0.05, 1.0, 1.5)),
    "flexible": (flexible_clip(-0.4, 0.5), "token", flexible_loop),
    "GSPO": (gspo(), "sequence", of_ratio(geometric_mean, 3e-4, 4e-4)),
    "GSPO, wide": (gspo(0.05, 0.05), "sequence", of_ratio(geometric_mean, 0.05, 0.05)),
    "GMPO": (gmpo(), "sequence", gmpo_loop(0.4, 0.4)),
    "S-trace": (s_trace(0.7, 0.5), "sequence", of_ratio(trace(0.7, 0.5), 0.2, 0.28)),
    "CISPO": (cispo(1.3, 0.6), "token", cispo_loop),
    "SAPO": (sapo(), "token", sapo_loop),
    "DPPO": (dppo_tv(0.1, 0.1, 1.5), "token", dppo_loop(0.1, 0.1)),
    "CE-GPPO": (ce_gppo(), "token", ce_gppo_loop(0.75, 1.0)),
    "CE-GPPO, dual": (ce_gppo(0.5, 1.0, dual_clip=1.5), "token", ce_gppo_loop(0.5, 1.0, 1.5)),
    "GPPO": (gppo(), "token", ce_gppo_loop(1.0, 1.0)),
    "Archer": (archer(), "sequence", archer_loop),
    "ASPO": (aspo(max_weight=1.5), "sequence", aspo_loop),
}
every_surrogate = pytest.mark.parametrize("name", FAMILY)


def loss_and_gradient(surrogate, advantages, stats):
    def total(log_probs):
        loss, masks = surrogate(advantages, stats.replace(log_probs=log_probs))
        return jnp.sum(loss), (loss, masks)

    gradient, (loss, masks) = jax.grad(total, has_aux=True)(stats.log_probs)
    return np.asarray(loss), np.asarray(gradient), masks


def looped(token_loop, advantages, stats):
    x, mask = arrays64(stats), np.asarray(stats.mask)
    a, loss, gradient = np.asarray(advantages, np.float64), np.zeros((B, N)), np.zeros((B, N))
    for i, t in tokens_of(stats):
        n = int(mask[i].sum())
        new, old = x["log_probs"][i, :n], x["old_log_probs"][i, :n]
        row = {"p": np.exp(new), "q": np.exp(old), "h": list(x["old_entropy"][i, :n])}
        row["entropy"] = x["entropy"][i, :n]
        loss[i, t], gradient[i, t] = token_loop(list(new - old), list(a[i, :n]), t, **row)
    return loss, gradient


@every_surrogate
def test_loss_and_gradient_are_those_of_the_formula_written_as_a_loop(name):
    surrogate, scope, loop = FAMILY[name]
    advantages, stats = make_tokens()
    loss, gradient, masks = loss_and_gradient(surrogate, advantages, stats)
    expected, slope = looped(loop, advantages, stats)
    assert surrogate.scope == scope
    assert np.abs(expected).max() > 0.5 and np.abs(slope).max() > 0.05
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(gradient, slope, rtol=2e-5, atol=2e-6)
    if name not in ("unclipped", "SAPO"):
        assert masks.low.any() and masks.high.any(), "the problem must reach both bounds"


@pytest.mark.parametrize(
    ("surrogate", "loop"),
    [(dppo_tv(0.1, 0.2, 1.5), dppo_loop(0.1, 0.2)), (gmpo(0.2, 0.4), gmpo_loop(0.2, 0.4))],
    ids=["DPPO", "GMPO"],
)
def test_the_lower_bound_is_of_negative_advantages_and_the_upper_one_of_positive_ones(
    surrogate, loop
):
    advantages, stats = make_tokens()
    loss, gradient, masks = loss_and_gradient(surrogate, advantages, stats)
    expected, slope = looped(loop, advantages, stats)
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(gradient, slope, rtol=2e-5, atol=2e-6)
    held = np.asarray(masks.low | masks.high)
    # A token whose own log-prob is clipped has no gradient.
    np.testing.assert_array_equal(slope[held], 0)
    assert masks.low.any() and masks.high.any()


@pytest.mark.parametrize("name", ["unclipped", "DAPO", "flexible", "SAPO"])
def test_where_nothing_is_stopped_the_gradient_is_that_of_finite_differences(name):
    with jax.enable_x64(True):
        advantages, stats = jax.tree.map(
            lambda x: jnp.asarray(np.nan_to_num(x), jnp.float64) if x.dtype == jnp.float32 else x,
            make_tokens(),
        )
        surrogate, step = FAMILY[name][0], 1e-6
        _, gradient, _ = loss_and_gradient(surrogate, advantages, stats)

        def at(shift):
            return surrogate(advantages, stats.replace(log_probs=stats.log_probs + shift))[0]

        np.testing.assert_allclose(
            gradient, (at(step) - at(-step)) / (2 * step), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("name", ["GSPO, wide", "GMPO"])
def test_the_gradient_of_a_row_is_that_of_its_ratio_by_finite_differences(name):
    # The aggregation by sequences: the mean over a row of its tokens' losses is the loss of the
    # row.
    surrogate, (advantages, stats) = FAMILY[name][0], make_tokens(spread=0.3)
    with jax.enable_x64(True):
        advantages, stats = jax.tree.map(
            lambda x: jnp.asarray(np.nan_to_num(x), jnp.float64) if x.dtype == jnp.float32 else x,
            (advantages, stats),
        )
        column, length = advantages[:, :1], jnp.maximum(stats.mask.sum(1), 1)

        def of_rows(log_probs):
            return surrogate(column, stats.replace(log_probs=log_probs))[0].sum(1) / length

        gradient = jax.grad(lambda x: of_rows(x).sum())(stats.log_probs)
        for t in range(N):
            step = 1e-6 * jax.nn.one_hot(t, N, dtype=jnp.float64)[None]
            slope = (of_rows(stats.log_probs + step) - of_rows(stats.log_probs - step)) / 2e-6
            np.testing.assert_allclose(gradient[:, t], slope, rtol=1e-5, atol=1e-8)


def test_the_trace_does_not_decay_over_the_observations_of_an_episode():
    advantages, stats = make_tokens()
    apart = np.sort(np.random.default_rng(0).permutation(2 * N)[:N])

    def spread(x):
        shape = (len(x), 2 * N)
        return jnp.zeros(shape, x.dtype).at[:, apart].set(x) if x.shape[1:] == (N,) else x

    surrogate = s_trace(0.5, 0.7)
    loss, _ = surrogate(advantages, stats)
    with_gaps, _ = surrogate(*jax.tree.map(spread, (advantages, stats)))
    np.testing.assert_allclose(jnp.where(stats.mask, with_gaps[:, apart] - loss, 0), 0, atol=1e-6)


@every_surrogate
def test_on_policy_every_surrogate_has_the_gradient_of_the_policy_gradient(name):
    advantages, stats = make_tokens()
    stats = stats.replace(old_log_probs=stats.log_probs)
    _, gradient, masks = loss_and_gradient(FAMILY[name][0], advantages, stats)
    expected = np.where(np.asarray(stats.mask), -np.asarray(advantages), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    assert not any(x.any() for x in jax.tree.leaves(masks))


@every_surrogate
def test_what_is_off_the_mask_does_not_matter(name):
    surrogate, (advantages, stats) = FAMILY[name][0], make_tokens()
    clean_advantages, clean = jax.tree.map(
        lambda x: jnp.nan_to_num(x, nan=3.7) if x.dtype == jnp.float32 else x, (advantages, stats)
    )
    one = loss_and_gradient(surrogate, advantages, stats)
    two = loss_and_gradient(surrogate, clean_advantages, clean)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    for x in jax.tree.leaves(one):
        np.testing.assert_array_equal(np.asarray(x)[~np.asarray(stats.mask)], 0)


@every_surrogate
def test_longer_padding_and_other_rows_change_nothing(name):
    surrogate, (advantages, stats) = FAMILY[name][0], make_tokens()
    whole = surrogate(advantages, stats)
    longer = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, 3))) if x.ndim == 2 else x, (advantages, stats)
    )
    part = jax.tree.map(lambda x: x[4:9], longer)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:, :N], b[4:9], rtol=1e-6, atol=1e-7),
        surrogate(*part),
        whole,
    )


@pytest.mark.parametrize(
    "name", [name for name, (_, scope, _) in FAMILY.items() if scope == "token"]
)
def test_a_surrogate_of_token_scope_gives_the_same_where_tokens_are_rows_of_their_own(name):
    surrogate, (advantages, stats) = FAMILY[name][0], make_tokens()
    apart = jax.tree.map(
        lambda x: jnp.broadcast_to(x.reshape(B, -1), (B, N)).reshape(-1, 1), (advantages, stats)
    )
    apart = apart[0], apart[1].replace(has_reward=apart[1].has_reward[:, 0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.reshape(B, N), b, rtol=1e-6),
        surrogate(*apart),
        surrogate(advantages, stats),
    )


@every_surrogate
@pytest.mark.parametrize("log_ratio", [-1e4, 1e4])
def test_a_huge_log_ratio_keeps_loss_and_gradient_finite(name, log_ratio):
    advantages, stats = make_tokens()
    stats = stats.replace(old_log_probs=stats.log_probs - log_ratio)
    loss, gradient, _ = loss_and_gradient(FAMILY[name][0], advantages, stats)
    assert np.isfinite(loss).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["entropy", "mask", "advantages", "who", "log_probs"])
def test_an_array_of_the_caller_s_own_may_have_any_name(name):
    advantages, stats = make_tokens()
    plain, _ = ppo_clip(0.2, 0.2)(advantages, stats)
    given = stats.replace(extras={name: jnp.ones((B, N))})
    np.testing.assert_array_equal(ppo_clip(0.2, 0.2)(advantages, given)[0], plain)
    wrong = stats.replace(extras={name: jnp.ones((B, N + 1))})
    with pytest.raises(ValueError, match=rf"extras\['{name}'\] must have shape"):
        ppo_clip(0.2, 0.2)(advantages, wrong)


@every_surrogate
def test_an_advantage_of_zero_has_neither_loss_nor_gradient_and_one_for_a_row_is_shared(name):
    surrogate, (advantages, stats) = FAMILY[name][0], make_tokens()
    loss, gradient, _ = loss_and_gradient(surrogate, jnp.zeros((B, 1)), stats)
    assert not loss.any() and not gradient.any()
    column = jnp.nan_to_num(advantages[:, :1])
    wide = jnp.broadcast_to(column, (B, N))
    jax.tree.map(np.testing.assert_array_equal, surrogate(column, stats), surrogate(wide, stats))


def test_the_surrogates_that_are_special_cases_of_others_are():
    advantages, stats = make_tokens()

    def assert_same(one, two, rtol=1e-6):
        for a, b in zip(
            *(loss_and_gradient(s, advantages, stats)[:2] for s in (one, two)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)

    assert_same(gppo(), ce_gppo(b1=1.0, b2=1.0))
    assert_same(flexible_clip(slope=0.0, intercept=0.28), ppo_clip())
    assert_same(s_trace(decay=0.0), ppo_clip())
    # β = 0 leaves nothing of the clipped tokens, whose loss in PPO is a constant.
    ppo, none = (
        loss_and_gradient(s, advantages, stats)[1] for s in (ppo_clip(), ce_gppo(b1=0.0, b2=0.0))
    )
    np.testing.assert_allclose(none, ppo, rtol=1e-6)
    last = np.asarray(stats.mask).sum(1) - 1
    traced, row = (s(advantages, stats)[0] for s in (s_trace(1.0, 1.0, 0.3, 0.3), gspo(0.3, 0.3)))
    some = np.flatnonzero(last >= 0)
    np.testing.assert_allclose(traced[some, last[some]], row[some, last[some]], rtol=1e-5)


def one_row(log_ratios, advantages, entropies):
    """One row of tokens of π = e^-1 with these ratios, advantages and entropies."""
    d = jnp.asarray([log_ratios], jnp.float32)
    log_probs = jnp.full(d.shape, -1.0)
    entropy = jnp.asarray([entropies], jnp.float32)
    stats = TokenStats(
        log_probs=log_probs,
        old_log_probs=log_probs - d,
        entropy=entropy,
        old_entropy=entropy,
        mask=jnp.ones(d.shape, bool),
        has_reward=jnp.ones(1, bool),
    )
    return jnp.asarray([advantages], jnp.float32), stats


def test_archer_gives_the_values_by_hand():
    # Six tokens, quantile 0.8: rank ⌊0.8 · 5⌋ = 4, so the one token above the entropy 5 is high.
    advantages, stats = one_row(
        np.log([1.4, 1.4, 0.6, 0.6, 12.0, 1.1]), [1, 1, -1, -1, -1, 2], [1, 9, 2, 3, 4, 5]
    )
    loss, gradient, masks = loss_and_gradient(archer(), advantages, stats)
    np.testing.assert_allclose(loss, [[-1.2, -1.4, 0.8, 0.8, 10, -2.2]], rtol=1e-5)
    np.testing.assert_allclose(gradient, [[0, -1.4, 0, 0, 0, -2.2]], rtol=1e-5)
    np.testing.assert_array_equal(masks.high, [[True, False, False, False, False, False]])
    np.testing.assert_array_equal(masks.dual, [[False, False, False, False, True, False]])


def test_aspo_gives_the_values_by_hand():
    # A > 0: 1/ρ = 2 keeps it as the weight, 1/ρ = 4 is above 3: -3 A log π = 3 A for log π = -1;
    # ρ = 1.3 is above 1.2, so -A / 1.2 without a gradient. A < 0: ρ = 4 is above 3, 0.5 below 0.8.
    # The last token alone is of high entropy: 1.3 is within its range, 1 / 1.3.
    advantages, stats = one_row(
        np.log([0.5, 0.25, 1.3, 4.0, 0.5, 1.3]), [1, 2, 1, -1, -1, 1], [1, 2, 3, 4, 5, 9]
    )
    loss, gradient, masks = loss_and_gradient(aspo(), advantages, stats)
    np.testing.assert_allclose(loss, [[-2, 6, -1 / 1.2, -3, 0.8, -1 / 1.3]], rtol=1e-5)
    np.testing.assert_allclose(gradient, [[-2, -6, 0, 3, 0, -1 / 1.3]], rtol=1e-5)
    np.testing.assert_array_equal(masks.low, [[False] * 4 + [True, False]])
    np.testing.assert_array_equal(masks.high, [[False, False, True, False, False, False]])
    np.testing.assert_array_equal(masks.dual, [[False, True, False, True, False, False]])


def aspo_of_the_source(old_log_probs, log_probs, advantages, entropy, mask):
    """`compute_policy_loss_archer` of https://github.com/wizard-III/Archer2.0 in NumPy: token
    losses, and the factor of ∇log π in their gradient.
    """
    ratio = np.exp(np.clip(log_probs - old_log_probs, -20, 20))
    threshold = np.nanquantile(np.where(mask, entropy, np.nan), 0.8, axis=1, keepdims=True)
    low_entropy = entropy <= threshold  # named high_entropy_mask there
    negative = np.where(low_entropy, np.maximum(ratio, 1 - 0.2), np.maximum(ratio, 1 - 0.4))
    positive = np.where(low_entropy, np.minimum(ratio, 1 + 0.2), np.minimum(ratio, 1 + 0.4))
    free = np.where(advantages < 0, negative, positive) == ratio  # clamp has no gradient outside
    negative_dual = negative > np.minimum(negative, 3.0)
    negative_loss = np.where(negative_dual, -advantages * 3 * log_probs, -advantages * negative)
    positive_dual = 1 / positive > np.minimum(1 / positive, 3.0)
    positive_loss = np.where(positive_dual, -advantages * 3 * log_probs, -advantages / positive)
    dual = np.where(advantages < 0, negative_dual, positive_dual)
    weight = np.where(advantages < 0, negative, 1 / positive)
    slope = -advantages * np.where(dual, 3, weight * free)
    return np.where(advantages < 0, negative_loss, positive_loss), slope


def test_aspo_equals_its_source():
    advantages, stats = make_tokens(seed=4, spread=1.2)
    loss, gradient, masks = loss_and_gradient(aspo(), advantages, stats)
    mask = np.asarray(stats.mask)
    rows = mask.any(1)
    x = {name: array[rows] for name, array in arrays64(stats).items()}
    expected, slope = aspo_of_the_source(
        x["old_log_probs"],
        x["log_probs"],
        np.asarray(advantages, np.float64)[rows],
        x["entropy"],
        mask[rows],
    )
    assert masks.dual.any() and masks.low.any() and masks.high.any()
    np.testing.assert_allclose(loss[mask], expected[mask[rows]], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(gradient[mask], slope[mask[rows]], rtol=2e-5, atol=2e-6)


# --- from a config


@pytest.fixture
def user(tmp_path, monkeypatch):
    (tmp_path / "my_surrogates.py").write_text(
        "import jax.numpy as jnp\n"
        "from entropy_rl.losses import no_clips\n"
        "def reinforce(scale: float = 1.0):\n"
        "    def loss(advantages, stats):\n"
        "        return -scale * advantages * stats.log_probs, no_clips(advantages)\n"
        "    return loss\n"
        "number = 3\n"
        "def makes_a_number():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_surrogates"


def test_every_name_of_the_library_can_be_built_from_a_config():
    advantages, stats = make_tokens()
    specs = [
        {"name": n}
        for n in ("ppo_clip", "unclipped", "gspo", "gmpo", "cispo", "sapo", "dppo_tv", "gppo")
    ]
    specs += [{"name": "ce_gppo", "b1": 0.5}, {"name": "s_trace", "decay": 0.9}]
    specs += [{"name": "archer"}, {"name": "aspo"}]
    specs += [{"name": "flexible_clip", "slope": -0.4, "intercept": 0.5}]
    ranges = dict(clip=0.2, slope=-0.4, intercept=0.5, low_slope=-0.3, low_intercept=0.4)
    specs += [
        {"name": f"flexible_clip_{s}", "total_steps": 8, **ranges} for s in ("id", "did", "od")
    ]
    assert {spec["name"] for spec in specs} == set(factories_of(Surrogate))
    stats = stats.replace(
        coefficients=dict.fromkeys(("dynamic_upper", "dynamic_lower"), jnp.full((1, 1), 0.5))
    )
    for spec in specs:
        assert np.isfinite(build_surrogate(spec)(advantages, stats)[0]).all()


def test_a_function_of_the_users_own_is_a_surrogate_that_reads_its_row(user):
    advantages, stats = make_tokens()
    surrogate = build_surrogate({"name": f"{user}:reinforce", "scale": 2})
    assert surrogate.scope == "sequence"
    expected = np.where(stats.mask, -2 * np.asarray(advantages) * np.asarray(stats.log_probs), 0)
    np.testing.assert_allclose(surrogate(advantages, stats)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ppo_clip", "loss.surrogate: must be a mapping {name: ..., arguments}, got 'ppo_clip'"),
        (
            {"clip_low": 0.2},
            "loss.surrogate.name: must be given, one of: ppo_clip, unclipped, gmpo, gspo, ce_gppo",
        ),
        (
            {"name": "gspoo"},
            "loss.surrogate.name: must be one of ppo_clip, unclipped, ..., got 'gspoo' (did "
            "you mean 'gspo'?)",
        ),
        (
            {"name": "gspo", "clip": 1},
            "loss.surrogate.clip: must be one of clip_low, clip_high, got 'clip' (did you "
            "mean 'clip_low'?)",
        ),
        (
            {"name": "gspo", "clip_low": "x"},
            "loss.surrogate.clip_low: must be a number, got 'x'",
        ),
        (
            {"name": "ppo_clip", "clip_low": 1},
            "loss.surrogate: ppo_clip.clip_low: must be a number > 0 and < 1, got 1.0",
        ),
        (
            {"name": "ppo_clip", "dual_clip": 1},
            "loss.surrogate: ppo_clip.dual_clip: must be null or a number > 1, got 1.0",
        ),
        ({"name": "flexible_clip", "intercept": 0.2}, "loss.surrogate.slope: must be given"),
        ({"name": "s_trace"}, "loss.surrogate.decay: must be given"),
        (
            {"name": "cispo", "max_ratio": 0.5},
            "loss.surrogate: cispo.max_ratio: must be a number >= 1, got 0.5",
        ),
        (
            {"name": "sapo", "tau_neg": 0},
            "loss.surrogate: sapo.tau_neg: must be a number > 0, got 0.0",
        ),
        (
            {"name": "dppo_tv", "divergence_low": 2},
            "loss.surrogate: dppo_tv.divergence_low: must be a number > 0 and <= 1, got 2.0",
        ),
        (
            {"name": "ce_gppo", "b1": -1},
            "loss.surrogate: ce_gppo.b1: must be a number >= 0, got -1.0",
        ),
        (
            {"name": "gmpo", "clip_low": 0},
            "loss.surrogate: gmpo.clip_low: must be a number > 0, got 0.0",
        ),
        (
            {"name": "gmpo", "clip_high": 0},
            "loss.surrogate: gmpo.clip_high: must be a number > 0, got 0.0",
        ),
        (
            {"name": "USER:number"},
            "loss.surrogate.name: must be a Surrogate or a function (advantages, stats) -> (loss, "
            "ClipMasks), or its factory, got 3 (USER:number)",
        ),
        (
            {"name": "USER:makes_a_number"},
            "loss.surrogate.name: must return a Surrogate or a function (advantages, stats) -> "
            "(loss, ClipMasks), got 3 from USER:makes_a_number",
        ),
        ({"name": "USER:nothing"}, "loss.surrogate.name: cannot import 'USER:nothing'"),
    ],
)
def test_a_bad_entry_is_refused_in_one_line_that_says_where(user, spec, message):
    if isinstance(spec, dict):
        spec = {k: v.replace("USER", user) if isinstance(v, str) else v for k, v in spec.items()}
    with pytest.raises(ValueError) as error:
        build_surrogate(spec)
    assert says(str(error.value), message.replace("USER", user)), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda a, s: a, "must be (loss, ClipMasks), got ArrayImpl"),
        (
            lambda a, s: (a[:, 0], no_clips(a)),
            f"must have arrays of shape ({B}, {N}), got ({B},)",
        ),
        (
            lambda a, s: (a, ClipMasks(a[:1] > 0, a > 0)),
            f"must have arrays of shape ({B}, {N}), got (1, {N})",
        ),
    ],
)
def test_what_a_function_returns_is_checked(function, message):
    with pytest.raises(ValueError) as error:
        Surrogate(function, "sequence")(*make_tokens())
    assert message in str(error.value)


def test_an_unknown_scope_is_refused():
    with pytest.raises(
        ValueError, match=r"Surrogate\.scope: must be token or sequence, got 'group'"
    ):
        Surrogate(lambda a, s: a, "group")
