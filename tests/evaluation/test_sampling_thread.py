"""Sampling in a thread: the evaluation receives the progress of a call, and can end it."""

import threading
import time

import numpy as np
import pytest

from entropy_rl.distributed.sharding import Placement
from entropy_rl.evaluation.sampling import _Call, _Sampler
from entropy_rl.experience.prompts import PromptBatch
from entropy_rl.rollout import DecodingProgress

CALL = _Call(
    PromptBatch([], np.zeros((1, 1)), np.ones((1, 1), bool), np.zeros(1)), np.zeros(1), 1, 0
)


class SlowGenerate:
    """Reports progress every 10 ms, until a progress call raises or the reports are done."""

    def __init__(self, looks):
        self.looks, self.ended = looks, threading.Event()

    def __call__(self, params, ids, mask, index, key, first_sample, *, on_chunk):
        try:
            for i in range(self.looks):
                on_chunk(DecodingProgress(i, self.looks, i, 1, 1))
                time.sleep(0.01)
            return np.array([first_sample])
        finally:
            self.ended.set()


def test_the_stage_of_a_call_is_heard_in_the_thread_that_waits():
    heard = []
    listen = lambda stage: heard.append((stage, threading.current_thread()))  # noqa: E731
    with _Sampler(SlowGenerate(60), None, Placement(), None, listen) as sampler:
        assert sampler.wait(sampler.begin(CALL)).rollout == [0]
    assert heard and all(thread is threading.current_thread() for _, thread in heard)
    assert [stage.finished for stage, _ in heard] == sorted(stage.finished for stage, _ in heard)


def test_what_is_raised_on_the_way_ends_the_drawing_too():
    generate = SlowGenerate(10**6)

    def refuse(stage):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        _Sampler(generate, None, Placement(), None, refuse) as sampler,
    ):
        sampler.wait(sampler.begin(CALL))
    assert generate.ended.is_set()


def test_what_the_sampler_raises_is_raised_where_its_samples_are_used():
    def fail(*arguments, **_):
        raise FloatingPointError("not finite")

    with (
        pytest.raises(FloatingPointError, match="not finite"),
        _Sampler(fail, None, Placement(), None, print) as sampler,
    ):
        sampler.wait(sampler.begin(CALL))
