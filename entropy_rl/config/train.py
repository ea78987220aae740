"""The configuration of training and evaluation: frozen dataclasses that check themselves.

What has no neutral value (model, data, group size, learning rate) has no default. A `ValueError`
raised here starts with the dotted path of the field.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

from entropy_rl.config.checks import require, require_at_least
from entropy_rl.config.rollout import DecodingConfig, EvaluationConfig, RolloutConfig, check_stop


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The policy.

    Args:
      path: A Hugging Face directory (config.json, *.safetensors, tokenizer), or `asset:NAME` for a
        model that ships with the package.
      compute_dtype: Type of activations and of the decoding weights. Master weights, logits,
        log-probs, entropies and norms are float32 in any case.
      remat: Named after what is computed again in the backward pass instead of being kept: `none`,
        which takes the most memory; `dots`, all but the products with weight matrices; `full`,
        whole layers, which takes the least memory and a third more time.
      attention: Implementation of the attention in training and over prompts: `xla` runs
        everywhere, `cudnn` on NVIDIA GPUs in bfloat16, `splash` on TPUs; `auto` takes the one of
        the backend.
      decode_attention: Implementation of the attention of new tokens to their row: `xla` runs
        everywhere and reads all of the cache there is room for, `ragged` on GPUs and TPUs what is
        filled; `auto` takes ragged on GPUs and xla elsewhere.
    """

    path: str
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    decode_attention: Literal["auto", "xla", "ragged"] = "auto"


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task.

    Args:
      name: `countdown`, `math`, or a class of your own as `module:Class`.
      args: Keyword arguments of the task.
      train_split: Split that RL samples its prompts from.
    """

    name: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    train_split: str = "train"


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
            f"> reward.wrong ({self.wrong})",
        )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The policy-gradient loss.

    Args:
      surrogate: What is minimized, as {name: FUNCTION, ARGUMENT: VALUE, ...}; docs/methods.md lists
        them.
      token_weights: Which tokens it is minimized over and with what weights, each as {name:
        FUNCTION, ...}.
      aggregation: How token losses become one number.
      kl_coef: Weight of the KL term to the starting policy; 0 for none.
      kl_estimator: Estimator of that KL.
      entropy_coef: Weight of an entropy bonus, with gradient through the entropy (the max-entropy
        baseline; not the entropy-shaped advantage): a number, or what adapts it, as {name:
        FUNCTION,
        ARGUMENT: VALUE, ...}.
      mask_truncated: Whether completions that were cut off at the limit of new tokens have no loss
        (DAPO's overlong filtering, arXiv 2503.14476). Their rewards remain in the baseline of their
        group; shaping, token weightings and normalizers leave their tokens out.
    """

    surrogate: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28}
    )
    token_weights: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    aggregation: Literal["token-mean", "sequence-mean", "constant"] = "token-mean"
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    entropy_coef: float | dict[str, Any] = 0.0
    mask_truncated: bool = False

    def __post_init__(self):
        require(self.kl_coef >= 0, "loss.kl_coef", self.kl_coef, ">= 0")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up to a constant learning rate.

    Args:
      learning_rate: The rate after the warm-up.
      warmup_updates: Over so many optimizer steps the rate rises to that, the first of them at 1/n
        of it.
      weight_decay: Decoupled weight decay.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      max_grad_norm: Gradients are scaled down to this global norm.
      first_moment_dtype: Type in which the first moment is kept; bfloat16 saves 2 of 16 bytes per
        parameter. The second one changes by a thousandth of itself in an update, which bfloat16
        would round away.
      offload: Keep the moments in the memory of the host while completions are sampled and judged.
        Changes memory and speed, and no result.
    """

    learning_rate: float
    warmup_updates: int = 0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    offload: bool = False

    def __post_init__(self):
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "> 0")
        require_at_least(0, "optimizer.", self, "warmup_updates", "weight_decay")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}", value, ">= 0 and < 1")
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "> 0")


@dataclasses.dataclass(frozen=True)
class BatchingConfig:
    """How the prompts of a rollout are cut into updates, and those into what fits the memory.

    Args:
      mini_batch_prompts: Prompts of one optimizer step (mini-batch).
      max_tokens_per_micro_batch: Tokens whose gradient is computed at once, on each device that
        rows are split over; rows of like length are put together. Changes memory and speed, and no
        result.
      share_prompts: Compute a prompt once for its group instead of once for each completion. Takes
        a longer compilation, and memory for keys and values of all prompts of an update; pays where
        prompts are a good part of the tokens. Changes memory and speed, and no result.
      fused_loss: Compute loss and gradient of the head in one pass over the vocabulary instead of
        two. Needs an advantage, a surrogate and token weightings that are known token by token.
        Changes speed and memory, and no result.
      max_nonfinite_updates: An update whose gradient is not finite is not applied, and put into
        nonfinite_updates/ of the run, for `entropy-rl debug-update`. When so many lie there, the
        run stops.
    """

    mini_batch_prompts: int
    max_tokens_per_micro_batch: int
    share_prompts: bool = False
    fused_loss: bool = False
    max_nonfinite_updates: int = 3

    def __post_init__(self):
        names = ("mini_batch_prompts", "max_tokens_per_micro_batch", "max_nonfinite_updates")
        require_at_least(1, "batching.", self, *names)


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The critic of PPO: a model of its own that says what reward is still to be expected at a
    token.

    Args:
      learning_rate: Of its AdamW, whose betas, eps and weight decay are those of `optimizer`.
      path: Where its weights begin, as a `model.path` with the same tokenizer; null for the
        policy's. What else `model` says holds for it too.
      warmup_steps: In the first so many steps only the critic is updated, on rollouts of the policy
        as it is.
      warmup_updates: Over so many of its updates its learning rate rises linearly, as of
        `optimizer`.
      max_grad_norm: Its gradients are scaled down to this global norm.
      clip_range: A value gains nothing by moving further than this from the one before the first
        update on a rollout; in units of the reward.
      gamma: Discount per token, here and in the advantage.
      lam: λ of its targets; that of the advantage stands there.
      max_tokens_per_micro_batch: As of `batching`; null for the same number.
    """

    learning_rate: float
    path: str | None = None
    warmup_steps: int = 0
    warmup_updates: int = 0
    max_grad_norm: float = 1.0
    clip_range: float = 0.5
    gamma: float = 1.0
    lam: float = 1.0
    max_tokens_per_micro_batch: int | None = None

    def __post_init__(self):
        for name in ("learning_rate", "max_grad_norm", "clip_range"):
            value = getattr(self, name)
            require(value > 0, f"critic.{name}", value, "> 0")
        require_at_least(0, "critic.", self, "warmup_steps", "warmup_updates")
        require(0 < self.gamma <= 1, "critic.gamma", self.gamma, "> 0 and <= 1")
        require(0 <= self.lam <= 1, "critic.lam", self.lam, ">= 0 and <= 1")


