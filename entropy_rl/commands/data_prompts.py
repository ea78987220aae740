"""The verb `data prompts`: prompts as the model sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.common import ModelConfig, TaskConfig
from entropy_rl.config.evaluate import EvaluateConfig
from entropy_rl.config.train import TrainConfig
from entropy_rl.escape import echo

if TYPE_CHECKING:
    from entropy_rl.tasks.environments.task import EnvironmentTask
    from entropy_rl.tasks.task import Problem

_ROOM = 1 << 30  # tokens of an episode: no limit


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """The first prompts of a config as the model sees them: `entropy-rl data prompts`.

    Reads the config files of `train` and `evaluate`.

    Args:
      model: The model whose tokenizer encodes the prompts; its weights are not read.
      task: Problems and prompt template.
      split: Split of the task; null for `task.train_split`.
      count: Number of prompts.
      tokens: Show every token with its id, one per line.
      actions: Of an environment: turns of the model, each shown with the answer of the environment.
      data_dir: Directory of prepared sets for the task `math`; null for that of `task.args`.
    """

    ALSO_READS: ClassVar = (TrainConfig, EvaluateConfig)

    model: ModelConfig
    task: TaskConfig
    split: str | None = None
    count: int = 2
    tokens: bool = False
    actions: list[str] = dataclasses.field(default_factory=list)
    data_dir: str | None = None

    def __post_init__(self):
        check_numbers(self, "")
        require_at_least(1, "", self, "count")
        require(
            self.data_dir is None or self.task.name == "math",
            "data_dir",
            self.data_dir,
            "null unless task.name is math",
        )


def prompts(config: PromptsConfig) -> None:
    """The verb `data prompts`."""
    from entropy_rl.experience.encoding import encode_prompt
    from entropy_rl.runs.load_model import find_model, load_tokenizer, model_files
    from entropy_rl.tasks import closing, load_task, problems_of
    from entropy_rl.tasks.environments.task import EnvironmentTask

    where = {} if config.data_dir is None else {"data_dir": config.data_dir}
    task = load_task(config.task.name, config.task.args | where, config.task.episodes)
    split = config.split or config.task.train_split
    has_turns = isinstance(task, EnvironmentTask)
    require(
        has_turns or not config.actions, "actions", config.actions, "empty for a task without turns"
    )
    with closing(task):
        problems = problems_of(task, split, "split")
        tokenizer = load_tokenizer(model_files(find_model(config.model.path, weights=False)))

        def show(ids: list[int]) -> None:
            echo(tokens_of(tokenizer, ids) if config.tokens else tokenizer.decode(ids))

        for problem in problems[: config.count]:
            ids = encode_prompt(problem, tokenizer)
            echo(f"== {split} {problem.id}: {len(ids)} tokens, right answer {problem.answer!r}")
            show(ids)
            if has_turns:
                _play(task, problem, config.actions, tokenizer, show)


def _play(
    task: EnvironmentTask,
    problem: Problem,
    actions: list[str],
    tokenizer: Any,
    show: Callable[[list[int]], None],
) -> None:
    """Show the turns of an episode, and what its environment answers."""
    from entropy_rl.experience.episodes import Episodes
    from entropy_rl.types import FinishReason

    episodes = Episodes(task.pool, tokenizer, task.limits.max_turns, [problem], [0])
    for number, action in enumerate(actions, 1):
        ids = tokenizer.encode(action, add_special_tokens=False)
        require(bool(ids), f"actions[{number - 1}]", action, "a text of at least one token")
        echo(f"-- turn {number}: {len(ids)} tokens")
        show(ids)
        episodes.submit(0, ids, FinishReason.STOP, _ROOM)
        reply = episodes.reply(0)
        if isinstance(reply, FinishReason):
            judgement = episodes.judgements()[0]
            reward = "" if judgement.reward is None else f", reward {judgement.reward:g}"
            echo(f"-- ended: {reply.name.lower()}, {judgement.verdict.value}{reward}")
            return
        echo(f"-- answer: {len(reply)} tokens")
        show(list(reply))


def tokens_of(tokenizer: Any, ids: list[int]) -> str:
    """Return one line per token: position, id and quoted text, in which whitespace is visible."""
    return "\n".join(
        f"{i:5} {token:7} {tokenizer.decode([token])!r}" for i, token in enumerate(ids)
    )
