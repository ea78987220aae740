"""Environments in killable processes: what a step does ends its own episode at most."""

import json
import sys

import pytest
from environments_for_tests import Guess, Mute

from entropy_rl.config.common import EpisodesConfig
from entropy_rl.tasks import load_task
from entropy_rl.tasks.countdown.turns import CountdownTurns
from entropy_rl.tasks.environments import Done, Observation
from entropy_rl.tasks.environments.environment import is_environment
from entropy_rl.tasks.environments.pool import EnvironmentPool, Episode
from entropy_rl.tasks.environments.worker import stepping
from entropy_rl.tasks.task import JudgeError, Verdict
from entropy_rl.tasks.worker import describe
from entropy_rl.tasks.worker_handle import WorkerHandle

FILE = "environments_for_tests"
PROBLEM = load_task(f"{FILE}:Guess").problems("train")[3]


@pytest.fixture(scope="module")
def pool():
    pool = EnvironmentPool(f"{FILE}:Hostile", {"count": 4}, workers=2, deadline_s=0.5)
    yield pool
    pool.close()


def step(pool, *actions, number=0, seed=7):
    return pool.step(number, Episode(PROBLEM, seed, actions)).result()


def test_a_state_lives_on_between_steps_and_is_rebuilt_where_it_is_missing(pool):
    first = step(pool, "0")
    assert first["text"].startswith("no 1 ") and first["reward"] == 0.125
    second = step(pool, "0", "1")
    assert second["text"].startswith("no 2 ")
    # Another worker has never seen this episode; the other one was killed in between.
    assert step(pool, "0", "1", number=1) == second
    assert step(pool, "die", seed=8) == {"failed": "crash"}
    assert step(pool, "0", "1") == second
    third = step(pool, "0", "1", "2")
    assert third["text"].startswith("no 3 ")
    assert step(pool, "0", seed=9)["text"] != first["text"]  # another seed


@pytest.fixture
def worker(monkeypatch):
    """What a worker process does with a message, in this process; and the steps that it ran."""
    steps, step_once = [], Guess.step
    monkeypatch.setattr(Guess, "step", lambda self, a: steps.append(a) or step_once(self, a))
    answer = stepping({"factory": f"{FILE}:Guess", "args": {}})
    return lambda message: answer(json.loads(message), lambda: None), steps


def test_the_states_of_any_number_of_episodes_live_on(worker):
    answer, steps = worker
    for turn in range(1, 4):
        for seed in range(5000):
            episode = Episode(PROBLEM, seed, ("0",) * turn)
            assert answer(episode.message(history=turn == 1))["text"].startswith(f"no {turn} ")
    assert len(steps) == 3 * 5000


def test_the_state_of_an_episode_that_has_ended_is_released(worker):
    answer, _ = worker
    ended, other = (Episode(PROBLEM, seed, ("0",)) for seed in (1, 2))
    answer(ended.message())
    answer(other.message(ended=[ended.name]))
    for seed, is_known in ((1, False), (2, True)):
        again = Episode(PROBLEM, seed, ("0", "1"))
        assert (answer(again.message(history=False)) == {"unknown": True}) is not is_known
        assert answer(again.message())["text"].startswith("no 2 ")  # whichever way


def test_the_messages_of_an_episode_are_linear_in_its_turns(monkeypatch):
    sent, send = [], WorkerHandle.send
    monkeypatch.setattr(
        WorkerHandle, "send", lambda self, key, m, s: sent.append(m) or send(self, key, m, s)
    )
    pool = EnvironmentPool(f"{FILE}:Guess", {}, workers=1)
    actions = [f"{'x' * 1000} {turn}" for turn in (0, 1, 2, 4) * 3]  # not 3, the right answer
    try:
        for turn in range(1, 13):
            assert step(pool, *actions[:turn])["text"].startswith(f"no {turn} ")
        assert len(sent) == 12 and max(map(len, sent)) < 1500
        pool.end(0, Episode(PROBLEM, 7, tuple(actions)))
        step(pool, "0", seed=8)
        assert json.loads(sent[-1])["ended"] == [f"{PROBLEM.id}/7"]
        assert step(pool, *actions, "0")["text"].startswith("no 13 ")  # rebuilt
        assert len(sent) == 15 and json.loads(sent[-1])["ended"] == []
    finally:
        pool.close()


