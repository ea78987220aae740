"""Laws of single members of the family of advantages, their arguments, and how a config names
them.
"""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from advantage_problem import G, N, make_problem, on_tokens, rows_of, std

import entropy_rl
from entropy_rl.advantages import (
    Transform,
    advantage_of,
    build_advantage,
    chain,
    gpg,
    group_center,
    group_normalize,
    opo,
    overlong_penalty,
)
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.registry import factories_of
from entropy_rl.config.train import TrainConfig
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
from entropy_rl.types import TokenStats

METHODS = Path(__file__).parents[2] / "docs" / "methods.md"


# ------------------------------------------------------------------------------- laws of single
# methods


def judged_problem():
    """Without the groups that have an unjudged row: rewards as a whole."""
    rewards, stats = make_problem()
    whole = np.asarray(stats.has_reward).reshape(-1, G).all(axis=1).repeat(G)
    return rows_of((rewards, stats), whole)


def test_rows_of_equal_length_make_the_length_weighted_center_the_plain_one():
    rewards, stats = judged_problem()
    stats = stats.replace(mask=jnp.ones_like(stats.mask))
    np.testing.assert_allclose(opo(G)(rewards, stats), group_center(G)(rewards, stats), atol=1e-7)


def test_a_punishment_that_no_completion_is_long_enough_for_is_refused():
    recipe = ["--config", "configs/countdown_grpo.yaml", "--rollout.max_new_tokens", "20"]

    def chain_of(max_tokens):
        penalty = {"name": "overlong_penalty", "max_tokens": max_tokens, "buffer_tokens": 10}
        transforms = [penalty, {"name": "group_normalize"}]
        named = ["--advantage", yaml.safe_dump(transforms, default_flow_style=True)]
        return advantage_of(parse_config(TrainConfig, "train", [*recipe, *named]))

    assert len(chain_of(29).members) == 2  # a completion of 20 tokens is 1 above 29 - 10
    says = (
        "advantage[0].max_tokens: must be less than rollout.max_new_tokens + buffer_tokens (30), "
        "or the penalty has no effect, got 30"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        chain_of(30)


def test_the_punishment_of_length_grows_over_the_last_tokens_of_the_limit_and_not_beyond():
    """A limit of 5 with a buffer of 3: nothing up to 2 tokens, then thirds, and all of it from 5
    on.
    """
    mask = jnp.arange(N)[None] < jnp.arange(7)[:, None]
    nothing = jnp.zeros(mask.shape)
    stats = TokenStats(nothing, nothing, nothing, nothing, mask=mask, has_reward=jnp.ones(7, bool))
    punished = overlong_penalty(max_tokens=5, buffer_tokens=3, factor=0.6)(jnp.ones((7, 1)), stats)
    np.testing.assert_allclose(punished[:, 0], [1, 1, 1, 0.8, 0.6, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_gpg_makes_up_for_groups_without_contrast_by_hand(wrong):
    # Two of four groups have contrast: the factor is 1 / (1/2 + 1e-5), for any two rewards.
    # `valid_samples` of https://github.com/AMAP-ML/GPG, grpo_trainer.py; veRL's is 16/12 for 0 / 1.
    correct = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]])
    half = (1 - wrong) / 2
    rewards = jnp.asarray(np.where(correct, 1.0, wrong), jnp.float32).reshape(-1, 1)
    nothing = jnp.zeros((16, 2))
    mask, has_reward = jnp.ones((16, 2), bool), jnp.ones(16, bool)
    stats = TokenStats(nothing, nothing, nothing, nothing, mask=mask, has_reward=has_reward)
    expected = np.zeros((4, 4))
    expected[2:] = np.where(correct[2:], half, -half) / (0.5 + 1e-5)
    np.testing.assert_allclose(gpg(4)(rewards, stats).reshape(4, 4), expected, rtol=1e-6)


def test_gpg_counts_groups_with_a_scored_completion_alone():
    # One scored group has contrast and one has none: the factor is 2. The third is not scored.
    rewards = jnp.asarray([1, 0, 1, 1, jnp.nan, jnp.nan], jnp.float32)[:, None]
    nothing, has_reward = jnp.zeros((6, 1)), jnp.asarray([1, 1, 1, 1, 0, 0], bool)
    stats = TokenStats(
        nothing, nothing, nothing, nothing, mask=has_reward[:, None], has_reward=has_reward
    )
    advantages = gpg(2, eps=0.0)(rewards, stats)[:, 0]
    np.testing.assert_allclose(advantages, [1, -1, 0, 0, 0, 0], rtol=1e-6)


def test_gpg_refuses_a_negative_eps():
    with pytest.raises(ValueError, match=r"^gpg\.eps: "):
        gpg(4, eps=-1.0)


