"""The configuration of training and evaluation: frozen dataclasses that check themselves.

What has no neutral value (model, data, group size, learning rate) has no default. A `ValueError` raised
here starts with the dotted path of the field.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal


def require(condition: bool, path: str, value: Any, allowed: str) -> None:
    """Raises the `ValueError` of a field that is out of range."""
    if not condition:
        raise ValueError(f"{path}: {value!r} is not allowed; allowed: {allowed}")


def require_at_least(minimum: int, section: str, config: Any, *names: str) -> None:
    """Raises a `ValueError` if one of the named fields is below the minimum."""
    for name in names:
        value = getattr(config, name)
        require(value >= minimum, f"{section}{name}", value, f"whole numbers >= {minimum}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The policy.

    Args:
      path: A Hugging Face directory (config.json, *.safetensors, tokenizer), or `asset:NAME` for a
        model that ships with the package.
      compute_dtype: Type of activations and of the decoding weights. Master weights, logits,
        log-probs, entropies and norms are float32 in any case.
      remat: Named after what is computed again in the backward pass instead of being kept: `none`, which
        takes the most memory; `dots`, all but the products with weight matrices; `full`, whole layers, which
        takes the least memory and a third more time.
      attention: Implementation of the attention in training and over prompts: `xla` runs everywhere, `cudnn`
        on NVIDIA GPUs in bfloat16, `splash` on TPUs; `auto` takes the one of the backend.
      decode_attention: Implementation of the attention of new tokens to their row: `xla` runs everywhere and
        reads all of the cache there is room for, `ragged` on TPUs what is filled.
    """

    path: str
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    decode_attention: Literal["xla", "ragged"] = "xla"


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task.

    Args:
      name: `countdown`, `maths`, or a class of your own as `module:Class`.
      args: Keyword arguments of the task.
      train_split: Split that RL samples its prompts from.
    """

    name: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    train_split: str = "train"


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Which rows of a rollout are decoded when. Changes memory and speed, and no result but the last digits.

    Args:
      kind: static, all rows to the end of the longest; shrink, all rows, moved together as they end; refill,
        fewer slots than rows, each taking the next row when its own has ended; auto, shrink if the cache of
        all rows fits, and otherwise refill.
      slots: Slots of refill; null for as many as fit.
      memory_share: What the cache of the rows may take of the memory of the devices.
      chunk_steps: Tokens after which the host has a look: the cache grows as it fills, progress is shown, and
        stop strings and signals are noticed. null decodes in one program.
    """

    kind: Literal["auto", "static", "shrink", "refill"] = "auto"
    slots: int | None = None
    memory_share: float = 0.4
    chunk_steps: int | None = 128

    def __post_init__(self):
        require(self.slots is None or self.slots >= 1, "schedule.slots", self.slots, "null or >= 1")
        require(
            self.slots is None or self.kind == "refill", "schedule.slots", self.slots, "null, or kind refill"
        )
        require(0 < self.memory_share <= 1, "schedule.memory_share", self.memory_share, "0 < share <= 1")
        require(
            self.chunk_steps is None or self.chunk_steps >= 1,
            "schedule.chunk_steps", self.chunk_steps, "null or >= 1",
        )  # fmt: skip


