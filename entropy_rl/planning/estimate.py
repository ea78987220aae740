"""Minimum time of a step, by phase: FLOPs and bytes on one chip over its peak rates.

Counted from the shapes (`counting.py`), with loops unrolled. Excludes the network, the host, the
verifier and any inefficiency of the chip; and the products of an adapter while sampling.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from entropy_rl.advantages import advantage_of
from entropy_rl.advantages.transform import OTHER_PROMPT, TEACHER, Transform
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.train import TrainConfig
from entropy_rl.learner.pass_settings import shares_prompts
from entropy_rl.learner.token_loss import needs_whole_batch
from entropy_rl.losses.build import build_loss
from entropy_rl.models import DecoderConfig
from entropy_rl.models.lora import count_parameters
from entropy_rl.models.quantized import BYTES, float_type
from entropy_rl.planning import counting
from entropy_rl.planning.chips import Chip
from entropy_rl.planning.counting import F32, Cost, WeightBytes
from entropy_rl.planning.shapes import Architecture
from entropy_rl.rollout.batching import DecodingPlan

# The phases that are missing in a step of the critic alone.
UPDATE_OF_POLICY = ("update", "optimizer")
# Those that runs that train together have in common.
_OF_ALL_RUNS = {"weight sync", "prefill", "decode"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Distribution of the work over chips and hosts.

    Attributes:
      data: Size of the mesh axis data.
      fsdp: Size of the mesh axis fsdp.
      tensor: Size of the mesh axis tensor.
      local_chips: Chips of a host.
      local_prompts: Prompts, or rows of supervised training, of a host per step.
      stacked: Number of runs that train together, each with `local_prompts` prompts.
    """

    data: int
    fsdp: int
    tensor: int
    local_chips: int
    local_prompts: int
    stacked: int = 1

    @classmethod
    def of(
        cls, mesh: Mesh | None, local_chips: int, local_prompts: int, stacked: int = 1
    ) -> Layout:
        """Return the layout of a mesh; None for one device."""
        sizes = {"data": 1, "fsdp": 1, "tensor": 1} if mesh is None else dict(mesh.shape)
        return cls(**sizes, local_chips=local_chips, local_prompts=local_prompts, stacked=stacked)

    @property
    def sampled_prompts(self) -> int:
        """Prompts that a host samples for in a step, of all runs."""
        return self.stacked * self.local_prompts

    @property
    def chips(self) -> int:
        """Number of chips."""
        return self.data * self.fsdp * self.tensor


@dataclasses.dataclass(frozen=True)
class Work:
    """A phase of a step on one chip.

    Attributes:
      name: The phase.
      flops: FLOPs.
      bytes: Bytes read from and written to memory.
      seconds: Minimum time at the assumed efficiency; None without rates.
    """

    name: str
    flops: float
    bytes: float
    seconds: float | None


class TrainingWork(NamedTuple):
    """Work of the passes over all rows of a step.

    Attributes:
      layers: FLOPs of a forward pass, without the LM head.
      of_head: FLOPs of the LM head in a forward pass.
      tokens: Tokens of a forward pass.
      passes: Forward passes of an update, of which a backward pass counts two.
      weights: Parameters that a pass reads.
      adapter: Parameters of an adapter beside them, which are then frozen; 0 without one.
      micro_batches: Gradient computations of a data shard.
    """

    layers: float
    of_head: float
    tokens: float
    passes: int
    weights: int
    adapter: int
    micro_batches: float


def training_cost(
    config: ModelConfig, c: DecoderConfig, layout: Layout, work: TrainingWork
) -> tuple[Cost, Cost]:
    """Count a forward pass over all rows, and the gradients of all updates, on one chip.

    Weights are read once per micro-batch and pass, and gradients accumulated. Beside an adapter,
    the weights have no gradient, and are read as they are stored if that is smaller than the type
    of the computation.
    """
    size, shard = jnp.dtype(config.compute_dtype).itemsize, layout.fsdp * layout.tensor
    frozen, layers = 0.0, work.layers
    sizes = WeightBytes(size, size)
    if work.adapter:
        sizes = WeightBytes(*(min(size, stored) for stored in stored_bytes(config)))
        frozen = 2 * c.num_layers * counting.layer_weights(c) * work.tokens + work.of_head
        layers += 2 * work.adapter * work.tokens
    forward = layers + work.of_head
    backward = work.passes * forward + (config.remat == "full") * layers - frozen
    read = sizes.of(c, work.weights) / layout.tensor * work.micro_batches
    added = 2 * F32 * (work.adapter or work.weights) / shard * work.micro_batches
    return Cost(forward / layout.chips, read), Cost(backward / layout.chips, 3 * read + added)


