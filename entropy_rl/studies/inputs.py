"""What the runs of a study need beside their settings: loggers, tasks with problems, models."""

from __future__ import annotations

import contextlib
import dataclasses
import json

from entropy_rl.config.checks import at_place
from entropy_rl.config.common import TaskConfig
from entropy_rl.evaluation import evaluation_problems
from entropy_rl.runs.load_model import check_models
from entropy_rl.runs.loggers import build_loggers
from entropy_rl.studies.grid import Design
from entropy_rl.tasks import Task, closing, load_task
from entropy_rl.trainer.check_config import build_methods, check_problems


def check_inputs(design: Design, models: bool) -> None:
    """Check what the runs of a study need, before the first of them.

    Args:
      design: The study.
      models: Check that the models are there too, as on the machine of the runs.

    Raises:
      ValueError: Something is not there; the message begins with its place in the study.
    """
    with contextlib.ExitStack() as opened:
        tasks: dict[str, Task] = {}

        def task_of(config: TaskConfig) -> Task:
            key = json.dumps(dataclasses.asdict(config), sort_keys=True, default=repr)
            if key not in tasks:
                tasks[key] = load_task(config.name, config.args, config.episodes)
                opened.enter_context(closing(tasks[key]))
            return tasks[key]

        for arm in design.study.arms:
            with at_place(f"arms.{arm}"):
                config = design.config_of(arm)
                build_loggers(config.run)
                check_problems(config, build_methods(config), task_of(config.task))
                if models:
                    check_models(config)
        with at_place("evaluate"):
            evaluation_problems(design.evaluate.evaluation, task_of(design.evaluate.task))
