"""The optimizer, read off its updates by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.config.train import OptimizerConfig
from entropy_rl.learner.optimizer import make_optimizer


def rates(config: OptimizerConfig, updates: int, **kwargs) -> list[float]:
    """The learning rate of each update: without a gradient, a decay of 1 takes that from a weight
    of 1.
    """
    optimizer = make_optimizer(config, **kwargs)
    params, zero = {"w": jnp.ones(1)}, {"w": jnp.zeros(1)}
    state = optimizer.init(params)
    found = []
    for _ in range(updates):
        change, state = optimizer.update(zero, state, params)
        found.append(-float(change["w"][0]))
    return found


def config(learning_rate=0.8, warmup=0, **kwargs) -> OptimizerConfig:
    return OptimizerConfig(learning_rate, warmup_updates=warmup, weight_decay=1.0, **kwargs)


# --- the learning rate
# -------------------------------------------------------------------------------------


def test_the_rate_is_constant_without_a_warm_up():
    assert rates(config(), 4) == pytest.approx([0.8] * 4)


def test_the_first_of_n_warm_up_updates_has_one_nth_of_the_rate_and_the_nth_all_of_it():
    assert rates(config(warmup=4), 7) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_warm_up_of_one_update_is_none(warmup):
    assert rates(config(warmup=warmup), 3) == pytest.approx([0.8] * 3)
    assert rates(config(warmup=warmup), 5, decay_updates=5, final_rate=0.5) == pytest.approx(
        rates(config(), 5, decay_updates=5, final_rate=0.5)
    )


def test_the_cosine_ends_at_the_final_rate_with_the_last_update():
    # 0.8 * (0.1 + 0.9 * (1 + cos(pi * i / 4)) / 2) for i = 0..4; then it stays there.
    expected = [0.8, 0.694558, 0.44, 0.185442, 0.08, 0.08]
    assert rates(config(), 6, decay_updates=5, final_rate=0.1) == pytest.approx(expected, abs=1e-6)


def test_the_cosine_begins_where_the_warm_up_ends():
    expected = [0.4, 0.8, 0.694558, 0.44, 0.185442, 0.08, 0.08]
    assert rates(config(warmup=2), 7, decay_updates=6, final_rate=0.1) == pytest.approx(
        expected, abs=1e-6
    )


def test_a_final_rate_of_1_is_constant_and_of_0_is_the_end_of_all_change():
    assert rates(config(warmup=2), 5, decay_updates=5) == pytest.approx([0.4, 0.8, 0.8, 0.8, 0.8])
    assert rates(config(), 4, decay_updates=3, final_rate=0.0) == pytest.approx(
        [0.8, 0.4, 0, 0], abs=1e-7
    )


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_a_run_that_is_shorter_than_its_warm_up_only_warms_up(updates):
    found = rates(config(warmup=4), updates, decay_updates=updates, final_rate=0.0)
    assert found == pytest.approx([0.2, 0.4, 0.6][:updates])


# --- the update
# --------------------------------------------------------------------------------------------


def first_update(gradient, **kwargs) -> dict:
    # With eps = 1 the first update of Adam is -rate * g / (|g| + 1), which shows the size of g; up
    # to 1e-5, since 1 - 0.999 has few digits.
    settings = OptimizerConfig(learning_rate=0.5, eps=1.0, **kwargs)
    optimizer = make_optimizer(settings)
    params = {name: jnp.ones_like(g) for name, g in gradient.items()}
    return optimizer.update(gradient, optimizer.init(params), params)[0]


def test_gradients_are_clipped_by_the_norm_over_all_of_them():
    # The norm of (3, 4) is 5 and becomes 1: (0.6, 0.8). The arrays are of one network, and share
    # one scale.
    update = first_update({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])})
    assert float(update["a"][0]) == pytest.approx(-0.5 * 0.6 / 1.6, rel=1e-5)
    assert float(update["b"][0, 0]) == pytest.approx(-0.5 * 0.8 / 1.8, rel=1e-5)
    update = first_update({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}, max_grad_norm=2.5)
    assert float(update["a"][0]) == pytest.approx(-0.5 * 1.5 / 2.5, rel=1e-5)
    assert float(update["b"][0, 0]) == pytest.approx(-0.5 * 2.0 / 3.0, rel=1e-5)


def test_gradients_within_the_norm_are_left_alone():
    update = first_update({"a": jnp.array([0.3, -0.4])})
    np.testing.assert_allclose(update["a"], [-0.5 * 0.3 / 1.3, 0.5 * 0.4 / 1.4], rtol=1e-5)


def test_weight_decay_is_decoupled_and_not_clipped():
    update = first_update({"a": jnp.array([3.0, 4.0])}, weight_decay=10.0)
    np.testing.assert_allclose(
        update["a"], [-0.5 * (0.375 + 10), -0.5 * (0.8 / 1.8 + 10)], rtol=1e-5
    )


def test_moments_are_those_of_adam():
    # b1 = 1/2, b2 = 0, eps tiny: m = 1/2 then 1/4 - 1/2 = -1/4, over 1 - 1/4; v = g^2 = 1.
    optimizer = make_optimizer(OptimizerConfig(0.3, b1=0.5, b2=0.0, eps=1e-8))
    params = {"w": jnp.zeros(1)}
    state = optimizer.init(params)
    first, state = optimizer.update({"w": jnp.array([1.0])}, state, params)
    second, _ = optimizer.update({"w": jnp.array([-1.0])}, state, params)
    assert float(first["w"][0]) == pytest.approx(-0.3)
    assert float(second["w"][0]) == pytest.approx(0.3 * (1 / 4) / (3 / 4))
