"""Signals that ask a run to stop, and output that nobody reads any more."""

import contextlib
import errno
import os
import signal
import subprocess
import sys

import pytest

from entropy_rl.escape import echo
from entropy_rl.runs.logging import Progress
from entropy_rl.runs.preemption import Interrupted, catch_signals, ending_on_sigterm


@contextlib.contextmanager
def handled(number, handler):
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_a_second_one_has_its_own_effect(number):
    seen = []
    with handled(number, lambda *_: seen.append("own")):
        with catch_signals() as stop:
            signal.raise_signal(number)
            assert stop and not seen
            with pytest.raises(Interrupted) as interrupted:
                stop.act("stopped")
            assert interrupted.value.exit_code == 128 + number
            signal.raise_signal(number)
            assert seen == ["own"]
        signal.raise_signal(number)
        assert seen == ["own", "own"]


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_the_end_of_a_terminal_never_ends_a_run_that_saves_its_state(first):
    # Its shell sends SIGHUP, and then the kernel does; systemd sends it behind SIGTERM.
    seen, cleaned = [], []

    def own(*_):
        seen.append("own")

    with handled(signal.SIGHUP, own):
        with catch_signals() as stop:
            signal.raise_signal(first)
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal_number == first
        with pytest.raises(Interrupted), ending_on_sigterm("stopped"):
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                signal.raise_signal(signal.SIGHUP)
                cleaned.append("all")
        assert cleaned and not seen
        assert signal.getsignal(signal.SIGHUP) is own


def test_a_terminal_may_go_away_under_nohup():
    with handled(signal.SIGHUP, signal.SIG_IGN):
        with catch_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
        with ending_on_sigterm("stopped"):
            signal.raise_signal(signal.SIGHUP)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_work_without_a_state_to_save_ends_at_once(number):
    with handled(number, signal.SIG_DFL), pytest.raises(Interrupted), ending_on_sigterm("stopped"):
        signal.raise_signal(number)


class Gone:
    """A stderr whose reader has ended, or whose terminal has."""

    def __init__(self, code):
        self.code = code

    def write(self, text):
        raise OSError(self.code, os.strerror(self.code))

    def flush(self):
        raise OSError(self.code, os.strerror(self.code))

    def isatty(self):
        return False


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_progress_that_cannot_be_written_ends_nothing(monkeypatch, code):
    monkeypatch.setattr(sys, "stderr", Gone(code))
    with Progress("step", 3) as progress:
        progress.say("compiled")
        for done in (1, 2, 3):
            progress.show(done, "reward 0.5")
    echo("stopped", file=sys.stderr)
    with pytest.raises(OSError):  # results, which a reader must get or miss with an exit code
        monkeypatch.setattr(sys, "stdout", Gone(code))
        echo("Pass@1")


LOOP = """
import sys, time
from entropy_rl.escape import echo
from entropy_rl.runs.preemption import catch_signals
with catch_signals() as stop:
    echo("begun", file=sys.stderr)
    while not stop:
        time.sleep(0.01)
        echo("step", file=sys.stderr)
    open(sys.argv[1], "w").write("saved")
"""


def test_a_run_whose_reader_has_gone_saves_its_state(tmp_path):
    # As with Ctrl-C of `... 2>&1 | tee log`, which may end before the next line of the run.
    run = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(tmp_path / "saved")], stderr=subprocess.PIPE, text=True
    )
    assert run.stderr.readline() == "begun\n"
    run.stderr.close()
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 0
    assert (tmp_path / "saved").read_text() == "saved"
