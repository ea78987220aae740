"""A run that was killed, stopped or damaged goes on as if nothing had happened: identical to the
bit.
"""

import contextlib
import json
import random
import shutil
import signal
import time
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from run_records import assert_same_run, lines_of, state_of
from tiny_runs import EVALUATION, TRAIN, finish, run, start

from entropy_rl.cli.main import main
from entropy_rl.runs.checkpoint import newest_undamaged
from entropy_rl.runs.compile_log import CompileLog
from entropy_rl.runs.directory import check_directory

STEPS = TRAIN["steps"]


@pytest.fixture(scope="module")
def whole(workspace) -> Path:
    """A run that was never interrupted."""
    with contextlib.chdir(workspace):
        assert main(train("whole")) == 0
    return workspace / "whole"


def train(directory: Path | str, *more: str) -> list[str]:
    return ["train", "--config", "train.yaml", "--run.directory", str(directory), *more]


def test_what_is_compared_depends_on_every_step(whole):
    rows = lines_of(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["grad_norm"] > 0 and 0 <= row["logprob_diff"] < 1e-4 for row in rows)
    before, after = state_of(whole, 4), state_of(whole, 6)
    assert all(
        (x != y).any() for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


# --- killed
# ------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(
    whole, workspace, here, capsys
):
    for moment in ("config.yaml*", "checkpoints/4.*tmp*"):  # while it sets up; while it saves
        result = run(workspace, *train("killed"), env={"DIE_WHERE_IT_EXISTS": f"killed/{moment}"})
        assert result.returncode == -signal.SIGKILL, result.stderr
    assert main(train("killed")) == 0
    assert capsys.readouterr().err.startswith("resuming killed after step 2 of 6\n")
    assert_same_run(whole, workspace / "killed")
    assert sorted(path.name for path in (workspace / "killed" / "checkpoints").iterdir()) == [
        "4",
        "6",
    ]


@pytest.mark.slow
def test_a_run_that_is_killed_at_ten_random_moments_ends_as_one_that_never_was(workspace, here):
    longer = ["--steps", "400", "--run.checkpoint_every", "5"]
    assert main(train("lucky", *longer)) == 0
    moments, reached = random.Random(0), set()
    for i in range(10):
        process = start(workspace, *train("unlucky", *longer))
        if i % 3:
            next(line for line in process.stderr if line.startswith("step"))  # it trains
        time.sleep(moments.uniform(0, 2 if i % 3 else 5))
        process.kill()
        finish(process)
        reached |= {path.name for path in (workspace / "unlucky").glob("checkpoints/*")}
    assert len(reached) > 4 and "400" not in reached
    assert main(train("unlucky", *longer)) == 0
    assert_same_run(workspace / "lucky", workspace / "unlucky", 400)


@pytest.mark.slow
def test_sft_that_is_killed_ends_as_if_it_never_was(workspace, here, capsys):
    arguments = ["sft", "--config", "sft.yaml", "--run.directory"]
    assert main([*arguments, "warm"]) == 0
    # How XLA:CPU splits a sum may depend on how many devices share the cores.
    environment = {
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
        "DIE_WHERE_IT_EXISTS": "cold/checkpoints/4.*tmp*",
    }
    assert run(workspace, *arguments, "cold", env=environment).returncode == -9
    assert main([*arguments, "cold"]) == 0
    assert "resuming cold after step 2 of 6\n" in capsys.readouterr().err
    assert_same_run(workspace / "warm", workspace / "cold")
    # The learning rate depends on the number of steps.
    assert main([*arguments, "warm", "--steps", "7"]) == 2
    message = "run.directory: warm holds another run (its steps is 6, here it is 7); "
    assert message in capsys.readouterr().err


def without_compilation(stderr):
    """The lines of a run; what was compiled is said if it took a while, which depends on the
    machine.
    """
    return [line for line in stderr.splitlines() if not line.startswith("compiled ")]


# --- stopped
# -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_says_so_in_one_line_and_goes_on(
    whole, workspace, here, capsys
):
    result = run(workspace, *train("stopped"), env={"SIGNAL_AT_CALL": "SIGTERM:3"})
    assert result.returncode == 143 and result.stdout == ""
    update, decoding, *steps, line = without_compilation(result.stderr)
    assert update.startswith("update: ") and decoding.startswith("decoding: ")
    assert [step[:8] for step in steps] == ["step 1/6", "step 2/6", "step 3/6"]
    assert line == "entropy-rl train: stopped after step 3; the same command goes on from there"
    assert main(train("stopped")) == 0
    resumed, update, decoding, next_step, *_ = without_compilation(capsys.readouterr().err)
    assert update.startswith("update: ") and decoding.startswith("decoding: ")
    assert resumed == "resuming stopped after step 3 of 6" and next_step.startswith("step 4/6")
    assert_same_run(whole, workspace / "stopped")


