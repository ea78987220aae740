"""Overlap of a test set with a training set, against a brute-force count and by hand."""

import itertools
import random
import re

import pytest
from math_files import write_jsonl

from entropy_rl.cli.main import main
from entropy_rl.tasks.math.overlap import (
    Match,
    common_grams,
    count_matches,
    find_overlap,
    n_grams,
    split_words,
    worst_matches,
)


@pytest.mark.parametrize(
    "text",
    [
        "Find the value of $x+1$ if $\\frac{1}{2}x = 3.5$.",
        "find  the\nvalue of $x + 1$, if $\\dfrac{1}{2}\\,x=3.5$",
        "FIND THE VALUE OF \\( x+1 \\) IF \\[ \\tfrac 1 2 \\; x\\!=~3.5 \\]?",
        '"Find" the value of $$\\left( x \\quad+1 \\right)$$ if: $\\displaystyle\\frac{1}{2} '
        "x=3.5$;",
    ],
)
def test_case_white_space_punctuation_and_spacing_of_latex_make_no_difference(text):
    expected = (
        "find",
        "the",
        "value",
        "of",
        "x",
        "+",
        "1",
        "if",
        "\\frac",
        "1",
        "2",
        "x",
        "=",
        "3.5",
    )
    assert split_words(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x + 1", "x - 1"),
        ("5!", "5"),
        ("\\frac{1}{23}", "\\frac{12}{3}"),
        ("3.5", "35"),
        ("1, 000", "1000"),
        ("x^2", "x2"),
        ("\\leftarrow", "arrow"),
        ("\\sin x", "sin x"),
    ],
)
def test_what_means_something_else_is_told_apart(one, other):
    assert split_words(one) != split_words(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("n² + x⁻¹", "$n^2 + x^{-1}$"),
        ("x ≤ 3 ≥ y ≠ z", r"x \leq 3 \geqslant y \neq z"),
        (r"x \le 3 \ge y", r"x \leq 3 \geq y"),
        ("2 × 3 · 4", r"2 \times 3 \cdot 4"),  # noqa: RUF001
        ("１２＋３", "12+3"),  # noqa: RUF001
        ("cafe\u0301", "caf\u00e9"),
        ("½ of √2, π and 30°", r"\frac{1}{2} of \sqrt{2}, \pi and 30^\circ"),
        ("x₁ … x₉", r"x_1 \ldots x_9"),
    ],
)
def test_a_sign_has_one_spelling(one, other):
    assert split_words(one) == split_words(other)


def test_numbers_are_the_same_with_separators_of_thousands():
    assert split_words("1,234,567 and 1{,}000") == ("1234567", "and", "1000")
    assert split_words("the pairs (1,2) and (1,23)") == ("the", "pairs", "1", "2", "and", "1", "23")


def test_a_problem_shorter_than_a_gram_is_one_gram():
    words = ("a", "b", "c")
    assert n_grams(words, 4) == n_grams(words, 3) == {words}
    assert n_grams(words, 2) == {("a", "b"), ("b", "c")}
    assert n_grams((), 2) == set()


def brute_force(train, test, n):
    """The definition, word for word: compares every gram with every training problem."""
    for i, words in enumerate(test):
        grams = n_grams(words, n)
        in_train = [
            {gram for gram in grams if gram in n_grams(other, len(gram))} for other in train
        ]
        counts = [len(shared) for shared in in_train]
        exact = [k for k, other in enumerate(train) if other == words and words]
        best = exact[0] if exact else max(range(len(train)), key=lambda k: counts[k], default=None)
        if best is not None and not counts[best]:
            best = None
        share = len(set().union(*in_train)) / len(grams) if grams else 0.0
        yield Match(
            i, bool(exact), share, best, counts[best] / len(grams) if best is not None else 0.0
        )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_index_finds_what_a_comparison_of_all_pairs_finds(n):
    rng = random.Random(n)
    seen = set()
    for _ in range(60):
        texts = [tuple(rng.choices("ab", k=rng.randint(0, 12))) for _ in range(rng.randint(0, 12))]
        cut = rng.randint(0, len(texts))
        matches = find_overlap(texts[:cut], texts[cut:], n)
        assert matches == list(brute_force(texts[:cut], texts[cut:], n))
        seen |= {(match.exact, 0 < match.share < 1, match.train is None) for match in matches}
    assert len(seen) >= 4  # exact, in part, as a whole but not the same, and not at all


def test_a_short_problem_is_found_within_a_longer_one():
    """DAPO-Math-17k asks problems of MATH in this way, so that their answers are whole numbers."""
    test = "Simplify $\\sqrt{180}$."
    train = f"{test} The answer is in the form $k\\sqrt{{m}}$, please find the value of k + m."
    (found,) = find_overlap([split_words("Another one."), split_words(train)], [split_words(test)])
    assert (found.exact, found.share, found.train, found.train_share) == (False, 1.0, 1, 1.0)


def test_an_instruction_that_test_problems_share_is_no_overlap():
    instruction = tuple(f"word{i}" for i in range(15))
    test = [(*instruction, f"own{i}", *"abcdefghijklm") for i in range(40)]
    train = [(*instruction, f"other{i}") for i in range(9)] + [test[7]]
    assert common_grams(test[:20], 13) == set()
    assert len(common_grams(test, 13)) == 4  # three of the instruction, one of the end
    counts = count_matches(find_overlap(train, test))
    assert counts == {"problems": 40, "exact": 1, "half": 1, "any": 1}
    assert count_matches(find_overlap(train, test[:20]))["any"] == 20


