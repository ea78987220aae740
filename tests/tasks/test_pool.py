"""The verifier pool: whatever a check does costs itself alone."""

import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from entropy_rl.tasks import worker, worker_handle
from entropy_rl.tasks.fresh_process import call_in_fork
from entropy_rl.tasks.pool import VerifierPool
from entropy_rl.tasks.task import Judgement, Verdict

DEADLINE_S = 1.0
ACT = f"{__name__}:act"


def act(kind: str, value: str = "") -> Verdict | Judgement:
    """The check of these tests; it runs in the workers."""
    if kind == "right":
        return Verdict.CORRECT
    if kind == "verdict":
        return Verdict(value)
    if kind == "sleep":
        time.sleep(float(value))
    elif kind == "loop":
        while True:
            pass
    elif kind == "C code":  # holds the interpreter, so that no Python signal handler would run
        9 ** (9**9)
    elif kind == "exit":
        os._exit(3)
    elif kind == "sys.exit":
        sys.exit(3)
    elif kind == "segfault":
        ctypes.string_at(0)
    elif kind == "memory":
        hoard = []
        while True:
            hoard.append(bytes(1 << 27))
    elif kind == "raise":
        raise KeyError(value)
    elif kind == "text":
        return "correct"
    elif kind == "parts":
        return Judgement(Verdict.CORRECT, 1.0, {f"{i:0102}": 1.0 for i in range(3000)})
    elif kind.startswith("log"):
        with open(value, "a") as file:
            file.write("x")
        if kind == "log and sleep":
            time.sleep(1)
        if kind == "log and exit":
            os._exit(3)
    elif kind == "child":
        Path(value).write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
        time.sleep(1000)
    elif kind == "stray":  # bytes into every descriptor, as a careless library may write
        for fd in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(fd, value.encode())
    elif kind == "closed":
        os.closerange(3, 64)
    elif kind == "stray later":
        act("stray", value)
        time.sleep(0.2)
    elif kind == "shouting":
        raise ValueError("x" * 10_000_000)
    elif kind == "modules":
        assert value in sys.modules
    elif kind == "leaves":
        ends = {"exit": lambda: os._exit(3), "loop": lambda: act("loop")}
        ends["stray"] = lambda: act("stray", "x")
        threading.Timer(0.3, ends[value]).start()
    elif kind == "scratch":
        Path(value).write_text(tempfile.mkdtemp())
        os._exit(3)
    elif kind == "in a fork":
        return call_in_fork(lambda: float(act(value) is Verdict.CORRECT))
    elif kind == "print":
        print(value, flush=True)
        print(value, file=sys.stderr)
    elif kind == "ends a fork":
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, b"x")
            time.sleep(1000)
        os.read(reader, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    elif kind == "limits":
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        assert resource.getrlimit(resource.RLIMIT_AS)[0] == int(value)
    return Verdict.CORRECT


def pids(pool: VerifierPool) -> list[int]:
    return [worker.process.pid for worker in pool._processes]


def warm_up(pool: VerifierPool) -> None:
    """Judges until every worker is ready: one that a test has killed is being replaced."""
    number = 0
    while not pool._processes or not all(worker.ready for worker in pool._processes):
        pool.map([("sleep", f"0.01{number}")])
        number += 1


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_death(*processes: int, within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while any(map(alive, processes)):
        assert time.monotonic() < end, f"{[p for p in processes if alive(p)]} still live"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(ACT, workers=2, deadline_s=DEADLINE_S, memory_limit_bytes=1 << 30) as pool:
        yield pool


@pytest.mark.parametrize(
    ("item", "verdict"),
    [
        (("sleep", "1000"), Verdict.TIMEOUT),
        (("loop",), Verdict.TIMEOUT),
        (("C code",), Verdict.TIMEOUT),
        (("exit",), Verdict.CRASH),
        (("sys.exit",), Verdict.CRASH),
        (("segfault",), Verdict.CRASH),
        (("memory",), Verdict.CRASH),
        (("raise", "why"), Verdict.CRASH),
        (("text",), Verdict.CRASH),
        (("stray", "{}"), Verdict.CRASH),
        (("stray", "\x7f\x7f\x7f\x7f"), Verdict.CRASH),
        (("stray", "\x00\x00\x00\x64partial"), Verdict.CRASH),
        (("stray", '\x00\x00\x00\x16{"verdict": "correct"}'), Verdict.CRASH),
        (("stray", "x"), Verdict.CRASH),
        (("stray", "not JSON\n" * 10_000), Verdict.CRASH),
        (("stray later", "\x00\x00\x00\x02{}"), Verdict.CRASH),
        (("closed",), Verdict.CRASH),
        (("shouting",), Verdict.CRASH),
        (("too", "many", "arguments"), Verdict.CRASH),
        (("verdict", "unparsable"), Verdict.UNPARSABLE),
        (("in a fork", "right"), Verdict.CORRECT),
        (("in a fork", "loop"), Verdict.TIMEOUT),
        (("in a fork", "memory"), Verdict.CRASH),
        (("in a fork", "exit"), Verdict.CRASH),
    ],
    ids=lambda value: ascii(value)[:30] if isinstance(value, tuple) else value.value,
)
def test_a_check_that_fails_costs_only_itself(pool, item, verdict):
    started = time.monotonic()
    got = pool.map([("verdict", "correct"), item, ("verdict", "wrong"), ("right", item[0])])
    assert got == [Verdict.CORRECT, verdict, Verdict.WRONG, Verdict.CORRECT]
    assert time.monotonic() - started < 4 * DEADLINE_S + 10


@pytest.mark.parametrize("end", ["exit", "loop", "stray"])
def test_what_a_check_leaves_behind_costs_no_later_item_its_verdict(end, tmp_path):
    log = tmp_path / "log"
    with VerifierPool(ACT, workers=1, deadline_s=0.3) as own:
        assert own.map([("leaves", end), ("log and sleep", str(log))]) == [Verdict.CORRECT] * 2
    # Judged twice, unless a busy machine gave the thread too little time.
    assert log.read_text() == "xx" or end == "loop"


def test_an_item_that_kills_two_processes_has_crashed(pool, tmp_path):
    log = tmp_path / "log"
    with VerifierPool(ACT, workers=1) as own:
        items = [("right", "before"), ("log and exit", str(log)), ("right", "after")]
        assert own.map(items) == [Verdict.CORRECT, Verdict.CRASH, Verdict.CORRECT]
    assert log.read_text() == "xx"


def test_a_right_answer_after_three_killed_ones_is_right(pool):
    stuck = [("sleep", str(1000 + i)) for i in range(3)]
    assert pool.map([*stuck, ("right", "after")]) == [Verdict.TIMEOUT] * 3 + [Verdict.CORRECT]


def test_verdicts_come_in_the_order_of_the_items(pool):
    items = [
        ("sleep", f"{0.01 * (i % 3)}{i}") if i % 2 else ("verdict", "wrong") for i in range(40)
    ]
    expected = [Verdict.CORRECT if i % 2 else Verdict.WRONG for i in range(40)]
    assert pool.map(items) == expected
    assert pool.map([]) == []


def test_workers_have_no_jax_and_no_core_dumps_and_little_memory(pool):
    assert (
        pool.map([("modules", "entropy_rl.tasks.worker"), ("limits", str(1 << 30))])
        == [Verdict.CORRECT] * 2
    )
    assert pool.map([("modules", "jax"), ("modules", "math_verify")]) == [Verdict.CRASH] * 2


def test_on_macos_a_worker_has_no_limit_of_memory_and_a_warning_says_so_once(monkeypatch, caplog):
    worker_handle._warn_of_memory.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(worker.sys, "platform", "darwin")
        assert not worker.limits_memory()
        with contextlib.closing(VerifierPool(ACT, workers=2)) as pool:
            assert pool.map([("right", "a"), ("right", "b")]) == [Verdict.CORRECT] * 2
    (line,) = [line for line in caplog.messages if "no limit of memory" in line]
    assert line.endswith("darwin does not enforce one")
    worker_handle._warn_of_memory.cache_clear()


def test_an_item_is_judged_once(pool, tmp_path):
    log = ("log", str(tmp_path / "log"))
    assert pool.map([log, log]) + pool.map([log]) == [Verdict.CORRECT] * 3
    assert (tmp_path / "log").read_text() == "x"


def test_a_timeout_or_crash_is_tried_again_by_the_next_call(tmp_path):
    log = tmp_path / "log"
    sleep = ("sleep", "1000")
    with VerifierPool(ACT, workers=1, deadline_s=0.3) as pool:
        assert pool.map([sleep, sleep, ("log", str(log)), ("raise",)])[:2] == [Verdict.TIMEOUT] * 2
        assert sleep not in pool._memo
        assert len(pool._memo) == 1
        assert pool.map([("raise",), sleep]) == [Verdict.CRASH, Verdict.TIMEOUT]


def test_the_memo_is_bounded():
    with VerifierPool(ACT, workers=1, memo_size=10) as pool:
        pool.map([("right", str(i)) for i in range(30)])
        assert len(pool._memo) == 10


def test_the_memo_forgets_what_was_asked_for_longest_ago():
    with VerifierPool(ACT, workers=1, memo_size=2) as pool:
        for key in (b"a", b"b", b"a", b"c"):
            pool._cache(key, Judgement(Verdict.WRONG))
        assert list(pool._memo) == [b"a", b"c"]


def test_a_judgement_ends_the_count_of_processes_that_were_lost_in_a_row():
    with VerifierPool(ACT, workers=1) as pool:
        pool._lost = 3
        assert pool.map([("right", "1")]) == [Verdict.CORRECT]
        assert pool._lost == 0


def test_the_reason_of_a_crash_is_logged_once(caplog):
    with VerifierPool(ACT, workers=1) as pool, caplog.at_level(logging.WARNING):
        pool.map([("raise", "the reason"), ("right", "1")])
        pool.map([("raise", "the reason"), ("right", "2")])
    assert [r.getMessage() for r in caplog.records] == [
        f"verifier {ACT}: a check crashed: KeyError: 'the reason'"
    ]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (("sys.exit",), "SystemExit: 3"),
        (("exit",), "the process died with status 3"),
        (("stray", "y"), "it wrote into the pipe of the worker"),
        (("parts",), "its result must be at most 262144 bytes as JSON, got 333062"),
    ],
)
def test_the_reason_names_what_the_check_did(tmp_path, caplog, item, reason):
    with (
        VerifierPool(ACT, workers=1, deadline_s=DEADLINE_S) as own,
        caplog.at_level(logging.WARNING),
    ):
        own.map([item])
    assert [r.getMessage() for r in caplog.records] == [
        f"verifier {ACT}: a check crashed: {reason}"
    ]


