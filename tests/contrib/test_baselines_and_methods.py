"""The family of baselines and shapings: each against its formula, as loops in float64, and the
laws.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from advantage_problem import G, N, float64, groups_of, make_problem, on_tokens, rows_of, std
from policies import table_policy

from entropy_rl.advantages import (
    chain,
    gpg,
    group_center,
    group_normalize,
    opo,
    whiten,
)
from entropy_rl.contrib import (
    asymgrpo,
    eapo,
    grpo_passk,
    grpo_s,
    gtpo,
    miner,
    pass_at_k_training,
    qae,
    ucpo,
)
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.types import TrainBatch


def spread(of_row, stats):
    """One value for each row as one for each token that counts."""
    return np.where(np.asarray(stats.mask), np.asarray(of_row)[:, None], 0.0)


def whitened(values, tokens):
    """Standardizes {(row, token): value} as veRL does."""
    listed = [values[key] for key in tokens]
    scale = math.sqrt(std(listed) ** 2 + 1e-8)
    return {key: (values[key] - sum(listed) / len(listed)) / scale for key in tokens}


def by_group(of_group):
    """A reference for all rows from one for the scored rows of one group: (rewards, rows) ->
    values.
    """

    def reference(rewards, stats):
        r, result = float64(rewards)[:, 0], np.zeros(len(rewards))
        for rows in groups_of(stats)[0]:
            if rows:
                result[rows] = of_group(r[rows], rows, stats)
        return spread(result, stats)

    return reference


# -------------------------------------------------------------------------- the formulas, written
# afresh


@by_group
def grpo(r, rows, stats):
    return [(x - r.mean()) / (std(r) + 1e-6) for x in r]


@by_group
def expected_opo(r, rows, stats):
    lengths = [len(groups_of(stats)[1][i]) for i in rows]
    baseline = sum(n * x for n, x in zip(lengths, r, strict=True)) / sum(lengths)
    return [x - baseline for x in r]


def expected_gpg(rewards, stats):
    groups = [rows for rows in groups_of(stats)[0] if rows]
    r = float64(rewards)[:, 0]
    contrast = sum(len({r[i] for i in rows}) > 1 for rows in groups)
    scale = 1 / (contrast / len(groups) + 1e-5)
    return scale * by_group(lambda r, rows, stats: r - r.mean())(rewards, stats)


@by_group
def pass_at_2(r, rows, stats):
    """By going through all pairs, and not through binomials."""
    if len(r) < 2:
        return [0.0] * len(r)
    pairs = [(set(pair), max(r[list(pair)])) for pair in itertools.combinations(range(len(r)), 2)]
    mean = np.mean([best for _, best in pairs])
    means = [np.mean([best for pair, best in pairs if i in pair]) for i in range(len(r))]
    return [(x - mean) / (std([best for _, best in pairs], ddof=0) + 1e-6) for x in means]


@by_group
def best_second(r, rows, stats):
    if len(r) < 2:
        return [0.0] * len(r)
    first, second = sorted(r)[::-1][:2]
    return [(first - second) / (std(r) + 1e-6) if x == first else 0.0 for x in r]


@by_group
def expected_qae(r, rows, stats):
    p = np.mean(r == 1)
    baseline = min(r) if 0 < p <= 1 - 0.4 + 1e-12 else max(r)
    return [(x - baseline) / (std(r) + 1e-6) for x in r]


@by_group
def asymmetric(r, rows, stats):
    p = np.mean(r == 1)
    if p in (0, 1):
        return [0.0] * len(r)
    return [((1 - p) / p) ** 0.9 if x == 1 else -((p / (1 - p)) ** 0.4) for x in r]


def mean_over_tokens(x, stats, i):
    tokens = groups_of(stats)[1][i]
    return sum(float64(x)[i, t] for t in tokens) / len(tokens)


@by_group
def expected_ucpo(r, rows, stats):
    a = [(x - r.mean()) / (std(r) + 1e-8) for x in r]
    correct = [j for j in range(len(r)) if r[j] == 1]
    log_prob = {j: mean_over_tokens(stats.old_log_probs, stats, rows[j]) for j in correct}
    log_z = math.log(sum(math.exp(value) for value in log_prob.values())) if correct else 0.0
    v = {j: 1 / max(math.exp(log_prob[j] - log_z), 1e-6) for j in correct}
    weight = {
        j: len(correct) * (0.8 / len(correct) + 0.2 * v[j] / sum(v.values())) for j in correct
    }
    return [x * weight.get(j, 1.0) for j, x in enumerate(a)]


def expected_miner(rewards, stats):
    external, internal = grpo(rewards, stats), np.zeros((len(rewards), N))
    groups, tokens = groups_of(stats)
    for rows in groups:
        if rows and all(float64(rewards)[i, 0] == 1 for i in rows):
            u = {i: -mean_over_tokens(stats.old_log_probs, stats, i) for i in rows}
            for i in rows:
                for t in tokens[i]:
                    credit = (1 - math.exp(float64(stats.old_log_probs)[i, t])) ** 2
                    internal[i, t] = max(0.0, u[i] - sum(u.values()) / len(u)) * credit
    return external + internal * min(1.0, 0.0015 * np.abs(external).sum() / np.abs(internal).sum())


def expected_gtpo(rewards, stats):
    h, r = float64(stats.old_entropy), float64(rewards)[:, 0]
    groups, tokens = groups_of(stats)
    paid = {True: {}, False: {}}
    for rows, good in itertools.product(groups, (True, False)):
        for t in range(N):
            alive = [i for i in rows if (r[i] > 0) == good and t in tokens[i]]
            w = {i: h[i, t] if good else 1 / (h[i, t] + 1e-6) for i in alive}
            for i in alive:
                share = w[i] / (sum(w.values()) + 1e-6) * len(alive)
                # The code's α₁ = 1 and α₂ = 0.1, which standardizing takes out again.
                paid[good][i, t] = 1 + 0.1 * share if good else -1 - 0.1 * share
    result = np.zeros((len(rewards), N))
    for good in (True, False):
        for key, value in whitened(paid[good], list(paid[good])).items():
            result[key] = value
    return result


@by_group
def expected_grpo_s(r, rows, stats):
    h = [mean_over_tokens(stats.old_entropy, stats, i) for i in rows]
    inverse = [1 / (x + 1e-6) for x in h]
    good = [x > 0 for x in r]
    paid = []
    for j in range(len(r)):
        same = [k for k in range(len(r)) if good[k] == good[j]]
        if good[j]:
            paid.append(1 + 0.1 * len(same) * h[j] / sum(h[k] for k in same))
        else:
            paid.append(-1 - 0.1 * len(same) * inverse[j] / sum(inverse[k] for k in same))
    return [(x - np.mean(paid)) / (std(paid) + 1e-6) for x in paid]


def expected_eapo(statistics):
    def reference(rewards, stats):
        base, h, (_, tokens) = grpo(rewards, stats), float64(stats.entropy), groups_of(stats)
        result = base.copy()
        everywhere = [(i, t) for i in range(len(rewards)) for t in tokens[i]]
        for i, t in everywhere:
            among = (
                everywhere if statistics == "batch" else [key for key in everywhere if key[0] == i]
            )
            listed = [h[key] for key in among]
            sigma = std(listed, ddof=0)
            z = (h[i, t] - np.mean(listed)) / sigma if sigma > 0 else 0.0
            bound = abs(base[i, t]) / 2
            result[i, t] += 0.2 * np.sign(base[i, t]) * min(max(z, -bound), bound)
        return result

    return reference


def reinforce_plus_plus(base):
    def reference(rewards, stats):
        values = base(rewards, stats)
        keys = [(i, t) for i in range(len(rewards)) for t in groups_of(stats)[1][i]]
        result = np.zeros_like(values)
        for key, value in whitened({key: values[key] for key in keys}, keys).items():
            result[key] = value
        return result

    return reference


def raw(rewards, stats):
    return spread(np.nan_to_num(float64(rewards)[:, 0]), stats)


centered = by_group(lambda r, rows, stats: r - r.mean())

# name -> (transform of rewards, its scope, the reference)
FAMILY = {
    "OPO": (opo(G), "group", expected_opo),
    "GPG": (gpg(G), "batch", expected_gpg),
    "Pass@k": (pass_at_k_training(G, k=2), "group", pass_at_2),
    "best minus second": (grpo_passk(G), "group", best_second),
    "QAE": (qae(G), "group", expected_qae),
    "AsymGRPO": (asymgrpo(G), "group", asymmetric),
    "UCPO": (chain(group_normalize(G, eps=1e-8), ucpo(G)), "group", expected_ucpo),
    "Miner": (miner(G), "batch", expected_miner),
    "GTPO": (gtpo(G), "batch", expected_gtpo),
    "GRPO-S": (grpo_s(G), "group", expected_grpo_s),
    "EAPO": (chain(group_normalize(G), eapo()), "batch", expected_eapo("batch")),
    "EAPO of a row": (
        chain(group_normalize(G), eapo(statistics="sequence")),
        "group",
        expected_eapo("sequence"),
    ),
    "REINFORCE++": (whiten(), "batch", reinforce_plus_plus(raw)),
    "REINFORCE++-baseline": (
        chain(group_center(G), whiten()),
        "batch",
        reinforce_plus_plus(centered),
    ),
}
OF_GROUP, OF_RECORD = (
    [name for name, (x, scope, _) in FAMILY.items() if scope == wanted and not x.needs_policy]
    for wanted in ("group", "batch")
)
# These answer to more than the difference between rewards of a group.
NOT_ZERO_FOR_EQUAL = {"Miner", "GTPO", "GRPO-S", "REINFORCE++"}

every_method = pytest.mark.parametrize("name", FAMILY)


@every_method
@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_a_method_is_its_formula(name, wrong):
    rewards, stats = make_problem(wrong)
    transform, scope, reference = FAMILY[name]
    assert transform.scope == scope
    assert transform.needs_policy == (name == "EAPO")
    advantages = transform(rewards, stats)
    assert np.isfinite(np.asarray(advantages)).all()
    expected = reference(rewards, stats)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(on_tokens(advantages, stats), expected, rtol=2e-5, atol=2e-6)


@every_method
def test_a_jitted_method_equals_an_eager_one(name):
    rewards, stats = make_problem()
    transform = FAMILY[name][0]
    np.testing.assert_allclose(
        jax.jit(transform)(rewards, stats), transform(rewards, stats), rtol=1e-5, atol=1e-6
    )


@every_method
def test_the_order_of_the_rows_in_a_group_does_not_matter(name):
    rewards, stats = make_problem()
    transform = FAMILY[name][0]
    rng = np.random.default_rng(1)
    order = np.concatenate([g + rng.permutation(G) for g in range(0, len(rewards), G)])
    np.testing.assert_allclose(
        on_tokens(transform(*rows_of((rewards, stats), order)), rows_of(stats, order)),
        on_tokens(transform(rewards, stats), stats)[order],
        rtol=1e-5,
        atol=1e-6,
    )


@every_method
def test_what_does_not_count_does_not_matter(name):
    rewards, stats = make_problem()
    transform = FAMILY[name][0]
    other = jax.tree.map(
        lambda x: jnp.where(stats.mask, x, 7.5) if x.dtype == jnp.float32 else x,
        stats,
    )
    np.testing.assert_array_equal(
        on_tokens(transform(jnp.where(jnp.isnan(rewards), 100.0, rewards), other), stats),
        on_tokens(transform(rewards, stats), stats),
    )


@every_method
def test_longer_padding_changes_nothing(name):
    rewards, stats = make_problem()
    transform = FAMILY[name][0]
    longer = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 3))) if x.ndim == 2 else x, stats)
    np.testing.assert_allclose(
        on_tokens(transform(rewards, longer), longer)[:, :N],
        on_tokens(transform(rewards, stats), stats),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", [name for name in FAMILY if name not in NOT_ZERO_FOR_EQUAL])
@pytest.mark.parametrize("reward", [-1.0, 0.1, 1 / 3, 0.0])
def test_a_group_of_equal_rewards_has_exactly_zero_advantage(name, reward):
    _, stats = make_problem()
    rewards = jnp.full((len(stats.has_reward), 1), reward)
    np.testing.assert_array_equal(FAMILY[name][0](rewards, stats), 0)


@pytest.mark.parametrize("name", OF_GROUP)
def test_a_method_of_group_scope_gives_the_same_on_parts_and_reads_what_was_recorded_only(name):
    rewards, stats = make_problem()
    transform = FAMILY[name][0]
    if name != "EAPO of a row":  # the shaping behind the baseline may read the policy as it is
        whole = transform(rewards, stats.replace(log_probs=None, entropy=None))
    else:
        whole = transform(rewards, stats)
    parts = [
        transform(*rows_of((rewards, stats), slice(i, i + 2 * G)))
        for i in range(0, len(rewards), 2 * G)
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-7)


def test_a_method_of_row_scope_gives_the_same_on_any_rows():
    rewards, stats = make_problem()
    transform = eapo(statistics="sequence")
    assert transform.scope == "sequence"
    base = jnp.nan_to_num(rewards) - 0.5
    whole = transform(base, stats)
    for rows in np.random.default_rng(2).permutation(len(base)).reshape(5, 8):
        part = transform(rows_of(base, rows), rows_of(stats, rows))
        np.testing.assert_allclose(part, np.asarray(whole)[rows], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OF_RECORD)
def test_a_method_of_recorded_scope_reads_what_was_recorded_only(name):
    rewards, stats = make_problem()
    unknown = stats.replace(log_probs=None, entropy=None)
    np.testing.assert_array_equal(
        FAMILY[name][0](rewards, unknown), FAMILY[name][0](rewards, stats)
    )


@pytest.mark.parametrize("name", [*OF_RECORD, "EAPO"])
def test_a_method_of_recorded_or_batch_scope_needs_the_whole(name):
    rewards, stats = make_problem()
    half = slice(0, len(rewards) // 2)
    part = on_tokens(FAMILY[name][0](*rows_of((rewards, stats), half)), rows_of(stats, half))
    whole = on_tokens(FAMILY[name][0](rewards, stats), stats)
    assert not np.allclose(part, whole[half], atol=1e-5)


@pytest.mark.parametrize(
    "advantage",
    [
        chain(group_normalize(G), ucpo(G), eapo(statistics="sequence")),
        chain(miner(G), eapo()),
    ],
    ids=["sequence", "batch"],
)
def test_an_update_in_micro_batches_is_that_of_the_whole(key, advantage):
    rewards, stats = make_problem()
    rows, vocabulary = len(rewards), 7
    ids = jax.random.randint(key, (rows, 1 + N), 0, vocabulary)
    log_probs, entropy = (
        jnp.where(stats.mask, x, 0) for x in (stats.old_log_probs, stats.old_entropy)
    )
    batch = TrainBatch(
        ids=ids,
        prompt_length=jnp.ones(rows, jnp.int32),
        completion_ids=ids[:, 1:],
        completion_mask=stats.mask,
        old_log_probs=log_probs,
        old_entropy=entropy,
        sampler_log_probs=log_probs,
        rewards=jnp.nan_to_num(rewards[:, 0]),
        has_reward=stats.has_reward,
    )
    policy, optimizer = table_policy(vocabulary), optax.sgd(1.0)
    start = policy.init(key)
    whole, parts = (
        make_update(
            policy, advantage, optimizer, settings=PassSettings(max_tokens_per_micro_batch=tokens)
        )(init_state(start, optimizer), batch)[0].params
        for tokens in (None, 3 * (1 + N))
    )
    changes = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), whole, start)
    assert max(jax.tree.leaves(changes)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)