def test_equal_test_problems_without_a_gram_of_their_own_are_exact_matches():
    same = [("a", "b", "c")] * 30
    assert {(m.exact, m.share, m.train) for m in find_overlap([same[0]], same)} == {(True, 1.0, 0)}


def test_counts_and_order_of_the_worst():
    matches = [
        Match(0, False, 0.0, None, 0.0),
        Match(1, False, 0.5, 3, 0.2),
        Match(2, True, 1.0, 1, 1.0),
        Match(3, False, 1.0, 2, 0.9),
        Match(4, False, 0.49, 3, 0.49),
        Match(5, False, 0.5, 3, 0.4),
    ]
    assert count_matches(matches) == {"problems": 6, "exact": 1, "half": 4, "any": 5}
    assert [match.test for match in worst_matches(matches, 4)] == [2, 3, 5, 1]
    assert [match.test for match in worst_matches(matches, 9)] == [2, 3, 5, 1, 4]


def test_training_problems_are_read_once():
    train = (words for words in [("a", "b"), ("b", "c")])
    assert [match.train for match in find_overlap(train, [("b", "c"), ("x", "b")], 1)] == [1, 0]


# --- the verb
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def two_files(tmp_path) -> list[str]:
    long = " ".join(f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    texts = {
        "train": ["Nothing to see.", f"{long}.", "What is $1 + 1$?"],
        "test": [
            "what is $1+1$",
            long.replace("wordz", "other"),
            "Something else.",
            "What is $1 - 1$?",
        ],
    }
    return [
        str(
            write_jsonl(
                tmp_path / f"{name}.jsonl", [{"problem": text, "answer": 1} for text in problems]
            )
        )
        for name, problems in texts.items()
    ]


def test_the_verb_prints_counts_and_the_worst_pairs(two_files, capsys):
    assert main(["data", "overlap", *two_files]) == 0
    lines = capsys.readouterr().out.splitlines()
    train, test = two_files
    assert lines[:2] == [f"4 test problems of {test}", f"3 training problems of {train}"]
    assert [line.split()[-4:] for line in lines[2:5]] == [
        ["1", "of", "4", "(25.0%)"],  # the same
        ["2", "of", "4", "(50.0%)"],  # half of the 13-grams
        ["2", "of", "4", "(50.0%)"],  # any
    ]
    assert re.fullmatch(r" +looked for as a whole +3 of 4 \(less than 13 words\)", lines[5])
    assert lines[7:10] == [
        "== test 0: 100% in the training set, the same as train 2",
        "what is $1+1$",
        "What is $1 + 1$?",
    ]
    assert lines[11] == "== test 1: 93% in the training set, 93% in train 1"  # 13 of 14 grams
    assert len(lines) == 14
    assert max(map(len, lines[2:])) <= 80


def test_the_verb_says_how_many_grams_are_left_out(tmp_path, capsys):
    shared = " ".join(f"word{letter}" for letter in "abcdefghijklm")
    rows = [{"problem": f"{shared} own{i}", "answer": 1} for i in range(21)]
    file = str(write_jsonl(tmp_path / "a.jsonl", rows))
    assert main(["data", "overlap", file, file]) == 0
    assert "left out: 2 13-grams of more than 1% of the test problems" in capsys.readouterr().out


def test_the_length_of_a_gram_can_be_set(two_files, capsys):
    assert main(["data", "overlap", *two_files, "--ngram", "1"]) == 0
    out = capsys.readouterr().out
    assert "any 1-gram                         3 of 4 (75.0%)" in out
    assert "== test 3: 75% in the training set, 75% in train 2" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["a.jsonl"], "the command line: missing: test"),
        (
            ["nowhere", "nowhere"],
            "train: must be a data file (JSONL, parquet or Arrow), a directory or a pattern of "
            "them, or one of the sets dapo_math_17k, ",
        ),
        (["a", "b", "--ngram", "0"], "ngram: must be >= 1, got 0"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, capsys, arguments, line):
    assert main(["data", "overlap", *arguments, "--data_dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"entropy-rl data overlap: {line}") and err.count("\n") == 1


def test_other_fields_can_be_named(tmp_path, capsys):
    file = write_jsonl(tmp_path / "f.jsonl", [{"query": "Q?", "result": 1}])
    assert main(["data", "overlap", str(file), str(file)]) == 2
    assert (
        "problem_field: must be one of 'query', 'result', got null, for which none of problem, "
        in capsys.readouterr().err
    )
    fields = ["--problem_field", "query", "--answer_field", "result"]
    assert main(["data", "overlap", str(file), str(file), *fields]) == 0


def test_all_pairs_of_words_that_differ_by_an_operator_are_no_exact_match():
    texts = [f"x {a} y {b} z" for a, b in itertools.product("+-*/=<>^!|%", repeat=2)]
    assert len({split_words(text) for text in texts}) == len(texts)


def test_signs_of_languages_without_spaces_are_words():
    assert split_words("求 x 的值, find 値") == ("求", "x", "的", "值", "find", "値")
    one, other = (
        split_words("已知三角形的面积是十二, 求它的周长。"),
        split_words("已知三角形的面积是十二, 求它的高。"),
    )
    (match,) = find_overlap([one], [other], n=5)
    assert not match.exact and 0.5 < match.share < 1
