"""The game by hand and by brute force, the judge on hand-written completions, the examples by the
judge.
"""

import collections
import itertools
import pickle
import time
from fractions import Fraction

import numpy as np
import pytest

from entropy_rl.tasks.countdown import (
    Countdown,
    build_tokenizer,
    game,
    judge,
    traces,
)
from entropy_rl.tasks.task import DemonstratedTask, ProbedTask, Problem, Verdict

TASK = Countdown()
PROBLEM = Problem(0, "<bos> 2 3 7 : 27", "<bos> 2 3 7 : 27")

SOLVED = "7 + 2 = 9 3 : 27 9 * 3 = 27 : 27 done"
FAILED = "7 + 3 = 10 2 : 27 10 * 2 = 20 : 27"


def verdict(completion: str) -> Verdict:
    return TASK.judge([PROBLEM], [completion])[0]


def probe(completion: str) -> dict[str, tuple[float, float]]:
    return TASK.probe([PROBLEM], [completion])


@pytest.fixture(scope="module")
def demonstrations():
    return [TASK.demonstration(7, index) for index in range(2500)]


@pytest.fixture(scope="module")
def written(demonstrations):
    """The demonstrations that are no drills, as problems and completions."""
    kept = [d for d in demonstrations if d.prompt != "<bos>"]
    problems = [Problem(i, d.prompt, d.prompt) for i, d in enumerate(kept)]
    return problems, [" ".join(d.pieces).removesuffix(" <eos>") for d in kept]


# --- the game
# ---------------------------------------------------------------------------------------------


def test_difficulty_by_hand():
    # From 1 1 2 three steps: 1+1 leaves 2 2 (then 4, 4), 2+1 leaves 3 1 (4, 2), 2-1 leaves 1 1 (2).
    p1 = game.target_probabilities([1, 2, 1])
    assert {t: p for t, p in enumerate(p1) if p} == pytest.approx(
        {4: 1 / 3 + 1 / 6, 2: 1 / 6 + 1 / 3}
    )


@pytest.mark.parametrize("numbers", [(2, 3, 7), (1, 2, 2, 9), (10, 10, 10, 9)])
def test_difficulty_equals_a_search_that_shares_no_code_with_it(numbers):
    found = collections.Counter()

    def search(pool, probability):
        options = {
            (f"{a} {op} {b}", value)
            for a, b in itertools.permutations(pool, 2)
            for op, value in (("+", a + b), ("-", a - b), ("*", a * b))
            if a >= b and 1 <= value <= 49 and not (op == "*" and 1 in (a, b))
        }
        if len(pool) == 1:
            found[pool[0]] += probability
        for text, value in options:
            left = list(pool)
            left.remove(int(text.split()[0]))
            left.remove(int(text.split()[2]))
            search([*left, value], probability / len(options))

    search(list(numbers), Fraction(1))
    expected = [float(found[target]) for target in range(50)]
    np.testing.assert_allclose(game.target_probabilities(numbers), expected, atol=1e-12)
    reached = [
        target for target in range(50) if any(True for _ in traces.solutions(numbers, target))
    ]
    assert reached == sorted(found)


def test_probability_is_lost_only_where_attempts_get_stuck():
    assert game.target_probabilities([3, 3]).sum() == 1
    assert game.target_probabilities([30, 30]).sum() == 0  # 60, 0 and 900 are all out of range


def test_splits_part_all_multisets():
    for size, count in ((3, 220), (4, 715), (5, 2002)):
        multisets = [numbers for split in game.SPLITS for numbers in game.multisets(split, size)]
        assert len(multisets) == len(set(multisets)) == count


# What stands at place i of a split: (inputs, lowest p1, p1 below), with the bands in turn.
MEDIUM = ((4, 0.05, 0.2), (5, 0.05, 0.2))
HARD = ((4, 0.002, 0.006), (5, 0.0005, 0.003))
DEFAULT_BANDS = {
    "sft": MEDIUM,
    "train": MEDIUM,
    "validation": (*[MEDIUM[0]] * 5, *[MEDIUM[1]] * 5, *HARD),
    "test": (*MEDIUM, *HARD),
}


