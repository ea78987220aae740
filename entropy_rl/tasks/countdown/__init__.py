"""Countdown: combine all numbers into a target. The task that ships with the package.

game.py       numbers, legal steps, exact difficulty, splits
traces.py     the grammar, and worked examples written in it
judge.py      one parser, from which verdicts and skill measures are read
tokenizer.py  the word-level tokenizer
task.py       `Countdown`, which puts them together
"""

from entropy_rl.tasks.countdown.task import Countdown
from entropy_rl.tasks.countdown.tokenizer import build_tokenizer, save_tokenizer

__all__ = ["Countdown", "build_tokenizer", "save_tokenizer"]
