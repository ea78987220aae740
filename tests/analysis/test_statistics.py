"""The entropy analysis against values by hand, brute force and simulation."""

import dataclasses
import itertools
import math
import time

import hf_fixtures
import numpy as np
import pytest

from entropy_rl.analysis import (
    REFLECTIVE,
    WORDS,
    Group,
    Response,
    TokenSpans,
    analyze,
    annotate,
    compile_patterns,
    contrast,
    find_pivotal,
    most_entropic,
    point,
    split_sentences,
    word_patterns,
)
from entropy_rl.analysis.contrasts import adjusted, superiority
from entropy_rl.analysis.sentences import sentence_entropies
from entropy_rl.report.analysis_tables import _cells
from entropy_rl.runs.load_model import load_tokenizer
from entropy_rl.tasks.countdown import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level BPE that knows few words: others come in pieces, and emojis in bytes."""
    directory = tmp_path_factory.mktemp("tokenizer")
    hf_fixtures.save_tokenizer(directory)
    return load_tokenizer(directory)


def spans_of(tokenizer):
    return TokenSpans(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))


def response_of(tokenizer, text, entropy=None, problem=0, step=None):
    """The text as a response that has ended; the entropy of the i-th token is i unless given."""
    tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    entropy = np.arange(len(tokens), dtype=float) if entropy is None else np.array(entropy, float)
    return Response(problem, *spans_of(tokenizer)(tokens), np.array(tokens), entropy, step)


def pieces_response(*pieces, entropy=None, problem=0):
    """A response whose tokens are these pieces of text."""
    ends = np.cumsum([len(piece) for piece in pieces])
    spans = np.stack([np.append(0, ends)[:-1], ends], axis=1)
    entropy = np.arange(len(pieces)) if entropy is None else entropy
    return Response(
        problem, "".join(pieces), spans, np.arange(len(pieces)), np.array(entropy, float)
    )


# --- tokens and the text ---


@pytest.mark.parametrize(
    "text",
    [
        "Therefore, however we reconsider: 3 + 5 = 8.\n\nWait!",
        "naïve café 数学 🤔 done 🧮🧮",
        "\t odd   spaces\r\n and \u00a0 more ",
        "",
        "$$\\frac{1}{2}$$ \\boxed{7}",
    ],
)
def test_every_character_belongs_to_the_tokens_whose_bytes_it_has(tokenizer, text):
    tokens = tokenizer.encode(text, add_special_tokens=False)
    found, spans = spans_of(tokenizer)(tokens)
    assert found == text and spans.shape == (len(tokens), 2)
    covered = np.zeros(len(text), int)
    for token, (begin, end) in zip(tokens, spans, strict=True):
        piece = tokenizer.decode([token])
        covered[begin:end] += 1
        if "\ufffd" not in piece:
            assert text[begin:end] == piece
    assert (covered >= 1).all()
    assert all(
        text[i] > "\x7f" for i in np.flatnonzero(covered > 1)
    )  # only characters of several bytes
    assert (np.diff(spans[:, 1]) >= 0).all() and (np.diff(spans[:, 0]) >= 0).all()


def test_tokens_that_end_within_a_character_do_no_harm(tokenizer):
    emoji = tokenizer.encode("🤔", add_special_tokens=False)
    assert len(emoji) > 1
    a = tokenizer.encode("a", add_special_tokens=False)
    for tokens in (
        emoji[:1],
        [*emoji[:1], *a],
        [*a, *emoji[:2], *emoji],
        emoji[:1] * 20,
        [*emoji[1:], *a],
    ):
        text, spans = spans_of(tokenizer)(tokens)
        assert spans.shape == (len(tokens), 2) and spans.max() <= len(text)
        assert text.endswith("a") == (tokens[-1] == a[0])


def test_words_that_a_tokenizer_joins_by_spaces_have_their_places():
    tokenizer = build_tokenizer()
    tokens = tokenizer.encode("3 + 5 = 8 wait", add_special_tokens=False)
    text, spans = spans_of(tokenizer)([*tokens, tokenizer.eos_token_id])
    assert text == "3 + 5 = 8 wait"
    assert [text[a:b].strip() for a, b in spans] == ["3", "+", "5", "=", "8", "wait", ""]


# --- words ---


def test_a_word_counts_by_its_first_token_and_its_other_pieces_count_nowhere(tokenizer):
    response = response_of(tokenizer, "We pause because of")
    pieces = [response.text[a:b] for a, b in response.spans]
    first = next(i for i, piece in enumerate(pieces) if piece.strip().startswith("b"))
    last = pieces.index(" of")
    assert last - first > 1  # the word is in pieces
    found = find_pivotal(response, word_patterns({"causal": ["because"]}))
    assert found.classes["causal"].tolist() == [first]
    assert found.other.tolist() == [*range(first), last]  # and the end of the response has no text


@pytest.mark.parametrize(
    "text, words, found",
    [
        ("Then strengthen, then. THEN", ["then"], ["Then", "then", "THEN"]),
        ("as  a\nresult, as a rule", ["as a result", "as"], ["as  a\nresult", "as"]),
        ("3+4 = 7", ["+", "="], ["+", "="]),
        ("x.* (a|b) [c]", [".*", "(a|b)", "[c]"], [".*", "(a|b)", "[c]"]),
        ("so-so, also, so_", ["so"], ["so", "so"]),
        ("don't, don", ["don"], ["don", "don"]),
        ("ДА да", ["да"], ["ДА", "да"]),
        ("nothing here", ["then"], []),
    ],
)
def test_words_are_found_as_a_whole_whatever_their_case(text, words, found):
    pattern = word_patterns({"class": words})["class"]
    assert pattern.findall(text) == found


def test_the_groups_of_tokens_equal_those_by_hand():
    response = pieces_response("How", "ever", ",", " the", "n", " a", "bc", " then", "")
    found = find_pivotal(response, word_patterns({"but": ["however"], "order": ["then"]}))
    assert found.classes["but"].tolist() == [0]
    assert found.classes["order"].tolist() == [3, 7]
    assert found.other.tolist() == [
        2,
        5,
        6,
    ]  # not the rest of "However" and "then", not the empty token
    assert found.other_words.tolist() == [5]  # nor the comma, nor the rest of "abc"


def test_a_word_begins_once_in_contractions_and_numbers():
    """What ends them has all but been decided by what begins them."""
    response = pieces_response(
        "I", " don", "'t", " add", " 3", ".", "14", " to", " 1", ",", "000", ",", "2"
    )
    found = find_pivotal(response, word_patterns({"but": ["however"]}))
    assert found.other_words.tolist() == [0, 1, 3, 4, 7, 8, 12]


def test_a_token_that_holds_several_words_counts_once_for_a_class():
    response = pieces_response("so then", " so", "!")
    found = find_pivotal(response, word_patterns({"a": ["so", "then"], "b": ["then"]}))
    assert found.classes["a"].tolist() == [0, 1] and found.classes["b"].tolist() == [0]
    assert found.other.tolist() == [2]


def test_the_paper_s_examples_are_in_the_lists():
    examples = {
        "causal": ("because", "therefore", "thus"),
        "contrastive": ("however", "although"),
        "sequential": ("first", "then"),
        "reasoning verbs": ("suggest", "demonstrate", "recall"),
    }
    for name, words in examples.items():
        assert set(words) <= set(WORDS[name])


def test_the_most_entropic_tokens_equal_those_by_hand():
    one = pieces_response("a", "b", "a", "b", entropy=[1, 4, 2, 6])
    one = dataclasses.replace(one, tokens=np.array([7, 3, 7, 3]))
    other = dataclasses.replace(
        pieces_response("c", "", entropy=[50, 3]), problem=1, tokens=np.array([9, 7])
    )
    found = most_entropic([one, other], min_count=2, top=9)
    assert [dataclasses.astuple(t) for t in found] == [(3, "b", 2, 1, 5.0), (7, "a", 3, 2, 2.0)]
    assert most_entropic([one, other], min_count=1, top=1)[0].text == "c"
    assert most_entropic([one, other], min_count=4, top=9) == []


# --- sentences ---


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("We get 3.14. Then x is 2.5.", ["We get 3.14.", "Then x is 2.5."]),
        ("See e.g. Fig. 2 or Eq. (5). Yes.", ["See e.g. Fig. 2 or Eq. (5).", "Yes."]),
        ("Dr. No has approx. 3, i.e. Some. Yes.", ["Dr. No has approx. 3, i.e. Some.", "Yes."]),
        ("The answer is no. Then stop.", ["The answer is no.", "Then stop."]),
        ("Is it? Wait, what?! \"No.\" Yes", ["Is it?", "Wait, what?!", "\"No.\"", "Yes"]),
        ("Hmm... wait... So", ["Hmm... wait...", "So"]),
        (
            "Thus $x = 3. Y$ and $y = 4.$ Then $z$ holds.",
            ["Thus $x = 3. Y$ and $y = 4.$", "Then $z$ holds."],
        ),
        ("Let \\(a. B\\) and \\[c. D\\] be. End", ["Let \\(a. B\\) and \\[c. D\\] be.", "End"]),
        ("It costs $5. Then $6. Done.", ["It costs $5.", "Then $6.", "Done."]),
        ("So\n$$x. Y$$\nwhich is\nfine.\nNext", ["So\n$$x. Y$$\nwhich is\nfine.", "Next"]),
        ("1. First add.\n2. Then stop\n\nEnd", ["1. First add.", "2. Then stop", "End"]),
        ("one line\n\nand another", ["one line", "and another"]),
        ("5! = 120. And 3! is 6!", ["5! = 120.", "And 3! is 6!"]),
        ("x = 3. y is 4.", ["x = 3.", "y is 4."]),
        ("**Step 1.** Add. (We can.) Stop.", ["**Step 1.**", "Add.", "(We can.)", "Stop."]),
        ("你好。再见！", ["你好。", "再见！"]),  # noqa: RUF001
        ("", []),
        (" \n\t\n", []),
        ("... !!! $$", []),
        ("no end", ["no end"]),
    ],
)  # fmt: skip
def test_sentences_end_where_they_do(text, sentences):
    found = split_sentences(text)
    assert [text[s.begin : s.end] for s in found] == sentences


@pytest.mark.parametrize(
    "unit",
    [
        "$",
        "$$",
        "\\[",
        "\\(",
        "$a",
        "a.",
        ". ",
        "\n",
        "e.g. ",
        "((",
        "!",
        "?)",
        "1.",
        "\ufffd",
        "\x00.",
    ],
)
def test_hostile_texts_are_cut_in_linear_time(unit):
    text = unit * (40_000 // len(unit))
    start = time.process_time()
    found = split_sentences(text)
    assert time.process_time() - start < 5  # quadratic would be minutes
    assert all(0 <= s.begin < s.end <= len(text) for s in found)
    assert all(a.end <= b.begin for a, b in itertools.pairwise(found))


def test_the_entropy_of_a_sentence_is_the_mean_of_its_tokens():
    response = pieces_response("It", " is", ".\n\n", "So", ".", "", entropy=[1, 2, 6, 10, 20, 100])
    assert [(s.text, s.entropy, s.tokens) for s in sentence_entropies(response)] == [
        ("It is.", 3.0, 3),  # a token that reaches beyond the end still belongs to it
        ("So.", 15.0, 2),  # and the end of the response to none
    ]
    assert sentence_entropies(pieces_response("")) == []


@pytest.mark.parametrize(
    "text, is_reflective",
    [
        ("Let me verify this.", True),
        ("Double-check the sum.", True),
        ("Wait, 3 is used.", True),
        ("We made a mistake.", True),
        ("Is that right?", True),
        ("The checkerboard has waiters.", False),
        ("Add 3 and 5.", False),
    ],
)
def test_reflective_sentences_are_told_by_their_words(text, is_reflective):
    assert any(pattern.search(text) for pattern in compile_patterns(REFLECTIVE)) == is_reflective


def test_a_broken_expression_is_named():
    with pytest.raises(ValueError, match=r"^must be a Python regular expression, got '\(oops' \("):
        compile_patterns(["fine", "(oops"])
    # Each is one of its own: what is allowed alone is allowed beside others.
    assert len(compile_patterns(["(?i)a", r"(b)\1", "(?P<x>c)", "(?P<x>d)"])) == 4


# --- the comparison ---


def test_a_contrast_equals_its_values_by_hand():
    group = Group(np.array([3.0, 5.0, 2.0, 9.0]), np.array([0, 0, 1, 3]))  # problem 3 has no others
    other = Group(np.array([1.0, 3.0, 1.0, 2.0, 7.0]), np.array([0, 0, 1, 1, 2]))
    found = contrast("a", group, "b", other)
    assert (found.group.count, found.group.problems, found.group.mean) == (4, 3, 4.75)
    assert (found.other.count, found.other.problems, found.other.mean) == (5, 3, pytest.approx(2.8))
    assert found.problems == 2
    assert found.difference == pytest.approx(((4 - 2) + (2 - 1.5)) / 2)
    # Of problem 0: 3 > 1, 3 = 3, 5 > 1, 5 > 3; of problem 1: 2 > 1, 2 = 2.
    assert found.superiority == pytest.approx((3.5 / 4 + 1.5 / 2) / 2)
    squares = np.sum((group.values - 4.75) ** 2) + np.sum((other.values - 2.8) ** 2)
    assert found.cohens_d == pytest.approx((4.75 - 2.8) / math.sqrt(squares / 7))
    assert found.p_value == 0.5  # two problems: both signs alike in half of the patterns


def test_superiority_equals_brute_force():
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 6, 40), draw.integers(0, 6, 70)
    pairs = (x[:, None] > y) + (x[:, None] == y) / 2
    assert superiority(x, y) == pytest.approx(pairs.mean(), rel=1e-12)


@pytest.mark.parametrize("first, second", [([], [1.0]), ([1.0], []), ([], [])])
def test_of_an_empty_group_nothing_is_said(first, second):
    groups = [Group(np.array(values), np.zeros(len(values), int)) for values in (first, second)]
    found = contrast("a", groups[0], "b", groups[1])
    assert found.problems == 0 and math.isnan(found.difference) and math.isnan(found.p_value)
    assert math.isnan(adjusted([found])[0].p_adjusted)


def test_one_problem_proves_nothing_however_many_tokens_it_has():
    draw = np.random.default_rng(0)
    group, other = (Group(draw.normal(m, 1, 5000), np.zeros(5000, int)) for m in (5, 0))
    found = contrast("a", group, "b", other)
    assert found.p_value == 1 and math.isinf(found.high) and math.isinf(found.group.high)
    assert found.cohens_d > 4
    (cells,) = [_cells(line) for line in adjusted([found])]
    assert [cell for cell in cells if "inf" in cell or "nan" in cell] == []
    assert cells[3] == cells[5] == "[unknown]"


def simulated(draw, problems, gain=0.0):
    """Skewed entropies whose scale is the problem's, a few of the group and many others in each."""
    scale = np.exp(draw.normal(0, 0.7, problems))
    counts = draw.integers(1, 8, problems)
    group = np.repeat(scale, counts) * (draw.exponential(1, counts.sum()) + gain)
    other = np.repeat(scale, 30) * draw.exponential(1, 30 * problems)
    ids = np.arange(problems)
    return Group(group, np.repeat(ids, counts)), Group(other, np.repeat(ids, 30))


