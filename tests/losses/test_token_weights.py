"""Each token_weighting against its formula, as loops in float64, and the laws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from error_lines import says
from loss_problem import B, N, arrays64, make_tokens, tokens_of

from entropy_rl.contrib import low_entropy_kl, opefo
from entropy_rl.losses import (
    Loss,
    TokenWeighting,
    TokenWeights,
    build_token_weighting,
    clip_cov,
    combine,
    erc,
    forking_tokens,
    geometric_rejection,
    icepop,
    kl_cov,
    ppo_clip,
    sequence_tis,
    token_tis,
    unclipped,
)
from entropy_rl.types import TokenStats

# Each formula once more: (advantages float64, arrays float64, places of the tokens) -> {place:
# weight}.


def of_token(weight):
    return lambda a, x, places: {p: weight(a, x, p) for p in places}


def of_row(weight):
    """From the list of a row's differences to the one weight of its tokens."""

    def loop(a, x, places):
        rows = {i: [difference(x, p) for p in places if p[0] == i] for i, _ in places}
        return {p: weight(rows[p[0]]) for p in places}

    return loop


def difference(x, p):
    return x["old_log_probs"][p] - x["sampler_log_probs"][p]


def token_weight(a, x, p):
    ratio = math.exp(difference(x, p))
    return ratio if ratio < 1.5 else 1.5


def row_weight(d):
    return min(math.exp(sum(d)), 2.0)


def icepop_weight(a, x, p):
    ratio = math.exp(difference(x, p))
    return ratio if 0.7 <= ratio <= 1.6 else 0.0


def erc_weight(a, x, p):
    return float(0.95 < (x["entropy"][p] + 1e-8) / (x["old_entropy"][p] + 1e-8) < 1.05)