def test_the_end_of_an_episode_has_a_judgement(pool):
    right = {"verdict": "correct", "reward": None, "parts": {}}
    assert step(pool, "it is 3") == {"judgement": right}
    graded = {"verdict": "wrong", "reward": 0.25, "parts": {}}
    assert step(pool, "grade") == {"judgement": graded}


def test_the_reward_of_a_turn_may_be_a_scalar_of_numpy(pool):
    assert step(pool, "array") == {"text": "a", "reward": 0.5, "role": "user"}


@pytest.mark.parametrize(
    ("action", "failed"),
    [
        ("raise", "crash"),
        ("exit", "crash"),
        ("die", "crash"),
        ("hang", "timeout"),
        ("huge", "crash"),
        ("number", "crash"),
        ("none", "crash"),
        ("nan", "crash"),
        ("role", "crash"),
        ("bytes", "crash"),
        ("nan grade", "crash"),
        ("interrupt", "crash"),
        ("mute", "crash"),
        ("text", "crash"),
    ],
)
def test_a_step_that_fails_is_no_judgement_and_the_next_one_works(pool, action, failed):
    assert step(pool, action)["failed"] == failed
    assert step(pool, "it is 3")["judgement"]["verdict"] == "correct"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("a\nb"), "KeyError: 'a\\nb'"),
        (ValueError("a\n  b\n"), "ValueError: a b"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (Mute(), "Mute: its text raises RuntimeError"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 288),
    ],
)
def test_what_a_step_raises_is_described_in_a_line(error, line):
    assert describe(error) == line


def test_what_a_step_leaves_behind_costs_no_other_episode_its_judgement():
    pool = EnvironmentPool(f"{FILE}:Hostile", {}, workers=1)
    try:
        assert step(pool, "0")["text"].startswith("no 1 ")
        assert step(pool, "leave a thread", seed=8)["text"].startswith("no 1 ")
        assert step(pool, "0", "nap")["text"].startswith("no 2 ")
        assert pool._workers[0]._handle.answered == 1  # in another process
    finally:
        pool.close()


def test_a_step_that_waits_is_stopped_by_the_clock():
    pool = EnvironmentPool(f"{FILE}:Hostile", {}, workers=1, deadline_s=0.1)
    assert step(pool, "sleep") == {"failed": "timeout"}
    pool.close()
    with pytest.raises(RuntimeError):
        step(pool, "0")


@pytest.mark.parametrize(("action", "deadline_s"), [("burn", 0.3), ("nap", 0.2)])
def test_each_step_that_is_taken_again_has_its_own_limit_of_time(action, deadline_s):
    """4 steps take longer than the limit of one: 0.4 CPU seconds, or 1 second of the clock."""
    pool = EnvironmentPool(f"{FILE}:Hostile", {}, workers=1, deadline_s=deadline_s)
    try:
        for turns in range(1, 5):
            assert step(pool, *[action] * turns)["text"].startswith(f"no {turns} ")
        assert step(pool, "die", seed=8) == {"failed": "crash"}  # a neighbor in the same worker
        assert step(pool, *[action] * 5)["text"].startswith("no 5 ")
        assert step(pool, "die", seed=8) == {"failed": "crash"}
        # The last one is limited too.
        assert step(pool, *[action] * 5, "hang") == {"failed": "timeout"}
    finally:
        pool.close()


@pytest.mark.parametrize("action", ["chinese", "emoji", "controls", "half"])
def test_a_text_of_any_characters_may_have_the_full_length(pool, action):
    texts = {"chinese": "\u4e2d", "emoji": "\U0001f600", "controls": "\x01"}
    expected = texts[action] * 30_000 if action in texts else "\ud800"
    assert step(pool, action)["text"] == expected


