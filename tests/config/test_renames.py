"""The table of renames agrees with both editions, and no old name is accepted.

`tests/golden/first_edition/names.json` lists the names of the first edition.
"""

import dataclasses
import inspect
import json
import typing
from pathlib import Path

import pytest
import yaml

from entropy_rl import types
from entropy_rl.cli.main import _VERBS, main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config import renames
from entropy_rl.config.registry import _public_functions, import_object
from entropy_rl.config.values import section_of
from entropy_rl.learner.replay import ReplayState
from entropy_rl.runs import directory, nonfinite_updates, stored
from entropy_rl.tasks import _BUILT_IN
from entropy_rl.tasks.countdown import game

ROOT = Path(__file__).parents[2]
FIRST = json.loads((ROOT / "tests/golden/first_edition/names.json").read_text())
METHODS = dict(_public_functions())


def paths_of(cls, above=""):
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{above}{field.name}"
        if (section := section_of(hints[field.name])) is not None:
            yield from paths_of(section, f"{above}{field.name}.")


def paths_of_verb(verb):
    return set(paths_of(import_object("verb", _VERBS[verb][0])))


OLD_PATHS = sorted({path for paths in FIRST["verbs"].values() for path in paths})
RENAMED = [path for path in OLD_PATHS if renames.current_path(path) != path]


# --- the table is complete: what the first edition had is there, by its name or its current one
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", FIRST["verbs"])
def test_every_option_of_the_first_edition_exists_or_was_removed(verb):
    current = paths_of_verb(renames.VERBS.get(verb, verb))
    for path in FIRST["verbs"][verb]:
        path = renames.current_path(path)
        path = renames.MOVED.get(path, path) if path not in current else path
        assert path in current or path in renames.REMOVED, path


def test_every_method_of_the_first_edition_exists_with_its_arguments():
    for name, arguments in FIRST["methods"].items():
        method = METHODS[renames.METHODS.get(name, name)]
        assert set(arguments) <= set(inspect.signature(method).parameters)


def test_every_task_and_split_of_the_first_edition_exists():
    assert {renames.TASKS.get(name, name) for name in FIRST["tasks"]} <= set(_BUILT_IN)
    assert {renames.SPLITS.get(name, name) for name in FIRST["splits"]} <= set(game.SPLITS)


def test_every_metric_of_the_first_edition_is_documented_by_its_current_name():
    text = (ROOT / "docs/metrics.md").read_text()
    for name in FIRST["metrics"]:
        (current,) = renames.current_metrics({name: 0.0})
        assert f"`{current}`" in text or current == "time/*", name


def test_every_field_of_a_state_and_of_a_batch_exists():
    states = {
        "": {field.name for field in dataclasses.fields(types.TrainState)},
        "replay_buffer/": {field.name for field in dataclasses.fields(ReplayState)},
        "replay_buffer/rows/": {field.name for field in dataclasses.fields(types.TrainBatch)},
    }
    current = {f"{above}{name}" for above, names in states.items() for name in names}
    for path in FIRST["state"]:
        found = renames.STATE_FIELDS.get(path, path.replace("kept/", "replay_buffer/"))
        assert found in current, path
    batch = states["replay_buffer/rows/"]
    recorded = set(FIRST["batch"]) - {"external_weights"}  # which no run had
    assert {renames.BATCH_FIELDS.get(name, name) for name in recorded} <= batch


def test_every_file_of_a_run_exists():
    modules = (directory, nonfinite_updates, stored)
    names = {value for module in modules for value in vars(module).values() if type(value) is str}
    assert {renames.FILES.get(name, name) for name in FIRST["files"]} <= names


def test_every_renamed_recipe_exists():
    for old, new in renames.RECIPES.items():
        assert (ROOT / "configs" / new).is_file() and not (ROOT / "configs" / old).exists()


# --- the table is right: it names nothing that was not there, or that is still there
# -------------------------------------------------------------------------------------------------


def test_no_old_name_is_accepted():
    for verb in _VERBS:
        assert not paths_of_verb(verb) & set(renames.REMOVED)
    for path in RENAMED:
        old = next(verb for verb, paths in FIRST["verbs"].items() if path in paths)
        assert path not in paths_of_verb(renames.VERBS.get(old, old)), path
    assert not set(renames.VERBS) & set(_VERBS)
    assert not set(renames.METHODS) & set(METHODS)
    assert not set(renames.TASKS) & set(_BUILT_IN)
    assert not set(renames.SPLITS) & set(game.SPLITS)
    fields = {field.name for field in dataclasses.fields(types.TrainState)}
    assert not set(renames.STATE_FIELDS) & fields
    assert not set(renames.BATCH_FIELDS) & {f.name for f in dataclasses.fields(types.TrainBatch)}


