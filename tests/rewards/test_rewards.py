"""Reward functions by hand, their weighted sum, and what a config or a function may do wrong."""

import re
import sys
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from entropy_rl.advantages import overlong_penalty
from entropy_rl.config.rewards import RewardConfig, reward_weights
from entropy_rl.rewards import Reward, build_rewards
from entropy_rl.tasks import as_judgement
from entropy_rl.tasks.task import Judgement, Problem, Verdict
from entropy_rl.types import TokenStats

CORRECT, WRONG, UNPARSABLE, TIMEOUT, CRASH, NOT_JUDGED = Verdict
LIMIT = 10  # new tokens


def compute(specs, texts, judgements=None, problems=None, lengths=None, **options):
    """Rewards of completions of problem 3, whose verdict is correct, with as many tokens as words,
    where nothing else is said.
    """
    rewards = build_rewards(specs, max_new_tokens=LIMIT, **options)
    count = len(texts)
    judgements = [
        x if isinstance(x, Judgement) else as_judgement(x) for x in judgements or [CORRECT] * count
    ]
    problems = [Problem(i, "", "") for i in problems or [3] * count]
    ids = [np.arange(n) for n in lengths or [len(text.split()) for text in texts]]
    try:
        return rewards(texts, problems, judgements, ids)
    finally:
        rewards.close()


def values_of(spec, texts, *args, **options):
    """The values of one reward."""
    (found,) = compute([spec], texts, *args, **options).by_label.values()
    return found.tolist()


# --- the functions
# ------------------------------------------------------------------------------------------------


def test_the_verdict_the_grade_and_a_part_are_rewards():
    judged = [CORRECT, WRONG, UNPARSABLE, Judgement(WRONG, 0.25, {"steps": 3})]
    texts = [""] * 4
    assert values_of({"name": "correct"}, texts, judged) == [1, -1, -1, -1]
    spec = {"name": "correct", "right": 2, "wrong": 0.5}
    assert values_of(spec, texts, judged) == [2, 0.5, 0.5, 0.5]
    assert values_of({"name": "graded"}, texts, judged) == [1, 0, 0, 0.25]
    assert values_of({"name": "part", "part": "steps"}, texts[:1], judged[3:]) == [3]
    no_part = [Judgement(WRONG), *judged[3:]]
    spec = {"name": "part", "part": "steps", "missing": -1}
    assert values_of(spec, texts[:2], no_part) == [-1, 3]


def test_rewards_of_turns_are_added_to_the_end_of_an_episode():
    ends = [Judgement(WRONG), Judgement(WRONG, turns=-0.5), Judgement(WRONG, 0.25, turns=0.5)]
    texts = [""] * 3
    short = RewardConfig(correct=1, wrong=-1)
    assert compute((), texts, ends, short=short).total.tolist() == [-1, -1.5, 0.75]
    assert values_of({"name": "correct"}, texts, ends) == [-1, -1, -1]
    assert [one.graded for one in ends] == [None, -0.5, 0.75]
    weighted = build_rewards([{"name": "graded", "weight": 0.5}, {"name": "correct"}])
    assert (build_rewards((), short).weight_of_turns, weighted.weight_of_turns) == (1, 0.5)


def test_a_format_is_a_pattern_of_the_whole_text_and_one_that_takes_too_long_gives_no_reward():
    pattern = r"(<think>.*</think>|(a+)+b)"
    texts = ["<think>\n</think>", "x<think></think>", "aab", "a" * 40, ""]
    found = compute([{"name": "format", "pattern": pattern}], texts)
    assert found.by_label["format"][[0, 1, 2, 4]].tolist() == [1, 0, 1, 0]
    # 2^40 ways to split the a's: the worker is killed, and the sample is left out.
    assert np.isnan(found.by_label["format"][3])
    assert found.has_reward.tolist() == [True, True, True, False, True]


