"""Supervised updates against float64; packing, micro-batches and devices change nothing."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hf_fixtures import make_hf_dir
from policies import TINY, table_policy, tiny_policy

from entropy_rl.config.common import MeshConfig
from entropy_rl.distributed.sharding import Placement, make_mesh
from entropy_rl.learner.micro_batches import make_micro_batch_fill
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.sft import SupervisedBatch, make_supervised_update, make_validation
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.learner.update import init_state
from entropy_rl.losses import dpo, dpo_norm, ipo, simpo
from entropy_rl.models import load_hf, make_policy

GOLDEN = Path(__file__).parents[1] / "golden"
B, T, V = 8, 14, 11
LOSSES = {"dpo": dpo(0.5), "dpo_norm": dpo_norm(2.0), "ipo": ipo(0.5), "simpo": simpo()}


def make_rows(vocab_size=V, seed=0, weights=(0.0, 1.0)):
    """Rows of several lengths with targets in one or more stretches; the first has none."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, T + 1, B)
    real = np.arange(T) < lengths[:, None]
    ids = np.where(real, rng.integers(1, vocab_size, (B, T)), 0).astype(np.int32)
    found = np.where(real, rng.choice(weights, (B, T)), 0).astype(np.float32)
    found[:, 0] = 0
    found[np.arange(B), lengths - 1] = weights[-1]  # no row is without a target
    return SupervisedBatch(ids, found)


def sgd(policy, params, batch, loss=None, rate=1.0, **settings):
    """The parameters after one step of plain gradient descent, and the metrics."""
    optimizer = optax.sgd(rate)
    update = make_supervised_update(policy, optimizer, loss, PassSettings(**settings))
    state, metrics = update(init_state(params, optimizer), batch)
    return state.params, jax.device_get(metrics)


def table_log_probs(table, ids):
    """f64[B, T - 1] and the probabilities f64[B, T - 1, V] of a table policy."""
    logits = np.asarray(table, np.float64)[ids[:, :-1]]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.log(np.take_along_axis(p, ids[:, 1:, None], axis=-1)[..., 0]), p


# --- against NumPy
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.0, 0.25, 1.0)])
def test_loss_and_gradient_are_those_of_float64(weights):
    policy, batch = table_policy(V), make_rows(weights=weights)
    params = policy.init(jax.random.key(0))
    w = batch.weights[:, 1:].astype(np.float64)
    log_probs, p = table_log_probs(params["table"], batch.ids)
    expected = -(w * log_probs).sum() / w.sum()
    # ∂(-log p_a)/∂z = p - 1_a, at the row of the table that the token before names.
    of_logits = (p - np.eye(V)[batch.ids[:, 1:]]) * w[..., None] / w.sum()
    slope = np.zeros((V, V))
    np.add.at(slope, batch.ids[:, :-1], of_logits)
    for tokens in (None, 20):
        after, metrics = sgd(policy, params, batch, max_tokens_per_micro_batch=tokens)
        assert abs(metrics["loss"] - expected) < 1e-6
        np.testing.assert_allclose(params["table"] - after["table"], slope, atol=1e-6)
        entropy = -(p * np.log(p)).sum(-1)[w > 0].mean()
        assert abs(metrics["entropy"] - entropy) < 1e-5
        assert metrics["tokens"] == (w > 0).sum()
        assert abs(metrics["grad_norm"] - np.linalg.norm(slope)) < 1e-6


def test_the_fill_of_micro_batches_is_counted_as_by_hand():
    policy, batch = table_policy(V), jax.tree.map(jnp.asarray, make_rows())

    def fill(tokens):
        settings = PassSettings(max_tokens_per_micro_batch=tokens)
        return make_micro_batch_fill(policy, settings, lambda b: b.completion_mask)([batch, batch])

    # The last target of a row predicts nothing.
    needed = sum(np.flatnonzero(row)[-1] for row in np.asarray(batch.weights))
    assert fill(None) == needed / (B * T)
    parts = needed / fill(2 * T) / (2 * T)
    assert abs(parts - round(parts)) < 1e-9 and round(parts) < B / 2


