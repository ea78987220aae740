"""`build_advantage`: the `advantage` section of a config file becomes a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.advantages.transform import (
    Transform,
    baseline_and_shaping,
    before_values,
    chain,
    named_rewards,
    recorded_part,
    required_extras,
)
from entropy_rl.config.checks import at_place, require
from entropy_rl.config.registry import build_named
from entropy_rl.config.rewards import reward_weights
from entropy_rl.config.train import TrainConfig
from entropy_rl.types import REWARD_EXTRA, TokenStats


def advantage_of(config: TrainConfig) -> Transform:
    """Build the advantage of a run: the chain of its config, with group size and discount.

    Raises:
      ValueError: As `build_advantage`; a transform refuses what those before it make; or a
        penalty begins above the limit of new tokens.
    """
    gamma = None if config.critic is None else config.critic.gamma
    group_size = config.rollout.group_size
    advantage = build_advantage(config.advantage, group_size, gamma, config.rewards)
    _check_overlong(config)
    _check_shapes(config, advantage)
    return advantage


def _check_overlong(config: TrainConfig) -> None:
    """Check that a completion of a run can be long enough for each `overlong_penalty`."""
    longest = config.rollout.max_new_tokens
    for i, spec in enumerate(config.advantage or ()):
        if spec["name"] == "overlong_penalty":
            limit, buffer = spec["max_tokens"], spec["buffer_tokens"]
            require(
                limit - buffer < longest,
                f"advantage[{i}].max_tokens",
                limit,
                f"less than rollout.max_new_tokens + buffer_tokens ({longest + buffer}), or the "
                "penalty has no effect",
            )


def _check_shapes(config: TrainConfig, advantage: Transform) -> None:
    """Trace the chain with the shapes of a mini-batch, so that a wrong order is found early.

    Each transform has the statistics that it may read, whatever the others need.
    """
    stats = abstract_stats(config, advantage)
    rewards = jax.ShapeDtypeStruct(stats.has_reward.shape, jnp.float32)
    recorded, rest = recorded_part(advantage)
    before = stats.replace(log_probs=None, entropy=None)
    shaping = baseline_and_shaping(advantage)[1]

    def trace(rewards: jax.Array, before: TokenStats, stats: TokenStats) -> jax.Array:
        return shaping(rest(recorded(rewards[:, None], before), stats), stats)

    with at_place("advantage", (ValueError, TypeError)):
        jax.eval_shape(trace, rewards, before, stats)


def abstract_stats(config: TrainConfig, advantage: Transform) -> TokenStats:
    """Return the shapes of the statistics of a mini-batch of a run, for tracing.

    Args:
      config: The config.
      advantage: Its advantage, which says what it requires beside the usual ones.
    """
    rows = config.batching.mini_batch_prompts * config.rollout.group_size
    tokens = jax.ShapeDtypeStruct((rows, config.rollout.max_new_tokens), jnp.float32)
    of_rows = jax.ShapeDtypeStruct((rows,), jnp.float32)
    return TokenStats(
        log_probs=tokens,
        old_log_probs=tokens,
        entropy=tokens,
        old_entropy=tokens,
        mask=jax.ShapeDtypeStruct(tokens.shape, bool),
        has_reward=jax.ShapeDtypeStruct(of_rows.shape, bool),
        sampler_log_probs=tokens,
        values=None if config.critic is None else tokens,
        greedy_rewards=of_rows if "greedy_rewards" in advantage.requires else None,
        extras={
            f"{REWARD_EXTRA}{label}": jax.ShapeDtypeStruct((rows, 1), jnp.float32)
            for label in reward_weights(config.rewards)
        }
        | required_extras(advantage, *tokens.shape),
    )


def build_advantage(
    specs: Sequence[Mapping[str, Any]] | None,
    group_size: int,
    gamma: float | None = None,
    rewards: Sequence[Mapping[str, Any]] = (),
) -> Transform:
    """Chain the transforms that a config lists.

    Each entry is a mapping of `name` and the arguments of the factory of that name:

        advantage:
          - {name: group_normalize}
          - {name: shape_by_entropy, alpha: 0.4, kappa: 2.0}

    Args:
      specs: The entries in order. A name is that of a transform of `entropy_rl.advantages` or
        `entropy_rl.contrib`, or `module:function` for your own: a plain function (advantages,
        stats) -> advantages, or a factory that returns one, or a `Transform`. None for advantages
        that are 0, a loss without a policy gradient.
      group_size: Completions per prompt of the rollout, given to each factory that has such an
        argument.
      gamma: Discount of the critic, given likewise; None without one.
      rewards: The section `rewards`, whose weights are given likewise, as `reward_weights`.

    Returns:
      The chain; the identity for an empty list.

    Raises:
      ValueError: A name, an argument or a value is wrong; the chain reads values without a critic,
        or there is a critic whose values are not read; a transform that reads greedy rewards or
        single rewards is not the first; or one that reads rewards is behind a baseline, or one that
        reads advantages is not. The message starts with the dotted path.
    """
    if specs is None:
        advantage = chain(Transform(lambda advantages, _: jnp.zeros_like(advantages), "group"))
        _check_values(advantage, gamma is not None)
        return advantage
    if isinstance(specs, str | Mapping) or not isinstance(specs, Sequence):
        raise ValueError(f"advantage: must be a list of {{name: ..., arguments}}, got {specs!r}")
    given: dict[str, tuple[Any, str]] = {
        "group_size": (group_size, "rollout.group_size"),
        "reward_weights": (reward_weights(rewards), "rewards"),
    }
    if gamma is not None:
        given["gamma"] = (gamma, "critic.gamma")
    returns = "a Transform or a function (advantages, stats) -> advantages"
    advantage = chain(
        *(
            build_named(
                spec, f"advantage[{i}]", Transform, returns=returns, wrap=chain, given=given
            )
            for i, spec in enumerate(specs)
        )
    )
    _check_values(advantage, gamma is not None)
    _check_order(advantage)
    return advantage


def _check_order(advantage: Transform) -> None:
    """Check that the transforms before each one make what it reads."""
    for i, member in enumerate(advantage.members):
        before = advantage.members[:i]
        reads = "the reward of the greedy completion" if "greedy_rewards" in member.requires else ""
        reads = reads or ("single rewards" if named_rewards(member) else "")
        if reads and i > 0:
            raise ValueError(
                f"advantage[{i}]: must be the first transform, as those before it do not apply to "
                f"{reads}, got {i} before it"
            )
        if member.reads == "advantages" and all(
            one.reads is not None and not one.is_baseline for one in before
        ):
            raise ValueError(
                f"advantage[{i}]: must be after a baseline, as it reads advantages, got none"
            )
        if member.reads not in ("rewards", "nonnegative rewards"):
            continue
        for j, one in enumerate(before):
            # `remax` is always the first, and two shifts may change places.
            commutes = member.shifts and "greedy_rewards" in one.requires
            if one.is_baseline and not commutes:
                raise ValueError(
                    f"advantage[{i}]: must be before every baseline, as it reads rewards, got "
                    f"advantage[{j}] before it"
                )


def _check_values(advantage: Transform, has_critic: bool) -> None:
    readers = [i for i, member in enumerate(advantage.members) if "values" in member.requires]
    before = before_values(advantage).members if readers else ()
    for i, member in enumerate(before):
        require(
            member.scope != "batch" and not member.needs_policy,
            f"advantage[{i}]",
            "scope 'batch'" if member.scope == "batch" else "needs_policy=True",
            "of another scope and without the policy before a transform that reads values, as the "
            "critic's targets are computed from the mini-batch alone",
        )
    if readers and not has_critic:
        raise ValueError(
            f"advantage[{readers[0]}]: needs the values of a critic; add a section `critic:`, "
            "as in configs/countdown_ppo.yaml"
        )
    if has_critic and not readers:
        raise ValueError(
            "critic: must be null where no transform of the advantage reads values, got a critic; "
            "a transform that does is {name: gae}"
        )
