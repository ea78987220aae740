"""What a surrogate or a token_weighting reads: arrays of tokens that fit, and that hold nothing
off the mask.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.types import TokenStats

# exp(20) = 5e8 is far outside of any clip range, and float32 does not overflow.
MAX_LOG_RATIO = 20.0


def log_ratio(log_probs: jax.Array, other: jax.Array) -> jax.Array:
    """Compute log π(oₜ) - log π_other(oₜ), clamped to ±20; `other` is a constant.

    Beyond the clamp it has no gradient; a surrogate with a gradient of its own has one. veRL has
    the same clamp in its vanilla, SAPO, CISPO and DPPO losses; its GSPO has a bound of e^10 on the
    ratio of the sequence instead, and its GMPO, Clip-Cov and KL-Cov have none, nor has the code of
    CE-GPPO.
    """
    return jnp.clip(log_probs - jax.lax.stop_gradient(other), -MAX_LOG_RATIO, MAX_LOG_RATIO)


def rounded_up(fraction: float, count: jax.Array) -> jax.Array:
    """⌈fraction · count⌉, f32; a hair below it is rounded, so that float32 makes no 4 of 0.3 ·
    10.
    """
    return jnp.ceil(fraction * count.astype(jnp.float32) * (1 - 3e-7))


def token_inputs(
    who: str, advantages: jax.Array, stats: TokenStats
) -> tuple[jax.Array, TokenStats]:
    """Advantages and statistics as a term of the loss may read them.

    Off the mask everything is 0: inputs are cleaned, and not the result alone, as 0 times the
    gradient of a NaN is NaN. All but `log_probs` are constants.

    Args:
      who: The reader, for an error.
      advantages: f32[B, N] or f32[B, 1].
      stats: Statistics of the same tokens.

    Returns:
      (advantages f32[B, N], stats).

    Raises:
      ValueError: Shapes do not fit.
    """
    names = ("log_probs", "old_log_probs", "entropy", "old_entropy", "sampler_log_probs", "values")
    arrays = {name: getattr(stats, name) for name in names}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    one = (len(stats.mask), 1)
    of_tokens = {f"extras[{n!r}]": x for n, x in stats.extras.items() if x.shape != one}
    check_shapes(who, mask=stats.mask, advantages=advantages, **arrays, **of_tokens)

    def clean(x: jax.Array) -> jax.Array:
        return jnp.where(stats.mask, x, 0)

    constants = {
        name: jax.lax.stop_gradient(clean(x)) for name, x in arrays.items() if name != "log_probs"
    }
    extras = {name: jax.lax.stop_gradient(clean(x)) for name, x in stats.extras.items()}
    stats = stats.replace(log_probs=clean(stats.log_probs), extras=extras, **constants)
    return jax.lax.stop_gradient(clean(advantages)), stats


def check_shapes(who: str, **arrays: jax.Array) -> None:
    """Raise unless the first array is [B, N] and the others have its shape; `advantages` may be
    [B, 1].
    """
    (first, reference), *others = arrays.items()
    if reference.ndim != 2:
        raise ValueError(f"{who}: {first} must have shape [B, N], got {reference.shape}")
    for name, array in others:
        allowed = [reference.shape]
        if name == "advantages" and reference.shape[1] != 1:
            allowed.append((reference.shape[0], 1))
        if array.shape not in allowed:
            raise ValueError(
                f"{who}: {name} must have shape {' or '.join(map(str, allowed))}, that of "
                f"{first}, got {array.shape}"
            )


def require_sampler(who: str, stats: TokenStats) -> jax.Array:
    """The log-probs as recorded while sampling.

    Raises:
      ValueError: If the statistics have none.
    """
    if stats.sampler_log_probs is None:
        raise ValueError(
            f"{who}: sampler_log_probs must be the log-probs as recorded while sampling, got None"
        )
    return stats.sampler_log_probs


def require_coefficient(who: str, stats: TokenStats, name: str) -> jax.Array:
    """A coefficient of the controller of the loss, f32[1, 1] or f32[B, N].

    Raises:
      ValueError: The statistics do not have this coefficient.
    """
    if name not in (stats.coefficients or {}):
        raise ValueError(
            f"{who}: needs the coefficient {name!r} of the controller of the loss, which "
            "`update_controller` computes"
        )
    return stats.coefficients[name]