def test_the_loss_of_a_model_is_that_of_transformers_with_all_labels_counted(tmp_path):
    golden = json.loads((GOLDEN / "sft.json").read_text())
    rows = SupervisedBatch(np.zeros((2, 13), np.int32), np.zeros((2, 13), np.float32))
    for i, (ids, prompt) in enumerate(zip(golden["ids"], golden["prompt"], strict=True)):
        rows.ids[i, : len(ids)] = ids
        rows.weights[i, prompt : len(ids)] = 1
    config, params = load_hf(make_hf_dir(tmp_path / "base", "qwen2"))
    settings = PassSettings(max_tokens_per_micro_batch=16)  # each row is a micro-batch
    sums, count = make_validation(make_policy(config), settings=settings)(params, rows)
    np.testing.assert_allclose(sums["loss"] / count, golden["loss"], atol=1e-5)


@pytest.mark.torch
def test_the_loss_is_the_cross_entropy_of_torch_over_the_number_of_labels():
    torch = pytest.importorskip("torch")
    policy, batch = table_policy(V), make_rows()
    params = policy.init(jax.random.key(0))
    logits = torch.tensor(np.asarray(params["table"])[batch.ids[:, :-1]])
    labels = torch.tensor(np.where(batch.weights[:, 1:] > 0, batch.ids[:, 1:], -100)).long()
    # As in transformers' `ForCausalLMLoss` with `num_items_in_batch`, which TRL gives.
    theirs = (
        torch.nn.functional.cross_entropy(
            logits.reshape(-1, V), labels.reshape(-1), ignore_index=-100, reduction="sum"
        )
        / (labels != -100).sum()
    )
    _, metrics = sgd(policy, params, batch)
    assert abs(float(theirs) - metrics["loss"]) < 1e-5


def table_loss(name, table, reference, batch):
    """The mean loss of pairs of a table policy in float64, from the sums of log-probs."""
    mask = batch.weights[:, 1:] > 0
    sums = [
        np.where(mask, table_log_probs(t, batch.ids)[0], 0).sum(-1).reshape(-1, 2)
        for t in (table, reference)
    ]
    n = mask.sum(-1).reshape(-1, 2)
    log_sigmoid = lambda x: -np.logaddexp(0.0, -x)  # noqa: E731
    ratio, per_token = (sums[0] - sums[1]) @ [1, -1], ((sums[0] - sums[1]) / n) @ [1, -1]
    return {
        "dpo": -log_sigmoid(0.5 * ratio),
        "dpo_norm": -log_sigmoid(2.0 * per_token),
        "ipo": (per_token - 1) ** 2,
        "simpo": -log_sigmoid(2.0 * (sums[0] / n) @ [1, -1] - 0.5),
    }[name].mean()


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_loss_on_pairs_is_that_of_finite_differences(name):
    policy, batch = table_policy(V), make_rows()
    params, reference = (policy.init(jax.random.key(seed)) for seed in (0, 1))
    batch = batch.replace(ref_log_probs=make_stats_pass(policy)(reference, batch)[0])
    table = np.asarray(params["table"], np.float64)
    slope, step = np.zeros((V, V)), 1e-5
    for place in np.ndindex(V, V):
        high, low = table.copy(), table.copy()
        high[place] += step
        low[place] -= step
        values = [table_loss(name, x, reference["table"], batch) for x in (high, low)]
        slope[place] = (values[0] - values[1]) / (2 * step)
    # A micro-batch of 20 tokens has only one of the rows of some pairs.
    for tokens in (None, 20):
        settings = dict(max_tokens_per_micro_batch=tokens)
        after, metrics = sgd(policy, params, batch, LOSSES[name], **settings)
        np.testing.assert_allclose(params["table"] - after["table"], slope, atol=2e-6)
        loss = table_loss(name, params["table"], reference["table"], batch)
        assert abs(metrics["loss"] - loss) < 1e-5
        margin = metrics["reward_chosen"] - metrics["reward_rejected"]
        assert abs(metrics["reward_margin"] - margin) < 1e-5
        assert 0 <= metrics["reward_accuracy"] <= 1


