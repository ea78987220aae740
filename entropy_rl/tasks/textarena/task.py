"""The task of TextArena: one of its single-player games, or a weighted mixture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.config.checks import require
from entropy_rl.config.extras import install_command
from entropy_rl.config.values import unknown
from entropy_rl.tasks.environments.environment import Done, Observation
from entropy_rl.tasks.fresh_process import call_in_fresh_process
from entropy_rl.tasks.mixture import ID_STRIDE, Part, interleave, make_parts, split_weight
from entropy_rl.tasks.task import Judgement, Problem, Verdict
from entropy_rl.tasks.textarena import games
from entropy_rl.tasks.textarena.games import Game


class TextArena:
    """Single-player games of TextArena (https://arxiv.org/abs/2504.11442), as environments.

    A problem is a game with a seed, from which it draws everything: the samples of a problem play
    the same game. The reward is that of the game, which may grade a game that was not won; a reward
    of 1 is correct. A move that makes the game fail is a wrong one, with the reward 0.

    Args:
      games: The name of a game, such as Wordle-v0; or a mapping from names to settings, among them
        `weight`, the share in the mixture (1), and arguments of the class of the game.
      train: Problems of the split "train".
      test: Problems of the split "test".
      seed: Seed of all problems.
      system: System message; null for none.
      chat: Format the first text of the game as a user message.
      chat_template_kwargs: Variables of the chat template.

    Raises:
      ValueError: textarena is missing, or there is no such game.
    """

    def __init__(
        self,
        games: str | dict[str, Any],
        train: int = 512,
        test: int = 64,
        seed: int = 0,
        system: str | None = None,
        chat: bool = True,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        require(chat or system is None, "task.args.system", system, "null without chat messages")
        kwargs, where = chat_template_kwargs, "task.args.chat_template_kwargs"
        require(chat or not kwargs, where, kwargs, "null without chat messages")
        mixture = {games: {}} if isinstance(games, str) else games
        self._parts = _parts(mixture, {"train": train, "test": test})
        self._seed, self._chat, self._kwargs = seed, chat, chat_template_kwargs or {}
        self._messages = () if system is None else (("system", system),)
        self._splits: dict[str, list[Problem]] = {}

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of "train" or "test"; those of a mixture alternate by their shares.

        Raises:
          ValueError: There is no such split, or a game cannot be set up.
        """
        if split not in ("train", "test"):
            raise ValueError(unknown("split", split, ["train", "test"]))
        if split not in self._splits:
            wanted = [
                (part.name, part.settings, [self._seed_of(part, i) for i in part.indices(split)])
                for part in self._parts
            ]
            texts = call_in_fresh_process(
                f"{games.__name__}:{games.first_texts.__name__}",
                wanted,
                must_be="task.args.games: must be set up by textarena",
            )
            self._splits[split] = [
                self._problem(number, self._parts[number].indices(split)[i], texts[number][i])
                for number, i in interleave([len(of_part) for of_part in texts])
            ]
        return self._splits[split]

    def reset(self, problem: Problem, seed: int) -> None:
        """Begin a game; its seed is that of the problem, for all samples."""
        self._game = Game(**json.loads(problem.answer))

    def step(self, action: str) -> Observation | Done:
        """Make a move: what comes before `</think>` is none of it."""
        try:
            reward = self._game.move(action.rpartition("</think>")[2])
        except MemoryError:
            raise
        except Exception:  # such as a number of thousands of digits
            return Done(Judgement(Verdict.WRONG, 0.0))
        if reward is None:
            return Observation(self._game.text)
        return Done(Judgement(Verdict.CORRECT if reward >= 1 else Verdict.WRONG, reward))

    def _seed_of(self, part: Part, index: int) -> int:
        """The seed of a game: the games of neighboring seeds of the task share none."""
        text = json.dumps([self._seed, part.name, index]).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())

    def _problem(self, number: int, index: int, text: str) -> Problem:
        part = self._parts[number]
        seed = self._seed_of(part, index)
        game = {"name": part.name, "settings": part.settings, "seed": seed}
        return Problem(
            id=number * ID_STRIDE + index,
            prompt=text,
            answer=json.dumps(game),
            chat=self._chat,
            messages=self._messages,
            chat_template_kwargs=self._kwargs,
            source=part.name if len(self._parts) > 1 else "",
        )


def _parts(mixture: Mapping[str, Any], sizes: dict[str, int]) -> list[Part]:
    """Check the games of a mixture, and share the problems out by weights."""
    try:
        playable = games.playable()
    except ImportError as error:
        raise ValueError(
            f"task.name: must be a task that is installed, got textarena without {error.name}; "
            f"`{install_command('environments')}` installs it"
        ) from None
    require(bool(mixture), "task.args.games", mixture, "at least one game")
    weights, settings = {}, {}
    for name, given in mixture.items():
        path = f"task.args.games.{name}"
        if reason := games.UNUSABLE.get(games.family(str(name))):
            raise ValueError(f"{path}: must be a game that can be played, but {reason}")
        if name not in playable:
            raise ValueError(unknown("task.args.games", name, playable))
        weights[name], settings[name] = split_weight(path, given)
    return make_parts(weights, settings, sizes, "game")
