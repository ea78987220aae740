"""Methods with a controller: their rules, and that nothing but the mini-batches decides what they
update_controller.
"""

import json
import re

import jax
import jax.numpy as jnp
import loss_problem
import numpy as np
import optax
import pytest
import yaml
from jax.sharding import NamedSharding, PartitionSpec
from policies import mesh_of, table_policy
from run_records import assert_same_run, state_of
from tiny_runs import ROOT, TRAIN, write_yaml
from update_problem import SHAPED, G, N, P, V, make_data

from entropy_rl.advantages import chain, group_normalize, shape_by_entropy, whiten
from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.registry import factories_of
from entropy_rl.config.train import LossConfig, TrainConfig
from entropy_rl.contrib import per_update_adaptive_entropy
from entropy_rl.learner.gradient import make_gradient
from entropy_rl.learner.metrics import metric_sums, metrics_of
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.losses import ClipMasks, Controller, Loss, TokenWeights
from entropy_rl.losses.build import build_loss, check_traces
from entropy_rl.losses.controller import (
    UPDATE_METRICS,
    BatchSummary,
    join_controllers,
    trace_controller,
)
from entropy_rl.losses.controllers import (
    ENTROPY_COEF,
    adaptive_entropy,
    build_entropy_control,
    lagged_adaptive_entropy,
)
from entropy_rl.losses.loss import LossTerms
from entropy_rl.runs.nonfinite_updates import NonfiniteUpdates, read_controller
from entropy_rl.types import DATA_AXES

COEF = {ENTROPY_COEF: jnp.float32(0)}
SHARED = jnp.float32(2)
ENTROPIES = [0.5, 0.1, 0.15, 0.1, 0.05, 0.3, 0.4, 0.1, 0.5, 0.5, 0.5]


def signals_of(controller, entropies, name=ENTROPY_COEF):
    state, found = controller.init(), []
    for step, entropy in enumerate(entropies):
        state, coefficients = controller.update(
            state, summary_of(step, entropy=entropy, surprisal=entropy)
        )
        found.append(float(coefficients[name]))
    return found


def summary_of(step, entropy=0.0, surprisal=0.0, tokens=10.0):
    numbers = (jnp.float32(x) for x in (entropy, 0, surprisal, tokens))
    return BatchSummary(jnp.int32(step), *numbers)


# --- the controllers
# ---------------------------------------------------------------------------------------


def test_the_coefficient_of_skywork_is_used_one_rollout_later_by_hand():
    # The first rollout has the gate open and c = 0. H = 0.2 is not below the target.
    entropies = [0.5, 0.19, 0.1, 0.2, 0.3, 0.15, 0.12, 0.5, 0.05, 0.2]
    wanted = np.array([0, 0, 1, 2, 0, 0, 1, 2, 0, 2]) * 1e-4
    np.testing.assert_allclose(signals_of(adaptive_entropy(), entropies), wanted, atol=1e-9)
    first = signals_of(adaptive_entropy(initial=1e-3), entropies)[:3]
    np.testing.assert_allclose(first, [1e-3, 0, 1e-3], rtol=1e-5)


class EntController:
    """`EntController` of https://github.com/SkyworkAI/Skywork-OR1 (ray_trainer.py) in Python."""

    def __init__(self, target, delta, initial, minimum, maximum):
        self.target, self.delta, self.bounds = target, delta, (minimum, maximum)
        self.coefficient, self.used = initial, initial

    def update(self, entropy):
        change = self.delta if entropy < self.target else -self.delta
        self.coefficient = min(max(self.coefficient + change, self.bounds[0]), self.bounds[1])
        self.used = self.coefficient * (entropy < self.target)


def test_the_coefficient_of_skywork_equals_its_source_over_rollouts_of_several_mini_batches():
    rng = np.random.default_rng(0)
    arguments = dict(target=0.2, delta=1e-3, initial=1e-3, minimum=5e-4, maximum=3e-3)
    source, controller = EntController(*arguments.values()), adaptive_entropy(**arguments)
    state, used = controller.init(), []
    for step in range(40):
        tokens = rng.integers(1, 50, 4)
        surprisals = rng.gamma(2, 0.1, 4)
        for surprisal, count in zip(surprisals, tokens, strict=True):
            state, coefficients = controller.update(
                state, summary_of(step, entropy=9.0, surprisal=surprisal, tokens=count)
            )
            # The same for all mini-batches of the rollout.
            assert float(coefficients[ENTROPY_COEF]) == pytest.approx(source.used, abs=1e-8)
        used.append(source.used)
        source.update(float(surprisals @ tokens / tokens.sum()))
    assert {0.0} < set(used) and max(used) == pytest.approx(3e-3)


