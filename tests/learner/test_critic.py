"""The critic: its values, its updates, and runs with one."""

import contextlib
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from policies import TINY, mesh_of, table_policy, tiny_policy
from run_records import assert_same_run, lines_of, state_of
from tiny_runs import TRAIN, make_workspace, write_yaml
from update_problem import EOS, PAD, G, N, P, V, make_data, sgd_update

from entropy_rl.advantages import Transform, chain, gae, overlong_penalty, shape_by_entropy
from entropy_rl.advantages.returns import lambda_returns
from entropy_rl.cli.main import main
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.train import CriticConfig
from entropy_rl.distributed.sharding import Placement
from entropy_rl.learner.critic import (
    init_critic,
    make_critic_gradient,
    make_critic_update,
    make_values_pass,
    mean_critic_metrics,
)
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.update import init_state
from entropy_rl.losses.loss import Loss
from entropy_rl.models import backbone_params
from entropy_rl.runs.load_model import check_same_tokenizer, load_backbone, load_model

CRITIC = CriticConfig(learning_rate=0.01, gamma=0.9, lam=0.8)


def hidden_size(backbone):
    return V if "table" in jax.eval_shape(backbone.init, jax.random.key(0)) else TINY.hidden_size


def make_critic(backbone, key, optimizer, constrain=None):
    """A critic of a random backbone whose head is not the zeros that it would begin with."""
    params = backbone_params(backbone.init(key))
    critic = init_critic(params, hidden_size(backbone), optimizer, constrain)
    kernel = critic.params["value_head"]["kernel"]
    assert not kernel.any()
    head = {"kernel": 0.3 * jax.random.normal(key, kernel.shape)}
    return critic.replace(params=critic.params | {"value_head": head})


def with_values(data, seed=3):
    values = np.random.default_rng(seed).normal(0, 0.5, data.completion_ids.shape)
    return data.replace(values=jnp.array(np.where(data.completion_mask, values, 0), jnp.float32))


def update_critic(backbone, data, key, **settings):
    """The critic after one step of plain gradient descent, and the metrics."""
    optimizer = optax.sgd(0.1)
    state = init_state(backbone.init(key), optimizer).replace(
        critic=make_critic(backbone, key, optimizer)
    )
    update = make_critic_update(
        backbone, gae(), optimizer, CRITIC, settings=PassSettings(**settings)
    )
    state, metrics = update(state, data)
    return jax.device_get((state.critic.params, metrics))


def assert_close(*trees):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *trees)


# --- values
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens, group_size", [(None, None), (30, G)])
def test_values_are_those_of_a_plain_forward_pass_over_each_row_alone(key, tokens, group_size):
    backbone, data = tiny_policy(), make_data()
    params = make_critic(backbone, key, optax.sgd(1.0)).params
    values_pass = jax.jit(
        make_values_pass(
            backbone,
            settings=PassSettings(max_tokens_per_micro_batch=tokens, group_size=group_size),
        )
    )
    values, apply = values_pass(params, data), jax.jit(backbone.apply)
    wanted, kernel = np.zeros((P * G, N)), np.asarray(params["value_head"]["kernel"], np.float64)
    ids, prompts = np.asarray(data.ids), np.asarray(data.prompt_length)
    for b, new in enumerate(np.asarray(data.completion_mask.sum(1))):
        hidden = apply(params, ids[b : b + 1])
        for t in range(new):  # the state before the token, the end-of-sequence token among them
            wanted[b, t] = np.asarray(hidden[0, prompts[b] + t - 1], np.float64) @ kernel
    assert abs(wanted).max() > 0.5
    np.testing.assert_allclose(values, wanted, atol=2e-5)


def test_a_critic_begins_at_zero_and_has_no_head_over_the_vocabulary(key):
    backbone = tiny_policy()
    critic = init_critic(backbone_params(backbone.init(key)), TINY.hidden_size, optax.adam(1e-3))
    assert set(critic.params) == {"embed_tokens", "layers", "norm", "value_head"}
    assert critic.params["value_head"]["kernel"].shape == (TINY.hidden_size,)
    assert not make_values_pass(backbone)(critic.params, make_data()).any()
    text = str(
        jax.make_jaxpr(
            make_values_pass(backbone, settings=PassSettings(max_tokens_per_micro_batch=20))
        )(critic.params, make_data())
    )
    sizes = {int(n) for shape in re.findall(r"f32\[([\d,]+)\]", text) for n in shape.split(",")[1:]}
    assert TINY.vocab_size not in sizes  # but for the table of embeddings, whose first axis it is


