"""Metrics of an update: sums over tokens, divided once at the end, and means over updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.losses.loss import LossTerms
from entropy_rl.masked import masked_sum


def metric_sums(
    part, mask, log_probs, entropy, base, shaped, terms: LossTerms
) -> dict[str, jax.Array]:
    """Sum over the tokens of a micro-batch; `metrics_of` divides the sums of all micro-batches."""
    to_sampler = jnp.where(mask, log_probs - part.sampler_log_probs, 0)
    sums = {
        "entropy": masked_sum(entropy, mask),
        "bonus": masked_sum(jnp.abs(shaped - base), mask),
        "advantage": masked_sum(jnp.abs(base), mask),
        "clip_low": masked_sum(terms.clipped.low, mask),
        "clip_high": masked_sum(terms.clipped.high, mask),
        # KL(sampler || current) by k3, which is never negative: a mean of zero cannot hide
        # anything.
        "kl_sampler": masked_sum(jnp.expm1(to_sampler) - to_sampler, mask),
        "logprob_diff": masked_sum(jnp.abs(part.old_log_probs - part.sampler_log_probs), mask),
    }
    if terms.clipped.dual is not None:
        sums["clip_dual"] = masked_sum(terms.clipped.dual, mask)
    if terms.kl is not None:
        sums["kl_reference"] = masked_sum(terms.kl, mask)
    if terms.weights is not None:
        sums["token_weight"] = masked_sum(terms.weights.weight, mask)
        sums["tokens_kept"] = masked_sum(terms.weights.weight != 0, mask)
        if terms.weights.kl_penalty is not None:
            sums["tokens_held"] = masked_sum(terms.weights.kl_penalty != 0, mask)
    return sums


def metrics_of(sums: dict, tokens: jax.Array, grad_norm: jax.Array) -> dict[str, jax.Array]:
    """Compute means per token, the ratio |ψ| / |A|, and the gradient norm before clipping."""
    sums = dict(sums)
    metrics = {"loss": sums.pop("loss"), "grad_norm": grad_norm, "tokens": tokens}
    metrics |= {name: value / jnp.maximum(tokens, 1) for name, value in sums.items()}
    return metrics | {"bonus_share": _ratio(metrics["bonus"], metrics["advantage"])}


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def mean_metrics(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Combine the metrics of several updates; means per token are means over all their tokens.

    Args:
      metrics: Of each update, on the host.

    Returns:
      name -> value. Loss, gradient norm and learning rate are means over the updates, `tokens` is a
      sum. Means over no token are NaN.
    """
    means = mean_over_updates(metrics)
    return means | {
        "bonus_share": means["bonus"] / means["advantage"] if means["advantage"] else 0.0
    }


def mean_over_updates(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Compute `mean_metrics` without metrics that are derived from means."""
    tokens = np.array([values["tokens"] for values in metrics], np.float64)
    means = {}
    for name in metrics[0]:
        values = np.array([row[name] for row in metrics], np.float64)
        if name == "tokens":
            means[name] = float(tokens.sum())
        elif name in ("loss", "grad_norm", "learning_rate"):
            means[name] = float(values.mean())
        else:  # 0 would be an entropy that was measured
            total = tokens.sum()
            means[name] = float((values * tokens).sum() / total) if total else float("nan")
    return means
