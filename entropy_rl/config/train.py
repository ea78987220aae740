"""Configuration of training: frozen dataclasses that validate themselves.

Fields without a neutral value (model, data, group size, learning rate) have no default. A
`ValueError` raised here starts with the dotted path of the field.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.common import MeshConfig, ModelConfig, RunConfig, TaskConfig
from entropy_rl.config.optimizer import OptimizerConfig, check_decay
from entropy_rl.config.rewards import RewardConfig, reward_weights
from entropy_rl.config.rollout import DecodingConfig, EvaluationConfig, RolloutConfig, check_stop
from entropy_rl.config.values import refuse_unused


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The policy-gradient loss.

    Args:
      surrogate: Surrogate objective, as {name: FUNCTION, ARGUMENT: VALUE, ...}; see
        docs/methods.md.
      token_weights: Token masks and weights of the loss, each as {name: FUNCTION, ...}.
      aggregation: Reduction of the token losses: `token-mean` over all tokens of the mini-batch
        (DAPO), `sequence-mean` over completions of their means (GRPO), or `constant`, the sum
        divided by completions times max_new_tokens (Dr. GRPO).
      kl_coef: Weight of the KL penalty toward the starting policy; 0 for none.
      kl_estimator: Estimator of the KL divergence; see docs/methods.md.
      entropy_coef: Weight of an entropy bonus with gradient through the entropy (the max-entropy
        baseline; not the entropy-shaped advantage): a number, or a controller as {name: FUNCTION,
        ARGUMENT: VALUE, ...}.
      mask_truncated: Exclude completions truncated at max_new_tokens from the loss (DAPO's overlong
        filtering, arXiv 2503.14476). Their rewards stay in the baseline of their group; shaping,
        token weights and normalizers exclude their tokens.
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
        check_numbers(self, "loss")
        require(self.kl_coef >= 0, "loss.kl_coef", self.kl_coef, ">= 0")
        if not self.kl_coef:
            refuse_unused(self, "loss.", "because loss.kl_coef is 0", "kl_estimator")


@dataclasses.dataclass(frozen=True)
class BatchingConfig:
    """Mini-batches of a rollout and micro-batches of a mini-batch.

    Args:
      mini_batch_prompts: Prompts per optimizer step (mini-batch).
      max_tokens_per_micro_batch: Maximum tokens of one gradient computation, per data shard; rows
        of similar length are batched together. Changes memory and speed, not results.
      max_nonfinite_updates: Abort after this many non-finite updates. An update with a non-finite
        gradient is skipped and saved in nonfinite_updates/ for `entropy-rl debug-update`.
    """

    mini_batch_prompts: int
    max_tokens_per_micro_batch: int
    max_nonfinite_updates: int = 3

    def __post_init__(self):
        check_numbers(self, "batching")
        names = ("mini_batch_prompts", "max_tokens_per_micro_batch", "max_nonfinite_updates")
        require_at_least(1, "batching.", self, *names)


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The critic of PPO: a separate model that predicts the expected return at each token.

    Args:
      learning_rate: Learning rate of its optimizer; name, schedule, betas, eps and weight decay
        are those of `optimizer`.
      path: Initial weights, as in `model.path`, with the same tokenizer; null for the policy's.
        The other settings of `model` apply to it too.
      warmup_steps: Number of initial steps that train only the critic (policy frozen).
      warmup_updates: Linear warm-up of its learning rate, in updates.
      max_grad_norm: Gradient clipping by global norm.
      clip_range: Range of value clipping around the values before the first update on a rollout,
        in units of the reward.
      gamma: Discount per token, also of the advantage.
      lam: λ of the critic's return targets (the policy's λ is set in `advantage`).
      max_tokens_per_micro_batch: As in `batching`; null for the same value.
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
        check_numbers(self, "critic")
        for name in ("learning_rate", "max_grad_norm", "clip_range"):
            value = getattr(self, name)
            require(value > 0, f"critic.{name}", value, "> 0")
        require_at_least(0, "critic.", self, "warmup_steps", "warmup_updates")
        require(0 < self.gamma <= 1, "critic.gamma", self.gamma, "> 0 and <= 1")
        require(0 <= self.lam <= 1, "critic.lam", self.lam, ">= 0 and <= 1")


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The teacher of on-policy distillation: a frozen model that scores the policy's completions.

    Args:
      path: As `model.path`, with the same tokenizer. The other settings of `model`, but for `lora`,
        apply to it too, and so does the temperature of the rollout.
      top_k: Add the reverse KL divergence to the teacher to the loss of every token, on the top_k
        most likely tokens of the policy and one bucket for all others; null for none.
      coef: With top_k, the weight of that divergence in the loss.
    """

    path: str
    top_k: int | None = None
    coef: float = 1.0

    def __post_init__(self):
        check_numbers(self, "teacher")
        require_at_least(1, "teacher.", self, "top_k")
        require(self.coef > 0, "teacher.coef", self.coef, "> 0")
        require(
            self.top_k is not None or self.coef == 1,
            "teacher.coef",
            self.coef,
            "absent without teacher.top_k; {name: on_policy_distillation} has a coef of its own",
        )


