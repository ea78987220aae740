"""Recognize a config file of another verb."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from entropy_rl.config.registry import import_object

# Config class -> the verbs that read its files. Only classes that are imported without a program.
_VERBS = {
    "entropy_rl.config.train:TrainConfig": ("train", "plan"),
    "entropy_rl.config.sft:SFTConfig": ("sft", "plan-sft"),
    "entropy_rl.config.evaluate:EvaluateConfig": ("evaluate",),
    "entropy_rl.config.stack:StackConfig": ("train-stacked",),
    "entropy_rl.config.study:StudyConfig": ("study",),
}


def verbs_of(names: Collection[str]) -> tuple[str, ...]:
    """Return the verbs whose config has all of these top-level names; none without one."""
    for cls, verbs in _VERBS.items():
        fields = dataclasses.fields(import_object("config", cls))
        if set(names) <= {field.name for field in fields}:
            return verbs
    return ()
