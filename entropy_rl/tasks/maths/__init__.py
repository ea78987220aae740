"""Maths problems with a final answer: data sets, prompts, and verdicts."""

from entropy_rl.tasks.maths.task import Maths

__all__ = ["Maths"]
