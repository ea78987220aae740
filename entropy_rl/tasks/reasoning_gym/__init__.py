"""reasoning-gym's procedural problems, generated and judged by the package of that name."""

from entropy_rl.tasks.reasoning_gym.task import ReasoningGym

__all__ = ["ReasoningGym"]
