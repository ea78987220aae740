"""`~` in paths of a config, wherever they are given."""

import pytest

from entropy_rl.cli.main import config_classes
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.common import RunConfig
from entropy_rl.config.recipes import find_config
from entropy_rl.config.registry import import_object
from entropy_rl.tasks.data_files.files import find_data_files
from entropy_rl.tasks.math.sets import data_root

RECIPES = {
    "train": ["--config", "countdown_grpo"],
    "sft": ["--config", "countdown_sft"],
    "evaluate": ["--config", "countdown_evaluate"],
    "study": ["--config", "study/tiny"],
    "plan": ["--config", "countdown_grpo", "--devices", "1"],
    "plan-sft": ["--config", "smollm2_sft", "--devices", "1"],
    "sample": ["model", "question"],
    "analyze": ["--model", "null"],
    "report": [],
    "compare": [],
    "export": ["--model", "model"],
    "data select": [
        "--model.path",
        "m",
        "--data.train",
        "d",
        "--data.max_tokens",
        "9",
        "--keep",
        "1",
    ],
    "debug-update": [],
}
_SUFFIX = {"sample": ".svg", "report": ".html"}


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        ("train", ["run.directory", "run.checkpoints"]),
        ("sft", ["run.directory", "run.checkpoints"]),
        ("evaluate", ["output"]),
        ("study", ["output"]),
        ("plan", ["output"]),
        ("plan-sft", ["output"]),
        ("sample", ["figure"]),
        ("analyze", ["samples", "base", "output"]),
        ("report", ["output", "figures", "runs"]),
        ("compare", ["run_a", "run_b", "output"]),
        ("export", ["output"]),
        ("data select", ["output"]),
        ("debug-update", ["dump"]),
    ],
)
def test_a_tilde_in_a_path_is_the_home_directory(verb, names, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = {name: f"~/{name}{_SUFFIX.get(verb, '')}" for name in names}
    options = [f"--{name}={[path] if name == 'runs' else path}" for name, path in given.items()]
    cls = import_object("verb", config_classes()[verb])
    config = parse_config(cls, verb, [*RECIPES[verb], *options])
    for name, path in given.items():
        section, _, field = name.rpartition(".")
        found = getattr(getattr(config, section) if section else config, field)
        expected = path.replace("~", "/home/me")
        assert found == ([expected] if name == "runs" else expected)


def test_the_home_of_a_user_that_does_not_exist_is_the_name_of_a_file():
    path = "~no-such-user/x"
    assert RunConfig(path).directory == path
    assert find_data_files("train", path, "train") == {}
    assert str(data_root(path)) == path
    with pytest.raises(ValueError, match=r"^--config: must be a file or one of the recipes"):
        find_config(path)
