"""Adapters that are trained together: each run is that of its adapter alone, up to rounding."""

import contextlib
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from run_records import assert_same_run, lines_of, metrics_of
from tiny_runs import TRAIN, run, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.plan import PlanConfig
from entropy_rl.planning.abstract import abstract_run
from entropy_rl.planning.decoding import rollout_of
from entropy_rl.planning.devices import virtual_devices
from entropy_rl.planning.shapes import find_architecture
from entropy_rl.trainer.programs import make_sampler

LORA = {"rank": 4, "alpha": 8.0}
CONFIG = TRAIN | {"model": {"path": "model", "lora": LORA}}
PLAIN = [{"name": "group_normalize"}]
# Two seeds of one recipe, which share compiled functions, and another advantage.
RUNS = ({"seed": 0}, {"seed": 1}, {"seed": 0, "advantage": PLAIN})


def stacked(prefix, runs=RUNS, **more):
    entries = [
        {
            "config": "stacked.yaml",
            "overrides": run | {"run.directory": f"{prefix}{i}"} | more,
        }
        for i, run in enumerate(runs)
    ]
    return ["train-stacked", "--runs", json.dumps(entries)]


@pytest.fixture(scope="module")
def whole(workspace):
    """Stacked runs that were never interrupted."""
    write_yaml(workspace / "stacked.yaml", CONFIG)
    with contextlib.chdir(workspace):
        assert main(stacked("whole")) == 0
    return workspace


@pytest.mark.parametrize(
    "number", [*(pytest.param(number, marks=pytest.mark.slow) for number in (0, 1)), 2]
)
def test_a_stacked_run_is_the_one_of_its_adapter_alone_up_to_rounding(whole, here, number):
    own = [f"--{name}={json.dumps(value)}" for name, value in RUNS[number].items()]
    alone = f"alone{number}"
    options = ["--steps", "4", "--run.directory", alone]
    assert main(["train", "--config", "stacked.yaml", *own, *options]) == 0
    np.testing.assert_allclose(
        metrics_of(whole / f"whole{number}")[:4], metrics_of(whole / alone), rtol=1e-4, atol=1e-5
    )
    for one, other in zip(
        lines_of(whole / f"whole{number}" / "samples.jsonl"),
        lines_of(whole / alone / "samples.jsonl"),
        strict=False,
    ):
        for name in ("step", "problem", "sample", "tokens", "reward"):
            assert one[name] == other[name]
        np.testing.assert_allclose(one["log_probs"], other["log_probs"], atol=1e-4)


def test_the_time_of_a_step_is_that_of_its_run(whole):
    files = [whole / f"whole{i}" / "metrics.jsonl" for i in (0, 2)]
    first, last = (json.loads(file.read_text().splitlines()[0]) for file in files)
    rest = last["time/step"] - last["time/rollout"] - last["time/verdicts"] - last["time/updates"]
    assert 0 <= rest < first["time/updates"]  # in which the first run compiled


def test_stacked_runs_that_are_killed_end_as_ones_that_never_were(whole, here, capsys):
    # The first run has its checkpoint of step 4 by then, the second one begins it.
    die = {"DIE_WHERE_IT_EXISTS": "killed1/checkpoints/4.*tmp*"}
    result = run(whole, *stacked("killed"), env=die)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert (whole / "killed0/checkpoints/4").is_dir()
    assert main(stacked("killed")) == 0
    said = capsys.readouterr().err
    for i in range(3):
        assert f"resuming killed{i} after step 2 of 6\n" in said
        assert_same_run(whole / f"whole{i}", whole / f"killed{i}")


def test_a_run_that_is_ahead_of_the_others_is_not_taken_back(whole, here, capsys):
    shutil.copytree("whole0", "ahead0")
    assert main(stacked("ahead", RUNS[:2])) == 2
    assert capsys.readouterr().err.endswith(
        "runs[0].run.directory: must not be ahead of the newest checkpoint of all runs, which is "
        "of step 0, got ahead0 with checkpoints of steps 4, 6\n"
    )
    assert len(lines_of(whole / "ahead0" / "metrics.jsonl")) == 6


