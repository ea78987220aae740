"""Tool calls are read by rule, and errors say what is wrong."""

import pytest

from entropy_rl.tasks.tools.calls import CallError, ToolCall, parse_calls


def call(body):
    return f"<tool_call>\n{body}\n</tool_call>"


ADD = '{"name": "calculator", "arguments": {"expression": "1 + 1"}}'
ADDED = ToolCall("calculator", {"expression": "1 + 1"})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("The answer is 2.", []),
        ("", []),
        (call(ADD), [ADDED]),
        (f"First {call(ADD)} and{call(ADD)}.", [ADDED, ADDED]),
        (f"<think>{call(ADD)}</think>2", []),
        (f"<think>hm</think>\n{call(ADD)}", [ADDED]),
        (call('{"name":"now"}'), [ToolCall("now", {})]),
        # Llama's form, which is the whole turn; and OpenAI's, whose arguments are JSON in a string.
        (' {"name": "f", "parameters": {"x": 1}}\n', [ToolCall("f", {"x": 1})]),
        (call('{"name": "f", "arguments": "{\\"x\\": 1}"}'), [ToolCall("f", {"x": 1})]),
        (
            call('{"name": "python", "arguments": {"code": "a = 1\nprint(\ta)"}}'),
            [ToolCall("python", {"code": "a = 1\nprint(\ta)"})],
        ),
        ('The set {"name": 1} is none.', []),
        ('{"other": 1}', []),
    ],
)
def test_calls_are_read_in_order(text, calls):
    assert parse_calls(text) == calls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (call("{"), "a call must be a JSON object, got Expecting property name"),
        (call("calculator(1)"), "a call must be a JSON object, got Expecting value"),
        (call("[1]"), "a call must be a JSON object$"),
        (call("[" * 100_000), "a call must be a JSON object"),
        (call('{"name": "f", "arguments": ' + "9" * 5000 + "}"), "that can be read"),
        (call('{"arguments": {}}'), 'a call must have a "name"'),
        (call('{"name": 3}'), 'a call must have a "name"'),
        (call('{"name": "f", "arguments": [1]}'), "the arguments must be a JSON object"),
        (call('{"name": "f", "arguments": "1 + 1"}'), "the arguments must be a JSON object"),
        (f"<tool_call>{ADD}", "a call must end with </tool_call>"),
        ('{"name": "f", "parameters": }', "a call must be a JSON object"),
    ],
)
def test_a_call_that_cannot_be_read_is_an_error_in_its_place(text, message):
    (error,) = parse_calls(text)
    assert isinstance(error, CallError)
    with pytest.raises(CallError, match=message):
        raise error


def test_one_broken_call_does_not_hide_the_others():
    first, second, third = parse_calls(call(ADD) + call("{") + call(ADD))
    assert first == third == ADDED and isinstance(second, CallError)
