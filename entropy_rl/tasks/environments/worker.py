"""Environments in a worker process: one live copy for each episode, rebuilt where it is missing."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable
from typing import Any

from entropy_rl.config.registry import call_factory, import_object
from entropy_rl.config.values import plain_scalar
from entropy_rl.tasks.environments.environment import Done, Observation
from entropy_rl.tasks.judging import as_judgement, correct_at, is_finite
from entropy_rl.tasks.task import Judgement, Problem, Verdict
from entropy_rl.tasks.worker import describe, too_large

_MAX_TEXT = 30_000  # characters of an observation; the message to the parent is limited too
_ROLES = ("user", "tool")

Reply = dict[str, Any]


def stepping(settings: dict[str, Any]) -> Callable[[Reply, Callable[[], None]], Reply]:
    """Build the environment of a worker; returns the function that takes one step.

    Args:
      settings: `factory` "module:Class" and its `args`.

    Returns:
      A function of a message of `Episode`. Its reply is {"unknown": True} where the state is
      missing and the message does not have what it is rebuilt from.
    """
    factory = import_object("task.name", settings["factory"])
    task = call_factory(factory, settings["args"], "task.args")
    live: dict[str, tuple[Any, int]] = {}  # the states of episodes, and the turns they have had
    least = correct_at(task)

    def step(message: Reply, restart: Callable[[], None]) -> Reply:
        for name in message["ended"]:
            live.pop(name, None)
        episode, turn = message["episode"], message["turn"]
        environment, taken = live.pop(episode, (None, -1))
        is_known = taken == turn - 1
        if not is_known and "earlier" not in message:
            return {"unknown": True}
        try:
            if not is_known:
                environment = copy.copy(task)
                environment.reset(problem_of(message["problem"]), message["seed"])
                # Each earlier step has its own limit of time, as when it was taken.
                restart()
                for action in message["earlier"]:
                    environment.step(action)
                    restart()
            value = environment.step(message["action"])
        except MemoryError:
            os._exit(errno.ENOMEM)  # the memory may not be freed: the next step gets a new process
        except BaseException as error:  # whatever a user's code raises
            return {"failed": "crash", "reason": describe(error)}
        try:
            reply = _reply(value, least)
            if (reason := too_large(reply)) is not None:
                raise ValueError(f"must return a result of {reason}")
        except ValueError as error:
            return {"failed": "crash", "reason": f"its step {error}"[:300]}
        except BaseException as error:  # of a text, number or mapping of the user's own class
            return {"failed": "crash", "reason": describe(error)}
        if "judgement" not in reply:
            live[episode] = environment, turn
        return reply

    return step


def problem_of(fields: dict[str, Any]) -> Problem:
    """Restore a problem from its fields, as JSON has them."""
    messages = tuple((role, content) for role, content in fields.get("messages", ()))
    return Problem(**{**fields, "messages": messages})


def _reply(value: Any, least: float) -> Reply:
    """Convert the result of a step to JSON.

    Raises:
      ValueError: It is neither an observation nor an end.
    """
    if isinstance(value, Done):
        judgement = as_judgement(value.judgement, least)
        fields = {"verdict": judgement.verdict.value, "reward": judgement.reward}
        return {"judgement": {**fields, "parts": dict(judgement.parts)}}
    if isinstance(value, str):
        value = Observation(value)
    if not isinstance(value, Observation):
        raise ValueError(f"must return an Observation, a text or Done, got {type(value).__name__}")
    texts = [value.text] if isinstance(value.text, str) else value.text
    is_text = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
    if not is_text or not texts or sum(map(len, texts)) > _MAX_TEXT:
        size = f"{sum(map(len, texts))} characters" if is_text else repr(value.text)
        raise ValueError(f"must return a text of at most {_MAX_TEXT} characters, got {size:.80}")
    reward = plain_scalar(value.reward)
    if not is_finite(reward):
        raise ValueError(f"must return a finite reward, got {value.reward!r:.80}")
    if value.role not in _ROLES:
        raise ValueError(f"must return a role of {', '.join(_ROLES)}, got {value.role!r:.80}")
    parts = as_judgement(Judgement(Verdict.WRONG, None, value.parts)).parts
    fields = {"text": value.text, "reward": float(reward), "role": value.role}
    return fields | ({"parts": dict(parts)} if parts else {})
