"""Episodes on the host: what environments reply becomes tokens, judgements and counts."""

from concurrent.futures import Future
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from entropy_rl.experience.episodes import Episodes, begin_episodes
from entropy_rl.experience.metrics import part_means
from entropy_rl.experience.scoring import Scores
from entropy_rl.tasks.countdown import build_tokenizer
from entropy_rl.tasks.environments.task import EnvironmentTask
from entropy_rl.tasks.task import Judgement, Problem, Verdict
from entropy_rl.types import FinishReason

PROBLEM = Problem(0, "x", "")
ROOM = 100


def observation(text, **parts):
    return {"text": text, "reward": 0.0, "role": "user", "parts": parts}


def judged(verdict, reward=None, **parts):
    return {"judgement": {"verdict": verdict, "reward": reward, "parts": parts}}


def begin(tokenizer, replies, max_turns=4):
    """Return one episode with these replies of the environment, and the list of ended episodes."""
    replies = iter(replies)

    def step(row, episode):
        future = Future()
        future.set_result(next(replies))
        return future

    ended = []
    pool = SimpleNamespace(step=step, end=lambda row, episode: ended.append(episode.name))
    episodes = Episodes(pool, tokenizer, max_turns, [PROBLEM], [7])
    return episodes, ended


def play(tokenizer, replies, max_turns=4):
    """Play one episode to its end."""
    (episodes, ended), reply = begin(tokenizer, replies, max_turns), []
    while not isinstance(reply, FinishReason):
        assert not ended
        episodes.submit(0, tokenizer.encode("a"), FinishReason.STOP, ROOM)
        reply = episodes.reply(0)
    assert ended == ["0/7"]
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


def test_an_answer_without_room_ends_the_episode_in_its_environment_too(tokenizer):
    _, reason = play(tokenizer, [observation("b" * ROOM)])
    assert reason == FinishReason.LENGTH


def test_the_means_of_parts_are_over_the_judgements_that_have_them():
    judgements = [Judgement(Verdict.WRONG, None, {"calls": n}) for n in (1, 2, 6)]
    scores = Scores(["a"] * 4, [*judgements, Judgement(Verdict.CRASH)], [None] * 4, {})
    assert part_means(scores) == {"part/calls": (9, 3)}


def test_the_reward_of_a_turn_is_at_its_last_token():
    tokenizer = build_tokenizer()
    said = [observation("2 7") | {"reward": 0.5}, observation("3") | {"reward": 0.25}]
    episodes, _ = begin(tokenizer, [*said, judged("correct", 1.0)])
    column, expected = 0, np.zeros((1, 40), np.float32)
    for text, reward in (("7 + 2", 0.5), ("7", 0.25), ("2 2", 0.0)):
        turn = tokenizer.encode(text, add_special_tokens=False)
        episodes.submit(0, turn, FinishReason.STOP, ROOM)
        column += len(turn)
        expected[0, column - 1] = reward
        reply = episodes.reply(0)
        column += 0 if isinstance(reply, FinishReason) else len(reply)
    np.testing.assert_array_equal(episodes.turn_rewards(40), expected)
    assert episodes.judgements()[0].turns == 0.75


def test_each_sample_of_a_problem_has_an_environment_seed_of_its_own():
    task = object.__new__(EnvironmentTask)  # without processes
    task.pool, task.limits = SimpleNamespace(), SimpleNamespace(max_turns=2)
    problems = [Problem(i, "", "") for i in (5, 5, 5, 8, 8, 8)]

    def seeds(first_sample, key):
        episodes = begin_episodes(task, None, problems, first_sample, jax.random.key(key))
        return [row.seed for row in episodes.rows]

    one = seeds(0, 0)
    assert len({*one, *seeds(3, 0), *seeds(0, 1)}) == 18
    # The samples of a round follow those of the one before.
    assert seeds(1, 0)[:2] == one[1:3]