def test_the_table_has_names_of_the_first_edition_only():
    assert {path for path in renames.CONFIG_KEYS} <= set(OLD_PATHS)
    assert set(renames.VERBS) <= set(FIRST["verbs"])
    assert set(renames.METHODS) <= set(FIRST["methods"])
    assert set(renames.TASKS) <= set(FIRST["tasks"]) and set(renames.SPLITS) <= set(FIRST["splits"])
    assert set(renames.METRICS) <= set(FIRST["metrics"])
    assert {f"{name}*" for name in renames.METRIC_GROUPS} <= set(FIRST["metrics"])
    assert set(renames.STATE_FIELDS) <= set(FIRST["state"])
    assert set(renames.BATCH_FIELDS) <= set(FIRST["batch"])
    assert set(renames.FILES) <= set(FIRST["files"])


# --- what a user gives is refused in one line, with exit code 2
# -------------------------------------------------------------------------------------------------


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.partition(": ")[2]


@pytest.mark.parametrize("old", renames.VERBS)
def test_an_old_verb_is_refused(old, capsys):
    assert refused(capsys, old, "x") == f"verb: renamed to {renames.VERBS[old]}, got {old}"


@pytest.mark.parametrize("path", RENAMED)
def test_an_old_option_is_refused_on_the_command_line_and_in_a_file(path, capsys, tmp_path):
    old = next(verb for verb, paths in FIRST["verbs"].items() if path in paths)
    verb, current = renames.VERBS.get(old, old), renames.current_path(path)
    if current in renames.REMOVED:
        assert refused(capsys, verb, f"--{path}", "1") == (
            f"--{path}: removed; the program decides it now"
        )
        return
    assert refused(capsys, verb, f"--{path}", "1") == f"--{path}: renamed to --{current}"
    file, content = tmp_path / "config.yaml", 1
    for name in reversed(path.split(".")):
        content = {name: content}
    file.write_text(json.dumps(content))
    # A file is refused at the first name on the way down that was renamed.
    above = next(
        ".".join(path.split(".")[:end])
        for end in range(1, 9)
        if renames.current_path(".".join(path.split(".")[:end])) != ".".join(path.split(".")[:end])
    )
    wanted = f"{file}: {above}: renamed to {renames.current_path(above)}"
    assert refused(capsys, verb, "--config", str(file)) == wanted


@pytest.mark.parametrize("path", renames.REMOVED)
def test_a_removed_option_is_refused(path, capsys):
    line = refused(capsys, "train", f"--{path}", "auto")
    assert line == f"--{path}: removed; the program decides it now"


@pytest.mark.parametrize("old", renames.METHODS)
def test_an_old_method_is_refused(old):
    from entropy_rl.config.registry import build_named
    from entropy_rl.learner.replay_rule import Replay

    kind = METHODS[renames.METHODS[old]].__annotations__["return"]
    kind = Replay if kind == "Replay" else import_object("", f"entropy_rl.advantages:{kind}")
    given = {"group_size": (4, "rollout.group_size"), "gamma": (1.0, "critic.gamma")}
    with pytest.raises(ValueError, match=f"^here.name: renamed to {renames.METHODS[old]}, got"):
        build_named({"name": old}, "here", kind, returns="one", given=given)


def test_an_old_task_split_and_value_are_refused(capsys):
    recipe = ["train", "--config", str(ROOT / "configs/countdown_grpo.yaml")]
    recipe += ["--run.directory", "nowhere"]
    assert refused(capsys, *recipe, "--task.name", "maths") == (
        "task.name: renamed to math, got maths"
    )
    eapo = '[{"name": "group_normalize"}, {"name": "eapo", "statistics": "row"}]'
    assert refused(capsys, *recipe, "--advantage", eapo) == (
        "advantage[1].statistics: renamed to sequence, got row"
    )


def test_an_old_name_in_an_arm_of_a_study_is_refused(capsys, tmp_path):
    arms = '{"one": {"loss.selection": []}}'
    recipe = ["study", "--config", str(ROOT / "configs/study/tiny.yaml"), "--hypotheses", "[]"]
    line = refused(capsys, *recipe, "--arms", arms, "--output", str(tmp_path / "study"))
    assert line == "arms.one: --loss.selection: renamed to --loss.token_weights"