def test_a_rollout_without_a_token_does_not_move_the_coefficient_of_skywork():
    controller = adaptive_entropy(initial=1e-3)
    state, _ = controller.update(controller.init(), summary_of(0, tokens=0.0))
    state, coefficients = controller.update(state, summary_of(1, surprisal=0.1))
    assert float(coefficients[ENTROPY_COEF]) == pytest.approx(1e-3)
    _, coefficients = controller.update(state, summary_of(2, surprisal=0.1))
    assert float(coefficients[ENTROPY_COEF]) == pytest.approx(1.1e-3)


def test_the_coefficient_of_every_update_is_used_below_the_target_alone():
    c, wanted = 0.0, []
    for entropy in ENTROPIES:
        c = min(max(c + (1e-3 if entropy < 0.2 else -1e-3), 0.0), 2.5e-3)
        wanted.append(c if entropy < 0.2 else 0.0)
    controller = per_update_adaptive_entropy(delta=1e-3, maximum=2.5e-3)
    found = signals_of(controller, ENTROPIES)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert max(found) == pytest.approx(2.5e-3) and wanted.count(0) >= 5


def test_the_coefficient_of_trl_is_used_one_update_later():
    c, last, wanted = 0.01, np.inf, []
    for entropy in ENTROPIES:
        wanted.append(c if last <= 0.2 else 0.0)
        c, last = (min(c + 0.005, 0.02) if entropy <= 0.2 else max(c - 0.005, 0.0)), entropy
    found = signals_of(lagged_adaptive_entropy(initial=0.01, maximum=0.02), ENTROPIES)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    assert max(wanted) == pytest.approx(0.02)


def test_the_bonus_of_trl_is_off_in_the_first_update_by_hand():
    # `_last_world_entropy = inf` and c₀ = 0.1 in TRL's GRPOTrainer.
    entropies = [0.5, 0.19, 0.1, 0.2, 0.3, 0.15, 0.12, 0.5, 0.05, 0.2]
    found = signals_of(lagged_adaptive_entropy(initial=0.1), entropies)
    wanted = [0, 0, 0.1, 0.105, 0.11, 0, 0.11, 0.115, 0, 0.115]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "adaptive_entropi"}, "did you mean 'adaptive_entropy'"),
        (
            {"target": 0.2},
            "loss.entropy_coef.name: must be given, one of: adaptive_entropy, lagged_adaptive",
        ),
        (
            {"name": "adaptive_entropy", "target": 0},
            "adaptive_entropy.target: must be a number > 0, got 0.0",
        ),
        (
            {"name": "adaptive_entropy", "initial": 0.1},
            "adaptive_entropy.initial: must be a number from 0.0 to 0.005, got 0.1",
        ),
        (
            {"name": "adaptive_entropy", "delta": -1},
            "adaptive_entropy.delta: must be a number > 0, got -1.0",
        ),
        (
            {"name": "lagged_adaptive_entropy", "minimum": 2},
            "maximum: must be a number >= minimum (2.0), got 1.0",
        ),
        (
            {"name": "fractions:Fraction"},
            "must return a Controller with the coefficient 'entropy_coef'",
        ),
    ],
)
def test_what_is_no_controller_is_refused_in_a_line(spec, message):
    with pytest.raises(ValueError, match=r"^loss\.entropy_coef") as error:
        build_entropy_control(spec)
    assert message in str(error.value)


def test_every_controller_has_a_line_in_the_list_of_methods_that_builds_it():
    lines = re.findall(r"`entropy_coef: (.*?)`", (ROOT / "docs" / "methods.md").read_text())
    built = {line: build_entropy_control(yaml.safe_load(line)) for line in lines}
    assert [controller for line, controller in built.items() if not line.startswith("{")] == [None]
    assert {
        yaml.safe_load(line)["name"] for line, controller in built.items() if controller
    } == set(factories_of(Controller))


# --- the update
# --------------------------------------------------------------------------------------------

# Opens its gate for some of the mini-batches below.
CONTROLLER = {"name": "per_update_adaptive_entropy", "target": 1.0, "delta": 0.1, "maximum": 0.25}
CONTROLLED = LossConfig(entropy_coef=CONTROLLER)
OF_BATCH = chain(group_normalize(G), whiten().fn, shape_by_entropy())


