"""The grammar, and worked examples written in it.

    prompt     := <bos> INPUTS : TARGET
    completion := move* end
    move       := step | wait | undo
    step       := a op b = c REST : TARGET      takes a and b out of the pool; c, REST is the new
    pool wait       := wait INPUTS : TARGET          starts again
    undo       := undo+ POOL : TARGET           takes back one step for each `undo`
    end        := done | stop                   a claim of success, or an honest end without one;
    then <eos>

After each move the whole state is in print, the target included: nothing has to be looked up
further back, and whether `done` is true can be seen from the last two numbers.

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

RESULT_WEIGHT = 4.0  # of the position after `=`: arithmetic is the slowest thing to learn
DECISION_WEIGHT = 2.0  # of the position after `: TARGET` of a move: go on, wait, undo, stop or done

_WORDS = tuple(str(number) for number in range(game.MAX_NUMBER + 1))
_FACTS = {
    op: tuple(step for row in game.STEPS for cell in row for step in cell if step.op == op)
    for op in "+-*"
}


@dataclasses.dataclass(frozen=True)
class TraceConfig:
    """How worked examples are made up.

    The defaults give a policy that mostly stops after one or two attempts: reinforcement learning
    then has room to search longer.

    Args:
      sizes: Numbers of inputs, each as likely.
      chains: The target is drawn from the distinct results of m random chains, and m from these:
        with one chain frequent results are the targets, with many the rare ones come up as well.
      p_solve: An attempt is the planted solution.
      p_near: An attempt begins like the planted solution and ends at random. Otherwise all is
        random.
      p_stop: After a failed attempt: stop.
      p_undo: After a failed attempt that goes on: undo, rather than wait.
      p_undo_two: An undo takes back two steps, rather than one.
      p_fix: After an undo: end on the target, if the pool allows it. Otherwise at random.
      drills: Share of examples that are drills: a row of arithmetic facts.
      facts: Facts in a drill.
      max_pieces: Longer examples are cut off there, without an end.
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
    """The prompt of a problem; also all that the judge has to know of it."""
    return f"<bos> {' '.join(map(str, numbers))} : {target}"


def make_demonstration(rng: Random, config: TraceConfig) -> Demonstration:
    """Draws one worked example, on inputs of the warm-start split."""
    return _drill(rng, config) if rng.random() < config.drills else _trace(rng, config)


def solutions(pool: Sequence[int], target: int) -> Iterator[tuple[Step, ...]]:
    """All ways to go on from a pool that end on the target with one number left."""
    if len(pool) == 1:
        if pool[0] == target:
            yield ()
        return
    for step in game.legal_steps(tuple(sorted(pool))):
        for rest in solutions(game.take_step(pool, step), target):
            yield (step, *rest)


def position_weights(pieces: Sequence[str]) -> list[float]:
    """The loss weight of each piece, from the pieces before it alone.

    What stands at a position has no influence on its weight. If `done` weighed more than the step
    that could stand in its place, the policy would learn to say `done` too often.
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
        # The operator first: multiplication has few facts, and they are the hard ones.
        a, op, b, result = _pick(rng, _FACTS[_pick(rng, "+-*")])
        pieces += (_WORDS[a], op, _WORDS[b], "=", _WORDS[result], ",")
    weights = (0.0, 0.0, 0.0, 0.0, RESULT_WEIGHT, 0.0) * config.facts
    return Demonstration("<bos>", tuple(pieces), weights)


def _random_chain(rng: Random, pool: Sequence[int]) -> tuple[list[Step], list[int]]:
    """One random legal attempt: its steps, and the pool that is left."""
    chain = []
    while steps := game.legal_steps(tuple(sorted(pool))):
        chain.append(_pick(rng, steps))
        pool = game.take_step(pool, chain[-1])
    return chain, list(pool)


def _draw_target(
    rng: Random, numbers: Sequence[int], config: TraceConfig
) -> tuple[int, list[Step]]:
    """A target that can be reached, and the chain that does."""
    solution_of: dict[int, list[Step]] = {}
    wanted = _pick(rng, config.chains)
    while wanted > 0:
        chain, left = _random_chain(rng, numbers)
        if len(left) == 1:  # otherwise the chain got stuck: all results out of range
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
    pools = [numbers]  # the live chain: the pool before each step, and the last one

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
            # Two can always be taken back: from inputs up to 10 no attempt is stuck after a single
            # step.
            taken_back = 2 if rng.random() < config.p_undo_two else 1
            del pools[-taken_back:]
            pieces.extend(["undo"] * taken_back)
            pieces.extend(_WORDS[number] for number in pools[-1])
            pieces.extend(goal)
            # Only short ends are looked for: of a chain that got stuck early, more can be left.
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

    # A cut, not an early stop: what stands before the limit is as likely as without a limit.
    end = config.max_pieces
    return Demonstration(
        write_prompt(numbers, target), tuple(pieces[:end]), tuple(position_weights(pieces)[:end])
    )
