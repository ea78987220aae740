"""An update with the loss in the loop of the head is the update without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from policies import table_policy, tiny_policy
from update_problem import BATCH_SCOPE, EVERY_TERM, SHAPED, G, N, P, V, make_data

from entropy_rl.advantages import Transform, chain, group_normalize, shape_by_entropy
from entropy_rl.config.train import LossConfig
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.token_loss import fuses_loss
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.losses.build import build_loss


def update_once(
    policy, data, params, *, fused_loss, advantage=SHAPED, loss=LossConfig(), tokens=None
):
    optimizer = optax.sgd(0.1)
    update = make_update(
        policy,
        advantage,
        optimizer,
        build_loss(loss, N),
        settings=PassSettings(
            temperature=0.7, max_tokens_per_micro_batch=tokens, fuse_loss=fused_loss
        ),
    )
    state, metrics = update(init_state(params, optimizer), data)
    return state.params, metrics


def selecting(surrogate, *weightings):
    return LossConfig(
        surrogate={"name": surrogate}, token_weights=[{"name": name} for name in weightings]
    )


CASES = [
    (table_policy(V), SHAPED, EVERY_TERM, "token-mean", None),
    (table_policy(V), SHAPED, EVERY_TERM, "sequence-mean", 9),
    (table_policy(V), SHAPED, EVERY_TERM, "constant", 30),
    (table_policy(V), group_normalize(G), LossConfig(), "token-mean", 30),
    (
        table_policy(V),
        BATCH_SCOPE,
        EVERY_TERM,
        "token-mean",
        30,
    ),  # finished before the gradient pass begins
    pytest.param(tiny_policy(), SHAPED, LossConfig(), "token-mean", 30, marks=pytest.mark.slow),
    (table_policy(V), SHAPED, selecting("cispo", "forking_tokens", "token_tis"), "token-mean", 30),
    (table_policy(V), SHAPED, selecting("unclipped", "kl_cov"), "token-mean", None),
    (table_policy(V), group_normalize(G), selecting("sapo", "icepop"), "sequence-mean", 30),
]


@pytest.mark.parametrize("policy, advantage, loss, aggregation, tokens", CASES)
def test_metrics_and_parameters_are_those_of_an_update_that_is_not_fused(
    key, policy, advantage, loss, aggregation, tokens
):
    data, params = make_data(has_reward=np.arange(P * G) != 6), policy.init(key)
    data = data.replace(ref_log_probs=data.old_log_probs - 0.1, old_entropy=-data.old_log_probs)
    loss = dataclasses.replace(loss, aggregation=aggregation)
    plain, fused = (
        update_once(
            policy, data, params, fused_loss=f, advantage=advantage, loss=loss, tokens=tokens
        )
        for f in (False, True)
    )
    assert float(plain[1]["grad_norm"]) > 0 and plain[1].keys() == fused[1].keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), fused, plain)


def test_a_row_without_judgement_changes_nothing_in_a_fused_update(key):
    policy, has_reward = table_policy(V), np.arange(P * G) != 9
    data, params = make_data(has_reward=has_reward), policy.init(key)
    other = data.replace(
        rewards=data.rewards.at[9].set(jnp.nan),
        old_log_probs=data.old_log_probs.at[9].set(-jnp.inf),
    )
    one, two = (update_once(policy, d, params, fused_loss=True) for d in (data, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def above_the_row(advantages, stats):
    """More credit where the entropy is above the mean of the row."""
    mean = jnp.where(stats.mask, stats.entropy, 0).sum(-1, keepdims=True) / stats.mask.sum(
        -1, keepdims=True
    )
    return advantages + 0.1 * (stats.entropy > mean)


def test_a_shaping_that_reads_its_row_is_refused_and_is_evaluated_as_the_gradient_is_without(key):
    advantage = chain(group_normalize(G), Transform(above_the_row, "sequence"), shape_by_entropy())
    with pytest.raises(
        ValueError,
        match=r"fuse_loss: must be None or False with a transform of scope 'sequence'",
    ):
        make_update(
            table_policy(V), advantage, optax.sgd(0.1), settings=PassSettings(fuse_loss=True)
        )
    policy, data = table_policy(V), make_data()
    params = policy.init(key)
    of_batch = chain(
        group_normalize(G), Transform(above_the_row, "batch", needs_policy=True), shape_by_entropy()
    )
    row, batch, fused = (
        update_once(policy, data, params, fused_loss=f, advantage=a, tokens=30)
        for f, a in ((False, advantage), (False, of_batch), (True, of_batch))
    )
    # "batch" counts the whole change as baseline, so the metrics of the shaping differ.
    for other in (batch, fused):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), row[0], other[0])


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (selecting("gspo"), "a surrogate"),
        (selecting("gmpo", "forking_tokens"), "a surrogate"),
        (selecting("sapo", "erc", "sequence_tis"), "token weights"),
    ],
)
def test_a_loss_that_reads_other_tokens_is_not_fused_and_refused_if_asked_for(loss, what):
    loss = build_loss(loss)
    assert not fuses_loss(SHAPED, loss, vocab_size=150_000)
    message = rf"^PassSettings\.fuse_loss: must be None or False with {what} of scope 'sequence'"
    with pytest.raises(ValueError, match=message):
        make_update(
            table_policy(V), SHAPED, optax.sgd(0.1), loss, settings=PassSettings(fuse_loss=True)
        )


def test_a_loss_of_single_tokens_is_fused_from_some_size_of_the_vocabulary_on():
    loss = build_loss(EVERY_TERM)
    assert fuses_loss(SHAPED, loss, vocab_size=150_000)
    assert not fuses_loss(SHAPED, loss, vocab_size=64)


def test_the_fused_update_computes_the_logits_once():
    def products_with_the_vocabulary(fused_loss):
        policy, optimizer = tiny_policy(), optax.sgd(0.1)
        update = make_update(
            policy, SHAPED, optimizer, settings=PassSettings(temperature=0.7, fuse_loss=fused_loss)
        )
        state = init_state(policy.init(jax.random.key(0)), optimizer)
        lines = str(jax.make_jaxpr(update)(state, make_data())).splitlines()
        # Logits [C, 37], from C x 32 and 37 x 32; its gradients have other shapes.
        return sum("dot_general[" in line and ",37]" in line.split("=")[0] for line in lines)

    assert (products_with_the_vocabulary(True), products_with_the_vocabulary(False)) == (1, 2)
