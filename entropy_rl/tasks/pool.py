"""A pool of killable verifier processes: a check that hangs or crashes affects only its item.

What a check leaves behind, such as a thread, may end its process during a later item. So an item
whose process is lost is judged once more, by a new process, where that may be the cause.

A worker is a new Python interpreter with its own session and a pipe, not a
`multiprocessing.Process`: that would run the trainer's main module again, require
`if __name__ == "__main__"` in every script, and leave a resource tracker behind. Written for Linux
(process groups, resource limits); on macOS, where it was not tried, processes have no limit of
memory, and a warning says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from multiprocessing.connection import wait

from entropy_rl.config.checks import MOST_DEADLINE_S, require
from entropy_rl.tasks.judging import CORRECT_AT
from entropy_rl.tasks.task import JudgeError, Judgement, Verdict
from entropy_rl.tasks.worker_handle import CrashLog, WorkerHandle

logger = logging.getLogger(__name__)

Item = tuple[str, ...]  # the arguments of one check

_MANY_FAILURES = 3  # checks of one call without a judgement
_FAILURE_SHARE = 0.01
_CLOCK_LIMIT = 4  # wall-clock seconds of a check for each CPU second of its deadline
_LOG_EVERY_S = 60.0  # between two lines about timeouts
_MAX_LOST = 3  # processes per worker that were lost in a row without an item


class VerifierPool:
    """Runs one check on many items in killable processes.

    Judgements are cached, so that an item is checked once; TIMEOUT and CRASH are not, because the
    next attempt may succeed. Processes start at the first `map` that needs them.

    Args:
      check: `module:function`, called in the worker as `function(*item)`. It returns what
        `as_judgement` takes, such as a `Verdict`; any other value and any exception is a CRASH.
        Imports at the top of its module do not count towards the deadline.
      workers: Number of processes.
      deadline_s: CPU seconds of a worker for one item, so that a verdict does not depend on the
        load of the machine. A check that waits is stopped after 4 times as many wall-clock
        seconds.
      memory_limit_bytes: Address space limit of a worker.
      warm_up: An item that every worker checks before it reports ready, to fill caches.
      warm_up_s: Wall-clock seconds until a worker must be ready.
      memo_size: Number of cached judgements.
      correct_at: The grade from which on a check that returns a number means correct.
    """

    def __init__(
        self,
        check: str,
        *,
        workers: int = 2,
        deadline_s: float = 5.0,
        memory_limit_bytes: int = 4 << 30,
        warm_up: Item | None = None,
        warm_up_s: float = 120.0,
        memo_size: int = 1 << 16,
        correct_at: float = CORRECT_AT,
    ):
        if workers < 1:
            raise ValueError(f"workers: must be an integer >= 1, got {workers!r}")
        in_range = 0 < deadline_s <= MOST_DEADLINE_S
        require(in_range, "deadline_s", deadline_s, f"a number > 0 and <= {MOST_DEADLINE_S}")
        self._check = check
        self._workers = workers
        self._settings = {
            "handler": "entropy_rl.tasks.worker:judging",
            "check": check,
            "deadline_s": deadline_s,
            "clock_limit_s": _CLOCK_LIMIT * deadline_s,
            "memory_limit_bytes": memory_limit_bytes,
            "warm_up": warm_up,
            "warm_up_s": warm_up_s,
            "correct_at": correct_at,
        }
        self._memo: OrderedDict[bytes, Judgement] = OrderedDict()
        self._memo_size = memo_size
        self._lock = threading.Lock()
        self._closed = False
        self._lost = 0
        self._failures = 0.0  # running mean of the fraction of checks without a judgement
        self._timeouts = 0
        self._logged_at: float | None = None  # when their number was logged
        self._crashes = CrashLog(logger, f"verifier {check}: a check")
        self._processes: list[WorkerHandle] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._processes)

    def map(self, items: Sequence[Item]) -> list[Verdict]:
        """The verdicts of `judge`."""
        return [judgement.verdict for judgement in self.judge(items)]

    def judge(self, items: Sequence[Item]) -> list[Judgement]:
        """Judge items; equal items are checked once.

        Args:
          items: Arguments of the check, as tuples of strings.

        Returns:
          One judgement per item, in order.

        Raises:
          JudgeError: No worker can be started.
          RuntimeError: The pool is closed.
        """
        messages = [json.dumps(item).encode() for item in items]
        # The cache is keyed by digests: items may be whole completions.
        keys = [hashlib.blake2b(message, digest_size=16).digest() for message in messages]
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            known = {key: self._memo[key] for key in keys if key in self._memo}
            waiting = {key: m for key, m in zip(keys, messages, strict=True) if key not in known}
            if waiting:
                try:
                    known |= self._settle(deque(waiting.items()))
                except BaseException:
                    # Pending replies would otherwise be taken for those of the next items.
                    _kill_all(self._processes)
                    self._lost = 0
                    raise
                self._note_failures([known[key].verdict for key in waiting])
            for key, judgement in known.items():
                self._cache(key, judgement)
            return [known[key] for key in keys]

    def close(self) -> None:
        """Kill the workers. A second call does nothing."""
        with self._lock:
            self._closed = True
            self._finalizer()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _cache(self, key: bytes, judgement: Judgement) -> None:
        if not judgement.verdict.is_failure:
            self._memo[key] = judgement
            self._memo.move_to_end(key)
            if len(self._memo) > self._memo_size:
                self._memo.popitem(last=False)

    def _settle(self, waiting: deque[tuple[bytes, bytes]]) -> dict[bytes, Judgement]:
        """Send the items (key, message) to workers and collects the judgements."""
        judgements: dict[bytes, Judgement] = {}
        again: deque[tuple[bytes, bytes]] = deque()  # at most as many as there are new processes
        while True:
            # Also after the last item, so that the next call finds a replaced worker warmed up.
            while len(self._processes) < self._workers:
                self._processes.append(WorkerHandle(self._settings))
            for worker in list(self._processes):
                source = again if again and not worker.answered else waiting
                if source and worker.ready and worker.key is None:
                    key, message = source[0]
                    if worker.send(key, message, self._settings["clock_limit_s"]):
                        source.popleft()
                    else:
                        self._replace(worker)
            if len(self._processes) < self._workers:
                continue
            if not waiting and not again and all(w.key is None for w in self._processes):
                return judgements
            pause = min(worker.deadline for worker in self._processes) - time.monotonic()
            answered = wait(
                [worker.connection for worker in self._processes], max(0, min(pause, 60))
            )
            for worker in list(self._processes):
                if worker.connection in answered:
                    self._receive(worker, judgements, again)
                elif worker.deadline <= time.monotonic():
                    self._replace(worker)
                    self._lose(worker, None, judgements, again)

    def _receive(
        self,
        worker: WorkerHandle,
        judgements: dict[bytes, Judgement],
        again: deque[tuple[bytes, bytes]],
    ) -> None:
        try:
            reply = worker.receive()
        except (EOFError, OSError):  # the process has died
            worker.wait_for_exit()
            reason = worker.describe_end(self._replace(worker))
            self._lose(worker, reason, judgements, again)
            return
        except ValueError:
            self._replace(worker)
            self._lose(worker, "it wrote into the pipe of the worker", judgements, again)
            return
        if reply is None:
            return
        if "unfit" in reply:
            raise JudgeError(f"the verifier {self._check!r} cannot start: {reply['unfit']}")
        if worker.key is not None:
            judgements[worker.key] = Judgement(
                Verdict(reply["verdict"]), reply["reward"], reply["parts"]
            )
            self._lost = 0
            worker.answered += 1
            if reply["reason"]:
                self._crashes.note(reply["reason"])
        worker.ready, worker.key, worker.deadline = True, None, float("inf")

    def _lose(
        self,
        worker: WorkerHandle,
        reason: str | None,
        judgements: dict[bytes, Judgement],
        again: deque[tuple[bytes, bytes]],
    ) -> None:
        """Settle the item of a lost process, if it had one.

        Args:
          worker: The process.
          reason: Of a crash; None for a timeout.
          judgements: Gets the judgement.
          again: Gets the item if an earlier one may be to blame.
        """
        if worker.key is None:
            return
        if worker.may_have_failed_before(timed_out=reason is None):
            again.append((worker.key, worker.message))
        elif reason is None:
            judgements[worker.key] = self._time_out()
        else:
            judgements[worker.key] = Judgement(Verdict.CRASH)
            self._crashes.note(reason)

    def _time_out(self) -> Judgement:
        """Count a check that timed out, and log the first one, then their number once a minute."""
        self._timeouts += 1
        if self._logged_at is None or time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.warning(
                "verifier %s: checks that timed out so far: %d (limit: %g CPU seconds); after each "
                "one a new process must start",
                self._check,
                self._timeouts,
                self._settings["deadline_s"],
            )
        return Judgement(Verdict.TIMEOUT)

    def _note_failures(self, verdicts: Sequence[Verdict]) -> None:
        """Warn if the fraction of checks without a judgement has risen."""
        failed = sum(verdict.is_failure for verdict in verdicts)
        share = failed / len(verdicts)
        if failed >= _MANY_FAILURES and share > 2 * max(self._failures, _FAILURE_SHARE):
            logger.warning(
                "verifier %s: %d of %d checks timed out or crashed (before: %.1f%%); their samples "
                "have no reward",
                self._check,
                failed,
                len(verdicts),
                100 * self._failures,
            )
        self._failures += (share - self._failures) / 10

    def _replace(self, worker: WorkerHandle) -> int:
        """Kill a worker and remove it; `_settle` starts another. Returns the exit status."""
        status = worker.kill()
        self._processes.remove(worker)
        self._lost = 0 if worker.key is not None else self._lost + 1
        if self._lost >= _MAX_LOST * self._workers:
            limit_s = self._settings["warm_up_s"]
            when = "while idle" if worker.ready else f"before it was ready (limit: {limit_s} s)"
            raise JudgeError(
                f"the verifier {self._check!r} cannot start: {self._lost} processes in a row were "
                f"lost, the last {when} with status {status}"
            )
        return status


def _kill_all(workers: list[WorkerHandle]) -> None:
    while workers:
        workers.pop().kill()