def test_a_deadline_is_cpu_time_and_does_not_count_waiting(pool):
    assert pool.map([("sleep", str(2 * DEADLINE_S))]) == [Verdict.CORRECT]


def test_a_rise_of_failed_checks_is_a_warning(caplog):
    with (
        VerifierPool(ACT, workers=1, deadline_s=DEADLINE_S) as own,
        caplog.at_level(logging.WARNING),
    ):
        own.map([("right", str(i)) for i in range(20)])
        assert caplog.records == []
        own.map([("raise", str(i % 2)) if i < 4 else ("right", f"next {i}") for i in range(8)])
        own.map([("raise", f"more {i}") if i < 4 else ("right", f"last {i}") for i in range(8)])
    lines = [record.getMessage() for record in caplog.records]
    assert sum("4 of 8 checks timed out or crashed (before: 0.0%)" in line for line in lines) == 0
    assert sum("4 of 8 checks timed out or crashed" in line for line in lines) == 1


def test_the_first_timeout_is_logged_while_the_call_runs_and_then_their_number(monkeypatch, caplog):
    monkeypatch.setattr("entropy_rl.tasks.pool._LOG_EVERY_S", 0.0)
    with (
        VerifierPool(ACT, workers=1, deadline_s=0.1) as own,
        caplog.at_level(logging.WARNING),
    ):
        own.map([("loop",), ("loop", "again")])
        monkeypatch.setattr("entropy_rl.tasks.pool._LOG_EVERY_S", 1000.0)
        own.map([("loop", "once more")])
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"verifier {ACT}: checks that timed out so far: {count} (limit: 0.1 CPU seconds)"
        for count in (1, 2)
    ]


