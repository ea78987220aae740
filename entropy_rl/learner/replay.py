"""The device programs of a `Replay`: what is kept of a rollout, and the updates on it.

ReplayState rows are rows of a `TrainBatch` whose `rewards` are their advantages, and whose `has_reward`
says which places are taken: so an update on them is any update, whose advantage has no baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from entropy_rl.advantages import NotYetKnown, Transform, baseline_and_shaping, chain
from entropy_rl.advantages.transform import LOCAL_SCOPES
from entropy_rl.config.train import TrainConfig
from entropy_rl.distributed.sharding import Placement
from entropy_rl.learner.replay_rule import REPLAY_WEIGHT, Replay, build_replay
from entropy_rl.learner.update import UpdateFn, make_update, token_stats
from entropy_rl.losses.build import loss_controller, summarize_batch
from entropy_rl.losses.controller import Coefficients
from entropy_rl.types import Policy, TrainBatch

Rows = dict[str, jax.Array]  # the fields of a `TrainBatch` that are kept
_OF_TOKENS = ("old_log_probs", "old_entropy", "sampler_log_probs")


@struct.dataclass
class ReplayState:
    """The part of a `TrainState` that belongs to a replay."""

    rows: Rows
    controller: Any


class ReplayPrograms(NamedTuple):
    """What a step runs on the device for a replay.

    Attributes:
      rules: What is kept and when.
      rows_of_update: Rows of one of its updates, as many as any other has.
      init: (tokens of a prompt at most) -> `ReplayState` before the first rollout.
      look: (controller, step int32[], mini-batches) -> (controller, coefficients), for the rollout
        that these are.
      keep: (rows, mini-batches) -> rows.
      count: (rows) -> int32[U], rows that there are for each of its updates.
      part: (rows, weight f32[], number int32[]) -> the `TrainBatch` of an update.
      update: As of `make_update`.
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
    """What is left to do for the advantages of kept rows."""
    return baseline_and_shaping(advantage)[1] if replay.shaped else chain()