# --- updates
# -----------------------------------------------------------------------------------------------


def float64_critic(kernel, data, aggregation):
    """The value loss of a table, token by token: V of a state is an entry of the head's kernel."""
    ids, prompts, old = (np.asarray(x) for x in (data.ids, data.prompt_length, data.values))
    judged = np.asarray(data.completion_mask & data.has_reward[:, None])
    loss, rows = 0.0, judged.any(1).sum()
    for b in range(P * G):
        length = judged[b].sum()
        target = 0.0
        for t in reversed(range(length)):
            last = t == length - 1
            after = 0.0 if last else float(old[b, t + 1])
            reward = float(data.rewards[b]) if last else 0.0
            target = reward + CRITIC.gamma * ((1 - CRITIC.lam) * after + CRITIC.lam * target)
            value = kernel[ids[b, prompts[b] + t - 1]]
            clipped = np.clip(value, old[b, t] - 0.5, old[b, t] + 0.5)
            weight = {
                "token-mean": judged.sum(),
                "sequence-mean": length * rows,
                "constant": N * rows,
            }
            loss += 0.5 * max((value - target) ** 2, (clipped - target) ** 2) / weight[aggregation]
    return loss


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "constant"])
def test_loss_and_gradient_equal_finite_differences_of_a_float64_loop(key, aggregation):
    backbone = table_policy(V)
    data = with_values(make_data(has_reward=np.arange(P * G) != 6))
    params = make_critic(backbone, key, optax.sgd(1.0)).params
    gradient = make_critic_gradient(
        backbone, gae(), CRITIC, Loss(aggregation=aggregation, max_tokens=N)
    )
    grads, metrics = jax.jit(gradient)(params, data)
    kernel, h = np.asarray(params["value_head"]["kernel"], np.float64), 1e-6
    np.testing.assert_allclose(
        metrics["loss"], float64_critic(kernel, data, aggregation), rtol=1e-5
    )
    wanted = [
        float64_critic(kernel + step, data, aggregation)
        - float64_critic(kernel - step, data, aggregation)
        for step in h * np.eye(V)
    ]
    np.testing.assert_allclose(grads["value_head"]["kernel"], np.array(wanted) / (2 * h), atol=1e-6)
    assert metrics["clipped"] > 0.05, "the case must reach the clip"


def test_four_micro_batches_give_what_one_gives(key):
    backbone, data = tiny_policy(), with_values(make_data(has_reward=np.arange(P * G) != 6))
    whole, parts = (
        update_critic(backbone, data, key, max_tokens_per_micro_batch=tokens, group_size=group_size)
        for tokens, group_size in ((None, None), (30, G))
    )
    assert_close(whole, parts)


def test_a_row_that_is_not_learned_from_is_to_the_critic_as_one_without_a_judgement(key):
    backbone, data = table_policy(V), with_values(make_data())
    without = np.arange(P * G) % 3 != 0
    one, other = (
        data.replace(**{name: jnp.array(without)}) for name in ("loss_row_mask", "has_reward")
    )
    assert_close(update_critic(backbone, one, key), update_critic(backbone, other, key))


@pytest.mark.slow
def test_a_mesh_of_eight_devices_gives_what_one_device_gives(key):
    mesh = mesh_of(2, 2, 2)
    placement, optimizer = Placement(mesh, TINY.num_kv_heads), optax.sgd(0.1)
    data = with_values(make_data(has_reward=np.arange(P * G) != 6))
    results = []
    for where, rows in ((Placement(), data), (placement, placement.put_rows(data))):
        backbone, constrain = tiny_policy(mesh=where.mesh), where.constrain if where.mesh else None
        settings = dict(max_tokens_per_micro_batch=15, mesh=where.mesh)
        state = init_state(backbone.init(key), optimizer, constrain)
        state = state.replace(critic=make_critic(backbone, key, optimizer, constrain))
        update = make_critic_update(
            backbone,
            gae(),
            optimizer,
            CRITIC,
            settings=PassSettings(constrain=constrain, **settings),
        )
        state, metrics = update(state, rows)
        results.append(jax.device_get((state.critic.params, metrics)))
    up = state.critic.params["layers"]["mlp"]["up_proj"]["kernel"].sharding
    assert up.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor")), 3)
    assert_close(*results)


