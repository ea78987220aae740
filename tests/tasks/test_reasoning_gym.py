"""reasoning-gym: every usable dataset accepts its own answers, splits are disjoint, and hostile
answers are wrong.
"""

import collections
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("reasoning_gym", reason="needs the extra environments")

from reasoning_gym.factory import DATASETS

from entropy_rl.tasks import as_judgement, load_task
from entropy_rl.tasks.pool import VerifierPool
from entropy_rl.tasks.reasoning_gym import worker
from entropy_rl.tasks.reasoning_gym.datasets import RUN_CODE, UNUSABLE, spec_of
from entropy_rl.tasks.reasoning_gym.levels import settings_of_levels
from entropy_rl.tasks.task import Verdict

SAMPLE = ("chain_sum", "word_ladder", "rubiks_cube", "prime_factorization", "isomorphic_strings")


def task(datasets, **args):
    return load_task("reasoning_gym", {"datasets": datasets, "workers": 1, **args})


@pytest.fixture(scope="module")
def mixture():
    loaded = task({name: {} for name in SAMPLE}, train=15, test=10)
    yield loaded
    loaded.close()


def verdicts(loaded, problems, texts):
    return [as_judgement(x).verdict for x in loaded.judge(problems, texts)]


def test_right_answers_are_correct_and_others_are_not(mixture):
    problems = mixture.problems("train")
    right = [f"I think <answer>1</answer>. No: <answer> {p.answer} </answer>" for p in problems]
    assert set(verdicts(mixture, problems, right)) == {Verdict.CORRECT}
    # Some judges raise an error on such texts, which is no fault of the verifier.
    for text in (
        "<answer>(((</answer>",
        f"<answer>{'9' * 5000}</answer>",
        "<answer>é\x00</answer>",
    ):
        assert set(verdicts(mixture, problems, [text] * len(problems))) == {Verdict.WRONG}
    for text in ("", "42", "<answer>42", f"<answer>{'x' * 50_000}</answer>"):
        assert set(verdicts(mixture, problems, [text] * len(problems))) == {Verdict.UNPARSABLE}


@pytest.mark.slow
def test_the_problems_are_the_same_in_every_process_and_the_splits_share_none(mixture):
    train, test = mixture.problems("train"), mixture.problems("test")
    assert len(train) == 15 and len(test) == 10
    assert len({p.id for p in [*train, *test]}) == 25
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    code = (
        "from entropy_rl.tasks import load_task;"
        f"t = load_task('reasoning_gym', {{'datasets': {{n: {{}} for n in {SAMPLE!r}}}, "
        "'train': 15, 'test': 10});"
        "print([p.prompt for p in t.problems('train')] == eval(input()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=repr([p.prompt for p in train]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
    )
    assert done.stdout == "True\n", done.stderr


