"""The public API: its names, its types for a checker, and its programs."""

import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropy_rl as er

PACKAGE = Path(er.__file__).parent
NAMESPACES = [name for name in er.__all__ if inspect.ismodule(getattr(er, name))]
NAMES = sorted(set(er.__all__) - set(NAMESPACES) - {"__version__"})


def run_fresh(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "MYPYPATH": str(PACKAGE.parent)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_there_are_few_top_level_names_and_dir_lists_them():
    assert len(NAMES) <= 45
    assert set(er.__all__) <= set(dir(er))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_a_docstring(name):
    assert inspect.getdoc(getattr(er, name))


@pytest.mark.parametrize("name", NAMESPACES)
def test_the_names_of_a_namespace_resolve(name):
    namespace = getattr(er, name)
    assert inspect.ismodule(namespace) and namespace.__doc__
    names = getattr(namespace, "__all__", dir(namespace))
    assert names and all(getattr(namespace, inner) is not None for inner in names)


def test_pass_at_k_is_a_function_and_its_module_can_be_imported():
    from entropy_rl.stats.pass_at_k import pass_at_k

    assert er.stats.pass_at_k is pass_at_k and "pass_at_k" in er.stats.__all__


def test_a_model_is_loaded_from_a_path_as_from_a_text():
    with pytest.raises(ValueError, match=r"^model\.path: must be .*, got 'nowhere'$"):
        er.load_model(Path("nowhere"))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = er.no_such_name


GOOD = """import entropy_rl as er

model = er.load_model("asset:countdown")
shape: er.Transform = er.shape_by_entropy(alpha=0.4)
advantage: er.Transform = er.chain(er.advantages.group_normalize(group_size=4), shape)
config: er.TrainConfig = er.load_config("config.yaml")
other: er.EvaluateConfig = er.load_config("config.yaml", cls=er.EvaluateConfig)
again: er.EvaluateConfig = er.load_config("config.yaml", [], er.EvaluateConfig)
state: er.TrainState = er.train(config)
"""


def test_a_type_checker_finds_a_mistyped_argument(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "good.py").write_text(GOOD)
    typos = "er.shape_by_entropy(alhpa=0.4)\ner.advantages.shape_by_entropy(alhpa=0.4)\n"
    (tmp_path / "typo.py").write_text("import entropy_rl as er\n" + typos)
    options = ("--follow-imports=silent", "--ignore-missing-imports", "--cache-dir=cache")
    good = run_fresh("-m", "mypy", *options, "good.py", cwd=tmp_path)
    assert good.returncode == 0, good.stdout
    typo = run_fresh("-m", "mypy", *options, "typo.py", cwd=tmp_path)
    lines = [line for line in typo.stdout.splitlines() if ": error:" in line]
    assert len(lines) == 2, typo.stdout
    for number, line in zip((2, 3), lines, strict=True):
        assert line.startswith(f"typo.py:{number}: error:") and "alhpa" in line


def test_the_marker_of_a_typed_package_is_there():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", marks=pytest.mark.slow),
        pytest.param("import entropy_rl.train, entropy_rl.evaluate", marks=pytest.mark.slow),
        pytest.param(
            "from entropy_rl.train import train; from entropy_rl.evaluate import evaluate_model",
            marks=pytest.mark.slow,
        ),
        "er.train; er.evaluate; import entropy_rl.train, entropy_rl.evaluate",
    ],
)
def test_programs_can_be_called_whatever_was_imported_before(before, tmp_path):
    evaluation = str(PACKAGE.parent / "configs/countdown_evaluate.yaml")
    code = f"""
import entropy_rl as er
{before}
config = er.load_config({str(PACKAGE.parent / "configs/countdown_grpo_entropy.yaml")!r},
    ["--model.path", "/no/such/model", "--run.directory", {str(tmp_path / "run")!r}])
options = ["--model.path", "/no/such/model", "--output", {str(tmp_path / "out")!r}]
for program, config in (
    (er.train, config),
    (er.evaluate, er.load_config({evaluation!r}, options, er.EvaluateConfig)),
):
    for _ in range(2):
        try:
            program(config)
        except ValueError as error:
            assert "model.path: " in str(error) and "/no/such/model" in str(error), error
            assert len(str(error).splitlines()) == 1
        else:
            raise AssertionError("no error")
print("done")
"""
    done = run_fresh("-c", code)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_an_error_of_the_file_system_is_the_line_of_the_command_line(monkeypatch):
    from entropy_rl import api

    def refuse():
        raise FileExistsError(17, "File exists", "/a/run")

    with pytest.raises(ValueError, match=r"^/a/run: File exists$"):
        api._call(refuse)


def test_a_config_that_is_built_in_python_is_checked_as_one_of_a_file(tmp_path, monkeypatch):
    seen = []
    module = importlib.import_module("entropy_rl.train")  # the attribute is the function
    monkeypatch.setattr(module, "train", seen.append)
    config = er.load_config("countdown_grpo_entropy", ["--run.directory", str(tmp_path / "run")])

    def change(config, path, value):
        name, _, below = path.partition(".")
        value = change(getattr(config, name), below, value) if below else value
        return dataclasses.replace(config, **{name: value})

    built = config
    for path, value in {
        "steps": np.int64(4),
        "optimizer.learning_rate": np.float32(0.5),
        "run.directory": tmp_path / "run",
        "advantage": ({"name": "group_normalize"}, {"name": "shape_by_entropy", "alpha": 1}),
        "task.args": {"counts": {"train": jnp.int32(8)}},
    }.items():
        built = change(built, path, value)
    er.train(built)
    er.train(config)
    found, same = seen
    assert same == config
    assert (found.steps, found.optimizer.learning_rate) == (4, 0.5)
    assert [type(x) for x in (found.steps, found.optimizer.learning_rate)] == [int, float]
    assert found.run == config.run and found.advantage[1] == {
        "name": "shape_by_entropy",
        "alpha": 1,
    }
    assert found.task.args == {"counts": {"train": 8}}
    for path, value, message in (
        ("steps", 4.5, "steps: must be an integer, got 4.5"),
        ("seed", True, "seed: must be an integer, got True"),
        ("advantage", [er.shape_by_entropy()], "advantage[0]: must be a value that a config file"),
        ("task.args", {"f": print}, "task.args.f: must be a value that a config file can have"),
        ("task", "countdown", "task: must be a mapping, got 'countdown'"),
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate: must be a number"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            er.train(change(config, path, value))
    for wrong in ("countdown_grpo", {"steps": 4}, er.EvaluateConfig):
        with pytest.raises(ValueError, match=r"^train: config: must be a TrainConfig, as of "):
            er.train(wrong)
    with pytest.raises(ValueError, match=r"^overrides: must be strings, as on the command line"):
        er.load_config("countdown_grpo", ["--steps", 4])
    assert len(seen) == 2


def test_a_model_and_the_values_of_a_run_have_short_reprs():
    model = er.load_model("asset:countdown")
    state = er.init_state(model.params, optax.adam(1e-3))
    small = jnp.zeros((2, 3))
    row = jnp.zeros(2, jnp.int32)
    batch = er.TrainBatch(small, row, small, small, small, small, small, row, row)
    for value in (model, state, batch):
        text = repr(value)
        assert len(text) < 400 and len(text.splitlines()) <= 3
    assert "150,560" in repr(model) and "150,560" in repr(state)
    assert "rewards=int32[2]" in repr(batch)