def check_micro_batches(config: TrainConfig, longest: int) -> None:
    """Check that the longest row fits into a micro-batch.

    Args:
      config: The config, of which `batching` and `critic` are checked.
      longest: Tokens of the longest prompt plus max_new_tokens.

    Raises:
      ValueError: If it does not fit.
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
class TrainConfig:
    """Reinforcement learning: `entropy-rl train`.

    Args:
      seed: Seed of the prompt order and of all samples.
      steps: Number of steps; each samples one rollout.
      model: The policy to start from.
      task: Problems and verifier.
      rollout: Sampling.
      advantage: Transforms in order, each as {name: FUNCTION, ARGUMENT: VALUE, ...}; null for no
        policy gradient, with teacher.top_k: the rewards are only logged.
      batching: Mini-batches and micro-batches.
      optimizer: The optimizer and its learning-rate schedule.
      run: Run directory, checkpoints and logging.
      reward: Rewards of the verdicts, if `rewards` is empty.
      rewards: Reward functions, whose weighted sum is the reward; each as {name: FUNCTION, weight:
        NUMBER, label: NAME, ARGUMENT: VALUE, ...}, with weight 1 and its name as label by default.
        One with weight 0 is logged only. See docs/guides/rewards.md.
      loss: The policy-gradient loss.
      old_log_probs: Source of the denominator of the probability ratio: a forward pass of the
        trainer before the first update, or the log-probs recorded while sampling.
      evaluation: Pass@K evaluation; null for none.
      decoding: Continuous batching in rollouts and evaluations.
      mesh: Device mesh. Changes speed and memory; results change only in the last digits.
      critic: The critic, for an advantage that reads its values, such as {name: gae}; null for
        none.
      replay: Replay buffer: updates on completions of earlier rollouts, as {name: FUNCTION,
        ARGUMENT: VALUE, ...}; null for none. See docs/methods.md.
      curriculum: Choice of the problems of a step from the results of earlier steps, as {name:
        FUNCTION, ARGUMENT: VALUE, ...}; null for a seeded order. See docs/guides/mixtures.md.
      teacher: The teacher, for its divergence in the loss (top_k), or for an advantage that reads
        its log-probs, {name: on_policy_distillation}; null for none. See
        docs/guides/distillation.md.
    """

    seed: int
    steps: int
    model: ModelConfig
    task: TaskConfig
    rollout: RolloutConfig
    advantage: list[dict[str, Any]] | None
    batching: BatchingConfig
    optimizer: OptimizerConfig
    run: RunConfig
    reward: RewardConfig = RewardConfig()
    rewards: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    loss: LossConfig = LossConfig()
    old_log_probs: Literal["trainer", "sampler"] = "trainer"
    evaluation: EvaluationConfig | None = None
    decoding: DecodingConfig = DecodingConfig()
    mesh: MeshConfig = MeshConfig()
    critic: CriticConfig | None = None
    replay: dict[str, Any] | None = None
    curriculum: dict[str, Any] | None = None
    teacher: TeacherConfig | None = None

    @property
    def updates_per_step(self) -> int:
        """Number of mini-batches of a rollout."""
        return self.rollout.prompts // self.batching.mini_batch_prompts

    def total_updates(self, critic: bool = False) -> int:
        """Return the number of updates of the run, without those on a replay buffer.

        Args:
          critic: Count those of the critic, and not those of the policy, which are fewer where the
            critic warms up.
        """
        alone = 0 if critic or self.critic is None else self.critic.warmup_steps
        return max(0, self.steps - alone) * self.updates_per_step

    def __post_init__(self):
        check_numbers(self, "")
        reward_weights(self.rewards)
        require(
            not self.rewards or self.reward == RewardConfig(),
            "reward",
            dataclasses.asdict(self.reward),
            "absent with rewards, whose {name: graded, right: NUMBER, wrong: NUMBER} is the same",
        )
        check_stop(self.rollout.stop, "rollout.stop", self.decoding)
        check_stop(
            self.evaluation.stop if self.evaluation else [], "evaluation.stop", self.decoding
        )
        require_at_least(0, "", self, "seed", "steps")
        if self.critic is not None:
            check_decay(self.optimizer, self.critic.warmup_updates, "critic.warmup_updates")
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
        self._check_advantage()
        require(
            self.replay is None
            or self.optimizer.schedule == "constant"
            or self.optimizer.decay_updates is not None,
            "optimizer.decay_updates",
            None,
            "given with a replay buffer, which makes the number of updates depend on the run",
        )
        require(
            self.curriculum is None or self.rollout.dynamic_sampling is None,
            "curriculum",
            self.curriculum,
            "null with rollout.dynamic_sampling, which draws further problems in a step",
        )
        require(
            self.teacher is None or self.replay is None,
            "teacher",
            None if self.teacher is None else self.teacher.path,
            "null with replay, whose buffer has no log-probs of a teacher",
        )
        # A setting without an effect is an error.
        every, step = self.run.evaluate_every, self.run.profile_step
        require(
            every == 0 or self.evaluation is not None,
            "run.evaluate_every",
            every,
            "0 without evaluation",
        )
        allowed = f"null or <= steps ({self.steps})"
        require(step is None or step <= self.steps, "run.profile_step", step, allowed)

    def _check_advantage(self) -> None:
        """Check that there is an advantage, or a loss without one and no setting for one."""
        require(self.advantage != [], "advantage", [], "a list with at least one transform")
        if self.advantage is not None:
            return
        require(
            self.teacher is not None and self.teacher.top_k is not None,
            "advantage",
            None,
            "a list with at least one transform without teacher.top_k",
        )
        for name in ("surrogate", "token_weights"):
            value = getattr(self.loss, name)
            require(
                value == getattr(LossConfig(), name),
                f"loss.{name}",
                value,
                "absent with advantage: null, which has no policy gradient",
            )
