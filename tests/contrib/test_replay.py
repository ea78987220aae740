"""Replay buffers: their rules, what they store, and the updates on it."""

import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from policies import table_policy
from run_records import assert_same_run, lines_of, state_of
from tiny_runs import ROOT, TRAIN, write_yaml
from update_problem import ALPHA, KAPPA, SHAPED, G, N, P, V, make_data

from entropy_rl.advantages import Transform, chain, group_normalize, whiten
from entropy_rl.cli.main import main
from entropy_rl.config.common import MeshConfig
from entropy_rl.config.registry import factories_of
from entropy_rl.config.train import (
    CriticConfig,
    LossConfig,
)
from entropy_rl.contrib import gtpo, pipo, uec_replay
from entropy_rl.distributed.sharding import Placement, make_mesh
from entropy_rl.learner.batch import token_stats
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.replay import BufferShape, check_replay, make_replay_programs
from entropy_rl.learner.replay_rule import REPLAY_WEIGHT, Replay, build_replay
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.losses import ppo_clip
from entropy_rl.losses.build import build_loss
from entropy_rl.losses.controller import BatchSummary, Controller
from entropy_rl.runs.nonfinite_updates import NonfiniteUpdates
from entropy_rl.trainer.updates import run_updates

B = P * G


# --- the rules
# ---------------------------------------------------------------------------------------------


def signals_over(replay, rewards):
    state, found = replay.controller.init(), []
    for step, reward in enumerate(rewards):
        summary = BatchSummary(jnp.int32(step), *map(jnp.float32, (0, reward, 0, 1)))
        state, coefficients = replay.controller.update(state, summary)
        found.append({name: float(x) for name, x in coefficients.items()})
    return found


def test_improvement_is_measured_against_the_rollouts_before():
    rewards = np.random.default_rng(0).normal(0.3, 0.1, 12).astype(np.float32)
    found = signals_over(pipo(G, window=4, negative=0.1), rewards)
    wanted = [0.0] * 4
    for t in range(4, 12):
        before = np.asarray(rewards[t - 4 : t], np.float64)
        wanted.append((rewards[t] - before.mean()) / before.std(ddof=1))
    np.testing.assert_allclose([x["improvement"] for x in found], wanted, rtol=1e-4)
    weights = [xi if xi >= 0 else 0.1 * xi for xi in wanted]
    np.testing.assert_allclose([x[REPLAY_WEIGHT] for x in found], weights, rtol=1e-4)
    assert min(wanted) < 0 < max(wanted)


def test_without_a_spread_of_rewards_nothing_can_be_said():
    # 0.1 has no exact mean in float32: a plain deviation of equal numbers would not be zero.
    assert [x[REPLAY_WEIGHT] for x in signals_over(pipo(G, window=7), [0.1] * 7 + [0.9])] == (
        [0.0] * 8
    )


def test_the_advantages_that_pipo_keeps_have_a_mean_size_of_one_in_each_group():
    advantages = np.random.default_rng(1).normal(size=(B, 1)).astype(np.float32)
    advantages[:G] = 0  # a group without contrast
    judged = np.arange(B) % 7 != 5
    advantages[~judged] = 0
    kept, which = pipo(G).choose(jnp.array(advantages), jnp.array(judged))
    for group in range(P):
        rows = range(group * G, group * G + G)
        size, count = sum(abs(float(advantages[b, 0])) for b in rows), sum(judged[b] for b in rows)
        for b in rows:
            wanted = count * float(advantages[b, 0]) / size if size else 0.0
            assert float(kept[b, 0]) == pytest.approx(wanted, rel=1e-5)
    assert which.tolist() == judged.tolist()


def test_a_replay_comes_every_so_many_rollouts_and_keeps_what_is_above_the_threshold():
    replay = uec_replay(every=3, above=0.5)
    assert [x[REPLAY_WEIGHT] for x in signals_over(replay, [0.0] * 7)] == [0, 0, 1, 0, 0, 1, 0]
    _, which = replay.choose(
        jnp.array([[0.6], [0.5], [-0.7], [0.9]]), jnp.array([True, True, True, False])
    )
    assert which.tolist() == [True, False, False, False]


# --- what is kept, and the updates on it
# -------------------------------------------------------------------


def programs_of(spec, advantage=SHAPED, loss=LossConfig(), critic=None, mesh=None):
    """Of a run with steps of two updates of P prompts."""
    replay, loss = build_replay(spec, G), build_loss(loss)
    stats = token_stats(make_data(), jnp.zeros((B, N)), jnp.zeros((B, N)))
    check_replay(spec, replay, advantage, loss, critic is not None, stats)
    settings = PassSettings(max_tokens_per_micro_batch=32, mesh=mesh)
    shape = BufferShape(updates=2 * replay.rollouts, rows=B, prompt_tokens=3, new_tokens=N)
    policy = table_policy(V)
    return make_replay_programs(replay, policy, advantage, optax.sgd(1.0), loss, settings, shape)