def stored_bytes(config: ModelConfig) -> WeightBytes:
    """Return the bytes of a parameter as it is stored: float32, or the type of a frozen base."""
    if config.lora is None:
        return WeightBytes(F32, F32)
    dtype = config.lora.base_dtype
    return WeightBytes(BYTES[dtype], float_type(dtype).itemsize)


def decode_bytes(config: ModelConfig) -> WeightBytes:
    """Return the bytes of a parameter for sampling: cast, except for quantized matrices."""
    size, stored = jnp.dtype(config.compute_dtype).itemsize, stored_bytes(config)
    is_quantized = stored.kernel < stored.other
    return WeightBytes(stored.kernel if is_quantized else size, size)


def estimate(
    config: TrainConfig,
    architecture: Architecture,
    layout: Layout,
    decoding: DecodingPlan,
    new_tokens: float,
    chip: Chip | None,
    efficiency: float,
) -> list[Work]:
    """Count the phases of a step on one chip.

    Args:
      config: The config.
      architecture: Architectures of the models.
      layout: Distribution of the work.
      decoding: Decoding plan of the rollout of a host.
      new_tokens: Tokens per completion.
      chip: The chip; None if unknown.
      efficiency: Assumed fraction of the peak rates.
    """
    c, critic, lora, teacher = architecture
    tensor, size = layout.tensor, jnp.dtype(config.model.compute_dtype).itemsize
    copies, group = layout.local_chips / tensor, config.rollout.group_size
    advantage = advantage_of(config)
    loss = build_loss(config.loss, config.rollout.max_new_tokens)
    sampled = sampled_group(config, advantage)
    prompt, new = config.rollout.max_prompt_tokens, int(new_tokens)
    rows, slots = layout.sampled_prompts * sampled / copies, decoding.slots / copies
    shared = decoding.slots == layout.sampled_prompts * sampled
    weights, shard = counting.parameters(c), layout.fsdp * tensor
    shares = shares_prompts(
        config.batching.mini_batch_prompts,
        group,
        prompt,
        config.rollout.max_new_tokens,
        layout.data * layout.fsdp,
    )

    def on_chip(cost: Cost, chips: float, repeats: float = 1) -> tuple[Cost, float]:
        return Cost(cost.flops / chips, cost.bytes / chips), repeats

    stored, decoded = stored_bytes(config.model), decode_bytes(config.model)
    prefill = counting.prefill(
        c, layout.sampled_prompts / copies, prompt, rows, size, decoded.kernel
    )
    steps, prompts = np.arange(1, max(new, 1)), slots / sampled if shared else slots
    decode = counting.decode_step(
        c, np.full(steps.shape, slots), steps, prompts, prompt, size, decoded.kernel
    )
    layers = _layers_forward(config, c, prompt, new, shares)
    responses = new * config.rollout.prompts * group
    of_head = 2 * counting.head_weights(c) * responses
    whole = _tokens_forward(config, prompt, new, shares)
    updates = config.updates_per_step
    tokens = whole * tensor / layout.chips  # of a data shard

    def training(
        layers: float, of_head: float, passes: int, weights: int, adapter: int, micro_batch: int
    ) -> tuple[Cost, Cost]:
        work = TrainingWork(
            layers, of_head, whole, passes, weights, adapter, max(updates, tokens / micro_batch)
        )
        return training_cost(config.model, c, layout, work)

    def of_optimizer(trained: int) -> Cost:
        return Cost(0.0, counting.optimizer_bytes(trained, config.optimizer) / shard)

    adapter = 0 if lora is None else count_parameters(lora, c)
    micro_batch = config.batching.max_tokens_per_micro_batch
    passes = 3 + needs_whole_batch(advantage, loss)  # which is a forward pass before
    one_pass, update = training(layers, of_head, passes, weights, adapter, micro_batch)
    of_teacher = None
    if teacher is not None:
        layers = _layers_forward(config, teacher, prompt, new, shares)
        forward = 2 * counting.head_weights(teacher) * responses
        weights_of_teacher = counting.parameters(teacher)
        of_teacher, _ = training(layers, forward, 0, weights_of_teacher, 0, micro_batch)
        if config.teacher.top_k is not None:  # and the policy's logits again, with two gradients
            update += of_teacher + Cost(3 * of_head / layout.chips, 0.0)
    parts = {
        "weight sync": (
            Cost(0.0, stored.of(c, weights) / shard + decoded.of(c, weights) / tensor),
            1,
        ),
        "prefill": on_chip(prefill, tensor),
        "decode": on_chip(decode, tensor, rows / slots),
        "log-probs": (one_pass, stats_passes(config, advantage)),
        "update": (update, 1),
        "optimizer": (of_optimizer(adapter or weights), updates),
    }
    if teacher is not None and TEACHER in advantage.requires:
        parts["teacher's log-probs"] = of_teacher, 1
    if critic is not None:
        layers, of_critic = (
            _layers_forward(config, critic, prompt, new, shares),
            counting.critic_parameters(critic),
        )
        micro_batch = config.critic.max_tokens_per_micro_batch or micro_batch
        adapter = adapter if config.critic.path is None else 0
        values, update = training(layers, 0.0, 3, of_critic, adapter, micro_batch)
        of_critic = adapter + critic.hidden_size if adapter else of_critic
        parts |= {
            "values": (values, 1),
            "critic update": (update, 1),
            "critic optimizer": (of_optimizer(of_critic), updates),
        }
    for name in parts.keys() - _OF_ALL_RUNS:
        cost, repeats = parts[name]
        parts[name] = cost, repeats * layout.stacked
    return [
        phase_work(name, cost, repeats, chip, efficiency) for name, (cost, repeats) in parts.items()
    ]


