"""Config sections shared by several verbs: model, task, device mesh, run directory."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

from entropy_rl.config.checks import MOST_DEADLINE_S, check_numbers, require, require_at_least
from entropy_rl.config.files import expand_home
from entropy_rl.config.lora import LoraConfig

_MOST_GIB = 2**20  # a PiB; the limit of a process takes more, but not all that a float holds


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The policy.

    Args:
      path: A Hugging Face directory (config.json, *.safetensors, tokenizer), a Hub id as
        `NAMESPACE/NAME` or `NAMESPACE/NAME@REVISION`, the directory of a run (its newest
        checkpoint), or `asset:NAME` for a model that ships with the package (countdown) or is
        converted from another package (smollm2).
      compute_dtype: Dtype of activations and decoding weights. Master weights, logits, log-probs,
        entropies and norms are always float32.
      remat: Rematerialization in the backward pass: `none` uses the most memory; `dots` recomputes
        all but the products with weight matrices; `full` recomputes whole layers, which uses the
        least memory and a third more time.
      attention: Attention kernel for training and prefill: `xla` runs everywhere, `cudnn` on NVIDIA
        GPUs in bfloat16, `splash` on TPUs; `auto` chooses by backend.
      decode_attention: Attention kernel for decoding: `xla` runs everywhere and reads the whole
        allocated cache; `ragged` runs on GPUs and TPUs and reads the filled part; `auto` is ragged
        on GPUs and xla elsewhere.
      extra_eos: Additional end-of-sequence tokens, as ids or texts such as "<|im_end|>", beside
        those of config.json, generation_config.json and the tokenizer.
      lora: Train a low-rank adapter on the frozen model; null to train all parameters.
    """

    path: str
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    decode_attention: Literal["auto", "xla", "ragged"] = "auto"
    extra_eos: list[int | str] = dataclasses.field(default_factory=list, hash=False)
    lora: LoraConfig | None = None

    def __post_init__(self):
        check_numbers(self, "model")
        for token in self.extra_eos:
            is_id = isinstance(token, int) and not isinstance(token, bool) and token >= 0
            require(
                is_id or (isinstance(token, str) and token != ""),
                "model.extra_eos",
                token,
                "a list of token ids or texts of tokens",
            )


@dataclasses.dataclass(frozen=True)
class EpisodesConfig:
    """Episodes of several turns, in which an environment answers the model.

    The limit of new tokens (`max_new_tokens`) is that of a whole episode, with the tokens of all
    observations. An episode that reaches a limit counts as wrong, unless the environment ended it
    in that same turn.

    Args:
      max_turns: Maximum turns of the model.
      max_turn_tokens: Maximum tokens of a turn; null for the limit of the episode.
      workers: Processes that run environments.
      deadline_s: CPU seconds for one step of an environment. A step that takes longer ends its
        episode without a judgement.
      memory_gib: Address space of a worker process, in GiB.
    """

    max_turns: int = 8
    max_turn_tokens: int | None = None
    workers: int = 2
    deadline_s: float = 10.0
    memory_gib: float = 4.0

    def __post_init__(self):
        check_numbers(self, "task.episodes")
        require_at_least(1, "task.episodes.", self, "max_turns", "workers", "max_turn_tokens")
        for name, most in (("deadline_s", MOST_DEADLINE_S), ("memory_gib", _MOST_GIB)):
            value = getattr(self, name)
            require(0 < value <= most, f"task.episodes.{name}", value, f"> 0 and <= {most}")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task: problems and their verifier, or an environment.

    Args:
      name: `arithmetic`, `countdown`, `countdown_turns`, `math`, `mixture`, `reasoning_gym`,
        `textarena`, `tools`, `two_prompts`, or your own class as `module:Class`.
      args: Keyword arguments of the task.
      train_split: Split of the training prompts.
      episodes: Limits of the episodes of an environment (a task with `reset` and `step`); null for
        the defaults.
    """

    name: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    train_split: str = "train"
    episodes: EpisodesConfig | None = None


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device mesh over all hosts. One axis may be -1: it takes the remaining devices.

    Args:
      data: Data parallelism: replicas of the parameters; rows are sharded over them.
      fsdp: Parameter shards per replica, gathered layer by layer; rows are sharded over them too.
      tensor: Tensor parallelism: shards of heads, MLP and vocabulary; within one host.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self):
        check_numbers(self, "mesh")
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size == -1 or size >= 1, f"mesh.{name}", size, "-1 or >= 1")
        require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "-1 for at most one axis")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Run directory, checkpoints and logging. Repeating the command resumes the run.

    Args:
      directory: Directory of the run; all hosts must see it.
      checkpoints: Directory of the checkpoints, as gs://BUCKET/NAME (needs the extra
        gcs) or an absolute path that all hosts see; null for checkpoints/ in the
        run's directory.
      checkpoint_every: Steps between checkpoints; the last step always has one.
      max_to_keep: Number of newest checkpoints to keep.
      samples_per_step: Completions written to samples.jsonl per step.
      evaluate_every: Steps between evaluations; 0 evaluates before the first and after the last
        step only.
      profile_step: Step, counted from 1, traced by the JAX profiler into profile/; null for none.
        Step 1 includes compilation.
      wandb_project: Weights & Biases project; null for none. Short for a logger {name: wandb,
        project: ...}.
      loggers: Where metrics go beside metrics.jsonl, each as {name: NAME, ARGUMENT: VALUE, ...}:
        tensorboard; wandb and trackio with `project`; mlflow with `experiment`; `module:function`
        of your own. See docs/metrics.md.
      accept_changes: Resume although the data, the prompts, the chat template or the initial model
        have changed since the run began; starts.jsonl records what has changed.
    """

    directory: str
    checkpoints: str | None = None
    checkpoint_every: int = 10
    max_to_keep: int = 2
    samples_per_step: int = 4
    evaluate_every: int = 0
    profile_step: int | None = None
    wandb_project: str | None = None
    loggers: list[dict[str, Any]] = dataclasses.field(
        default_factory=lambda: [{"name": "tensorboard"}], hash=False
    )
    accept_changes: bool = False

    def __post_init__(self):
        check_numbers(self, "run")
        expand_home(self, "directory", "checkpoints")
        is_path = bool(self.directory) and "://" not in self.directory
        require(
            is_path,
            "run.directory",
            self.directory,
            "a path that all hosts see (a bucket can be mounted, or hold run.checkpoints)",
        )
        path = self.checkpoints
        elsewhere = path is None or path.startswith("/") or re.fullmatch("gs://[^/]+/.+", path)
        require(elsewhere, "run.checkpoints", path, "null, gs://BUCKET/NAME, or an absolute path")
        require_at_least(1, "run.", self, "checkpoint_every", "max_to_keep", "profile_step")
        require_at_least(0, "run.", self, "samples_per_step", "evaluate_every")