def test_without_a_difference_p_values_are_uniform_and_a_planted_one_is_found():
    draw = np.random.default_rng(1)
    none = np.sort(
        [contrast("a", *_named(simulated(draw, 25)), resamples=200).p_value for _ in range(400)]
    )
    # The largest gap to the uniform distribution: 1.63 / √400 has a chance of 0.01; p-values step
    # by 0.005.
    assert np.abs(none - (np.arange(400) + 0.5) / 400).max() < 1.63 / 20 + 0.005
    for sign in (1, -1):
        found = [contrast("a", *_named(simulated(draw, 25, gain=1.2)[::sign])) for _ in range(10)]
        assert all(line.p_value < 0.05 and line.difference * sign > 0 for line in found)
        assert all(
            (line.superiority - 0.5) * sign > 0 and line.cohens_d * sign > 0 for line in found
        )


def _named(groups):
    return groups[0], "b", groups[1]


def test_copies_of_a_response_add_no_evidence():
    groups = simulated(np.random.default_rng(3), 12, 0.3)
    copied = [Group(np.tile(g.values, 20), np.tile(g.problems, 20)) for g in groups]
    once, often = (contrast("a", *_named(g)) for g in (groups, copied))
    assert once.p_value == often.p_value and once.low == pytest.approx(often.low, rel=1e-9)


