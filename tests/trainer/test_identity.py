"""A run is resumed by one process, with the data, prompts, template and model it began with."""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from run_records import lines_of
from safetensors.numpy import load_file, save_file
from tiny_runs import EVALUATION, finish, start

from entropy_rl.cli.main import main
from entropy_rl.runs.identity import check_identity, model_identity
from entropy_rl.runs.lock import one_writer

# The problems of `Luck`, changed as a file says.
EDITED = """
import dataclasses
import json
from pathlib import Path
from luck import Luck


class Edited(Luck):
    def problems(self, split):
        rows = list(super().problems(split))
        edit = json.loads(Path("edit.json").read_text()).get(split)
        chat = Path("chat").exists()
        rows = [dataclasses.replace(row, chat=chat) for row in rows]
        if edit == "answer":
            rows[0] = dataclasses.replace(rows[0], answer=rows[1].answer)
        elif edit == "prompt":
            rows[0] = dataclasses.replace(rows[0], prompt=rows[1].prompt)
        elif edit == "added":
            rows.append(dataclasses.replace(rows[0], id=len(rows)))
        elif edit == "removed":
            rows.pop()
        elif edit == "swapped":
            rows[:2] = [dataclasses.replace(rows[1 - i], id=i) for i in range(2)]
        return rows
"""
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
REMEDY = "; restore that, choose another directory, or set run.accept_changes to true\n"


def command(directory, *more):
    own = ["--run.directory", directory, "--model.path", "own", "--task.name", "edited:Edited"]
    return ["train", "--config", "train.yaml", *own, *more]


def edit(**splits):
    Path("edit.json").write_text(json.dumps(splits))


@pytest.fixture
def at_work(here) -> Path:
    """The working directory with a model and a task that tests may change."""
    (here / "edited.py").write_text(EDITED)
    (here / "chat").unlink(missing_ok=True)
    shutil.rmtree(here / "own", ignore_errors=True)
    shutil.copytree(here / "model", here / "own")
    edit()
    return here


@pytest.fixture(scope="module")
def recorded(workspace) -> Path:
    """A run of one step, for copies."""
    return workspace / "recorded"


@pytest.fixture
def begun(at_work, recorded, capsys) -> Path:
    """A copy of that run, to be resumed."""
    if not recorded.exists():
        assert main(command("recorded", "--steps", "1")) == 0
    shutil.rmtree("begun", ignore_errors=True)
    shutil.copytree(recorded, "begun")
    capsys.readouterr()
    return Path("begun")