def replay_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of `make_gradient` for kept rows: they are in no groups."""
    return settings | {"group_size": None}


def check_replay(config: TrainConfig, advantage: Transform) -> Replay | None:
    """Builds the replay of a config, and checks that the rest of it admits one.

    Raises:
      ValueError: If it does not.
    """
    replay = build_replay(config.replay, config.rollout.group_size)
    if replay is None:
        return None
    name = config.replay["name"]
    if config.critic is not None:
        raise ValueError(f"critic: a critic is not allowed with replay: {name}; allowed: null")
    if loss_controller(config.loss) is not None:
        raise ValueError(
            f"replay: {name} is not allowed with a loss that has a controller, which is of new "
            "rollouts alone; "
            "allowed: null, or a number as loss.entropy_coef and another loss.surrogate"
        )
    first = len(baseline_and_shaping(advantage)[0].members)  # of the transforms that shape
    for i, member in enumerate(chain(advantage).members):
        if member.needs_policy or (
            i > first and replay.shaped and member.scope not in LOCAL_SCOPES
        ):
            raise ValueError(
                f"advantage[{i}]: must not need the policy, and must be of scope 'token' or "
                f"'sequence' behind one of these, with replay: {name}; got scope {member.scope!r}, "
                f"needs_policy={member.needs_policy}"
            )
    return replay


def make_replay_programs(
    config: TrainConfig,
    policy: Policy,
    advantage: Transform,
    optimizer: optax.GradientTransformation,
    placement: Placement,
    **settings: Any,
) -> ReplayPrograms | None:
    """Builds the programs of the replay of a config; None if it has none.

    Args:
      config: The config.
      policy: The model.
      advantage: The chain of the config.
      optimizer: That of the other updates, whose state it goes on with.
      placement: Where rows lie.
      **settings: Those of the other updates.

    Raises:
      ValueError: As `check_replay`; or if the baseline has more than one advantage for a row.
    """
    replay = check_replay(config, advantage)
    if replay is None:
        return None
    baseline, _ = baseline_and_shaping(advantage)
    rollout, mesh = config.rollout, placement.mesh
    of_update = config.batching.mini_batch_prompts * rollout.group_size
    updates = replay.rollouts * (rollout.prompts // config.batching.mini_batch_prompts)
    of_rows = None if mesh is None else placement.of_rows()
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def empty(rows: int, prompt_tokens: int) -> Rows:
        new = rollout.max_new_tokens
        numbers = {name: jnp.zeros((rows, new)) for name in _OF_TOKENS}
        if config.loss.kl_coef:
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
        make = jax.jit(lambda: empty(updates * of_update, prompt_tokens), out_shardings=of_rows)
        return ReplayState(
            rows=make(), controller=jax.jit(replay.controller.init, out_shardings=whole)()
        )

    def look(
        controller: Any, step: jax.Array, data: Sequence[TrainBatch]
    ) -> tuple[Any, Coefficients]:
        batch = jax.tree.map(lambda *x: jnp.concatenate(x), *data)
        summary, coefficients = replay.controller.update(controller, summarize_batch(step, batch))
        # A rollout without a judgement says nothing.
        judged = batch.has_reward.any()
        coefficients = coefficients | {
            REPLAY_WEIGHT: jnp.where(judged, coefficients[REPLAY_WEIGHT], 0)
        }
        return jax.tree.map(
            lambda new, old: jnp.where(judged, new, old), summary, controller
        ), coefficients

    def chosen(batch: TrainBatch) -> Rows:
        stats = token_stats(batch, log_probs=NotYetKnown(), entropy=NotYetKnown())
        advantages = baseline(batch.rewards[:, None], stats)
        if advantages.shape != (len(batch.rewards), 1):
            raise ValueError(
                f"replay: {config.replay['name']} needs one advantage for each row; allowed: a "
                "chain "
                "`advantage` that tells tokens apart in transforms of scope 'token' or 'sequence' alone"
            )
        advantages, which = replay.choose(advantages, batch.has_reward)
        learned = which if batch.loss_row_mask is None else which & batch.loss_row_mask
        return vars(batch) | {"rewards": advantages[:, 0], "has_reward": learned}

    def keep(rows: Rows, data: Sequence[TrainBatch]) -> Rows:
        new = [chosen(batch) for batch in data]
        before = [] if replay.only_last else [rows]
        everything = {
            name: jnp.concatenate([part[name] for part in (*before, *new)]) for name in rows
        }
        # Those that are there stand behind those that are not, in their order: the last are the
        # newest.
        order = jnp.argsort(everything["has_reward"], stable=True)[-len(rows["has_reward"]) :]
        return jax.tree.map(lambda x: x[order], everything)

    def count(rows: Rows) -> jax.Array:
        return rows["has_reward"].reshape(updates, -1).sum(1)

    def part(rows: Rows, weight: jax.Array, number: jax.Array) -> TrainBatch:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, number * of_update, of_update)  # noqa: E731
        batch = TrainBatch(**jax.tree.map(cut, rows))
        return batch.replace(rewards=batch.rewards * weight)

    batch = TrainBatch(**jax.eval_shape(lambda: empty(of_update, rollout.max_prompt_tokens)))
    jax.eval_shape(
        chosen, batch.replace(greedy_rewards=batch.rewards)
    )  # now, and not after a rollout
    return ReplayPrograms(
        rules=replay,
        rows_of_update=of_update,
        init=init,
        look=jax.jit(look, out_shardings=whole),
        keep=jax.jit(keep, out_shardings=of_rows),
        count=jax.jit(count, out_shardings=whole),
        part=jax.jit(part, out_shardings=of_rows),
        update=make_update(
            policy,
            replay_advantage(replay, advantage),
            optimizer,
            config.loss,
            **replay_settings(settings),
        ),
    )
