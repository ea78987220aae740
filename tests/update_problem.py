"""A small mini-batch of random completions, and one step of plain gradient descent on it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_rl.advantages import chain, group_normalize, shape_by_entropy, whiten
from entropy_rl.config.train import LossConfig
from entropy_rl.learner.batch import make_batch
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.losses.build import build_loss
from entropy_rl.types import Rollout

G, P, N, V = 4, 4, 6, 11


PAD, EOS = 0, 1


ALPHA, KAPPA = 0.4, 2.0


SHAPED = chain(group_normalize(G), shape_by_entropy(ALPHA, KAPPA))


ON_POLICY = LossConfig()


def make_rollout(seed=0):
    """Random completions of different lengths behind prompts of different lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, N + 1, P * G)
    completion_mask = np.arange(N) < lengths[:, None]
    prompt_mask = np.arange(3) < rng.integers(1, 4, P)[:, None]
    return Rollout(
        prompt_ids=jnp.array(np.where(prompt_mask, rng.integers(2, V, (P, 3)), PAD), jnp.int32),
        prompt_mask=jnp.array(prompt_mask),
        completion_ids=jnp.array(
            np.where(completion_mask, rng.integers(1, V, (P * G, N)), PAD), jnp.int32
        ),
        completion_mask=jnp.array(completion_mask),
        log_probs=jnp.array(
            np.where(completion_mask, rng.normal(-2, 0.3, (P * G, N)), 0), jnp.float32
        ),
        entropy=jnp.zeros((P * G, N)),
        finish_reason=jnp.zeros(P * G, jnp.int32),
    )


def make_data(seed=0, has_reward=None):
    rewards = np.random.default_rng(seed + 1).integers(0, 2, P * G).astype(np.float32)
    rewards[:G] = 1  # a group without contrast
    has_reward = np.ones(P * G, bool) if has_reward is None else has_reward
    return make_batch(make_rollout(seed), jnp.array(rewards), jnp.array(has_reward), pad_id=PAD)


def sgd_update(
    policy,
    data,
    params,
    *,
    advantage=SHAPED,
    loss=ON_POLICY,
    tokens=None,
    group_size=None,
    rate=1.0,
    temperature=1.0,
    fused_loss=False,
):
    """The parameters after one step of plain gradient descent, and the metrics."""
    optimizer = optax.sgd(rate)
    update = make_update(
        policy,
        advantage,
        optimizer,
        build_loss(loss, N),
        settings=PassSettings(
            temperature=temperature,
            max_tokens_per_micro_batch=tokens,
            group_size=group_size,
            fuse_loss=fused_loss,
        ),
    )
    state, metrics = update(init_state(jax.tree.map(jnp.copy, params), optimizer), data)
    return state.params, metrics


RECORDED_SCOPE = chain(group_normalize(G), whiten(), shape_by_entropy(ALPHA, KAPPA))


# The same numbers from a whitening of which nothing is known: a plain function.
BATCH_SCOPE = chain(group_normalize(G), whiten().fn, shape_by_entropy(ALPHA, KAPPA))


EVERY_TERM = LossConfig(
    surrogate={"name": "ppo_clip", "dual_clip": 3.0},
    token_weights=[{"name": "token_tis", "cap": 2.0}, {"name": "erc"}],
    entropy_coef=0.01,
    kl_coef=0.1,
)
