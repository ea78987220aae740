"""TextArena's games: deterministic, undisturbed by each other, and refused where they cannot be
played.
"""

import json
import random
import sys

import pytest

pytest.importorskip("textarena", reason="needs the extra environments")

from entropy_rl.config.common import EpisodesConfig
from entropy_rl.tasks import load_task
from entropy_rl.tasks.environments import Done, Observation
from entropy_rl.tasks.environments.pool import Episode
from entropy_rl.tasks.task import Judgement, Verdict
from entropy_rl.tasks.textarena import games
from entropy_rl.tasks.textarena.games import Game

GUESS, MINES, SUDOKU, MASTER = (
    "GuessTheNumber-v0", "Minesweeper-v0-small", "Sudoku-v0-very-easy", "Mastermind-v0",
)  # fmt: skip
MOVES = {
    GUESS: ["[10]", "[5]", "[15]", "[1]"],
    MINES: ["[2 2]", "[0 0]", "[4 4]", "[0 4]"],
    SUDOKU: ["[1 1 1]", "[2 2 2]"],
    MASTER: ["[1 2 3 4]", "[4 3 2 1]", "[5 6 1 2]"],
    "2048-v0": ["[up]", "[left]", "[down]", "[right]"],
    "Blackjack-v0": ["[Hit]", "[Stand]", "[Stand]", "[Hit]"],
}


def task(given, **args):
    limits = EpisodesConfig(workers=1, max_turns=20)
    return load_task("textarena", {"games": given, "train": 6, "test": 3, **args}, limits)


def said(game, move):
    reward = game.move(move)
    return game.text if reward is None else reward


def play(name, seed):
    game = Game(name, {}, seed)
    found = [game.text]
    for move in MOVES[name]:
        found.append(said(game, move))
        if not isinstance(found[-1], str):
            break
    return found


@pytest.fixture(scope="module")
def guess():
    loaded = task(GUESS)
    yield loaded
    loaded.close()


@pytest.mark.parametrize("name", MOVES)
def test_games_that_are_played_in_turns_do_not_disturb_each_other(name):
    alone = [play(name, seed) for seed in (1, 2)]
    random.seed(7)
    before = random.getstate()
    first, second = Game(name, {}, 1), Game(name, {}, 2)
    found = [[first.text], [second.text]]
    for i, move in enumerate(MOVES[name]):
        for game, texts, whole in zip((first, second), found, alone, strict=True):
            if i + 1 < len(whole):
                random.random()
                texts.append(said(game, move))
    assert found == alone
    assert len(alone[0]) > 1 and sum(len(t) for t in alone[0] if isinstance(t, str)) > 100
    random.seed(7)
    assert random.getstate() == before


def test_the_global_generator_is_left_as_it_was():
    random.seed(3)
    expected = random.random()
    random.seed(3)
    Game(MINES, {}, 5).move("[1 1]")
    assert random.random() == expected


def test_the_samples_of_a_problem_play_the_same_game(guess):
    problem = guess.problems("train")[2]
    replies = []
    for seed in (1, 2):
        guess.environment.reset(problem, seed)
        replies.append([guess.environment.step(f"[{n}]") for n in (10, 3, 17)])
    assert replies[0] == replies[1]
    secrets = {Game(**json.loads(p.answer))._game.game_number for p in guess.problems("train")}
    assert len(secrets) > 1


def test_an_episode_is_the_same_after_its_worker_was_killed(guess):
    problem = guess.problems("test")[0]
    secret = Game(**json.loads(problem.answer))._game.game_number
    wrong = [f"[{n}]" for n in range(1, 21) if n != secret][:3]

    def reply(*actions):
        return guess.pool.step(0, Episode(problem, 7, actions)).result()

    first = [reply(*wrong[:n]) for n in (1, 2, 3)]
    guess.pool._workers[0]._drop()
    assert reply(*wrong) == first[-1]
    guess.pool._workers[0]._drop()
    won = reply(*wrong, f"<think>[1]</think>[{secret}]")
    assert won["judgement"] == {"verdict": "correct", "reward": 1.0, "parts": {}}


def test_moves_that_the_game_cannot_read_end_it_as_a_wrong_one(guess):
    problem = guess.problems("train")[0]
    guess.environment.reset(problem, 0)
    assert isinstance(guess.environment.step("I guess 5."), Observation)
    ended = guess.environment.step("Five!")
    assert ended == Done(Judgement(Verdict.WRONG, 0.0))
    guess.environment.reset(problem, 0)
    # Python does not convert so many digits, which the game does not expect.
    assert guess.environment.step(f"[{'9' * 5000}]") == Done(Judgement(Verdict.WRONG, 0.0))


