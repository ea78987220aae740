"""A run that is asked to stop during a rollout."""

import signal

import pytest

from entropy_rl.interrupt import Interrupted, StopRequest
from entropy_rl.rollout import Stage
from entropy_rl.run import Run

STAGE = Stage(finished=3, rows=8, tokens=40, slots=8, columns=64)


class Recorder:
    def __init__(self):
        self.saved, self.notes = [], []
        self.save, self.note = self.saved.append, self.notes.append


def test_a_stop_during_a_rollout_saves_the_state_before_the_step_and_ends_the_run():
    recorder, stop = Recorder(), StopRequest()
    watch = Run(None, recorder, None, recorder, stop).rollout_watch("the state before")
    watch(STAGE)
    assert recorder.notes == ["rollout: 3/8 ended, longest 40"] and not recorder.saved
    stop.signal_number = signal.SIGTERM
    with pytest.raises(Interrupted, match="stopped during a rollout") as stopped:
        watch(STAGE)
    assert recorder.saved == ["the state before"] and stopped.value.exit_code == 143