def rollouts(count):
    """Judged mini-batches, two for each rollout; a row of each has no judgement."""
    return [
        [
            make_data(2 * t + u, has_reward=np.arange(B) != 5 + t).replace(
                old_entropy=jnp.zeros((B, N))
            )
            for u in (0, 1)
        ]
        for t in range(count)
    ]


def run(replay, count, key, mesh=None, advantage=SHAPED):
    """The table policy after `count` rollouts of gradient descent, the state, and the metrics of
    each.
    """
    policy, optimizer, placement = table_policy(V), optax.sgd(1.0), Placement(mesh)
    settings = PassSettings(max_tokens_per_micro_batch=32, mesh=mesh)
    update = make_update(policy, advantage, optimizer, settings=settings)
    programs = programs_of(replay, advantage, mesh=mesh)
    state = init_state(policy.init(key), optimizer).replace(replay_buffer=programs.init(3))
    found = []
    for data in rollouts(count):
        data = [placement.put_rows(jax.device_get(batch)) for batch in data]
        state, metrics = run_updates(
            update, None, programs, state, data, NonfiniteUpdates(Path("nowhere"), limit=1)
        )
        state = state.replace(step=state.step + 1)
        found.append(metrics)
    return state, found


def test_a_row_without_a_loss_is_not_stored():
    programs = programs_of({"name": "uec_replay", "every": 1, "above": 0.0})
    data, mask = rollouts(1)[0], jnp.arange(B) % 2 == 0
    masked = [batch.replace(loss_row_mask=mask) for batch in data]
    stored, every = (
        int(programs.keep(programs.init(3).rows, batches)["has_reward"].sum())
        for batches in (masked, data)
    )
    positive = [
        np.asarray(group_normalize(G)(batch.rewards[:, None], token_stats(batch))[:, 0] > 0)
        for batch in data
    ]
    assert every == sum(rows.sum() for rows in positive) > stored
    assert stored == sum((rows & mask).sum() for rows in positive) > 0


def float64_step(table, rows, shaped):
    """Plain Python: a step of gradient descent on rows {ids, first, old, advantage}, with
    clipping.
    """
    log_p = table - np.log(np.exp(table).sum(-1, keepdims=True))
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    grad, tokens = np.zeros_like(table), sum(len(row["old"]) for row in rows)
    for row in rows:
        for t, old in enumerate(row["old"]):
            state, action = row["ids"][row["first"] + t - 1], row["ids"][row["first"] + t]
            a = row["advantage"]
            a = a + min(ALPHA * entropy[state], abs(a) / KAPPA) if shaped else a
            ratio = np.exp(log_p[state, action] - old)
            if ratio * a <= np.clip(ratio, 0.8, 1.28) * a:
                grad[state] -= ratio * a / tokens * (np.eye(V)[action] - np.exp(log_p[state]))
    return table - grad


