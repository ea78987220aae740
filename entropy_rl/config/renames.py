"""Table of the names of the first edition and their current names.

A name that a user gives (in a YAML file, as an option, as a verb) is refused with its current name;
see `refusal`. What a run of the first edition has recorded is translated by `current_config` and
the other functions below, which only `entropy_rl.runs.stored` calls: all other code knows current
names alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Dotted paths of configs, by the class that has them. A rename stays on its level.
CONFIG_KEYS = {
    "batching.max_bad_updates": "batching.max_nonfinite_updates",
    "batching.prompts_per_update": "batching.mini_batch_prompts",
    "batching.tokens_per_micro_batch": "batching.max_tokens_per_micro_batch",
    "critic.tokens_per_micro_batch": "critic.max_tokens_per_micro_batch",
    "loss.selection": "loss.token_weights",
    "neighbours": "neighbors",
    "revisit": "replay",
    "run.keep_checkpoints": "run.max_to_keep",
    "schedule": "decoding",
    "tokens_per_micro_batch": "max_tokens_per_micro_batch",
}
# Fields that are in another section now.
MOVED = {"final_rate": "optimizer.final_rate"}
# Options that change no result; the program decides them.
REMOVED = ("batching.fused_loss", "batching.share_prompts", "decoding.kind")
VERBS = {"replay": "debug-update", "warmstart": "sft"}
METHODS = {
    "advantage_replay": "uec_replay",
    "amplify_by_entropy": "eapo",
    "asymmetric_normalize": "asymgrpo",
    "best_minus_second": "grpo_passk",
    "favor_rare_correct": "ucpo",
    "greedy_baseline": "remax",
    "leave_one_out": "rloo",
    "length_weighted_center": "opo",
    "mine_solved_groups": "miner",
    "pass_at_k_normalize": "pass_at_k_training",
    "policy_improvement": "pipo",
    "quantile_normalize": "qae",
    "rescaled_group_center": "gpg",
    "row_entropy_rewards": "grpo_s",
    "token_entropy_rewards": "gtpo",
}
# Methods whose successor has another formula: a recorded config keeps the old name, so that a run
# with it can be read, and a resumption is refused.
CHANGED_METHODS = ("rescaled_group_center",)
# Controllers of the first edition whose name belongs to another formula now; a user's name is
# the current one.
CONTROLLERS = {"adaptive_entropy": "per_update_adaptive_entropy"}
# (method, argument) -> value -> value.
ARGUMENTS = {("eapo", "statistics"): {"row": "sequence"}}
TASKS = {"maths": "math"}
SPLITS = {"warmstart": "sft"}  # of countdown
RECIPES = {
    "countdown_warmstart.yaml": "countdown_sft.yaml",
    "maths_evaluate.yaml": "math_evaluate.yaml",
}

# What runs record. The fields of samples.jsonl, evaluation.json, record.json, problems.json and
# starts.jsonl are the same in both editions.
METRICS = {
    "bad_updates": "nonfinite_updates",
    "revisit_weight": "replay_weight",
    "sampler_gap": "logprob_diff",
}
METRIC_GROUPS = {"revisit/": "replay/"}
# Paths in a checkpoint.
STATE_FIELDS = {
    "kept": "replay_buffer",
    "kept/memory": "replay_buffer/controller",
    "kept/rows/valid": "replay_buffer/rows/has_reward",
    "memory": "controller",
}
BATCH_FIELDS = {"learned": "loss_row_mask", "valid": "has_reward"}
# Files and directories of a run, and the kind in the name of an update that was not applied.
FILES = {"bad_updates": "nonfinite_updates", "memory.npz": "controller.npz"}
UPDATE_KINDS = {"revisit": "replay"}

_LISTS_OF_METHODS = ("advantage", "loss.token_weights")
_METHODS = ("loss.surrogate", "loss.entropy_coef", "replay")
_VALUES = VERBS | METHODS | TASKS | SPLITS | ARGUMENTS["eapo", "statistics"]


# --------------------------------------------------------------------------------------------------
# Refusing what a user gives
# --------------------------------------------------------------------------------------------------


def refusal(path: str, name: object, allowed: Iterable[object]) -> str | None:
    """Return the error for a name of the first edition; None for any other name.

    Args:
      path: Where the name is: a dotted path, as an option with "--", or after "FILE: ".
      name: The name, which is not allowed there.
      allowed: Those that are.
    """
    allowed = set(allowed)
    dotted = path.rpartition(": ")[2]
    dashes = "--" if dotted.startswith("--") else ""
    dotted = dotted.removeprefix("--").removesuffix("+")
    current = current_path(dotted)
    if current in REMOVED:
        return f"{path}: removed; the program decides it now"
    if (moved := MOVED.get(dotted)) is not None:
        return f"{path}: moved to {dashes}{moved}"
    index = dotted.split(".").index(name) if name in dotted.split(".") else None
    if index is not None and (key := current.split(".")[index]) != name and key in allowed:
        return f"{path}: renamed to {dashes}{current}"
    if (value := _VALUES.get(str(name))) in allowed:
        return f"{path}: renamed to {value}, got {name}"
    return None


def current_path(path: str) -> str:
    """Translate a dotted path of a config."""
    old, new = path.split("."), path.split(".")
    for end in range(1, len(old) + 1):
        if (current := CONFIG_KEYS.get(".".join(old[:end]))) is not None:
            new[end - 1] = current.rpartition(".")[2]
    return ".".join(new)


# --------------------------------------------------------------------------------------------------
# Translating what a run has recorded
# --------------------------------------------------------------------------------------------------


def current_config(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a recorded config of a run, an evaluation or a study.

    Args:
      plain: The config as YAML holds it. Its keys may be dotted paths, as in the overrides of a
        study.

    Returns:
      The config with current names, without options that were removed.
    """
    if not isinstance(plain.get("study"), Mapping):
        config = _current_splits(_moved(_current_section(plain, "")))
        return _current_controller(config) if _is_first_edition(plain) else config
    study = dict(plain["study"])
    for name in ("train", "evaluate"):
        if isinstance(study.get(name), Mapping):
            study[name] = _current_recipe(study[name])
    if isinstance(study.get("arms"), Mapping):
        study["arms"] = {
            arm: current_config(paths) if isinstance(paths, Mapping) else paths
            for arm, paths in study["arms"].items()
        }
    whole = {name: plain[name] for name in plain if name != "study"}
    resolved = {
        name: current_config(config) if isinstance(config, Mapping) else config
        for name, config in whole.items()
    }
    return {"study": study} | resolved