@pytest.mark.parametrize(
    ("split", "count"), [("sft", 256), ("train", 2048), ("validation", 128), ("test", 256)]
)
def test_problems_lie_in_their_split_and_in_the_bands_in_turn_and_none_comes_twice(split, count):
    problems = TASK.problems(split)
    assert [problem.id for problem in problems] == list(range(count))
    seen = set()
    for problem, (size, low, high) in zip(
        problems, itertools.cycle(DEFAULT_BANDS[split]), strict=False
    ):
        numbers, target = judge.read_prompt(problem.answer)
        assert game.split_of(numbers) == split
        assert len(numbers) == size
        assert low <= game.target_probabilities(numbers)[target] < high
        seen.add((tuple(sorted(numbers)), target))
    assert len(seen) == count


def test_a_share_says_how_many_turns_a_band_has():
    bands = [
        {"size": 4, "low": 0.05, "high": 0.2},
        {"size": 5, "low": 0.001, "high": 0.2, "share": 3},
    ]
    problems = Countdown(bands={"train": bands}, counts={"train": 8}).problems("train")
    assert [len(judge.read_prompt(problem.answer)[0]) for problem in problems] == [4, 5, 5, 5] * 2


def test_a_longer_split_begins_with_the_shorter_one():
    short = Countdown(counts={"train": 300}).problems("train")
    assert short == TASK.problems("train")[:300]
    assert short != Countdown(seed=1, counts={"train": 300}).problems("train")


def test_512_problems_take_less_than_two_seconds():
    game._small_probabilities.cache_clear()
    start = time.process_time()
    assert len(Countdown(counts={"train": 512}).problems("train")) == 512
    assert time.process_time() - start < 2


def test_problems_are_the_same_on_every_machine():
    first = {split: TASK.problems(split)[0].prompt for split in game.SPLITS}
    assert first == {
        "test": "<bos> 5 3 6 3 : 30",
        "validation": "<bos> 8 9 4 9 : 37",
        "train": "<bos> 3 1 3 7 : 14",
        "sft": "<bos> 6 4 7 8 : 30",
    }


# --- the judge
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    [
        SOLVED,
        f"{FAILED} wait 2 3 7 : 27 {SOLVED}",
        f"{FAILED} undo 10 2 : 27 10 - 2 = 8 : 27 wait 2 3 7 : 27 {SOLVED}",
        f"{FAILED} undo undo 2 3 7 : 27 {SOLVED}",
        f"{FAILED} undo 10 2 : 27 undo 2 3 7 : 27 {SOLVED}",
        f"{FAILED} undo undo 7 2 3 : 27 {SOLVED}",  # the order within a pool is free
        f"{FAILED} undo undo undo 2 3 7 : 27 wait 2 3 7 : 27 {SOLVED}",
        # Errors of every kind, in attempts that are given up:
        f"7 * 3 = 20 2 : 27 wait 2 3 7 : 27 {SOLVED}",
        f"9 + 9 = 18 2 : 27 undo 2 3 7 : 27 {SOLVED}",
        f"7 + 3 = 10 2 2 : 26 undo 2 3 7 : 27 {SOLVED}",
        "7 + 2 = 9 3 : 27 9 * 3 = 28 : 27 undo 9 3 : 27 9 * 3 = 27 : 27 done",
        f"wait 2 3 : 27 wait 2 3 7 : 27 {SOLVED}",
    ],
)
def test_correct(completion):
    assert verdict(completion) is Verdict.CORRECT