def test_a_mixture_alternates_by_its_weights():
    loaded = task({"chain_sum": {"weight": 3, "max_terms": 2}, "gcd": None}, train=8, test=4)
    parts = [problem.id // 1_000_000 for problem in loaded.problems("train")]
    assert parts == [0, 0, 1, 0, 0, 0, 1, 0]
    assert all(p.messages[0][0] == "system" and p.chat for p in loaded.problems("test"))
    loaded.close()


def test_levels_of_an_attribute_are_sources_with_equal_parts_of_the_weight():
    datasets = {
        "products": {"levels": {"num_digits": [0, 2]}, "max_terms": 2, "weight": 2},
        "gcd": {},
    }
    loaded = task(datasets, train=30, test=6)
    problems = loaded.problems("train")
    assert collections.Counter(p.source for p in problems) == {
        "products/0": 10, "products/2": 10, "gcd": 10,
    }  # fmt: skip
    digits = {"products/0": set(), "products/2": set()}
    for problem in problems:
        if problem.is_from("products"):
            digits[problem.source] |= {len(n) for n in re.findall(r"\d+", problem.prompt)}
    assert digits == {"products/0": {1}, "products/2": {3}}
    right = [f"<answer>{p.answer}</answer>" for p in problems]
    assert set(verdicts(loaded, problems, right)) == {Verdict.CORRECT}
    loaded.close()
    of_all = settings_of_levels("products", "levels", [1])
    assert of_all == {"1": {"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2}}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"levels": []}, "products.levels: must be a list of different levels from 0 to 10"),
        ({"levels": [0, 0]}, "products.levels: must be a list of different levels from 0 to 10"),
        ({"levels": 1}, "products.levels: must be a list of different levels"),
        ({"levels": [True]}, "products.levels: must be a list of different levels"),
        ({"levels": {"num_digits": [10]}}, "products.levels.num_digits: must be a list of diff"),
        ({"levels": {"digits": [0]}}, "products.levels: must be one of num_terms, num_digits"),
        ({"levels": {}}, "products.levels: must be a list, or a mapping with one attribute"),
        ({"levels": [0], "max_digits": 2}, "products: must be without settings that its levels"),
    ],
)
def test_levels_that_a_dataset_has_not_are_refused(given, line):
    with pytest.raises(ValueError) as error:
        load_task("reasoning_gym", {"datasets": {"products": given}})
    assert str(error.value).startswith(f"task.args.datasets.{line}"), error.value


def test_the_last_number_can_be_the_answer():
    loaded = task("chain_sum", train=2, test=2, answer="number", system=None, suffix=" Go.")
    problems = loaded.problems("test")
    assert problems[0].prompt.endswith(" Go.") and problems[0].messages == ()
    texts = [f"7 and then {p.answer}." for p in problems]
    assert set(verdicts(loaded, problems, texts)) == {Verdict.CORRECT}
    loaded.close()


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("It is 1,234.", "1234"),
        ("10,000 dollars", "10000"),
        ("1, 2 and 3,456,789.5", "3456789.5"),
        ("1,2,345", "345"),  # a list
        ("\u22125", "-5"),
        ("x=-7", "-7"),
        ("12-7", "7"),
        ("(12)-7", "7"),
        ("1e5", "100000"),
        ("2.5E-3", "0.0025"),
        (".5", "0.5"),
        ("wait... 5.", "5"),
        ("none", None),
        ("x = - 12", "-12"),
        ("Answer: \u2212 12", "-12"),
        (r"\boxed{- 12}", "-12"),
        ("- 128", "-128"),
        ("It is\n- 1 000.", "-1000"),
        ("- 2\n- 3", "3"),  # a list
        ("15 - 3", "3"),
        ("1 000", "1000"),
        ("1\u202f234\u202f567.5", "1234567.5"),
        (r"1{,}000 = 1\,000", "1000"),
        ("1 2 345", "345"),
        ("1000 200", "200"),
        ("5 2000", "2000"),
        ("007", "7"),
        ("0", "0"),
        ("03.0", "3"),
        ("-3.00", "-3"),
        ("0.50", "0.50"),
    ],
)
def test_the_last_number_is_read_whole(completion, number):
    loaded = task("chain_sum", train=2, test=2, answer="number")
    assert loaded.final_answers([completion]) == [number]
    loaded.close()


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("I will write <answer> at the end. <answer>5</answer>", "5"),
        ("<answer>4</answer> No: <answer> 5\n</answer>.", "5"),
        ("<answer>5</answer>, in <answer> tags", "5"),
        ("<answer>5</answer> and </answer>", "5"),
        ("<answer><answer>5</answer></answer>", "5"),
        ("<answer></answer>", ""),
        ("</answer><answer>5", None),
    ],
)
def test_the_last_tags_are_read_from_the_nearest_opening_one(mixture, completion, answer):
    assert mixture.final_answers([completion]) == [answer]


