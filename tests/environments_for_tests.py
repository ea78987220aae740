"""Environments for tests, as a user would write them: one class in one file."""

import os
import random
import sys
import threading
import time

import numpy as np

from entropy_rl.tasks import Judgement, Problem, Verdict
from entropy_rl.tasks.environments import Done, Observation

_LONG_NAMES = [f"{i:099}" for i in range(3000)]


class Guess:
    """Guess a number; the answers depend on the episode's own random numbers too."""

    def __init__(self, count=8):
        self.count = count

    def problems(self, split):
        return [Problem(i, f"Guess {i}: ", str(i % 5)) for i in range(self.count)]

    def reset(self, problem, seed):
        self.number, self.random, self.guesses = problem.answer, random.Random(seed), 0

    def step(self, action):
        self.guesses += 1
        if self.number in action:
            return Done(True)
        return Observation(f"no {self.guesses} {self.random.randrange(100)}", reward=0.125)


class Mute(BaseException):
    """An exception whose text raises."""

    def __str__(self):
        raise RuntimeError("no text")


class Text(str):
    """A text without a length."""

    def __len__(self):
        raise RuntimeError("no length")


def fail(action):
    """Fail in the way that an action names; do nothing for any other action."""
    if action == "raise":
        raise KeyError("nothing here")
    if action == "exit":
        sys.exit(3)
    if action == "die":
        os._exit(9)
    if action == "interrupt":
        raise KeyboardInterrupt
    if action == "mute":
        raise Mute
    if action == "hang":
        while True:
            pass


class Hostile(Guess):
    """Does what its action says."""

    def step(self, action):
        fail(action)
        if action == "sleep":
            time.sleep(60)
        if action == "leave a thread":
            threading.Timer(0.1, os._exit, (3,)).start()
        if action == "nap":
            time.sleep(0.25)
        if action == "burn":
            end = time.process_time() + 0.1
            while time.process_time() < end:
                pass
        if action == "print":
            print("x" * 10_000, flush=True)
        results = {
            "huge": "x" * (1 << 24),
            "number": 3,
            "chinese": "\u4e2d" * 30_000,
            "emoji": "\U0001f600" * 30_000,
            "controls": "\x01" * 30_000,
            "half": "\ud800",
            "one too many": "\u4e2d" * 30_001,
            "many parts": Done(Judgement(Verdict.CORRECT, 1.0, dict.fromkeys(_LONG_NAMES, 1.0))),
            "none": None,
            "nan": Observation("a", reward=float("nan")),
            "array": Observation("a", reward=np.array(0.5, np.float32)),
            "role": Observation("a", role="system"),
            "bytes": Observation(b"a"),
            "text": Observation(Text("a")),
            "two texts": Observation(("a", "b"), role="tool", parts={"n": 2}),
            "no texts": Observation(()),
            "nan part": Observation("a", parts={"n": float("nan")}),
            "nan grade": Done(float("nan")),
            "grade": Done(0.25),
        }
        return results[action] if action in results else super().step(action)


class Broken(Guess):
    def __init__(self):
        if os.environ.get("JAX_PLATFORMS") == "cpu" and "pytest" not in sys.modules:
            raise RuntimeError("no display")  # in the worker only
        super().__init__()