def test_the_planned_rollout_is_that_of_the_runs(whole, here, monkeypatch):
    """The shapes of its parameters, prompts and random keys."""
    seen = {}

    def recorded(*args, **settings):
        generate = make_sampler(*args, **settings)
        return lambda *args, **more: seen.update(args=args) or generate(*args, **more)

    monkeypatch.setattr("entropy_rl.trainer.stack.make_sampler", recorded)
    assert main(stacked("planned", [run | {"steps": 1} for run in RUNS])) == 0
    longest = str(seen["args"][1].shape[1])  # of the prompts that there are
    options = ["--stacked", "3", "--devices", "1", "--rollout.max_prompt_tokens", longest]
    config = parse_config(PlanConfig, "plan", ["--config", "stacked.yaml", *options])
    plan = abstract_run(config, find_architecture(config), virtual_devices(1, None))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    rollout = rollout_of(plan, memory=1e12)
    assert shapes(seen["args"]) == shapes((rollout.params, *rollout.prompts[:3], keys))
    assert (rollout.programs.sampling.adapters, rollout.decoding.slots) == (3, 3 * 4 * 4)


@pytest.mark.slow
def test_stacked_runs_that_are_stopped_end_as_ones_that_never_were(whole, here):
    # The seventh verdicts are those of the first run in its third step.
    result = run(whole, *stacked("stopped"), env={"SIGNAL_AT_CALL": "SIGTERM:7"})
    assert result.returncode == 128 + signal.SIGTERM
    assert "stopped after step 3; the same command goes on from there" in result.stderr
    assert main(stacked("stopped")) == 0
    for i in range(3):
        assert_same_run(whole / f"whole{i}", whole / f"stopped{i}")


def test_the_base_is_in_memory_once(whole, here):
    from entropy_rl.cli.parse import parse_config
    from entropy_rl.commands.train_stacked import parse_runs
    from entropy_rl.config.stack import StackConfig
    from entropy_rl.trainer.stack import set_up_stack

    config = parse_config(StackConfig, "train-stacked", stacked("unused")[1:])
    first, second, other = set_up_stack(parse_runs(config))
    jax.tree.map(
        lambda *leaves: len({x.unsafe_buffer_pointer() for x in leaves}) == 1 or pytest.fail(),
        *(setup.model.base.params for setup in (first, second, other)),
    )
    assert second.programs is first.programs is not other.programs
    a, b, c = (setup.start.params["layers"]["mlp"]["up_proj"] for setup in (first, second, other))
    np.testing.assert_array_equal(a["lora_a"], c["lora_a"])
    assert (a["lora_a"] != b["lora_a"]).all()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"runs": RUNS[:1]}, "runs: must be a list of at least two runs, got "),
        ({"model.lora": None}, "runs[0].model.lora: must be the section of LoRA, got None"),
        ({"run.max_to_keep": 1}, "runs[0].run.max_to_keep: must be >= 2 in runs that train "
         "together, got 1"),
        ({"run.directory": "same"}, "runs[1].run.directory: must be another one for each run, got"),
        ({"runs": [{}, {"steps": 3}]}, "runs[1].steps: must be the same in all runs that train "
         "together, got 3"),
        ({"runs": [{}, {"run.checkpoint_every": 3}]}, "runs[1].run.checkpoint_every: must be 2, as "
         "in all, got 3"),
        ({"runs": [{}, {"evaluation": {"split": "test", "samples": 2, "max_new_tokens": 8}}]},
         "runs[1].evaluation: must be given in all runs or in none, got "),
        ({"task.name": "countdown_turns"}, "runs[0]: task.name: must be a task of a single turn in "
         "runs that train together, got 'countdown_turns'"),
        ({"runs": [{}, {"sede": 3}]}, "runs[1]: "),
        ({"decoding.slots": 8}, "decoding.slots: must be null or at least 48, the rows of 3 "
         "stacked adapters, got 8"),
        ({"mesh.fsdp": 2}, "mesh: must be one device for runs that train together, got '2 dev"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_trained_together_are_refused(whole, here, capsys, changes, line):
    assert main(stacked("no", **changes)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"entropy-rl train-stacked: {line}")
