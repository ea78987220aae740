"""Tools as an environment: calls are answered, wrong ones too, and the last turn is judged."""

import inspect
import json
import sys
import time

import pytest
from tools_for_tests import Lookup, shouting

from entropy_rl.config.common import EpisodesConfig
from entropy_rl.experience.encoding import encode_prompt
from entropy_rl.tasks import load_task, worker
from entropy_rl.tasks.environments import Done, Observation
from entropy_rl.tasks.environments.pool import Episode
from entropy_rl.tasks.task import AnsweringTask, Judgement, Verdict
from entropy_rl.tasks.tools.calls import CallError
from entropy_rl.tasks.tools.tool import tool_of

ARITHMETIC = {"name": "arithmetic", "args": {"counts": {"train": 4}, "examples": 1}}
FILE = "tools_for_tests"


def tools(*names, **args):
    args = {"task": ARITHMETIC, "tools": list(names) or ["calculator"]} | args
    return load_task("tools", args, EpisodesConfig(workers=1, deadline_s=2))


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.fixture(scope="module")
def environment():
    task = tools("calculator", f"{FILE}:repeat", f"{FILE}:hostile", max_characters=60)
    environment = task.environment
    environment.reset(task.problems("train")[0], 7)
    return environment


def counts(calls, errors=0):
    return {"tool_calls": float(calls), "tool_errors": float(errors)}


def test_calls_are_answered_in_order_as_messages_of_a_tool(environment):
    turn = call("calculator", expression="6 * 7") + call("repeat", text="ab")
    assert environment.step(turn) == Observation(["42", "abab"], role="tool", parts=counts(2))


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        ("<tool_call>calculator(1)</tool_call>", "a call must be a JSON object, got Expecting"),
        (call("calculater", expression="1"), "name: must be one of .* (did you mean 'calculator'"),
        (call("calculator"), "calculator.expression: must be given"),
        (call("calculator", expression=1), "calculator.expression: must be of type string"),
        (call("repeat", text="a", times=True), "repeat.times: must be of type integer"),
        (call("repeat", text="a", time=1), "repeat.time: must be one of .* (did you mean 'times'"),
        (call("calculator", expression="1 / 0"), "ValueError: the divisor must not be 0"),
        (call("hostile", action="raise"), "KeyError: 'nothing here'"),
    ],
)
def test_a_wrong_call_is_answered_by_an_error_and_counted(environment, turn, text):
    answer = environment.step(turn)
    start, _, end = text.partition(".* ")
    assert answer.text[0].startswith(f"error: {start}"[:30]) and answer.parts == counts(1, 1)
    whole = tools("calculator", f"{FILE}:repeat", f"{FILE}:hostile").environment
    whole.reset(environment._problem, 7)
    (shown,) = whole.step(turn).text
    assert shown.startswith(f"error: {start}") and end in shown


def test_an_object_that_is_called_and_a_partial_are_tools():
    called = tool_of(Lookup("gold"), "tools")
    assert (called.name, called.description) == ("Lookup", "Look a key up.")
    key = {"type": "string", "description": "What is looked up."}
    assert called.parameters == {"key": key} and called.required == ("key",)
    assert called.call({"key": "a"}, 0) == "a: gold"
    fixed = tool_of(shouting, "tools")  # repeat(text, times=3)
    assert (fixed.name, [*fixed.parameters]) == ("repeat", ["text"])
    assert fixed.call({"text": "a"}, 0) == "aaa"
    with pytest.raises(CallError, match=r"repeat\.times: must be text"):
        fixed.call({"text": "a", "times": 9}, 0)


def test_a_long_result_and_too_many_calls_are_cut(environment):
    answer = environment.step(call("hostile", action="x"))
    assert answer.text == [f"{'x' * 30}\n... (99940 characters left out)\n{'x' * 30}"]
    assert environment.step(call("hostile", action="surrogate")).text == ["\\ud800"]
    answer = environment.step(call("calculator", expression="1") * 1000)
    assert answer.text == ["1"] * 4 + ["error: a turn must have at most 4 calls"]
    assert answer.parts == counts(1000, 996)