@pytest.mark.parametrize(
    "transform",
    [pass_at_k_training(G, k=1, eps=1e-12), asymgrpo(G, b_pos=0.5, b_neg=0.5)],
)
def test_pass_at_1_and_exponents_of_one_half_are_grpo_with_the_deviation_of_a_population(transform):
    rewards, stats = make_problem(wrong=-1.0)
    grpo_of_population = group_normalize(G, eps=0.0, ddof=0)
    np.testing.assert_allclose(
        transform(rewards, stats), grpo_of_population(rewards, stats), atol=1e-6
    )


def test_pass_at_k_has_the_hand_computed_values_for_one_of_four():
    rewards, stats = judged_problem()
    rewards = jnp.array([[1.0], [0], [0], [0]])
    # R = 1 - 3/6 and s = 1/2; two of the three pairs of a wrong row fail
    np.testing.assert_allclose(
        pass_at_k_training(G, k=2)(rewards, rows_of(stats, slice(0, G)))[:, 0],
        [1, -1 / 3, -1 / 3, -1 / 3],
        rtol=1e-5,
    )


def test_a_group_without_two_subsets_of_k_judged_rows_has_no_advantage():
    rewards, stats = make_problem()
    advantages = np.asarray(pass_at_k_training(G, k=3)(rewards, stats)).reshape(-1, G)
    whole = np.asarray(stats.has_reward).reshape(-1, G).all(axis=1)
    assert not advantages[~whole].any() and advantages[whole].any()