def learn(data, config, rounds):
    """The table that is learned by bootstrapping: the values from before are computed anew in each
    round.
    """
    backbone, optimizer = table_policy(V), optax.sgd(1.0)
    params = backbone.init(jax.random.key(0))
    state = init_state(params, optimizer).replace(critic=init_critic(params, V, optimizer))
    values, update = (
        jax.jit(make_values_pass(backbone)),
        make_critic_update(backbone, gae(), optimizer, config),
    )
    for _ in range(rounds):
        state, _ = update(state, data.replace(values=values(state.critic.params, data)))
    return np.asarray(state.critic.params["value_head"]["kernel"])


def test_a_table_learns_the_discounted_value_of_a_chain_of_states_by_bootstrapping_alone():
    # Each row is 2, then 3 4 EOS: V(4) = 1, V(3) = 0.5, V(2) = 0.25.
    data = make_data()
    ids = jnp.array([3, 4, EOS] + [PAD] * (N - 3))
    data = data.replace(
        ids=jnp.broadcast_to(
            jnp.concatenate([jnp.array([2]), ids, jnp.zeros(2, jnp.int32)]), data.ids.shape
        ),
        prompt_length=jnp.ones_like(data.prompt_length),
        completion_ids=jnp.broadcast_to(ids, data.completion_ids.shape),
        completion_mask=jnp.broadcast_to(jnp.arange(N) < 3, data.completion_mask.shape),
        rewards=jnp.ones(P * G),
    )
    table = learn(data, CriticConfig(learning_rate=1.0, gamma=0.5, lam=0.0), rounds=80)
    np.testing.assert_allclose(table[[2, 3, 4]], [0.25, 0.5, 1.0], atol=1e-4)


def test_a_table_learns_the_mean_reward_of_what_went_through_a_state():
    data = make_data()
    sums, visits = np.zeros(V), np.zeros(V)
    for b in range(P * G):
        for t in range(int(data.completion_mask[b].sum())):
            state = data.ids[b, data.prompt_length[b] + t - 1]
            sums[state], visits[state] = sums[state] + data.rewards[b], visits[state] + 1
    table, seen = learn(data, CriticConfig(learning_rate=1.0), rounds=400), visits > 0
    np.testing.assert_allclose(table[seen], sums[seen] / visits[seen], atol=1e-3)


def test_what_a_chain_makes_of_the_rewards_is_what_the_critic_learns(key):
    backbone, data = table_policy(V), with_values(make_data())
    params = make_critic(backbone, key, optax.sgd(1.0)).params
    longer = chain(overlong_penalty(N, 3), gae(), shape_by_entropy(0.1, 2.0))
    lengths = data.completion_mask.sum(1)
    shorter = data.replace(rewards=data.rewards - jnp.clip((lengths - (N - 3)) / 3, 0, 1))
    found, wanted, plain = (
        jax.jit(make_critic_gradient(backbone, advantage, CRITIC))(params, batch)
        for advantage, batch in ((longer, data), (gae(), shorter), (gae(), data))
    )
    assert_close(found, wanted)
    assert wanted[1]["return"] < plain[1]["return"] - 0.1