@pytest.mark.parametrize(
    "completion",
    [
        "",
        SOLVED.removesuffix(" done"),  # cut off before the claim
        SOLVED.replace("done", "stop"),  # solved, but not claimed
        "7 + 2 = 9",  # cut off within a state
        "7 +",
        f"{FAILED} undo",
        f"{FAILED} stop",
        f"{FAILED} done",
        "done",
        "stop",
        "7 + 2 = 9 3 : 27 done",  # a number is left
        "9 * 3 = 27 2 7 : 27 done",
        "7 + 2 = 9 3 : 27 9 * 3 = 26 : 27 done",  # false arithmetic
        "7 + 2 = 8 3 : 27 9 * 3 = 27 : 27 done",
        "9 * 3 = 27 : 27 done",  # 9 is not there
        "7 + 7 = 14 2 3 : 27 14 + 3 = 17 2 : 27 17 + 2 = 19 : 27 done",  # there is one 7
        # 15 is not there, all else is right
        "15 + 3 = 18 2 7 : 27 18 + 7 = 25 2 : 27 25 + 2 = 27 : 27 done",
        "7 + 2 = 24 3 : 27 24 - 3 = 21 : 27 undo 24 3 : 27 24 + 3 = 27 : 27 done",  # still flawed
        # undone beyond the wait
        f"{FAILED} wait 2 3 7 : 27 undo 10 2 : 27 undo 2 3 7 : 27 {SOLVED}",
        "7 + 2 = 9 3 3 : 27 9 * 3 = 27 3 : 27 done",  # pool with a number too many
        "7 + 2 = 9 3 2 : 27 9 * 3 = 27 : 27 done",  # a pool that is not what the next step leaves
        "7 + 2 = 9 3 : 28 9 * 3 = 27 : 27 done",  # another target
        "7 + 2 = 9 3 : 27 9 * 3 = 27 : 28 done",
        "7 + 2 = 9 3 : 9 done",  # its own target
        "2 + 7 = 9 3 : 27 9 * 3 = 27 : 27 done",  # smaller operand first
        f"undo 2 3 7 : 27 {SOLVED}",  # nothing to take back
        f"{FAILED} undo undo undo 2 3 7 : 27 {SOLVED}",
        f"{FAILED} wait 2 3 7 7 : 27 {SOLVED}",
        f"{FAILED} undo undo 2 3 7 : 26 {SOLVED}",
        f"{FAILED} undo 10 3 : 27 undo 2 3 7 : 27 7 + 2 = 9 3 : 27 9 * 3 = 20 : 27 done",
    ],
)
def test_wrong(completion):
    assert verdict(completion) is Verdict.WRONG


@pytest.mark.parametrize(
    "completion",
    [
        f"{SOLVED} done",
        f"{SOLVED} 7",
        "stop stop",
        "7 7",
        "+ 7",
        "7 + + 2",
        "7 + 2 : 9",
        "7 + 2 = : 27",
        "7 + 2 = 9 3 wait",
        "7 + 2 = 9 3 : : 27",
        "undo undo : 27",
        "undo wait",
        "7 , 2",
        "7 / 2 = 3",
        "<unk>",
        f"<unk> {SOLVED}",
        SOLVED.upper(),
        "07 + 2 = 9 3 : 27",
        "7+2=9",
    ],
)
def test_unparsable(completion):
    assert verdict(completion) is Verdict.UNPARSABLE
    assert probe(completion)["format_errors"] == (1, 1)


@pytest.mark.parametrize(
    "completion",
    [
        "9" * 1_000_000,
        "7 + 2 = " + "9" * 1_000_000,
        "7 + 2 = 9 " * 100_000,
        "undo " * 200_000,
        "undo " * 200_000 + "2 3 7 : 27 done",
        "wait " + "3 " * 500_000 + ": 27 done",
        "7 + 2 = 9 3 : 27 " * 60_000 + "done",
        "(" * 1_000_000,
        " " * 1_000_000,
        "\x00" * 1_000,
        # digits to int() and to str.isdigit()
        "\u0667 + \u0662 = \u0669 \u0663 : \u0662\u0667 done",
        "7 + ² = 9",
        "7 + 2 = 9 3 : 27 9 * 3 = 2_7 : 27 done",
        "-7 + 2 = 9 3 : 27",
        "__import__('os').abort()",
        "\ud800",
    ],
    ids=range(16),
)
def test_hostile_completions_are_wrong_and_cheap(completion):
    start = time.process_time()
    assert verdict(completion) in (Verdict.WRONG, Verdict.UNPARSABLE)
    probe(completion)
    assert time.process_time() - start < 3


def test_multiplication_by_one_and_zero_are_outside_of_the_rules():
    problem = Problem(0, "<bos> 1 3 9 : 27", "<bos> 1 3 9 : 27")
    assert TASK.judge([problem], ["9 * 3 = 27 1 : 27 27 * 1 = 27 : 27 done"]) == [Verdict.WRONG]
    result = TASK.probe([problem], ["9 * 3 = 27 1 : 27 27 * 1 = 27 : 27 done"])
    assert (result["arithmetic"], result["operands"], result["rules"]) == ((2, 2), (2, 2), (1, 2))
    problem = Problem(0, "<bos> 5 5 9 : 9", "<bos> 5 5 9 : 9")
    assert TASK.judge([problem], ["5 - 5 = 0 9 : 9 9 + 0 = 9 : 9 done"]) == [Verdict.WRONG]