def mini_batches():
    """Four, with recorded entropies on both sides of the target; a row that is not judged has
    more.
    """
    batches = []
    for seed, entropy in enumerate((0.7, 0.6, 1.4, 0.8)):
        data = make_data(seed, has_reward=np.arange(P * G) != 6)
        recorded = np.random.default_rng(seed).uniform(0.9, 1.1, (P * G, N)) * entropy
        recorded[6] = 50
        recorded = jnp.asarray(np.where(data.completion_mask, recorded, 99), jnp.float32)
        batches.append(data.replace(old_entropy=recorded))
    return batches


def coefficients():
    """What the rule makes of `mini_batches`, in float64."""
    c, found = 0.0, []
    for data in mini_batches():
        judged = np.asarray(data.completion_mask & data.has_reward[:, None])
        below = np.asarray(data.old_entropy, np.float64)[judged].mean() < 1.0
        c = min(max(c + (0.1 if below else -0.1), 0.0), 0.25)
        found.append(c if below else 0.0)
    return found


def run_updates(policy, key, loss=CONTROLLED, advantage=SHAPED, mesh=None, **settings):
    """The state after an update on each of the mini-batches, and the metrics of each."""
    optimizer = optax.sgd(0.3)
    update = make_update(
        policy,
        advantage,
        optimizer,
        build_loss(loss, N),
        settings=PassSettings(mesh=mesh, **settings),
    )
    state = init_state(policy.init(key), optimizer, controller=build_loss(loss).controller)
    if mesh is not None:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    found = []
    for data in mini_batches():
        if mesh is not None:
            data = jax.device_put(data, NamedSharding(mesh, PartitionSpec(DATA_AXES)))
        state, metrics = update(state, data)
        found.append(metrics)
    return jax.device_get((state, found))


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), one, other)


def test_each_update_has_the_coefficient_of_the_rule_and_is_the_one_with_that_number(key):
    policy, optimizer = table_policy(V), optax.sgd(0.3)
    state, metrics = run_updates(policy, key)
    wanted = coefficients()
    assert sorted(wanted) == [0.0, 0.1, 0.2, 0.2]
    np.testing.assert_allclose([m[ENTROPY_COEF] for m in metrics], wanted, rtol=1e-6)
    fixed = init_state(policy.init(key), optimizer)
    updates = {
        c: make_update(policy, SHAPED, optimizer, build_loss(LossConfig(entropy_coef=c)))
        for c in set(wanted)
    }
    for data, coefficient in zip(mini_batches(), wanted, strict=True):
        fixed, _ = updates[coefficient](fixed, data)
    assert fixed.controller is None
    assert_close(state.params, fixed.params)
    without, _ = run_updates(policy, key, loss=LossConfig())
    assert abs(without.params["table"] - fixed.params["table"]).max() > 1e-3, (
        "the bonus must matter"
    )


