"""Plan of supervised training on conversations or pairs, from ahead-of-time compilation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.config.checks import require
from entropy_rl.config.plan import PlanSFTConfig
from entropy_rl.distributed.sharding import check_rows, make_mesh
from entropy_rl.learner.optimizer import make_optimizer
from entropy_rl.learner.sft import SupervisedBatch
from entropy_rl.learner.update import init_state
from entropy_rl.models import DecoderConfig
from entropy_rl.models.lora import LoraSpec, count_parameters
from entropy_rl.planning import counting
from entropy_rl.planning.abstract import abstract_model, at, place
from entropy_rl.planning.compiled import tree_bytes
from entropy_rl.planning.counting import Cost
from entropy_rl.planning.devices import Devices
from entropy_rl.planning.estimate import (
    Layout,
    TrainingWork,
    Work,
    phase_work,
    training_cost,
)
from entropy_rl.planning.fit import suggest_for_supervised, what_is_too_large
from entropy_rl.planning.plan import Plan, chip_memory, say
from entropy_rl.planning.step import Phases, Step
from entropy_rl.trainer.supervised import SupervisedSetup, preference_loss


def make_supervised_plan(
    config: PlanSFTConfig, architecture: tuple[DecoderConfig, LoraSpec | None], devices: Devices
) -> Plan:
    """Compile the programs of a run and count its work.

    Args:
      config: The config.
      architecture: Of the model, and of its adapter or None.
      devices: The devices.

    Raises:
      ValueError: If the config does not fit the devices or the model.
    """
    require(
        devices.hosts == 1,
        "topology",
        config.topology,
        f"one host, which supervised training runs on, not {devices.hosts}",
    )
    setup, batch = abstract_setup(config, architecture, devices)
    memory, mesh = chip_memory(devices), setup.model.placement.mesh
    chips = 1 if mesh is None else mesh.size
    rows, tokens = _rows(config), config.mean_tokens or config.longest
    layout = Layout.of(mesh, chips, rows)
    resident = resident_bytes(setup, batch)
    step = _compile(setup, batch, resident, devices, chips)
    targets, micro_batch = config.mean_targets or tokens, config.batching.max_tokens_per_micro_batch
    return Plan(
        config=config,
        devices=devices,
        layout=layout,
        memory=memory,
        resident=resident,
        step=step,
        works=supervised_work(config, architecture, layout, devices),
        too_large=what_is_too_large(
            step.phases,
            memory,
            lambda phase: suggest_for_supervised(phase, config, devices.chip is None),
        ),
        rows=f"a step: {rows} rows of at most {config.longest} tokens, "
        f"{micro_batch} tokens per micro-batch",
        assumption=f"every row has {tokens:g} tokens, of which {targets:g} are trained on",
        step_tokens=rows * tokens,
    )


def abstract_setup(
    config: PlanSFTConfig, architecture: tuple[DecoderConfig, LoraSpec | None], devices: Devices
) -> tuple[SupervisedSetup, SupervisedBatch]:
    """Set up a run as `sft` does, with shapes.

    Returns:
      (the setup, a batch of the longest rows).

    Raises:
      ValueError: If the config does not fit the devices or the model.
    """
    decoder, lora = architecture
    mesh, loss = make_mesh(config.mesh, devices.all), preference_loss(config)
    check_rows(mesh, config.batch_size, 1 if loss is None else 2, "batch_size")
    model = abstract_model(config.model, decoder, lora, devices, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    start = jax.eval_shape(lambda params: init_state(params, optimizer), model.trained)
    has_reference = loss is not None and loss.needs_reference
    shape = _rows(config), config.longest
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    batch = SupervisedBatch(
        jax.ShapeDtypeStruct(shape, jnp.int32),
        f32(*shape),
        f32(shape[0], shape[1] - 1) if has_reference else None,
    )
    batch = at(devices, mesh, batch, None if mesh is None else model.placement.of_rows())
    setup = SupervisedSetup(
        config=config,
        model=model,
        batch=lambda _: batch,
        validation=(),
        identity={},
        start=place(devices, model.placement, start),
        loss=loss,
    )
    return setup, batch


def resident_bytes(setup: SupervisedSetup, batch: SupervisedBatch) -> dict[str, int]:
    """Return the bytes of the arrays that a run keeps on a device, by name."""
    parts = {
        "parameters": tree_bytes(setup.model.params),  # with the frozen ones
        "optimizer state": tree_bytes(setup.start.opt_state),
        "rows of a step": tree_bytes(batch),
    }
    if setup.config.data.validates:  # the rows of a file are not counted beyond a batch
        batches = -(-setup.config.data.held_out // setup.config.batch_size) or 1
        parts["validation rows"] = batches * tree_bytes(batch)
    if setup.has_reference:  # shares the base of an adapter
        parts["reference parameters"] = tree_bytes(setup.start.params)
    return parts


def _compile(
    setup: SupervisedSetup,
    batch: SupervisedBatch,
    resident: dict[str, int],
    devices: Devices,
    chips: int,
) -> Step:
    """Compile every large program of a step, and of a validation."""
    phases, base = Phases(resident, say), setup.model.base
    if setup.has_reference:
        arguments = {"params": setup.model.params, "batch": batch.replace(ref_log_probs=None)}
        lowered = setup.stats.lower(*arguments.values())
        # Parameters of the reference: with an adapter, the base is one for both.
        read = "reference parameters" if base is None else "parameters"
        phases.add("reference's log-probs", lowered, arguments, read, "rows of a step")
    frozen = {} if base is None else {"base": base.params}
    arguments = {**frozen, "state": setup.start, "batch": batch}
    absent = ("parameters", "optimizer state")
    lowered = setup.update.lower(setup.start, batch)
    phases.add("update", lowered, arguments, *absent, "rows of a step")
    if setup.config.data.validates:
        arguments = {**frozen, "params": setup.start.params, "batch": batch}
        lowered = setup.validation_sums.lower(setup.start.params, batch)
        phases.add("validation", lowered, arguments, "parameters", "rows of a step")
    process = None
    if devices.chip is None:
        process = phases.add_process(setup.start, absent, chips)
    return Step(phases.compiled, None, process)


def supervised_work(
    config: PlanSFTConfig,
    architecture: tuple[DecoderConfig, LoraSpec | None],
    layout: Layout,
    devices: Devices,
) -> list[Work]:
    """Count the phases of a step on one chip, without validations."""
    (c, lora), loss = architecture, preference_loss(config)
    rows, length = _rows(config), config.mean_tokens or config.longest
    tokens, targets = rows * length, rows * (config.mean_targets or length)
    weights, adapter = counting.parameters(c), 0 if lora is None else count_parameters(lora, c)
    of_shard = tokens * layout.tensor / layout.chips
    work = TrainingWork(
        layers=rows * counting.backbone_flops(c, np.array([0]), np.array([length])),
        of_head=2 * counting.head_weights(c) * targets,
        tokens=tokens,
        passes=3 + (loss is not None),  # a loss on pairs has a forward pass before
        weights=weights,
        adapter=adapter,
        micro_batches=max(1, of_shard / config.batching.max_tokens_per_micro_batch),
    )
    one_pass, update = training_cost(config.model, c, layout, work)
    trained = counting.optimizer_bytes(adapter or weights, config.optimizer)
    parts = {
        "update": update,
        "optimizer": Cost(0.0, trained / (layout.fsdp * layout.tensor)),
    }
    if loss is not None and loss.needs_reference:
        parts = {"reference's log-probs": one_pass} | parts
    return [
        phase_work(name, cost, 1, devices.chip, config.efficiency) for name, cost in parts.items()
    ]


def _rows(config: PlanSFTConfig) -> int:
    """Return the rows of a step: two of a pair."""
    return config.batch_size * (1 if config.loss is None else 2)
