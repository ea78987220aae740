"""One writer per directory: a second process is refused, and a killed one does not block."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from tiny_runs import ROOT

from entropy_rl.runs.lock import check_unlocked, one_writer

# Hold a lock until the standard input ends; in the second form, a child of it outlives it.
HOLD = """
import subprocess, sys
from pathlib import Path
from entropy_rl.runs.lock import one_writer
with one_writer(Path(sys.argv[1]), "there"):
    child = subprocess.Popen(["sleep", "60"]) if len(sys.argv) > 2 else None
    print(child.pid if child else 0, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Start a process that holds a lock; returns it and the id of its child."""
    processes, children = [], []

    def start(file, *more):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(file), *more],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        processes.append(process)
        child = int(process.stdout.readline())
        children.extend([child] * (child > 0))
        return process, child

    yield start
    for child in children:  # first: they hold the standard output
        os.kill(child, signal.SIGKILL)
    for process in processes:
        process.kill()
        process.communicate()


def refusal(pid):
    return (
        "run.directory: here: must have one writer, got a second process; "
        f"process {pid} on {socket.gethostname()} writes to it"
    )


@pytest.mark.parametrize("enter", [lambda *x: one_writer(*x).__enter__(), check_unlocked])
def test_a_second_process_is_refused_with_the_id_and_host_of_the_first(tmp_path, hold, enter):
    process, _ = hold(tmp_path / "lock")
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            enter(tmp_path / "lock", "run.directory: here")
        assert str(error.value) == refusal(process.pid)


def test_a_second_thread_of_control_of_one_process_is_refused(tmp_path):
    with one_writer(tmp_path / "lock", "a"):
        with pytest.raises(ValueError) as error:
            one_writer(tmp_path / "lock", "run.directory: here").__enter__()
        assert str(error.value) == refusal(os.getpid())


def test_the_lock_of_a_killed_process_does_not_block(tmp_path, hold):
    process, _ = hold(tmp_path / "lock")
    process.kill()
    process.wait()
    left = json.loads((tmp_path / "lock").read_text())
    assert left == {"pid": process.pid, "host": socket.gethostname()}
    with one_writer(tmp_path / "lock", "a"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_a_child_that_outlives_a_killed_process_does_not_hold_its_lock(tmp_path, hold):
    process, child = hold(tmp_path / "lock", "with a child")
    process.kill()
    process.wait()
    os.kill(child, 0)  # it is alive
    with one_writer(tmp_path / "lock", "a"):
        pass


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\x00", b"5", json.dumps({"pid": 1, "host": "another"}).encode()],
    ids=["empty", "cut", "bytes", "number", "a process that lives"],
)
def test_a_file_that_was_left_over_does_not_block_whatever_it_holds(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    check_unlocked(tmp_path / "lock", "a")
    (tmp_path / "lock").write_bytes(content)
    with one_writer(tmp_path / "lock", "a"):
        pass


def test_a_lock_without_a_readable_holder_is_refused_too(tmp_path):
    with (tmp_path / "lock").open("wb") as file:
        file.write(b"\xff{")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="a second process; another process writes to it"):
            one_writer(tmp_path / "lock", "a").__enter__()


def test_an_error_releases_the_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt), one_writer(tmp_path / "lock", "a"):
        raise KeyboardInterrupt
    with one_writer(tmp_path / "lock", "a"):
        pass


def test_a_file_that_is_deleted_while_its_lock_is_taken_is_made_again(tmp_path, monkeypatch):
    calls, flock = [], fcntl.flock

    def flock_late(*arguments):
        calls.append(arguments)
        if len(calls) == 1:  # the process before ends now
            (tmp_path / "lock").unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with one_writer(tmp_path / "lock", "a"):
        assert len(calls) == 2
        with pytest.raises(ValueError, match="must have one writer"):
            one_writer(tmp_path / "lock", "a").__enter__()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, caplog, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with one_writer(tmp_path / "lock", "a"):
        assert caplog.messages == [
            f"{tmp_path}: the file system has no locks: a second process there is not noticed"
        ]


def test_any_other_error_of_a_lock_is_not_hidden(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="broken"):
        one_writer(tmp_path / "lock", "a").__enter__()