@pytest.mark.parametrize("spoiled", ["a value that is not finite", "no judgement"])
def test_an_update_that_cannot_teach_anything_leaves_the_critic_alone(key, spoiled):
    backbone, optimizer, data = (
        table_policy(V),
        optax.adamw(0.1, weight_decay=0.1),
        with_values(make_data()),
    )
    state = init_state(backbone.init(key), optimizer).replace(
        critic=make_critic(backbone, key, optimizer)
    )
    update = make_critic_update(backbone, gae(), optimizer, CRITIC)
    state, _ = update(state, data)
    before = jax.tree.map(np.array, state)
    bad = data.replace(values=data.values.at[5, 0].set(np.nan))
    if spoiled == "no judgement":
        bad = data.replace(has_reward=jnp.zeros(P * G, bool))
    state, metrics = update(state, bad)
    assert np.isfinite(metrics["grad_norm"]) == (spoiled == "no judgement")
    jax.tree.map(np.testing.assert_array_equal, state, before)


def test_the_explained_variance_is_that_over_all_tokens_of_the_updates(key):
    backbone, optimizer = table_policy(V), optax.sgd(0.0)
    parts, metrics, values, targets = (with_values(make_data(s), s) for s in (0, 1)), [], [], []
    state = init_state(backbone.init(key), optimizer).replace(
        critic=make_critic(backbone, key, optimizer)
    )
    update = make_critic_update(backbone, gae(), optimizer, CRITIC)
    for data in parts:
        state, found = update(state, data)
        metrics.append(jax.device_get(found))
        mask = np.asarray(data.completion_mask)
        returns = lambda_returns(
            data.rewards[:, None], data.values, data.completion_mask, gamma=0.9, lam=0.8
        )
        values, targets = (
            [*values, *np.asarray(data.values)[mask]],
            [*targets, *np.asarray(returns)[mask]],
        )
    values, targets = np.array(values), np.array(targets)
    means = mean_critic_metrics(metrics)
    np.testing.assert_allclose(
        means["explained_variance"], 1 - (targets - values).var() / targets.var(), rtol=1e-4
    )
    np.testing.assert_allclose(means["value"], values.mean(), rtol=1e-4)


@pytest.mark.parametrize("tokens", [None, 15])
def test_the_explained_variance_survives_a_large_mean(key, tokens):
    """Rewards of 1000 and 1001, at the last token, without discount: all targets are these."""
    backbone, optimizer = table_policy(V), optax.sgd(0.0)
    critic = dataclasses.replace(CRITIC, gamma=1.0, lam=1.0)
    settings = PassSettings(max_tokens_per_micro_batch=tokens)
    update = make_critic_update(backbone, gae(1.0, 1.0), optimizer, critic, settings=settings)

    def explained(rewards, values):
        state = init_state(backbone.init(key), optimizer).replace(
            critic=make_critic(backbone, key, optimizer)
        )
        metrics = []
        for half in np.split(rewards, 2):
            data = make_data().replace(rewards=half)
            values_of = jnp.where(data.completion_mask, values(half)[:, None], 0)
            state, found = update(state, data.replace(values=values_of))
            metrics.append(jax.device_get(found))
        return mean_critic_metrics(metrics)["explained_variance"]

    rewards = np.float32(1000 + np.arange(2 * P * G) % 2)
    assert explained(rewards, lambda r: r) == pytest.approx(1, abs=1e-6)
    assert explained(rewards, lambda r: r - 500) == pytest.approx(1, abs=1e-6)
    assert explained(rewards, lambda r: 0 * r) == pytest.approx(0, abs=1e-6)
    # Also where targets differ between updates alone.
    apart = np.float32(1000 + (np.arange(2 * P * G) < P * G))
    assert explained(apart, lambda r: r) == pytest.approx(1, abs=1e-6)
    assert explained(np.full(2 * P * G, 1000.1, np.float32), lambda r: 0 * r) == 0


# --- the policy, with a critic
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, group_size, fused_loss", [(None, None, False), (30, G, False), (15, None, True)]
)
def test_the_policy_is_updated_by_the_reward_above_the_value_of_each_token(
    key, tokens, group_size, fused_loss
):
    policy, data = table_policy(V), with_values(make_data(has_reward=np.arange(P * G) != 6))
    by_hand = jnp.where(data.completion_mask, data.rewards[:, None] - data.values, 0)
    data_by_hand = data.replace(values=by_hand)
    given = Transform(lambda advantages, stats: stats.values, "group")
    shape, params = shape_by_entropy(0.1, 2.0), policy.init(key)
    wanted = sgd_update(policy, data_by_hand, params, advantage=chain(given, shape))
    found = sgd_update(
        policy,
        data,
        params,
        advantage=chain(gae(), shape),
        tokens=tokens,
        group_size=group_size,
        fused_loss=fused_loss,
    )
    assert_close(wanted, found)
    assert wanted[1]["bonus_share"] > 0


