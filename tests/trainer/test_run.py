"""A run that is asked to stop: during a rollout, and while the processes tell each other."""

import os
import signal

import pytest
from run_records import lines_of
from tiny_runs import EVALUATION, TRAIN, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.distributed import multihost as hosts
from entropy_rl.rollout import DecodingProgress
from entropy_rl.runs.preemption import Interrupted, StopRequest, catch_signals
from entropy_rl.trainer.run import Run

STAGE = DecodingProgress(finished=3, rows=8, tokens=40, slots=8, columns=64)


class Recorder:
    def __init__(self):
        self.saved, self.notes, self.said = [], [], []
        self.save, self.note = self.saved.append, self.notes.append
        self.say = self.said.append


def test_a_stop_during_a_rollout_saves_the_state_before_the_step_and_ends_the_run():
    recorder, stop = Recorder(), StopRequest()
    watch = Run(None, recorder, None, recorder, stop).rollout_watch("the state before")
    watch(STAGE)
    assert recorder.notes == ["rollout: 3/8 ended, longest 40"] and not recorder.saved
    assert recorder.said == ["decoding: 8 rows at once, finished ones compacted away"]
    stop.signal_number = signal.SIGTERM
    with pytest.raises(Interrupted, match="stopped during a rollout") as stopped:
        watch(STAGE)
    assert len(recorder.said) == 1  # once per run
    assert recorder.saved == ["the state before"] and stopped.value.exit_code == 143


def test_a_signal_that_comes_in_while_the_processes_are_asked_counts_from_the_next_look_on(
    monkeypatch,
):
    looks = []

    def gather(value):
        looks.append(value)
        if len(looks) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return [0, value]

    monkeypatch.setattr(hosts, "gather", gather)
    with catch_signals() as stop:
        run = Run(None, None, None, None, stop)
        assert not run.asked_to_stop()  # the others have not heard of it, and go on too
        assert run.asked_to_stop() and stop.signal_number == signal.SIGTERM


def test_the_evaluations_of_a_run_depend_on_its_seed(here):
    write_yaml(here / "evaluated.yaml", TRAIN | {"steps": 0, "evaluation": EVALUATION})
    tokens = {}
    for name, seed in (("zero", "0"), ("one", "1")):
        arguments = ["--config", "evaluated.yaml", "--seed", seed, "--run.directory", name]
        assert main(["train", *arguments]) == 0
        rows = lines_of(here / name / "evaluations" / "0" / "samples.jsonl")
        tokens[name] = {(row["problem"], row["sample"]): row["tokens"] for row in rows}
    assert tokens["zero"].keys() == tokens["one"].keys()
    assert tokens["zero"] != tokens["one"]
