"""The order, the encoding and the padding of prompts."""

import collections
import subprocess
import sys

import numpy as np
import pytest

from entropy_rl.experience.chats import encode_completion
from entropy_rl.experience.encoding import encode_prompt
from entropy_rl.experience.prompts import Prompts
from entropy_rl.tasks.countdown import build_tokenizer
from entropy_rl.tasks.task import Problem

WORDS = build_tokenizer()  # <pad> 0, <bos> 1, <eos> 2, <unk> 3, `:` 4, then 14 + n for the number n


def make_problems(count: int) -> list[Problem]:
    """Problem i has a prompt of 1 + i % 5 words, and an id that is not its place."""
    return [Problem(100 + 7 * i, " ".join(["<bos>", *["7"] * (i % 5)]), "") for i in range(count)]


def order(prompts: Prompts, start: int, count: int) -> list[int]:
    return prompts.batch(start, count).index.tolist()


# --- the order
# ---------------------------------------------------------------------------------------------


def test_without_a_seed_the_order_is_that_of_the_problems():
    problems = make_problems(9)
    prompts = Prompts(problems, WORDS, 8)
    assert prompts.batch(2, 5).problems == problems[2:7]
    assert order(prompts, 2, 5) == [114, 121, 128, 135, 142]


def test_each_epoch_is_another_permutation_of_all_problems():
    prompts = Prompts(make_problems(20), WORDS, 8, seed=3)
    epochs = [order(prompts, 20 * epoch, 20) for epoch in range(6)]
    ids = [100 + 7 * i for i in range(20)]
    assert all(sorted(epoch) == ids for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, ids]}) == 7