def rows_of(batch):
    """The judged rows of a mini-batch with the advantage of GRPO."""
    batch, rows = jax.device_get(batch), []
    for b in np.flatnonzero(batch.has_reward):
        group = [i for i in range(b // G * G, b // G * G + G) if batch.has_reward[i]]
        r = np.asarray(batch.rewards[group], np.float64)
        advantage = 0.0 if r.std() == 0 else (batch.rewards[b] - r.mean()) / (r.std(ddof=1) + 1e-6)
        old = np.asarray(batch.old_log_probs[b, : batch.completion_mask[b].sum()], np.float64)
        first = int(batch.prompt_length[b])
        rows.append(dict(ids=batch.ids[b], first=first, old=old, advantage=advantage, group=b // G))
    return rows


def updates_on(table, kept, room, weight, shaped, least):
    """The updates on kept rows: the last places are taken, and B of them are an update."""
    places = [None] * (room - len(kept)) + kept
    for start in range(0, room, B):
        rows = [
            row | {"advantage": weight * row["advantage"]}
            for row in places[start : start + B]
            if row
        ]
        if len(rows) >= least:
            table = float64_step(table, rows, shaped)
    return table


def assert_as_in_float64(table, weights, run):
    state, metrics = run
    np.testing.assert_allclose([m[REPLAY_WEIGHT] for m in metrics], weights, rtol=1e-4)
    np.testing.assert_allclose(state.params["table"], table, atol=2e-5)


PIPO = {"name": "pipo", "window": 3}


def pipo_in_float64(key, count):
    table = np.asarray(table_policy(V).init(key)["table"], np.float64)
    means, weights, kept = [], [], []
    for data in rollouts(count):
        judged = np.concatenate(
            [np.asarray(batch.rewards)[np.asarray(batch.has_reward)] for batch in data]
        )
        mean, weight = judged.astype(np.float64).mean(), 0.0
        if len(means) >= 3:
            before = np.array(means[-3:])
            weight = (mean - before.mean()) / before.std(ddof=1)
            weight = weight if weight >= 0 else 0.1 * weight
        if weight:
            table = updates_on(table, kept, 2 * B, weight, shaped=False, least=1)
        kept = []
        for batch in data:
            rows = rows_of(batch)
            table = float64_step(table, rows, shaped=True)
            for row in rows:
                sizes = [
                    abs(other["advantage"]) for other in rows if other["group"] == row["group"]
                ]
                scale = len(sizes) / sum(sizes) if sum(sizes) else 0.0
                kept.append(row | {"advantage": scale * row["advantage"]})
        means.append(mean)
        weights.append(weight)
    return table, weights


def test_pipo_repeats_or_takes_back_the_last_rollout_before_it_learns_from_the_next(key):
    table, weights = pipo_in_float64(key, 7)
    assert min(weights) < 0 < max(weights)
    found = run(PIPO, 7, key)
    assert_as_in_float64(table, weights, found)
    assert [("replay/loss" in m) for m in found[1]] == [weight != 0 for weight in weights]


def replay_in_float64(key, count, room, every, above):
    table = np.asarray(table_policy(V).init(key)["table"], np.float64)
    kept, sizes = [], []
    for number, data in enumerate(rollouts(count), 1):
        for batch in data:
            table = float64_step(table, rows_of(batch), shaped=True)
            kept += [row for row in rows_of(batch) if row["advantage"] > above]
        kept = kept[-room:]
        if number % every == 0:
            table = updates_on(table, kept, room, 1.0, shaped=True, least=B)
            sizes.append(len(kept))
    return table, sizes


@pytest.mark.parametrize(
    ("rollouts_kept", "every", "above"), [(1, 2, 0.0), (2, 3, 1.0)], ids=["overflowing", "filling"]
)
def test_a_replay_learns_again_from_the_newest_of_what_was_good(key, rollouts_kept, every, above):
    count, room = 9, rollouts_kept * 2 * B
    table, sizes = replay_in_float64(key, count, room, every, above)
    assert (
        sizes[-1] == room if above == 0 else B < sizes[-1] < room
    )  # an update is made, and rows wait
    spec = {"name": "uec_replay", "rollouts": rollouts_kept, "every": every, "above": above}
    weights = [float(number % every == 0) for number in range(1, count + 1)]
    assert_as_in_float64(table, weights, run(spec, count, key))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(PIPO, marks=pytest.mark.slow),
        {"name": "uec_replay", "every": 2, "above": 0.0},
    ],
)
def test_eight_devices_keep_and_learn_the_same(key, spec):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    (one, of_one), (eight, of_eight) = run(spec, 5, key), run(spec, 5, key, mesh=mesh)
    jax.tree.map(
        np.testing.assert_array_equal, *jax.device_get((one.replay_buffer, eight.replay_buffer))
    )
    np.testing.assert_allclose(one.params["table"], eight.params["table"], atol=1e-5)
    for a, b in zip(of_one, of_eight, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert any("replay/tokens" in metrics for metrics in of_one)


def test_a_rollout_without_a_judgement_is_not_remembered(key):
    programs = programs_of(PIPO)
    (data, *_), none = rollouts(1), jnp.zeros(B, bool)
    controller = programs.init(3).controller
    after, coefficients = programs.look(
        controller, 0, [batch.replace(has_reward=none) for batch in data]
    )
    jax.tree.map(np.testing.assert_array_equal, after, controller)
    assert coefficients[REPLAY_WEIGHT] == 0


# --- what cannot work
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "uec_reply"},
            "replay.name: must be one of pipo, uec_replay, module:function, got 'uec_reply' "
            "(did you mean 'uec_replay'?)",
        ),
        (
            {"name": "pipo", "window": 1},
            "pipo.window: must be a whole number >= 2, got 1",
        ),
        (
            {"name": "pipo", "negative": 2},
            "pipo.negative: must be a number from 0 to 1, got 2.0",
        ),
        (
            {"name": "pipo", "group_size": 3},
            "replay.group_size: must be that of rollout.group_size (4), got 3",
        ),
        (
            {"name": "uec_replay", "rollouts": 0},
            "uec_replay.rollouts: must be a whole number >= 1, got 0",
        ),
        (
            {"name": "uec_replay", "every": 0},
            "uec_replay.every: must be a whole number >= 1, got 0",
        ),
        ({"name": "uec_replay", "above": -1}, "uec_replay.above: must be a number >= 0, got -1.0"),
        ({"name": "fractions:Fraction"}, "must return a Replay, got Fraction(0, 1) from"),
    ],
)
def test_what_is_no_replay_rule_is_refused_in_a_line(spec, message):
    with pytest.raises(ValueError, match=r"^replay") as error:
        build_replay(spec, G)
    assert message in str(error.value)


