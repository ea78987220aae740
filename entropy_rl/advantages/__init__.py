"""Advantages: transforms (advantages, stats) -> advantages, and how they are chained."""

from entropy_rl.advantages.baselines import gpg as gpg
from entropy_rl.advantages.baselines import group_center as group_center
from entropy_rl.advantages.baselines import group_normalize as group_normalize
from entropy_rl.advantages.baselines import maxrl as maxrl
from entropy_rl.advantages.baselines import opo as opo
from entropy_rl.advantages.baselines import remax as remax
from entropy_rl.advantages.baselines import rloo as rloo
from entropy_rl.advantages.baselines import whiten as whiten
from entropy_rl.advantages.build import advantage_of as advantage_of
from entropy_rl.advantages.build import build_advantage as build_advantage
from entropy_rl.advantages.distillation import on_policy_distillation as on_policy_distillation
from entropy_rl.advantages.gae import gae as gae
from entropy_rl.advantages.gdpo import gdpo as gdpo
from entropy_rl.advantages.penalties import overlong_penalty as overlong_penalty
from entropy_rl.advantages.shaping import shape_by_entropy as shape_by_entropy
from entropy_rl.advantages.transform import Transform as Transform
from entropy_rl.advantages.transform import baseline_and_shaping as baseline_and_shaping
from entropy_rl.advantages.transform import before_values as before_values
from entropy_rl.advantages.transform import chain as chain
from entropy_rl.advantages.transform import is_local as is_local
from entropy_rl.config.registry import public_list as _public_list

__all__ = _public_list(globals())