def test_what_a_killed_check_has_started_dies_with_it(pool, tmp_path):
    file = tmp_path / "pid"
    assert pool.map([("child", str(file))]) == [Verdict.TIMEOUT]
    wait_for_death(int(file.read_text()))


def test_the_temporary_files_of_a_process_are_removed_with_it(pool, tmp_path):
    file = tmp_path / "folder"
    assert pool.map([("scratch", str(file))]) == [Verdict.CRASH]
    folder = Path(file.read_text())
    assert not folder.exists() and not folder.parent.exists() and folder.parents[1].exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_of_a_run_costs_no_verdict(pool, number):
    warm_up(pool)
    before = pids(pool)
    assert all(os.getsid(pid) == pid for pid in before)
    for pid in before:
        os.kill(pid, number)
    items = [("right", f"one {number}"), ("right", f"two {number}")]
    assert pool.map(items) == [Verdict.CORRECT] * 2
    assert pids(pool) == before


def test_a_check_can_end_a_process_that_it_starts(pool):
    assert pool.map([("ends a fork",)]) == [Verdict.CORRECT]


def test_an_interrupted_call_leaves_no_answer_for_the_next_one(pool):
    class Interruption(BaseException):
        pass

    def interrupt(*_):
        raise Interruption

    previous = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(Interruption):
            pool.map([("sleep", "0.7"), ("sleep", "0.71")])
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, previous)
    wrong = [("verdict", "wrong"), ("verdict", "unparsable")]
    assert pool.map(wrong) == [Verdict.WRONG, Verdict.UNPARSABLE]


