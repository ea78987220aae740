"""Math problems with a final answer: data sets, prompts, and verdicts."""

from entropy_rl.tasks.math.task import Math

__all__ = ["Math"]