def test_a_judge_call_is_faster_than_100_microseconds(written):
    problems, completions = written
    start = time.process_time()
    TASK.judge(problems, completions)
    assert (time.process_time() - start) / len(problems) < 100e-6


# --- the probe
# --------------------------------------------------------------------------------------------


def test_probe_counts_by_hand():
    result = TASK.probe(
        [PROBLEM] * 5,
        [
            SOLVED,  # 2 steps, all right
            # 3 steps, one with false arithmetic
            f"{FAILED} undo undo 2 3 7 : 27 7 - 2 = 6 3 : 27 stop",
            f"wait 2 3 7 : 28 {FAILED} done",  # 2 steps; the wait prints another target
            "7 + 2 = 9 3 : 27 9 * 4 = 36 : 27 9 +",  # 2 steps; no 4, so 3 should have been left
            "7 + 2 = 9 3 : 27 oh",  # 1 step, then no grammar
        ],
    )
    assert result == {
        "arithmetic": (9, 10),
        "operands": (9, 10),
        "rules": (10, 10),
        "pools": (10, 12),
        "false_done": (1, 5),
        "stopped": (1, 5),
        "format_errors": (1, 5),
        "waits": (1, 5),
        "undos": (2, 5),
        "steps": (10, 5),
    }


def test_one_slip_counts_once():
    # The first step prints 3 3 for 3. The second is right, given what was printed.
    result = probe("7 + 2 = 9 3 3 : 27 9 * 3 = 27 3 : 27 stop")
    assert (result["pools"], result["operands"], result["arithmetic"]) == ((1, 2), (2, 2), (2, 2))


def test_an_empty_probe_divides_by_nothing():
    assert set(TASK.probe([], []).values()) == {(0, 0)}


# --- worked examples
# --------------------------------------------------------------------------------------


def test_demonstrations_are_the_same_on_every_machine():
    texts = [
        (d.prompt, " ".join(d.pieces)) for d in (TASK.demonstration(0, index) for index in range(3))
    ]
    assert texts == [
        (
            "<bos> 5 6 10 8 6 : 29",
            "10 - 6 = 4 5 8 6 : 29 8 - 4 = 4 5 6 : 29 6 * 4 = 24 5 : 29 24 + 5 = 29 : 29 done "
            "<eos>",
        ),
        (
            "<bos>",
            "36 + 12 = 48 , 17 * 2 = 34 , 41 - 6 = 35 , 25 + 22 = 47 , 44 + 1 = 45 , 26 + 12 = 38 "
            ", "
            "6 * 4 = 24 , 4 + 4 = 8 , 10 + 7 = 17 , 44 - 38 = 6 , 29 - 7 = 22 , 8 - 5 = 3 ,",
        ),
        (
            "<bos>",
            "23 - 18 = 5 , 6 * 2 = 12 , 7 * 2 = 14 , 7 * 2 = 14 , 32 - 8 = 24 , 21 - 10 = 11 , "
            "19 * 2 = 38 , 15 - 11 = 4 , 26 - 7 = 19 , 7 * 6 = 42 , 45 - 39 = 6 , 35 - 29 = 6 ,",
        ),
    ]
    assert TASK.demonstration(1, 0) != TASK.demonstration(0, 0)


def test_demonstrations_are_flawless_and_correct_where_they_say_done(demonstrations, written):
    problems, completions = written
    assert len(completions) > 1900
    for text, result in zip(completions, TASK.judge(problems, completions), strict=True):
        assert result is (Verdict.CORRECT if text.endswith("done") else Verdict.WRONG)
    result = TASK.probe(problems, completions)
    for measure in ("arithmetic", "operands", "rules", "pools"):
        assert result[measure][0] == result[measure][1] > 0
    assert result["false_done"][0] == result["format_errors"][0] == 0
    assert all(game.split_of(judge.read_prompt(problem.prompt)[0]) == "sft" for problem in problems)