def test_prompts_of_one_problem_stay_together_in_every_epoch():
    single, pairs = make_problems(10), make_problems(20)
    prompts = Prompts(pairs, WORDS, 8, seed=3, together=2)
    ids = [problem.id for problem in pairs]
    # The order of the runs is that of as many single problems.
    whole = order(Prompts(single, WORDS, 8, seed=3), 0, 40)
    places = [(problem_id - 100) // 7 for problem_id in whole]
    assert order(prompts, 0, 80) == [ids[2 * p + i] for p in places for i in range(2)]
    steps = [prompts.step(step, 8, shard=1, shards=2, updates=2).index for step in range(4)]
    for found in steps:
        first, second = found.reshape(-1, 2).T
        np.testing.assert_array_equal(second, first + 7)
    with pytest.raises(ValueError, match=r"mini_batch_prompts: must be a multiple of the number of "
                       r"hosts \(2\) times the prompts of a problem \(2\), got 2"):  # fmt: skip
        prompts.step(0, 4, shards=2, updates=2)


def test_a_prompt_that_is_too_long_takes_the_other_ones_of_its_problem_along():
    prompts = Prompts(make_problems(10), WORDS, 3, together=2)  # of 1 to 5 words
    assert order(prompts, 0, len(prompts)) == [100, 107, 142, 149] and prompts.left_out == 6
    with pytest.raises(ValueError, match="must be a multiple of 2, the prompts of each problem"):
        Prompts(make_problems(9), WORDS, 8, together=2)


def test_the_problem_at_a_place_depends_on_seed_and_place_alone():
    whole = order(Prompts(make_problems(20), WORDS, 8, seed=3), 0, 70)
    prompts = Prompts(make_problems(20), WORDS, 8, seed=3)
    # Backwards, across the ends of epochs, with batches of several sizes, and again.
    for start, count in ((63, 7), (18, 4), (39, 2), (0, 3), (0, 70), (18, 4)):
        assert order(prompts, start, count) == whole[start : start + count]
    for other in (0, 4, 2**31):
        assert order(Prompts(make_problems(20), WORDS, 8, seed=other), 0, 70) != whole


def test_the_order_is_the_same_on_every_machine():
    assert order(Prompts(make_problems(6), WORDS, 8, seed=0), 0, 12) == [
        107,
        114,
        128,
        135,
        121,
        100,
        135,
        121,
        107,
        128,
        114,
        100,
    ]


def test_a_problem_that_was_left_out_is_in_no_epoch():
    prompts = Prompts(make_problems(20), WORDS, 4, seed=3)  # those with 4 and fewer words
    assert (len(prompts), prompts.left_out) == (16, 4)
    counts = collections.Counter(order(prompts, 0, 48))
    assert counts == {100 + 7 * i: 3 for i in range(20) if i % 5 != 4}


def test_without_a_seed_every_epoch_has_the_order_of_the_problems():
    prompts = Prompts(make_problems(5), WORDS, 8)
    found = [prompts.step(step, 2).index.tolist() for step in range(4)]
    assert found == [[100, 107], [114, 121]] * 2


def test_an_order_without_a_seed_does_without_grain():
    code = (
        "import sys\n"
        "from entropy_rl.experience.prompts import Prompts\n"
        "from entropy_rl.tasks.countdown import build_tokenizer\n"
        "from entropy_rl.tasks.task import Problem\n"
        "Prompts([Problem(0, '<bos>', '')], build_tokenizer(), 8).batch(0, 1)\n"
        "assert 'grain' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what is left out, and padding
# -------------------------------------------------------------------------


def test_too_long_prompts_are_counted_and_reported(caplog):
    prompts = Prompts(make_problems(10), WORDS, 3)  # lengths 1 2 3 4 5 1 2 3 4 5
    assert (len(prompts), prompts.left_out) == (6, 4)
    assert (
        "4 of 10 problems are left out: their prompt is longer than max_prompt_tokens=3"
        in caplog.text
    )
    # With an example, which the user can look at.
    assert "max_prompt_tokens=3 (such as problem 121 with 4 tokens): '<bos> 7 7 7'" in caplog.text
    assert [problem.id for problem in prompts.batch(0, 6).problems] == [
        100,
        107,
        114,
        135,
        142,
        149,
    ]


def test_nothing_is_reported_where_nothing_is_left_out(caplog):
    assert Prompts(make_problems(10), WORDS, 5).left_out == 0
    assert not caplog.records


def test_no_prompt_left_is_an_error_with_the_numbers():
    problems = [Problem(i, "<bos> 7 7", "") for i in range(4)]
    with pytest.raises(
        ValueError,
        match=r"^no prompt is left: of 4 problems, 4 \(such as problem 0 with 3 tokens\) "
        r"have a prompt longer than max_prompt_tokens=2$",
    ):
        Prompts(problems, WORDS, 2)
    with pytest.raises(ValueError, match=r"^no prompt is left: of 0 problems, 0 "):
        Prompts([], WORDS, 2)


def test_rows_are_padded_on_the_right_and_the_mask_says_where():
    problems = [Problem(8, "<bos> 2 3 : 6", ""), Problem(3, "<bos> 49", "")]
    batch = Prompts(problems, WORDS, 100).batch(0, 2)
    np.testing.assert_array_equal(
        batch.ids, [[1, 16, 17, 4, 20, 0, 0, 0], [1, 63, 0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch.mask.sum(-1), [5, 2])
    np.testing.assert_array_equal(batch.mask, np.arange(8) < [[5], [2]])
    assert (batch.ids.dtype, batch.mask.dtype, batch.index.dtype) == (np.int32, bool, np.int32)
    assert batch.index.tolist() == [8, 3]


def test_each_problem_stands_beside_each_of_its_completions():
    batch = Prompts(make_problems(3), WORDS, 8).batch(1, 2)
    assert [problem.id for problem in batch.rows(3)] == [107, 107, 107, 114, 114, 114]


@pytest.mark.parametrize(
    ("longest", "max_tokens", "length"),
    [(1, 100, 8), (8, 100, 8), (9, 100, 16), (9, 12, 12), (12, 12, 12)],
)
def test_all_batches_have_one_length_that_is_a_multiple_of_8_or_the_limit(
    longest, max_tokens, length
):
    problems = [Problem(0, "<bos>", ""), Problem(1, " ".join(["7"] * longest), "")]
    prompts = Prompts(problems, WORDS, max_tokens)
    assert prompts.length == length
    assert prompts.batch(0, 1).ids.shape == prompts.batch(1, 1).ids.shape == (1, length)


def test_a_left_out_prompt_does_not_make_the_rows_longer():
    problems = [Problem(0, "<bos>", ""), Problem(1, " ".join(["7"] * 50), "")]
    assert Prompts(problems, WORDS, 20).length == 8


def test_a_tokenizer_without_padding_is_padded_with_some_token_under_the_mask():
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    batch = Prompts([Problem(0, "<bos> 7", "")], tokenizer, 8).batch(0, 1)
    assert batch.ids[batch.mask].tolist() == [1, 21]
    assert batch.ids.min() >= 0 and batch.ids.max() < len(tokenizer)


# --- the encoding
# ------------------------------------------------------------------------------------------


def test_a_plain_prompt_is_encoded_as_it_stands(tokenizer):
    assert encode_prompt(Problem(0, "<bos> 2 3 : 6", ""), WORDS) == [1, 16, 17, 4, 20]
    text = "What is 3 + 5?\n"
    ids = encode_prompt(Problem(0, text, ""), tokenizer)
    assert tokenizer.decode(ids) == text


def tokenizer_that_adds(template):
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokens = [("<bos>", 1), ("<eos>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=tokens
    )
    tokenizer.chat_template = (
        "{{ '<bos> ' }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    )
    return tokenizer


def test_a_plain_prompt_gets_the_first_tokens_of_its_tokenizer_a_chat_prompt_of_its_template():
    tokenizer = tokenizer_that_adds("<bos> $A")
    assert encode_prompt(Problem(0, "7", ""), tokenizer) == [1, 21]
    assert encode_prompt(Problem(0, "7", "", chat=True), tokenizer) == [1, 21]


def test_a_tokenizer_that_ends_every_text_is_refused():
    tokenizer, line = tokenizer_that_adds("$A <eos>"), "the tokenizer ends every text with its end"
    for encode in (
        lambda: Prompts([Problem(0, "7", "")], tokenizer, 8),
        lambda: encode_prompt(Problem(0, "7", ""), tokenizer),
        lambda: encode_completion("7", "7", tokenizer, (2,)),
    ):
        with pytest.raises(ValueError, match=line):
            encode()
    # A chat prompt has the tokens of its template only.
    (ids,) = Prompts([Problem(0, "7", "", chat=True)], tokenizer, 8).encoded
    assert ids.tolist() == [1, 21]


@pytest.mark.parametrize("id", [-1, 2**31, "x1", None])
def test_an_id_that_can_seed_no_samples_is_refused(id):
    with pytest.raises(ValueError, match=r"problem ids must be integers from 0 to 2\^31 - 1, got "):
        Prompts([Problem(id, "7", "")], WORDS, 8)


@pytest.mark.parametrize("count", [3, 5, 7, 10])
def test_no_step_has_a_problem_twice_and_an_epoch_has_none_twice_either(count):
    prompts = Prompts(make_problems(10), WORDS, 8, seed=0)
    steps = 10 // count
    for epoch in range(4):
        epoch_ids = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            batch = prompts.step(step, count)
            assert len(batch.problems) == count
            epoch_ids += batch.index.tolist()
        assert len(set(epoch_ids)) == len(epoch_ids) == steps * count
    assert prompts.step(0, count).index.tolist() != prompts.step(steps, count).index.tolist()


def test_a_step_of_more_prompts_than_there_are_is_refused():
    with pytest.raises(
        ValueError, match=r"^rollout\.prompts: must be at most 10, the number of problems, got 11$"
    ):
        Prompts(make_problems(10), WORDS, 8, seed=0).step(0, 11)


def test_a_chat_prompt_is_what_the_tokenizers_own_template_makes_of_it(tokenizer):
    question = "What is 3 + 5?\nPut the answer in a \\boxed{}. <|im_end|>"
    problem = Problem(0, question, "", chat=True, special_tokens=True)
    ids = encode_prompt(problem, tokenizer)
    message = [{"role": "user", "content": question}]
    whole = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    assert ids == whole["input_ids"]
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids[0] == 382  # <|im_start|> is one token


def test_a_missing_chat_template_names_the_tokenizer_and_the_way_out(tokenizer):
    problem = Problem(0, "7", "", chat=True)
    with pytest.raises(ValueError, match=r"no chat template; set task\.args\.chat to false"):
        encode_prompt(problem, WORDS)
    with pytest.raises(ValueError, match="no chat template"):
        Prompts([problem], WORDS, 8)


def test_a_prompt_without_tokens_names_its_problem():
    with pytest.raises(ValueError, match="the prompt of problem 5 has no tokens: ' '"):
        Prompts([Problem(4, "<bos>", ""), Problem(5, " ", "")], WORDS, 8)


def test_two_problems_of_one_id_are_refused():
    problems = [Problem(i, "<bos>", "") for i in (4, 5, 6, 5, 4, 5)]
    with pytest.raises(ValueError, match=r"^task: 2 problem ids occur more than once, such as 4$"):
        Prompts(problems, WORDS, 8)