def forking_loop(a, x, places):
    kept = sorted(places, key=lambda p: -x["entropy"][p])[: -(-len(places) // 5)]
    return {p: len(places) / len(kept) if p in kept else 0.0 for p in places}


def covariances(a, x, places):
    mean_a, mean_lp = (sum(y[p] for p in places) / len(places) for y in (a, x["log_probs"]))
    return {p: (a[p] - mean_a) * (x["log_probs"][p] - mean_lp) for p in places}


def opefo_loop(score):
    def loop(a, x, places):
        d = {p: -a[p] * score(math.exp(x["log_probs"][p])) for p in places}
        d = {p: d[p] * (x["log_probs"][p] + x["entropy"][p]) for p in places}
        up = sum(value for value in d.values() if value > 0)
        down = sum(-value for value in d.values() if value < 0)
        balance = (down - up) / (down + up)
        return {p: 1 + balance * (1 if d[p] > 0 else -1 if d[p] < 0 else 0) for p in places}

    return loop


# name -> (token_weighting, its scope, the loop)
FAMILY = {
    "token TIS": (token_tis(1.5), "token", of_token(token_weight)),
    "sequence TIS": (sequence_tis(), "sequence", of_row(row_weight)),
    "IcePop": (icepop(0.7, 1.6), "token", of_token(icepop_weight)),
    "geometric rejection": (
        geometric_rejection(0.8, 1.2),
        "sequence",
        of_row(lambda d: float(0.8 <= math.exp(sum(d) / len(d)) <= 1.2)),
    ),
    "ERC": (erc(), "token", of_token(erc_weight)),
    "forking tokens": (forking_tokens(), "batch", forking_loop),
    "OPEFO": (opefo(), "batch", opefo_loop(lambda p: (1 - p) ** 2)),
    "OPEFO, first order": (opefo("first_order"), "batch", opefo_loop(lambda p: p)),
}
# Those that are not a function of the arrays alone, or say more than a weight, have tests of their
# own.
SELECTIONS = {name: token_weighting for name, (token_weighting, _, _) in FAMILY.items()} | {
    "Clip-Cov": clip_cov(ppo_clip(), fraction=0.1, low=0.2),
    "KL-Cov": kl_cov(fraction=0.1),
}
every_selection = pytest.mark.parametrize("name", SELECTIONS)


@pytest.mark.parametrize("name", FAMILY)
def test_the_weights_are_those_of_the_formula_written_as_a_loop(name):
    token_weighting, scope, loop = FAMILY[name]
    advantages, stats = make_tokens()
    expected = np.zeros((B, N))
    for place, weight in loop(
        np.asarray(advantages, np.float64), arrays64(stats), tokens_of(stats)
    ).items():
        expected[place] = weight
    weights = token_weighting(advantages, stats)
    assert token_weighting.scope == scope and weights.kl_penalty is None
    assert len(np.unique(expected[np.asarray(stats.mask)])) > 1, (
        "the problem must tell tokens apart"
    )
    np.testing.assert_allclose(weights.weight, expected, rtol=1e-5, atol=1e-6)


@every_selection
def test_weights_are_constants_finite_and_zero_off_the_mask_whatever_stands_there(name):
    token_weighting, (advantages, stats) = SELECTIONS[name], make_tokens()
    other = jax.tree.map(
        lambda x: jnp.nan_to_num(x, nan=-3.7) if x.dtype == jnp.float32 else x, (advantages, stats)
    )
    one, two = token_weighting(advantages, stats), token_weighting(*other)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    for x in jax.tree.leaves(one):
        assert np.isfinite(x).all() and not np.asarray(x)[~np.asarray(stats.mask)].any()

    def total(a, lp, h):
        weights = token_weighting(a, stats.replace(log_probs=lp, entropy=h))
        return sum(jnp.sum(x) for x in jax.tree.leaves(weights))

    for gradient in jax.grad(total, (0, 1, 2))(advantages, stats.log_probs, stats.entropy):
        np.testing.assert_array_equal(gradient, 0)


@every_selection
def test_longer_padding_and_rows_without_a_token_change_nothing(name):
    token_weighting, (advantages, stats) = SELECTIONS[name], make_tokens()
    longer = jax.tree.map(lambda x: jnp.pad(x, ((0, 2), (0, 3))[: x.ndim]), (advantages, stats))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:B, :N], b, rtol=1e-6, atol=1e-7),
        token_weighting(*longer),
        token_weighting(advantages, stats),
    )


@every_selection
def test_the_order_of_the_rows_does_not_matter(name):
    token_weighting, (advantages, stats) = SELECTIONS[name], make_tokens()
    order = np.random.default_rng(1).permutation(B)
    turned = token_weighting(*jax.tree.map(lambda x: x[order], (advantages, stats)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.asarray(b)[order], rtol=1e-5, atol=1e-6),
        turned,
        token_weighting(advantages, stats),
    )


@pytest.mark.parametrize("name", [name for name, s in SELECTIONS.items() if s.scope != "batch"])
def test_a_selection_of_token_or_row_scope_gives_the_same_on_any_rows(name):
    token_weighting, (advantages, stats) = SELECTIONS[name], make_tokens()
    rows = np.array([7, 2, 10])
    part = token_weighting(*jax.tree.map(lambda x: x[rows], (advantages, stats))).weight
    np.testing.assert_allclose(
        part, np.asarray(token_weighting(advantages, stats).weight)[rows], rtol=1e-6
    )


