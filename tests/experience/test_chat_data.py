"""Rows of chat files: masked turns, fields that are not read, pairs, and rows that are held out."""

import itertools

import numpy as np
import pytest
from math_files import write_jsonl, write_parquet

from entropy_rl.config.sft import ChatDataConfig
from entropy_rl.experience.chat_data import batch_of_step, read_chats, read_contents

END = 383  # <|im_end|>


def turns(*texts):
    """Messages of the user and the assistant in turn."""
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def read(rows, tokenizer, path, pairs=False, write=write_jsonl, **options):
    file = write(path / "rows.jsonl" if write is write_jsonl else path / "rows.parquet", rows)
    config = ChatDataConfig(str(file), **{"max_tokens": 256} | options)
    return read_chats(config, tokenizer, (END,), pairs, seed=0)


def said(text, tokenizer):
    """What is trained on."""
    return tokenizer.decode(text.ids[text.mask]).split("<|im_end|>")[:-1]


# --- fields that change what is trained on
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
@pytest.mark.parametrize("mask", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_a_masked_turn_is_not_trained_on(tokenizer, tmp_path, mask, write):
    chat = turns("a?", "bad", "b?", "good", "c?", "good too")
    chat[1] |= mask
    chat[3] |= {name: type(value)(1) for name, value in mask.items()}
    found = read([{"messages": chat}], tokenizer, tmp_path, write=write)
    assert said(found.train[0][0], tokenizer) == ["good", "good too"]
    # In the completion of a pair too, in which all is counted from the prompt on.
    row = {"prompt": chat[:1], "chosen": chat[1:4], "rejected": "worse"}
    chosen, rejected = read([row], tokenizer, tmp_path, pairs=True).train[0]
    assert said(chosen, tokenizer) == ["good"] and said(rejected, tokenizer) == ["worse"]
    row = {"chosen": chat, "rejected": turns("a?", "worse")}
    chosen, rejected = read([row], tokenizer, tmp_path, pairs=True).train[0]
    assert said(chosen, tokenizer) == ["good", "good too"]


def test_messages_that_are_columns_have_masks_too(tokenizer, tmp_path):
    roles = ["user", "assistant", "user", "assistant"]
    chat = {"role": roles, "content": ["a?", "bad", "b?", "good"], "weight": [None, 0, None, 1]}
    found = read([{"messages": chat}], tokenizer, tmp_path)
    assert said(found.train[0][0], tokenizer) == ["good"]


@pytest.mark.parametrize(
    ("of_message", "of_row", "line"),
    [
        ({"weight": 0.5}, {}, "'messages[1]': must have 0 or 1 as 'weight', true or false as 'tr"),
        ({"weight": "0"}, {}, "'messages[1]': must have 0 or 1 as 'weight', true or false as 'tr"),
        ({"weight": 0}, {}, "must have a message of the assistant that 'weight' or 'train' does"),
        ({"reasoning_content": "Well."}, {}, "'messages[1]': must have its thoughts in the text"),
        ({"thinking": "Well."}, {}, "'messages[1]': must have its thoughts in the text, as <thin"),
        ({"function_call": {"name": "f"}}, {}, "'messages[1]': must be a message without tool ca"),
        ({"content": "\ud800"}, {}, "'messages[1]': must be Unicode text, got the lone surrogate"),
        ({}, {"tools": [{"name": "f"}]}, "'tools': must be absent or null, as tools are not desc"),
        ({}, {"system": "Be brief."}, "'system': must be absent or null, as a system text is the"),
        ({}, {"chat_template_kwargs": {"x": 1}}, "'chat_template_kwargs': must be absent or null"),
        ({}, {"label": False}, "'label': must be absent or null, as labels of rows are not read,"),
        ({}, {"label": 1}, "'label': must be absent or null, as labels of rows are not read, got"),
    ],
)  # fmt: skip
def test_a_field_that_would_change_the_row_is_refused(
    tokenizer, tmp_path, of_message, of_row, line
):
    chat = turns("a?", "b")
    chat[1] |= of_message
    with pytest.raises(ValueError) as error:
        read([{"messages": chat} | of_row], tokenizer, tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/rows.jsonl:1: {line}")
    assert "\n" not in str(error.value)


def test_other_fields_are_named_once_and_null_ones_are_not(tokenizer, tmp_path, caplog):
    chat = turns("a?", "b")
    chat[1] |= {"id": 7, "name": None, "reasoning_content": None, "tool_calls": [], "weight": 1}
    row = {"messages": chat, "source": "x", "label": "algebra", "score": None, "tools": "[]"}
    row |= {"system": "", "prompt": None}
    read([row, row], tokenizer, tmp_path)
    assert caplog.messages == ["data.train: fields unused: label, messages[].id, source"]


# --- pairs
# ------------------------------------------------------------------------------------------


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": turns("q", "x"), "rejected": turns("r", "y")},
        {"chosen": [SYSTEM, *turns("q", "x")], "rejected": turns("q", "y")},
        {"chosen": [SYSTEM, *turns("q", "x")], "rejected": [SYSTEM, *turns("r", "y")]},
    ],
)
def test_the_two_of_a_pair_must_have_one_prompt(tokenizer, tmp_path, row):
    line = "'chosen' and 'rejected' must have the same messages before the first one of the assista"
    with pytest.raises(ValueError, match=line):
        read([row], tokenizer, tmp_path, pairs=True)


