"""The optimizer that a config describes, and its learning rate."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from entropy_rl.config.optimizer import OptimizerConfig
from entropy_rl.config.train import CriticConfig
from entropy_rl.types import Params

# The root mean square of Muon's updates, that of AdamW (arXiv 2502.16982, Eq. 4).
_MUON_RMS = 0.2
_MUON_MATRIX = re.compile(r"(^|/)(q|k|v|o|gate|up|down)_proj/(kernel|lora_a|lora_b)$")


class Optimizer(NamedTuple):
    """An `optax.GradientTransformation` that knows its learning rate.

    Attributes:
      init: As in optax.
      update: As in optax.
      learning_rate: (the optimizer's state) -> f32[], the rate of the next update.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Params, Any]]
    learning_rate: Callable[[Any], jax.Array]


def make_optimizer(config: OptimizerConfig, total_updates: int | None = None) -> Optimizer:
    """Build an optimizer behind a clip by global norm.

    Args:
      config: The `optimizer` section. The learning rate rises linearly over `warmup_updates`.
      total_updates: Updates of the run, at the end of which a schedule ends that has no
        `decay_updates`.

    Returns:
      The optimizer; its state is part of the training state.

    Raises:
      ValueError: A schedule has no end.
    """
    rate = learning_rate_schedule(config, total_updates)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    inner = optax.chain(clip, _MAKE[config.name](config, rate))
    return Optimizer(inner.init, inner.update, lambda state: _next_rate(rate, state))


def learning_rate_schedule(
    config: OptimizerConfig, total_updates: int | None = None
) -> optax.Schedule:
    """Build the function from the number of updates before to the rate of the next.

    With n warm-up updates, a decay to the fraction α at update T, and u = (i - n) / (T - n) in
    [0, 1], update i has the rate

        i/n · rate                                   i <= n
        rate                                         constant
        rate · (1 - (1 - α) u)                       linear
        rate · (α + (1 - α) (1 + cos(π u)) / 2)      cosine

    where n is 1 without a warm-up. Arguments as in `make_optimizer`.
    """
    # The first update already moves: 1/n, 2/n, ... n/n of the rate. No warm-up is one of a single
    # update.
    warmup_updates = max(1, config.warmup_updates)
    peak = config.learning_rate
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        last = total_updates if config.decay_updates is None else config.decay_updates
        if last is None:
            raise ValueError(
                "optimizer.decay_updates: must be given where the number of updates is not known, "
                "got None"
            )
        steps = max(1, last - warmup_updates)
        if config.schedule == "cosine":
            after = optax.cosine_decay_schedule(peak, steps, alpha=config.final_rate)
        else:
            after = optax.linear_schedule(peak, config.final_rate * peak, steps)
    if warmup_updates == 1:
        return after
    warmup = optax.linear_schedule(peak / warmup_updates, peak, warmup_updates - 1)
    return optax.join_schedules([warmup, after], [warmup_updates - 1])


def _next_rate(rate: optax.Schedule, state: Any) -> jax.Array:
    """Return the rate of the next update; all counts of a state are equal."""
    counts = optax.tree_utils.tree_get_all_with_path(state, "count")
    return jnp.asarray(rate(counts[0][1]), jnp.float32)


# --------------------------------------------------------------------------------------------------
# Optimizers by name
# --------------------------------------------------------------------------------------------------


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mu_dtype=config.first_moment_dtype,
    )


def _adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    # Not optax.adafactor: its weight decay is not multiplied by the learning rate. The rate is that
    # of an update, not relative to the size of a parameter.
    return optax.chain(
        optax.scale_by_factored_rms(),
        _clip_by_rms(1.0),
        *_decay_and_rate(config, rate),
    )


def _clip_by_rms(threshold: float) -> optax.GradientTransformation:
    """Scale the update u of each matrix or vector to a root mean square of at most d.

        u / max(1, RMS(u) / d)

    As `optax.clip_by_block_rms`, but each layer of weights that are stacked over layers is a matrix
    of its own, as in `scale_by_factored_rms`, which factors the two largest axes. Source: Alg. 4 of
    arXiv 1804.04235.
    """

    def clip(path: tuple, u: jax.Array) -> jax.Array:
        stacked = jax.tree_util.keystr(path, simple=True, separator="/").startswith("layers/")
        axes = range(1 if stacked else 0, u.ndim)
        rms = jnp.sqrt(jnp.mean(jnp.square(u), axis=tuple(axes), keepdims=True))
        return u / jnp.maximum(1.0, rms / threshold)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(clip, updates))


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return contrib.muon(
        rate,
        beta=config.b1,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mu_dtype=config.first_moment_dtype,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=_muon_axes,
        consistent_rms=_MUON_RMS,
    )


def _muon_axes(params: Params) -> Any:
    """Return the axes of the matrices that Muon orthogonalizes; None for all other parameters.

    Weights of layers are stacked in front of the two axes of a matrix. Embedding, LM head and value
    head are left to AdamW, as are norms and biases.
    """

    def axes(path: tuple, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_matrix = _MUON_MATRIX.search(name) and leaf.ndim >= 2
        return contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_matrix else None

    return jax.tree_util.tree_map_with_path(axes, params)


def _lion(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(
        rate,
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mu_dtype=config.first_moment_dtype,
    )


def _sgd(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    momentum = optax.trace(config.b1, accumulator_dtype=config.first_moment_dtype)
    return optax.chain(momentum, *_decay_and_rate(config, rate))


def _decay_and_rate(
    config: OptimizerConfig, rate: optax.Schedule
) -> tuple[optax.GradientTransformation, ...]:
    return optax.add_decayed_weights(config.weight_decay), optax.scale_by_learning_rate(rate)


_MAKE = {"adamw": _adamw, "adafactor": _adafactor, "muon": _muon, "lion": _lion, "sgd": _sgd}


def critic_optimizer(
    config: OptimizerConfig, critic: CriticConfig, total_updates: int | None = None
) -> Optimizer:
    """Build the critic's optimizer: the policy's with its own learning rate, warm-up and clip."""
    names = ("learning_rate", "warmup_updates", "max_grad_norm")
    own = {name: getattr(critic, name) for name in names}
    return make_optimizer(dataclasses.replace(config, **own), total_updates)
