"""Groups of rows, judged or not, on which the family of advantages is tested."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.types import TokenStats

G, N = 4, 6

# One line for each prompt: its rewards, and after the bar which rows have a judgement.
GROUPS = """
    1 0 0 1 | 1 1 1 1
    1 1 0 0 | 1 1 1 0
    1 1 1 1 | 1 1 1 1
    0 0 0 0 | 1 1 1 1
    0 1 0 0 | 1 1 1 1
    1 0 1 1 | 0 1 0 1
    1 0 1 0 | 1 0 0 0
    0 1 1 0 | 0 0 0 0
    1 1 1 1 | 1 0 1 1
    1 1 0 1 | 1 1 1 1
"""


def make_problem(wrong: float = 0.0) -> tuple[jax.Array, TokenStats]:
    """Rewards 1 and `wrong`, rows of many lengths; NaN wherever nothing counts."""
    rng = np.random.default_rng(0)
    halves = [line.split("|") for line in GROUPS.strip().splitlines()]
    correct, has_reward = (
        np.array([half[i].split() for half in halves], int).reshape(-1) > 0 for i in (0, 1)
    )
    rows = len(has_reward)
    mask = (np.arange(N) < rng.integers(1, N + 1, (rows, 1))) & has_reward[:, None]

    def masked(x):
        return jnp.asarray(np.where(mask, x, np.nan), jnp.float32)

    rewards = np.where(has_reward, np.where(correct, 1.0, wrong), np.nan)
    stats = TokenStats(
        log_probs=masked(-rng.exponential(1, (rows, N))),
        old_log_probs=masked(-rng.exponential(1, (rows, N))),
        entropy=masked(rng.exponential(1, (rows, N))),
        old_entropy=masked(rng.exponential(1, (rows, N))),
        mask=jnp.asarray(mask),
        has_reward=jnp.asarray(has_reward),
    )
    return jnp.asarray(rewards, jnp.float32)[:, None], stats


def groups_of(stats):
    """For each group the numbers of its scored rows, and for a row the numbers of its tokens."""
    has_reward, mask = np.asarray(stats.has_reward), np.asarray(stats.mask)
    groups = [[i for i in range(g, g + G) if has_reward[i]] for g in range(0, len(has_reward), G)]
    return groups, [[t for t in range(N) if mask[i, t]] for i in range(len(has_reward))]


def float64(x):
    return np.asarray(x, np.float64)


def std(values, ddof=1):
    values = np.array(values)
    return (
        0.0
        if len(values) <= ddof
        else math.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - ddof))
    )


def on_tokens(advantages, stats):
    return np.where(
        np.asarray(stats.mask), np.asarray(jnp.broadcast_to(advantages, stats.mask.shape)), 0.0
    )


def rows_of(stats, rows):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[rows]), stats)