@pytest.mark.parametrize("answer", ["tags", "number"])
def test_answers_are_found_in_time_that_is_linear_in_the_text(answer):
    loaded = task("chain_sum", train=2, test=2, answer=answer)
    hostile = ["<answer>", "</answer>", "- 1\n", "1 ", "123 ", "1,", "1{,}", "- ", ": ", "1e"]
    begin = time.process_time()
    loaded.final_answers([text * (160_000 // len(text)) for text in hostile])
    assert time.process_time() - begin < 5  # a quadratic pattern takes 14 s
    loaded.close()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"datasets": "chian_sum"}, "task.args.datasets: .*'chian_sum'.*chain_sum"),
        ({"datasets": ["chain_sum"]}, "task.args.datasets: must be a name, or a mapping of names"),
        ({"datasets": {}}, "task.args.datasets: must be at least one dataset"),
        ({"datasets": "puzzle24"}, "puzzle24: must be a dataset that can be judged, but its judge"),
        ({"datasets": "n_queens"}, "n_queens: must be used with task.args.run_code: true"),
        ({"datasets": {"gcd": {"weight": 0}}}, "datasets.gcd.weight: must be a number > 0, got 0"),
        ({"datasets": {"gcd": 3}}, "datasets.gcd: must be a mapping of settings, got 3"),
        (
            {"datasets": "gcd", "answer": "all"},
            "task.args.answer: must be one of tags, number, got 'all'",
        ),
        ({"datasets": "gcd", "train": 0}, "task.args.train: must be from 1 to 499999, got 0"),
        ({"datasets": "gcd", "workers": 0}, "task.args.workers: must be an integer >= 1, got 0"),
        (
            {"datasets": "gcd", "chat": False, "system": "Be brief."},
            "task.args.system: must be absent without chat messages, got 'Be brief.'",
        ),
        (
            {"datasets": "gcd", "chat": False, "chat_template_kwargs": {"a": 1}},
            "task.args.chat_template_kwargs: must be null without chat messages",
        ),
        ({"datasets": {"gcd": {}, "lcm": {}}, "test": 1}, "task.args.test: must be large enough"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(args, message):
    with pytest.raises(ValueError, match=message) as error:
        load_task("reasoning_gym", args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [{"no_such": 1}, {"min_terms": 9, "max_terms": 2}])
def test_settings_that_a_dataset_refuses_are_named_with_it(settings):
    loaded = task({"chain_sum": settings}, train=2, test=2)
    with pytest.raises(ValueError, match=r"task\.args\.datasets\.chain_sum: must have settings"):
        loaded.problems("train")
    loaded.close()


def test_an_answer_that_is_run_as_code_changes_no_later_verdict():
    spec = spec_of("n_queens", {}, 0, 2)
    judge = "import reasoning_gym.games.n_queens as m; m.NQueensDataset.score_answer = "
    answers = [
        f'exec("{judge} lambda self, answer, entry: 1.0")',
        'exec("import builtins; builtins.min = lambda *values: 1.0")',
        "[[]]",
        worker.dataset_of(spec)[1]["metadata"]["valid_answers"][0],
    ]
    with VerifierPool(f"{worker.__name__}:check", workers=1) as pool:
        found = pool.map([(spec, "1", answer) for answer in answers])
    assert found == [Verdict.WRONG] * 3 + [Verdict.CORRECT]


@pytest.mark.slow
def test_every_usable_dataset_accepts_its_own_answers_and_no_other():
    names = sorted(set(DATASETS) - set(UNUSABLE))
    assert len(names) >= 100 and set(names) >= RUN_CODE
    loaded = task(dict.fromkeys(names), train=3 * len(names), test=len(names), run_code=True)
    problems = loaded.problems("train")
    right = [f"<answer>{p.answer}</answer>" for p in problems]
    assert set(verdicts(loaded, problems, right)) == {Verdict.CORRECT}
    assert set(verdicts(loaded, problems, ["<answer>9**9</answer>"] * len(problems))) == {
        Verdict.WRONG
    }
    loaded.close()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ValueError, match=r"without its package; `pip install 'reasoning-gym"):
        load_task("reasoning_gym", {"datasets": "gcd"})


def test_the_example_of_the_guide_is_a_mixture():
    page = (Path(__file__).parents[2] / "docs/guides/reasoning-gym.md").read_text()
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1])["task"]
    loaded = load_task(config["name"], config["args"] | {"train": 7, "test": 7})
    sources = [problem.source for problem in loaded.problems("test")]
    assert sorted(sources) == ["chain_sum"] * 4 + ["gcd"] * 2 + ["sudoku"]
    assert set(UNUSABLE) | set(RUN_CODE) <= set(re.findall(r"`(\w+)`", page))
    loaded.close()


def test_the_answer_of_a_dataset_without_one_is_in_its_metadata():
    entry = {"answer": None, "metadata": {"example_answer": "P"}}
    assert worker.own_answer("propositional_logic", entry) == "P"
    assert worker.own_answer("gcd", {"answer": "4", "metadata": {}}) == "4"