@pytest.mark.parametrize("name", [name for name, s in SELECTIONS.items() if s.scope == "batch"])
def test_a_selection_of_batch_scope_needs_the_whole(name):
    token_weighting, (advantages, stats) = SELECTIONS[name], make_tokens()
    whole = advantages, stats
    halves = jax.tree.map(lambda x: x[: B // 2], whole), jax.tree.map(lambda x: x[B // 2 :], whole)
    parts = jax.tree.map(
        lambda *x: jnp.concatenate(x), *(token_weighting(*half) for half in halves)
    )
    same = jax.tree.map(lambda p, w: bool(jnp.allclose(p, w)), parts, token_weighting(*whole))
    assert not all(jax.tree.leaves(same))


@every_selection
def test_without_a_token_there_is_no_weight(name):
    advantages, stats = make_tokens()
    nothing = stats.replace(mask=jnp.zeros_like(stats.mask))
    for x in jax.tree.leaves(SELECTIONS[name](advantages, nothing)):
        np.testing.assert_array_equal(x, 0)


# ------------------------------------------------------------------------------------ how many are
# taken


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 0.7, 1.0])
def test_exactly_the_fraction_is_kept_rounded_up_and_the_mean_is_over_the_kept_ones(fraction):
    rng = np.random.default_rng(0)
    losses, weigh = rng.normal(size=(10, 30)), jax.jit(forking_tokens(fraction))
    for tokens in (1, 4, 10, 20, 30, 99, 100, 300):
        mask = (np.arange(300) < tokens).reshape(10, 30)
        _, stats = make_tokens()
        zeros = jnp.zeros((10, 30))
        entropy = rng.exponential(1, (10, 30)).astype(np.float32)
        stats = stats.replace(
            log_probs=zeros, old_log_probs=zeros, entropy=jnp.asarray(entropy),
            old_entropy=jnp.asarray(entropy), sampler_log_probs=zeros, mask=jnp.asarray(mask),
            has_reward=jnp.asarray(mask.any(1)),
        )  # fmt: skip
        weight = np.asarray(weigh(zeros, stats).weight)
        kept = -(-tokens * round(fraction * 10) // 10)
        assert (weight > 0).sum() == kept
        # token-mean divides by all tokens, and the weight makes that the kept ones
        np.testing.assert_allclose(
            (weight * losses).sum() / tokens, losses[weight > 0].mean(), rtol=1e-5
        )
        assert entropy[weight > 0].min() >= np.max(entropy[mask & (weight == 0)], initial=0)


def test_geometric_rejection_bounds_the_ratio_of_the_trainer_to_the_sampler_by_hand():
    # mean δ = 0.3 and -0.3 give 1.35 and 0.74. The text of veRL rejects the second with the range
    # (0.85, 1.5); its code, which takes the inverse ratio, would reject the first.
    zeros, mask = jnp.zeros((2, 2)), jnp.ones((2, 2), bool)
    stats = TokenStats(
        log_probs=zeros,
        old_log_probs=zeros - 1,
        entropy=zeros,
        old_entropy=zeros,
        mask=mask,
        has_reward=jnp.ones(2, bool),
        sampler_log_probs=jnp.asarray([[-1.6, -1.0], [-0.4, -1.0]]),
    )
    weight = geometric_rejection(0.85, 1.5)(zeros, stats).weight
    np.testing.assert_array_equal(weight, [[1, 1], [0, 0]])


def test_low_entropy_kl_takes_the_kl_term_from_tokens_of_high_entropy_by_hand():
    # Six tokens, quantile 0.8: rank ⌊0.8 · 5⌋ = 4 from 0, so only the entropy above 5 is high.
    shape = (1, 6)
    stats = TokenStats(
        log_probs=jnp.full(shape, -1.0),
        old_log_probs=jnp.full(shape, -1.0),
        entropy=jnp.asarray([[1.0, 9, 2, 3, 4, 5]]),
        old_entropy=jnp.zeros(shape),
        mask=jnp.ones(shape, bool),
        has_reward=jnp.ones(1, bool),
    )
    advantages, reference = jnp.zeros(shape), jnp.full(shape, -1.5)
    weights = low_entropy_kl()(advantages, stats)
    np.testing.assert_array_equal(weights.kl_weight, [[1, 0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(weights.weight, 1)
    # k3 of δ = -0.5: exp(-0.5) + 0.5 - 1 = 0.106531
    loss = Loss(token_weighting=low_entropy_kl(), kl_coef=0.1)
    found, terms = loss(advantages, stats, ref_log_probs=reference)
    np.testing.assert_allclose(found, 0.0106531 * np.array([[1, 0, 1, 1, 1, 1]]), atol=1e-7)
    np.testing.assert_allclose(terms.kl, 0.106531, atol=1e-6)
    both = combine(low_entropy_kl(), low_entropy_kl(0.5), token_tis())
    stats = stats.replace(sampler_log_probs=stats.old_log_probs)
    np.testing.assert_array_equal(both(advantages, stats).kl_weight, [[1, 0, 1, 1, 0, 0]])
    with pytest.raises(ValueError, match=r"Loss\.kl_coef: must be a number > 0 with token weights"):
        Loss(token_weighting=low_entropy_kl())


def test_of_equal_entropies_the_first_tokens_are_kept():
    advantages, stats = make_tokens()
    weight = forking_tokens(0.2)(advantages, stats.replace(entropy=jnp.ones((B, N)))).weight
    places = tokens_of(stats)
    assert [tuple(p) for p in np.argwhere(weight)] == places[: math.ceil(0.2 * len(places))]


def test_kl_cov_holds_the_tokens_of_the_highest_covariance_and_at_least_one():
    advantages, stats = make_tokens()
    places = tokens_of(stats)
    covariance = covariances(np.asarray(advantages, np.float64), arrays64(stats), places)
    for fraction, count in ((1e-4, 1), (0.1, len(places) // 10), (1.0, len(places))):
        weights = kl_cov(fraction, coef=0.7)(advantages, stats)
        held = sorted(places, key=lambda p: -covariance[p])[:count]
        expected = np.zeros((B, N))
        for place in held:
            expected[place] = 0.7
        np.testing.assert_allclose(weights.kl_penalty, expected, rtol=1e-6)
        np.testing.assert_array_equal(weights.weight, stats.mask)


def candidates_of(advantages, stats, low, high):
    x, places = arrays64(stats), tokens_of(stats)
    a = np.asarray(advantages, np.float64)
    covariance = covariances(a, x, places)
    ratio = {p: math.exp(x["log_probs"][p] - x["old_log_probs"][p]) for p in places}
    clipped = {p for p in places if (a[p] > 0 and ratio[p] > 1.28) or (a[p] < 0 and ratio[p] < 0.8)}
    return {p for p in places if low < covariance[p] < high and p not in clipped}, clipped


def test_clip_cov_leaves_out_as_many_as_it_says_of_those_it_may():
    advantages, stats = make_tokens()
    candidates, clipped = candidates_of(advantages, stats, 0.1, 1.0)
    assert len(candidates) > 5 and clipped
    places, chosen = tokens_of(stats), []
    for seed in range(20):
        for fraction, count in ((1e-4, 1), (0.1, len(places) // 10), (1.0, len(candidates))):
            token_weighting = clip_cov(ppo_clip(), fraction, low=0.1, high=1.0, seed=seed)
            weight = np.asarray(token_weighting(advantages, stats).weight)
            left_out = {p for p in places if weight[p] == 0}
            assert left_out <= candidates and len(left_out) == min(count, len(candidates))
            assert all(weight[p] == 1 for p in places if p not in left_out)
            chosen.append(frozenset(left_out))
    assert set().union(*chosen[0::3]) > chosen[0], "the choice is random"
    # A surrogate that clips nothing leaves all of them to choose from.
    free = clip_cov(unclipped(), 1.0, low=0.1, high=1.0)(advantages, stats).weight
    assert (np.asarray(free)[np.asarray(stats.mask)] == 0).sum() > len(candidates)


def test_the_random_choice_hits_every_candidate_equally_often():
    advantages, stats = make_tokens()
    candidates, _ = candidates_of(advantages, stats, 0.1, 1.0)
    token_weighting, draws = clip_cov(ppo_clip(), 1e-4, low=0.1, high=1.0), 600

    def left_out(rollout):
        # Others are certain of all tokens but the first: that tokens have equal records makes no
        # difference.
        first = jnp.arange(N)[None] == 0
        recorded = jnp.where(first, stats.sampler_log_probs - 1e-3 * rollout, 0)
        weight = token_weighting(advantages, stats.replace(sampler_log_probs=recorded)).weight
        return stats.mask - weight

    hits = np.asarray(jax.jit(jax.vmap(left_out))(jnp.arange(draws)).sum(0))
    share = 1 / len(candidates)
    spread = math.sqrt(share * (1 - share) / draws)
    assert hits.sum() == draws
    assert all(abs(hits[p] / draws - share) < 4 * spread for p in candidates)


@pytest.mark.parametrize("score", ["paper", "first_order"])
def test_opefo_balances_the_changes_of_the_entropy(score):
    advantages, stats = make_tokens()
    x, mask = arrays64(stats), np.asarray(stats.mask)
    p = np.exp(x["log_probs"])
    scale = (1 - p) ** 2 if score == "paper" else p
    change = np.where(mask, -np.asarray(advantages) * scale * (x["log_probs"] + x["entropy"]), 0)
    weight = np.asarray(opefo(score)(advantages, stats).weight)
    assert abs(change.sum()) > 0.1 and abs((weight * change).sum()) < 1e-5
    none = opefo(score)(jnp.zeros_like(advantages), stats).weight
    np.testing.assert_array_equal(none, stats.mask)


def test_the_first_order_score_is_the_change_of_the_entropy_of_a_table():
    # E over tokens of d = the derivative of H along the step that the policy gradient takes.
    with jax.enable_x64(True):
        logits = jnp.array([0.3, -1.2, 0.8, 0.0], jnp.float64)
        advantage = jnp.array([1.0, -0.5, 0.2, 2.0], jnp.float64)

        def entropy(z):
            return -jnp.sum(jax.nn.softmax(z) * jax.nn.log_softmax(z))

        log_p, h = jax.nn.log_softmax(logits), entropy(logits)
        p = jnp.exp(log_p)
        step = p * advantage  # a sampled action raises its own logit by its advantage
        change = jnp.sum(jax.grad(entropy)(logits) * step)
        np.testing.assert_allclose(jnp.sum(p * (-advantage * p * (log_p + h))), change, rtol=1e-12)


# -------------------------------------------------------------------------------------------
# combining


def test_weights_multiply_drifts_add_and_the_scope_is_the_widest():
    advantages, stats = make_tokens()
    parts = [token_tis(), kl_cov(0.1, 0.5), erc(), kl_cov(0.2, 1.0), sequence_tis()]
    each = [part(advantages, stats) for part in parts]
    for chosen in (parts, parts[::-1]):
        whole = combine(*chosen)
        assert whole.scope == "batch" and whole.corrects_sampler
        weights = whole(advantages, stats)
        np.testing.assert_allclose(
            weights.weight, np.prod([w.weight for w in each], axis=0), rtol=1e-6
        )
        np.testing.assert_allclose(
            weights.kl_penalty, each[1].kl_penalty + each[3].kl_penalty, rtol=1e-6
        )
    assert combine(token_tis(), sequence_tis()).scope == "sequence"
    assert not combine(erc(), forking_tokens()).corrects_sampler


@pytest.mark.parametrize(
    "name", ["token_tis", "sequence_tis", "icepop", "geometric_rejection", "clip_cov"]
)
def test_what_the_sampler_recorded_is_asked_for_where_it_is_missing(name):
    advantages, stats = make_tokens()
    token_weighting = build_token_weighting([{"name": name}], ppo_clip())
    with pytest.raises(
        ValueError, match=f"^{name}: sampler_log_probs must be the log-probs as recorded while"
    ):
        token_weighting(advantages, stats.replace(sampler_log_probs=None))


# ------------------------------------------------------------------------------------- from a
# config


@pytest.fixture
def user(tmp_path, monkeypatch):
    (tmp_path / "my_weights.py").write_text(
        "import jax.numpy as jnp\n"
        "from entropy_rl.losses import TokenWeighting\n"
        "def first_tokens(count: int):\n"
        "    def select(advantages, stats):\n"
        "        n = advantages.shape[1]\n"
        "        return jnp.broadcast_to(jnp.arange(n)[None] < count, "
        "stats.mask.shape).astype(jnp.float32)\n"
        "    return select\n"
        "def first_of_row(count: int):\n"
        "    return TokenWeighting(first_tokens(count), 'sequence')\n"
        "def narrow():\n    return lambda advantages, stats: jnp.ones(3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_weights"


def test_weights_of_the_users_own_count_as_needing_the_batch_unless_they_say_less(user):
    advantages, stats = make_tokens()
    for name, scope in (("first_tokens", "batch"), ("first_of_row", "sequence")):
        token_weighting = build_token_weighting(
            [{"name": f"{user}:{name}", "count": 2}], ppo_clip()
        )
        assert token_weighting.scope == scope
        expected = np.asarray(stats.mask) & (np.arange(N) < 2)
        np.testing.assert_array_equal(token_weighting(advantages, stats).weight, expected)


def test_an_empty_list_is_no_selection():
    assert build_token_weighting([], ppo_clip()) is None


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["erc"], "loss.token_weights[0]: must be a mapping {name: ..., arguments}, got 'erc'"),
        (
            [{"name": "erc"}, {"name": "ercc"}],
            "loss.token_weights[1].name: must be one of clip_cov, kl_cov, ..., got 'ercc' "
            "(did you mean 'erc'?)",
        ),
        (
            [{"fraction": 1}],
            "loss.token_weights[0].name: must be given, one of: clip_cov, kl_cov, erc, ",
        ),
        (
            [{"name": "forking_tokens", "fraction": 0}],
            "loss.token_weights[0]: forking_tokens.fraction: must be a number > 0 and <= 1, got ",
        ),
        (
            [{"name": "clip_cov", "low": 6}],
            "loss.token_weights[0]: clip_cov.low: must be a number < high (5.0), got 6.0",
        ),
        (
            [{"name": "clip_cov", "surrogate": 6}],
            "loss.token_weights[0].surrogate: must be that of loss.surrogate, got 6; leave it out",
        ),
        (
            [{"name": "kl_cov", "coef": -1}],
            "loss.token_weights[0]: kl_cov.coef: must be a number >= 0, got -1.0",
        ),
        (
            [{"name": "erc", "high": 0.9}],
            "loss.token_weights[0]: erc.high: must be a number > 1, got 0.9",
        ),
        (
            [{"name": "opefo", "score": "best"}],
            "loss.token_weights[0].score: must be one of paper, first_order, got 'best'",
        ),
        (
            [{"name": "token_tis", "cap": 0}],
            "loss.token_weights[0]: token_tis.cap: must be a number > 0, got 0.0",
        ),
        (
            [{"name": "icepop", "low": 1}],
            "loss.token_weights[0]: icepop.low: must be a number >= 0 and < 1, got 1.0",
        ),
    ],
)
def test_a_bad_entry_is_refused_in_one_line_that_says_where(specs, message):
    with pytest.raises(ValueError) as error:
        build_token_weighting(specs, ppo_clip())
    assert says(str(error.value), message), error.value
    assert "\n" not in str(error.value)


def test_what_a_function_returns_is_checked(user):
    token_weighting = build_token_weighting([{"name": f"{user}:narrow"}], ppo_clip())
    with pytest.raises(ValueError, match=rf"narrow.* must have shape \({B}, {N}\), got \(3,\)"):
        token_weighting(*make_tokens())
    with pytest.raises(
        ValueError,
        match=r"TokenWeighting\.scope: must be one of token, sequence, batch, got 'group'",
    ):
        TokenWeighting(lambda a, s: TokenWeights(a), "group")
