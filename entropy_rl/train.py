"""Reinforcement learning with verifiable rewards: the main program.

A step is five calls:
  1. prompts   the next prompts of the seeded order
  2. collect   G completions per prompt, sampled by the current policy, judged and rewarded; with
               dynamic sampling or exploration if configured
  3. prepare   mini-batches with old and reference log-probs, and the values of a critic
  4. update    per mini-batch: token stats -> advantage -> loss -> gradient -> optimizer; the update
               of a critic before it, and updates on a replay buffer, if configured
  5. record    metrics and samples, periodically an evaluation and a checkpoint
A step is a pure function of the state, the config and its number, so that a killed run resumes from
its last checkpoint with identical results.
"""

from __future__ import annotations

import sys

from entropy_rl.cli.main import run_verb
from entropy_rl.config.train import TrainConfig
from entropy_rl.trainer.setup import set_up
from entropy_rl.trainer.stages import make_stages
from entropy_rl.trainer.training_run import open_training
from entropy_rl.types import TrainState


def train(config: TrainConfig) -> TrainState:
    """Train a policy, or resume the run in `config.run.directory`.

    Args:
      config: All settings. `run.directory` receives config.yaml, metrics.jsonl, samples.jsonl,
        checkpoints, evaluations and curves.

    Returns:
      The last state.

    Raises:
      ValueError: If something in the config cannot work; before any training.
      Interrupted: If the run was asked to stop; its state is saved.
    """
    setup = set_up(config)
    with open_training(setup) as (run, state):
        prompts, collect, prepare, update = make_stages(run)
        for step in range(int(state.step), config.steps):
            run.begin(step, state)
            batch = prompts(state, step)
            experience = collect(state, batch, step)
            data = prepare(state, experience)
            state, metrics = update(state, data)
            run.record(step, state, metrics, experience, data)
        run.finish(state)
    return state


def main(config: TrainConfig) -> None:
    """The verb `train` of the command line."""
    train(config)


if __name__ == "__main__":
    sys.exit(run_verb("train", sys.argv[1:]))
