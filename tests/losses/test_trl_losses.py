"""Surrogates beside the loss of TRL, run on the same log-probs: value and gradient."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_problem import make_tokens

from entropy_rl.losses import cispo, forking_tokens, gspo, ppo_clip, sapo
from entropy_rl.losses.aggregation import aggregation_weights, counts

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")


def problem():
    """One advantage for each row, and no row without a token, which TRL would average over."""
    advantages, stats = jax.tree.map(
        lambda x: jnp.delete(jnp.nan_to_num(x), 3, axis=0), make_tokens()
    )
    return advantages[:, :1], stats.replace(
        mask=stats.mask.astype(bool), has_reward=stats.has_reward.astype(bool)
    )


def to_torch(x):
    return torch.tensor(np.asarray(x), dtype=torch.float64)


def trl_loss(advantages, stats, **settings):
    """Loss and gradient by `GRPOTrainer._compute_loss`, of which the model alone is not TRL's."""
    log_probs = to_torch(stats.log_probs).requires_grad_()
    arguments = {"delta": None, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    defaults = {"loss_type": "dapo", "importance_sampling_level": "token"}
    defaults |= {"epsilon_low": 0.2, "epsilon_high": 0.28}
    same = lambda x, **_: x  # noqa: E731
    trainer = types.SimpleNamespace(
        **(defaults | {k: v for k, v in settings.items() if k not in arguments}),
        args=types.SimpleNamespace(
            **(arguments | {k: v for k, v in settings.items() if k in arguments})
        ),
        beta=0.0,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        model=types.SimpleNamespace(training=False),
        accelerator=types.SimpleNamespace(num_processes=1, gather=same, reduce=same),
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            log_probs,
            to_torch(stats.entropy),
            None,
        ),
    )
    mask = to_torch(stats.mask)
    inputs = {
        **{f"{part}_{name}": mask for part in ("prompt", "completion") for name in ("ids", "mask")},
        "advantages": to_torch(advantages[:, 0]),
        "old_per_token_logps": to_torch(stats.old_log_probs),
        "num_items_in_batch": mask.sum(),
    }
    loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.item(), log_probs.grad.numpy()


@pytest.mark.parametrize(
    ("surrogate", "aggregation", "settings"),
    [
        (ppo_clip(), "token-mean", {}),
        (ppo_clip(), "sequence-mean", {"loss_type": "grpo"}),
        (
            gspo(0.05, 0.1),
            "sequence-mean",
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon_low": 0.05,
                "epsilon_high": 0.1,
            },
        ),
        (cispo(1.5), "token-mean", {"loss_type": "cispo", "epsilon_high": 1.5}),
        (sapo(), "sequence-mean", {"loss_type": "sapo"}),
    ],
    ids=["dapo", "grpo", "gspo", "cispo", "sapo"],
)
def test_value_and_gradient_are_those_of_trl(surrogate, aggregation, settings):
    advantages, stats = problem()
    tokens, sequences = counts(stats.mask)
    weights = aggregation_weights(stats.mask, aggregation, tokens=tokens, sequences=sequences)

    def loss(log_probs):
        return jnp.sum(weights * surrogate(advantages, stats.replace(log_probs=log_probs))[0])

    value, gradient = jax.value_and_grad(loss)(stats.log_probs)
    expected, slope = trl_loss(advantages, stats, **settings)
    assert np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)


def test_the_forking_tokens_are_those_of_trl():
    advantages, stats = problem()
    same = types.SimpleNamespace(
        device="cpu", pad_across_processes=lambda x, **_: x, gather=lambda x: x, num_processes=1
    )
    kept = trl.GRPOTrainer.get_high_entropy_mask(
        types.SimpleNamespace(accelerator=same), to_torch(stats.entropy), to_torch(stats.mask), 0.8
    )
    weight = forking_tokens(0.2)(advantages, stats).weight
    np.testing.assert_array_equal(np.asarray(weight) > 0, kept.numpy().astype(bool))
