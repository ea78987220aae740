"""Check that a step fits into the memory of a chip, and suggest settings if it does not."""

from __future__ import annotations

from collections.abc import Callable

from entropy_rl.config.plan import PlanConfig
from entropy_rl.config.sft import SFTConfig
from entropy_rl.config.train import TrainConfig
from entropy_rl.planning.chips import GiB
from entropy_rl.planning.step import EVALUATION, Phase
from entropy_rl.rollout.batching import DecodingPlan

_OF_ROLLOUT = ("prefill", "cache growth", "decode", "rollout")
_OF_MINI_BATCH = ("log-probs", "teacher's log-probs", "update", "values", "critic update")


def what_is_too_large(
    phases: list[Phase], memory: float, suggest: Callable[[Phase], list[str]]
) -> str | None:
    """Describe the phase with the highest peak if it exceeds the memory; None if all phases fit.

    Args:
      phases: Phases of the step.
      memory: Memory of a chip in bytes.
      suggest: Returns what may help a phase.
    """
    refused = [phase for phase in phases if phase.program.refused is not None]
    worst = max(refused or phases, key=lambda phase: phase.peak)
    if worst.peak <= memory and not refused:
        return None
    buffers = [*worst.program.largest, *((size, name) for name, size in worst.beside.items())]
    named = ", ".join(f"{name} {_gib(size)}" for size, name in sorted(buffers, reverse=True)[:4])
    needed = f"{_gib(worst.peak)} of {_gib(memory)} GiB of a chip"
    return (
        f"does not fit: {worst.program.name} needs {needed}; largest (GiB): {named}; "
        f"try {'; or '.join(suggest(worst))}"
    )


def suggest_for_training(
    worst: Phase, config: PlanConfig, decoding: DecodingPlan, on_host: bool
) -> list[str]:
    """Return what may help a phase of reinforcement learning.

    Args:
      worst: The phase.
      config: The config.
      decoding: Decoding plan of the rollout.
      on_host: Whether the memory of the devices is that of their host, so that neither a mesh nor
        offloading helps.
    """
    ideas, has_mesh = [], not on_host and config.stacked == 1
    moments = any("optimizer state" in name for name in worst.beside)
    if moments and not config.optimizer.offload and not on_host:
        ideas.append("--optimizer.offload true")
    name = worst.program.name.removeprefix(EVALUATION)
    if name in _OF_ROLLOUT:
        if name != worst.program.name:
            ideas.append("a smaller evaluation.rows_per_call")
        elif decoding.slots > 1:
            ideas.append(f"--decoding.slots N with N < {decoding.slots}")
        if has_mesh:
            ideas.append("a larger mesh.tensor, which splits decoding parameters and caches")
    elif name in _OF_MINI_BATCH:
        longest = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
        section, own = "batching", config.critic and config.critic.max_tokens_per_micro_batch
        if name in ("values", "critic update") and own:
            section = "critic"
        tokens = getattr(config, section).max_tokens_per_micro_batch
        updates = name in ("update", "critic update")
        remat = config.model.remat if updates else "full"
        ideas += _of_micro_batches(section, tokens, longest, remat, has_mesh)
    elif has_mesh:
        ideas.append("a larger mesh.tensor, or more devices along fsdp")
    return _or_lora(ideas, config)


def suggest_for_supervised(worst: Phase, config: SFTConfig, on_host: bool) -> list[str]:
    """Return what may help a phase of supervised training.

    Args:
      worst: The phase.
      config: The config.
      on_host: As in `suggest_for_training`.
    """
    ideas = []
    if worst.program.name != "checkpoint":
        tokens, longest = config.batching.max_tokens_per_micro_batch, config.data.max_tokens
        remat = config.model.remat if worst.program.name == "update" else "full"
        ideas += _of_micro_batches("batching", tokens, longest, remat, not on_host)
    return _or_lora(ideas, config)


def _or_lora(ideas: list[str], config: TrainConfig | SFTConfig) -> list[str]:
    lora = "a section model.lora, which trains an adapter of frozen parameters"
    return [*ideas, lora] if config.model.lora is None else ideas or ["more memory"]


def _of_micro_batches(
    section: str, tokens: int, longest: int, remat: str, has_mesh: bool
) -> list[str]:
    ideas = []
    if tokens > longest:
        ideas.append(f"a smaller {section}.max_tokens_per_micro_batch, {longest} at least")
    if remat != "full":
        ideas.append("--model.remat full")
    return [*ideas, "a mesh with more devices along fsdp or tensor"] if has_mesh else ideas


def _gib(size: float) -> str:
    return f"{size / GiB:.2f}"