def test_ctrl_c_during_an_evaluation_loses_no_sample(workspace, here, capsys, monkeypatch):
    evaluation = [
        "--evaluation",
        json.dumps(EVALUATION | {"rows_per_call": 2}),
        "--run.evaluate_every",
        "1",
    ]
    assert main(train("not-interrupted", *evaluation, "--steps", "1")) == 0
    monkeypatch.setenv(
        "SIGNAL_AT_CALL", f"SIGINT:{3 + 1 + 2}"
    )  # 3 batches, 1 step, the 2nd of 3 batches
    capsys.readouterr()
    assert main(train("evaluated", *evaluation)) == 130
    *_, line = capsys.readouterr().err.splitlines()
    assert (
        line
        == "entropy-rl train: stopped during an evaluation; the same command goes on from there"
    )
    names = ["config.yaml", "evaluation.json", "origin.json", "samples.jsonl"]
    evaluations, wanted = (
        workspace / run / "evaluations" for run in ("evaluated", "not-interrupted")
    )
    assert sorted(path.name for path in (evaluations / "0").iterdir()) == names
    names_of_one_begun = [name for name in names if name != "evaluation.json"]
    assert sorted(path.name for path in (evaluations / "1").iterdir()) == names_of_one_begun
    assert len((evaluations / "1" / "samples.jsonl").read_text().splitlines()) == 4
    monkeypatch.delenv("SIGNAL_AT_CALL")
    assert main(train("evaluated", *evaluation, "--steps", "1")) == 0
    assert capsys.readouterr().err.startswith("resuming evaluated after step 1 of 1\n")
    for step in "01":
        for name in names:
            assert (evaluations / step / name).read_bytes() == (wanted / step / name).read_bytes()


def test_an_evaluation_that_was_begun_with_other_settings_begins_anew(
    workspace, here, capsys, monkeypatch
):
    monkeypatch.setenv("SIGNAL_AT_CALL", "SIGINT:2")
    assert (
        main(train("changed", "--evaluation", json.dumps(EVALUATION | {"rows_per_call": 2}))) == 130
    )
    monkeypatch.delenv("SIGNAL_AT_CALL")
    capsys.readouterr()
    changed = json.dumps(EVALUATION | {"samples": 3})
    assert main(train("changed", "--steps", "0", "--evaluation", changed)) == 0
    assert (
        "changed/evaluations/0 has other settings, and is started again\n"
        in capsys.readouterr().err
    )
    rows = (workspace / "changed" / "evaluations" / "0" / "samples.jsonl").read_text().splitlines()
    assert len(rows) == 9


# --- changed
# -----------------------------------------------------------------------------------------------


def test_a_finished_run_can_be_made_longer_with_the_result_of_one_that_was_planned_so(
    whole, workspace, here, capsys
):
    assert main(train("longer", "--steps", "2")) == 0
    assert main(train("longer")) == 0
    assert "resuming longer after step 2 of 6\n" in capsys.readouterr().err
    assert_same_run(whole, workspace / "longer")


def test_a_run_is_not_made_shorter_than_it_is(whole, here, capsys):
    assert main(train("whole", "--steps", "4")) == 2
    line = "steps: must be >= 6, the step of the newest checkpoint in whole, got 4\n"
    assert capsys.readouterr().err.endswith(line)
    assert main(train("whole")) == 0  # nothing was recorded


def test_what_a_killed_set_up_leaves_behind_is_no_obstacle(whole, workspace, here):
    directory = workspace / "early"
    directory.mkdir()
    (directory / "config.yaml.123.tmp").write_text("seed: 0\nste")
    check_directory(directory, None)
    shutil.copy(whole / "config.yaml", directory)
    (directory / "model.tmp").mkdir()
    (directory / "model.tmp" / "config.json").write_text("{")
    assert main(train("early", "--steps", "1")) == 0
    assert not (directory / "model.tmp").exists()
    files = [{path.name for path in (run / "model").iterdir()} for run in (directory, whole)]
    assert files[0] == files[1]