def test_demonstrations_leave_room_to_search_longer(demonstrations, written):
    _, completions = written
    made = [d for d in demonstrations if d.prompt != "<bos>"]
    lengths = [len(d.pieces) for d in made]
    assert 40 <= np.mean(lengths) <= 50
    assert max(lengths) <= 160
    assert 0.35 < np.mean(["done" in d.pieces for d in made]) < 0.45
    retries = [sum(move.step is None for move in judge.parse(text).moves) for text in completions]
    assert np.mean(np.asarray(retries) <= 1) > 0.85
    assert abs(len(made) / len(demonstrations) - 0.8) < 0.03


def test_drills_state_true_facts_and_weigh_their_results_only(demonstrations):
    facts = set()
    for demonstration in demonstrations:
        if demonstration.prompt != "<bos>":
            continue
        assert len(demonstration.pieces) == len(demonstration.weights) == 12 * 6
        for k in range(0, 72, 6):
            a, op, b, equals, result, comma = demonstration.pieces[k : k + 6]
            assert (equals, comma) == ("=", ",")
            assert game.calculate(int(a), op, int(b)) == int(result)
            assert game.is_legal(int(a), op, int(b))
            assert demonstration.weights[k : k + 6] == (0, 0, 0, 0, 4, 0)
            facts.add((a, op, b))
    # All facts there are: a + b up to 49, a > b, and a * b up to 49 from 2 * 2 on. The few products
    # come up as often as the many sums and differences, so that 500 drills have shown each of them.
    assert collections.Counter(step.op for row in game.STEPS for cell in row for step in cell) == {
        "+": 600, "-": 1176, "*": 23 + 14 + 9 + 5 + 3 + 1
    }  # fmt: skip
    assert collections.Counter(op for _, op, _ in facts)["*"] == 55
    assert len(facts) > 0.8 * 1831


def test_weights_by_hand():
    text = "7 + 3 = 10 2 : 27 10 * 2 = 20 : 27 undo 10 2 : 27 stop <eos>"
    #       1 1 1 1  4 1 1  1  2 1 1 1  4 1  1    2  1 1 1  1    2     1
    weights = [1, 1, 1, 1, 4, 1, 1, 1, 2, 1, 1, 1, 4, 1, 1, 2, 1, 1, 1, 1, 2, 1]
    assert traces.position_weights(text.split(" ")) == weights


def test_a_weight_does_not_depend_on_the_word_that_stands_there(demonstrations):
    for demonstration in demonstrations[:200]:
        if demonstration.prompt == "<bos>":
            continue
        assert demonstration.weights[0] == 1
        for i in range(len(demonstration.pieces)):
            before = list(demonstration.pieces[:i])
            for word in ("wait", "undo", "stop", "done", "7", ":", "="):
                # The weight at i depends neither on the word there nor on what follows.
                assert traces.position_weights([*before, word])[i] == demonstration.weights[i]


def test_a_cut_example_is_the_beginning_of_the_whole_one():
    cut = Countdown(traces={"max_pieces": 30, "drills": 0})
    whole = Countdown(traces={"drills": 0})
    for index in range(100):
        short, long = cut.demonstration(0, index), whole.demonstration(0, index)
        assert short.pieces == long.pieces[:30]
        assert short.weights == long.weights[:30]


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_every_size_of_example_works(size):
    task = Countdown(traces={"sizes": [size], "drills": 0.0, "p_stop": 0.1, "p_solve": 0.05})
    made = [task.demonstration(3, index) for index in range(150)]
    problems = [Problem(0, d.prompt, d.prompt) for d in made]
    result = task.probe(problems, [" ".join(d.pieces).removesuffix(" <eos>") for d in made])
    assert result["pools"][0] == result["pools"][1] > 0
    assert {len(judge.read_prompt(problem.prompt)[0]) for problem in problems} == {size}


# --- the tokenizer
# ----------------------------------------------------------------------------------------


