"""An update that was not applied, looked into: where do numbers that are not finite come in?"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, ClassVar

from entropy_rl.cli import run_verb


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """An update whose gradient was not finite: `entropy-rl replay`.

    Args:
      dump: Its directory, RUN/bad_updates/NAME.
    """

    POSITIONAL: ClassVar = ("dump",)

    dump: str


def replay(dump: Path) -> str:
    """Repeats the forward pass and the gradient, by the config and the model files of the run.

    Args:
      dump: RUN/bad_updates/NAME.

    Returns:
      What is not finite, in the order in which it is computed.

    Raises:
      ValueError: If it is no update of a run.
    """
    import jax  # here: `replay --help` need not wait for it
    import jax.numpy as jnp

    from entropy_rl.advantages import build_advantage
    from entropy_rl.bad_updates import read_bad_update
    from entropy_rl.config import TrainConfig
    from entropy_rl.config_file import parse_config
    from entropy_rl.loading import model_policy
    from entropy_rl.run_directory import CONFIG_FILE
    from entropy_rl.train import gradient_settings, stats_settings
    from entropy_rl.train_step import make_gradient, make_stats_pass

    run = dump.resolve().parent.parent
    if not (run / CONFIG_FILE).is_file():
        raise ValueError(f"{dump}: is not in the directory of a run; allowed: RUN/bad_updates/NAME")
    config = parse_config(TrainConfig, "train", ["--config", str(run / CONFIG_FILE)])
    policy = model_policy(config.model, run)
    params, batch = read_bad_update(dump, jax.eval_shape(policy.init, jax.random.key(0)))
    log_probs, entropy = jax.jit(make_stats_pass(policy, **stats_settings(config)))(params, batch)
    advantage = build_advantage(config.advantage, config.rollout.group_size)
    gradient = make_gradient(policy, advantage, config.loss, **gradient_settings(config))
    grads, metrics = jax.jit(gradient)(params, batch)
    recorded = {name: value for name, value in vars(batch).items() if value is not None}
    stages = {
        "parameters": params,
        "the recorded batch": recorded,
        "the forward pass": {"log_probs": log_probs, "entropy": entropy},
        "metrics": metrics,
        "the gradient": grads,
    }
    lines = [f"{dump}: {len(batch.rewards)} rows, {int(batch.completion_mask.sum())} response tokens"]
    for stage, tree in stages.items():
        found = [
            f"  {jax.tree_util.keystr(path)}: {int((~jnp.isfinite(x)).sum())} of {x.size}{_first(x)}"
            for path, x in jax.tree.leaves_with_path(tree)
            if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) and not jnp.isfinite(x).all()
        ]
        lines += [f"{stage}: {'not finite in' if found else 'finite'}", *found]
    if jnp.isfinite(metrics["grad_norm"]):
        lines.append("the gradient is finite here: it may have overflowed on other hardware")
    return "\n".join(lines)


def _first(x: Any) -> str:
    import numpy as np

    place = np.argwhere(~np.isfinite(np.asarray(x)))[0].tolist()
    return f", the first at {place}" if place else ""


def main(config: ReplayConfig) -> None:
    """The verb `replay` of the command line."""
    print(replay(Path(config.dump)))


if __name__ == "__main__":
    sys.exit(run_verb("replay", sys.argv[1:]))