# --- runs
# --------------------------------------------------------------------------------------------------

PPO = TRAIN | {
    "advantage": [{"name": "gae"}, {"name": "shape_by_entropy", "alpha": 0.1, "kappa": 2.0}],
    "critic": {"learning_rate": 0.01, "warmup_steps": 2},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("critic") / "workspace")
    write_yaml(workspace / "ppo.yaml", PPO)
    return workspace


def train(directory, *more):
    return main(["train", "--config", "ppo.yaml", "--run.directory", str(directory), *more])


def test_a_run_warms_up_its_critic_alone_and_ends_as_if_it_had_not_been_interrupted(
    here, capsys, caplog
):
    assert train("parts", "--steps", "2") == 0
    assert "critic.warmup_steps: in all 2 steps the critic learns alone" in caplog.text
    state, start = state_of(here / "parts", 2), load_model(ModelConfig("model")).params
    jax.tree.map(np.testing.assert_array_equal, state["params"], start)
    assert int(state["updates"]) == 0 and not any(
        x.any() for x in jax.tree.leaves(state["opt_state"])
    )
    critic = state["critic"]["params"]
    assert critic.pop("value_head")["kernel"].any()
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), critic, start)))

    assert train("parts") == 0
    assert "resuming parts after step 2 of 6" in capsys.readouterr().err
    assert train("whole") == 0
    assert_same_run(here / "whole", here / "parts")
    warm_up, *_, last = lines_of(here / "whole" / "metrics.jsonl")
    names = {"value_loss", "value", "explained_variance", "value_clipped", "critic_grad_norm"}
    assert names < set(warm_up) and "entropy" not in warm_up
    assert names < set(last) and last["bonus_share"] > 0
    assert warm_up["value"] == 0 and last["value"] != 0


def test_the_state_of_a_run_without_a_critic_has_no_place_for_one(here):
    assert main(["train", "--config", "train.yaml", "--run.directory", "grpo", "--steps", "1"]) == 0
    assert set(state_of(here / "grpo", 1)) == {"params", "opt_state", "step", "updates"}
    (row,) = lines_of(here / "grpo" / "metrics.jsonl")
    assert "value_loss" not in row and "critic_grad_norm" not in row


@pytest.mark.slow
def test_an_update_of_the_critic_that_is_not_finite_is_kept_and_can_be_looked_into(here, capsys):
    spoiled = ["--critic.learning_rate", "1e38", "--critic.max_grad_norm", "1e38"]
    assert train("spoiled", *spoiled, "--batching.max_nonfinite_updates", "1") == 1
    (kept,) = (here / "spoiled" / "nonfinite_updates").iterdir()
    assert re.fullmatch(r"step_\d_critic_\d", kept.name)
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"see `entropy-rl debug-update spoiled/nonfinite_updates/{kept.name}`" in error
    assert main(["debug-update", str(kept)]) == 0
    out = capsys.readouterr().out
    assert "the gradient: not finite in" in out and "['value_head']['kernel']: " in out


def test_a_critic_may_begin_with_another_model_of_the_same_tokenizer(here):
    config = ModelConfig("model")
    model = load_model(config)
    shared = load_backbone(None, config, model)
    assert shared.policy is model.policy
    other = load_backbone("asset:countdown", config, model)
    assert other.hidden_size > shared.hidden_size == 16
    with pytest.raises(ValueError, match=r"^critic\.path: must be .*, got 'nowhere'$"):
        load_backbone("nowhere", config, model)


def test_a_critic_with_another_tokenizer_is_refused(here, tmp_path):
    with contextlib.chdir(tmp_path):
        make_workspace(tmp_path)
    path = tmp_path / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="must have the tokenizer of model, got another one in "):
        check_same_tokenizer(str(tmp_path / "model"), "model", "critic.path")