def test_repetition_is_the_share_of_ngrams_that_occurred_before():
    texts = ["a b a b a b", "a b c d e", "a b", "A b a B"]
    # Bigrams: ab ba ab ba ab, two of five distinct; ab ba ab.
    found = values_of({"name": "repetition", "n": 2}, texts)
    np.testing.assert_allclose(found, [-0.6, 0, 0, -1 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("script", "shares"),
    [
        ("latin", [1, 0.5, 1, 0, 0]),
        ("cyrillic", [0, 0.5, 1, 0, 0]),
        ("chinese", [0, 0, 1, 0.5, 0]),
        ("japanese", [0, 0, 1, 1, 0]),
        ("korean", [0, 0, 1, 0, 1]),
    ],
)
def test_language_is_the_share_of_letters_of_a_script(script, shares):
    texts = ["ab, c!", "ab \u0436\u0434", "1 + 2", "\u6f22\u306e", "\ud55c\uad6d"]
    assert values_of({"name": "language", "script": script}, texts) == shares


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (
            "japanese",
            "\uff76\uff9e\uff70\uff84\uff9e",
        ),  # half-width katakana with voiced sound marks
        ("japanese", "\u3005\u3006\u30fc\u4eba \u3031 \u309f"),
        ("chinese", "\u3007 \u3005 \u4f60\u597d \u303b"),
        ("korean", "\uffa1 \uac00"),
        ("latin", "\uff46\uff55\uff4c\uff4c \U0001d431 \u2113 \ufb01 \u02b0"),
        ("greek", "\U0001d6fc \u00b5"),
        ("cyrillic", "\u043f\u02bc\u044f\u0442\u044c"),  # an apostrophe that is a letter
    ],
)
def test_variants_of_letters_are_of_their_script(script, text):
    twice = f"{text} {text} \u0e01"  # and a Thai letter
    whole, less = values_of({"name": "language", "script": script}, [text, twice])
    assert whole == 1 and 0.7 < less < 1


def test_the_script_of_a_character_is_looked_up_once_in_a_text(monkeypatch):
    names = []
    looked_up = SimpleNamespace(
        normalize=unicodedata.normalize, name=lambda *c: names.append(c) or unicodedata.name(*c)
    )
    monkeypatch.setattr("entropy_rl.rewards.text.unicodedata", looked_up)
    assert values_of({"name": "language", "script": "latin"}, ["ab\u0436\u0434" * 1000]) == [0.5]
    assert len(names) == 4


def test_length_compares_the_completions_of_a_problem():
    found = values_of(
        {"name": "length"},
        [""] * 7,
        [CORRECT, CORRECT, CORRECT, WRONG, WRONG, CORRECT, CORRECT],
        [1, 1, 1, 1, 1, 2, 2],
        [2, 4, 6, 2, 6, 5, 5],
    )
    assert found == [0.5, 0, -0.5, 0, -0.5, 0, 0]


def test_overlong_is_the_penalty_of_the_transform_of_the_same_formula():
    lengths = [0, 4, 5, 6, 9, 10]
    spec = {"name": "overlong", "buffer_tokens": 5}
    found = values_of(spec, [""] * len(lengths), lengths=lengths)
    np.testing.assert_allclose(found, [0, 0, 0, -0.2, -0.8, -1], rtol=1e-6)
    mask = np.arange(LIMIT)[None] < np.array(lengths)[:, None]
    nothing = np.zeros(mask.shape, np.float32)
    stats = TokenStats(*[nothing] * 4, mask=mask, has_reward=mask.any(1))
    penalized = overlong_penalty(LIMIT, 5)(np.zeros((len(lengths), 1), np.float32), stats)
    np.testing.assert_array_equal(np.float32(found), np.asarray(penalized)[:, 0])


# --- the sum
# ------------------------------------------------------------------------------------------------


def ends(completions):
    return [float(text.endswith("!")) for text in completions]


def scaled(problems, *, factor: float = 1.0):
    return [factor * problem.id for problem in problems]


def picky(completions):
    return [None if not text else len(text) for text in completions]


def factory(times: int) -> Reward:
    return Reward(lambda completions: [times] * len(completions))


MINE = f"{__name__}:"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_the_reward_is_the_weighted_sum_and_a_weight_of_0_only_records():
    specs = [
        {"name": "correct", "right": 1, "wrong": 0},
        {"name": MINE + "ends", "weight": 0.5},
        {"name": MINE + "scaled", "factor": 10, "weight": 0, "label": "id"},
        {"name": MINE + "factory", "times": 2, "weight": -1},
    ]
    found = compute(specs, ["a!", "b"], [WRONG, CORRECT], [7, 8])
    np.testing.assert_allclose(found.total, [0 + 0.5 - 2, 1 + 0 - 2])
    assert found.total.dtype == np.float32
    assert {label: x.tolist() for label, x in found.by_label.items()} == {
        "correct": [0, 1],
        "ends": [1, 0],
        "id": [70, 80],
        "factory": [2, 2],
    }


