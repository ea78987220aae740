"""Arithmetic: several short expressions in one question. For instruction-tuned language models.

expressions.py  expressions, their order-free keys, questions, worked examples
judge.py        reads equations; verdicts and skill metrics
task.py         the task class `Arithmetic`
"""

from entropy_rl.tasks.arithmetic.task import Arithmetic

__all__ = ["Arithmetic"]
