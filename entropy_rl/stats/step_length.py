"""ASLEC: log-prob as a criterion for reasoning data, without its confounding by step length.

First tokens of a step are improbable, and a text of long steps has few of them. Its mean log-prob
is therefore high whatever its quality. Source: arXiv 2604.06834.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class StepScores(NamedTuple):
    """Mean log-probs (nats) of n texts.

    Attributes:
      logp: f64[n], over all tokens.
      first: f64[n], over the first tokens of steps.
      drop: f64[n], over all others: ASLEC-DROP.
      fraction: f64[n], Z, of the tokens that are first ones.
    """

    logp: np.ndarray
    first: np.ndarray
    drop: np.ndarray
    fraction: np.ndarray


class StepRegression(NamedTuple):
    """Least squares of the mean log-prob: logp = β₀ + β₁ first + β₂ drop + γ Z.

    Attributes:
      intercept: β₀.
      first: β₁.
      drop: β₂.
      fraction: γ.
      r2: The fraction of the variance of `logp` that is explained.
    """

    intercept: float
    first: float
    drop: float
    fraction: float
    r2: float


def step_scores(log_probs: Sequence[np.ndarray], first: Sequence[np.ndarray]) -> StepScores:
    """Compute the mean log-probs of texts, apart for the first tokens of steps.

    Args:
      log_probs: f32[N] of each text.
      first: bool[N] of each text, with a True and a False.
    """
    rows = [
        (p.mean(), p[mask].mean(), p[~mask].mean(), mask.mean())
        for p, mask in zip((np.asarray(p, np.float64) for p in log_probs), first, strict=True)
    ]
    return StepScores(*np.array(rows).reshape(-1, 4).T)


def fit_steps(scores: StepScores) -> StepRegression:
    """Regress the mean log-prob on its parts and the fraction of first tokens.

        logp = β₀ + β₁ first + β₂ drop + γ Z + ε

    The relation logp = Z first + (1 - Z) drop is exact. The regression linearizes it around the
    means, where γ is the mean of first - drop. The intercept is that of the paper's code; its text
    has none, with which γ would also stand for the product of the means.

    Source: arXiv 2604.06834, ASLEC-CASL.

    Raises:
      ValueError: If there are too few texts, or they do not differ enough for a fit.
    """
    ones = np.ones_like(scores.logp)
    x = np.stack([ones, scores.first, scores.drop, scores.fraction], axis=1)
    if np.linalg.matrix_rank(x) < 4:
        raise ValueError(
            f"the regression of ASLEC-CASL must have at least 4 texts that differ, got {len(x)}"
        )
    found = np.linalg.lstsq(x, scores.logp, rcond=None)[0]
    left = scores.logp - x @ found
    total = np.sum((scores.logp - scores.logp.mean()) ** 2)
    r2 = 1 - np.sum(left**2) / total if total else float("nan")
    return StepRegression(*found.tolist(), float(r2))


def casl(scores: StepScores, fit: StepRegression) -> np.ndarray:
    """Compute ASLEC-CASL, the mean log-prob without what the fraction of first tokens adds.

        casl = logp - γ Z

    Source: arXiv 2604.06834.

    Returns:
      f64[n].
    """
    return scores.logp - fit.fraction * scores.fraction
