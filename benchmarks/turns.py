"""The toy environment of the work `episodes`, for each system in its own form, and the tokenizer.

A turn is answered by the same words whatever it says, until the last one; the reward is 1 if the
turns that the environment has seen have an odd number of words. Words are tokens, so that every
system has the same tokens of prompts and observations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import workload

TOOL = "act"  # what the environment is called as
# A user's message, turns that end with <eos>, and observations; nothing else is between them.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }} "
    "{{ call.function.arguments }}{% endfor %}<eos>{% else %}{{ message.content }}{% endif %}"
    "{% endfor %}"
)


def words(first: int, count: int) -> str:
    """The words of consecutive tokens."""
    return " ".join(f"w{i}" for i in range(first, first + count))


def make_tokenizer(size: workload.Size):
    """A Hugging Face tokenizer whose words are its tokens."""
    import tokenizers
    import transformers

    names = {workload.PAD: "<pad>", workload.EOS: "<eos>"}
    ids = {names.get(i, f"w{i}"): i for i in range(size.vocab)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
    )


def prompts(size: workload.Size) -> list[str]:
    """The message of the user of each prompt."""
    first = workload.FIRST_WORD
    return [words(first + 7 * i, size.prompt_tokens) for i in range(size.prompts)]


def is_odd(actions: list[str]) -> bool:
    """The rule of the reward."""
    return sum(len(action.split()) for action in actions) % 2 == 1


class Turns:
    """The environment as this library has it.

    Args:
      size: Fields of a `workload.Size`.
    """

    def __init__(self, size: dict[str, Any]):
        self.size = workload.Size(**size)

    def problems(self, split: str):
        from entropy_rl.tasks import Problem

        return [Problem(i, text, "", chat=True) for i, text in enumerate(prompts(self.size))]

    def reset(self, problem, seed: int) -> None:
        self.actions: list[str] = []

    def step(self, action: str):
        from entropy_rl.tasks.environments import Done, Observation

        seen = is_odd(self.actions)
        self.actions = [*self.actions, action]
        if len(self.actions) == self.size.turns:
            return Done(seen)
        return Observation(words(100, self.size.observation_tokens), role="tool")


@dataclasses.dataclass
class TurnsOfTRL:
    """The environment as TRL has it: its methods are tools, and the last turn is not passed on.

    Attributes:
      size: What is sampled.
    """

    size: workload.Size

    def reset(self, **_) -> None:
        self.actions: list[str] = []

    def act(self, action: str) -> str:
        """Take a turn.

        Args:
            action: The turn.
        """
        self.actions.append(action)
        return words(100, self.size.observation_tokens)

    def get_reward(self) -> float:
        return float(is_odd(self.actions))
