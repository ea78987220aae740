"""Check that a step fits into the memory of a chip, and suggest settings if it does not."""

from __future__ import annotations

from entropy_rl.config.train import TrainConfig
from entropy_rl.planning.chips import GiB
from entropy_rl.planning.step import Phase
from entropy_rl.rollout.batching import DecodingPlan

_OF_ROLLOUT = ("prefill", "cache growth", "decode", "rollout")
_OF_MINI_BATCH = ("log-probs", "teacher's log-probs", "update", "values", "critic update")


def what_is_too_large(
    phases: list[Phase], memory: float, config: TrainConfig, decoding: DecodingPlan
) -> str | None:
    """Describe the phase with the highest peak if it exceeds the memory; None if all phases fit.

    Args:
      phases: Phases of the step.
      memory: Memory of a chip in bytes.
      config: The config.
      decoding: Decoding plan of the rollout.
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
        f"try {_suggestion(worst, config, decoding)}"
    )


def _suggestion(worst: Phase, config: TrainConfig, decoding: DecodingPlan) -> str:
    ideas = []
    if not config.optimizer.offload and any("optimizer state" in name for name in worst.beside):
        ideas.append("--optimizer.offload true")
    if worst.program.name in _OF_ROLLOUT:
        if decoding.slots > 1:
            ideas.append(f"--decoding.slots N with N < {decoding.slots}")
        ideas.append("a larger mesh.tensor, which splits decoding parameters and caches")
    elif worst.program.name in _OF_MINI_BATCH:
        longest = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
        section, own = "batching", config.critic and config.critic.max_tokens_per_micro_batch
        if worst.program.name in ("values", "critic update") and own:
            section = "critic"
        if getattr(config, section).max_tokens_per_micro_batch > longest:
            ideas.append(f"a smaller {section}.max_tokens_per_micro_batch, {longest} at least")
        if config.model.remat != "full" and worst.program.name in ("update", "critic update"):
            ideas.append("--model.remat full")
        ideas.append("a mesh with more devices along fsdp or tensor")
    else:
        ideas.append("a larger mesh.tensor, or more devices along fsdp")
    return "; or ".join(ideas)


def _gib(size: float) -> str:
    return f"{size / GiB:.2f}"
