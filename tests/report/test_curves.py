"""Running means of training curves."""

import numpy as np
import pytest

from entropy_rl.report.curves import running_mean


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("window", [1, 2, 7, 10, 29, 30])
def test_a_running_mean_is_the_mean_of_the_known_values_of_each_window(window):
    draw = np.random.default_rng(window)
    values = draw.normal(size=30)
    values[draw.random(30) < 0.2] = np.nan
    values[3] = 1e15  # which leaves no rounding errors in the windows after it
    expected = [np.nanmean(values[i : i + window]) for i in range(31 - window)]
    np.testing.assert_allclose(running_mean(values, window), expected, rtol=1e-12)


def test_a_window_without_values_has_no_mean():
    found = running_mean(np.array([1.0, np.nan, np.nan, 3.0]), 2)
    np.testing.assert_array_equal(found, [1, np.nan, 3])
