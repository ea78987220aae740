"""Debug a non-finite update: repeat it and report which arrays are not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from entropy_rl.config.files import expand_home
from entropy_rl.escape import echo

if TYPE_CHECKING:
    import jax

    from entropy_rl.config.train import TrainConfig
    from entropy_rl.losses.loss import Loss
    from entropy_rl.types import Params, TrainBatch


@dataclasses.dataclass(frozen=True)
class DebugUpdateConfig:
    """Debug an update with a non-finite gradient: `entropy-rl debug-update`.

    Args:
      dump: Directory of the update, RUN/nonfinite_updates/NAME.
    """

    POSITIONAL: ClassVar = ("dump",)

    dump: str

    def __post_init__(self):
        expand_home(self, "dump")


def debug_update(dump: Path) -> str:
    """Repeat the forward pass and the gradient with the config and model files of the run.

    Args:
      dump: RUN/nonfinite_updates/NAME.

    Returns:
      A report of the arrays that are not finite, in the order of computation.

    Raises:
      ValueError: If there is no such update.
    """
    import jax  # here, because `debug-update --help` must not import it
    import jax.numpy as jnp

    from entropy_rl.cli.parse import parse_config
    from entropy_rl.config.train import TrainConfig
    from entropy_rl.lm_head.vocabulary import is_unused
    from entropy_rl.losses.build import build_loss
    from entropy_rl.runs.directory import CONFIG_FILE
    from entropy_rl.runs.load_model import unused_of
    from entropy_rl.runs.nonfinite_updates import is_of_critic, read_nonfinite_update

    run = dump.resolve().parent.parent
    if not (run / CONFIG_FILE).is_file():
        raise ValueError(
            f"dump: must be RUN/nonfinite_updates/NAME in the directory of a run, got {str(dump)!r}"
        )
    config = parse_config(TrainConfig, "train", ["--config", str(run / CONFIG_FILE)])
    loss = build_loss(config.loss, config.rollout.max_new_tokens)
    if is_of_critic(dump):
        init, forward, gradient = _critic(config, run, loss)
    else:
        init, forward, gradient = _policy(config, run, dump, loss)
    params, batch = read_nonfinite_update(dump, jax.eval_shape(init, jax.random.key(0)))
    found = jax.jit(forward)(params, batch)
    grads, metrics = jax.jit(gradient)(params, batch)
    recorded = {name: value for name, value in vars(batch).items() if value is not None}
    stages = {
        "parameters": params,
        "the recorded batch": recorded,
        "the forward pass": found,
        "metrics": metrics,
        "the gradient": grads,
    }
    lines = [
        f"{dump}: {len(batch.rewards)} rows, {int(batch.completion_mask.sum())} response tokens"
    ]
    unused = unused_of(run)
    strange = int((is_unused(batch.completion_ids, unused) & batch.completion_mask).sum())
    if strange:
        lines.append(
            f"{strange} of these tokens have no token in the tokenizer, and no probability"
        )
    for stage, tree in stages.items():
        found = [
            f"  {jax.tree_util.keystr(path)}: {int((~jnp.isfinite(x)).sum())} of "
            f"{x.size}{_first(x)}"
            for path, x in jax.tree.leaves_with_path(tree)
            if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) and not jnp.isfinite(x).all()
        ]
        lines += [f"{stage}: {'not finite in' if found else 'finite'}", *found]
    if jnp.isfinite(metrics["grad_norm"]):
        lines.append("the gradient is finite here: it may have overflowed on other hardware")
    return "\n".join(lines)


def _policy(
    config: TrainConfig, run: Path, dump: Path, loss: Loss
) -> tuple[Callable, Callable, Callable]:
    """Return three functions of the policy.

    `init(key)`, `forward(params, batch)` with the outputs of the forward pass, and
    `gradient(params, batch)`.
    """
    from entropy_rl.advantages import advantage_of
    from entropy_rl.distributed.sharding import Placement
    from entropy_rl.learner.gradient import make_gradient
    from entropy_rl.learner.replay import replay_advantage
    from entropy_rl.learner.replay_rule import build_replay
    from entropy_rl.learner.stats_pass import make_stats_pass
    from entropy_rl.losses.controller import update_controller
    from entropy_rl.runs.load_model import trained_policy
    from entropy_rl.runs.nonfinite_updates import is_of_replay, read_controller
    from entropy_rl.trainer.programs import pass_settings
    from entropy_rl.trainer.teacher import load_teacher, teacher_in_loss

    policy = trained_policy(config.model, run)
    advantage, settings = advantage_of(config), pass_settings(config)
    stats = make_stats_pass(policy, settings)
    if is_of_replay(dump):
        replay = build_replay(config.replay, config.rollout.group_size)
        advantage, settings = replay_advantage(replay, advantage), settings.without_groups()
    teacher = None
    if config.teacher is not None and config.teacher.top_k is not None:
        teacher = teacher_in_loss(config, load_teacher(config, Placement()))
    gradient_of = make_gradient(policy, advantage, loss, settings, teacher)
    controller = loss.controller

    def gradient(params: Params, batch: TrainBatch) -> tuple[Params, dict[str, jax.Array]]:
        if controller is None:
            return gradient_of(params, batch)
        _, coefficients = update_controller(
            controller, *read_controller(dump, controller.init()), batch
        )
        return gradient_of(params, batch, coefficients)

    return (
        policy.init,
        lambda *x: dict(zip(("log_probs", "entropy"), stats(*x), strict=True)),
        gradient,
    )


def _critic(config: TrainConfig, run: Path, loss: Loss) -> tuple[Callable, Callable, Callable]:
    """Return the functions of `_policy` for the critic."""
    import optax

    from entropy_rl.advantages import advantage_of
    from entropy_rl.learner.critic import init_critic, make_critic_gradient, make_values_pass
    from entropy_rl.models import backbone_params, read_config
    from entropy_rl.runs.load_model import find_model, model_files, trained_policy
    from entropy_rl.trainer.programs import critic_pass_settings

    path = find_model(config.critic.path) if config.critic.path else run
    own = dataclasses.replace(config.model, lora=None) if config.critic.path else config.model
    backbone, hidden_size = (
        trained_policy(own, path),
        read_config(model_files(path)).hidden_size,
    )
    settings = critic_pass_settings(config)
    values = make_values_pass(backbone, settings)
    gradient = make_critic_gradient(backbone, advantage_of(config), config.critic, loss, settings)

    def init(key: jax.Array) -> Params:
        return init_critic(
            backbone_params(backbone.init(key)), hidden_size, optax.identity()
        ).params

    return init, lambda *x: {"values": values(*x)}, gradient


def _first(x: Any) -> str:
    import numpy as np

    place = np.argwhere(~np.isfinite(np.asarray(x)))[0].tolist()
    return f", the first at {place}" if place else ""


def main(config: DebugUpdateConfig) -> None:
    """The verb `debug-update` of the command line."""
    echo(debug_update(Path(config.dump)))