def sampled_group(config: TrainConfig, advantage: Transform) -> int:
    """Return the rows sampled per prompt: its group, and a greedy row if the advantage needs it."""
    return config.rollout.group_size + ("greedy_rewards" in advantage.requires)


def phase_work(name: str, cost: Cost, repeats: float, chip: Chip | None, efficiency: float) -> Work:
    """Return a phase that has some cost on one chip, repeated."""
    total = cost.total()
    seconds = None
    if chip is not None:
        seconds = cost.seconds(chip.flops, chip.bandwidth) * repeats / efficiency
    return Work(name, total.flops * repeats, total.bytes * repeats, seconds)


def _layers_forward(
    config: TrainConfig, c: DecoderConfig, prompt: int, new: int, shares: bool
) -> float:
    """Return the FLOPs of a forward pass over all rows, without a head."""
    prompts, group = config.rollout.prompts, config.rollout.group_size
    of_row, of_prompt = (
        counting.backbone_flops(c, np.array([prompt]), np.array([length])) for length in (new, 0)
    )
    shared = prompts * (group - 1) * of_prompt if shares else 0
    return prompts * group * of_row - shared


def _tokens_forward(config: TrainConfig, prompt: int, new: int, shares: bool) -> int:
    """Return the tokens of `_layers_forward`."""
    prompts, group = config.rollout.prompts, config.rollout.group_size
    return prompts * group * (prompt + new) - shares * prompts * (group - 1) * prompt


def stats_passes(config: TrainConfig, advantage: Transform) -> int:
    """Return the number of log-prob passes over a mini-batch: of the old policy, the reference."""
    other_prompt = OTHER_PROMPT in advantage.requires
    return (config.old_log_probs == "trainer") + bool(config.loss.kl_coef) + other_prompt


def step_seconds(works: list[Work]) -> float | None:
    """Return the seconds of a step; None without rates."""
    return None if works[0].seconds is None else sum(work.seconds for work in works)