def test_a_turn_without_a_call_is_judged_by_the_task(environment):
    problem = environment._problem
    assert environment.step(problem.answer.replace(", ", ". ")) == Done(
        Judgement(Verdict.CORRECT, None, counts(0))
    )
    assert environment.step("I do not know.") == Done(
        Judgement(Verdict.UNPARSABLE, None, counts(0))
    )


def test_the_template_or_the_system_message_describes_the_tools(tokenizer):
    in_template = tools().problems("train")[0]
    schema = in_template.chat_template_kwargs["tools"][0]["function"]
    assert schema["name"] == "calculator" and schema["parameters"]["required"] == ["expression"]
    with pytest.raises(
        ValueError, match=r"must have the variable 'tools' .*set task.args.describe"
    ):
        encode_prompt(in_template, tokenizer)
    messages = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]
    with_example = tools(describe="system", examples=[messages]).problems("train")[0].messages
    assert with_example[1:3] == (("user", "1?"), ("assistant", "1"))
    alone = tools(describe="examples", examples=[messages]).problems("train")[0]
    assert alone.messages == with_example[1:] and not alone.chat_template_kwargs
    in_system = tools(describe="system")
    problem = in_system.problems("train")[0]
    prompt = tokenizer.decode(encode_prompt(problem, tokenizer))
    assert json.dumps(in_template.chat_template_kwargs["tools"][0]) in prompt
    assert problem.messages[1:] == in_template.messages and problem.prompt in prompt
    in_system.environment.reset(problem, 0)
    answer = in_system.environment.step(call("calculator", expression="2") * 2)
    part = "<tool_response>\n2\n</tool_response>"
    assert answer == Observation(f"{part}\n{part}", parts=counts(2))


def test_a_tool_that_exits_or_hangs_ends_its_episode_only():
    task = tools(f"{FILE}:hostile")
    problem = task.problems("train")[0]

    def step(turn):
        return task.pool.step(0, Episode(problem, 7, (turn,))).result()

    assert step(call("hostile", action="exit")) == {"failed": "crash"}
    assert step(call("hostile", action="die")) == {"failed": "crash"}
    assert step(call("hostile", action="hang")) == {"failed": "timeout"}
    assert step(call("hostile", action="raise"))["text"] == ["error: KeyError: 'nothing here'"]
    task.close()


def test_a_script_sees_the_seed_of_the_episode_only():
    try:
        task = tools("python", max_calls=2)
    except ValueError as error:
        pytest.skip(str(error))
    problem, script = (
        task.problems("train")[0],
        call("python", code="import random; print(random.random())"),
    )

    def results(seed, turn=script):
        task.environment.reset(problem, seed)
        return task.environment.step(turn).text

    assert results(1) == results(1) != results(2)
    assert results(1, call("python", code="x = 6 * 7")) == ["(no output; use print)"]
    (shown,) = results(1, call("python", code="open('/etc/passwd')"))
    assert "PermissionError" in shown


def test_calls_that_wait_are_stopped_before_the_time_of_the_turn_ends(monkeypatch):
    task = tools(tools={"python": {"sandbox": False}}, max_calls=3)
    task.environment.reset(task.problems("train")[0], 7)
    monkeypatch.setattr(worker, "_item_ends", time.monotonic() + 2.5)
    wait = call("python", code="print(1, flush=True); import threading; threading.Event().wait()")
    first, *others = task.environment.step(wait * 3).text
    assert worker.remaining_s() > 1.5
    line = "error: stopped at the limit of the time for all calls"
    assert first == f"1\n{line}" and others == [line] * 2


def test_limits_of_calls_that_do_not_fit_a_turn_are_refused():
    python = {"python": {"sandbox": False, "cpu_s": 3}}
    line = (
        "task.episodes.deadline_s: must be >= 3.5, so that 4 calls (task.args.max_calls) of the "
        "tools fit, got 2"
    )
    with pytest.raises(ValueError) as error:
        tools(tools=python)
    assert str(error.value) == line
    tools(tools=python, max_calls=2)