# --- damaged
# -----------------------------------------------------------------------------------------------


def files_of(checkpoint: Path) -> list[Path]:
    files = [
        path.relative_to(checkpoint) for path in sorted(checkpoint.rglob("*")) if path.is_file()
    ]
    # What orbax keeps beside the state is not needed to read it.
    return [path for path in files if path.parts[0] in ("state", "sizes.json")]


def test_every_truncated_file_of_a_checkpoint_is_found_and_the_one_before_is_used(
    whole, workspace, here, capsys
):
    checkpoint = shutil.copytree(whole, workspace / "damaged") / "checkpoints" / "6"
    assert len(files_of(checkpoint)) > 8
    for name in files_of(checkpoint):
        content = (checkpoint / name).read_bytes()
        for damage in (content[: len(content) // 2], b"", None):
            (checkpoint / name).unlink()
            if damage is not None:
                (checkpoint / name).write_bytes(damage)
            elif name.name == "sizes.json":
                continue  # without it the checkpoint is read unchecked
            step, damaged = newest_undamaged(checkpoint.parent)
            assert step == 4 and list(damaged) == [6] and name.name in damaged[6], name
        (checkpoint / name).write_bytes(content)
    assert newest_undamaged(checkpoint.parent) == (6, {})


def test_a_run_with_a_damaged_checkpoint_names_it_and_goes_on_from_the_one_before(
    whole, workspace, here, capsys, caplog
):
    checkpoints = shutil.copytree(whole, workspace / "repaired") / "checkpoints"
    (checkpoints / "6" / "state" / "manifest.ocdbt").write_bytes(b"")
    right = (whole / "checkpoints/6/state/manifest.ocdbt").stat().st_size
    damage = (
        f"repaired/checkpoints/6: damaged: state/manifest.ocdbt has 0 bytes instead of {right}; "
    )

    assert main(["export", "--model", "repaired", "--output", "exported"]) == 0
    assert caplog.messages == [damage + "that of step 4 is used"]
    caplog.clear()
    assert main(train("repaired")) == 0
    assert caplog.messages[0] == damage + "kept as damaged_6_0, and that of step 4 is used"
    assert "resuming repaired after step 4 of 6\n" in capsys.readouterr().err
    assert (checkpoints / "damaged_6_0" / "state").is_dir()
    assert_same_run(whole, workspace / "repaired")


def test_a_run_without_an_undamaged_checkpoint_does_not_begin_anew_by_itself(
    whole, workspace, here, capsys
):
    checkpoints = shutil.copytree(whole, workspace / "lost") / "checkpoints"
    for step in ("4", "6"):
        (checkpoints / step / "sizes.json").write_text("{")
    for verb in (train("lost"), ["export", "--model", "lost", "--output", "nowhere"]):
        assert main(verb) == 2
        assert capsys.readouterr().err == (
            f"entropy-rl {verb[0]}: lost/checkpoints/6: damaged: sizes.json is not JSON; there is "
            "no other to "
            "go on from: delete lost/checkpoints to begin anew\n"
        )
    assert len(lines_of(workspace / "lost" / "metrics.jsonl")) == 6


# --- compiled
# ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_finds_every_program_in_the_cache(
    workspace, here, monkeypatch, forget_programs
):
    compiled, on_compiled = [], CompileLog._on_compiled

    def record(self, name, seconds):
        compiled.append((name, getattr(self._hit, "value", False)))
        on_compiled(self, name, seconds)

    monkeypatch.setattr(CompileLog, "_on_compiled", record)
    usual = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(workspace / "compiled"))
        compilation_cache.reset_cache()
        kl = ["--loss.kl_coef", "0.1"]
        forget_programs()
        assert main(train("cached", *kl, "--steps", "1")) == 0
        names = [name for name, _ in compiled]
        # One program for the log-probs of the policy and of the reference.
        assert names.count("jit(update)") == names.count("jit(stats_pass)") == 1
        compiled.clear()
        forget_programs()
        assert main(train("cached", *kl, "--steps", "2")) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", usual)
        compilation_cache.reset_cache()
    rows = [json.loads(x) for x in Path("cached", "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(0 < row["time/micro_batch_fill"] < 1 for row in rows)
    assert "jit(update)" in [name for name, _ in compiled]
    assert [name for name, is_from_cache in compiled if not is_from_cache] == []
