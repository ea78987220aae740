"""Compiled functions that runs of one process share.

Most of the time of a tiny run is tracing and compiling. Runs of equal configs and architectures,
such as a whole and a resumed one, get the same jitted functions here; parameters, states and
batches are arguments of these functions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest

from entropy_rl.config.train import TrainConfig
from entropy_rl.evaluation import sampling
from entropy_rl.runs import load_model
from entropy_rl.trainer import programs, setup

_LIMIT = 16  # entries of each kind; the tests of a file need few at a time


class _Shared:
    """Results of a function by key, the least recently used ones dropped."""

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, Any] = OrderedDict()

    def __call__(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._found:
            self._found[key] = make()
            if len(self._found) > _LIMIT:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]

    def clear(self) -> None:
        self._found.clear()


def share_programs(patch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the runs of this process share policies, samplers and the functions of a step.

    Args:
      patch: Undoes it.

    Returns:
      A function after which runs trace and compile anew.
    """
    make_model, make_programs = load_model.make_model, setup.make_programs
    make_generate = programs.make_generate
    models, samplers, steps = _Shared(), _Shared(), _Shared()

    def shared_model(make, params, config, placement=None, **files):
        new = make_model(make, params, config, placement, **files)
        if not isinstance(make, functools.partial):  # of SFT: its arguments are not known
            return new
        key = repr(make.args), placement and placement.mesh
        old = models(key, lambda: new)
        return dataclasses.replace(
            new,
            policy=old.policy,
            sampler=old.sampler,
            to_decode=old.to_decode,
            placement=old.placement,
        )

    def shared_generate(sampler, *, stop=None, **settings):
        def make():
            return make_generate(sampler, stop=stop, **settings)

        if stop is not None:  # it has a tokenizer
            return make()
        return samplers((sampler, *sorted(settings.items())), make)

    def shared_step(
        config, model, advantage, loss, backbone=None, max_turn_tokens=None, teacher=None
    ):
        def make():
            return make_programs(config, model, advantage, loss, backbone, max_turn_tokens, teacher)

        # Which the functions hold.
        if config.rollout.stop or model.base is not None or teacher is not None:
            return make()
        own_methods = [(path.name, path.read_text()) for path in sorted(Path().glob("*.py"))]
        ends = model.eos_ids, model.pad_id, max_turn_tokens
        key = model.policy, backbone, ends, repr(own_methods), repr(_of_programs(config))
        return steps(key, make)

    patch.setattr(load_model, "make_model", shared_model)
    patch.setattr(setup, "make_programs", shared_step)
    for module in (sampling, programs):
        patch.setattr(module, "make_generate", shared_generate)

    def forget() -> None:
        for shared in (models, samplers, steps):
            shared.clear()

    return forget


def _of_programs(config: TrainConfig) -> list[Any]:
    """What `make_programs` reads of a config, and no more than it could read."""
    left_out = {"seed", "steps", "task", "evaluation", "run"}
    fields = [field.name for field in dataclasses.fields(config) if field.name not in left_out]
    updates = config.total_updates(), config.critic and config.total_updates(critic=True)
    if config.optimizer.schedule == "constant":  # no rate depends on the length of the run
        updates = None
    return [config.run.samples_per_step, updates, *(getattr(config, name) for name in fields)]
