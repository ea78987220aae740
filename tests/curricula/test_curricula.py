"""Curricula: the problems of a step follow from the seed and the recorded success."""

import json

import numpy as np
import pytest

from entropy_rl.curricula import Curriculum, build_curriculum, learnability, replay_failed
from entropy_rl.curricula.curriculum import ProblemOrder, mixed
from entropy_rl.experience.planned_problems import PlannedProblems
from entropy_rl.tasks import Problem

P = 8


def order_of(**sizes: int) -> ProblemOrder:
    names = [name for name, size in sizes.items() for _ in range(size)]
    return ProblemOrder([Problem(i, "?", "", source=name) for i, name in enumerate(names)], seed=0)


def play(rule, order, steps, correct):
    """Steps of a curriculum; `correct` maps (place, step) to the fraction that is correct."""
    state, drawn = rule.init(order), []
    for step in range(steps):
        again, _ = rule.choose(state, order, P)
        places, state = rule.choose(state, order, P)
        np.testing.assert_array_equal(places, again)  # the same for the same state
        assert len(set(places.tolist())) == P, "no problem comes twice in a step"
        drawn.append(places)
        outcomes = np.array([correct(place, step) for place in places], np.float32)
        state = rule.observe(state, order, places, outcomes)
    return drawn, state


def test_a_step_that_is_too_small_to_replay_a_problem_is_refused():
    rule, order = replay_failed(fraction=0.25), order_of(a=9)
    with pytest.raises(ValueError, match=r"^fraction: must be >= 1/3, a problem of the 3 of a st"):
        rule.choose(rule.init(order), order, 3)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ([0, 1], "[0, 1]"),  # too few
        ([0, 1, 1], "[0, 1, 1]"),
        ([-1, 0, 1], "[-1, 0, 1]"),  # the last problem to numpy
        ([0, 1, 9], "[0, 1, 9]"),
        ([0.0, 1.0, 2.0], "[0.0, 1.0, 2.0]"),
    ],
)
def test_what_a_curriculum_chooses_is_checked_before_the_first_step(chosen, told):
    rule = replay_failed(0.5)._replace(choose=lambda state, order, count: (chosen, state))
    problems = [Problem(i, "?", "") for i in range(9)]
    with pytest.raises(ValueError) as error:
        PlannedProblems(rule, problems, 0, 3)
    assert str(error.value) == (
        "curriculum: must choose 3 different integers from 0 to 8, the places of problems, got "
        + told
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: None, "NoneType"),
        (lambda state: {"seen": state["seen"].astype(np.float64)}, "{'seen': 'float64[9]'}"),
        (lambda state: {"seen": state["seen"][1:]}, "{'seen': 'float32[8]'}"),
    ],
)
def test_what_a_curriculum_observes_is_checked_before_the_first_step(change, told):
    rule = Curriculum(
        init=lambda order: {"seen": np.zeros(9, np.float32)},
        choose=lambda state, order, count: (np.arange(count), state),
        observe=lambda state, order, places, fractions: change(state),
        metrics=lambda state, order: {"seen": state["seen"].sum()},
    )
    problems = [Problem(i, "?", "") for i in range(9)]
    with pytest.raises(ValueError) as error:
        PlannedProblems(rule, problems, 0, 3)
    assert str(error.value) == (
        "curriculum: observe must return a state as that of init, {'seen': 'float32[9]'}, got "
        + told
    )
    planned = PlannedProblems(
        rule._replace(observe=lambda state, *_: state | {"seen": state["seen"] + 1}), problems, 0, 3
    )
    _, metrics = planned.after(planned.start, {0: 1.0, 1: 0.0, 2: 0.5})
    assert json.dumps(metrics) == '{"curriculum/seen": 9.0}'


def test_what_a_curriculum_refuses_names_the_field():
    problems = [Problem(i, "?", "") for i in range(9)]
    with pytest.raises(ValueError, match=r"^curriculum: fraction: must be >= 1/3, a problem of"):
        PlannedProblems(replay_failed(0.25), problems, 0, 3)


def test_an_order_is_another_one_in_each_epoch_and_for_each_seed():
    problems = [Problem(i, "?", "") for i in range(16)]
    orders = [
        ProblemOrder(problems, seed).take(-1, start, 16)[0]
        for seed, start in ((0, 0), (0, 16), (1, 0))
    ]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_the_problems_of_a_step_are_mixed_by_the_seed():
    one, other = (mixed(range(8), seed).tolist() for seed in (1, 2))
    assert sorted(one) == sorted(other) == list(range(8))
    assert one != list(range(8)) and one != other and one == mixed(range(8), 1).tolist()


def test_more_problems_of_a_source_than_it_has_are_refused():
    order = order_of(a=4, b=4)
    with pytest.raises(ValueError, match=r"^must take at most 3 problems of source 0, got 4"):
        order.take(0, 0, 4, without=[2, 7])
    assert sorted(order.take(0, 0, 3, without=[2, 7])[0]) == [0, 1, 3]