# --- what a run has recorded is translated
# -------------------------------------------------------------------------------------------------


def test_a_translated_config_is_one_of_today():
    old = {
        "task": {
            "name": "countdown",
            "args": {"counts": {"warmstart": 2, "test": 3}, "seed": 1},
            "train_split": "warmstart",
        },
        "advantage": [
            {"name": "leave_one_out"},
            {"name": "amplify_by_entropy", "statistics": "row"},
            {"name": "mine:own", "selection": 1},
        ],
        "loss": {"selection": [{"name": "erc"}], "entropy_coef": 0.0},
        "schedule": {"kind": "auto", "slots": None},
        "revisit": {"name": "policy_improvement"},
        "evaluation": {"split": "warmstart"},
    }
    new = {
        "task": {
            "name": "countdown",
            "args": {"counts": {"sft": 2, "test": 3}, "seed": 1},
            "train_split": "sft",
        },
        "advantage": [
            {"name": "rloo"},
            {"name": "eapo", "statistics": "sequence"},
            {"name": "mine:own", "selection": 1},
        ],
        "loss": {"token_weights": [{"name": "erc"}], "entropy_coef": 0.0},
        "decoding": {"slots": None},
        "replay": {"name": "pipo"},
        "evaluation": {"split": "sft"},
    }
    assert renames.current_config(old) == new == renames.current_config(new)


def test_a_method_whose_formula_has_changed_keeps_its_recorded_name():
    (name,) = renames.CHANGED_METHODS
    config = {"advantage": [{"name": name}]}
    assert name in renames.METHODS and renames.current_config(config) == config


def test_a_translated_study_has_current_names_in_its_overrides():
    old = {
        "study": {
            "train": {"config": "configs/countdown_warmstart.yaml", "overrides": {}},
            "evaluate": {"config": "e.yaml", "overrides": {"schedule.kind": "shrink"}},
            "arms": {"a": {"batching.prompts_per_update": 4}, "b": {"revisit": None}},
        },
        "train": {"run": {"keep_checkpoints": 1}},
        "evaluate": {"schedule": {"slots": 3}},
    }
    assert renames.current_config(old) == {
        "study": {
            "train": {"config": "configs/countdown_sft.yaml", "overrides": {}},
            "evaluate": {"config": "e.yaml", "overrides": {}},
            "arms": {"a": {"batching.mini_batch_prompts": 4}, "b": {"replay": None}},
        },
        "train": {"run": {"max_to_keep": 1}},
        "evaluate": {"decoding": {"slots": 3}},
    }


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"study": None},
        {"study": {"train": 1, "arms": {"a": None}}},
        {"task": {"name": ["countdown"], "args": 1}},
        {"task": {"name": "countdown", "args": {"counts": 1}, "train_split": []}},
        {"advantage": ["gae", {"name": [], "x": "y"}, {}], "loss": {"surrogate": None}, 3: 4},
    ],
)
def test_what_is_no_config_is_translated_to_itself(plain):
    assert renames.current_config(plain) == plain


def test_translated_metrics_keep_their_order_and_values():
    old = {"step": 1, "sampler_gap": 0.5, "revisit/sampler_gap": 1.5, "revisit_weight": None}
    found = renames.current_metrics(old)
    assert list(found.items()) == [
        ("step", 1),
        ("logprob_diff", 0.5),
        ("replay/logprob_diff", 1.5),
        ("replay_weight", None),
    ]


def test_a_recipe_of_today_is_not_changed_by_the_translation():
    recipes = sorted((ROOT / "configs").glob("**/*.yaml"))
    assert len(recipes) > 15
    for path in recipes:
        plain = yaml.safe_load(path.read_text())
        assert renames.current_config(plain) == plain, path


def test_only_the_reader_and_the_refusals_know_the_table():
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "entropy_rl").rglob("*.py")
        if "config.renames" in path.read_text() or "config import renames" in path.read_text()
    }
    assert users == {
        f"entropy_rl/{name}.py" for name in ("cli/parse", "config/values", "runs/stored")
    }


def test_a_file_that_no_run_recorded_is_not_translated(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("revisit: null\n")
    cls = import_object("verb", _VERBS["train"][0])
    with pytest.raises(ValueError, match="revisit: renamed to replay"):
        parse_config(cls, "train", ["--config", str(file)])
    (tmp_path / "starts.jsonl").write_text("")
    with pytest.raises(ValueError, match="missing: seed"):
        parse_config(cls, "train", ["--config", str(file)])
