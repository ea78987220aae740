"""Episodes on the host: what environments reply becomes tokens, judgements and counts."""

from concurrent.futures import Future

import pytest

from entropy_rl.experience.episodes import Episodes
from entropy_rl.experience.metrics import part_means
from entropy_rl.experience.scoring import Scores
from entropy_rl.tasks.task import Judgement, Problem, Verdict
from entropy_rl.types import FinishReason

PROBLEM = Problem(0, "x", "")
ROOM = 100


def observation(text, **parts):
    return {"text": text, "reward": 0.0, "role": "user", "parts": parts}


def judged(verdict, reward=None, **parts):
    return {"judgement": {"verdict": verdict, "reward": reward, "parts": parts}}


def play(tokenizer, replies, max_turns=4):
    """Play one episode, in which the environment says `replies`."""
    replies = iter(replies)

    def step(row, episode):
        future = Future()
        future.set_result(next(replies))
        return future

    episodes = Episodes(step, tokenizer, max_turns, [PROBLEM], [7])
    reply = []
    while not isinstance(reply, FinishReason):
        episodes.submit(0, tokenizer.encode("a"), FinishReason.STOP, ROOM)
        reply = episodes.reply(0)
    return episodes.judgements()[0], reply


def test_the_counts_of_observations_are_summed_into_the_judgement(tokenizer):
    said = [observation("b", calls=2), observation(["c", "d"], calls=1, errors=1)]
    judgement, reason = play(tokenizer, [*said, judged("correct", 0.5, calls=0, grade=3)])
    assert reason == FinishReason.DONE
    assert judgement == Judgement(Verdict.CORRECT, 0.5, {"calls": 3, "errors": 1, "grade": 3})


@pytest.mark.parametrize(
    ("reply", "judgement"),
    [
        (observation("b", calls=5), Judgement(Verdict.WRONG, None, {"calls": 6})),
        ({"failed": "crash"}, Judgement(Verdict.CRASH)),
    ],
)
def test_an_episode_that_reaches_a_limit_keeps_its_counts_and_a_failed_one_does_not(
    tokenizer, reply, judgement
):
    assert play(tokenizer, [observation("a", calls=1), reply], max_turns=2)[0] == judgement


def test_the_means_of_parts_are_over_the_judgements_that_have_them():
    judgements = [Judgement(Verdict.WRONG, None, {"calls": n}) for n in (1, 2, 6)]
    scores = Scores(["a"] * 4, [*judgements, Judgement(Verdict.CRASH)], [None] * 4, {})
    assert part_means(scores) == {"part/calls": (9, 3)}
