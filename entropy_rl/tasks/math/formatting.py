"""Prompts of the math task: the instruction on the answer format, and chat messages."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.config.checks import require, shown
from entropy_rl.tasks.data_files.fields import Fields
from entropy_rl.tasks.math.catalog import DAPO_PROMPT
from entropy_rl.tasks.math.examples import Example
from entropy_rl.tasks.task import Problem

logger = logging.getLogger(__name__)

PROMPTS = {
    # Qwen2.5-Math
    "boxed": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "dapo": DAPO_PROMPT,
}
# The answer formats that a built-in verifier reads; a prompt must ask for one of them.
READS = {"math-verify": ("\\boxed",), "dapo": ("Answer:", "\\boxed")}
DAPO_FORMAT = "Answer: $Answer"  # what DAPO's prompts ask for


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """Makes prompts from examples; the fields are arguments of `Math`.

    Raises:
      ValueError: If the prompt has no place for the problem, or asks for what the verifier does not
        read; or a setting of chat prompts is given for others.
    """

    prompt: str | None
    verifier: str
    chat: bool | None
    system: str | None
    chat_template_kwargs: Mapping[str, Any]
    special_tokens: bool

    def __post_init__(self):
        if "{problem}" not in self.template:
            raise ValueError(
                f"task.args.prompt: must be one of {', '.join(PROMPTS)}, or a text that contains "
                f"{{problem}}, got {self.prompt!r}"
            )
        fitting = [
            name for name, texts in READS.items() if any(text in self.template for text in texts)
        ]
        if self.verifier in READS and self.verifier not in fitting:
            raise ValueError(
                f"task.args.verifier: must be one of {', '.join([*fitting, 'module:function'])} "
                f"with the prompt {self.prompt!r:.60}, got {self.verifier!r}, which reads "
                f"{' or '.join(READS[self.verifier])}"
            )
        system, kwargs = self.system, self.chat_template_kwargs
        is_text = system is None or system.strip() != ""
        require(is_text, "task.args.system", system, "null or a non-empty text")
        try:
            json.dumps(kwargs)
        except TypeError as error:
            raise ValueError(
                f"task.args.chat_template_kwargs: must be values of JSON, got {shown(kwargs)} "
                f"({error})"
            ) from None
        for name, value in self._only_of_chat():
            allowed = "null or empty where task.args.chat is false"
            require(self.chat is not False, f"task.args.{name}", value, allowed)

    @property
    def template(self) -> str:
        """The text that contains `{problem}`."""
        prompt = "boxed" if self.prompt is None else self.prompt
        return PROMPTS.get(prompt, prompt)

    def _only_of_chat(self) -> list[tuple[str, Any]]:
        given = [("system", self.system), ("chat_template_kwargs", dict(self.chat_template_kwargs))]
        return [(name, value) for name, value in given if value]

    def problems(self, title: str, rows: Sequence[Example], fields: Fields | None) -> list[Problem]:
        """Make the problems of a source.

        Args:
          title: Name of the source, for errors.
          rows: Its examples.
          fields: Their fields; None for a prepared set.

        Raises:
          ValueError: If a setting does not fit to the data.
        """
        is_prompt = fields is not None and fields.problem.rpartition(".")[2] == "prompt"
        made = [self._problem(title, row, row.chat or is_prompt) for row in rows]
        if self.prompt is None and (whole := [row for row in rows if row.chat or is_prompt]):
            extended = sum(problem.template != "{problem}" for problem in made)
            if extended:
                logger.warning(
                    "%s: %d of %d prompts do not ask for %s; `%s` of task.args.prompt is added",
                    title, extended, len(whole), " or ".join(READS.get(self.verifier, ())), "boxed",
                )  # fmt: skip
        return made

    def _problem(self, title: str, row: Example, is_prompt: bool) -> Problem:
        chat = row.chat if self.chat is None else self.chat
        where = f"{title}: problem {row.index}"
        if row.chat and not chat:
            raise ValueError(
                f"task.args.chat: must be true or null for lists of messages, as in {where}, "
                "got false"
            )
        for name, value in () if chat else self._only_of_chat():
            allowed = f"null or empty for a text without task.args.chat, as in {where}"
            require(False, f"task.args.{name}", value, allowed)
        messages = row.before
        if self.system is not None:
            if messages and messages[0][0] == "system":
                raise ValueError(
                    f"task.args.system: must be null where the data have a system message, as in "
                    f"{where}, got {self.system!r:.60}"
                )
            messages = (("system", self.system), *messages)
        template = self.template
        if self.prompt is None and is_prompt and self._is_complete(where, row, messages):
            template = "{problem}"
        return Problem(
            id=row.index,
            prompt=template.replace("{problem}", row.problem),
            answer=row.answer,
            chat=chat,
            template=template,
            special_tokens=self.special_tokens,
            messages=messages,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _is_complete(self, where: str, row: Example, messages: Sequence[tuple[str, str]]) -> bool:
        """Whether a prompt of the data asks for an answer that the verifier reads."""
        if self.verifier not in READS:
            return True
        texts = [content for role, content in messages if role != "assistant"]
        text = "\n".join([*texts, row.problem])
        if any(mark in text for mark in READS[self.verifier]):
            return True
        if DAPO_FORMAT in text:
            raise ValueError(
                f"task.args.verifier: must be dapo or module:function where the data ask for "
                f"{DAPO_FORMAT!r}, as in {where}, got {self.verifier!r}"
            )
        return False