@pytest.mark.parametrize("sandbox", [True, False])
def test_code_is_refused_where_the_system_is_not_linux(monkeypatch, sandbox):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(
        ValueError, match=r"^task\.args\.tools\.python: must be used on Linux, got 'd"
    ):
        tools(tools={"python": {"sandbox": sandbox}})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"tools": ["calculater"]}, r"task.args.tools: must be one of .*did you mean 'calculator'"),
        ({"tools": []}, r"task.args.tools: must be at least one tool, got \[\]"),
        ({"tools": {"calculator": {"digits": 3}}}, r"tools.calculator.digits: must be absent"),
        ({"tools": {"python": {"sandbx": False}}}, r"python.sandbx: must be one of .*'sandbox'"),
        ({"tools": {"python": {"cpu_s": 0}}}, r"task.args.tools.python.cpu_s: must be >= 1"),
        ({"tools": {"calculator": 3}}, "tools.calculator: must be a mapping of settings, got 3"),
        ({"tools": [f"{FILE}:none"]}, "task.args.tools: cannot import"),
        ({"tools": [f"{FILE}:undocumented"]}, "must be a function with a docstring"),
        *[
            (
                {"tools": [f"{FILE}:{name}"]},
                f"^task.args.tools: must be a function that returns its result, got {shown}, which",
            )
            for name, shown in (("waits",) * 2, ("yields",) * 2, ("async_lookup", "Waits"))
        ],
        ({"tools": [f"{FILE}:Lookup"]}, "must be a function with a docstring, got Lookup"),
        ({"tools": ["__main__:f"]}, "^task.args.tools: must be in a module of its own file, got"),
        (
            {"task": {"name": "__main__:Task"}},
            "^task.args.task.name: must be in a module of its own file, got '__main__:Task'",
        ),
        ({"tools": [f"{FILE}:listed"]}, "must have parameters of type str, int, float or bool"),
        ({"task": {"name": "arithmetik"}}, r"task.args.task.name: must be one of"),
        ({"task": {"args": {}}}, r"task.args.task: must be a mapping \{name"),
        ({"task": {"name": "arithmetic", "arg": {}}}, "task.args.task.arg: must be one of"),
        (
            {"task": {"name": "arithmetic", "args": {"examples": 99}}},
            "task.args.task.args.examples: must be an integer in",
        ),
        ({"task": {"name": "countdown_turns"}}, "task.args.task.name: must be a task of a single"),
        ({"examples": ["a"]}, r"task.args.examples\[0\]: must be a list of messages, got 'a'"),
        ({"examples": [[{"role": "user"}]]}, r"examples\[0\]\[0\]: must be a message \{role"),
        ({"describe": "examples"}, "task.args.examples: must be given, as nothing"),
        ({"max_calls": 0}, "task.args.max_calls: must be >= 1, got 0"),
        ({"max_characters": 7000}, "task.args.max_characters: must be from 20 to 6250, for 4"),
        ({"describe": "both"}, "task.args.describe: must be one of template"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(args, message):
    with pytest.raises(ValueError, match=message) as error:
        tools(**args)
    assert "\n" not in str(error.value)


def test_optional_methods_of_the_task_are_found_as_protocols_find_them():
    pytest.importorskip("reasoning_gym", reason="needs the extra environments")
    task = tools(task={"name": "reasoning_gym", "args": {"datasets": "gcd", "answer": "number"}})
    assert inspect.getattr_static(task, "final_answers")
    assert task.final_answers(["so 4"]) == ["4"] and isinstance(task, AnsweringTask)
    with pytest.raises(AttributeError):
        inspect.getattr_static(task, "probe")


def test_a_task_without_chat_prompts_is_refused():
    with pytest.raises(ValueError, match=r"task.args.task: must be a task of chat"):
        tools(task={"name": "countdown"}).problems("train")


def test_a_kernel_without_isolation_is_refused_unless_the_sandbox_is_off(monkeypatch):
    def fail(box):
        if box.isolate:
            raise RuntimeError("Landlock: Function not implemented")

    monkeypatch.setattr("entropy_rl.tasks.tools.sandbox.Sandbox.check", fail)
    line = (
        "task.args.tools.python.sandbox: must be off where the kernel cannot isolate a process "
        r"\(Landlock: Function not implemented\), got on"
    )
    with pytest.raises(ValueError, match=line):
        tools("python")
    tools(tools={"python": {"sandbox": False, "cpu_s": 1}})