def content_of(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def resumed(*more):
    """Resume the run, which has all of its steps: nothing is compiled for that."""
    return main(command("begun", "--steps", "1", *more))


def refused_for(capsys, changed, *more):
    """Assert that a resumption is refused, in a line that names the change, and changes nothing."""
    before = content_of(Path("begun"))
    with pytest.MonkeyPatch.context() as patch:  # weights are not read
        patch.delattr("entropy_rl.runs.load_model.load_weights")
        assert resumed(*more) == 2
    error = capsys.readouterr().err
    line = f"entropy-rl train: begun: must be resumed with what it began with, got other {changed}"
    assert error.endswith(line + REMEDY), error
    assert content_of(Path("begun")) == before


def accepted(capsys, changed):
    """Assert that the changes are accepted by the flag, once, and recorded."""
    assert resumed("--run.accept_changes", "true") == 0
    error = capsys.readouterr().err
    line = f"resuming begun after step 1 of 1\naccepted changes: {', '.join(changed)}\n"
    assert line in error, error
    first, last = lines_of(Path("begun/starts.jsonl"))
    assert "accepted_changes" not in first and last["accepted_changes"] == changed
    assert "accept_changes: false" in Path("begun/config.yaml").read_text()
    assert resumed() == 0  # from now on they are what it is made of
    assert "accepted_changes" not in lines_of(Path("begun/starts.jsonl"))[-1]


def test_the_same_run_is_resumed_and_its_identity_is_a_small_file(begun):
    before = (begun / "identity.json").read_bytes()
    assert len(before) < 2000
    assert set(json.loads(before)) == {"data", "encoded prompts", "weights", "model files"}
    assert resumed() == 0
    assert (begun / "identity.json").read_bytes() == before
    assert sorted(path.name for path in begun.iterdir() if "lock" in path.name) == []


@pytest.mark.parametrize(
    ("change", "prompts_too"),
    [
        ("answer", False),
        ("prompt", True),
        ("added", True),
        ("removed", True),
        ("swapped", True),
    ],
)
def test_changed_training_data_is_refused_and_accepted_by_the_flag(
    begun, capsys, change, prompts_too
):
    edit(train=change)
    changed = ["data (train)", *["encoded prompts"] * prompts_too]
    refused_for(capsys, " and ".join(changed))
    if change == "answer":
        accepted(capsys, changed)


def test_changed_problems_of_the_evaluations_are_refused(begun, capsys):
    evaluation = ["--evaluation", json.dumps(EVALUATION)]
    edit(test="answer")
    assert resumed(*evaluation) == 0  # new: nothing to compare
    error = capsys.readouterr().err
    assert "changed settings: evaluation: None -> {'split': 'test', " in error, error
    edit()
    refused_for(capsys, "data (test)", *evaluation)
    assert resumed() == 0  # without evaluations
    capsys.readouterr()
    refused_for(capsys, "data (test)", *evaluation)
    # An evaluation that was not complete is begun anew with the problems that are accepted.
    (begun / "evaluations" / "1" / "evaluation.json").unlink()
    assert resumed(*evaluation, "--run.accept_changes", "true") == 0
    assert (begun / "evaluations" / "1" / "evaluation.json").exists()


def change_weight(file, scale=1.5):
    arrays = load_file(file)
    name = sorted(arrays)[-1]
    arrays[name] = (arrays[name] * np.float32(scale)).astype(arrays[name].dtype)
    save_file(arrays, file)


def change_json(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (
            lambda own: change_weight(own / "model.safetensors"),
            "weights (model.path/model.safetensors)",
        ),
        (
            lambda own: (own / "more.safetensors.index.json").write_text("{}"),
            "weights (model.path/more.safetensors.index.json)",
        ),
        (
            lambda own: change_json(own / "config.json", rope_theta=20000.0),
            "model files (model.path/config.json)",
        ),
        (
            lambda own: change_json(own / "tokenizer_config.json", note=1),
            "model files (model.path/tokenizer_config.json)",
        ),
        (
            lambda own: (own / "generation_config.json").write_text('{"eos_token_id": 1}'),
            "model files (model.path/generation_config.json)",
        ),
    ],
    ids=["weight", "index", "config", "tokenizer", "end tokens"],
)
def test_a_changed_initial_model_is_refused_and_accepted_by_the_flag(
    begun, capsys, change, changed
):
    change(Path("own"))
    refused_for(capsys, changed)
    if changed.startswith("weights (model.path/model.safe"):
        accepted(capsys, [changed])