def test_none_is_no_reward_and_no_zero_unless_the_weight_is_0():
    specs = [{"name": "correct"}, {"name": MINE + "picky"}]
    found = compute(specs, ["ab", "", "c"], [CORRECT, CORRECT, TIMEOUT])
    assert found.has_reward.tolist() == [True, False, False]
    assert found.total.tolist() == [3, 0, 0]
    np.testing.assert_array_equal(found.by_label["picky"], [2, np.nan, np.nan])
    specs[1]["weight"] = 0
    found = compute(specs, ["ab", "", "c"], [CORRECT, CORRECT, TIMEOUT])
    assert found.has_reward.tolist() == [True, True, False]


def test_functions_see_the_judged_completions_alone():
    asked = []
    reward = Reward(lambda completions, judgements: asked.append(completions) or [0] * 2)
    inputs = dict(completions=["a", "b"], problems=[], judgements=[1, 2], completion_ids=[])
    assert reward(inputs) == [0, 0] and asked == [["a", "b"]]
    found = compute([{"name": MINE + "ends"}], ["a!", "b!", "c!"], [CRASH, CORRECT, NOT_JUDGED])
    np.testing.assert_array_equal(found.by_label["ends"], [np.nan, 1, np.nan])
    assert not compute([{"name": MINE + "ends"}], ["a!"], [CRASH]).has_reward.any()


def test_equal_sums_of_several_rewards_are_equal():
    # 0.1 + 0.2 and 0.3 differ in the last digit of float64, and not in float32.
    judged = [Judgement(WRONG, 0, {"a": 0.1, "b": 0.2}), Judgement(WRONG, 0, {"a": 0, "b": 0.3})]
    found = compute([{"name": "part", "part": p} for p in "ab"], ["", ""], judged)
    assert found.total[0] == found.total[1]


def test_the_section_reward_is_short_for_one_reward_without_records():
    short = RewardConfig(correct=0.7, wrong=-0.3)
    texts, judged = [""] * 4, [CORRECT, WRONG, 0.5, TIMEOUT]
    found = compute([], texts, judged, short=short)
    assert found.by_label == {} and found.has_reward.tolist() == [True, True, True, False]
    assert found.total.tolist() == np.float32([0.7, -0.3, 0.5, 0]).tolist()
    same = compute([{"name": "graded", "right": 0.7, "wrong": -0.3}], texts, judged)
    np.testing.assert_array_equal(same.total, found.total)
    np.testing.assert_array_equal(same.has_reward, found.has_reward)


# --- what is refused
# ------------------------------------------------------------------------------------------------


def no_input(texts):
    return texts


def fails(completions):
    return [1 / len(text) for text in completions]


def gives_nan(completions):
    return [float("nan") if not text else 1 for text in completions]


def exits(completions):
    raise SystemExit("several\nlines")


def weighs(completions, weight=1.0):
    return [weight] * len(completions)


def labels(label, weight) -> Reward:
    return Reward(lambda completions: [0.0] * len(completions))


def takes_all(**inputs):
    return [1.0] * len(inputs["completions"])


def gives_text(completions):
    return ["high"] * len(completions)


def gives_one(completions):
    return [1]


def is_lazy(completions):
    return map(lambda text: 1 / len(text), completions)


def gives_set(completions):
    return {1.0 for _ in completions}


