"""Rewards: functions of completions, and their weighted sum."""

from entropy_rl.config.registry import public_list as _public_list
from entropy_rl.rewards.build import build_rewards as build_rewards
from entropy_rl.rewards.judged import correct as correct
from entropy_rl.rewards.judged import graded as graded
from entropy_rl.rewards.judged import part as part
from entropy_rl.rewards.length import length as length
from entropy_rl.rewards.length import overlong as overlong
from entropy_rl.rewards.reward import Reward as Reward
from entropy_rl.rewards.reward import Rewards as Rewards
from entropy_rl.rewards.reward import RewardValues as RewardValues
from entropy_rl.rewards.text import format as format
from entropy_rl.rewards.text import language as language
from entropy_rl.rewards.text import repetition as repetition

__all__ = _public_list(globals())
