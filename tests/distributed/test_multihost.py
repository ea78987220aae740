"""What several processes agree on, with the other one faked, and the wait for it."""

import os
import threading

import jax
import pytest

from entropy_rl.distributed import multihost as hosts
from entropy_rl.runs.directory import check_visible


@pytest.fixture
def two(monkeypatch):
    """The first of two processes; the other one's values are what `two` is called with."""
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def answer(*values):
        answers = iter(values)
        monkeypatch.setattr(hosts, "gather", lambda own: [own, next(answers, own)])

    return answer


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            {"seed": 0, "optimizer": {"learning_rate": 0.02}},
            "optimizer.learning_rate: must be the same in all processes, got 0.01 in process 0 and "
            "0.02 in process 1",
        ),
        (
            {"seed": 0},
            "optimizer: must be the same in all processes, got {'learning_rate': 0.01} in process "
            "0 and None in process 1",
        ),
    ],
)
def test_a_setting_that_differs_between_processes_is_named_with_both_values(two, other, told):
    own = {"seed": 0, "optimizer": {"learning_rate": 0.01}}
    two(own)
    hosts.check_same(own)
    two(other)
    with pytest.raises(ValueError) as error:
        hosts.check_same(own)
    assert str(error.value) == told


def test_a_directory_that_another_process_does_not_see_is_refused_and_left_as_it_was(two, tmp_path):
    directory = tmp_path / "runs" / "new"
    two()
    check_visible(directory, "run.directory")
    two(None, [False, "there"])  # after that of the file's name, which only the first one makes
    with pytest.raises(ValueError, match=r"^run\.directory: must be visible to all processes, .*"):
        check_visible(directory, "run.directory")
    assert not list(tmp_path.iterdir())


def test_a_process_without_the_others_says_so_and_ends_with_a_line(monkeypatch, capsys):
    codes, ended, checked = [], threading.Event(), threading.Event()

    def end(code):
        codes.append(code)
        ended.set()
        checked.wait(10)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(hosts, "_JOIN_TIMEOUT", 0.1)
    monkeypatch.setattr(hosts, "_ANNOUNCE_SECONDS", 0.06)
    with hosts._announced(" at here:1", "process 1 of 2"):
        ended.wait(10)
    checked.set()
    assert codes == [1]
    assert capsys.readouterr().err == (
        "waiting for the other processes at here:1\n"
        "entropy-rl: process 1 of 2: the others did not come within 0.1 s at here:1; their logs say"
        " why\n"
    )