def test_problems_are_chat_prompts_with_ids_by_game_and_splits_share_no_seed():
    loaded = task({GUESS: {"weight": 2, "max_number": 50}, MASTER: None}, system="Play well.")
    train, test = loaded.problems("train"), loaded.problems("test")
    assert [p.source for p in train] == [GUESS, MASTER, GUESS] * 2
    assert "between 1 and 50" in train[0].prompt and "Mastermind" in train[1].prompt
    assert all(p.chat and p.messages == (("system", "Play well."),) for p in test)
    answers = [p.answer for p in [*train, *test]]
    assert len({p.id for p in [*train, *test]}) == len(set(answers)) == 9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"given": "GuessTheNumbr-v0"},
            r"games: must be one of .*did you mean 'GuessTheNumber-v0'",
        ),
        ({"given": "Chess-v0"}, "task.args.games: must be one of"),
        ({"given": "Wordle-v0-raw"}, "task.args.games: must be one of"),
        ({"given": {}}, "task.args.games: must be at least one game"),
        ({"given": "Cryptarithm-v0"}, "Cryptarithm-v0: must be a game that can be played, but its"),
        ({"given": "TwentyQuestions-v0"}, "but it needs an account of OpenRouter"),
        ({"given": {GUESS: {"weight": 0}}}, "task.args.games.GuessTheNumber-v0.weight: must be a"),
        ({"given": {GUESS: 3}}, "GuessTheNumber-v0: must be a mapping of settings, got 3"),
        ({"given": GUESS, "train": 0}, "task.args.train: must be from 1 to 499999, got 0"),
        ({"given": GUESS, "chat": False, "system": "a"}, "task.args.system: must be null without"),
        (
            {"given": GUESS, "chat": False, "chat_template_kwargs": {"a": 1}},
            "task.args.chat_template_kwargs: must be null without chat messages",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(args, message):
    with pytest.raises(ValueError, match=message) as error:
        task(**args)
    assert "\n" not in str(error.value)


def test_settings_that_a_game_refuses_are_named_with_it():
    with pytest.raises(ValueError, match=r"games.GuessTheNumber-v0: must have settings of it, got"):
        task({GUESS: {"no_such": 1}}).problems("train")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(ValueError, match=r"without textarena; `pip install 'reasoning-gym"):
        task(GUESS)


def write_word_lists(directory, words):
    """Write nltk's data for a few nouns: word lists, and a tagger that knows them."""
    lists = directory / "corpora" / "words"
    lists.mkdir(parents=True)
    for name in ("en", "en-basic"):
        (lists / name).write_text("\n".join(words))
    tagger = directory / "taggers" / "averaged_perceptron_tagger_eng"
    tagger.mkdir(parents=True)
    files = {"weights": {}, "tagdict": dict.fromkeys(words, "NN"), "classes": ["NN"]}
    for name, content in files.items():
        (tagger / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(content))


def test_wordle_is_refused_without_word_lists(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ValueError, match=r"Wordle-v0: must have the word lists of nltk, got none"):
        games.first_texts([("Wordle-v0", {}, [1])])


@pytest.mark.slow
def test_wordle_is_played_with_word_lists(tmp_path, monkeypatch):
    write_word_lists(tmp_path, ["apple", "table", "house"])
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    loaded = task("Wordle-v0")
    problem = loaded.problems("train")[0]
    assert "5-letter word" in problem.prompt

    def reply(*actions):
        return loaded.pool.step(0, Episode(problem, 7, actions)).result()

    first = reply("[zzzzz]")
    assert "is not an English word" in first["text"]
    moves = ["[apple]", "[table]", "[house]"]
    replies = [reply(move) for move in moves]
    loaded.close()
    ends = [r["judgement"]["verdict"] for r in replies if "judgement" in r]
    assert ends == ["correct"]
    assert sum("Feedback" in r.get("text", "") for r in replies) == 2


@pytest.mark.slow
def test_every_game_that_is_called_playable_can_be_set_up_and_takes_moves():
    names = [n for n in games.playable() if games.family(n) not in games.NEED_WORDS]
    assert len(names) > 40
    for name in names:
        for text in ("[1 1]", "[up]", "no move"):
            game = Game(name, {}, 3)
            twin = Game(name, {}, 3)
            assert game.text == twin.text and 50 < len(game.text) < 30_000, name
            assert said(game, text) == said(twin, text), name