def check_stop(stop: list[str], path: str, schedule: ScheduleConfig) -> None:
    """Checks that stop strings, which the host looks for, can be found."""
    allowed = "none, unless schedule.chunk_steps is a number and schedule.kind not static"
    require(not stop or (schedule.chunk_steps is not None and schedule.kind != "static"), path, stop, allowed)


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Sampling during training.

    Args:
      prompts: Prompts per step.
      group_size: Completions per prompt (G).
      max_prompt_tokens: Longer prompts are left out, and counted.
      max_new_tokens: Limit of a completion, the end-of-sequence token included.
      temperature: Divides the logits, in the sampler and in the trainer alike.
      top_p: Nucleus mass; 1 samples from the whole distribution. Log-probs are those before the cut, so
        with less than 1 the ratio is not that to the policy that sampled.
      stop: Texts that end a completion, with the token that completes one of them.
    """

    prompts: int
    group_size: int
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        require_at_least(1, "rollout.", self, "prompts", "group_size", "max_prompt_tokens", "max_new_tokens")
        require(self.temperature > 0, "rollout.temperature", self.temperature, "numbers > 0")
        require(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "0 < top_p <= 1")
        require(all(self.stop), "rollout.stop", self.stop, "texts that are not empty")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Reward of a verdict. A check that timed out or crashed has none: its sample is left out.

    Args:
      correct: Reward of a correct completion.
      wrong: Reward of a wrong or unparsable one.
    """

    correct: float = 1.0
    wrong: float = -1.0

    def __post_init__(self):
        require(
            self.correct > self.wrong,
            "reward.correct",
            self.correct,
            f"numbers > reward.wrong ({self.wrong})",
        )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The policy-gradient loss.

    Args:
      clip_low: Lower clip range ε_low of the ratio.
      clip_high: Upper clip range ε_high.
      dual_clip: Cap c > 1 on the ratio where the advantage is negative; null for none.
      aggregation: How token losses become one number.
      kl_coef: Weight of the KL term to the starting policy; 0 for none.
      kl_estimator: Estimator of that KL.
      entropy_coef: Weight of an entropy bonus, with gradient through the entropy (the max-entropy
        baseline; not the entropy-shaped advantage).
      importance_cap: Cap of the truncated importance weight between sampler and trainer; null for none.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    aggregation: Literal["token-mean", "sequence-mean", "constant"] = "token-mean"
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    entropy_coef: float = 0.0
    importance_cap: float | None = None

    def __post_init__(self):
        require(0 < self.clip_low < 1, "loss.clip_low", self.clip_low, "0 < clip_low < 1")
        require(self.clip_high > 0, "loss.clip_high", self.clip_high, "numbers > 0")
        require(
            self.dual_clip is None or self.dual_clip > 1,
            "loss.dual_clip",
            self.dual_clip,
            "null or numbers > 1",
        )
        require(self.kl_coef >= 0, "loss.kl_coef", self.kl_coef, "numbers >= 0")
        require(
            self.importance_cap is None or self.importance_cap > 0,
            "loss.importance_cap", self.importance_cap, "null or numbers > 0",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up to a constant learning rate.

    Args:
      learning_rate: The rate after the warm-up.
      warmup_updates: Over so many optimizer steps the rate rises to that, the first of them at 1/n of it.
      weight_decay: Decoupled weight decay.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      max_grad_norm: Gradients are scaled down to this global norm.
    """

    learning_rate: float
    warmup_updates: int = 0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0

    def __post_init__(self):
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "numbers > 0")
        require_at_least(0, "optimizer.", self, "warmup_updates", "weight_decay")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}", value, f"0 <= {name} < 1")
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "numbers > 0")


@dataclasses.dataclass(frozen=True)
class BatchingConfig:
    """How the prompts of a rollout are cut into updates, and those into what fits the memory.

    Args:
      prompts_per_update: Prompts of one optimizer step (mini-batch).
      tokens_per_micro_batch: Tokens whose gradient is computed at once, padding included; rows of like length
        are put together. Changes memory and speed, and no result.
      fused_loss: Compute loss and gradient of the head in one pass over the vocabulary instead of two. Needs
        an advantage that is known token by token. Changes speed and memory, and no result.
    """

    prompts_per_update: int
    tokens_per_micro_batch: int
    fused_loss: bool = False

    def __post_init__(self):
        require_at_least(1, "batching.", self, "prompts_per_update", "tokens_per_micro_batch")


def check_batching(config: BatchingConfig, longest: int) -> None:
    """Checks that a row of the greatest length, which the data decide, fits into a micro-batch.

    Raises:
      ValueError: If it does not.
    """
    tokens, allowed = config.tokens_per_micro_batch, f">= {longest}, the longest row of prompt and completion"
    require(tokens >= longest, "batching.tokens_per_micro_batch", tokens, allowed)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Sampling for Pass@K.

    Args:
      split: Split of the task.
      problems: The first so many problems of the split; null for all.
      samples: Samples per problem (n); Pass@K is reported for K = 1, 2, 4, ... up to n, each over the
        problems that have so many judged samples.
      max_new_tokens: Limit of a completion.
      temperature: Divides the logits.
      top_p: Nucleus mass.
      stop: Texts that end a completion, with the token that completes one of them.
      rows_per_call: Completions that are sampled in one go, and judged while the next are sampled. Changes
        memory and speed, and no result but the last digits of log-probs and entropies.
    """

    split: str
    samples: int
    max_new_tokens: int
    problems: int | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    stop: list[str] = dataclasses.field(default_factory=list)
    rows_per_call: int = 1024

    def __post_init__(self):
        require_at_least(1, "evaluation.", self, "samples", "max_new_tokens", "rows_per_call")
        require(
            self.problems is None or self.problems >= 1, "evaluation.problems", self.problems, "null or >= 1"
        )
        require(self.temperature >= 0, "evaluation.temperature", self.temperature, "numbers >= 0")
        require(0 < self.top_p <= 1, "evaluation.top_p", self.top_p, "0 < top_p <= 1")
        require(all(self.stop), "evaluation.stop", self.stop, "texts that are not empty")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run lives and how often it writes. The same command again resumes it.

    Args:
      directory: Everything of the run stands here.
      checkpoint_every: Steps between two checkpoints; the last step has one in any case.
      keep_checkpoints: The newest so many are kept.
      samples_per_step: Completions written to samples.jsonl in each step.
      evaluate_every: Steps between two evaluations; 0 evaluates before the first and after the last step.
      wandb_project: Weights & Biases project; null for none (needs `pip install 'entropy_rl[wandb]'`).
    """

    directory: str
    checkpoint_every: int = 10
    keep_checkpoints: int = 2
    samples_per_step: int = 4
    evaluate_every: int = 0
    wandb_project: str | None = None

    def __post_init__(self):
        require(bool(self.directory), "run.directory", self.directory, "a path")
        require_at_least(1, "run.", self, "checkpoint_every", "keep_checkpoints")
        require_at_least(0, "run.", self, "samples_per_step", "evaluate_every")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Reinforcement learning: `entropy-rl train`.

    Args:
      seed: Fixes the order of the prompts and every sample.
      steps: Rollouts.
      model: The policy to start from.
      task: Problems and judge.
      rollout: Sampling.
      advantage: Transforms in order, each as {name: FUNCTION, ARGUMENT: VALUE, ...}.
      batching: Mini-batches and micro-batches.
      optimizer: AdamW.
      run: Where and how often.
      reward: From verdict to number.
      loss: The policy-gradient loss.
      old_log_probs: Where the denominator of the ratio comes from: a forward pass of the trainer before the
        first update, or the sampler's own record.
      evaluation: Pass@K before and after; null for none.
      schedule: How rollouts and evaluations share the device among their rows.
    """

    seed: int
    steps: int
    model: ModelConfig
    task: TaskConfig
    rollout: RolloutConfig
    advantage: list[dict[str, Any]]
    batching: BatchingConfig
    optimizer: OptimizerConfig
    run: RunConfig
    reward: RewardConfig = RewardConfig()
    loss: LossConfig = LossConfig()
    old_log_probs: Literal["trainer", "sampler"] = "trainer"
    evaluation: EvaluationConfig | None = None
    schedule: ScheduleConfig = ScheduleConfig()

    def __post_init__(self):
        check_stop(self.rollout.stop, "rollout.stop", self.schedule)
        check_stop(self.evaluation.stop if self.evaluation else [], "evaluation.stop", self.schedule)
        require_at_least(0, "", self, "seed", "steps")
        cap = self.loss.importance_cap
        require(
            cap is None or (self.old_log_probs == "trainer" and self.rollout.top_p == 1),
            "loss.importance_cap", cap,
            "null, unless old_log_probs is trainer and rollout.top_p 1: else its weight is 1 or wrong",
        )  # fmt: skip
        require(
            self.rollout.prompts % self.batching.prompts_per_update == 0,
            "batching.prompts_per_update",
            self.batching.prompts_per_update,
            f"divisors of rollout.prompts ({self.rollout.prompts})",
        )
        require(len(self.advantage) > 0, "advantage", self.advantage, "a list with at least one transform")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Pass@K of a model: `entropy-rl evaluate`.

    Args:
      seed: Fixes every sample.
      model: A Hugging Face directory, `asset:NAME`, or the directory of a run (its newest checkpoint).
      task: Problems and judge.
      evaluation: Sampling.
      output: Directory for the result and every sample.
      max_prompt_tokens: Longer prompts are left out, and counted.
      schedule: How the samples of a call share the device.
      shard: The part of the problems that this process samples, 0 .. shards - 1; null for the number of the
        process under jax.distributed.
      shards: Processes that share the problems and `output`; null for those of jax.distributed. May change
        from one start to the next.
    """

    seed: int
    model: ModelConfig
    task: TaskConfig
    evaluation: EvaluationConfig
    output: str
    max_prompt_tokens: int = 1024
    schedule: ScheduleConfig = ScheduleConfig()
    shard: int | None = None
    shards: int | None = None

    def __post_init__(self):
        require_at_least(0, "", self, "seed")
        check_stop(self.evaluation.stop, "evaluation.stop", self.schedule)
        require((self.shard is None) == (self.shards is None), "shard", self.shard, "with shards, or neither")
        if self.shards is not None:
            require(
                0 <= self.shard < self.shards, "shard", self.shard, f"0 <= shard < shards ({self.shards})"
            )