def test_tokenizer_round_trip(tmp_path, written):
    from transformers import AutoTokenizer

    built = build_tokenizer()
    built.save_pretrained(tmp_path / "new")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert len(loaded) == len(built) == 64
    assert loaded.get_vocab() == built.get_vocab()
    for tokenizer in (built, loaded):
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert tokenizer.model_max_length == 1024
        assert tokenizer.clean_up_tokenization_spaces is False
    problems, completions = written
    for problem, completion in zip(problems[:200], completions[:200], strict=True):
        for text in (problem.prompt, completion):
            ids = loaded(text, add_special_tokens=False)["input_ids"]
            assert (
                ids
                == built(text, add_special_tokens=False)["input_ids"]
                == loaded(text)["input_ids"]
            )
            assert len(ids) == len(text.split())
            assert loaded.decode(ids) == text
        assert loaded.decode([*ids, 2, 0, 0], skip_special_tokens=True) == completion


def test_every_piece_of_an_example_is_one_token(demonstrations):
    tokenizer = build_tokenizer()
    pieces = sorted({piece for demonstration in demonstrations for piece in demonstration.pieces})
    ids = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    assert all(len(row) == 1 for row in ids)
    assert tokenizer.get_vocab()["<unk>"] not in {row[0] for row in ids}


def test_an_unknown_word_stays_visible_when_special_tokens_are_dropped():
    tokenizer = build_tokenizer()
    ids = tokenizer("7 ÷ 50 <eos>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "7 <unk> <unk>"


# --- the task
# ---------------------------------------------------------------------------------------------


def test_countdown_is_a_task_and_can_be_sent_to_another_process():
    assert isinstance(TASK, ProbedTask) and isinstance(TASK, DemonstratedTask)
    sent = pickle.loads(pickle.dumps(TASK))
    assert sent.problems("test") == TASK.problems("test")
    assert sent.demonstration(0, 5) == TASK.demonstration(0, 5)


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(
        ValueError, match=r"^split: must be one of test, validation, train, sft, got 'dev'$"
    ):
        TASK.problems("dev")


@pytest.mark.parametrize(
    ("args", "place"),
    [
        ({"seed": "0"}, "seed"),
        ({"seed": True}, "seed"),
        ({"counts": 5}, "counts"),
        ({"counts": {"dev": 5}}, "counts"),
        ({"counts": {"train": 0}}, "counts.train"),
        ({"bands": {"train": []}}, "bands.train"),
        ({"bands": {"train": [{"size": 4}]}}, "bands.train[0]"),
        ({"bands": {"train": [{"size": 4, "low": 0.1, "hihg": 0.2}]}}, "bands.train[0]"),
        ({"bands": {"train": [{"size": 7, "low": 0.1, "high": 0.2}]}}, "bands.train[0].size"),
        ({"bands": {"train": [{"size": 4, "low": 0, "high": 0.2}]}}, "bands.train[0].low"),
        ({"bands": {"train": [{"size": 4, "low": "1e-2", "high": 0.2}]}}, "bands.train[0].low"),
        ({"bands": {"train": [{"size": 4, "low": 0.2, "high": 0.2}]}}, "bands.train[0].high"),
        (
            {"bands": {"train": [{"size": 4, "low": 0.1, "high": 0.2, "share": 0}]}},
            "bands.train[0].share",
        ),
        ({"bands": {"train": [{"size": 4, "low": 0.1, "high": 0.2}] * 2}}, "bands.train[1]"),
        ({"traces": {"p_sovle": 0.1}}, "traces"),
        ({"traces": {"p_stop": 1.5}}, "traces.p_stop"),
        ({"traces": {"p_solve": 0.6, "p_near": 0.6}}, "traces.p_near"),
        ({"traces": {"sizes": [2]}}, "traces.sizes"),
        ({"traces": {"sizes": 4}}, "traces.sizes"),
        ({"traces": {"chains": []}}, "traces.chains"),
        ({"traces": {"facts": 0}}, "traces.facts"),
    ],
)
def test_a_bad_argument_is_named(args, place):
    with pytest.raises(ValueError) as caught:
        Countdown(**args)
    assert str(caught.value).startswith(f"task.args.{place}: ")


def test_a_split_that_runs_out_of_problems_says_how_many_there_are():
    # The band that ends first is the third of four, with 462 problems: place 2 + 4 * 462 stays
    # empty.
    task = Countdown(counts={"test": 10_000})
    with pytest.raises(
        ValueError, match=r"^task.args.counts.test: .*at most 1850, .*size=4, low=0.002"
    ):
        task.problems("test")
