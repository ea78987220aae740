"""A pool of killable processes with environments: a step that hangs or crashes ends one episode."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import wait
from typing import Any

from entropy_rl.tasks.environments.worker import Reply
from entropy_rl.tasks.task import JudgeError, Problem
from entropy_rl.tasks.worker_handle import CrashLog, WorkerHandle

log = logging.getLogger(__name__)

CLOCK_LIMIT = 4  # wall-clock seconds of a step for each CPU second of its deadline
_MAX_LOST = 3  # processes that were lost in a row without a step


@dataclasses.dataclass(frozen=True)
class Episode:
    """What identifies an episode, and what has happened in it.

    Attributes:
      problem: Its problem.
      seed: Its seed.
      actions: The texts of the turns so far, the one to answer included.
    """

    problem: Problem
    seed: int
    actions: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name by which a worker keeps its state."""
        return f"{self.problem.id}/{self.seed}"

    def message(self, history: bool = True, ended: Sequence[str] = ()) -> bytes:
        """The request to a worker, as JSON.

        Args:
          history: Whether it has what the state is rebuilt from: problem, seed and earlier actions.
          ended: The names of episodes whose states the worker may release.
        """
        turn, action = len(self.actions), self.actions[-1]
        fields = dict(episode=self.name, turn=turn, action=action, ended=ended)
        if history:
            # Those of a subclass would be unknown to the worker.
            names = [field.name for field in dataclasses.fields(Problem)]
            problem = {name: getattr(self.problem, name) for name in names}
            problem["chat_template_kwargs"] = dict(self.problem.chat_template_kwargs)
            fields |= dict(problem=problem, seed=self.seed, earlier=self.actions[:-1])
        return json.dumps(fields).encode()


class EnvironmentPool:
    """Steps episodes in killable processes.

    All steps of an episode go to the same worker, which keeps its state until the episode ends. If
    a worker was killed, the states of its other episodes are rebuilt from their actions, and a step
    is taken once more where one before it may have left what killed it. Processes start at the
    first step.

    Args:
      factory: `module:Class` of the environment.
      args: Its keyword arguments.
      workers: Number of processes.
      deadline_s: CPU seconds of a worker for one step; a step that waits is stopped after 4 times
        as many wall-clock seconds.
      memory_limit_bytes: Address space limit of a worker.
      warm_up_s: Wall-clock seconds until a worker must be ready.
    """

    def __init__(
        self,
        factory: str,
        args: Mapping[str, Any],
        *,
        workers: int = 2,
        deadline_s: float = 10.0,
        memory_limit_bytes: int = 4 << 30,
        warm_up_s: float = 120.0,
    ):
        settings = {
            "handler": "entropy_rl.tasks.environments.worker:stepping",
            "factory": factory,
            "args": dict(args),
            "deadline_s": deadline_s,
            "clock_limit_s": CLOCK_LIMIT * deadline_s,
            "memory_limit_bytes": memory_limit_bytes,
            "warm_up_s": warm_up_s,
        }
        self._workers = [_Worker(settings) for _ in range(workers)]
        # A thread for each worker, which waits for its replies in order.
        self._threads = [ThreadPoolExecutor(1, "environment") for _ in range(workers)]
        self._finalizer = weakref.finalize(self, _close, self._workers, self._threads)

    def step(self, number: int, episode: Episode) -> Future[Reply]:
        """Take the last action of an episode, without waiting.

        Args:
          number: Of the episode; always the same one, which chooses the worker.
          episode: The episode.

        Returns:
          The future of the reply: `text`, `reward` and `role` of an observation; or `judgement`;
          or `failed`, "crash" or "timeout". Its `result` raises a JudgeError if no worker can be
          started.
        """
        place = number % len(self._workers)
        return self._threads[place].submit(self._workers[place].step, episode)

    def end(self, number: int, episode: Episode) -> None:
        """Release the state of an episode that takes no further step, without waiting.

        Args:
          number: As in `step`.
          episode: The episode.
        """
        place = number % len(self._workers)
        self._threads[place].submit(self._workers[place].end, episode.name)

    def close(self) -> None:
        """Kill the workers. A second call does nothing."""
        self._finalizer()


class _Worker:
    """One process at a time, replaced by another when it dies."""

    def __init__(self, settings: dict[str, Any]):
        self._settings, self._handle, self._closed = settings, None, False
        self._ended: list[str] = []  # names of episodes, for the next request
        self._crashes = CrashLog(log, f"environment {settings['factory']}: a step")

    def step(self, episode: Episode) -> Reply:
        # A message with all actions each time would be quadratic in the number of turns.
        reply = self._ask(episode, history=len(episode.actions) == 1)
        return self._ask(episode, history=True) if "unknown" in reply else reply

    def end(self, name: str) -> None:
        self._ended.append(name)

    def _ask(self, episode: Episode, history: bool) -> Reply:
        message = episode.message(history, self._ended)
        self._ended = []
        for _ in range(_MAX_LOST):
            handle = self._ready()
            if handle.send(b"step", message, self._settings["clock_limit_s"]):
                reply = self._answer(handle)
                timed_out = reply.get("failed") == "timeout"
                if self._handle is None and handle.may_have_failed_before(timed_out):
                    return self._ask(episode, history=True)
                if "failed" in reply and (reason := reply.pop("reason", None)):
                    self._crashes.note(reason)
                handle.answered += 1
                return reply
            self._drop()
        raise JudgeError(
            f"the environment {self._settings['factory']!r} cannot start: {_MAX_LOST} processes in "
            "a row were lost while idle"
        )

    def kill(self) -> None:
        self._closed = True
        self._drop()

    def _ready(self) -> WorkerHandle:
        """Return a process that has set up its environment."""
        if self._closed:
            raise JudgeError("the environments are closed")
        if self._handle is not None:
            return self._handle
        handle = self._handle = WorkerHandle(self._settings)
        reason = f"it was not ready after {self._settings['warm_up_s']} s"
        try:
            while wait([handle.connection], max(0.0, handle.deadline - time.monotonic())):
                if (reply := handle.receive()) is None:
                    continue
                if "unfit" not in reply:
                    handle.ready, handle.deadline = True, float("inf")
                    return handle
                reason = reply["unfit"]
                break
        except (EOFError, OSError, ValueError):
            reason = f"its process ended with status {handle.process.poll()}"
        self._drop()
        raise JudgeError(f"the environment {self._settings['factory']!r} cannot start: {reason}")

    def _answer(self, handle: WorkerHandle) -> Reply:
        """Wait for the reply to what was sent."""
        try:
            while wait([handle.connection], max(0.0, handle.deadline - time.monotonic())):
                if (reply := handle.receive()) is not None:
                    handle.key, handle.deadline = None, float("inf")
                    del reply["nonce"]
                    return reply
            self._drop()
            return {"failed": "timeout"}
        except (EOFError, OSError):  # the process has died
            handle.wait_for_exit()
            reason = handle.describe_end(self._drop())
            return {"failed": "crash", "reason": reason} if reason else {"failed": "timeout"}
        except ValueError:
            self._drop()
            return {"failed": "crash", "reason": "it wrote into the pipe of the worker"}

    def _drop(self) -> int | None:
        handle, self._handle = self._handle, None
        return None if handle is None else handle.kill()


def _close(workers: list[_Worker], threads: list[ThreadPoolExecutor]) -> None:
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.kill()
    for thread in threads:
        thread.shutdown(wait=False, cancel_futures=True)
