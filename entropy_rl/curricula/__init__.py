"""Curricula: which problems a step has, by what was recorded of earlier steps."""

from entropy_rl.config.registry import public_list as _public_list
from entropy_rl.curricula.curriculum import Curriculum as Curriculum
from entropy_rl.curricula.curriculum import build_curriculum as build_curriculum
from entropy_rl.curricula.learnability import learnability as learnability
from entropy_rl.curricula.replay_failed import replay_failed as replay_failed

__all__ = _public_list(globals())