def test_the_size_of_a_result_that_is_too_large_is_named(caplog):
    pool = EnvironmentPool(f"{FILE}:Hostile", {}, workers=1)
    assert step(pool, "one too many") == step(pool, "many parts") == {"failed": "crash"}
    pool.close()
    text, parts = (record.getMessage().partition("crashed: ")[2] for record in caplog.records)
    assert text == "its step must return a text of at most 30000 characters, got 30001 characters"
    assert parts == "its step must return a result of at most 262144 bytes as JSON, got 324063"


def test_what_a_step_prints_does_not_disturb_the_replies(pool):
    assert step(pool, "print")["text"].startswith("no 1 ")


def test_an_environment_that_does_not_start_says_why():
    pool = EnvironmentPool(f"{FILE}:Broken", {}, workers=1)
    with pytest.raises(JudgeError, match="cannot start: RuntimeError: no display"):
        step(pool, "0")
    pool.close()


def test_a_class_with_reset_and_step_is_loaded_as_an_environment():
    task = load_task(f"{FILE}:Guess", {"count": 2}, EpisodesConfig(max_turns=3))
    assert len(task.problems("test")) == 2 and task.limits.max_turns == 3
    with pytest.raises(JudgeError, match="must be stepped"):
        task.judge([], [])
    with pytest.raises(ValueError, match=r"task\.episodes: must be null for a task without"):
        load_task("countdown", {}, EpisodesConfig())
    assert not is_environment(load_task("countdown"))
    for no_name in (Guess, Guess()):
        with pytest.raises(ValueError, match=r"^load_task: name: must be a name, such as "):
            load_task(no_name)


def test_what_is_no_task_is_not_called(tmp_path):
    file = tmp_path / "was_called"
    with pytest.raises(ValueError) as caught:
        load_task("os:system", {"command": f"touch {file}"})
    assert str(caught.value) == (
        "task.name: must be a class with a method 'problems', got 'os:system'"
    )
    assert not file.exists()


def test_an_environment_that_workers_cannot_import_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "Own", Guess, raising=False)
    with pytest.raises(ValueError) as caught:
        load_task("__main__:Own")
    assert str(caught.value) == (
        "task.name: must be in a module of its own file, got '__main__:Own'"
    )


def test_countdown_in_turns_answers_operations_and_judges_the_end():
    environment = CountdownTurns()
    problem = next(p for p in environment.problems("train") if len(p.answer.split()) == 7)
    environment.reset(problem, 0)
    *numbers, _, target = problem.answer.removeprefix("<bos>").split()
    large, small = sorted(numbers[:2], key=int, reverse=True)
    answer = environment.step(f"{large} + {small} =")
    left = " ".join(numbers[2:])
    assert answer == Observation(f"{int(large) + int(small)} {left} : {target}")
    # An operand that is not in the pool any more.
    assert environment.step("48 - 47 =") == Done(Verdict.WRONG)
    environment.reset(problem, 0)
    assert environment.step("stop") == Done(Verdict.WRONG)
    environment.reset(problem, 0)
    assert environment.step("done done") == Done(Verdict.UNPARSABLE)


@pytest.mark.parametrize(
    "text", ["=", "= =", "x + y =", "1 / 1 =", "² + 1 =", "wait =", "1 + =", ""]
)
def test_countdown_in_turns_survives_any_text(text):
    environment = CountdownTurns()
    environment.reset(environment.problems("train")[0], 0)
    assert isinstance(environment.step(text), Done)


def test_several_texts_are_several_messages_and_counts_are_checked(pool):
    reply = step(pool, "two texts")
    assert reply["text"] == ["a", "b"] and reply["role"] == "tool" and reply["parts"] == {"n": 2.0}
    assert step(pool, "nan part")["failed"] == "crash"
    assert step(pool, "no texts")["failed"] == "crash"