def test_the_log_probs_of_a_rollout_set_the_coefficient_of_the_updates_on_the_next(key):
    policy, optimizer = table_policy(V), optax.sgd(0.3)
    data, surprisals = mini_batches(), []
    for pair in (data[:2], data[2:]):
        of_tokens = [
            -np.asarray(x.old_log_probs, np.float64)[
                np.asarray(x.completion_mask & x.has_reward[:, None])
            ]
            for x in pair
        ]
        surprisals.append(np.concatenate(of_tokens).mean())
    spec = {"name": "adaptive_entropy", "initial": 0.1, "delta": 0.05, "maximum": 0.5}
    # Between the two rollouts, so that the first closes the gate or opens it.
    for target, wanted in ((surprisals[0] + 1e-3, 0.15), (surprisals[0] - 1e-3, 0.0)):
        loss = build_loss(LossConfig(entropy_coef=spec | {"target": float(target)}))
        update = make_update(policy, SHAPED, optimizer, loss)
        state = init_state(policy.init(key), optimizer, controller=loss.controller)
        found = []
        for number, batch in enumerate(data):
            state, metrics = update(state.replace(step=jnp.int32(number // 2)), batch)
            found.append(float(metrics[ENTROPY_COEF]))
        np.testing.assert_allclose(found, [0.1, 0.1, wanted, wanted], rtol=1e-6)


@pytest.mark.parametrize("advantage", [SHAPED, OF_BATCH])
@pytest.mark.parametrize(
    "settings", [dict(max_tokens_per_micro_batch=30), dict(fuse_loss=True), "both"]
)
def test_micro_batches_and_a_fused_loss_change_neither_the_memory_nor_the_update(
    key, advantage, settings
):
    settings = (
        dict(max_tokens_per_micro_batch=9, fuse_loss=True) if settings == "both" else settings
    )
    policy = table_policy(V)
    assert_close(
        run_updates(policy, key, advantage=advantage, **settings),
        run_updates(policy, key, advantage=advantage),
    )


@pytest.mark.parametrize("fused_loss", [pytest.param(False, marks=pytest.mark.slow), True])
def test_eight_devices_change_neither_the_memory_nor_the_update(key, fused_loss):
    mesh = mesh_of(2, 2, 2)
    settings = dict(max_tokens_per_micro_batch=15, fuse_loss=fused_loss)
    policy = table_policy(V)
    assert_close(
        run_updates(policy, key, mesh=mesh, **settings), run_updates(policy, key, **settings)
    )


@pytest.mark.parametrize("judged", [True, False])
def test_an_update_that_is_not_applied_is_not_remembered(key, judged):
    policy, optimizer = table_policy(V), optax.sgd(0.3)
    update = make_update(policy, SHAPED, optimizer, build_loss(CONTROLLED))
    first, second, *_ = mini_batches()
    state = init_state(policy.init(key), optimizer, controller=build_loss(CONTROLLED).controller)
    state, _ = update(state, first)
    before = jax.device_get(state.controller)
    assert before["entropy_coef"] == pytest.approx(0.1)
    if judged:
        bad = second.replace(old_log_probs=second.old_log_probs.at[5, 0].set(np.nan))
    else:
        bad = second.replace(has_reward=np.zeros(P * G, bool))
    state, _ = update(state, bad)
    assert jax.device_get(state.controller) == before
    state, metrics = update(state, second)
    assert metrics[ENTROPY_COEF] == pytest.approx(0.2)


def test_with_an_update_that_was_not_applied_lies_what_was_remembered(key, tmp_path):
    loss = LossConfig(entropy_coef={"name": "lagged_adaptive_entropy", "initial": 0.1})
    controller = build_loss(loss).controller
    state = init_state(table_policy(V).init(key), optax.sgd(0.1), controller=controller)
    state = state.replace(step=jnp.int32(7), updates=jnp.int32(8))
    NonfiniteUpdates(tmp_path, limit=3).keep(state, make_data())
    new_controller, step = read_controller(
        tmp_path / "nonfinite_updates" / "step_8_update_8", controller.init()
    )
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, new_controller, jax.device_get(state.controller))


def test_a_missing_memory_or_signal_is_named(key):
    policy, optimizer = table_policy(V), optax.sgd(0.3)
    params, data = policy.init(key), make_data()
    with pytest.raises(ValueError, match=r"init_state takes controller=loss\.controller"):
        make_update(policy, SHAPED, optimizer, build_loss(CONTROLLED))(
            init_state(params, optimizer), data
        )
    with pytest.raises(
        ValueError, match=r"Loss\.entropy_coef: needs the coefficient 'entropy_coef'"
    ):
        make_gradient(policy, SHAPED, build_loss(CONTROLLED))(params, data)


# --- a controller of the user's
# ---------------------------------------------------------------------------------------


def traced(init, update):
    loss = Loss(entropy_coef=Controller(lambda: init, update))
    stats = loss_problem.make_tokens()[1]
    check_traces(loss, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stats))


@pytest.mark.parametrize(
    ("init", "update", "message"),
    [
        (0.0, lambda s, _: ({"a": s}, COEF), "a state as that of init, float32[], got {'a': 'flo"),
        (jnp.int32(0), lambda s, _: (s + 0.5, COEF), "of init, int32[], got float32[]"),
        (0.0, lambda s, _: (jnp.zeros(2), COEF), "of init, float32[], got float32[2]"),
        (
            0.0,
            lambda s, _: (s, {**COEF, "tokens": s}),
            "names than the metrics of an update have, got tokens",
        ),
        (0.0, lambda s, _: (s, {**COEF, "loss": s, "grad_norm": s}), "got grad_norm, loss"),
        (0.0, lambda s, _: (s, {ENTROPY_COEF: jnp.zeros(2)}), "scalars by name, got {'entropy_coe"),
        (0.0, lambda s, _: (s, jnp.zeros(())), "scalars by name, got float32[]"),
        (0.0, lambda s, _: (s, {}), "Loss.entropy_coef: needs the coefficient 'entropy_coef'"),
        (0.0, lambda s, _: None, "loss: cannot unpack non-iterable NoneType object"),
    ],
)
def test_what_a_controller_returns_is_checked_before_the_first_update(init, update, message):
    with pytest.raises(ValueError, match=r"^loss: ") as error:
        traced(init, update)
    assert message in str(error.value)


def test_a_state_of_plain_numbers_is_one_of_arrays():
    state = {"count": 0, "level": np.float64(0.5), "same": SHARED, "again": SHARED}
    rule = lambda s, _: ({**s, "count": s["count"] + 1}, {ENTROPY_COEF: s["level"]})  # noqa: E731
    traced(state, rule)
    policy, optimizer = table_policy(V), optax.sgd(0.3)
    loss = Loss(entropy_coef=Controller(lambda: state, rule))
    before = init_state(policy.init(jax.random.key(0)), optimizer, controller=loss.controller)
    after, metrics = make_update(policy, SHAPED, optimizer, loss)(before, make_data())
    found = jax.device_get(after.controller)["entropy_coef"]
    assert found == {"count": 1, "level": 0.5, "same": 2.0, "again": 2.0}
    assert metrics[ENTROPY_COEF] == 0.5
    assert float(SHARED) == 2.0, "an array of the caller's is not donated"


def test_two_controllers_have_coefficients_of_their_own():
    one = Controller(lambda: (), lambda state, _: (state, {"c": jnp.float32(1)}))
    with pytest.raises(ValueError, match="must have coefficients of other names, got c, c"):
        trace_controller(join_controllers(a=one, b=one))
    assert list(trace_controller(join_controllers(a=one, b=None))) == ["c"]


def test_the_names_of_the_metrics_of_an_update_are_known():
    x = jnp.ones((P * G, N))
    terms = LossTerms(ClipMasks(x, x, x), x, TokenWeights(x, x, x))
    sums = {"loss": x.sum()} | metric_sums(make_data(), x > 0, x, x, x, x, terms)
    found = {*metrics_of(sums, x.sum(), x.sum()), "learning_rate", "kl_teacher"}
    assert {*found, "nonfinite_updates"} == UPDATE_METRICS


# --- configs and runs
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["1e-3"], 1e-3),
        (["{name: adaptive_entropy, target: 0.3}"], {"name": "adaptive_entropy", "target": 0.3}),
        (
            ["{name: adaptive_entropy}", ".target", "0.3"],
            {"name": "adaptive_entropy", "target": 0.3},
        ),
    ],
)
def test_a_config_has_a_number_or_a_controller(tmp_path, given, read):
    write_yaml(tmp_path / "train.yaml", TRAIN)
    value, *more = given
    options = ["--config", str(tmp_path / "train.yaml"), "--loss.entropy_coef", value]
    if more:
        options += [f"--loss.entropy_coef{more[0]}", more[1]]
    assert parse_config(TrainConfig, "train", options).loss.entropy_coef == read
    with pytest.raises(ValueError, match=r"--loss\.entropy_coef: must be a number, got 'much'"):
        parse_config(TrainConfig, "train", [*options[:2], "--loss.entropy_coef", "much"])


@pytest.mark.slow
def test_a_resumed_run_with_a_critic_remembers_to_the_bit(here):
    # About the entropy of the tiny model, so that the coefficient goes up and down.
    controller = {"name": "lagged_adaptive_entropy", "target": 4.13, "initial": 0.5}
    ppo = {"advantage": [{"name": "gae"}], "critic": {"learning_rate": 0.01}}
    write_yaml(here / "train.yaml", TRAIN | ppo | {"loss": {"entropy_coef": controller}})
    train = ["train", "--config", "train.yaml", "--run.directory"]
    assert main([*train, "whole"]) == 0
    assert main([*train, "resumed", "--steps", "2"]) == 0
    assert main([*train, "resumed"]) == 0
    assert_same_run(here / "whole", here / "resumed")
    rows = (here / "whole" / "metrics.jsonl").read_text().splitlines()
    assert len({json.loads(row)[ENTROPY_COEF] for row in rows}) > 2
    saved = state_of(here / "whole")["controller"]["entropy_coef"]
    assert set(saved) == {"coefficient", "open"} and saved["coefficient"] != 0.5
