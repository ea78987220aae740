"""What the assistant says in a conversation, token by token, on the templates of real models."""

import copy

import numpy as np
import pytest
from hf_fixtures import CHAT_TEMPLATE
from math_files import write_jsonl, write_parquet

from entropy_rl.config.sft import ChatDataConfig
from entropy_rl.experience.chat_data import batch_of_step, make_rows, read_chats
from entropy_rl.experience.chats import _Encoded, encode_chat, encode_completion
from entropy_rl.experience.encoding import render

END = 383  # <|im_end|>
# The templates of Qwen2.5, SmolLM2, Llama 3 and Qwen3 as far as texts are concerned, with the
# special tokens of the test's tokenizer.
QWEN2_5 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or "
    "(message.role == 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SMOLLM2 = CHAT_TEMPLATE.replace(
    "You are a helpful assistant.", "You are a helpful AI assistant named SmolLM"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|im_start|>' + message['role'] + '<|endoftext|>\n\n' "
    "+ message['content'] | trim + '<|im_end|>' %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|endoftext|>\n\n' }}{% endif %}"
)
QWEN3 = (
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and not loop.last %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
TAGGED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + '\n' }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "qwen2.5": QWEN2_5,
    "smollm2": SMOLLM2,
    "llama3": LLAMA3,
    "qwen3": QWEN3,
    "tagged": TAGGED,
}
CHAT = (
    ("system", "Be brief."),
    ("user", "What is 3 + 5?"),
    ("assistant", "The answer is 8."),
    ("user", "And 7 * 3?"),
    ("assistant", "Let me think.\nIt is 21."),
    ("user", "Thanks"),
)


def targets(encoded, tokenizer):
    """The texts of contiguous targets."""
    texts, mask = [], [False, *encoded.mask, False]
    edges = np.flatnonzero(np.diff(np.array(mask, int)))
    for first, last in edges.reshape(-1, 2):
        texts.append(tokenizer.decode(encoded.ids[first:last]))
    return texts


# --- which tokens are targets
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:], CHAT[1:3]], ids=["system", "two", "one"])
def test_the_targets_are_the_turns_of_the_assistant_with_their_end(tokenizer, name, messages):
    tokenizer.chat_template = TEMPLATES[name]
    encoded = encode_chat(messages, tokenizer, (END,))
    said = [f"{text}<|im_end|>" for role, text in messages if role == "assistant"]
    assert targets(encoded, tokenizer) == said
    assert encoded.mask[-1] and encoded.ids[-1] == END
    # What is before the first target is the prompt exactly as it is sampled from.
    first = next(i for i, (role, _) in enumerate(messages) if role == "assistant")
    prompt = [{"role": role, "content": text} for role, text in messages[:first]]
    shown = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert encoded.prompt.tolist() == tokenizer.encode(shown)


def test_the_mask_of_a_template_is_that_of_the_rule_of_prefixes(tokenizer):
    tokenizer.chat_template = TAGGED
    marked = encode_chat(CHAT, tokenizer, (END,))
    tokenizer.chat_template = TAGGED.replace("{% generation %}", "").replace(
        "{% endgeneration %}", ""
    )
    assert encode_chat(CHAT, tokenizer, (END,)) == marked


@pytest.mark.parametrize("name", ["chatml", "tagged"])
def test_turns_can_be_the_last_one_or_those_of_a_completion(tokenizer, name):
    tokenizer.chat_template = TEMPLATES[name]
    whole = encode_chat(CHAT, tokenizer, (END,))
    for options in ({"last_turn": True}, {"start": 3}):
        last = encode_chat(CHAT, tokenizer, (END,), **options)
        assert (last.ids == whole.ids).all() and targets(last, tokenizer) == [
            f"{CHAT[4][1]}<|im_end|>"
        ]


def test_a_template_that_drops_earlier_thoughts_is_trained_on_its_last_turn_alone(tokenizer):
    tokenizer.chat_template = QWEN3
    thought = "<think>\nWell.\n</think>\n\n"
    chat = tuple((r, thought + t if r == "assistant" else t) for r, t in CHAT)
    with pytest.raises(ValueError) as error:
        encode_chat(chat, tokenizer, (END,))
    assert str(error.value) == (
        "the chat template: must show the turn of message 2 in the whole conversation as it does "
        "at the end of one, got other tokens; set data.turns to last if it changes earlier turns"
    )
    last = encode_chat(chat, tokenizer, (END,), last_turn=True)
    assert targets(last, tokenizer) == [f"{chat[4][1]}<|im_end|>"]
    # Without thinking, the opened turn has an empty thought, which the answer lacks.
    with pytest.raises(ValueError, match="must show the opened turn of message 4"):
        encode_chat(CHAT, tokenizer, (END,), last_turn=True, kwargs={"enable_thinking": False})