# --- the whole ---


def planted(problems=12, gain=2.0):
    """Responses in which "but" and "Check" come at places of high entropy."""
    draw = np.random.default_rng(0)
    pieces = ("Add", " 3", " but", " not", " five", ".")
    pieces += (" Check", " it", ".", " All", " is", " well", ".", "")
    high = np.array([piece.strip() in ("but", "Check") for piece in pieces])
    return [
        pieces_response(
            *pieces, entropy=draw.exponential(0.3, len(pieces)) + gain * high, problem=p
        )
        for p in range(problems)
    ]


def annotated(responses, words=WORDS, reflective=REFLECTIVE):
    patterns = word_patterns(words), compile_patterns(reflective)
    return [annotate(response, *patterns) for response in responses]


def test_what_was_planted_is_found_and_what_is_absent_is_not():
    found = analyze(annotated(planted()), min_count=2)
    assert (found.responses, found.problems, found.tokens, found.tokens_without_text) == (
        12,
        12,
        168,
        12,
    )
    assert found.sentences == 36
    lines = {(line.name, line.against): line for line in found.pivotal}
    assert len(lines) == 2 * (len(WORDS) + 1)
    for against, others in (("other tokens", 12), ("other words", 9)):
        line = lines["contrastive", against]
        assert (line.group.count, line.other.count) == (12, 12 * others)
        assert line.p_adjusted < 0.05 and line.low > 1
        assert lines["causal", against].problems == 0
    assert found.reflective.group.count == 12 and found.reflective.p_value < 0.05
    assert {token.token for token in found.most_entropic[:2]} == {2, 6}


def test_responses_without_text_or_tokens_are_analyzed_as_well():
    empty = Response(0, "", np.zeros((0, 2), int), np.zeros(0, int), np.zeros(0))
    found = analyze(annotated([empty, pieces_response("")]), min_count=1)
    assert (found.responses, found.tokens, found.sentences) == (2, 1, 0)
    assert found.reflective.problems == 0


def test_a_point_of_the_dynamics_equals_its_values_by_hand():
    one = pieces_response("So", " so", " a", ".", " Wait", ".", entropy=[1, 2, 3, 4, 5, 6])
    other = pieces_response("a", entropy=[9])
    found = point(7, annotated([one, other], {"causal": ["so"], "none": ["zzz"]}, ["wait"]))
    assert (found.step, found.responses, found.length) == (7, 2, 3.5)
    assert found.entropy == pytest.approx(30 / 7)
    assert dataclasses.astuple(found.behaviors["causal"]) == (1.0, 1.5)
    assert found.behaviors["none"].per_response == 0 and math.isnan(found.behaviors["none"].entropy)
    assert dataclasses.astuple(found.behaviors["reflective"]) == (0.5, 5.5)