@pytest.mark.parametrize("prompt", [turns("q"), [{"role": "system", "content": "s"}, *turns("q")]])
def test_a_completion_that_repeats_its_prompt_is_the_whole_conversation(
    tokenizer, tmp_path, prompt
):
    reply = [{"role": "assistant", "content": "a"}]
    rows = [{"prompt": prompt, "completion": [*prompt, *reply]}]
    repeated = read(rows, tokenizer, tmp_path).train
    assert repeated == read([{"prompt": prompt, "completion": reply}], tokenizer, tmp_path).train
    pair = {
        "prompt": prompt,
        "chosen": [*prompt, *reply],
        "rejected": [*prompt, *turns("", "b")[1:]],
    }
    chosen, rejected = read([pair], tokenizer, tmp_path, pairs=True).train[0]
    assert chosen == repeated[0][0] and said(rejected, tokenizer) == ["b"]
    pair = {"prompt": turns("p"), "chosen": "x", "rejected": turns("r", "y")}
    with pytest.raises(ValueError, match="'rejected' must begin with a message of the assistant"):
        read([pair], tokenizer, tmp_path, pairs=True)
    rows[0]["completion"] = turns("another q", "a")
    with pytest.raises(
        ValueError, match=r"'completion' must begin with a message of the assistant"
    ):
        read(rows, tokenizer, tmp_path)


@pytest.mark.parametrize("second", ["q2", "another q2"])
def test_conversations_that_differ_later_are_a_pair(tokenizer, tmp_path, second):
    row = {"chosen": turns("q", "same", "q2", "x"), "rejected": turns("q", "same", second, "y")}
    chosen, rejected = read([row], tokenizer, tmp_path, pairs=True).train[0]
    assert said(chosen, tokenizer) == ["x"] and said(rejected, tokenizer) == ["y"]


# --- rows that are held out
# ------------------------------------------------------------------------------------------


def prompts_of(rows, tokenizer):
    return [tokenizer.decode(row[0].prompt) for row in rows]


def test_rows_of_one_prompt_are_held_out_together(tokenizer, tmp_path, caplog):
    rows = [{"messages": turns(f"{i % 5}?", f"{i}")} for i in range(15)]
    for held_out in (3, 6, 9):
        found = read(rows, tokenizer, tmp_path, held_out=held_out)
        assert len(found.validation) == held_out and len(found.train) == 15 - held_out
        trained_on = set(prompts_of(found.train, tokenizer))
        assert not trained_on.intersection(prompts_of(found.validation, tokenizer))
    assert not caplog.messages
    # Where groups do not fit, single rows make up the number, and are counted.
    found = read(rows, tokenizer, tmp_path, held_out=4)
    assert len(found.validation) == 4 and len(found.train) == 11
    assert caplog.messages == [
        "1 of 4 validation rows have the prompt of a row that is trained on, 0 are equal to one: "
        "the validation loss measures memory too"
    ]


def test_rows_with_prompts_of_their_own_are_held_out_as_ever(tokenizer, tmp_path):
    """Runs that began with an earlier version go on."""
    found = read(
        [{"messages": turns(f"{i}?", "x")} for i in range(10)], tokenizer, tmp_path, held_out=3
    )
    order = np.random.default_rng([0, 2**31 - 3]).permutation(10)
    asked = [text.split("user\n")[1][0] for text in prompts_of(found.validation, tokenizer)]
    assert asked == [str(i) for i in sorted(order[:3])]


def test_validation_rows_that_are_trained_on_are_counted(tokenizer, tmp_path, caplog):
    rows = [{"messages": turns("a?", text)} for text in ("x", "y")]
    other = write_jsonl(
        tmp_path / "other.jsonl", [*rows[:1], *({"messages": turns(q, "z")} for q in ("a?", "b?"))]
    )
    found = read(rows, tokenizer, tmp_path, validation=str(other))
    assert len(found.train) == 2 and len(found.validation) == 3
    (line,) = caplog.messages
    assert line.startswith(
        "2 of 3 validation rows have the prompt of a row that is trained on, 1 a"
    )
    caplog.clear()
    found = read(rows[:1] * 4, tokenizer, tmp_path, held_out=2)
    assert len(found.train) == len(found.validation) == 2
    assert caplog.messages[0].startswith(
        "2 of 2 validation rows have the prompt of a row that is t"
    )


# --- memory and time
# ------------------------------------------------------------------------------------------


def test_rows_are_arrays_and_come_one_by_one(tokenizer, tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns("a?", "b")}] * 3)
    rows = read_contents(ChatDataConfig(str(file), 128), "train", tokenizer, (END,))
    content, (text,) = next(rows)
    assert content == {"messages": turns("a?", "b")} and len(list(rows)) == 2
    assert text.ids.dtype == np.int32 and text.mask.dtype == bool
    assert text.ids.base is None and text.mask.base is None  # no part of a larger array


def test_the_order_of_an_epoch_is_drawn_once(tokenizer, tmp_path, monkeypatch):
    rows = read([{"messages": turns(f"{i}?", "x")} for i in range(8)], tokenizer, tmp_path).train
    drawn, draw = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or draw(seed))
    for step in range(8):
        batch_of_step(rows, step, seed=7, batch_size=3, length=64, pad_id=0)
    assert drawn == [[7, 0], [7, 1], [7, 2]]
