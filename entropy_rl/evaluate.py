"""Pass@K of a model or a run, with intervals, and every sample on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from entropy_rl.cli import run_verb
from entropy_rl.config import EvaluateConfig
from entropy_rl.evaluation import Evaluation, evaluate, evaluation_prompts
from entropy_rl.files import write_atomically, write_jsonl
from entropy_rl.loading import load_model
from entropy_rl.metrics import Progress
from entropy_rl.report import evaluation_table
from entropy_rl.run_directory import SAMPLES_FILE, check_directory, claim_directory
from entropy_rl.tasks import closing, load_task

RESULT_FILE = "evaluation.json"


def evaluate_model(config: EvaluateConfig) -> Evaluation:
    """Evaluates `config.model` and writes evaluation.json and samples.jsonl into `config.output`.

    Raises:
      ValueError: If something in the config cannot work; before any sampling.
    """
    directory = Path(config.output)
    ours = {"field": "output", "free": ("output",)}
    check_directory(directory, config, **ours)
    task = load_task(config.task.name, config.task.args)
    task.problems(config.evaluation.split)  # whether there is such a split need not wait for the model
    model = load_model(config.model)
    prompts = evaluation_prompts(config.evaluation, task, model.tokenizer, config.max_prompt_tokens)
    claim_directory(directory, config, **ours)
    samples = directory / SAMPLES_FILE
    samples.unlink(missing_ok=True)

    total = len(prompts) * config.evaluation.samples
    with closing(task), Progress("samples", total, every=max(1, total // 20)) as progress:

        def on_rows(done: int, _: int, rows: list[dict[str, Any]]) -> None:
            write_jsonl(samples, rows)
            progress.show(done, "")

        result = evaluate(
            model,
            model.params,
            task,
            prompts,
            config.evaluation,
            seed=config.seed,
            on_rows=on_rows,
        )
    write_atomically(directory / RESULT_FILE, json.dumps(result.to_plain(), indent=1) + "\n")
    return result


def main(config: EvaluateConfig) -> None:
    """The verb `evaluate` of the command line."""
    print(evaluation_table({config.model.path: evaluate_model(config)}))
    print(f"\neverything: {Path(config.output) / RESULT_FILE} and {SAMPLES_FILE} beside it")


if __name__ == "__main__":
    sys.exit(run_verb("evaluate", sys.argv[1:]))