def weigh(advantages, stats):
    return stats.extras["own"]


def weighted_loss(advantages, stats):
    return ppo_clip()(advantages * stats.extras["own"], stats)


@pytest.mark.parametrize(
    ("advantage", "more", "message"),
    [
        (
            SHAPED,
            {"critic": CriticConfig(0.1)},
            "critic: must be null with replay: uec_replay, got a critic",
        ),
        (
            SHAPED,
            {"loss": LossConfig(entropy_coef={"name": "adaptive_entropy"})},
            "loss: must have no controller with replay: uec_replay",
        ),
        (
            chain(SHAPED, whiten()),
            {},
            r"advantage\[2\]: must not need the policy, and must be of scope 'token' or 'sequence' "
            r"behind one of these, with replay: uec_replay; got scope 'batch', needs_policy=False",
        ),
        (
            chain(whiten().fn, group_normalize(G)),
            {},
            r"advantage\[0\]: must not need the policy, .*; got scope 'batch', needs_policy=True",
        ),
        (
            gtpo(G),
            {},
            "advantage: must have one value for each row",
        ),
        (
            chain(SHAPED, Transform(lambda a, stats: a * stats.extras["own"], "token")),
            {},
            "replay: must be null with an advantage or a loss that reads extras .*, got 'own'",
        ),
        (
            SHAPED,
            {"loss": LossConfig(token_weights=[{"name": f"{__name__}:weigh"}])},
            "replay: must be null with an advantage or a loss that reads extras .*, got 'own'",
        ),
        (
            SHAPED,
            {"loss": LossConfig(surrogate={"name": f"{__name__}:weighted_loss"})},
            "replay: must be null with an advantage or a loss that reads extras .*, got 'own'",
        ),
    ],
)
def test_what_does_not_go_with_a_replay_is_refused_in_a_line(advantage, more, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        programs_of({"name": "uec_replay"}, advantage, **more)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"controller": Controller(lambda: 0, lambda s, _: (s, {"weight": jnp.float32(1)}))},
            "replay: must have a controller with the coefficient 'replay_weight', got weight",
        ),
        (
            {"controller": Controller(lambda: 0, lambda s, _: (None, {REPLAY_WEIGHT: 1.0}))},
            "replay: Controller.update: must return a state as that of init, int32[], got None",
        ),
        (
            {"choose": lambda advantages, has_reward: (advantages[:, 0], has_reward)},
            "replay: choose must return f32[16, 1] and bool[16], got float32[16] and bool[16]",
        ),
        (
            {"choose": lambda advantages, has_reward: (advantages, advantages > 0)},
            "replay: choose must return f32[16, 1] and bool[16], got float32[16, 1] and "
            "bool[16, 1]",
        ),
    ],
)
def test_what_a_replay_rule_returns_is_checked_before_the_first_rollout(
    monkeypatch, parts, message
):
    module = types.ModuleType("own_replay")
    module.rule = uec_replay()._replace(**parts)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ValueError) as error:
        programs_of({"name": "own_replay:rule"})
    assert str(error.value) == message


def test_every_replay_rule_has_a_line_in_the_list_of_methods_that_builds_it():
    lines = re.findall(r"`replay: (\{.*?\})`", (ROOT / "docs" / "methods.md").read_text())
    built = [build_replay(yaml.safe_load(line), G) for line in lines]
    assert all(isinstance(replay, Replay) for replay in built)
    assert {yaml.safe_load(line)["name"] for line in lines} == set(
        factories_of(Replay, ["group_size"])
    )


# --- runs
# --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        {"name": "pipo", "window": 2},
        {"name": "uec_replay", "rollouts": 1, "every": 2, "above": 0.0},
    ],
)
def test_a_run_with_a_replay_goes_on_from_a_checkpoint_as_if_nothing_had_happened(here, spec):
    name = spec["name"]
    write_yaml(here / "train.yaml", TRAIN | {"replay": spec, "loss": {"kl_coef": 0.01}})
    whole, resumed = f"{name}_whole", f"{name}_resumed"
    train = ["train", "--config", "train.yaml", "--run.directory"]
    assert main([*train, whole]) == 0
    for steps in ("2", "4", "6"):  # a replay comes from what a checkpoint holds
        assert main([*train, resumed, "--steps", steps]) == 0
    assert_same_run(here / whole, here / resumed)
    metrics = lines_of(here / whole / "metrics.jsonl")
    assert all(REPLAY_WEIGHT in row for row in metrics)
    assert sum("replay/loss" in row for row in metrics) >= 2
    assert set(state_of(here / whole)["replay_buffer"]["rows"]) > {
        "ids",
        "rewards",
        "ref_log_probs",
    }
