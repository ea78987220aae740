"""Device programs of a replay buffer: which rows it stores, and the updates on them.

The rows of the buffer are rows of a `TrainBatch` whose `rewards` are the stored advantages, and
whose `has_reward` says which places are occupied. So an update on them is an ordinary update with
an advantage that has no baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from entropy_rl.advantages import Transform, baseline_and_shaping, chain
from entropy_rl.advantages.transform import LOCAL_SCOPES, required_extras
from entropy_rl.config.checks import at_place
from entropy_rl.distributed.sharding import row_sharding
from entropy_rl.learner.batch import token_stats
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.replay_rule import REPLAY_WEIGHT, Replay
from entropy_rl.learner.rollout_advantages import make_base_advantages
from entropy_rl.learner.update import UpdateFn, make_update
from entropy_rl.losses.build import check_traces
from entropy_rl.losses.controller import (
    Coefficients,
    checked_update,
    summarize_batch,
    trace_controller,
)
from entropy_rl.losses.loss import Loss
from entropy_rl.models.lora import Base, on_base
from entropy_rl.types import Policy, TokenStats, TrainBatch

Rows = dict[str, jax.Array]  # the fields of a `TrainBatch` that are stored
_TOKEN_FIELDS = ("old_log_probs", "old_entropy", "sampler_log_probs")


@struct.dataclass
class ReplayState:
    """The part of a `TrainState` that belongs to a replay buffer."""

    rows: Rows
    controller: Any


class BufferShape(NamedTuple):
    """Size of a replay buffer.

    Attributes:
      updates: Updates that the stored rows make.
      rows: Rows of an update.
      prompt_tokens: Longest prompt.
      new_tokens: Limit of new tokens.
    """

    updates: int
    rows: int
    prompt_tokens: int
    new_tokens: int


class ReplayPrograms(NamedTuple):
    """The compiled functions of a replay buffer.

    Attributes:
      rules: Which rows are stored, and when there are updates on them.
      rows_of_update: Rows of an update.
      init: (longest prompt) -> `ReplayState` before the first rollout.
      look: (controller, step int32[], mini-batches) -> (controller, coefficients), from a rollout.
      keep: (rows, mini-batches) -> rows.
      count: (rows) -> int32[U], occupied rows of each update.
      part: (rows, weight f32[], number int32[]) -> the `TrainBatch` of an update.
      update: As in `make_update`.
    """

    rules: Replay
    rows_of_update: int
    init: Callable[[int], ReplayState]
    look: Callable[[Any, jax.Array, Sequence[TrainBatch]], tuple[Any, Coefficients]]
    keep: Callable[[Rows, Sequence[TrainBatch]], Rows]
    count: Callable[[Rows], jax.Array]
    part: Callable[[Rows, jax.Array, jax.Array], TrainBatch]
    update: UpdateFn


def replay_advantage(replay: Replay, advantage: Transform) -> Transform:
    """The transforms that are applied to stored advantages."""
    return baseline_and_shaping(advantage)[1] if replay.shaped else chain()


def check_replay(
    spec: Mapping[str, Any],
    replay: Replay,
    advantage: Transform,
    loss: Loss,
    has_critic: bool,
    stats: TokenStats,
) -> None:
    """Check that critic, loss and advantage of a run allow a replay buffer.

    Args:
      spec: The section `replay`.
      replay: The rule that it names.
      advantage: The chain of the run.
      loss: The loss.
      has_critic: Whether there is a critic.
      stats: Shapes of the statistics of a mini-batch.

    Raises:
      ValueError: They do not.
    """
    path = f"replay: {spec['name']}"
    if has_critic:
        raise ValueError(f"critic: must be null with {path}, got a critic")
    if loss.controller is not None:
        raise ValueError(
            f"loss: must have no controller with {path}: a number as loss.entropy_coef, and "
            "another loss.surrogate"
        )
    with at_place("replay", (ValueError, TypeError)):
        names = trace_controller(replay.controller)
    if REPLAY_WEIGHT not in names:
        raise ValueError(
            f"replay: must have a controller with the coefficient {REPLAY_WEIGHT!r}, got "
            f"{', '.join(names) or 'none'}"
        )
    baseline_members = len(baseline_and_shaping(advantage)[0].members)
    for i, member in enumerate(chain(advantage).members):
        is_stored_alone = i > baseline_members and replay.shaped
        if member.needs_policy or (is_stored_alone and member.scope not in LOCAL_SCOPES):
            raise ValueError(
                f"advantage[{i}]: must not need the policy, and must be of scope 'token' or "
                f"'sequence' behind one of these, with {path}; got scope {member.scope!r}, "
                f"needs_policy={member.needs_policy}"
            )
    stored = stats.replace(values=None, greedy_rewards=None, extras={})
    rewards = jax.ShapeDtypeStruct((stats.mask.shape[0], 1), jnp.float32)
    try:
        jax.eval_shape(replay_advantage(replay, advantage), rewards, stored)
        check_traces(loss, stored)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            "replay: must be null with an advantage or a loss that reads extras or rewards, which "
            f"the rows of {spec['name']} do not have, got {error}"
        ) from error


def make_replay_programs(
    replay: Replay,
    policy: Policy,
    advantage: Transform,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    settings: PassSettings,
    shape: BufferShape,
    base: Base | None = None,
) -> ReplayPrograms:
    """Build the compiled functions of a replay buffer.

    Args:
      replay: The rule.
      policy: The model.
      advantage: The chain of the run.
      optimizer: The optimizer of the other updates, whose state it shares.
      loss: The loss.
      settings: Those of the other updates, for rows without groups.
      shape: The size of the buffer.
      base: The frozen parameters, if an adapter is trained.

    Raises:
      ValueError: The baseline has more than one advantage for a row.
    """
    base_advantages = make_base_advantages(advantage)
    mesh = settings.mesh
    by_rows = row_sharding(mesh)
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def empty(rows: int, prompt_tokens: int) -> Rows:
        new = shape.new_tokens
        numbers = {name: jnp.zeros((rows, new)) for name in _TOKEN_FIELDS}
        if loss.kl_coef:
            numbers["ref_log_probs"] = jnp.zeros((rows, new))
        return numbers | {
            "ids": jnp.zeros((rows, prompt_tokens + new), jnp.int32),
            "prompt_length": jnp.ones(rows, jnp.int32),
            "completion_ids": jnp.zeros((rows, new), jnp.int32),
            "completion_mask": jnp.zeros((rows, new), bool),
            "rewards": jnp.zeros(rows),
            "has_reward": jnp.zeros(rows, bool),
        }

    def init(prompt_tokens: int) -> ReplayState:
        rows = shape.updates * shape.rows
        make = jax.jit(lambda: empty(rows, prompt_tokens), out_shardings=by_rows)
        controller = jax.jit(replay.controller.init, out_shardings=replicated)()
        return ReplayState(rows=make(), controller=controller)

    def look(
        controller: Any, step: jax.Array, data: Sequence[TrainBatch]
    ) -> tuple[Any, Coefficients]:
        batch = jax.tree.map(lambda *x: jnp.concatenate(x), *data)
        summary = summarize_batch(step, batch)
        updated, coefficients = checked_update(replay.controller, controller, summary)
        # A rollout without a reward changes nothing.
        any_reward = batch.has_reward.any()
        weight = jnp.where(any_reward, coefficients[REPLAY_WEIGHT], 0)
        return jax.tree.map(
            lambda new, old: jnp.where(any_reward, new, old), updated, controller
        ), coefficients | {REPLAY_WEIGHT: weight}

    def chosen(batch: TrainBatch) -> Rows:
        advantages = base_advantages(batch, token_stats(batch))
        if advantages.shape != (len(batch.rewards), 1):
            raise ValueError(
                "advantage: must have one value for each row before its transforms of scope "
                f"'token' or 'sequence', with a replay buffer, got shape {advantages.shape}"
            )
        shapes = advantages.shape, batch.has_reward.shape
        advantages, which = replay.choose(advantages, batch.has_reward)
        if (advantages.shape, which.shape, which.dtype) != (*shapes, jnp.bool_):
            raise ValueError(
                f"replay: choose must return f32{list(shapes[0])} and bool{list(shapes[1])}, got "
                f"{advantages.dtype}{list(advantages.shape)} and {which.dtype}{list(which.shape)}"
            )
        stored = which if batch.loss_row_mask is None else which & batch.loss_row_mask
        return vars(batch) | {"rewards": advantages[:, 0], "has_reward": stored}

    def keep(rows: Rows, data: Sequence[TrainBatch]) -> Rows:
        new = [chosen(batch) for batch in data]
        before = [] if replay.only_last else [rows]
        everything = {
            name: jnp.concatenate([part[name] for part in (*before, *new)]) for name in rows
        }
        # Occupied rows move to the end in their order: the last are the newest.
        order = jnp.argsort(everything["has_reward"], stable=True)[-len(rows["has_reward"]) :]
        return jax.tree.map(lambda x: x[order], everything)

    def count(rows: Rows) -> jax.Array:
        return rows["has_reward"].reshape(shape.updates, -1).sum(1)

    def part(rows: Rows, weight: jax.Array, number: jax.Array) -> TrainBatch:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, number * shape.rows, shape.rows)  # noqa: E731
        batch = TrainBatch(**jax.tree.map(cut, rows))
        return batch.replace(rewards=batch.rewards * weight)

    def make(policy: Policy) -> UpdateFn:
        own = replay_advantage(replay, advantage)
        return make_update(policy, own, optimizer, loss, settings.without_groups())

    # Trace now, so that an error does not come after a rollout.
    batch = TrainBatch(**jax.eval_shape(lambda: empty(shape.rows, shape.prompt_tokens)))
    extras = required_extras(advantage, shape.rows, shape.new_tokens)
    jax.eval_shape(chosen, batch.replace(greedy_rewards=batch.rewards, extras=extras))
    return ReplayPrograms(
        rules=replay,
        rows_of_update=shape.rows,
        init=init,
        look=jax.jit(look, out_shardings=replicated),
        keep=jax.jit(keep, out_shardings=by_rows),
        count=jax.jit(count, out_shardings=replicated),
        part=jax.jit(part, out_shardings=by_rows),
        update=on_base(make, policy, base, (0,)),
    )