def test_idle_workers_that_were_killed_are_replaced(pool):
    warm_up(pool)
    for pid in pids(pool):
        os.kill(pid, signal.SIGKILL)
    wait_for_death(*pids(pool))
    items = [("right", f"next {i}") for i in range(4)]
    assert pool.map(items) == [Verdict.CORRECT] * 4


def test_processes_start_at_the_first_item_and_end_with_close():
    pool = VerifierPool(ACT, workers=2)
    pool.map([])
    assert pids(pool) == []
    pool.map([("right",)])
    workers = pids(pool)
    assert len(workers) == 2 and all(map(alive, workers))
    pool.close()
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)  # not even a zombie
    with pytest.raises(RuntimeError, match="closed"):
        pool.map([("right",)])


def test_a_forgotten_pool_ends_its_processes():
    pool = VerifierPool(ACT, workers=1)
    pool.map([("right",)])
    workers = pids(pool)
    del pool
    gc.collect()
    assert not any(map(alive, workers))


def test_a_pool_needs_no_main_guard_and_its_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, threading, time\n"
        f"sys.path[:0] = {[str(path) for path in Path(__file__).parents[:2]]!r}\n"
        "from entropy_rl.tasks.pool import VerifierPool\n"
        f"pool = VerifierPool({ACT!r}, workers=2, deadline_s=1.0)\n"
        "print(pool.map([('right',)])[0].value, flush=True)\n"
        "print(*[worker.process.pid for worker in pool._processes], flush=True)\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), 9)).start()\n"
        "pool.map([('C code',)])\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    verdict, workers = run.stdout.splitlines()  # each line once: the main module ran once
    assert verdict == "correct", run.stderr
    assert run.returncode == -signal.SIGKILL
    wait_for_death(*map(int, workers.split()))


def test_a_check_that_prints_needs_no_reader(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = {[str(path) for path in Path(__file__).parents[:2]]!r}\n"
        "from entropy_rl.tasks.pool import VerifierPool\n"
        f"with VerifierPool({ACT!r}, workers=1) as pool:\n"
        "    print(pool.map([('print', 'x' * 10_000)])[0].value)\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        run.stderr.close()  # as the end of `tee` in `... 2>&1 | tee log`
        assert run.stdout.read() == "correct\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "No module named 'faulty_check'"),
        ("", "has no attribute 'check'"),
        ("raise OSError('no license')", "OSError: no license"),
        (
            "import os; os._exit(5)",
            "3 processes in a row were lost, the last before it was ready .* status 5",
        ),
        ("import time; time.sleep(1000)", "before it was ready .limit: 0.5 s. with status -9"),
        ("def check(a): raise TypeError('no warm-up')", "TypeError: no warm-up"),
    ],
)
def test_workers_that_cannot_start_are_a_clear_error(tmp_path, monkeypatch, body, message):
    if body is not None:
        (tmp_path / "faulty_check.py").write_text(body)
        monkeypatch.syspath_prepend(tmp_path)
    slow = 0.5 if body and "sleep" in body else 60
    with VerifierPool("faulty_check:check", workers=1, warm_up=("x",), warm_up_s=slow) as pool:
        with pytest.raises(
            RuntimeError, match=f"verifier 'faulty_check:check' cannot start: .*{message}"
        ):
            pool.map([("x",)])
        assert pids(pool) == []


@pytest.mark.parametrize("option", [{"workers": 0}, {"deadline_s": 0.0}, {"deadline_s": 1e20}])
def test_options_out_of_range_are_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name}: must be .* >.*, got "):
        VerifierPool(ACT, **option)
