"""The grammar of completions, and random worked examples in it.

    prompt     := <bos> INPUTS : TARGET
    completion := move* end <eos>
    move       := step | wait | undo
    step       := a op b = c REST : TARGET    remove a and b from the pool; the new pool is c, REST
    wait       := wait INPUTS : TARGET        restart from the inputs
    undo       := undo+ POOL : TARGET         take back one step for each `undo`
    end        := done | stop                 claim success, or give up

Each move prints the whole state, including the target: no move refers further back than the state
before it, and the last two numbers tell whether `done` is true.

    <bos> 2 3 7 : 27
    7 + 3 = 10 2 : 27   10 * 2 = 20 : 27   undo 10 2 : 27   10 - 2 = 8 : 27
    wait 2 3 7 : 27     7 + 2 = 9 3 : 27   9 * 3 = 27 : 27  done <eos>
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from random import Random

from entropy_rl.tasks.countdown import game
from entropy_rl.tasks.countdown.game import Step
from entropy_rl.tasks.task import Demonstration

RESULT_WEIGHT = 4.0  # of the position after `=`: arithmetic is learned slowest
DECISION_WEIGHT = 2.0  # of the position after `: TARGET`: step, wait, undo, stop or done

_WORDS = tuple(str(number) for number in range(game.MAX_NUMBER + 1))
_FACTS = {
    op: tuple(step for row in game.STEPS for cell in row for step in cell if step.op == op)
    for op in "+-*"
}


@dataclasses.dataclass(frozen=True)
class TraceConfig:
    """Distribution of worked examples.

    With the defaults, the fine-tuned policy mostly stops after one or two attempts, which leaves
    room for reinforcement learning to search longer.

    Args:
      sizes: Numbers of inputs, drawn uniformly.
      chains: The target is drawn from the distinct results of m random chains, with m drawn from
        these: one chain favors frequent results, many chains include rare ones.
      p_solve: Probability that an attempt is the planted solution.
      p_near: Probability that an attempt begins like the planted solution and ends at random.
        Otherwise the attempt is random.
      p_stop: Probability of `stop` after a failed attempt.
      p_undo: Probability of `undo` rather than `wait` after a failed attempt that continues.
      p_undo_two: Probability that an undo takes back two steps rather than one.
      p_fix: Probability that the moves after an undo reach the target, if the pool allows it.
      drills: Fraction of examples that are drills: sequences of arithmetic facts.
      facts: Facts in a drill.
      max_pieces: Longer examples are truncated, without an end.
    """

    sizes: tuple[int, ...] = (4, 5)
    chains: tuple[int, ...] = (1, 4, 16)
    p_solve: float = 0.2
    p_near: float = 0.25
    p_stop: float = 0.55
    p_undo: float = 0.5
    p_undo_two: float = 0.4
    p_fix: float = 0.25
    drills: float = 0.2
    facts: int = 12
    max_pieces: int = 160


def write_prompt(numbers: Sequence[int], target: int) -> str:
    """The prompt of a problem; the judge reads the problem from it."""
    return f"<bos> {' '.join(map(str, numbers))} : {target}"


def make_demonstration(rng: Random, config: TraceConfig) -> Demonstration:
    """Draw one worked example on inputs of the "sft" split."""
    return _drill(rng, config) if rng.random() < config.drills else _trace(rng, config)


def solutions(pool: Sequence[int], target: int) -> Iterator[tuple[Step, ...]]:
    """Iterate over all sequences of steps from a pool to the target as the only number."""
    if len(pool) == 1:
        if pool[0] == target:
            yield ()
        return
    for step in game.legal_steps(tuple(sorted(pool))):
        for rest in solutions(game.take_step(pool, step), target):
            yield (step, *rest)


def position_weights(pieces: Sequence[str]) -> list[float]:
    """The loss weight of each piece, a function of the pieces before it.

    The piece itself has no influence on its weight: if `done` weighed more than a step at the same
    position, the policy would learn to write `done` too often.
    """
    return [
        RESULT_WEIGHT if last == "=" else DECISION_WEIGHT if second_last == ":" else 1.0
        for second_last, last in itertools.pairwise(["", "", *pieces[:-1]])
    ]


def _pick(rng: Random, options: Sequence):
    return options[int(rng.random() * len(options))]  # several times faster than Random.choice


def _drill(rng: Random, config: TraceConfig) -> Demonstration:
    pieces: list[str] = []
    for _ in range(config.facts):
        # Operator first: multiplication has few facts, which are the hard ones.
        a, op, b, result = _pick(rng, _FACTS[_pick(rng, "+-*")])
        pieces += (_WORDS[a], op, _WORDS[b], "=", _WORDS[result], ",")
    weights = (0.0, 0.0, 0.0, 0.0, RESULT_WEIGHT, 0.0) * config.facts
    return Demonstration("<bos>", tuple(pieces), weights)


def _random_chain(rng: Random, pool: Sequence[int]) -> tuple[list[Step], list[int]]:
    """Draw one random legal attempt: its steps and the final pool."""
    chain = []
    while steps := game.legal_steps(tuple(sorted(pool))):
        chain.append(_pick(rng, steps))
        pool = game.take_step(pool, chain[-1])
    return chain, list(pool)


def _draw_target(
    rng: Random, numbers: Sequence[int], config: TraceConfig
) -> tuple[int, list[Step]]:
    """Draw a reachable target and a chain that reaches it."""
    solution_of: dict[int, list[Step]] = {}
    wanted = _pick(rng, config.chains)
    while wanted > 0:
        chain, left = _random_chain(rng, numbers)
        if len(left) == 1:  # otherwise no step was legal: all results are out of range
            solution_of.setdefault(left[0], chain)
            wanted -= 1
    target = _pick(rng, tuple(solution_of))
    return target, solution_of[target]


def _trace(rng: Random, config: TraceConfig) -> Demonstration:
    numbers = list(_pick(rng, game.multisets("sft", _pick(rng, config.sizes))))
    rng.shuffle(numbers)
    target, planted = _draw_target(rng, numbers, config)

    goal = (":", _WORDS[target])
    pieces: list[str] = []
    pools = [numbers]  # of the live chain: before each step and after the last

    def write(steps: Sequence[Step]) -> None:
        for step in steps:
            pools.append(game.take_step(pools[-1], step))
            pieces.extend((_WORDS[step.a], step.op, _WORDS[step.b], "="))
            pieces.extend(_WORDS[number] for number in pools[-1])
            pieces.extend(goal)

    def attempt() -> None:
        draw = rng.random()
        if draw < config.p_solve:
            write(planted)
            return
        if draw < config.p_solve + config.p_near:
            write(planted[: 1 + int(rng.random() * (len(planted) - 1))])
        write(_random_chain(rng, pools[-1])[0])

    attempt()
    while pools[-1] != [target] and len(pieces) < config.max_pieces:
        if rng.random() < config.p_stop:
            break
        if rng.random() < config.p_undo:
            # Two steps can always be taken back: from inputs up to 10, no attempt is stuck after
            # one step.
            taken_back = 2 if rng.random() < config.p_undo_two else 1
            del pools[-taken_back:]
            pieces.extend(["undo"] * taken_back)
            pieces.extend(_WORDS[number] for number in pools[-1])
            pieces.extend(goal)
            # Search small pools only: a chain that got stuck early can leave more numbers.
            fixes = ()
            if rng.random() < config.p_fix and len(pools[-1]) <= 3:
                fixes = tuple(solutions(pools[-1], target))
            write(_pick(rng, fixes) if fixes else _random_chain(rng, pools[-1])[0])
        else:
            del pools[1:]
            pieces.append("wait")
            pieces.extend(_WORDS[number] for number in numbers)
            pieces.extend(goal)
            attempt()
    pieces.extend(("done" if pools[-1] == [target] else "stop", "<eos>"))

    # Truncation, not an early stop: the pieces before the limit keep their distribution.
    end = config.max_pieces
    return Demonstration(
        write_prompt(numbers, target), tuple(pieces[:end]), tuple(position_weights(pieces)[:end])
    )