def test_without_a_difference_the_sources_have_equal_shares_over_several_steps():
    order = order_of(a=30, b=30, c=30)
    drawn, _ = play(learnability(), order, 30, lambda place, step: 0.5)
    counts = np.bincount(order.source[np.concatenate(drawn)])
    np.testing.assert_array_equal(counts, [80, 80, 80])


def test_shares_are_those_of_the_formula():
    order = order_of(easy=50, hard=50, open=50)
    success = np.array([0.98, 0.0, 0.5])
    rule = learnability(rate=0.5, floor=0.2)
    _, state = play(rule, order, 40, lambda place, step: success[order.source[place]])
    metrics = rule.metrics(state, order)
    for name, value in zip(order.sources, success, strict=True):
        assert metrics[f"success/{name}"] == pytest.approx(value, abs=0.01)
    worth = success * (1 - success)
    shares = 0.8 * worth / worth.sum() + 0.2 / 3
    assert [metrics[f"share/{name}"] for name in order.sources] == pytest.approx(shares, abs=0.02)
    drawn, _ = play(rule, order, 200, lambda place, step: success[order.source[place]])
    late = np.bincount(order.source[np.concatenate(drawn[100:])]) / (100 * P)
    np.testing.assert_allclose(late, shares, atol=0.01)


def test_a_source_has_no_more_problems_in_a_step_than_there_are_of_it():
    order = order_of(few=2, many=40)
    rule = learnability(rate=1.0)
    drawn, state = play(rule, order, 20, lambda place, step: 0.5 if place < 2 else 1.0)
    assert max((order.source[places] == 0).sum() for places in drawn) == 2
    assert np.abs(state["owed"]).max() <= P


def test_every_problem_of_a_source_comes_once_an_epoch():
    order = order_of(a=16, b=16)
    drawn, _ = play(learnability(), order, 4, lambda place, step: 0.5)
    assert sorted(np.concatenate(drawn).tolist()) == list(range(32))


def test_failed_problems_come_again_before_others_that_failed_later():
    order = order_of(a=64)
    failing = {3, 20, 40}
    solved_at = 6
    drawn, state = play(
        replay_failed(fraction=0.5),
        order,
        12,
        lambda place, step: float(place not in failing or step >= solved_at),
    )
    times = {place: [s for s, places in enumerate(drawn) if place in places] for place in failing}
    for steps in times.values():
        first = steps[0]
        until = [step for step in steps if step <= solved_at]
        # Again in each step until it is solved, since all that wait find room.
        assert until == list(range(first, solved_at + 1)) or first > solved_at
    assert (state["waiting"] < 0).all()


def test_the_other_problems_come_once_an_epoch_whatever_is_replayed():
    order = order_of(a=64)
    drawn, _ = play(replay_failed(0.25), order, 9, lambda place, step: float(place % 5 > 0))
    others = [place for places in drawn for place in places.tolist() if place % 5]
    assert len(others) == len(set(others)) > 40


def test_a_fraction_of_one_problem_of_a_step_is_one_problem():
    rule, order = replay_failed(1 / 49), order_of(a=200)
    state = rule.observe(rule.init(order), order, np.arange(3), np.zeros(3))
    assert int(1 / 49 * 49) == 0  # in floating point
    assert rule.choose(state, order, 49)[1]["replayed"] == 1


def test_no_more_wait_than_the_capacity_and_the_newest_stay():
    order = order_of(a=64)
    drawn, state = play(replay_failed(0.25, capacity=5), order, 3, lambda place, step: 0.0)
    assert (state["waiting"] >= 0).sum() == 5
    assert set(state["waiting"].tolist()) <= set(drawn[-1].tolist())


def test_problems_that_were_not_judged_neither_fail_nor_count():
    order = order_of(a=32, b=32)
    _, state = play(replay_failed(), order, 3, lambda place, step: np.nan)
    assert (state["waiting"] < 0).all()
    _, state = play(learnability(), order, 3, lambda place, step: np.nan)
    np.testing.assert_array_equal(state["success"], 0.5)


def test_a_curriculum_that_has_no_meaning_is_refused_in_a_line():
    with pytest.raises(ValueError, match=r"^curriculum: must be null or another one for a task"):
        PlannedProblems(learnability(), [Problem(i, "?", "") for i in range(4)], 0, 2)
    with pytest.raises(ValueError, match=r"^curriculum: fraction: must be > 0 and < 1, got 1.5"):
        build_curriculum({"name": "replay_failed", "fraction": 1.5})
    with pytest.raises(ValueError, match=r"^curriculum.name: .*'replay_failed'"):
        build_curriculum({"name": "replay_faild"})
    assert build_curriculum(None) is None
