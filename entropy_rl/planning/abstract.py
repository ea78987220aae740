"""An abstract run: model, state, prompts and mini-batches as shapes with shardings."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from entropy_rl.advantages import advantage_of
from entropy_rl.advantages.transform import TEACHER, Transform, required_extras
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.plan import PlanConfig
from entropy_rl.config.rewards import reward_weights
from entropy_rl.config.stack import check_devices
from entropy_rl.config.train import TrainConfig, check_micro_batches
from entropy_rl.distributed.sharding import Placement, check_rows, make_mesh
from entropy_rl.learner.batch import make_batch
from entropy_rl.learner.critic import init_critic
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.learner.update import init_state
from entropy_rl.lm_head.vocabulary import unused_ranges
from entropy_rl.losses.build import build_loss
from entropy_rl.models import DecoderConfig, backbone_params, make_policy
from entropy_rl.models.attention import resolve_attention, resolve_decode_attention
from entropy_rl.models.lora import Base, LoraSpec, adapter_shapes
from entropy_rl.models.quantized import store
from entropy_rl.planning.devices import Devices
from entropy_rl.planning.shapes import Architecture
from entropy_rl.runs.load_model import Model, check_heads, make_model
from entropy_rl.trainer.programs import Programs, make_programs, pass_settings
from entropy_rl.trainer.stack import make_stacked_cast
from entropy_rl.trainer.teacher import teacher_in_loss
from entropy_rl.types import REWARD_EXTRA, Params, Policy, Rollout, TrainBatch, TrainState


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """The setup of `train` as shapes.

    Attributes:
      config: The config of the run.
      devices: The devices.
      mesh: The mesh of all devices; None for one device.
      model: The model, with shapes for parameters and without a tokenizer.
      advantage: The advantage.
      programs: The compiled functions of a step.
      state: The training state.
      batch: A mini-batch.
      local_prompts: Prompts of a host in a step, of each of the runs that train together.
      teacher: The parameters of the teacher; None without one.
      teacher_stats: Its log-probs, jitted; None if the advantage reads none.
    """

    config: PlanConfig
    devices: Devices
    mesh: Mesh | None
    model: Model
    advantage: Transform
    programs: Programs
    state: TrainState
    batch: TrainBatch
    local_prompts: int
    teacher: Params | None = None
    teacher_stats: Any = None

    @property
    def stacked(self) -> int:
        """Number of runs that train together."""
        return self.config.stacked

    @property
    def local_chips(self) -> int:
        """Number of devices of a host that the run uses."""
        return 1 if self.mesh is None else self.model.placement.local_mesh.size

    def at(self, tree: Any, sharding: Any = None) -> Any:
        """As the function `at`, on the devices of the run."""
        return at(self.devices, self.mesh, tree, sharding)

    def decode_params(self) -> Params:
        """Return the decoding parameters on the devices of a host."""
        placement = self.model.placement
        cast, sampled = self.cast()
        shapes = jax.eval_shape(cast, *sampled.values())
        if self.mesh is None:
            return self.at(shapes)
        local = jax.tree.map(
            lambda s: jax.sharding.NamedSharding(placement.local_mesh, s.spec),
            placement.of_decode(shapes),
        )
        return self.at(shapes, local)

    def cast(self) -> tuple[Any, dict[str, Any]]:
        """Return the jitted function that makes the decoding parameters, and its arguments."""
        model = self.model
        if self.stacked == 1:
            return model.placement.make_cast(model.policy), {"params": model.params}
        adapters = [self.at(model.adapter)] * self.stacked
        return make_stacked_cast(model), {"base": model.base.params, "adapters": adapters}

    def prompts(self, count: int) -> tuple:
        """Return (ids, mask, index, limits) of `count` prompts of a host."""
        length = self.config.rollout.max_prompt_tokens
        where = None if self.mesh is None else self.model.placement.of_prompts(count)
        i32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
        mask = jax.ShapeDtypeStruct((count, length), bool)
        return (*self.at((i32(count, length), mask, i32(count)), where), i32(count))


def abstract_run(config: PlanConfig, architecture: Architecture, devices: Devices) -> AbstractRun:
    """Set up a run as `train` does.

    Raises:
      ValueError: If the config does not fit the devices or the models.
    """
    decoder, of_critic, lora, of_teacher = architecture
    rollout, batching, hosts = config.rollout, config.batching, devices.hosts
    mesh = make_mesh(config.mesh, devices.all)
    if config.stacked > 1:
        check_devices(1 if mesh is None else mesh.size)
    check_rows(mesh, batching.mini_batch_prompts, rollout.group_size, "batching.mini_batch_prompts")
    check_micro_batches(config, rollout.max_prompt_tokens + rollout.max_new_tokens)
    if batching.mini_batch_prompts % hosts:
        raise ValueError(
            f"batching.mini_batch_prompts: must be a multiple of the number of hosts ({hosts}), "
            f"got {batching.mini_batch_prompts}"
        )
    # The rows that one of two models has more than the other are no tokens.
    vocab_size = min(one.vocab_size for one in (decoder, of_teacher or decoder))
    model = abstract_model(config.model, decoder, lora, devices, mesh, vocab_size)
    placement, base = model.placement, model.base
    backbone = (
        None if of_critic is None else _make_policy(config.model, of_critic, devices.backend, mesh)
    )
    advantage = advantage_of(config)
    loss = build_loss(config.loss, rollout.max_new_tokens)
    teacher, teacher_stats, in_loss = None, None, None
    if of_teacher is not None:
        section = dataclasses.replace(config.model, decode_attention="auto", lora=None)
        scorer = abstract_model(section, of_teacher, None, devices, mesh, vocab_size)
        teacher, in_loss = scorer.params, teacher_in_loss(config, scorer)
        if TEACHER in advantage.requires:
            settings = pass_settings(config, placement)
            teacher_stats = jax.jit(make_stats_pass(scorer.policy, settings))
    programs = make_programs(config, model, advantage, loss, backbone, teacher=in_loss)
    state = jax.eval_shape(
        lambda params: init_state(params, programs.optimizer, controller=loss.controller),
        model.trained,
    )
    if backbone is not None:
        check_heads(of_critic, mesh)
        policy = _make_policy(config.model, of_critic, devices.backend, None)
        params = backbone_params(jax.eval_shape(policy.init, jax.random.key(0)))
        if base is not None and config.critic.path is None:
            params = model.adapter
        init = functools.partial(
            init_critic, hidden_size=of_critic.hidden_size, optimizer=programs.critic.optimizer
        )
        state = state.replace(critic=jax.eval_shape(init, params))
    batch = _abstract_batch(config, programs, advantage)
    run = AbstractRun(
        config,
        devices,
        mesh,
        model,
        advantage,
        programs,
        state,
        batch,
        rollout.prompts // hosts,
        teacher,
        teacher_stats,
    )
    return dataclasses.replace(
        run,
        state=place(devices, placement, state),
        batch=run.at(batch, None if mesh is None else placement.of_rows()),
    )


def abstract_model(
    config: ModelConfig,
    decoder: DecoderConfig,
    lora: LoraSpec | None,
    devices: Devices,
    mesh: Mesh | None,
    vocab_size: int | None = None,
) -> Model:
    """Set up a model as `load_model` does, with shapes as parameters and without a tokenizer.

    Args:
      config: The section of the config.
      decoder: The architecture.
      lora: The adapter; None to train all parameters.
      devices: The devices.
      mesh: The mesh of all devices; None for one device.
      vocab_size: The number of tokens; None for all rows of the embedding.

    Raises:
      ValueError: If the mesh does not fit the architecture.
    """
    check_heads(decoder, mesh, config.decode_attention)
    make = functools.partial(_make_policy, config, decoder, devices.backend, vocab_size=vocab_size)
    params = jax.eval_shape(make(None).init, jax.random.key(0))
    placement = Placement(mesh, decoder.num_kv_heads)
    if mesh is not None:
        local = placement.local_mesh
        host = np.array(devices.host[: local.size]).reshape(local.devices.shape)
        placement.local_mesh = Mesh(host, local.axis_names, axis_types=local.axis_types)
    base, adapter = None, None
    if lora is not None:
        frozen = jax.eval_shape(lambda params: store(params, config.lora.base_dtype), params)
        base = Base(place(devices, placement, frozen), lora, config.path)
        adapter = adapter_shapes(lora, decoder)
        params = jax.eval_shape(base.join, adapter)
    return make_model(
        make,
        place(devices, placement, params),
        decoder,
        placement,
        tokenizer=None,
        eos_ids=(0,),
        pad_id=0,
        directory=Path(),
        base=base,
        adapter=adapter,
    )


def place(devices: Devices, placement: Placement, tree: Any) -> Any:
    """Add the shardings of parameters, or of a state of these, to shapes."""
    mesh = placement.mesh
    return at(devices, mesh, tree, None if mesh is None else placement.of_params(tree))


def at(devices: Devices, mesh: Mesh | None, tree: Any, sharding: Any = None) -> Any:
    """Add shardings to shapes, one for all or one for each; without a mesh, the one device."""
    if mesh is None:
        sharding = SingleDeviceSharding(devices.all[0])
    of = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    if isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda x: of(x, sharding), tree)
    return jax.tree.map(of, tree, sharding)


def _make_policy(
    config: ModelConfig,
    decoder: DecoderConfig,
    backend: str,
    mesh: Mesh | None,
    vocab_size: int | None = None,
) -> Policy:
    """Build the model as `load_model` does on a machine with these devices.

    Args:
      config: The section of the config.
      decoder: The architecture.
      backend: Of the devices.
      mesh: The mesh; None for one device.
      vocab_size: The number of tokens; None for all rows.
    """
    dtype = jnp.dtype(config.compute_dtype)
    attention = resolve_attention(
        config.attention, dtype, decoder.head_dim, decoder.windows, backend
    )
    decode_attention = resolve_decode_attention(config.decode_attention, decoder.head_dim, backend)
    return make_policy(
        decoder,
        dtype,
        remat=config.remat,
        attention=attention,
        decode_attention=decode_attention,
        mesh=mesh,
        unused=unused_ranges(range(vocab_size or decoder.vocab_size), decoder.vocab_size),
    )


def _abstract_batch(config: TrainConfig, programs: Programs, advantage: Transform) -> TrainBatch:
    """Return a mini-batch as an update gets it."""
    batch = jax.eval_shape(
        functools.partial(make_batch, pad_id=0, mask_truncated=config.loss.mask_truncated),
        *_judged(config.batching.mini_batch_prompts, config),
    )
    if "greedy_rewards" in advantage.requires:
        batch = batch.replace(greedy_rewards=batch.rewards)
    of_rows = jax.ShapeDtypeStruct((len(batch.rewards), 1), jnp.float32)
    labels = reward_weights(config.rewards)
    extras = {f"{REWARD_EXTRA}{label}": of_rows for label in labels}
    batch = batch.replace(extras=extras | required_extras(advantage, *batch.completion_ids.shape))
    if config.loss.kl_coef:
        batch = batch.replace(ref_log_probs=batch.old_log_probs)
    if config.critic is not None:
        batch = batch.replace(values=batch.old_log_probs)
    if programs.rollout_advantages is not None:
        batch = jax.eval_shape(lambda batch: programs.rollout_advantages([batch])[0], batch)
    return batch


def _judged(
    prompts: int, config: TrainConfig
) -> tuple[Rollout, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Return shapes of the rollout of `prompts` prompts, its rewards and `has_reward`."""
    rollout, rows = config.rollout, prompts * config.rollout.group_size
    shape = jax.ShapeDtypeStruct
    prompt, new = (prompts, rollout.max_prompt_tokens), (rows, rollout.max_new_tokens)
    return (
        Rollout(
            prompt_ids=shape(prompt, jnp.int32),
            prompt_mask=shape(prompt, bool),
            completion_ids=shape(new, jnp.int32),
            completion_mask=shape(new, bool),
            log_probs=shape(new, jnp.float32),
            entropy=shape(new, jnp.float32),
            finish_reason=shape((rows,), jnp.int32),
        ),
        shape((rows,), jnp.float32),
        shape((rows,), bool),
    )