def test_the_best_row_gets_its_lead_and_no_other_row_anything():
    _, stats = judged_problem()
    rewards = jnp.array([[0.2], [0.9], [0.5], [-3.0]])
    advantages = grpo_passk(G, normalize=False)(rewards, rows_of(stats, slice(0, G)))
    np.testing.assert_allclose(advantages[:, 0], [0, 0.4, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "size, wins, baseline", [(5, 3, 0.0), (5, 4, 1.0), (10, 6, 0.0), (10, 7, 1.0), (10, 1, 0.0)]
)
def test_the_quantile_is_a_gate_at_one_minus_k(size, wins, baseline):
    rewards = jnp.array([1.0] * wins + [0.0] * (size - wins))[:, None]
    ones = jnp.ones((size, 1))
    stats = TokenStats(ones, ones, ones, ones, mask=ones > 0, has_reward=jnp.ones(size, bool))
    advantages = np.asarray(qae(size, quantile=0.4)(rewards, stats))
    np.testing.assert_array_equal(np.sign(advantages), np.sign(np.asarray(rewards) - baseline))


def test_the_quantile_of_rewards_of_many_values_is_one_of_them():
    _, stats = judged_problem()
    rewards = jnp.array([[0.7], [0.1], [0.4], [0.2]])
    advantages = qae(G, quantile=0.5)(rewards, rows_of(stats, slice(0, G)))
    scale = std([0.7, 0.1, 0.4, 0.2]) + 1e-6
    np.testing.assert_allclose(
        advantages[:, 0], np.array([0.5, -0.1, 0.2, 0]) / scale, rtol=1e-5, atol=1e-7
    )


def test_rare_correct_rows_gain_what_likely_ones_lose():
    rewards, stats = make_problem()
    base = group_normalize(G)(rewards, stats)
    moved = ucpo(G, tau=0.7)(base, stats)
    a, b = (np.maximum(np.asarray(x).reshape(-1, G), 0) for x in (base, moved))
    np.testing.assert_allclose(b.sum(axis=1), a.sum(axis=1), rtol=1e-5)
    assert np.abs(a - b).max() > 0.1
    np.testing.assert_array_equal(moved[base <= 0], base[base <= 0])
    np.testing.assert_allclose(ucpo(G, tau=0.0)(base, stats), base, rtol=1e-6)


def test_mining_leaves_mixed_groups_alone_and_stays_within_its_share():
    rewards, stats = make_problem(wrong=-1.0)
    base = on_tokens(group_normalize(G)(rewards, stats), stats)
    mined = np.asarray(miner(G)(rewards, stats))
    np.testing.assert_array_equal(mined[base != 0], base[base != 0])
    gained = (mined - base).sum()
    assert gained == pytest.approx(0.0015 * np.abs(base).sum(), rel=1e-4)
    wrong_group = slice(3 * G, 4 * G)
    assert not mined[wrong_group].any()


def test_mining_without_a_mixed_group_gives_nothing():
    rewards, stats = make_problem()
    np.testing.assert_array_equal(miner(G)(jnp.ones_like(rewards), stats), 0)


def test_a_log_prob_that_rounding_made_positive_is_no_nan():
    rewards, stats = judged_problem()
    stats = stats.replace(old_log_probs=jnp.where(stats.mask, 1e-7, 0.0))
    assert np.isfinite(np.asarray(miner(G, gamma=0.5)(rewards, stats))).all()


def test_entropies_of_zero_give_finite_rewards():
    rewards, stats = judged_problem()
    stats = stats.replace(old_entropy=jnp.where(stats.mask, -1e-8, 0.0))
    for transform in (gtpo(G), grpo_s(G)):
        assert np.isfinite(np.asarray(transform(rewards, stats))).all()


@pytest.mark.parametrize("statistics", ["batch", "sequence"])
def test_amplifying_keeps_signs_stays_in_its_bound_and_treats_both_signs_alike(statistics):
    rewards, stats = make_problem(wrong=-1.0)
    base = jnp.nan_to_num(rewards) * 0.3
    transform = eapo(statistics=statistics)
    shaped = np.asarray(transform(base, stats))
    np.testing.assert_array_equal(np.sign(shaped), np.broadcast_to(np.sign(base), shaped.shape))
    assert (np.abs(shaped - base) <= 0.2 * np.abs(base) / 2 + 1e-7).all()
    np.testing.assert_array_equal(transform(-base, stats), -shaped)
    np.testing.assert_array_equal(
        eapo(alpha=0.0)(base, stats), jnp.broadcast_to(base, (len(base), N))
    )


def test_there_is_no_gradient_through_the_entropy_that_amplifies():
    _, stats = judged_problem()
    entropy = jnp.where(stats.mask, stats.entropy, 0)

    def total(entropy):
        return jnp.sum(eapo()(jnp.ones((len(entropy), 1)), stats.replace(entropy=entropy)))

    np.testing.assert_array_equal(jax.grad(total)(entropy), 0)


# --------------------------------------------------------------------------------- arguments and
# configs

CONFIG = [
    {"name": "opo"},
    {"name": "gpg"},
    {"name": "pass_at_k_training", "k": 2},
    {"name": "grpo_passk", "normalize": False},
    {"name": "qae", "quantile": 0.4},
    {"name": "asymgrpo", "b_pos": 0.9, "b_neg": 0.4},
    {"name": "ucpo", "tau": 0.2},
    {"name": "miner", "gamma": 2, "max_share": 0.0015},
    {"name": "gtpo"},
    {"name": "grpo_s", "beta_1": 1, "beta_2": 0.1},
    {"name": "eapo", "alpha": 0.2, "phi": 2, "statistics": "sequence"},
    {"name": "overlong_penalty", "max_tokens": 6, "buffer_tokens": 4},
]
WITHOUT_GROUPS = ("eapo", "overlong_penalty")


@pytest.mark.parametrize("spec", CONFIG, ids=lambda spec: spec["name"])
def test_a_config_reaches_a_method_by_its_name(spec):
    rewards, stats = make_problem()
    rewards, before = jnp.nan_to_num(rewards), []
    if spec["name"] == "ucpo":
        before = [{"name": "group_center"}]
    direct = chain(*(made(one) for one in (*before, spec)))
    built = build_advantage([*before, spec], G)
    np.testing.assert_array_equal(built(rewards, stats), direct(rewards, stats))


def made(spec, group_size=G):
    """The transform of an entry, by its factory."""
    arguments = {key: value for key, value in spec.items() if key != "name"}
    if spec["name"] not in WITHOUT_GROUPS:
        arguments["group_size"] = group_size
    return factories_of(Transform, ["group_size"])[spec["name"]](**arguments)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "group_normalize miner",
            r"advantage\[1\]: must be before every baseline, as it reads",
        ),
        ("group_normalize overlong_penalty", r"advantage\[1\]: must be before .* advantage\[0\]"),
        ("group_normalize maxrl", r"advantage\[1\]: must be before every baseline"),
        ("group_center heal", r"advantage\[1\]: must be before every baseline"),
        ("group_normalize scale_by_sign gtpo", r"advantage\[2\]: must be before .* advantage\[0\]"),
        ("whiten overlong_penalty", r"advantage\[1\]: must be before every baseline"),
        ("remax grpo_s", r"advantage\[1\]: must be before every baseline"),
        ("ucpo", r"advantage\[0\]: must be after a baseline, as it reads advantages, got none"),
        ("overlong_penalty ucpo", r"advantage\[1\]: must be after a baseline"),
        ("policy_split group_normalize", r"advantage\[0\]: must be after a baseline"),
        ("overlong_penalty heal miner", None),
        ("remax overlong_penalty group_normalize ucpo", None),
        ("group_center whiten policy_split", None),
        ("group_normalize on_policy_distillation policy_split", None),
    ],
)
def test_a_transform_reads_rewards_before_a_baseline_and_advantages_behind_it(names, message):
    arguments = {
        "heal": {"general": "a"},
        "overlong_penalty": {"max_tokens": 6, "buffer_tokens": 4},
        "policy_split": {"alpha": 0.5, "eta_high": 0.1},
    }
    specs = [{"name": name, **arguments.get(name, {})} for name in names.split()]
    if message is None:
        assert len(build_advantage(specs, G).members) == len(specs)
    else:
        with pytest.raises(ValueError, match=f"^{message}"):
            build_advantage(specs, G)


