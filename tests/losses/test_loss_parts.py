"""A loss of plain functions has the scopes of a config, and what is not called is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from loss_problem import make_tokens

from entropy_rl.config.train import LossConfig
from entropy_rl.losses import (
    Loss,
    Surrogate,
    TokenWeighting,
    combine,
    forking_tokens,
    no_clips,
    ppo_clip,
)
from entropy_rl.losses.build import build_loss


def reinforce(advantages, stats):
    return -advantages * stats.log_probs, no_clips(advantages)


def first_token(advantages, stats):
    return jnp.zeros_like(advantages).at[:, 0].set(1)


def test_plain_functions_have_the_scopes_that_a_config_gives_them():
    loss = Loss(reinforce, first_token)
    assert (loss.surrogate, loss.token_weighting) == (
        Surrogate(reinforce, "sequence"),
        TokenWeighting(first_token, "batch"),
    )
    here = f"{__name__}:"
    built = build_loss(LossConfig({"name": here + "reinforce"}, [{"name": here + "first_token"}]))
    assert (built.surrogate.scope, built.token_weighting.scope) == ("sequence", "batch")
    advantages, stats = make_tokens()
    found, _ = loss(advantages, stats)
    np.testing.assert_array_equal(found, built(advantages, stats)[0])
    # By hand: the first token of a row, and 0 elsewhere.
    one = np.where(stats.mask, -advantages * stats.log_probs, 0)
    np.testing.assert_allclose(found[:, 0], one[:, 0], rtol=1e-6)
    assert not np.asarray(found)[:, 1:].any()
    assert combine(first_token).scope == combine(forking_tokens(0.2), first_token).scope == "batch"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Loss(ppo_clip),
            "Loss.surrogate must be a Surrogate or a function .* ppo_clip; ca",
        ),
        (lambda: Loss(0.2), r"Loss.surrogate must be a Surrogate or a function .*, got 0\.2"),
        (
            lambda: Loss(token_weighting=forking_tokens),
            "Loss.token_weighting must be a TokenWeighti",
        ),
        (
            lambda: combine(first_token, forking_tokens),
            "combine: member 1 must be a TokenWeighting",
        ),
        (lambda: Loss(Surrogate), "got the factory Surrogate; call it"),
    ],
)
def test_what_is_no_part_of_a_loss_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()