def test_the_ends_of_weights_tell_trained_ones_apart_without_reading_them_whole(tmp_path):
    for name in ("one", "same", "longer", "trained"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        weights = b"w" * 2**17 + (b"new" if name == "trained" else b"old")
        (tmp_path / name / "model.safetensors").write_bytes(b"w" * (name == "longer") + weights)
    one, same, longer, trained = (
        model_identity(str(tmp_path / name), whole=False)
        for name in ("one", "same", "longer", "trained")
    )
    assert one == same
    assert one["weights"] != longer["weights"] != trained["weights"] != one["weights"]


def test_a_model_that_was_moved_is_the_same_and_another_one_there_is_refused(begun, capsys):
    Path("own").rename("moved")
    assert resumed("--model.path", "moved") == 0
    assert "\nchanged settings: model.path: 'own' -> 'moved'\n" in capsys.readouterr().err
    config = json.loads(Path("moved/config.json").read_text())
    Path("moved/config.json").write_text(json.dumps(config | {"note": "another"}))
    refused_for(capsys, "model files (model.path/config.json)", "--model.path", "moved")
    shutil.move("moved", "own")
    (begun / "identity.json").unlink()
    assert resumed("--model.path", "model") == 2
    assert "holds another run (its model.path is 'moved'" in capsys.readouterr().err


def test_a_changed_chat_template_is_refused(at_work, capsys):
    (at_work / "chat").touch()
    (at_work / "own" / "chat_template.jinja").write_text(TEMPLATE)
    shutil.rmtree("begun", ignore_errors=True)
    assert main(command("begun", "--steps", "0")) == 0
    capsys.readouterr()
    assert "chat template" in json.loads(Path("begun/identity.json").read_text())
    (at_work / "own" / "chat_template.jinja").write_text(TEMPLATE + "{# other #}")
    file = "model files (model.path/chat_template.jinja)"
    refused_for(capsys, f"chat template and {file}")


def test_a_run_of_an_earlier_version_resumes_and_gets_its_identity(begun, capsys):
    wanted = (begun / "identity.json").read_bytes()
    (begun / "identity.json").unlink()
    assert resumed() == 0
    assert (begun / "identity.json").read_bytes() == wanted
    capsys.readouterr()
    edit(train="answer")
    refused_for(capsys, "data (train)")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"data": 5}', "\x00"])
def test_a_damaged_identity_is_named(begun, capsys, content):
    (begun / "identity.json").write_text(content)
    assert resumed() == 2
    line = (
        "begun/identity.json: must be the digests of a run, got other content; delete it to record "
        "those of the next start\n"
    )
    assert capsys.readouterr().err.endswith(line)


def test_a_changed_adapter_is_named_also_where_it_was_recorded_one_level_deeper(tmp_path):
    name = "model.lora.path/adapter_model.safetensors"
    identity = {"weights": {"model.path/model.safetensors": "a", name: "b"}}
    before = {"weights": {"model.path/model.safetensors": "a", "weights": {name: "b"}}}
    for recorded in (identity, before):
        (tmp_path / "identity.json").write_text(json.dumps(recorded))
        assert check_identity(tmp_path, identity, accept=False) == []
        changed = {"weights": identity["weights"] | {name: "c"}}
        assert check_identity(tmp_path, changed, accept=True) == [f"weights ({name})"]


def test_a_checkpoint_of_a_run_as_initial_model_is_part_of_the_identity(begun, capsys):
    own = ["--model.path", "begun", "--run.directory", "second"]
    assert main([*command("second", "--steps", "0"), *own]) == 0
    weights = json.loads(Path("second/identity.json").read_text())["weights"]
    assert list(weights) == ["model.path/1/digests.json"]
    assert main(command("begun", "--steps", "2")) == 0  # the initial model is trained on
    capsys.readouterr()
    assert main([*command("second", "--steps", "0"), *own]) == 2
    assert "got other weights (model.path/1/digests.json, model.path/2/" in capsys.readouterr().err


def test_other_demonstrations_of_an_sft_run_are_refused(at_work, capsys):
    sft = ["sft", "--config", "sft.yaml", "--run.directory", "taught", "--steps", "1"]
    assert main([*sft, "--run.checkpoint_every", "3"]) == 0
    path = Path("taught/identity.json")
    path.write_text(path.read_text().replace('": "', '": "0'))
    capsys.readouterr()
    assert main([*sft, "--run.checkpoint_every", "3"]) == 2
    assert "taught: must be resumed with what it began with, got other demonstrations; " in (
        capsys.readouterr().err
    )