def test_marks_must_not_hide_what_a_template_changes(tokenizer):
    """As without them: a turn without its thought is not what was said."""
    drops = "{% set content = m.content.split('</think>')[-1] if not loop.last else m.content %}"
    tokenizer.chat_template = (
        TAGGED.replace("message", "m")
        .replace("ms", "messages")
        .replace("%}{{ '<|im_start|>'", f"%}}{drops}{{{{ '<|im_start|>'", 1)
        .replace("m['content']", "content")
    )
    thought = "<think>Well.</think>\n"
    chat = tuple((r, thought + t if r == "assistant" else t) for r, t in CHAT[:-1])
    with pytest.raises(ValueError, match=r"must show the text of message 2 .* set data\.turns to "):
        encode_chat(chat, tokenizer, (END,))
    last = encode_chat(chat, tokenizer, (END,), last_turn=True)
    assert targets(last, tokenizer) == [f"{chat[4][1]}<|im_end|>"]


@pytest.mark.parametrize("space", ["", " "])
def test_a_marked_turn_begins_with_a_token_as_a_prompt_ends_with_one(tokenizer, space):
    """A mark after "assistant: " would train " the" where sampling goes on from " "."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':SPACE' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:SPACE' }}{% endif %}"
    ).replace("SPACE", space)
    chat = (("user", "What?"), ("assistant", "the answer"))
    if space:
        with pytest.raises(ValueError, match="must show the opened turn of message 1 in the whole"):
            encode_chat(chat, tokenizer, (END,))
    else:
        assert targets(encode_chat(chat, tokenizer, (END,)), tokenizer) == ["the answer<|im_end|>"]


def test_a_mark_may_include_the_header_of_the_turn(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        "{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoded = encode_chat(CHAT[:3], tokenizer, (END,))
    assert targets(encoded, tokenizer) == [f"<|im_start|>assistant\n{CHAT[2][1]}<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (CHAT_TEMPLATE.replace("+ '<|im_end|>' + '\n'", "+ '\n'"),
         "the chat template must end the turn of the assistant with an end-of-sequence token of "
         "the model ('<|im_end|>'), got "),
        (TAGGED.replace("+ '<|im_end|>\n' }}{% endgen", "}}{% endgen"),
         "the chat template must end the turn of the assistant with an end-of-sequence token"),
        ("{% for m in messages %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
         "{{ '\n' }}{% endfor %}",
         "the chat template: must mark each of the 1 turns of the assistant, got 2 marks"),
        ("{{ raise_exception('no') }}", "the chat template: no"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_mark_the_assistant_is_refused(tokenizer, template, line):
    tokenizer.chat_template = template
    with pytest.raises(ValueError) as error:
        encode_chat((("user", "What?"), ("assistant", "The answer")), tokenizer, (END,))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_special_tokens_in_a_message_are_refused_unless_they_are_asked_for(tokenizer):
    chat = (("user", "What?"), ("assistant", "The <|im_start|> answer"))
    with pytest.raises(ValueError, match=r"^message 1 of the assistant must have no special token"):
        encode_chat(chat, tokenizer, (END,))
    encoded = encode_chat(chat, tokenizer, (END,), allow_special=True)
    assert 382 in encoded.ids[encoded.mask]


def test_a_conversation_must_begin_with_the_user_or_the_system(tokenizer):
    chat = (("assistant", "Hello."), *CHAT[1:3])
    with pytest.raises(ValueError, match=r"^must begin with a message of the user or the system, "):
        encode_chat(chat, tokenizer, (END,))
    # A greeting that is no target is a part of the prompt.
    for options in ({"last_turn": True}, {"masked": (0,)}):
        encoded = encode_chat(chat, tokenizer, (END,), **options)
        assert targets(encoded, tokenizer) == [f"{CHAT[2][1]}<|im_end|>"]


@pytest.mark.parametrize("template", [QWEN2_5, INST], ids=["qwen2.5", "no special tokens"])
def test_the_tokens_of_beginnings_are_those_of_their_whole_texts(tokenizer, template):
    """Special tokens split a text, so that a beginning need not be encoded again as a whole."""
    tokenizer.chat_template = template
    messages = [("user", "Hi <|im_end|>"), ("assistant", " <|im_start|>\n\n"), ("user", "\n")] * 3
    text = render(tokenizer, messages, {}, open_turn=False)
    whole = _Encoded(text, tokenizer.encode(text), tokenizer)
    for end in range(len(text) + 1):
        part = tokenizer.encode(text[:end])
        expected = len(part) if whole.ids[: len(part)] == part else None
        assert whole.tokens_of(text[:end]) == expected
    assert whole.tokens_of(text + "x") is None


def test_a_long_conversation_is_tokenized_once(tokenizer, monkeypatch):
    """Encoding all beginnings would take the square of the turns."""
    encoded, encode = [], tokenizer.encode
    note = lambda text, **options: encoded.append(len(text)) or encode(text, **options)  # noqa: E731
    monkeypatch.setattr(tokenizer, "encode", note)
    chat = [("user", "What is 3 + 5?"), ("assistant", "The answer is 8.")] * 40
    encode_chat(chat, tokenizer, (END,))
    text = render(tokenizer, chat, {}, open_turn=False)
    assert encoded[0] == len(text) and sum(encoded) < 2 * len(text)


# --- texts
# ------------------------------------------------------------------------------------------


def test_a_completion_is_its_tokens_behind_the_prompt_with_one_end(tokenizer):
    for completion in (" The answer is 8.", " The answer is 8.<|im_end|>"):
        encoded = encode_completion("What is 3 + 5?", completion, tokenizer, (END, 381))
        assert targets(encoded, tokenizer) == [" The answer is 8.<|im_end|>"]
    with pytest.raises(ValueError, match="move a space at the end of the prompt into the compl"):
        encode_completion("What is ", "the answer", tokenizer, (END,))
    with pytest.raises(ValueError, match=r"got other ones where 'What i' meets 's it\?'$"):
        encode_completion("What i", "s it?", tokenizer, (END,))


# --- rows
# ------------------------------------------------------------------------------------------


def chat_row(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def read(rows, tokenizer, path, pairs=False, write=write_jsonl, **options):
    file = write(path / "rows.jsonl" if write is write_jsonl else path / "rows.parquet", rows)
    config = ChatDataConfig(str(file), **{"max_tokens": 128} | options)
    return read_chats(config, tokenizer, (END,), pairs, seed=0)


ASKED, SAID, OTHER = "What is 3 + 5?", "It is 8.", "It is 7."


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": chat_row(ASKED, SAID)},
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]},
        {"prompt": chat_row(ASKED, SAID)[:1], "completion": chat_row(ASKED, SAID)[1:]},
        {"prompt": chat_row(ASKED, SAID)[:1], "completion": SAID},
    ],
)
def test_the_forms_of_a_conversation_are_the_same_row(tokenizer, tmp_path, row, write):
    found = read([row], tokenizer, tmp_path, write=write)
    expected = encode_chat((("user", ASKED), ("assistant", SAID)), tokenizer, (END,))
    assert found.train == [(expected,)] and found.validation == []
    assert found.length % 8 == 0 and 0 <= found.length - len(expected.ids) < 8


def test_texts_are_a_conversation_if_the_config_says_so(tokenizer, tmp_path):
    row = {"prompt": ASKED, "completion": f" {SAID}"}
    (text,) = read([row], tokenizer, tmp_path).train[0]
    assert tokenizer.decode(text.ids) == f"{ASKED} {SAID}<|im_end|>"
    (chat,) = read([{"prompt": ASKED, "completion": SAID}], tokenizer, tmp_path, chat=True).train[0]
    assert chat == encode_chat((("user", ASKED), ("assistant", SAID)), tokenizer, (END,))
    with pytest.raises(ValueError, match=r"data\.chat: must be false where the prompts"):
        read([{"messages": chat_row(ASKED, SAID)}], tokenizer, tmp_path, chat=True)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": chat_row(ASKED, SAID), "rejected": chat_row(ASKED, OTHER)},
        {"chosen": chat_row(ASKED, SAID), "rejected": chat_row(ASKED, OTHER)},
        {"prompt": ASKED, "chosen": chat_row("", SAID)[1:], "rejected": chat_row("", OTHER)[1:]},
        {"prompt": chat_row(ASKED, "")[:1], "chosen": SAID, "rejected": OTHER},
    ],
)
def test_the_forms_of_a_pair_are_the_same_two_rows(tokenizer, tmp_path, row):
    found = read([row], tokenizer, tmp_path, pairs=True)
    expected = [
        encode_chat((("user", ASKED), ("assistant", text)), tokenizer, (END,))
        for text in (SAID, OTHER)
    ]
    assert found.train == [tuple(expected)]


@pytest.mark.parametrize(
    ("row", "pairs", "line"),
    [
        ({"messages": chat_row(ASKED, SAID)[:1]}, False,
         "must have a message of the assistant, got the roles user"),
        ({"text": "a"}, False,
         "must have 'messages', or 'prompt' and 'completion', got the fields 'text'"),
        ({"prompt": "a"}, False, "must have 'messages', or 'prompt' and 'completion', got the f"),
        ({"messages": "a"}, False, "'messages': must be a list of messages, got 'a'"),
        ({"messages": chat_row(ASKED, "")}, False, "'messages[1]': must have a non-empty text as "),
        ({"prompt": " ", "completion": "a"}, False, "'prompt': must be a non-empty text, got ' '"),
        ({"prompt": ASKED, "completion": 8}, False, "'completion': must be a non-empty text, got"),
        ({"messages": chat_row(ASKED, SAID)}, True,
         "must have 'prompt', 'chosen' and 'rejected', got the fields 'messages'"),
        ({"prompt": ASKED, "chosen": "a", "rejected": "a"}, True,
         "'chosen' and 'rejected' must differ, got equal ones"),
        ({"chosen": "a", "rejected": "b"}, True, "must have 'prompt', 'chosen' and 'rejected', go"),
        ({"prompt": "b", "chosen": chat_row("a", "b"), "rejected": chat_row("a", "c")}, True,
         "'prompt' must be the last message of the user that 'chosen' and 'rejected' have in"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_trained_on_is_one_line_with_its_place(
    tokenizer, tmp_path, row, pairs, line
):
    with pytest.raises(ValueError) as error:
        read([row], tokenizer, tmp_path, pairs)
    assert str(error.value).startswith(f"{tmp_path}/rows.jsonl:1: {line}")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^data.train: must have a row that can be used, got 1; "):
        read([row], tokenizer, tmp_path, pairs, invalid_rows="skip")


def test_rows_that_are_too_long_are_left_out_and_counted(tokenizer, tmp_path, caplog):
    rows = [{"messages": chat_row(ASKED, text)} for text in (SAID, SAID * 40)]
    found = read(rows, tokenizer, tmp_path)
    assert len(found.train) == 1
    line = "1 of 2 rows are left out: they have more tokens than data.max_tokens=128"
    assert f"data.train: {line}" in caplog.text
    with pytest.raises(ValueError, match=r"^data.train: must have a row that can be used, got 2; "):
        read(rows, tokenizer, tmp_path, max_tokens=2)


def test_a_tokenizer_without_a_template_and_unknown_variables_are_refused(tokenizer, tmp_path):
    rows = [{"messages": chat_row(ASKED, SAID)}]
    with pytest.raises(ValueError, match=r"^data.chat_template_kwargs.x: must be absent, as the"):
        read(rows, tokenizer, tmp_path, chat_template_kwargs={"x": 1})
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with pytest.raises(ValueError, match="must have a chat template for messages, got none"):
        read(rows, plain, tmp_path)


@pytest.mark.parametrize("unused", [{"turns": "last"}, {"special_tokens": True}])
def test_settings_of_messages_are_refused_where_all_rows_are_texts(tokenizer, tmp_path, unused):
    row = {"prompt": ASKED, "completion": SAID}
    (name,) = unused
    with pytest.raises(ValueError, match=rf"^data\.{name}: must be .*no row has messages, got"):
        read([row], tokenizer, tmp_path, **unused)
    assert read([row, {"messages": chat_row(ASKED, SAID)}], tokenizer, tmp_path, **unused).train
    assert read([row], tokenizer, tmp_path, chat=True, **unused).train


# --- batches
# ------------------------------------------------------------------------------------------


@pytest.fixture
def numbered(tokenizer, tmp_path):
    rows = [{"messages": chat_row(f"{i}?", f"{i}")} for i in range(10)]
    return read(rows, tokenizer, tmp_path, held_out=3)


def test_held_out_rows_are_not_trained_on(numbered):
    assert len(numbered.train) == 7
    assert len({*numbered.train, *numbered.validation}) == 10


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(numbered):
    def batch(step, size):
        options = dict(seed=1, batch_size=size, length=numbered.length, pad_id=0)
        return batch_of_step(numbered.train, step, **options)

    seven = [batch(step, 7).ids for step in range(3)]
    assert all(len({row.tobytes() for row in ids}) == 7 for ids in seven)
    assert (seven[0] != seven[1]).any() and set(map(bytes, seven[0])) == set(map(bytes, seven[1]))
    # The order does not depend on the size of a batch.
    three = np.concatenate([batch(step, 3).ids for step in range(7)])
    np.testing.assert_array_equal(three, np.concatenate(seven))


def test_rows_are_padded_to_a_batch_by_rows_without_weights(numbered):
    batch = make_rows(numbered.train[:2], 4, numbered.length, pad_id=5)
    assert batch.ids.shape == batch.weights.shape == (4, numbered.length)
    assert batch.weights[:2].any(-1).all() and not batch.weights[2:].any()
    assert (batch.ids[2:] == 5).all()
