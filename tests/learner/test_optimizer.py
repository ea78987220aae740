"""The optimizer, read off its updates by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_rl.config.optimizer import OptimizerConfig, SFTOptimizerConfig
from entropy_rl.config.train import CriticConfig
from entropy_rl.learner.optimizer import critic_optimizer, make_optimizer


def rates(config: OptimizerConfig, updates: int, total: int | None = None) -> list[float]:
    """The learning rate of each update: without a gradient, a decay of 1 takes that from a weight
    of 1.
    """
    optimizer = make_optimizer(config, total)
    params, zero = {"w": jnp.ones(1)}, {"w": jnp.zeros(1)}
    state = optimizer.init(params)
    found = []
    for _ in range(updates):
        change, state = optimizer.update(zero, state, params)
        found.append(-float(change["w"][0]))
    return found


def config(learning_rate=0.8, warmup=0, **kwargs) -> OptimizerConfig:
    return OptimizerConfig(learning_rate, warmup_updates=warmup, weight_decay=1.0, **kwargs)


def cosine(warmup=0, final_rate=0.0) -> OptimizerConfig:
    return config(warmup=warmup, schedule="cosine", final_rate=final_rate)


# --- the learning rate
# -------------------------------------------------------------------------------------


def test_the_rate_is_constant_without_a_warm_up():
    assert rates(config(), 4) == pytest.approx([0.8] * 4)


def test_the_first_of_n_warm_up_updates_has_one_nth_of_the_rate_and_the_nth_all_of_it():
    assert rates(config(warmup=4), 7) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_warm_up_of_one_update_is_none(warmup):
    assert rates(config(warmup=warmup), 3) == pytest.approx([0.8] * 3)
    assert rates(cosine(warmup, 0.5), 5, 5) == pytest.approx(rates(cosine(0, 0.5), 5, 5))


def test_the_cosine_ends_at_the_final_rate_with_the_last_update():
    # 0.8 * (0.1 + 0.9 * (1 + cos(pi * i / 4)) / 2) for i = 0..4; then it stays there.
    expected = [0.8, 0.694558, 0.44, 0.185442, 0.08, 0.08]
    assert rates(cosine(0, 0.1), 6, 5) == pytest.approx(expected, abs=1e-6)


def test_the_cosine_begins_where_the_warm_up_ends():
    expected = [0.4, 0.8, 0.694558, 0.44, 0.185442, 0.08, 0.08]
    assert rates(cosine(2, 0.1), 7, 6) == pytest.approx(expected, abs=1e-6)


def test_a_final_rate_of_1_is_constant_and_of_0_is_the_end_of_all_change():
    assert rates(cosine(2, 1.0), 5, 5) == pytest.approx([0.4, 0.8, 0.8, 0.8, 0.8])
    assert rates(cosine(0, 0.0), 4, 3) == pytest.approx([0.8, 0.4, 0, 0], abs=1e-7)


def test_the_linear_decay_ends_at_the_final_rate_with_the_last_update():
    linear = config(warmup=2, schedule="linear", final_rate=0.25)
    assert rates(linear, 7, 6) == pytest.approx([0.4, 0.8, 0.65, 0.5, 0.35, 0.2, 0.2])


def test_a_decay_ends_at_decay_updates_whatever_the_length_of_the_run():
    linear = config(schedule="linear", decay_updates=3)
    for total in (None, 3, 100):
        assert rates(linear, 4, total) == pytest.approx([0.8, 0.4, 0, 0], abs=1e-7)
    with pytest.raises(ValueError, match=r"^optimizer\.decay_updates: must be given where"):
        make_optimizer(cosine())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decay_that_ends_within_the_warm_up_is_refused(schedule):
    config(warmup=10, schedule=schedule, decay_updates=11)
    for last in (10, 3):
        said = rf"^optimizer\.decay_updates: must be null or > 10, which is .*, got {last}$"
        with pytest.raises(ValueError, match=said):
            config(warmup=10, schedule=schedule, decay_updates=last)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon", "lion", "sgd"])
def test_an_optimizer_knows_the_rate_of_its_next_update(name):
    linear = config(name=name, warmup=2, schedule="linear", final_rate=0.25)
    optimizer = make_optimizer(linear, 6)
    params = {"w": jnp.ones(2), "q_proj": {"kernel": jnp.ones((3, 2, 2))}}
    state, zero = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    found, learning_rate = [], jax.jit(optimizer.learning_rate)
    for _ in range(7):
        found.append(float(learning_rate(state)))
        change, state = optimizer.update(zero, state, params)
        # Without a gradient a decay of 1 takes the rate from each weight of 1.
        for leaf in jax.tree.leaves(change):
            np.testing.assert_allclose(leaf, -found[-1], rtol=1e-6)
    assert found == pytest.approx([0.4, 0.8, 0.65, 0.5, 0.35, 0.2, 0.2])


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_a_run_that_is_shorter_than_its_warm_up_only_warms_up(updates):
    found = rates(cosine(4), updates, updates)
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


def test_the_critic_s_optimizer_has_a_rate_warm_up_and_clip_of_its_own():
    critic = CriticConfig(0.8, warmup_updates=4, max_grad_norm=2.5)
    optimizer = critic_optimizer(OptimizerConfig(0.1, eps=1.0), critic)
    params, gradient = {"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}
    change, _ = optimizer.update(gradient, optimizer.init(params), params)
    # A quarter of the rate; the gradient of norm 5 is clipped to (1.5, 2).
    np.testing.assert_allclose(change["w"], [-0.2 * 1.5 / 2.5, -0.2 * 2 / 3], rtol=1e-5)


# --- optimizers by name
# ------------------------------------------------------------------------------------------------


def changes(name: str, gradients: list, params: dict, **kwargs) -> list[dict]:
    """The updates of one optimizer on a sequence of gradients, at a rate of 0.1."""
    settings = OptimizerConfig(0.1, name=name, max_grad_norm=1e6, **kwargs)
    optimizer = make_optimizer(settings)
    state, found = optimizer.init(params), []
    for gradient in gradients:
        change, state = optimizer.update(gradient, state, params)
        found.append(change)
    return found


def test_adamw_is_bit_for_bit_the_chain_of_optax_and_has_its_state():
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (5, 7)), "b": jnp.ones(3)}
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.constant_schedule(0.1), weight_decay=0.01, b2=0.95, mu_dtype=jnp.float32),
    )
    ours = make_optimizer(OptimizerConfig(0.1, weight_decay=0.01, b2=0.95))
    states = [ours.init(params), theirs.init(params)]
    for step in range(3):
        gradient = jax.tree.map(lambda x, s=step: jnp.sin(x + s), params)
        results = [
            optimizer.update(gradient, state, params)
            for optimizer, state in zip((ours, theirs), states, strict=True)
        ]
        states = [state for _, state in results]
        assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
        jax.tree.map(np.testing.assert_array_equal, *results)


def test_sgd_adds_up_gradients_and_lion_takes_the_sign():
    params = {"w": jnp.zeros(2)}
    gradients = [{"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([1.0, 4.0])}]
    first, second = changes("sgd", gradients, params, b1=0.5)
    np.testing.assert_allclose(first["w"], [-0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(second["w"], [-0.15, -0.3], rtol=1e-6)
    # Lion: sign(b1 m + (1 - b1) g) with m = (1 - b2) g: 0.9 * 0.01 * -2 + 0.1 * 4 > 0.
    first, second = changes("lion", gradients, params, b1=0.9, b2=0.99)
    np.testing.assert_allclose(first["w"], [-0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(second["w"], [-0.1, -0.1], rtol=1e-6)


def test_adafactor_of_a_matrix_of_rank_one_takes_the_sign():
    # v_row v_col / mean(v_row) is then the square of the gradient itself.
    gradient = jnp.outer(jnp.linspace(-2, 3, 128), jnp.linspace(1, 2, 130))
    (change,) = changes("adafactor", [{"w": gradient}], {"w": jnp.zeros((128, 130))})
    np.testing.assert_allclose(change["w"], -0.1 * jnp.sign(gradient), rtol=1e-4)


def test_adafactor_clips_the_update_of_each_layer_by_its_own_size():
    # Updates of the second step are g / sqrt(v) with v = (1 - β) g² + β g₀², β = 1 - 2^-0.8: the
    # gradient of the second layer grows, and with it the RMS of its update, those of others do not.
    key = jax.random.key(0)
    before = 1 + jax.random.uniform(key, (3, 2, 4))
    after = before.at[1].multiply(100.0)
    tree = lambda x: {"layers": {"q_proj": {"kernel": x}}}  # noqa: E731
    stacked = changes("adafactor", [tree(before), tree(after)], tree(jnp.zeros((3, 2, 4))))
    stacked = stacked[1]["layers"]["q_proj"]["kernel"]
    for i in range(3):
        gradients = [{"w": before[i]}, {"w": after[i]}]
        alone = changes("adafactor", gradients, {"w": jnp.zeros((2, 4))})[1]["w"]
        np.testing.assert_allclose(stacked[i], alone, rtol=1e-6)
        assert np.sqrt(np.mean(np.square(alone))) == pytest.approx(0.1, rel=1e-3)


def test_adafactor_factors_the_matrix_of_each_layer():
    key = jax.random.key(0)
    gradient = jax.random.normal(key, (3, 128, 130))
    tree = lambda x: {"layers": {"q_proj": {"kernel": x}}}  # noqa: E731
    (change,) = changes("adafactor", [tree(gradient)], tree(jnp.zeros((3, 128, 130))))
    for i in range(3):
        (alone,) = changes("adafactor", [{"w": gradient[i]}], {"w": jnp.zeros((128, 130))})
        found = change["layers"]["q_proj"]["kernel"][i]
        np.testing.assert_allclose(found, alone["w"], rtol=1e-5)


def test_muon_orthogonalizes_each_matrix_of_a_layer_and_leaves_the_rest_to_adam():
    key = jax.random.key(0)
    params = {
        "layers": {"q_proj": {"kernel": jnp.zeros((2, 6, 4))}},
        "embed_tokens": {"embedding": jnp.zeros((6, 4))},
    }
    gradient = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
    (change,) = changes("muon", [gradient], params)
    for matrix in np.asarray(change["layers"]["q_proj"]["kernel"]):
        # Newton-Schulz brings singular values near 1; times 0.2 sqrt(max(6, 4)) and the rate.
        values = np.linalg.svd(matrix, compute_uv=False) / (0.1 * 0.2 * np.sqrt(6))
        assert ((values > 0.5) & (values < 1.5)).all()
    # The first update of Adam with Nesterov momentum: b1 (1 - b1) / (1 - b1^2) + 1 of the sign.
    nesterov = 0.9 * 0.1 / 0.19 + 1
    embedding = change["embed_tokens"]["embedding"]
    assert np.abs(embedding) == pytest.approx(np.full((6, 4), 0.1 * nesterov), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [({"b1": 0.5}, {"kernel", "w"}), ({"b2": 0.5}, {"w"}), ({"eps": 0.1}, {"kernel", "w"})],
    ids=["b1", "b2", "eps"],
)
def test_muon_uses_the_settings_of_moments_for_its_matrices_and_for_adam(settings, changed):
    params = {"q_proj": {"kernel": jnp.zeros((4, 3))}, "w": jnp.zeros(2)}
    gradients = [
        jax.tree.map(lambda x, s=s: jnp.sin(jnp.arange(x.size) + s).reshape(x.shape), params)
        for s in range(2)
    ]
    found, plain = (changes("muon", gradients, params, **more)[1] for more in (settings, {}))
    differs = {
        "kernel": not np.allclose(found["q_proj"]["kernel"], plain["q_proj"]["kernel"], rtol=1e-3),
        "w": not np.allclose(found["w"], plain["w"], rtol=1e-3),
    }
    assert {name for name, does in differs.items() if does} == changed


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "sgd"])
def test_first_moments_have_the_configured_dtype(name):
    params = {"q_proj": {"kernel": jnp.zeros((4, 3))}, "w": jnp.zeros(2)}
    for dtype in ("bfloat16", "float32"):
        config = OptimizerConfig(0.1, name=name, first_moment_dtype=dtype)
        state = make_optimizer(config).init(params)
        found = {x.dtype.name for x in jax.tree.leaves(state)}
        assert ("bfloat16" in found) == (dtype == "bfloat16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion", "eps": 1e-6}, "optimizer.eps: must be 1e-08, because optimizer lion "),
        ({"name": "sgd", "b2": 0.5}, "optimizer.b2: must be 0.999, because optimizer sgd does "),
        ({"name": "adafactor", "b1": 0.5}, "optimizer.b1: must be 0.9, because optimizer adaf"),
        ({"final_rate": 0.5}, "optimizer.final_rate: must be 0.0, because a constant schedule"),
        ({"decay_updates": 5}, "optimizer.decay_updates: must be null, because a constant"),
        ({"schedule": "linear", "final_rate": 2.0}, "optimizer.final_rate: must be >= 0 and <= 1"),
        ({"schedule": "linear", "decay_updates": 0}, "optimizer.decay_updates: must be null or"),
    ],
)
def test_a_setting_that_the_optimizer_does_not_use_is_refused(settings, message):
    with pytest.raises(ValueError) as error:
        OptimizerConfig(1e-3, **settings)
    assert str(error.value).startswith(message)


def test_fine_tuning_decays_along_a_cosine_by_default():
    assert SFTOptimizerConfig(1e-3).schedule == "cosine"
    found = rates(SFTOptimizerConfig(0.8, weight_decay=1.0), 5, 5)
    assert found[0] == pytest.approx(0.8) and found[-1] == pytest.approx(0.8 * 0.02)
