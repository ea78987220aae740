"""Compile the programs of one step in order, with the memory of other resident arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from entropy_rl.distributed.host_memory import process_bytes, trim_heap
from entropy_rl.planning.abstract import AbstractRun
from entropy_rl.planning.compiled import Program, compile_program, tree_bytes
from entropy_rl.planning.decoding import AbstractRollout, at_places, compile_rollout
from entropy_rl.planning.estimate import stats_passes
from entropy_rl.types import TrainState

# The resident arrays of which a phase may take a part.
MINI_BATCHES = "mini-batches"
EVALUATION = "evaluation's "  # before the names of its programs
# Those that may be in the memory of the host until the updates.
_MOMENTS = ("optimizer state", "critic's optimizer state")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A program and the arrays resident beside it.

    Attributes:
      program: The program.
      beside: Name -> bytes of other arrays in the memory of a device while it runs.
    """

    program: Program
    beside: dict[str, int]

    @property
    def peak(self) -> int:
        """Total peak bytes on one device."""
        return self.program.peak + sum(self.beside.values())


@dataclasses.dataclass(frozen=True)
class Step:
    """The programs of a step.

    Attributes:
      phases: The phases, in order.
      cache: Bytes per device of the KV cache of a rollout; None if it is internal to one program,
        or the program is too large.
      process: Bytes of the process beside all arrays, where a device's memory is the host's.
    """

    phases: list[Phase]
    cache: int | None
    process: int | None = None


def resident_bytes(run: AbstractRun) -> dict[str, int]:
    """Return the bytes of the arrays that a run keeps on a device, by name."""
    parts = {
        "parameters": tree_bytes(run.model.params),  # with the frozen ones
        "optimizer state": tree_bytes(run.state.opt_state),
        MINI_BATCHES: run.config.updates_per_step * tree_bytes(run.batch),
        "decoding parameters": tree_bytes(run.decode_params()),
    }
    if run.state.critic is not None:
        parts["critic"] = tree_bytes(run.state.critic.params)
        parts["critic's optimizer state"] = tree_bytes(run.state.critic.opt_state)
    if run.teacher is not None:
        parts["teacher"] = tree_bytes(run.teacher)
    if run.programs.replay is not None:  # rows like those of the mini-batches
        parts["replay buffer"] = run.programs.replay.rules.rollouts * parts[MINI_BATCHES]
    if run.config.loss.kl_coef:
        parts["reference parameters"] = tree_bytes(run.state.params)
    if run.stacked > 1:  # the base and a mini-batch are those of all
        names = ("critic", "replay buffer", "reference parameters")
        names += () if _offloads(run) else _MOMENTS
        own = tree_bytes(run.state.params) + sum(parts.get(name, 0) for name in names)
        parts["the other runs"] = (run.stacked - 1) * own
    return parts


class Phases:
    """Compiled phases of a step, in order.

    Args:
      resident: Name -> bytes of the arrays that a run keeps on a device.
      say: Prints a line of progress.
      elsewhere: Names of those that are in the memory of the host.
    """

    def __init__(
        self,
        resident: dict[str, int],
        say: Callable[[str], None],
        elsewhere: Collection[str] = (),
    ):
        self.compiled: list[Phase] = []
        self._resident, self._say, self._elsewhere = resident, say, elsewhere

    def add(self, name: str, lowered: Any, arguments: dict[str, Any], *absent: str) -> Any:
        """Compile a phase and return its results as shapes; None if it is too large.

        Args:
          name: Display name.
          lowered: The program, from `jax.jit(...).lower`.
          arguments: The shapes it was lowered for, by name.
          *absent: Names of resident arrays that are not in memory beside it: its arguments, and
            what a run frees before.
        """
        program, places = compile_program(name, lowered, arguments)
        self._say(f"compiled in {program.seconds:.0f} s: {name}")
        gone = {*absent, *self._elsewhere}
        beside = {part: size for part, size in self._resident.items() if part not in gone}
        if "batch" in arguments and MINI_BATCHES in beside:  # one of them is an argument
            beside[MINI_BATCHES] -= tree_bytes(arguments["batch"])
        self.compiled.append(Phase(program, beside))
        return None if places is None else at_places(lowered.out_info, places)

    def add_process(self, state: TrainState, absent: Collection[str], local_chips: int) -> int:
        """Add what is only where the memory of a device is that of the host: the write of a
        checkpoint, and beside every phase the process.

        Args:
          state: The state.
          absent: Names of resident arrays that are parts of it, or that a run frees before.
          local_chips: Devices that share the memory.

        Returns:
          Bytes of the process per device.
        """
        beside = {part: size for part, size in self._resident.items() if part not in absent}
        self.compiled.append(Phase(_checkpoint(state), beside))
        # Planning has loaded and compiled what a run does, and has no arrays.
        trim_heap()
        process = process_bytes() // local_chips
        self.compiled = [
            dataclasses.replace(phase, beside=phase.beside | {"process": process})
            for phase in self.compiled
        ]
        return process


