"""Metric files stay readable after any interruption, and a resumed run continues them."""

import json
import math
import sys
import time
import tracemalloc

import pytest

from entropy_rl.runs.directory import SAMPLES_FILE
from entropy_rl.runs.jsonl import keep_steps, read_jsonl, write_jsonl
from entropy_rl.runs.loggers import tensorboard
from entropy_rl.runs.logging import Clock, Progress, RunLog, track
from entropy_rl.runs.stored import METRICS_FILE


def strict_lines(path) -> list:
    """The lines, by a reader that knows no NaN."""

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


# --- JSONL ----------------------------------------------------------------------------------------


def test_rows_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_jsonl(path) == []
    write_jsonl(path, [{"step": 1, "text": "a\nb ÷ \u2028 \ud800"}])
    write_jsonl(path, ({"step": step, "values": [0.5, None]} for step in (2, 3)))
    assert read_jsonl(path) == [
        {"step": 1, "text": "a\nb ÷ \u2028 \ud800"},
        {"step": 2, "values": [0.5, None]},
        {"step": 3, "values": [0.5, None]},
    ]
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_last_line_that_was_cut_off_anywhere_is_ignored(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"step": 1}, {"step": 22}])
    assert path.read_text() == '{"step": 1}\n{"step": 22}\n'
    path.write_text(path.read_text()[:-cut])
    assert read_jsonl(path) == [{"step": 1}]


def test_a_line_is_whole_only_with_its_end(tmp_path):
    # `{"step": 1` could be the beginning of `{"step": 12}`; `1` alone could be that of `12`.
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}')
    assert read_jsonl(path) == []


def test_a_broken_line_that_is_not_the_last_is_no_silent_loss(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError):
        read_jsonl(path)


def test_numbers_that_json_has_not_become_null_at_every_depth(tmp_path):
    path = tmp_path / "a.jsonl"
    nan, inf = math.nan, math.inf
    write_jsonl(
        path, [{"a": nan, "b": -inf, "c": 1.5, "d": [1.0, inf], "e": {"f": (nan, 2)}, "g": "NaN"}]
    )
    assert strict_lines(path) == [
        {"a": None, "b": None, "c": 1.5, "d": [1.0, None], "e": {"f": [None, 2]}, "g": "NaN"}
    ]


def test_keep_steps_drops_what_comes_after(tmp_path):
    path = tmp_path / "a.jsonl"
    keep_steps(path, 3)
    assert not path.exists()
    write_jsonl(
        path,
        [{"step": step, "x": x} for step, x in ((1, 0.1), (2, math.nan), (2, 0.2), (3, 0), (4, 0))],
    )
    with path.open("a") as file:
        file.write('{"step": 2, "x"')
    keep_steps(path, 2)
    assert read_jsonl(path) == [
        {"step": 1, "x": 0.1},
        {"step": 2, "x": None},
        {"step": 2, "x": 0.2},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    keep_steps(path, 0)
    assert path.read_text() == ""


def test_the_rows_of_the_steps_that_are_kept_are_left_as_they_are(tmp_path):
    path = tmp_path / "a.jsonl"
    first = b'{"step":1,  "old": 1}\n'
    path.write_bytes(first + b'{"step": 2}\n{"step": 3')
    inode = path.stat().st_ino
    keep_steps(path, 1, lambda row: {"new" if name == "gone" else name: row[name] for name in row})
    assert path.read_bytes() == first and path.stat().st_ino == inode
    keep_steps(path, 1, lambda row: {"new" if name == "old" else name: row[name] for name in row})
    assert path.read_text() == '{"step": 1, "new": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_row_of_a_step_that_is_kept_after_those_of_later_steps_is_no_silent_loss(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"step": step} for step in (1, 2, 3, 4, 2)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.jsonl:5: step: must be > 3, as in the .*, got 2$"):
        keep_steps(path, 3)
    assert path.read_bytes() == before


def test_the_steps_to_keep_are_found_without_holding_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ({"step": step, "text": "x" * 1000} for step in range(1, 2001)))
    tracemalloc.start()
    try:
        assert keep_steps(path, 1000) == set(range(1, 1001))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 4


# --- damaged lines -------------------------------------------------------------------------------


DAMAGED = {
    "cut": b'{"step": 5, "rew',
    "flipped": b'{"step": 5, "x": 0.5\xfd',
    "zeros": b"\x00" * 20,
    "a number": b"5",
    "no step": b'{"reward": 1.0}',
    "step is text": b'{"step": "5"}',
    "step is null": b'{"step": null}',
    "nested": b"[" * 5000,
}


