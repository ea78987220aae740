"""`Tools`: a task whose problems are solved with tools, as an environment."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from entropy_rl.config.checks import require
from entropy_rl.config.common import EpisodesConfig
from entropy_rl.config.registry import call_factory, import_object, require_module
from entropy_rl.config.values import unknown
from entropy_rl.tasks.environments.environment import Done, Observation
from entropy_rl.tasks.environments.pool import CLOCK_LIMIT
from entropy_rl.tasks.judging import as_judgements, correct_at
from entropy_rl.tasks.nested import load_nested, read_dialogues
from entropy_rl.tasks.task import Problem
from entropy_rl.tasks.tools.calculator import calculator
from entropy_rl.tasks.tools.calls import CallError, parse_calls
from entropy_rl.tasks.tools.python import python_tool
from entropy_rl.tasks.tools.sandbox import RESERVE_S
from entropy_rl.tasks.tools.tool import Tool, call_tool, tool_of

# Functions of the settings of a tool.
_BUILT_IN: Mapping[str, Callable[..., Tool]] = {
    "calculator": lambda: tool_of(calculator, "calculator"),
    "python": python_tool,
}

_MAX_CHARACTERS = 25_000  # of all results of a turn; environments have a limit, too

# As Qwen2.5's chat template has it.
_SYSTEM = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class Tools:
    """The problems of another task, in whose episodes the model may call tools.

    A turn with tool calls is answered by their results; one without ends the episode, and is judged
    by the task as the completion. A call that cannot be read or made, or whose tool raises an
    exception, is answered by an error text. The parts `tool_calls` and `tool_errors` of a judgement
    count calls and errors.

    Args:
      task: The task, {name: ..., args: {...}}; its prompts are chat messages.
      tools: Names, or a mapping from names to settings: `calculator`; `python`, with the settings
        of `python_tool`; or `module:function` for a tool of yours.
      describe: What describes the tools: `template`, the chat template, which needs the variable
        `tools`; `system`, a system message in Qwen2.5's words; or `examples`, the worked examples
        alone. Without the template, results are user messages in <tool_response> tags.
      examples: Worked examples before the messages of the task: a list of dialogues, each a list of
        messages {role: ..., content: ...}.
      max_calls: Calls of a turn that are made; further ones are answered by one error.
      max_characters: Of a result; what is in the middle of a longer one is left out.

    Raises:
      ValueError: There is no such task or tool, or a setting is wrong.
    """

    def __init__(
        self,
        task: dict[str, Any],
        tools: list[str] | dict[str, Any],
        describe: Literal["template", "system", "examples"] = "template",
        examples: list[Any] | None = None,
        max_calls: int = 4,
        max_characters: int = 2000,
    ):
        require(max_calls >= 1, "task.args.max_calls", max_calls, ">= 1")
        most = _MAX_CHARACTERS // max_calls
        require(
            20 <= max_characters <= most,
            "task.args.max_characters", max_characters, f"from 20 to {most}, for {max_calls} calls",
        )  # fmt: skip
        self._tools = _build(tools)
        self._examples = read_dialogues("task.args.examples", examples or [])
        self._task = load_nested("task.args.task", task, in_workers=True)
        self.correct_at = correct_at(self._task)
        require(
            describe != "examples" or bool(examples),
            "task.args.examples", examples, "given, as nothing else describes the tools",
        )  # fmt: skip
        self._describe, self._max_calls = describe, max_calls
        self._max_characters = max_characters

    def check_limits(self, limits: EpisodesConfig) -> None:
        """Check that the calls of a turn can take the time that their tools give them.

        Raises:
          ValueError: The step would end before.
        """
        seconds = self._max_calls * max(tool.seconds for tool in self._tools.values())
        least = (seconds + RESERVE_S) / CLOCK_LIMIT if seconds else 0.0
        require(
            limits.deadline_s >= least,
            "task.episodes.deadline_s", limits.deadline_s,
            f">= {least:g}, so that {self._max_calls} calls (task.args.max_calls) of the tools fit",
        )  # fmt: skip

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of the task, whose prompts describe the tools.

        Raises:
          ValueError: A problem has no chat prompt, or the task has no such split.
        """
        return [self._with_tools(problem) for problem in self._task.problems(split)]

    def final_answers(self, completions: Sequence[str]) -> list[str | None]:
        """The final answers, where the task knows them."""
        found = getattr(self._task, "final_answers", None)
        return [None] * len(completions) if found is None else found(completions)

    def reset(self, problem: Problem, seed: int) -> None:
        """Begin an episode; code that is run draws its random numbers from the seed."""
        self._problem, self._seed = problem, seed

    def step(self, action: str) -> Observation | Done:
        """Make the calls of a turn, or judge it."""
        calls = parse_calls(action)
        if not calls:
            judged = self._task.judge([self._problem], [action])
            where = f"{type(self._task).__name__}.judge"
            (judgement,) = as_judgements(where, [self._problem], judged, self.correct_at)
            if judgement.verdict.is_judgement:
                parts = {"tool_calls": 0.0, "tool_errors": 0.0, **judgement.parts}
                judgement = dataclasses.replace(judgement, parts=parts)
            return Done(judgement)
        results, errors = [], max(0, len(calls) - self._max_calls)
        for call in calls[: self._max_calls]:
            try:
                results.append(call_tool(self._tools, call, self._seed))
            except CallError as error:
                errors += 1
                results.append(f"error: {error}")
        if len(calls) > self._max_calls:
            results.append(f"error: a turn must have at most {self._max_calls} calls")
        counts = {"tool_calls": float(len(calls)), "tool_errors": float(errors)}
        return self._answer([self._cut(result) for result in results], counts)

    def _answer(self, results: list[str], counts: dict[str, float]) -> Observation:
        if self._describe == "template":
            return Observation(results, role="tool", parts=counts)
        text = "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)
        return Observation(text, parts=counts)

    def _cut(self, result: str) -> str:
        # A lone surrogate cannot be encoded.
        result = result.encode(errors="backslashreplace").decode()
        if len(result) <= self._max_characters:
            return result
        half = self._max_characters // 2
        left_out = len(result) - 2 * half
        return f"{result[:half]}\n... ({left_out} characters left out)\n{result[-half:]}"

    def _with_tools(self, problem: Problem) -> Problem:
        require(
            problem.chat,
            "task.args.task",
            problem.prompt,
            "a task of chat messages, as it describes tools to a chat model",
        )
        schemas = [tool.schema for tool in self._tools.values()]
        has_system = bool(problem.messages) and problem.messages[0][0] == "system"
        system, rest = problem.messages[:has_system], problem.messages[has_system:]
        kwargs = problem.chat_template_kwargs
        if self._describe == "system":
            text = _SYSTEM.format(tools="\n".join(map(json.dumps, schemas)))
            system = (("system", "\n\n".join([*(own for _, own in system), text])),)
        elif self._describe == "template":
            kwargs = {**kwargs, "tools": schemas}
        return dataclasses.replace(
            problem, messages=(*system, *self._examples, *rest), chat_template_kwargs=kwargs
        )


def _build(tools: list[str] | dict[str, Any]) -> dict[str, Tool]:
    path = "task.args.tools"
    require(bool(tools), path, tools, "at least one tool")
    settings = tools if isinstance(tools, Mapping) else dict.fromkeys(tools)
    built: dict[str, Tool] = {}
    for name, given in settings.items():
        where = f"{path}.{name}"
        require(isinstance(given, Mapping | None), where, given, "a mapping of settings")
        if name in _BUILT_IN:
            tool = call_factory(_BUILT_IN[name], given or {}, where)
        elif ":" in str(name):
            require(not given, where, given, "null for a function of yours")
            require_module(path, name)
            tool = tool_of(import_object(path, name), path)
        else:
            raise ValueError(unknown(path, name, [*_BUILT_IN, "module:function"]))
        require(tool.name not in built, path, tool.name, "a list of tools of different names")
        built[tool.name] = tool
    return built
