"""`entropy-rl train-stacked`: LoRA runs that are trained together on one frozen base."""

from __future__ import annotations

from collections.abc import Sequence

from entropy_rl.cli.parse import parse_config
from entropy_rl.config.checks import at_place
from entropy_rl.config.stack import StackConfig
from entropy_rl.config.train import TrainConfig
from entropy_rl.trainer.check_config import check_config as check_run_config
from entropy_rl.trainer.stack import check_runs, open_stack, set_up_stack
from entropy_rl.trainer.stages import make_stages
from entropy_rl.types import TrainState


def train_stacked(configs: Sequence[TrainConfig]) -> list[TrainState]:
    """Train adapters together, or resume their runs.

    Each run has its own directory, with all that `train` writes. Its steps are those of `train`,
    but for the sampling, in which the rows of all runs are decoded side by side.

    Args:
      configs: The runs: LoRA, as docs/guides/lora.md says what they must have in common.

    Returns:
      The last states.

    Raises:
      ValueError: If something in the configs cannot work; before any training.
      Interrupted: If it was asked to stop; all states are saved.
    """
    setups = set_up_stack(configs)
    with open_stack(setups) as stack:
        stages, states = [make_stages(run) for run in stack.runs], stack.states
        runs = list(zip(stack.runs, stages, strict=True))
        for step in range(int(states[0].step), configs[0].steps):
            for (run, _), state in zip(runs, states, strict=True):
                run.begin(step, state)
            batches = [one.prompts(state, step) for one, state in zip(stages, states, strict=True)]
            sampled, correct = stack.sample(states, batches, step), []
            for i, (run, (_, collect, prepare, update)) in enumerate(runs):
                stack.begin_run(i)
                experience = collect.score(states[i], batches[i], *sampled[i])
                data = prepare(states[i], experience)
                states[i], metrics = update(states[i], data)
                metrics = run.record(step, states[i], metrics, experience, data)
                correct.append(metrics["correct"])
            stack.end_step(step, states, correct)
        for (run, _), state in zip(runs, states, strict=True):
            run.finish(state)
    return states


def parse_runs(config: StackConfig) -> list[TrainConfig]:
    """Return the training configs of a stack.

    Raises:
      ValueError: If one is invalid; the message begins with its place.
    """
    found = []
    for i, recipe in enumerate(config.recipes()):
        with at_place(f"runs[{i}]"):
            file = ["--config", recipe.config]
            found.append(parse_config(TrainConfig, "train", file, overrides=recipe.overrides))
    return found


def check_config(config: StackConfig) -> None:
    """Check what needs no device and no weights, of each run and of the runs together.

    Raises:
      ValueError: If something in the configs cannot work.
    """
    configs = parse_runs(config)
    check_runs(configs)
    for i, of_run in enumerate(configs):
        with at_place(f"runs[{i}]"):
            check_run_config(of_run)


def main(config: StackConfig) -> None:
    """The verb `train-stacked` of the command line."""
    train_stacked(parse_runs(config))
