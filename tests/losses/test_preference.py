"""Losses on pairs against float64 formulas of their papers, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.losses import build_preference_loss, cdpo, dpo, dpo_norm, ipo, simpo

# Log-probs of completions are sums over some hundred tokens.
RNG = np.random.default_rng(0)
LOG_PROBS, REFERENCE = RNG.normal(-100, 30, (2, 64, 2)).astype(np.float32)
TOKENS = RNG.integers(1, 300, (64, 2))


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def formula(name, beta=0.1, epsilon=0.1, gamma=0.5):
    """The loss of each pair in float64, as written in its paper and in TRL."""
    log_probs, reference = LOG_PROBS.astype(np.float64), REFERENCE.astype(np.float64)
    (c, r), (n_c, n_r) = (log_probs - reference).T, TOKENS.T
    d, m = c - r, c / n_c - r / n_r
    return {
        "dpo": lambda: -log_sigmoid(beta * d),
        "cdpo": lambda: -(1 - epsilon) * log_sigmoid(beta * d) - epsilon * log_sigmoid(-beta * d),
        "ipo": lambda: (m - 1 / (2 * beta)) ** 2,
        "dpo_norm": lambda: -log_sigmoid(beta * m),
        "simpo": lambda: (
            -log_sigmoid(beta * (log_probs[:, 0] / n_c - log_probs[:, 1] / n_r) - gamma)
        ),
    }[name]()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dpo", {}),
        ("dpo", {"beta": 0.5}),
        ("cdpo", {}),
        ("cdpo", {"beta": 0.2}),
        ("ipo", {}),
        ("dpo_norm", {}),
        ("dpo_norm", {"beta": 5.0}),
        ("simpo", {"beta": 2.0}),
    ],
)
def test_the_loss_is_the_formula_of_its_paper(name, arguments):
    loss = build_preference_loss({"name": name} | arguments)
    losses, rewards = loss(*map(jnp.array, (LOG_PROBS, REFERENCE, TOKENS)))
    np.testing.assert_allclose(losses, formula(name, **arguments), rtol=2e-6, atol=1e-6)
    assert losses.shape == (64,) and rewards.shape == (64, 2)
    np.testing.assert_array_equal(losses, loss.of_margin(rewards[:, 0] - rewards[:, 1]))


def slopes(loss, log_probs=LOG_PROBS):
    def total(log_probs):
        return loss(log_probs, jnp.array(REFERENCE), jnp.array(TOKENS))[0].sum()

    return np.asarray(jax.grad(total)(jnp.array(log_probs)), np.float64)


def test_the_slope_of_dpo_is_beta_times_the_probability_of_the_wrong_order():
    # arXiv 2305.18290, section 4: -β σ(r_rejected - r_chosen) (∇ log π(chosen) - ∇ log π(rejected))
    d = (LOG_PROBS.astype(np.float64) - REFERENCE) @ [1, -1]
    expected = 0.1 / (1 + np.exp(0.1 * d))
    np.testing.assert_allclose(slopes(dpo()), expected[:, None] * [-1, 1], rtol=1e-5, atol=1e-9)


def test_swapping_the_completions_mirrors_the_margin():
    for loss in (dpo(), cdpo(), dpo_norm()):
        arrays = [jnp.array(x) for x in (LOG_PROBS, REFERENCE, TOKENS)]
        losses, rewards = loss(*arrays)
        swapped, mirrored = loss(*(x[:, ::-1] for x in arrays))
        np.testing.assert_array_equal(mirrored, rewards[:, ::-1])
        margin = rewards[:, 0] - rewards[:, 1]
        np.testing.assert_allclose(swapped, loss.of_margin(-margin), rtol=1e-6)
        if loss.of_margin(jnp.float32(1)) != cdpo().of_margin(jnp.float32(1)):
            # -log σ(-m) = m - log σ(m)
            np.testing.assert_allclose(swapped, losses + margin, rtol=1e-5, atol=1e-5)


def test_limits_of_the_hyper_parameters():
    # β -> 0: every pair costs log 2, and pulls with β / 2, whatever the policy says of it.
    small = 1e-6
    losses, _ = dpo(small)(*map(jnp.array, (LOG_PROBS, REFERENCE, TOKENS)))
    np.testing.assert_allclose(losses, np.log(2), atol=small * 300)
    np.testing.assert_allclose(slopes(dpo(small)) / small, [[-0.5, 0.5]] * 64, rtol=1e-3)
    # Large β: the wrong order costs β |d|, the right one nothing.
    d = (LOG_PROBS.astype(np.float64) - REFERENCE) @ [1, -1]
    losses, _ = dpo(100.0)(*map(jnp.array, (LOG_PROBS, REFERENCE, TOKENS)))
    np.testing.assert_allclose(losses, 100 * np.maximum(-d, 0), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(slopes(cdpo(0.1, 0.0)), slopes(dpo(0.1)))
    # IPO does not push where the margin is 1 / (2β) already; cDPO where it is log((1 - ε) / ε).
    assert jax.grad(ipo(0.1).of_margin)(5.0) == 0
    assert abs(jax.grad(cdpo(0.1, 0.2).of_margin)(float(np.log(4)))) < 1e-7


def test_simpo_reads_no_reference():
    loss = simpo()
    assert not loss.needs_reference
    one, _ = loss(*map(jnp.array, (LOG_PROBS, REFERENCE, TOKENS)))
    other, _ = loss(jnp.array(LOG_PROBS), jnp.zeros((64, 2)), jnp.array(TOKENS))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"name": "dop"}, "loss.name: must be one of "),
        ({"name": "ppo_clip"}, "loss.name: must be a PreferenceLoss, got 'ppo_clip', which makes"),
        ({"name": "dpo", "betta": 1}, "loss.betta: must be beta, got 'betta' (did you mean 'beta"),
        ({"name": "dpo", "beta": 0.0}, "loss: dpo.beta: must be > 0, got 0.0"),
        ({"name": "cdpo", "label_smoothing": 0.5}, "loss: cdpo.label_smoothing: must be >= 0 and"),
        ({"name": "simpo", "gamma": -1.0}, "loss: simpo.gamma: must be >= 0, got -1.0"),
        ({"beta": 0.1}, "loss.name: must be given, one of: "),
    ],
)
def test_a_loss_that_is_none_is_refused(spec, line):
    with pytest.raises(ValueError) as error:
        build_preference_loss(spec)
    assert str(error.value).startswith(line)


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"tokens must have the shape \[P, 2\]"):
        dpo()(jnp.zeros((3, 2)), jnp.zeros((3, 2)), jnp.zeros(3))