FORMAT = {"name": "format", "pattern": "a"}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([{"name": "fromat"}], "rewards[0].name: must be one of correct, .*, got 'fromat' (did"),
        ([{"weight": 1}], "rewards[0].name: must be given, one of: correct, "),
        ([{"name": MINE + "absent"}], "rewards[0].name: cannot import"),
        ([{"name": "group_normalize"}], "which makes a Transform"),
        ([{**FORMAT, "patern": 1}], "rewards[0].patern: must be pattern, got 'patern' (did you"),
        ([{"name": "format"}], "rewards[0].pattern: must be given"),
        ([{"name": "part"}], "rewards[0].part: must be the name of a part of the judgement, got"),
        ([{**FORMAT, "pattern": "(a"}], "format.pattern: must be a regular expression (missing )"),
        ([{"name": "language", "script": "klingon"}], "rewards[0].script: must be one of arabic"),
        ([{"name": "repetition", "n": 0}], "repetition.n: must be a whole number >= 1, got 0"),
        ([{"name": "correct", "right": -2}], "correct.right: must be > wrong (-1.0), got -2.0"),
        ([{"name": "overlong", "buffer_tokens": 11}], "from 1 to max_new_tokens (10), got 11"),
        (
            [{"name": "overlong", "buffer_tokens": 1, "max_new_tokens": 9}],
            "rewards[0].max_new_tokens: must be that of rollout.max_new_tokens (10), got 9",
        ),
        ([{"name": MINE + "ends", "factor": 1}], "rewards[0].factor: must be absent, got"),
        ([{"name": MINE + "no_input"}], "must be a function of completions, problems, judgements"),
        (
            [{"name": MINE + "weighs", "weight": 0.5}],
            "rewards[0].name: must have no parameter weight, which is a field of the entry "
            f"itself, got {MINE}weighs",
        ),
        ([{"name": MINE + "labels"}], "must have no parameter label, weight, which"),
        (
            [{"name": MINE + "takes_all"}],
            "rewards[0].name: must be a function of completions, problems, judgements or "
            f"completion_ids, got {MINE}takes_all of **inputs",
        ),
        ([FORMAT, FORMAT], "rewards[1].label: must be another one than that of rewards[0], got"),
        ([{**FORMAT, "label": "a/b"}], "rewards[0].label: must be letters, digits"),
        ([{**FORMAT, "label": "a_std"}], "rewards[0].label: must be letters, digits"),
        ([{**FORMAT, "weight": "x"}], "rewards[0].weight: must be a number, got 'x'"),
        ([{**FORMAT, "weight": float("inf")}], "rewards[0].weight: must be a finite number of"),
        ([{**FORMAT, "weight": 0}], "rewards: must be a list with at least one weight other than"),
        (["format"], "rewards[0]: must be a mapping"),
    ],
)
def test_a_wrong_entry_is_one_line_that_begins_with_its_path(specs, message):
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")) as caught:
        build_rewards(specs, max_new_tokens=LIMIT)
    assert str(caught.value).startswith("rewards") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "failed for problem 8: ZeroDivisionError: division by zero"),
        ("exits", "failed for problem 7: SystemExit: several lines"),
        ("gives_nan", "must return finite numbers up to 1e+15 or None, got nan for problem 8"),
        ("gives_text", "must return finite numbers up to 1e+15 or None, got 'high' for problem 7"),
        ("gives_one", "must return one number for each of 2 completions, got 1"),
        ("is_lazy", "failed for problem 8: ZeroDivisionError: division by zero"),
        ("gives_set", "must return a list of numbers, got {1.0}"),
    ],
)
def test_a_function_that_fails_or_gives_no_number_is_named_with_the_problem(name, message):
    expected = f"rewards[0] ({MINE}{name}): {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        compute([{"name": MINE + name}], ["a", ""], None, [7, 8])


def test_a_number_or_a_weighted_sum_whose_square_float32_cannot_add_up_is_refused():
    large = {"name": "part", "part": "steps", "missing": 1e16}
    with pytest.raises(ValueError, match=r"\(part\): must return finite numbers up to 1e\+15 or"):
        compute([large], [""])
    with pytest.raises(ValueError, match=r"^rewards: must be a weighted sum up to 1e\+15, got 2"):
        compute([{"name": "correct", "weight": 2e15}], [""])
    assert compute([{"name": "correct", "weight": 1e15}], [""]).total == np.float32(1e15)


def test_the_lowest_sum_of_rewards_is_known_from_their_bounds_and_weights():
    part = {"name": "part", "part": "steps", "missing": -2}
    own = {"name": MINE + "ends"}
    for lowest, *specs in [
        (0.5, {"name": "correct", "right": 2, "wrong": 0.5}),
        (-0.5, {"name": "graded"}, {"name": "overlong", "buffer_tokens": 1, "weight": 0.5}),
        (0.0, {"name": "correct", "right": 3, "wrong": 1}, {"name": "repetition"}),
        (-1.0, {**FORMAT, "weight": -1}, {"name": "language", "script": "latin"}),
        (-2.5, {"name": "length"}, part),
        (0.0, own),
        (-np.inf, {**own, "weight": -1}),
        (0.0, {"name": "graded"}, {"name": "length", "weight": 0}),
    ]:
        rewards = build_rewards(specs, max_new_tokens=LIMIT)
        rewards.close()
        assert rewards.lowest == lowest, specs
    assert build_rewards(()).lowest == -1


def test_a_part_that_the_task_does_not_give_is_named():
    judged = [Judgement(WRONG, 0, {"steps": 1})]
    with pytest.raises(ValueError, match=r"\(part\): .* must give the part 'stops', got steps$"):
        compute([{"name": "part", "part": "stops"}], [""], judged)


def test_labels_and_weights_of_a_config():
    specs = [
        {"name": "correct"},
        {"name": "part", "part": "steps", "weight": 2},
        {"name": "mine:polite", "weight": 0},
        {**FORMAT, "label": "tags", "weight": 0.5},
    ]
    assert reward_weights(specs) == {"correct": 1, "steps": 2, "polite": 0, "tags": 0.5}
    assert reward_weights([]) == {}
