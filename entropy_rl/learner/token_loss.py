"""The loss of a token in the gradient pass: local shaping, token weights, and loss.

Where scopes allow it, it is evaluated in the loop of the LM head (`fused_head_loss`), token by
token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.advantages import Transform, baseline_and_shaping, is_local
from entropy_rl.losses.loss import Loss, LossTerms
from entropy_rl.losses.token_weights import TokenWeights
from entropy_rl.types import TokenStats

# Vocabulary entries from which on a fused loss saves time. On 2 CPU cores an update of 2,048 tokens
# took 1.00 of the CPU-seconds with 512 entries, 0.95 with 2,048, 0.92 with 4,096, 0.87 with 32,768.
_MIN_FUSED_VOCAB = 4096


class TokenInputs(NamedTuple):
    """Inputs of the loss of a token besides its log-prob and entropy, [B, N] or [B, 1] each."""

    stats: TokenStats  # log_probs and entropy are None
    ref_log_probs: jax.Array | None
    aggregation_weights: jax.Array
    base: jax.Array  # advantage before shaping
    shaped: jax.Array | None  # advantage after shaping; None if shaping is local
    token_weights: TokenWeights | None  # None without token weights, or if they are local


class TokenTerms(NamedTuple):
    """Values of a token for the metrics, without a gradient."""

    base: jax.Array  # f32[B, N]
    shaped: jax.Array  # f32[B, N]
    loss: LossTerms


TokenLoss = Callable[[jax.Array, jax.Array, TokenInputs], tuple[jax.Array, TokenTerms]]


def make_token_loss(shaping: Transform, loss: Loss) -> TokenLoss:
    """Build `(log_probs f32[B, N], entropy f32[B, N], inputs) -> (loss f32[B, N], terms)`.

    Args:
      shaping: Applied to advantages that have not been shaped before the gradient pass.
      loss: The loss of a token.

    Returns:
      The function; the sum of its result over all tokens is the loss of the mini-batch.
    """

    def token_loss(
        log_probs: jax.Array, entropy: jax.Array, inputs: TokenInputs
    ) -> tuple[jax.Array, TokenTerms]:
        stats = inputs.stats.replace(log_probs=log_probs, entropy=entropy)
        shaped = inputs.shaped if inputs.shaped is not None else shaping(inputs.base, stats)
        base, shaped = (
            jax.lax.stop_gradient(jnp.broadcast_to(a, log_probs.shape))
            for a in (inputs.base, shaped)
        )
        per_token, terms = loss(
            shaped, stats, ref_log_probs=inputs.ref_log_probs, weights=inputs.token_weights
        )
        return inputs.aggregation_weights * per_token, TokenTerms(base, shaped, terms)

    return token_loss


def of_single_tokens(
    token_loss: TokenLoss,
) -> Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]:
    """The same function of packed tokens [C], each as a row of one token."""

    def of_tokens(
        log_prob: jax.Array, entropy: jax.Array, inputs: TokenInputs
    ) -> tuple[jax.Array, Any]:
        has_reward = inputs.stats.has_reward
        log_prob, entropy, inputs = jax.tree.map(lambda x: x[:, None], (log_prob, entropy, inputs))
        inputs = inputs._replace(stats=inputs.stats.replace(has_reward=has_reward))
        return jax.tree.map(lambda x: x[:, 0], token_loss(log_prob, entropy, inputs))

    return of_tokens


def pack_inputs(inputs: TokenInputs, pack: Callable[[jax.Array], jax.Array]) -> TokenInputs:
    """Pack all arrays of the inputs, those of rows as one value for each token."""
    stats = inputs.stats
    shape = stats.mask.shape
    inputs = inputs._replace(stats=stats.replace(has_reward=stats.has_reward[:, None]))
    return jax.tree.map(lambda x: pack(jnp.broadcast_to(x, shape)), inputs)


def needs_whole_batch(advantage: Transform, loss: Loss) -> bool:
    """Whether an update needs a forward pass over the mini-batch before its gradient pass."""
    weighting = loss.token_weighting
    return not is_local(*baseline_and_shaping(advantage)) or (
        weighting is not None and weighting.scope == "batch"
    )


def fuses_loss(advantage: Transform, loss: Loss, vocab_size: int) -> bool:
    """Whether the loss is computed in the loop of the LM head, by scopes and vocabulary size.

    A fused loss computes the logits once instead of twice. With a small vocabulary the head is a
    small part of an update.
    """
    return vocab_size >= _MIN_FUSED_VOCAB and not _reads_sequence(advantage, loss)


def check_fused_loss(advantage: Transform, loss: Loss) -> None:
    """Check that each token loss depends on its own token and on what is computed before.

    Raises:
      ValueError: It does not.
    """
    for what in _reads_sequence(advantage, loss):
        raise ValueError(
            f"PassSettings.fuse_loss: must be None or False with {what} of scope 'sequence', which "
            "reads other tokens of its sequence, got True"
        )


def _reads_sequence(advantage: Transform, loss: Loss) -> list[str]:
    """What reads other tokens of a sequence in the gradient pass."""
    scopes = {"a surrogate": loss.surrogate.scope}
    if not needs_whole_batch(advantage, loss):  # else the shaping is done before
        scopes["a transform"] = baseline_and_shaping(advantage)[1].scope
    if loss.token_weighting is not None:
        scopes["token weights"] = loss.token_weighting.scope
    return [what for what, scope in scopes.items() if scope == "sequence"]
