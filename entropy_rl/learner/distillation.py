"""`Teacher`: the term of the loss that moves the policy toward another model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from entropy_rl.learner.fold import MicroBatch
from entropy_rl.learner.micro_batches import MicroBatches, PredictingHidden
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.lm_head.reverse_kl import top_k_reverse_kl
from entropy_rl.types import Params, Policy, TrainBatch

DivergenceFn = Callable[..., tuple[jax.Array, jax.Array]]


class Teacher(NamedTuple):
    """A frozen model toward which an update moves the policy π.

        Lₜ = … + coef · KL(π ‖ π_T) on the `top_k` most likely tokens under π and their rest

    as `top_k_reverse_kl`, at every token with a loss, whatever its advantage and token weight. The
    temperature is that of the pass, for both models.

    Attributes:
      policy: The teacher, with the same vocabulary.
      params: Its parameters.
      top_k: k.
      coef: Weight of the divergence in the loss.
    """

    policy: Policy
    params: Params
    top_k: int
    coef: float = 1.0


def make_divergence(
    teacher: Teacher, batch: TrainBatch, mask: jax.Array, settings: PassSettings
) -> DivergenceFn:
    """Build the divergence of a mini-batch, with one forward pass of the teacher.

    The teacher runs on the micro-batches of the update, so that its hidden states are never those
    of the whole mini-batch. Only the prompts, where groups share them, are computed before.

    Args:
      teacher: The teacher.
      batch: The mini-batch.
      mask: bool[B, N], its tokens with a loss.
      settings: Those of the update.

    Returns:
      (hidden states of the policy, its head, micro-batch, rows, mask bool[R, N], weights f32[R, N])
      -> (sum of the weighted divergences f32[], divergences f32[R, N]), of which the sum has a
      gradient.
    """
    passes = MicroBatches(teacher.policy, batch, mask, settings)
    prefix, head = passes.prefix(teacher.params), teacher.policy.head(teacher.params)

    def divergence(
        at: PredictingHidden,
        policy_head: Any,
        part: MicroBatch,
        rows: TrainBatch,
        mask: jax.Array,
        weights: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        of_teacher = passes.hidden(teacher.params, prefix, part, rows)
        total, kl = top_k_reverse_kl(
            at.hidden,
            policy_head,
            of_teacher.hidden,
            head,
            at.pack(weights),
            at.pack(mask),
            top_k=teacher.top_k,
            temperature=settings.temperature,
            mesh=settings.mesh,
        )
        return total, at.unpack(kl)

    return divergence