def check_micro_batches(config: TrainConfig, longest: int) -> None:
    """Checks that a row of the greatest length, which the data decide, fits into a micro-batch.

    Raises:
      ValueError: If it does not.
    """
    sections = {"batching": config.batching, "critic": config.critic}
    for name, section in sections.items():
        tokens = section and section.max_tokens_per_micro_batch
        allowed = f">= {longest}, the longest row of prompt and completion"
        require(
            tokens is None or tokens >= longest,
            f"{name}.max_tokens_per_micro_batch",
            tokens,
            allowed,
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices of all hosts share the work. -1, for one axis, takes all devices that are
    left.

    Args:
      data: Copies of the parameters; rows are split over them.
      fsdp: Parts of each copy along this axis, gathered layer by layer; rows are split over them
        too.
      tensor: Parts of heads, MLP and vocabulary, which work on the same rows; within one host.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size == -1 or size >= 1, f"mesh.{name}", size, "-1 or >= 1")
        require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "-1 for at most one axis")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run lives and how often it writes. The same command again resumes it.

    Args:
      directory: Everything of the run stands here; all hosts must see it.
      checkpoints: Where the checkpoints stand instead, as gs://BUCKET/NAME (needs `pip install
        'entropy_rl[gcs]'`) or as an absolute path that all hosts see; null for checkpoints/ of the
        run.
      checkpoint_every: Steps between two checkpoints; the last step has one in any case.
      max_to_keep: The newest so many are kept.
      samples_per_step: Completions written to samples.jsonl in each step.
      evaluate_every: Steps between two evaluations; 0 evaluates before the first and after the last
        step.
      profile_step: The step, counted from 1, that jax's profiler traces into profile/ of the run;
        null for none. The first one compiles.
      wandb_project: Weights & Biases project; null for none (needs `pip install
        'entropy_rl[wandb]'`).
    """

    directory: str
    checkpoints: str | None = None
    checkpoint_every: int = 10
    max_to_keep: int = 2
    samples_per_step: int = 4
    evaluate_every: int = 0
    profile_step: int | None = None
    wandb_project: str | None = None

    def __post_init__(self):
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
        require_at_least(1, "run.", self, "checkpoint_every", "max_to_keep")
        require_at_least(0, "run.", self, "samples_per_step", "evaluate_every")
        step = self.profile_step
        require(step is None or step >= 1, "run.profile_step", step, "null or >= 1")


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
      old_log_probs: Where the denominator of the ratio comes from: a forward pass of the trainer
        before the first update, or the sampler's own record.
      evaluation: Pass@K before and after; null for none.
      decoding: How rollouts and evaluations share the device among their rows.
      mesh: How the devices share the work. Changes speed and memory, and no result but the last
        digits.
      critic: The critic, for an advantage that reads its values, such as {name: gae}; null for
        none.
      replay: Updates on completions of earlier rollouts, as {name: FUNCTION, ARGUMENT: VALUE, ...};
        null for none. docs/methods.md lists them.
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
    decoding: DecodingConfig = DecodingConfig()
    mesh: MeshConfig = MeshConfig()
    critic: CriticConfig | None = None
    replay: dict[str, Any] | None = None

    def __post_init__(self):
        check_stop(self.rollout.stop, "rollout.stop", self.decoding)
        check_stop(
            self.evaluation.stop if self.evaluation else [], "evaluation.stop", self.decoding
        )
        require_at_least(0, "", self, "seed", "steps")
        require(
            self.rollout.prompts % self.batching.mini_batch_prompts == 0,
            "batching.mini_batch_prompts",
            self.batching.mini_batch_prompts,
            f"a divisor of rollout.prompts ({self.rollout.prompts})",
        )
        require(
            self.rollout.exploration is None or self.old_log_probs == "trainer",
            "old_log_probs",
            self.old_log_probs,
            "trainer with rollout.exploration, which samples at another temperature",
        )
        require(
            len(self.advantage) > 0,
            "advantage",
            self.advantage,
            "a list with at least one transform",
        )
        # What would never happen is no setting.
        every, step = self.run.evaluate_every, self.run.profile_step
        require(
            every == 0 or self.evaluation is not None,
            "run.evaluate_every",
            every,
            "0 without evaluation",
        )
        allowed = f"null or <= steps ({self.steps})"
        require(step is None or step <= self.steps, "run.profile_step", step, allowed)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Pass@K of a model: `entropy-rl evaluate`.

    Args:
      seed: Fixes every sample.
      model: A Hugging Face directory, `asset:NAME`, or the directory of a run (its newest
        checkpoint).
      task: Problems and judge.
      evaluation: Sampling.
      output: Directory for the result and every sample.
      max_prompt_tokens: Longer prompts are left out, and counted.
      decoding: How the samples of a call share the device.
      shard: The part of the problems that this process samples, 0 .. shards - 1; null for the
        number of the process under jax.distributed.
      shards: Processes that share the problems and `output`; null for those of jax.distributed. May
        change from one start to the next.
      mesh: How the devices of a process share its samples: over data and fsdp, or, for a model that
        one device cannot hold, over tensor.
    """

    seed: int
    model: ModelConfig
    task: TaskConfig
    evaluation: EvaluationConfig
    output: str
    max_prompt_tokens: int = 1024
    decoding: DecodingConfig = DecodingConfig()
    shard: int | None = None
    shards: int | None = None
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        require_at_least(0, "", self, "seed")
        check_stop(self.evaluation.stop, "evaluation.stop", self.decoding)
        require(
            (self.shard is None) == (self.shards is None),
            "shard",
            self.shard,
            "set if and only if shards is",
        )
        if self.shards is not None:
            require(
                0 <= self.shard < self.shards,
                "shard",
                self.shard,
                f">= 0 and < shards ({self.shards})",
            )
