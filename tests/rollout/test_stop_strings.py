"""Stop strings that could never occur are refused."""

import pytest

from entropy_rl.rollout.stop_strings import StopStrings, stop_rule
from entropy_rl.tasks.countdown import build_tokenizer


@pytest.mark.parametrize(
    "string", ["<|im_end|>", "<|endoftext|>", "<|im_end|>\n", "User: <|im_start|>", "a<|im_end|>b"]
)
def test_a_special_token_in_a_stop_string_is_refused_with_the_setting_for_it(string, tokenizer):
    with pytest.raises(ValueError) as error:
        stop_rule(tokenizer, ["\n\n", string])
    line = str(error.value)
    assert line.startswith("rollout.stop: must be text that can occur in a completion, got ")
    assert line.endswith("is never in the text; name it in model.extra_eos")
    with pytest.raises(ValueError, match=r"^stop: must be text that can occur"):
        StopStrings(tokenizer, [string])


@pytest.mark.parametrize("string", ["hello", "\n\n", "7 hello", "¿", "1Z"])
def test_text_that_a_tokenizer_cannot_write_is_refused(string):
    with pytest.raises(ValueError, match=r"^evaluation.stop: must be text .* cannot write"):
        stop_rule(build_tokenizer(), [string], "evaluation.stop")


@pytest.mark.parametrize("string", ["", None, 5])
def test_what_is_no_text_is_refused(string, tokenizer):
    with pytest.raises(ValueError, match=r"^stop: must be texts that are not empty, got "):
        StopStrings(tokenizer, [string])


def test_a_text_is_no_list_of_its_letters_and_nothing_stops_nothing(tokenizer):
    for strings, message in (
        ("done", "a list of texts, got 'done'"),
        ([], "at least one text, got []"),
    ):
        with pytest.raises(ValueError) as caught:
            StopStrings(tokenizer, strings)
        assert str(caught.value) == f"stop: must be {message}"
    assert stop_rule(tokenizer, []) is None


@pytest.mark.parametrize("string", ["\ud800", "a\udfff"])
def test_a_lone_surrogate_is_refused(string, tokenizer):
    with pytest.raises(ValueError, match=r"^stop: must be text that can occur"):
        StopStrings(tokenizer, [string])


@pytest.mark.parametrize(
    "string", ["\n\n", "###", " Question", "</s>", "im_end|>", "½", "\u202e", "```\n", "日本", " "]
)
def test_bytes_can_write_any_other_text(string, tokenizer):
    rule = stop_rule(tokenizer, [string])
    ids = tokenizer.encode(f"a{string}b", add_special_tokens=False)
    assert rule(ids) is not None


def test_text_of_the_words_of_a_vocabulary_is_accepted():
    tokenizer = build_tokenizer()
    rule = stop_rule(tokenizer, ["7 7"])
    assert rule(tokenizer.encode("7 7 5")) == 2
