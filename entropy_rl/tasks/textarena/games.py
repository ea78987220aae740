"""TextArena's games: which can be played, and how one is played without disturbing the others."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# As of textarena 0.7.4. Each has variants, such as Wordle-v0 and Wordle-v0-hardcore.
SINGLE_PLAYER = frozenset(
    ("2048", "Bandit", "Blackjack", "Crosswords", "FifteenPuzzle", "FrozenLake", "GuessTheNumber")
    + ("Hangman", "LightsOut", "LogicPuzzle", "Mastermind", "Minesweeper", "PegJump", "RushHour")
    + ("Secretary", "Set", "Sokoban", "Sudoku", "ThreeCardMonte", "TowerOfHanoi", "WordLadder")
    + ("WordSearch", "Wordle")
)
_SWAPPED = "its messages and their types are swapped"
UNUSABLE: Mapping[str, str] = {
    "Countdown": _SWAPPED,
    "Cryptarithm": _SWAPPED,
    "Slitherlink": _SWAPPED,
    "Klondike": "it does not load on Python 3.11",
    "UltimateTexasHoldem": "it does not load on Python 3.11",
    "GuessWho": "it needs an account of OpenRouter",
    "TwentyQuestions": "it needs an account of OpenRouter",
}
NEED_WORDS = frozenset(("Hangman", "WordLadder", "WordSearch", "Wordle"))  # of nltk
_RAW = "-raw"  # the variant that shows what is new, and that alone


def library() -> Any:
    """Import textarena."""
    import textarena

    return textarena


@functools.cache
def _play_offline() -> None:
    """Keep games from downloading word lists, and from reading a dictionary, in each episode.

    They do so when they are set up. It changes their package in this process, which is one of an
    environment.
    """
    import nltk
    from textarena.envs.utils import word_lists

    nltk.download = lambda *args, **kwargs: False
    word_lists.EnglishDictionary.__deepcopy__ = lambda self, memo: self  # it never changes
    word_lists.EnglishDictionary = functools.cache(word_lists.EnglishDictionary)


def family(name: str) -> str:
    """The name of a game without its version and variant."""
    return name.partition("-v0")[0]


def playable() -> list[str]:
    """The names of the games that can be played."""
    names = library().envs.registration.ENV_REGISTRY
    return sorted(
        name
        for name in names
        if family(name) in SINGLE_PLAYER and not name.endswith((_RAW, "-train"))
    )


class Game:
    """One game in play.

    TextArena draws from the global random generators, which it seeds. They are swapped for those of
    the game around each call, so that games that are played in turns do not disturb each other.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], seed: int):
        """
        Args:
          name: Of the game.
          settings: Arguments of its class.
          seed: Of everything that it draws.

        Raises:
          LookupError: A word list of nltk is missing.
          Exception: The game refuses the settings.
        """
        self._generators = (
            random.Random(seed).getstate(),
            np.random.RandomState(seed % 2**32).get_state(),
        )
        template = _template(name, json.dumps(dict(settings)))
        with self._randomness():
            self._game = copy.deepcopy(template)
            self._game.reset(num_players=1, seed=seed)
            self._text = self._observe()

    @property
    def text(self) -> str:
        """What the game has said since the last move, or at the beginning."""
        return self._text

    def move(self, action: str) -> float | None:
        """Make a move; returns the reward at the end of the game, None before.

        Raises:
          Exception: The game cannot read the move.
        """
        with self._randomness():
            is_done, _ = self._game.step(action)
            if is_done:
                rewards, _ = self._game.close()
                return float(rewards[0])
            self._text = self._observe()
            return None

    def _observe(self) -> str:
        echo = library().ObservationType.PLAYER_ACTION
        _, messages = self._game.get_observation()
        return "\n".join(text for _, text, kind in messages if kind != echo)

    @contextlib.contextmanager
    def _randomness(self) -> Iterator[None]:
        others = random.getstate(), np.random.get_state()
        try:
            random.setstate(self._generators[0])
            np.random.set_state(self._generators[1])
            yield
        finally:
            self._generators = random.getstate(), np.random.get_state()
            random.setstate(others[0])
            np.random.set_state(others[1])


@functools.lru_cache(maxsize=256)
def _template(name: str, settings: str) -> Any:
    """Set up a game, which may read word lists; it is copied for each episode."""
    _play_offline()
    state = random.getstate(), np.random.get_state()
    try:
        random.seed(0)
        np.random.seed(0)
        return library().make(name + _RAW, **json.loads(settings))
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


def first_texts(wanted: list[tuple[str, dict[str, Any], list[int]]]) -> list[list[str]]:
    """What games say at the beginning.

    Args:
      wanted: (name, settings, seeds) of each game.

    Returns:
      For each game, the text of each seed.

    Raises:
      ValueError: A game cannot be set up; the message names it.
    """
    return [_first_texts(*one) for one in wanted]


def _first_texts(name: str, settings: dict[str, Any], seeds: list[int]) -> list[str]:
    path = f"task.args.games.{name}"
    try:
        return [Game(name, settings, seed).text for seed in seeds]
    except LookupError as error:
        if family(name) not in NEED_WORDS:
            raise
        raise ValueError(
            f"{path}: must have the word lists of nltk, got none; run "
            "python -m nltk.downloader words averaged_perceptron_tagger_eng"
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path}: must have settings of it, got {reason:.200}") from error