def test_the_page_of_methods_has_every_transform_and_lines_that_a_config_accepts():
    (section,) = re.findall(
        r"^## Advantages\n(.*?)(?=^## |\Z)", METHODS.read_text(), flags=re.S | re.M
    )
    chains = [yaml.safe_load(line) for line in re.findall(r"`(\[\{name: .*?\}\])`", section)]
    for specs in chains:
        gamma = 1.0 if specs[0]["name"].endswith("gae") else None  # with a critic
        assert build_advantage(specs, G, gamma, [{"name": "correct"}]).members
    assert {spec["name"] for specs in chains for spec in specs} == set(
        factories_of(Transform, ["group_size", "gamma"])
    )
    for file in set(re.findall(r"`([\w/]+\.py)`", section)):
        assert (Path(entropy_rl.__file__).parent / file).is_file(), file


@pytest.mark.parametrize("spec", [spec for spec in CONFIG if spec["name"] not in WITHOUT_GROUPS])
def test_a_method_that_compares_rows_refuses_what_are_no_groups_of_rows(spec):
    with pytest.raises(
        ValueError, match=r"at least 2 completions per prompt \(rollout.group_size\)"
    ):
        build_advantage([{**spec, "k": 1} if "k" in spec else spec], 1)
    rewards, stats = make_problem()
    with pytest.raises(
        ValueError, match=rf"{spec['name']}: .* must be a multiple of group_size \(3\), got 40"
    ):
        made(spec, 3)(rewards, stats)
    with pytest.raises(ValueError, match=rf"{spec['name']}: .* must have shape .*, got \(40, 6\)"):
        made(spec)(jnp.zeros((40, N)), stats)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: pass_at_k_training(4, k=4),
            "pass_at_k_training.k: must be a whole number >= 1 and < group_size (4), got 4",
        ),
        (
            lambda: pass_at_k_training(4, k=0),
            "pass_at_k_training.k: must be a whole number >= 1 and < group_size (4), got 0",
        ),
        (
            lambda: pass_at_k_training(4, k=2, eps=0.0),
            "pass_at_k_training.eps: must be a number > 0, got 0.0",
        ),
        (
            lambda: grpo_passk(4, eps=-1.0),
            "grpo_passk.eps: must be a number >= 0, got -1.0",
        ),
        (
            lambda: qae(4, quantile=1.0),
            "qae.quantile: must be a number > 0 and < 1, got 1.0",
        ),
        (
            lambda: qae(4, eps=math.nan),
            "qae.eps: must be a number >= 0, got nan",
        ),
        (
            lambda: asymgrpo(4, b_pos=-1.0),
            "asymgrpo.b_pos: must be a number >= 0, got -1.0",
        ),
        (
            lambda: asymgrpo(4, b_neg=math.inf),
            "asymgrpo.b_neg: must be a number >= 0, got inf",
        ),
        (
            lambda: ucpo(4, tau=1.5),
            "ucpo.tau: must be a number from 0 to 1, got 1.5",
        ),
        (
            lambda: miner(4, gamma=-1.0),
            "miner.gamma: must be a number >= 0, got -1.0",
        ),
        (
            lambda: miner(4, max_share=math.nan),
            "miner.max_share: must be a number >= 0, got nan",
        ),
        (
            lambda: grpo_s(4, beta_2=-0.1),
            "grpo_s.beta_2: must be a number >= 0, got -0.1",
        ),
        (
            lambda: overlong_penalty(5, 6),
            "overlong_penalty.buffer_tokens: must be a whole number from 1 to max_tokens "
            "(5), got 6",
        ),
        (
            lambda: overlong_penalty(5, 5, -1.0),
            "overlong_penalty.factor: must be a number >= 0, got -1.0",
        ),
        (
            lambda: eapo(phi=0.0),
            "eapo.phi: must be a number > 0, got 0.0",
        ),
        (
            lambda: eapo(alpha=2.0),
            "eapo.alpha: must be a number >= 0 and < phi (2.0), so that the bonus flips no "
            "sign, got 2.0",
        ),
        (
            lambda: eapo(statistics="group"),
            "eapo.statistics: must be batch or sequence, got 'group'",
        ),
    ],
)
def test_an_argument_out_of_range_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