def write_with_damage(path, damage, place, steps=(1, 2, 3, 4, 5, 6)):
    """Write a line per step, with damage instead of one."""
    lines = [json.dumps({"step": step, "x": 0.5}).encode() for step in steps]
    lines[place] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_of_a_step_that_is_repeated_is_dropped(tmp_path, damage, caplog):
    path = tmp_path / "a.jsonl"
    for place in (4, 5):
        caplog.clear()
        write_with_damage(path, damage, place)
        assert keep_steps(path, 4, once=True) == {1, 2, 3, 4}
        assert path.read_text().count("\n") == 4
        where = f"{path}:{place + 1}"
        assert caplog.messages == [f"{where}: damaged, and dropped because its step is repeated"]


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_of_a_step_that_is_kept_is_named_with_its_file(tmp_path, damage):
    damage = damage.replace(b"5", b"3")
    path = tmp_path / "a.jsonl"
    for place in (0, 2, 3):
        write_with_damage(path, damage, place)
        before = path.read_bytes()
        with pytest.raises(ValueError) as error:
            keep_steps(path, 4, once=True)
        assert str(error.value).startswith(f"{path}:{place + 1}: ")
        assert "must be " in str(error.value) and "\n" not in str(error.value)
        assert path.read_bytes() == before


def test_a_damaged_line_that_may_be_of_the_last_step_that_is_kept_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    write_with_damage(path, b"\x00", 3, steps=(3, 4, 4, 4, 5, 5))
    with pytest.raises(ValueError, match=r"a\.jsonl:4: must be JSON"):
        keep_steps(path, 4)
    write_with_damage(path, b'{"step": 5, "x', 3, steps=(3, 4, 4, 4, 5, 5))
    assert keep_steps(path, 4) == {3, 4}


def test_a_run_that_begins_anew_keeps_no_damaged_line(tmp_path):
    path = tmp_path / "a.jsonl"
    for place in range(6):
        write_with_damage(path, b"\x00", place)
        assert keep_steps(path, 0) == set() and path.read_text() == ""


@pytest.mark.parametrize("damage", [b"\xff{}", b'{"a": ', b"[1]", b"5", b"\x00"])
def test_a_reader_names_file_and_line_of_a_damaged_line(tmp_path, damage):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
    with pytest.raises(ValueError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}:2: must be ")


def test_samples_that_end_before_the_step_of_a_resumption_are_reported(tmp_path, caplog):
    RunLog(tmp_path, 5, [], {})  # a run without samples
    for last, said in ((5, False), (3, True)):
        caplog.clear()
        rows = [{"step": step} for step in range(1, last + 1) for _ in range(2)]
        (tmp_path / SAMPLES_FILE).unlink(missing_ok=True)
        write_jsonl(tmp_path / SAMPLES_FILE, rows)
        RunLog(tmp_path, 5, [], {})
        line = f"{tmp_path / SAMPLES_FILE}: must have samples of 5 steps, got none after step 3"
        assert caplog.messages == [line] * said


def test_metrics_that_are_lost_are_reported(tmp_path, caplog):
    write_jsonl(tmp_path / METRICS_FILE, [{"step": 1}, {"step": 3}])
    for every_step, last_step, lines in ((True, 1, 0), (False, 3, 0), (True, 3, 1)):
        caplog.clear()
        with RunLog(tmp_path, last_step, [], {}, every_step=every_step):
            assert len(caplog.messages) == lines
        write_jsonl(tmp_path / METRICS_FILE, [{"step": 3}] * (last_step == 1))
    assert caplog.messages == [
        f"{tmp_path / METRICS_FILE}: must have a line for each of 3 steps, got 2; the others are "
        "lost"
    ]


# --- the log of a run -----------------------------------------------------------------------------


def test_a_resumed_run_has_the_records_of_an_uninterrupted_one(tmp_path):
    def record(directory, steps, last_step):
        directory.mkdir(exist_ok=True)
        with RunLog(directory, last_step, [tensorboard()], {}) as log:
            for step in steps:
                log.metrics(step, {"reward": 0.5 * step, "entropy": math.nan})
                log.samples({"step": step, "sample": i} for i in range(2))

    record(tmp_path / "whole", range(1, 6), 0)
    record(tmp_path / "broken", range(1, 5), 0)  # killed after step 4, with a checkpoint of step 2
    with (tmp_path / "broken" / METRICS_FILE).open("a") as file:
        file.write('{"step": 5, "rew')
    record(tmp_path / "broken", range(3, 6), 2)
    for name in (METRICS_FILE, SAMPLES_FILE):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert strict_lines(tmp_path / "whole" / METRICS_FILE)[3] == {
        "step": 4,
        "reward": 2.0,
        "entropy": None,
    }
    assert len(read_jsonl(tmp_path / "whole" / SAMPLES_FILE)) == 10
    assert list((tmp_path / "whole" / "tensorboard").glob("events.*"))