SETTINGS = {
    "model.remat": ("none", "dots"),
    "model.attention": ("auto", "xla"),
    "model.decode_attention": ("auto", "xla"),
    "batching.max_tokens_per_micro_batch": (64, 128),
    "decoding.slots": (None, 8),
}


def test_a_start_after_one_that_a_full_disk_cut_short_is_recorded_on_a_line_of_its_own(begun):
    whole = (begun / "starts.jsonl").read_bytes()
    (begun / "starts.jsonl").write_bytes(whole + whole[:30])
    assert resumed() == 0
    assert len(lines_of(begun / "starts.jsonl")) == 2


def test_settings_that_change_no_result_may_change_and_are_logged(begun, capsys):
    changed = [f"{name}: {old!r} -> {new!r}" for name, (old, new) in SETTINGS.items()]
    options = [x for name, (_, new) in SETTINGS.items() for x in (f"--{name}", str(new))]
    assert resumed(*options) == 0
    assert f"\nchanged settings: {', '.join(changed)}\n" in capsys.readouterr().err
    last = lines_of(begun / "starts.jsonl")[-1]
    assert last["changed_settings"] == changed and "accepted_changes" not in last
    assert resumed(*options) == 0
    assert "changed_settings" not in lines_of(begun / "starts.jsonl")[-1]
    assert resumed("--model.compute_dtype", "bfloat16") == 2
    assert "holds another run (its model.compute_dtype is 'float32'" in capsys.readouterr().err


# --- one writer
# ------------------------------------------------------------------------------------------------


def wait_until_stopped(process):
    """Wait until a process has stopped itself by SIGSTOP."""
    for _ in range(2400):
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("it did not stop itself")


@pytest.mark.slow
def test_a_second_process_on_a_run_is_refused_and_a_killed_one_does_not_block(here, capsys):
    train = ["train", "--config", "train.yaml", "--steps", "1", "--run.directory"]
    devices = {"JAX_NUM_CPU_DEVICES": "8", "SIGNAL_AT_CALL": "SIGSTOP:1"}
    process = start(here, *train, "shared", env=devices)
    wait_until_stopped(process)
    before = content_of(here / "shared")
    capsys.readouterr()
    assert main([*train, "shared"]) == 2
    assert capsys.readouterr().err == (
        "entropy-rl train: run.directory: shared: must have one writer, got a second process; "
        f"process {process.pid} on {socket.gethostname()} writes to it\n"
    )
    assert content_of(here / "shared") == before
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    assert (here / "shared" / "lock").exists()
    assert main([*train, "shared"]) == 0
    assert not (here / "shared" / "lock").exists()
    assert [row["step"] for row in lines_of(here / "shared" / "metrics.jsonl")] == [1]


@pytest.mark.slow
def test_a_second_process_on_an_evaluation_is_refused(here, capsys):
    settings = [x for name, value in EVALUATION.items() for x in (f"--evaluation.{name}", value)]
    evaluate = ["evaluate", "--seed", "0", "--model.path", "model", "--task.name", "luck:Luck"]
    evaluate += ["--max_prompt_tokens", "16", "--output", "shared-evaluation", *map(str, settings)]
    assert main([*evaluate, "--shard", "0", "--shards", "2"]) == 0
    before = content_of(here / "shared-evaluation")
    capsys.readouterr()
    file = "shared-evaluation/samples-00000-of-00002.jsonl"
    with one_writer(here / f"{file}.lock", "held here"):
        assert main([*evaluate, "--shard", "0", "--shards", "2"]) == 2
        assert capsys.readouterr().err == (
            f"entropy-rl evaluate: {file}: must have one writer, got a second process; "
            f"process {os.getpid()} on {socket.gethostname()} writes to it\n"
        )
        assert content_of(here / "shared-evaluation").items() >= before.items()
        assert main([*evaluate, "--shard", "1", "--shards", "2"]) == 0  # a file of its own
    assert (here / "shared-evaluation" / "evaluation.json").exists()
