"""Flexible Entropy Control: its schedules over a run, and its bounds token by token, in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loss_problem import arrays64, make_tokens, tokens_of
from policies import table_policy
from update_problem import SHAPED, V, make_data

from entropy_rl.config.train import LossConfig
from entropy_rl.contrib import flexible_clip, flexible_clip_did, flexible_clip_id, flexible_clip_od
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.losses import build_surrogate, ppo_clip
from entropy_rl.losses.build import build_loss
from entropy_rl.losses.controller import BatchSummary

T, CLIP = 8, 0.2
RANGES = dict(clip=CLIP, slope=-0.4, intercept=0.5, low_slope=-0.3, low_intercept=0.35)
SCHEDULES = [flexible_clip_id, flexible_clip_did, flexible_clip_od]


def signals_over(surrogate, entropies):
    """The coefficients of consecutive steps, one mini-batch each."""
    state, found = surrogate.controller.init(), []
    for step, entropy in enumerate(entropies):
        state, coefficients = surrogate.controller.update(
            state, BatchSummary(jnp.int32(step), *map(jnp.float32, (entropy, 0, entropy, 1)))
        )
        found.append({name: float(x) for name, x in coefficients.items()})
    return found


def with_signals(stats, upper, lower):
    return stats.replace(
        coefficients={
            "dynamic_upper": jnp.full((1, 1), upper),
            "dynamic_lower": jnp.full((1, 1), lower),
        }
    )


def ranges_of(schedule, k, dynamic_upper, dynamic_lower):
    """(E⁺, E⁻) as the description writes them down."""
    lam = 1 - 2 * k / T
    if schedule is flexible_clip_id:
        if k <= T / 2:
            return lam * dynamic_upper + (1 - lam) * CLIP, CLIP
        return CLIP, (1 + lam) * dynamic_lower - lam * CLIP
    if k <= T / 2:
        return lam * CLIP + (1 - lam) * dynamic_upper, CLIP
    return dynamic_upper, (1 + lam) * dynamic_lower - lam * CLIP


def root(rising):
    """Where a rising function is 0, by bisection."""
    low, high = 0.0, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low


@pytest.mark.parametrize("schedule", [flexible_clip_id, flexible_clip_did])
@pytest.mark.parametrize("k", [0, 1, 4, 5, 8])
def test_loss_and_gradient_are_those_of_ppo_with_the_bounds_of_the_step(schedule, k):
    advantages, stats = make_tokens(spread=0.9)
    surrogate = schedule(T, **RANGES)
    coefficients = signals_over(surrogate, [1.0] * (k + 1))[-1]
    stats = with_signals(stats, coefficients["dynamic_upper"], coefficients["dynamic_lower"])

    def total(log_probs):
        loss, clipped = surrogate(advantages, stats.replace(log_probs=log_probs))
        return loss.sum(), (loss, clipped)

    gradient, (loss, clipped) = jax.grad(total, has_aux=True)(stats.log_probs)
    arrays, held = arrays64(stats), {"low": 0, "high": 0}
    for place in tokens_of(stats):
        new, old, a = (
            arrays["log_probs"][place],
            arrays["old_log_probs"][place],
            float(advantages[place]),
        )
        ratio, q = math.exp(new - old), math.exp(old)
        # By their definition: ranges that are linear in the current probability ρ π_old, solved for
        # ρ.
        upper = root(lambda r, q=q: r - 1 - (-0.4 * r * q + 0.5)) - 1
        lower = 1 - root(lambda r, q=q: r - 1 + (-0.3 * r * q + 0.35))
        upper, lower = ranges_of(schedule, k, upper, lower)
        if a > 0 and ratio > 1 + upper:
            wanted, slope, kind = -(1 + upper) * a, 0.0, "high"
        elif a < 0 and ratio < 1 - lower:
            wanted, slope, kind = -(1 - lower) * a, 0.0, "low"
        else:
            wanted, slope, kind = -ratio * a, -ratio * a, None
        np.testing.assert_allclose(loss[place], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient[place], slope, rtol=1e-4, atol=1e-6)
        assert (bool(clipped.high[place]), bool(clipped.low[place])) == (
            kind == "high",
            kind == "low",
        )
        if kind:
            held[kind] += 1
    assert held["low"] > 2 and held["high"] > 2


def test_the_schedules_begin_and_end_as_they_are_named():
    up_down = signals_over(flexible_clip_id(T, **RANGES), [1.0] * (T + 3))
    assert up_down[0] == {"dynamic_upper": 1, "dynamic_lower": 0}
    assert up_down[T // 2] == {"dynamic_upper": 0, "dynamic_lower": 0}
    assert up_down[T // 2 + 1] == {"dynamic_upper": 0, "dynamic_lower": 0.75}
    assert up_down[T] == up_down[T + 2] == {"dynamic_upper": 0, "dynamic_lower": 0}
    down_up_down = signals_over(flexible_clip_did(T, **RANGES), [1.0] * (T + 3))
    assert down_up_down[0] == {"dynamic_upper": 0, "dynamic_lower": 0}
    assert down_up_down[T // 2] == {"dynamic_upper": 1, "dynamic_lower": 0}
    assert down_up_down[T] == down_up_down[T + 2] == {"dynamic_upper": 1, "dynamic_lower": 0}


def test_the_oscillation_turns_at_its_two_bounds_and_nowhere_else():
    entropies = [2.0, 1.0, 0.5, 0.4, 0.8, 1.2, 1.3, 0.7, 0.39, 0.41]
    raising, wanted = False, []
    for k, entropy in enumerate(entropies):
        lowest = 0.2 * 2.0
        highest = lowest + (2.0 - lowest) * (1 - min(k, T) / T)
        raising = entropy <= lowest or (raising and entropy <= highest)
        wanted.append({"dynamic_upper": float(raising), "dynamic_lower": float(not raising)})
    assert signals_over(flexible_clip_od(T, **RANGES), entropies) == wanted
    assert [w["dynamic_upper"] for w in wanted] == [0, 0, 0, 1, 1, 0, 0, 0, 1, 0]


def test_at_the_ends_of_the_weights_the_surrogate_is_ppo_or_the_dynamic_upper_bound():
    advantages, stats = make_tokens()
    surrogate = flexible_clip_id(T, **RANGES)
    for (upper, lower), same in {
        (0.0, 0.0): ppo_clip(CLIP, CLIP),
        (1.0, 0.0): flexible_clip(-0.4, 0.5, CLIP),
    }.items():
        one, other = (
            surrogate(advantages, with_signals(stats, upper, lower)),
            same(advantages, stats),
        )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), one, other)


@pytest.mark.parametrize("name", [schedule.__name__ for schedule in SCHEDULES])
def test_an_update_moves_the_schedule_and_tells_it_and_a_bad_one_does_not(key, name):
    policy, optimizer = table_policy(V), optax.sgd(0.1)
    loss = LossConfig(surrogate={"name": name, "total_steps": T, **RANGES})
    update = make_update(
        policy,
        SHAPED,
        optimizer,
        build_loss(loss),
        settings=PassSettings(fuse_loss=True, max_tokens_per_micro_batch=30),
    )
    state = init_state(policy.init(key), optimizer, controller=build_loss(loss).controller)
    before, found = jax.device_get(state.controller), []
    data = make_data()
    state, _ = update(state, data.replace(old_log_probs=data.old_log_probs.at[5, 0].set(np.nan)))
    assert jax.device_get(state.controller) == before
    entropies = [2.0, 0.3, 0.3]
    for step, entropy in enumerate(entropies):
        state, metrics = update(
            state.replace(step=jnp.int32(step)),
            data.replace(old_entropy=jnp.full_like(data.old_entropy, entropy)),
        )
        found.append(
            {
                coefficient: float(metrics[coefficient])
                for coefficient in ("dynamic_upper", "dynamic_lower")
            }
        )
    assert found == signals_over(build_surrogate(loss.surrogate), entropies)
    if name == "flexible_clip_od":
        assert (
            state.controller["surrogate"]["raising"]
            and state.controller["surrogate"]["initial_entropy"] == 2
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slope": None}, "loss.surrogate.slope: must be given"),
        ({"low_slope": None}, "loss.surrogate.low_slope: must be given"),
        ({"clip": None}, "loss.surrogate.clip: must be given"),
        ({"total_steps": 0}, "total_steps: must be a whole number >= 1, got 0"),
        (
            {"slope": 0.1},
            "slope: must be a number from -intercept (-0.5) to 0, got 0.1",
        ),
        (
            {"slope": -0.6},
            "slope: must be a number from -intercept (-0.5) to 0, got -0.6",
        ),
        (
            {"low_slope": -0.5},
            "low_slope: must be a number from -low_intercept (-0.35) to 0, got -0.5",
        ),
        ({"low_intercept": 1}, "low_intercept: must be a number > 0 and < 1, got 1.0"),
        ({"floor": 1}, "floor: must be a number > 0 and < 1, got 1.0"),
    ],
)
def test_a_bad_argument_is_refused_in_a_line(changes, message):
    spec = {"name": "flexible_clip_od", "total_steps": T, **RANGES} | changes
    with pytest.raises(ValueError, match=r"^loss\.surrogate") as error:
        build_surrogate({name: value for name, value in spec.items() if value is not None})
    assert message in str(error.value)