def test_records_are_on_disk_before_the_next_step(tmp_path):
    with RunLog(tmp_path, 0, [], {}) as log:
        log.metrics(1, {"reward": 1.0})
        log.samples([{"step": 1}])
        assert read_jsonl(tmp_path / METRICS_FILE) == [{"step": 1, "reward": 1.0}]
        assert read_jsonl(tmp_path / SAMPLES_FILE) == [{"step": 1}]


# --- time -----------------------------------------------------------------------------------------


def test_the_clock_adds_up(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 3.5, 7.5, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock()  # 0
    with clock("rollout"):  # 1 to 3
        pass
    with clock("updates"):  # 3.5 to 7.5
        pass
    assert clock.metrics(tokens=50) == {  # at 10
        "time/rollout": 2.0,
        "time/updates": 4.0,
        "time/step": 10.0,
        "time/tokens_per_second": 5.0,
    }


# --- progress -------------------------------------------------------------------------------------


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys):
    with Progress("step", 3) as progress:
        progress.note("evaluation: 1/9 samples")  # for terminals only
        for step in (1, 2, 3):
            progress.show(step, f"reward {step / 2}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "step 1/3  reward 0.5\nstep 2/3  reward 1.0\nstep 3/3  reward 1.5\n"


def test_plain_lines_tell_the_time_left_by_the_steps_after_the_first(capsys, monkeypatch):
    # The first step compiles for 500 s; the others take 60 s each.
    times = iter([500.0, 560.0, 620.0, 680.0])
    monkeypatch.setattr("entropy_rl.runs.logging.time.perf_counter", lambda: next(times))
    with Progress("step", 6, start=2) as progress:
        for step in (3, 4, 5, 6):
            progress.show(step, "r")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 3/6  r", "step 4/6  r  left 2 min", "step 5/6  r", "step 6/6  r"]


def test_long_work_between_two_notes_is_not_silent(capsys, monkeypatch):
    monkeypatch.setattr("entropy_rl.runs.logging._SILENT_S", 0.1)

    def wait_for(text):
        limit = time.monotonic() + 20
        while text not in (err := capsys.readouterr().err):
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert "/9" not in err

    with Progress("step", 6, start=2) as progress, Progress("step", 9, silent=True):
        wait_for("step 2/6  working, 0 s\n")
        with Clock(progress.phase)("updates"):
            wait_for("step 2/6  updates, 0 s\n")
            progress.note("micro-batch 1/3")
            wait_for("step 2/6  micro-batch 1/3, 0 s\n")
        wait_for("step 2/6  working, ")


def test_progress_says_what_begins_in_a_line_of_its_own(capsys):
    with Progress("step", 3, every=10) as progress:
        progress.say("evaluating at step 0, on the split 'test'")
    assert capsys.readouterr() == ("", "evaluating at step 0, on the split 'test'\n")


def test_plain_lines_come_now_and_then_and_at_the_end(capsys):
    with Progress("step", 25, start=7, every=10) as progress:
        for step in range(8, 26):
            progress.show(step, "")
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == [
        "10/25",
        "20/25",
        "25/25",
    ]


def test_a_step_over_the_mark_counts_as_one_on_it(capsys):
    with Progress("samples", 64, every=10) as progress:
        for done in (8, 16, 24, 26, 32, 64):
            progress.show(done, "")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["16/64", "24/64", "32/64", "64/64"]


def test_many_items_are_tracked_and_few_are_not(capsys):
    assert list(track("rows", iter(range(10_000)), 10_000, "read")) == list(range(10_000))
    assert capsys.readouterr().err == ""
    assert sum(1 for _ in track("rows", range(20_001), 20_001, "read")) == 20_001
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1:3] for line in lines] == [
        [f"{n}/20001", "read"] for n in (10_000, 20_000, 20_001)
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_texts_as_they_are(terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with Progress("runs[/0]", 1) as progress:
        progress.say("say [/a] [red]b \x1b[2J")
        progress.note("note [/a]")
        progress.show(1, "show [/c]")
    err = capsys.readouterr().err
    for text in ("say [/a] [red]b \\x1b[2J", "runs[/0]", "show [/c]"):
        assert text in err
    assert "\x1b[2J" not in err


def test_progress_draws_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("sft", 4, start=1) as progress:
        progress.note("evaluation")
        progress.show(4, "pass@1 0.25")
    out, err = capsys.readouterr()
    assert out == ""
    assert "sft" in err and "4/4" in err and "pass@1 0.25" in err
    assert "sft 4/4  pass" not in err
