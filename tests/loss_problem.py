"""Tokens of rows, judged or not, on which surrogates and token weightings are tested."""

import jax.numpy as jnp
import numpy as np

from entropy_rl.types import TokenStats

B, N = 12, 7


def make_tokens(seed: int = 0, spread: float = 0.6) -> tuple[jnp.ndarray, TokenStats]:
    """Advantages of both signs and zero, ratios far from 1, rows of many lengths, one without a
    token.

    NaN wherever nothing counts.
    """
    rng = np.random.default_rng(seed)
    mask = np.arange(N) < rng.integers(1, N + 1, (B, 1))
    mask[3] = False

    def masked(x):
        return jnp.asarray(np.where(mask, x, np.nan), jnp.float32)

    log_probs = -rng.exponential(1, (B, N))
    advantages = rng.normal(0, 1.5, (B, N))
    advantages[:, 2] = 0
    entropy = rng.exponential(1, (B, N))
    stats = TokenStats(
        log_probs=masked(log_probs),
        old_log_probs=masked(np.minimum(log_probs + rng.normal(0, spread, (B, N)), 0)),
        entropy=masked(entropy),
        old_entropy=masked(entropy * rng.uniform(0.9, 1.1, (B, N))),
        mask=jnp.asarray(mask),
        has_reward=jnp.asarray(mask.any(1)),
        sampler_log_probs=masked(np.minimum(log_probs + rng.normal(0, spread, (B, N)), 0)),
    )
    return masked(advantages), stats


def arrays64(stats):
    """The arrays of the statistics by name, in float64."""
    return {
        name: np.asarray(getattr(stats, name), np.float64)
        for name in ("log_probs", "old_log_probs", "entropy", "old_entropy", "sampler_log_probs")
    }


def tokens_of(stats):
    """The places (row, token) that count, in order."""
    return [tuple(place) for place in np.argwhere(np.asarray(stats.mask))]
