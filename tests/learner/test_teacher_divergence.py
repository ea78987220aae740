"""An update with the divergence to a teacher in its loss."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from policies import TINY, mesh_of, table_policy, tiny_policy
from update_problem import SHAPED, G, N, P, V, make_data

from entropy_rl.advantages import build_advantage
from entropy_rl.learner import PassSettings, Teacher, init_state, make_gradient, make_update
from entropy_rl.losses import Loss
from entropy_rl.models.decoder import make_policy
from entropy_rl.types import DATA_AXES

PLAIN = Loss()
NOTHING = build_advantage(None, G)
# Wider and deeper than the student, with the same vocabulary.
WIDE = dataclasses.replace(TINY, hidden_size=40, num_layers=3, tie_embeddings=True)
DATA = make_data(has_reward=np.arange(P * G) != 6)


def table_teacher(**settings):
    teacher = table_policy(V)
    return Teacher(teacher, teacher.init(jax.random.key(7)), **settings)


def gradient(policy, params, loss=PLAIN, teacher=None, advantage=NOTHING, data=DATA, **settings):
    of = make_gradient(policy, advantage, loss, PassSettings(**settings), teacher)
    return jax.jit(of)(params, data)


def assert_close(one, other, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other
    )


def whole_logits(params, teacher, data, mask, top_k, temperature):
    """L f32[B, N] of tables, from the logits of the whole mini-batch."""
    columns = data.prompt_length[:, None] - 1 + jnp.arange(N)[None]
    before = jnp.take_along_axis(data.ids, columns, axis=1)
    log_p, log_q = (jax.nn.log_softmax(x["table"][before] / temperature) for x in (params, teacher))
    rank = jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(log_p)))
    inside = rank < top_k
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    kl = jnp.where(inside, p * (log_p - log_q), 0).sum(-1)
    if top_k < V:
        p_tail, q_tail = (jnp.where(inside, 0, x).sum(-1) for x in (p, q))
        kl += p_tail * jnp.log(p_tail / q_tail)
    return jnp.where(mask, kl, 0)


@pytest.mark.parametrize(
    ("top_k", "aggregation", "tokens"),
    [(3, "token-mean", None), (3, "sequence-mean", 30), (V, "token-mean", 9), (1, "constant", 30)],
)
def test_the_gradient_is_that_of_whole_logits(key, top_k, aggregation, tokens):
    policy, teacher = table_policy(V), table_teacher(top_k=top_k, coef=2.0)
    params, loss = policy.init(key), Loss(aggregation=aggregation, max_tokens=N)
    mask = DATA.completion_mask & DATA.has_reward[:, None]
    weights = loss.aggregation_weights(mask, tokens=mask.sum(), sequences=mask.any(-1).sum())

    def naive(params):
        kl = whole_logits(params, teacher.params, DATA, mask, top_k, 0.7)
        return 2 * (weights * kl).sum(), kl.sum() / mask.sum()

    (value, mean), expected = jax.value_and_grad(naive, has_aux=True)(params)
    grads, metrics = gradient(
        policy, params, loss, teacher, temperature=0.7, max_tokens_per_micro_batch=tokens
    )
    assert np.abs(expected["table"]).max() > 0.01
    assert_close(grads, expected)
    assert_close((metrics["loss"], metrics["kl_teacher"]), (value, mean))
    assert metrics["advantage"] == metrics["bonus"] == 0


@pytest.mark.parametrize("fused", [False, True])
def test_it_is_added_to_the_loss_of_the_advantages(key, fused):
    policy, teacher = table_policy(V), table_teacher(top_k=3, coef=0.5)
    params, loss = policy.init(key), Loss(entropy_coef=0.1)
    run = lambda *x: gradient(policy, params, *x, fuse_loss=fused)  # noqa: E731
    both, metrics = run(loss, teacher, SHAPED)
    plain, without = run(loss, None, SHAPED)
    alone, _ = run(Loss(), teacher)
    assert_close(both, jax.tree.map(jnp.add, plain, alone))
    assert metrics.keys() - without.keys() == {"kl_teacher"}


def test_a_student_that_equals_its_teacher_does_not_move(key):
    policy = table_policy(V)
    params = policy.init(key)
    _, metrics = gradient(policy, params, teacher=Teacher(policy, params, top_k=4))
    assert abs(metrics["kl_teacher"]) < 1e-6 and metrics["grad_norm"] < 1e-6


@pytest.fixture(scope="module")
def models():
    """A tiny student and a wider teacher, and the gradient without micro-batches."""
    policy, wide = tiny_policy(), make_policy(WIDE)
    params = policy.init(jax.random.key(0))
    teacher = Teacher(wide, jax.jit(wide.init)(jax.random.key(1)), top_k=5)
    return policy, params, teacher, gradient(policy, params, teacher=teacher)


@pytest.mark.parametrize("group_size", [None, G])
def test_micro_batches_and_shared_prompts_change_nothing(models, group_size):
    policy, params, teacher, expected = models
    found = gradient(
        policy, params, teacher=teacher, max_tokens_per_micro_batch=30, group_size=group_size
    )
    assert expected[1]["kl_teacher"] > 0.1
    assert_close(found, expected)


def test_two_devices_give_what_one_device_gives(models):
    _, params, teacher, expected = models
    mesh = mesh_of(1, 2, 1)
    rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((DATA_AXES,), ()))
    on_mesh = Teacher(
        make_policy(WIDE, mesh=mesh), jax.device_put(teacher.params, whole), teacher.top_k
    )
    found = gradient(
        tiny_policy(mesh=mesh),
        jax.device_put(params, whole),
        teacher=on_mesh,
        data=jax.device_put(DATA, rows),
        max_tokens_per_micro_batch=30,
        mesh=mesh,
    )
    assert_close(found, expected)


def test_no_array_holds_the_logits_of_a_mini_batch(models):
    policy, params, teacher, _ = models
    settings = PassSettings(max_tokens_per_micro_batch=9)
    of = make_gradient(policy, NOTHING, Loss(), settings, teacher)
    shapes = {
        tuple(map(int, dims.split(",")))
        for dims in re.findall(r"\[([\d,]+)\]", str(jax.make_jaxpr(of)(params, DATA)))
    }
    logits = {
        shape for shape in shapes if TINY.vocab_size in shape and TINY.hidden_size not in shape
    }
    logits -= {(TINY.vocab_size, WIDE.hidden_size)}
    tokens = P * G * N
    assert (9, TINY.vocab_size) in logits
    assert max(map(np.prod, logits)) < tokens * TINY.vocab_size / 4


def test_updates_lower_the_divergence_on_completions_that_were_held_out(key):
    policy, optimizer, teacher = table_policy(V), optax.adam(0.1), table_teacher(top_k=6)
    update = make_update(policy, NOTHING, optimizer, teacher=teacher)
    state, held = init_state(policy.init(key), optimizer), make_data(seed=99)

    def divergence(params):
        kl = whole_logits(params, teacher.params, held, held.completion_mask, V, 1.0)
        return float(kl.sum() / held.completion_mask.sum())

    found = [divergence(state.params)]
    for seed in range(40):
        state, _ = update(state, make_data(seed))
        found.append(divergence(state.params))
    assert found[-1] < found[20] < found[0] / 2
