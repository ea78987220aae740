"""Configuration of supervised fine-tuning (SFT) and preference optimization."""

from __future__ import annotations

import dataclasses
import operator
from math import inf
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from entropy_rl.config.checks import MOST_LAYERS, check_numbers, require, require_at_least
from entropy_rl.config.common import MeshConfig, ModelConfig, RunConfig, TaskConfig
from entropy_rl.config.optimizer import SFTOptimizerConfig
from entropy_rl.config.rollout import EvaluationConfig
from entropy_rl.config.values import refuse_unused


@dataclasses.dataclass(frozen=True)
class ArchitectureConfig:
    """A Qwen3-style decoder to train from scratch (no bias, normalized queries and keys).

    Args:
      hidden_size: Hidden size (D).
      intermediate_size: Hidden size of the gated MLP.
      num_layers: Number of layers (L).
      num_heads: Number of query heads (H).
      num_kv_heads: Number of key-value heads (K).
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int

    def __post_init__(self):
        check_numbers(self, "architecture")
        names = [field.name for field in dataclasses.fields(self)]
        require_at_least(1, "architecture.", self, *names)
        require(
            self.num_layers <= MOST_LAYERS,
            "architecture.num_layers",
            self.num_layers,
            f"at most {MOST_LAYERS}",
        )
        require(
            self.hidden_size % (2 * self.num_heads) == 0,
            "architecture.hidden_size",
            self.hidden_size,
            f"a multiple of twice architecture.num_heads ({self.num_heads})",
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            "architecture.num_kv_heads",
            self.num_kv_heads,
            f"a divisor of architecture.num_heads ({self.num_heads})",
        )


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """Minimum quality of the SFT model; measures are fractions of steps or of completions.

    Args:
      at_least: Measure -> minimum, >= 0; from 0 to 1 for `pass@K`.
      at_most: Measure -> maximum, likewise.
    """

    at_least: dict[str, float] = dataclasses.field(default_factory=dict)
    at_most: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for section, limits in dataclasses.asdict(self).items():
            for name, limit in limits.items():
                # Of a task's own measures, some are counts.
                most, allowed = (1, ">= 0 and <= 1") if name.startswith("pass@") else (inf, ">= 0")
                require(0 <= limit <= most, f"gate.{section}.{name}", limit, allowed)


@dataclasses.dataclass(frozen=True)
class ChatDataConfig:
    """Conversations to train on, from files of your own; see docs/guides/sft.md.

    A row has `messages`, a list of {role, content}; or `prompt` and `completion`; or, for a loss on
    pairs, `prompt`, `chosen` and `rejected`. These are texts or lists of messages.

    Args:
      train: Files: JSONL (also .gz, .zst, .bz2, .xz), parquet or Arrow; a directory, a pattern such
        as `data/train-*.parquet`, NAMESPACE/NAME@REVISION of the Hub, or a list of these.
      validation: As `train`, for the validation loss; null for none.
      held_out: Rows of `train`, chosen by the seed, that are held out for the validation loss; all
        rows of a prompt together as far as the number allows.
      max_tokens: Rows with more tokens are left out, and the log counts them.
      chat: Wrap prompts and completions that are texts in the chat template, as messages of the
        user and the assistant; false to train on the texts as they are.
      turns: Turns of the assistant in `messages` that are trained on: `all`, or the `last` one, for
        templates that show earlier turns differently. Those with `weight: 0` or `train: false` are
        not.
      chat_template_kwargs: Variables of the chat template, such as {enable_thinking: false}.
      special_tokens: Encode special tokens in messages, such as <|im_end|>, as tokens; false to
        refuse them.
      invalid_rows: Rows that cannot be used: `error` stops at the first one; `skip` leaves them
        out, and the log counts them.
    """

    train: str | list[str]
    max_tokens: int
    validation: str | list[str] | None = None
    held_out: int = 0
    chat: bool = False
    turns: Literal["all", "last"] = "all"
    chat_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    special_tokens: bool = False
    invalid_rows: Literal["error", "skip"] = "error"

    def __post_init__(self):
        check_numbers(self, "data")
        require_at_least(2, "data.", self, "max_tokens")
        require_at_least(0, "data.", self, "held_out")
        require(
            self.held_out == 0 or self.validation is None,
            "data.held_out",
            self.held_out,
            "0 with data.validation",
        )

    @property
    def validates(self) -> bool:
        """Whether there is a validation loss."""
        return self.validation is not None or self.held_out > 0


@dataclasses.dataclass(frozen=True)
class SFTBatchingConfig:
    """Micro-batches of an update.

    Args:
      max_tokens_per_micro_batch: Maximum tokens of one gradient computation, per data shard, into
        which rows are packed without padding. Changes memory and speed, not results. Null computes
        all rows of an update at once, padded; `data` needs a number.
    """

    max_tokens_per_micro_batch: int | None = None

    def __post_init__(self):
        check_numbers(self, "batching")
        require_at_least(1, "batching.", self, "max_tokens_per_micro_batch")


# Settings of one of the two sources of rows: the demonstrations of a task, or files of chats.
_OF_TASK = ("task", "architecture", "length_buckets")
_OF_DATA = ("data", "model", "batching.max_tokens_per_micro_batch")


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning and preference optimization: `entropy-rl sft`.

    With `data` and `model`, a model is trained on conversations, and on pairs of them with a
    `loss`. With `task` and `architecture`, a model is trained from scratch on the demonstrations of
    a task.

    Args:
      seed: Seed of the order of rows, and of a new adapter; of the demonstrations of a task, and of
        the initial weights of an architecture.
      steps: Optimizer steps.
      batch_size: Rows per step: conversations, pairs or demonstrations.
      optimizer: The optimizer and its learning-rate schedule, by default AdamW with a cosine decay.
      run: Run directory, checkpoints and logging.
      data: Conversations; null for the demonstrations of `task`.
      model: The model to start from, with `data`.
      loss: Loss on pairs, as {name: FUNCTION, ARGUMENT: VALUE, ...}; null for the negative
        log-likelihood of what the assistant says. See docs/guides/dpo.md.
      patience: Stop after this many validations in a row without a lower loss; null to run all
        steps. The model of the lowest one is in best/ of the run's directory. Needs a number of
        steps that ends with one of these validations.
      batching: Micro-batches.
      mesh: Device mesh. Changes speed and memory; results change only in the last digits.
      log_every: Steps between two lines of metrics; a line has those of its own step.
      task: A task with demonstrations; null for `data`.
      architecture: The model to train from scratch, with `task`.
      length_buckets: Padded lengths of demonstrations, increasing.
      gate: Minimum quality of the result; measures that miss it are reported, with exit code 1.
      evaluation: Pass@K evaluation of a task's demonstrations, for the gate; null for none.
    """

    # Of sections that are shared with RL.
    UNUSED: ClassVar = ("run.samples_per_step", "optimizer.offload", "model.decode_attention")
    DOCUMENTS: ClassVar = MappingProxyType(
        {
            "run.evaluate_every": "Steps between validation losses, with `data`; 0 for the last "
            "step only.",
        }
    )

    seed: int
    steps: int
    batch_size: int
    optimizer: SFTOptimizerConfig
    run: RunConfig
    data: ChatDataConfig | None = None
    model: ModelConfig | None = None
    loss: dict[str, Any] | None = None
    patience: int | None = None
    batching: SFTBatchingConfig = SFTBatchingConfig()
    mesh: MeshConfig = MeshConfig()
    log_every: int = 10
    task: TaskConfig | None = None
    architecture: ArchitectureConfig | None = None
    length_buckets: list[int] | None = None
    gate: GateConfig = GateConfig()
    evaluation: EvaluationConfig | None = None

    def __post_init__(self):
        check_numbers(self, "")
        require_at_least(0, "", self, "seed")
        require_at_least(1, "", self, "steps", "batch_size", "log_every")
        step, allowed = self.run.profile_step, f"null or <= steps ({self.steps})"
        require(step is None or step <= self.steps, "run.profile_step", step, allowed)
        source, needed, unused = "data", _OF_DATA, _OF_TASK
        if self.data is None:
            source, needed, unused = "task", _OF_TASK, _OF_DATA
        for path in needed:
            value = operator.attrgetter(path)(self)
            require(value is not None, path, value, f"given {_for(source)}")
        for path in (*unused[:2], *(("length_buckets",) if source == "data" else ())):
            value = getattr(self, path)
            require(value is None, path, value, f"null with {source}")
        if source == "data":
            self._check_data()
        else:
            self._check_task()
        of_task = ("run.evaluate_every", "task.train_split") if source == "task" else ()
        refuse_unused(self, "", "because SFT does not use it", *self.UNUSED, *of_task)

    def _check_data(self) -> None:
        require(
            self.evaluation is None,
            "evaluation",
            dataclasses.asdict(self.evaluation) if self.evaluation else None,
            "null with data; `entropy-rl evaluate` evaluates the run",
        )
        gate = dataclasses.asdict(self.gate)
        require(self.gate == GateConfig(), "gate", gate, "absent with data")
        every, patience = self.run.evaluate_every, self.patience
        reason = "without data.validation or data.held_out"
        require(every == 0 or self.data.validates, "run.evaluate_every", every, f"0 {reason}")
        require_at_least(1, "", self, "patience")
        require(
            patience is None or every > 0,
            "patience",
            patience,
            "null without run.evaluate_every and a validation loss",
        )
        # A last validation in between would count, and not in a run with more steps.
        require(
            patience is None or self.steps % every == 0,
            "steps",
            self.steps,
            f"a multiple of run.evaluate_every ({every}) with patience",
        )

    def _check_task(self) -> None:
        for path in ("loss", "patience"):
            value = getattr(self, path)
            require(value is None, path, value, "null without data")
        require(
            len(self.length_buckets) > 0
            and sorted(set(self.length_buckets)) == list(self.length_buckets),
            "length_buckets",
            self.length_buckets,
            "a list of increasing lengths",
        )


def _for(source: str) -> str:
    """Say which source a setting is given for; without any, `data` or `task` is missing."""
    return "with data" if source == "data" else "with task, or data instead"