def compile_step(
    run: AbstractRun,
    rollout: AbstractRollout,
    evaluation: AbstractRollout | None,
    say: Callable[[str], None],
) -> Step:
    """Compile every large program of a step, and of an evaluation.

    Args:
      run: The run.
      rollout: The rollout of a step.
      evaluation: A call of an evaluation that is larger; None for none.
      say: Prints a line of progress.

    Returns:
      The step, without phases that depend on a program that is too large.
    """
    # Its log-probs and values are computed before it has them.
    new_batch = run.batch.replace(ref_log_probs=None, values=None, rollout_advantages=None)

    phases = Phases(resident_bytes(run), say, _MOMENTS if _offloads(run) else ())
    add = phases.add
    params, of_sampler = run.model.params, "decoding parameters"
    cast, sampled = run.cast()
    add("weight sync", cast.lower(*sampled.values()), sampled, "parameters", of_sampler)
    cache = compile_rollout(rollout, add)
    if evaluation is not None:
        compile_rollout(evaluation, add, EVALUATION)
    if stats_passes(run.config, run.advantage):
        arguments = {"params": params, "batch": new_batch}
        lowered = run.programs.stats.lower(*arguments.values())
        add("log-probs", lowered, arguments, "parameters", of_sampler)
    if run.teacher_stats is not None:
        arguments = {"teacher": run.teacher, "batch": new_batch}
        lowered = run.teacher_stats.lower(*arguments.values())
        add("teacher's log-probs", lowered, arguments, "teacher", of_sampler)
    base, (critic, of_critic) = run.model.base, (run.state.critic, run.programs.critic)
    if critic is not None:
        arguments = {"params": critic.params, "batch": new_batch}
        lowered = of_critic.values.lower(*arguments.values())
        # A critic that is an adapter reads the frozen parameters too.
        is_adapter = base is not None and run.config.critic.path is None
        read = ("critic", "parameters") if is_adapter else ("critic",)
        add("values", lowered, arguments, *read, of_sampler)
    # The state goes through both updates as a whole.
    frozen = {} if base is None else {"base": base.params}
    read = ()
    if run.teacher is not None and run.config.teacher.top_k is not None:
        frozen, read = frozen | {"teacher": run.teacher}, ("teacher",)
    arguments = {**frozen, "state": run.state, "batch": run.batch}
    absent = ("parameters", "critic", *_MOMENTS, of_sampler)
    asked = run.state, run.batch
    add("update", run.programs.update.lower(*asked), arguments, *absent, *read)
    if critic is not None:
        add("critic update", of_critic.update.lower(*asked), arguments, *absent)
    process = None
    if run.devices.chip is None:
        process = phases.add_process(run.state, absent, run.local_chips)
    return Step(phases.compiled, cache, process)


def _offloads(run: AbstractRun) -> bool:
    """Whether moments leave the memory of a device, which on a CPU is that of the host."""
    return run.config.optimizer.offload and run.devices.chip is not None


def _checkpoint(state: TrainState) -> Program:
    """The write of a checkpoint on a host: the state, and buffers of the same size."""
    size = tree_bytes(state)
    largest = ((size, "state"), (size, "buffers of its write"))
    return Program("checkpoint", 0.0, arguments=size, temporaries=size, largest=largest)
