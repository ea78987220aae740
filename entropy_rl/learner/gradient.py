"""`make_gradient`: gradient of the policy-gradient loss of a mini-batch.

The result does not depend on micro-batches: token counts are those of the whole mini-batch,
baselines those of the mini-batch or of the rollout. They are computed first, as is an advantage
that reads the whole mini-batch; sums over the micro-batches are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_rl.advantages import Transform, baseline_and_shaping, chain
from entropy_rl.advantages.transform import AdvantageFn
from entropy_rl.learner.batch import loss_mask, token_stats
from entropy_rl.learner.distillation import Teacher, make_divergence
from entropy_rl.learner.fold import MicroBatch
from entropy_rl.learner.metrics import metric_sums, metrics_of
from entropy_rl.learner.micro_batches import MicroBatches
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.rollout_advantages import make_base_advantages
from entropy_rl.learner.stats_pass import StatsFn, make_stats_pass
from entropy_rl.learner.token_loss import (
    TokenInputs,
    check_fused_loss,
    fuses_loss,
    make_token_loss,
    needs_whole_batch,
    of_single_tokens,
    pack_inputs,
)
from entropy_rl.lm_head.fused_loss import fused_head_loss
from entropy_rl.lm_head.log_probs import log_prob_and_entropy
from entropy_rl.losses.aggregation import counts
from entropy_rl.losses.controller import Coefficients
from entropy_rl.losses.loss import Loss
from entropy_rl.losses.token_weights import TokenWeights
from entropy_rl.masked import masked_sum
from entropy_rl.types import Params, Policy, TrainBatch

GradientFn = Callable[..., tuple[Params, dict[str, jax.Array]]]

# (advantage before shaping, after shaping or None, token weights or None)
_Advantages = tuple[jax.Array, jax.Array | None, TokenWeights | None]


def make_gradient(
    policy: Policy,
    advantage: Transform | AdvantageFn,
    loss: Loss = Loss(),
    settings: PassSettings = PassSettings(),
    teacher: Teacher | None = None,
) -> GradientFn:
    """Build the gradient of the loss of a mini-batch.

    The entropy that shapes the advantage is that of the policy that is being updated.

    Args:
      policy: The model.
      advantage: From `rewards[:, None]` to f32[B, 1] or f32[B, N]. A chain of baselines that read
        recorded statistics, followed by transforms of scope "token" or "sequence", is evaluated in
        the gradient pass. Any other chain, and token weights of scope "batch", cost a forward pass
        before it.
      loss: The loss.
      settings: Temperature and micro-batches.
      teacher: Adds the divergence to a teacher to the loss, and the metric `kl_teacher`.

    Returns:
      A pure function `(params, batch: TrainBatch, coefficients=None) -> (gradient, metrics: dict of
      f32[])`, to be jitted. A loss with a controller requires the coefficients of
      `update_controller`, which are metrics as well.

    Raises:
      ValueError: `settings.fuse_loss` is True and a scope does not allow it.
    """
    advantage = chain(advantage)
    if settings.fuse_loss:
        check_fused_loss(advantage, loss)
    advantages_of = _make_advantages(advantage, loss, make_stats_pass(policy, settings))
    token_loss = make_token_loss(baseline_and_shaping(advantage)[1], loss)
    in_head = dict(temperature=settings.temperature, mesh=settings.mesh)

    def gradient(
        params: Params, batch: TrainBatch, coefficients: Coefficients | None = None
    ) -> tuple[Params, dict[str, jax.Array]]:
        coefficients = coefficients or {}
        of_tokens = {name: jnp.reshape(x, (1, 1)) for name, x in coefficients.items()}
        mask = loss_mask(batch)
        tokens, sequences = counts(mask)
        fuses = settings.fuse_loss
        if fuses is None:
            vocab_size = jax.eval_shape(policy.head, params).shape[0]
            fuses = fuses_loss(advantage, loss, vocab_size)
        micro_batches = MicroBatches(policy, batch, mask, settings)
        if teacher is not None:
            divergence = make_divergence(teacher, batch, mask, settings)

        def part_loss(params: Params, prefix: Any, part: MicroBatch) -> tuple[jax.Array, Any]:
            rows, (base, shaped, token_weights) = part.arrays
            mask = loss_mask(rows)
            weights = loss.aggregation_weights(mask, tokens=tokens, sequences=sequences)
            inputs = TokenInputs(
                # Rows of a group may be in different micro-batches.
                stats=token_stats(rows).replace(
                    mask=mask, coefficients=of_tokens, greedy_rewards=None
                ),
                ref_log_probs=rows.ref_log_probs,
                aggregation_weights=weights,
                base=base,
                shaped=shaped,
                token_weights=token_weights,
            )
            at = micro_batches.hidden(params, prefix, part, rows)
            of_head = at.hidden, policy.head(params), at.pack(rows.completion_ids), at.pack(mask)
            if fuses:
                inputs = pack_inputs(inputs, at.pack)
                total, *values = fused_head_loss(
                    *of_head, of_single_tokens(token_loss), inputs, **in_head
                )
                log_probs, entropy, terms = jax.tree.map(at.unpack, tuple(values))
            else:
                values = log_prob_and_entropy(*of_head, **in_head)
                log_probs, entropy = (at.unpack(value) for value in values)
                per_token, terms = token_loss(log_probs, entropy, inputs)
                total = jnp.sum(per_token)
            sums = metric_sums(rows, mask, log_probs, entropy, *terms)
            if teacher is not None:
                kl_sum, kl = divergence(at, of_head[1], part, rows, mask, weights)
                total += teacher.coef * kl_sum
                sums["kl_teacher"] = masked_sum(kl, mask)
            return total, {"loss": total} | sums

        advantages = advantages_of(params, batch, of_tokens)
        arrays = batch.replace(rollout_advantages=None), advantages
        grads, sums = micro_batches.gradient(part_loss, params, arrays)
        return grads, metrics_of(sums, tokens, optax.tree.norm(grads)) | coefficients

    return gradient


def _make_advantages(
    advantage: Transform, loss: Loss, stats_pass: StatsFn
) -> Callable[[Params, TrainBatch, Coefficients], _Advantages]:
    """Build what is computed of advantages and token weights before the gradient pass."""
    base_advantages = make_base_advantages(advantage)
    _, shaping = baseline_and_shaping(advantage)
    weighting = loss.token_weighting

    def advantages(params: Params, batch: TrainBatch, coefficients: Coefficients) -> _Advantages:
        if not needs_whole_batch(advantage, loss):
            return base_advantages(batch, token_stats(batch)), None, None
        stats = token_stats(batch, *stats_pass(params, batch)).replace(coefficients=coefficients)
        base = base_advantages(batch, stats)
        stats = stats.replace(mask=loss_mask(batch))
        shaped = shaping(base, stats)
        of_batch = weighting is not None and weighting.scope == "batch"
        return base, shaped, weighting(shaped, stats) if of_batch else None

    return advantages
