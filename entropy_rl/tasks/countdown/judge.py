"""Judge completions: `parse` reads the grammar, `replay` plays the game."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from entropy_rl.tasks.countdown import game
from entropy_rl.tasks.task import Verdict

# Words are looked up, never converted: `²`, `+7`, `007` and very long numbers are not words.
_NUMBERS = {str(number): number for number in range(game.MAX_NUMBER + 1)}
_OPERATORS = {op: op for op in "+-*"}


class Move(NamedTuple):
    """One move and the state printed after it: a step, an undo, or (neither) a restart."""

    step: tuple[int, str, int] | None  # a, op, b; the result is pool[0]
    undone: int
    pool: list[int]
    target: int


class Parsed(NamedTuple):
    """A parsed completion. If `broken`, `moves` are those before the syntax error."""

    moves: list[Move]
    end: str | None  # "done", "stop", or None if the completion is truncated or broken
    broken: bool


class Replayed(NamedTuple):
    """Counts of the correct parts of a completion."""

    steps: int
    arithmetic: int  # steps with a op b == c
    operands: int  # steps whose operands are in the pool
    rules: int  # steps that the game admits (larger operand first, no multiplication by one, ...)
    states: int  # printed states
    pools: int  # printed states with the right pool and target
    waits: int
    undos: int  # words, not moves
    solved: bool  # the live chain has no error and ends on the target


def parse(text: str) -> Parsed:
    """Parse a completion by the grammar in `traces`, in linear time for any text.

    Args:
      text: The completion, without special tokens. Words are separated by white space.

    Returns:
      The complete moves. A text that ends within a move is truncated, not broken.
    """
    words = text.split()
    moves: list[Move] = []
    i = 0
    try:
        while i < len(words):
            step, undone = None, 0
            word = words[i]
            if word in ("done", "stop"):
                last = i + 1 == len(words)
                return Parsed(moves, word if last else None, broken=not last)
            if word == "wait":
                i += 1
            elif word == "undo":
                while words[i] == "undo":
                    i += 1
                    undone += 1
            else:
                step = (_NUMBERS[word], _OPERATORS[words[i + 1]], _NUMBERS[words[i + 2]])
                if words[i + 3] != "=":
                    return Parsed(moves, None, broken=True)
                i += 4
            pool = [_NUMBERS[words[i]]]
            i += 1
            while words[i] != ":":
                pool.append(_NUMBERS[words[i]])
                i += 1
            moves.append(Move(step, undone, pool, _NUMBERS[words[i + 1]]))
            i += 2
    except IndexError:  # the text ends within a move
        return Parsed(moves, None, broken=False)
    except KeyError:  # a word that the grammar does not allow here
        return Parsed(moves, None, broken=True)
    return Parsed(moves, None, broken=False)


def replay(numbers: Sequence[int], target: int, moves: Sequence[Move]) -> Replayed:
    """Play the moves, each from the state printed before it, so that one error counts once.

    A state is correct if it has the right numbers, in any order after the result of a step, and the
    right target. A step is flawless if arithmetic, operands, rules and state are correct. An error
    remains in the chain until `undo` takes the step back or `wait` restarts; an undo of more steps
    than the chain has is an error that only `wait` removes.

    Args:
      numbers: The inputs.
      target: The target.
      moves: From `parse`.

    Returns:
      The counts.
    """
    pool, flawless = list(numbers), True
    # Pool and flawlessness before each step of the live chain.
    history: list[tuple[list[int], bool]] = []
    steps = arithmetic = operands = rules = pools = waits = undos = 0
    for move in moves:
        if move.step is not None:
            a, op, b = move.step
            rest = list(pool)
            available = True
            for operand in (a, b):
                if operand in rest:
                    rest.remove(operand)
                else:
                    available = False
            right = game.calculate(a, op, b) == move.pool[0]
            admitted = game.is_legal(a, op, b)
            printed = move.target == target and sorted(move.pool[1:]) == sorted(rest)
            steps += 1
            arithmetic += right
            operands += available
            rules += admitted
            history.append((pool, flawless))
            flawless = flawless and right and available and admitted and printed
        else:
            if move.undone:
                undos += move.undone
                possible = move.undone <= len(history)
                pool, flawless = history[-move.undone] if possible else (pool, False)
                del history[-move.undone :]
            else:
                waits += 1
                possible = True
                pool, flawless = list(numbers), True
                history.clear()
            printed = possible and move.target == target and sorted(move.pool) == sorted(pool)
            flawless = flawless and printed
        pool = move.pool
        pools += printed
    solved = flawless and pool == [target]
    return Replayed(steps, arithmetic, operands, rules, len(moves), pools, waits, undos, solved)


@functools.lru_cache(maxsize=1 << 14)
def read_prompt(prompt: str) -> tuple[tuple[int, ...], int]:
    """Parse the inputs and the target of a prompt."""
    numbers, _, target = prompt.removeprefix("<bos>").partition(":")
    return tuple(map(int, numbers.split())), int(target)


def judge_one(prompt: str, completion: str) -> Verdict:
    """Judge one completion."""
    parsed = parse(completion)
    if parsed.broken:
        return Verdict.UNPARSABLE
    solved = parsed.end == "done" and replay(*read_prompt(prompt), parsed.moves).solved
    return Verdict.CORRECT if solved else Verdict.WRONG


def claimed_steps(completion: str) -> str | None:
    """The steps of a claimed solution, sorted, so that equal solutions are equal texts.

    Args:
      completion: Any text.

    Returns:
      For example `3 * 7, 21 - 5`; None if the completion does not end with `done`.
    """
    parsed = parse(completion)
    if parsed.end != "done":
        return None
    chain: list[str] = []
    for move in parsed.moves:
        if move.step is not None:
            chain.append(" ".join(map(str, move.step)))
        elif move.undone:
            del chain[-move.undone :]
        else:
            chain.clear()
    return ", ".join(sorted(chain))


def probe_all(prompts: Sequence[str], completions: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Skill metrics as sums over all completions: name -> (numerator, denominator)."""
    total = dict.fromkeys(Replayed._fields, 0)
    false_done = stopped = broken = 0
    for prompt, completion in zip(prompts, completions, strict=True):
        parsed = parse(completion)
        replayed = replay(*read_prompt(prompt), parsed.moves)
        for name, count in replayed._asdict().items():
            total[name] += count
        false_done += parsed.end == "done" and not replayed.solved
        stopped += parsed.end == "stop"
        broken += parsed.broken
    n = len(completions)
    return {
        "arithmetic": (total["arithmetic"], total["steps"]),
        "operands": (total["operands"], total["steps"]),
        "rules": (total["rules"], total["steps"]),
        "pools": (total["pools"], total["states"]),
        "false_done": (false_done, n),
        "stopped": (stopped, n),
        "format_errors": (broken, n),
        "waits": (total["waits"], n),
        "undos": (total["undos"], n),
        "steps": (total["steps"], n),
    }
