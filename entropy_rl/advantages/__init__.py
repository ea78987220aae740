"""Advantages: transforms (advantages, stats) -> advantages, and how they are chained."""

from entropy_rl.advantages.baselines import group_center as group_center
from entropy_rl.advantages.baselines import group_normalize as group_normalize
from entropy_rl.advantages.baselines import leave_one_out as leave_one_out
from entropy_rl.advantages.baselines import length_weighted_center as length_weighted_center
from entropy_rl.advantages.baselines import rescaled_group_center as rescaled_group_center
from entropy_rl.advantages.baselines import whiten as whiten
from entropy_rl.advantages.build import build_advantage as build_advantage
from entropy_rl.advantages.controls import misplace_entropy_bonus as misplace_entropy_bonus
from entropy_rl.advantages.controls import scale_by_sign as scale_by_sign
from entropy_rl.advantages.entropy_rewards import row_entropy_rewards as row_entropy_rewards
from entropy_rl.advantages.entropy_rewards import token_entropy_rewards as token_entropy_rewards
from entropy_rl.advantages.rarity import favor_rare_correct as favor_rare_correct
from entropy_rl.advantages.rarity import mine_solved_groups as mine_solved_groups
from entropy_rl.advantages.risk_baselines import asymmetric_normalize as asymmetric_normalize
from entropy_rl.advantages.risk_baselines import best_minus_second as best_minus_second
from entropy_rl.advantages.risk_baselines import pass_at_k_normalize as pass_at_k_normalize
from entropy_rl.advantages.risk_baselines import quantile_normalize as quantile_normalize
from entropy_rl.advantages.shaping import amplify_by_entropy as amplify_by_entropy
from entropy_rl.advantages.shaping import shape_by_entropy as shape_by_entropy
from entropy_rl.advantages.transform import NotYetKnown as NotYetKnown
from entropy_rl.advantages.transform import Transform as Transform
from entropy_rl.advantages.transform import baseline_and_shaping as baseline_and_shaping
from entropy_rl.advantages.transform import chain as chain
from entropy_rl.advantages.transform import is_local as is_local