def test_swapped_pairs_have_the_opposite_gradient_at_the_reference():
    policy, batch = table_policy(V), make_rows()
    params = policy.init(jax.random.key(0))
    swap = np.arange(B).reshape(-1, 2)[:, ::-1].reshape(-1)
    moves = []
    for order in (np.arange(B), swap):
        rows = SupervisedBatch(batch.ids[order], batch.weights[order])
        rows = rows.replace(ref_log_probs=make_stats_pass(policy)(params, rows)[0])
        after, metrics = sgd(policy, params, rows, dpo())
        assert abs(metrics["loss"] - np.log(2)) < 1e-6
        moves.append(np.asarray(after["table"] - params["table"]))
    assert np.abs(moves[0]).max() > 1e-3
    np.testing.assert_allclose(moves[0], -moves[1], atol=1e-7)


# --- layout
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [pytest.param(None, id="sft"), pytest.param(dpo(0.5), id="dpo", marks=pytest.mark.slow)],
)
def test_packing_micro_batches_and_eight_devices_change_nothing(loss):
    policy, batch = tiny_policy(), make_rows(TINY.vocab_size)
    params = policy.init(jax.random.key(0))
    if loss is not None:
        reference = policy.init(jax.random.key(1))
        batch = batch.replace(ref_log_probs=make_stats_pass(policy)(reference, batch)[0])
    padded, expected = sgd(policy, params, batch, loss)
    found = {
        tokens: sgd(policy, params, batch, loss, max_tokens_per_micro_batch=tokens)
        for tokens in (T, 3 * T)
    }
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placement = Placement(mesh, TINY.num_kv_heads)
    found["mesh"] = sgd(
        tiny_policy(mesh=mesh),
        placement.put_params(jax.device_get(params)),
        placement.put_rows(jax.device_get(batch)),
        loss,
        max_tokens_per_micro_batch=2 * T,
        mesh=mesh,
        constrain=placement.constrain,
    )
    for after, metrics in found.values():
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(padded), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("loss", [None, dpo(0.5)], ids=["sft", "dpo"])
def test_validation_is_the_loss_before_an_update_and_adds_up_over_batches(loss):
    policy, batch = table_policy(V), make_rows()
    params, reference = (policy.init(jax.random.key(seed)) for seed in (0, 1))
    batch = batch.replace(ref_log_probs=make_stats_pass(policy)(reference, batch)[0])
    _, metrics = sgd(policy, params, batch, loss)
    validate = make_validation(policy, loss, PassSettings(max_tokens_per_micro_batch=20))
    zeros = SupervisedBatch(np.zeros((4, T), np.int32), np.zeros((4, T), np.float32))
    zeros = zeros.replace(ref_log_probs=jnp.zeros((4, T - 1)))
    parts = [jax.tree.map(lambda x: x[:4], batch), jax.tree.map(lambda x: x[4:], batch), zeros]
    sums = [jax.device_get(validate(params, part)) for part in parts]
    divisor = sum(count for _, count in sums)
    assert sums[2][1] == 0
    for name in sums[0][0]:
        mean = sum(part[name] for part, _ in sums) / divisor
        np.testing.assert_allclose(mean, metrics[name], rtol=1e-5, atol=1e-6)


def test_an_update_without_a_target_or_with_a_gradient_that_is_not_finite_changes_nothing():
    policy, batch = table_policy(V), make_rows()
    params = policy.init(jax.random.key(0))
    empty = dataclasses.replace(batch, weights=np.zeros_like(batch.weights))
    after, metrics = sgd(policy, params, empty)
    np.testing.assert_array_equal(after["table"], params["table"])
    assert metrics["loss"] == 0 and metrics["tokens"] == 0
    broken = {"table": params["table"].at[batch.ids[0, 0]].set(jnp.nan)}
    weights = np.zeros_like(batch.weights)
    weights[0, 1] = 1
    after, metrics = sgd(policy, broken, dataclasses.replace(batch, weights=weights))
    np.testing.assert_array_equal(after["table"], broken["table"])
    assert not np.isfinite(metrics["grad_norm"])
