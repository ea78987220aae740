"""ASLEC against values by hand, the exact relation of its parts, and a confounded simulation."""

import numpy as np
import pytest

from entropy_rl.stats.step_length import StepScores, casl, fit_steps, step_scores


def test_scores_are_means_over_first_and_other_tokens():
    found = step_scores(
        [np.array([-4.0, -1.0, -2.0, -3.0]), np.array([-1.0, -3.0])],
        [np.array([True, False, False, True]), np.array([False, True])],
    )
    np.testing.assert_allclose(found.logp, [-2.5, -2.0])
    np.testing.assert_allclose(found.first, [-3.5, -3.0])
    np.testing.assert_allclose(found.drop, [-1.5, -1.0])
    np.testing.assert_allclose(found.fraction, [0.5, 0.5])


def simulate(count=4000, seed=0):
    """Texts whose quality is in `drop`, with steps of 6 to 60 tokens."""
    rng = np.random.default_rng(seed)
    fraction = 1 / rng.uniform(6, 60, count)
    first, drop = rng.normal(-2.2, 0.3, count), rng.normal(-0.35, 0.05, count)
    return StepScores(fraction * first + (1 - fraction) * drop, first, drop, fraction)


def test_both_corrections_remove_the_correlation_with_the_length_of_steps():
    scores = simulate()
    of_length = lambda x: np.corrcoef(x, 1 / scores.fraction)[0, 1]  # noqa: E731
    assert of_length(scores.logp) > 0.4
    assert abs(of_length(scores.drop)) < 0.05
    assert abs(of_length(casl(scores, fit_steps(scores)))) < 0.05


def test_the_regression_linearizes_the_exact_relation():
    scores = simulate()
    fit = fit_steps(scores)
    mean = scores.fraction.mean()
    np.testing.assert_allclose((fit.first, fit.drop), (mean, 1 - mean), atol=0.01)
    np.testing.assert_allclose(fit.fraction, (scores.first - scores.drop).mean(), atol=0.02)
    assert fit.r2 > 0.98
    ones = np.ones_like(scores.logp)
    x = np.stack([ones, scores.first, scores.drop, scores.fraction], axis=1)
    normal = np.linalg.solve(x.T @ x, x.T @ scores.logp)  # the normal equations
    np.testing.assert_allclose(fit[:4], normal, rtol=1e-8)


def test_casl_takes_gamma_times_the_fraction_away():
    scores = simulate(10)
    fit = fit_steps(scores)
    np.testing.assert_allclose(
        casl(scores, fit), scores.logp - fit.fraction * scores.fraction, rtol=0
    )


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match="must have at least 4 texts that differ, got 3"):
        fit_steps(simulate(3))