def _is_first_edition(plain: Mapping[str, Any]) -> bool:
    batching = plain.get("batching")
    return isinstance(batching, Mapping) and "prompts_per_update" in batching


def _current_controller(config: dict[str, Any]) -> dict[str, Any]:
    """Rename the controller of the entropy bonus, whose old name has another formula now."""
    loss = config.get("loss")
    spec = loss.get("entropy_coef") if isinstance(loss, Mapping) else None
    name = CONTROLLERS.get(str(spec.get("name"))) if isinstance(spec, Mapping) else None
    if name is None:
        return config
    return config | {"loss": dict(loss) | {"entropy_coef": dict(spec) | {"name": name}}}


def _moved(config: dict[str, Any]) -> dict[str, Any]:
    for old, new in MOVED.items():
        section, _, name = new.rpartition(".")
        if old in config and isinstance(config.get(section), Mapping):
            config = config | {section: dict(config[section]) | {name: config[old]}}
            del config[old]
    return config


def _current_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    config = str(recipe.get("config"))
    folder, slash, file = config.rpartition("/")
    overrides = recipe.get("overrides")
    return dict(recipe) | {
        "config": f"{folder}{slash}{RECIPES.get(file, file)}",
        "overrides": current_config(overrides) if isinstance(overrides, Mapping) else overrides,
    }


def _current_section(plain: Mapping[str, Any], above: str) -> dict[str, Any]:
    current = {}
    for key, value in plain.items():
        path = current_path(f"{above}{key}")
        if path in REMOVED:
            continue
        if not isinstance(key, str):
            current[key] = value
            continue
        name = ".".join(path.split(".")[-len(key.split(".")) :])
        current[name] = _current_value(path, f"{above}{key}", value)
    return current


def _current_value(path: str, old_path: str, value: Any) -> Any:
    if path in _LISTS_OF_METHODS and isinstance(value, list):
        return [_current_method(spec) for spec in value]
    if path in _METHODS and isinstance(value, Mapping):
        return _current_method(value)
    if path == "task.name":
        return TASKS.get(str(value), value)
    if isinstance(value, Mapping) and path != "task.args":
        return _current_section(value, f"{old_path}.")
    return value


def _current_method(spec: Any) -> Any:
    if not isinstance(spec, Mapping):
        return spec
    name = spec.get("name")
    if isinstance(name, str) and name not in CHANGED_METHODS:
        name = METHODS.get(name, name)
    arguments = {
        key: ARGUMENTS.get((str(name), key), {}).get(value, value)
        if isinstance(value, str)
        else value
        for key, value in spec.items()
    }
    return arguments | ({"name": name} if "name" in spec else {})


def _current_splits(config: dict[str, Any]) -> dict[str, Any]:
    """Splits are names of a task: those of countdown were renamed."""
    task = config.get("task")
    if not isinstance(task, Mapping) or task.get("name") != "countdown":
        return config

    def renamed(section: Any, key: str) -> Any:
        if not isinstance(section, Mapping) or key not in section:
            return dict(section) if isinstance(section, Mapping) else section
        return dict(section) | {key: SPLITS.get(str(section[key]), section[key])}

    task = renamed(task, "train_split")
    if isinstance(task.get("args"), Mapping):
        task["args"] = {
            name: {SPLITS.get(split, split): of_split for split, of_split in value.items()}
            if name in ("counts", "bands") and isinstance(value, Mapping)
            else value
            for name, value in task["args"].items()
        }
    found = config | {"task": task}
    if "evaluation" in config:
        found["evaluation"] = renamed(config["evaluation"], "split")
    return found


def current_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the metrics of a step."""
    return {_current_metric(name): value for name, value in row.items()}


def _current_metric(name: str) -> str:
    for old, new in METRIC_GROUPS.items():
        if name.startswith(old):
            return new + _current_metric(name.removeprefix(old))
    return METRICS.get(name, name)


def first_edition_name(names: Mapping[str, str], current: str) -> str | None:
    """The name in the first edition of what is called `current` now; None if it has not changed."""
    return next((old for old, new in names.items() if new == current), None)
