"""Countdown: combine all numbers into a target. The built-in game.

game.py       numbers, legal steps, exact difficulty, splits
traces.py     the grammar and random worked examples
judge.py      parser, verdicts and skill metrics
tokenizer.py  word-level tokenizer
task.py       the task class `Countdown`
"""

from entropy_rl.tasks.countdown.task import Countdown
from entropy_rl.tasks.countdown.tokenizer import build_tokenizer

__all__ = ["Countdown", "build_tokenizer"]
