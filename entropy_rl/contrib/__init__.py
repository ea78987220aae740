"""Contributed methods: they do not, or not yet, meet the criteria for the core.

A method is here if its formula is reconstructed, because the paper or its code did not state all of
it, or if it is new or rarely used. Its docstring and docs/methods.md say how far it was compared
with its source. A config names it like any other method. Methods of this package may change or be
removed without a deprecation cycle; see docs/contrib.md.
"""

from entropy_rl.config.registry import public_list as _public_list
from entropy_rl.contrib.archer import archer as archer
from entropy_rl.contrib.archer import low_entropy_kl as low_entropy_kl
from entropy_rl.contrib.aspo import aspo as aspo
from entropy_rl.contrib.asymgrpo import asymgrpo as asymgrpo
from entropy_rl.contrib.controls import misplace_entropy_bonus as misplace_entropy_bonus
from entropy_rl.contrib.controls import scale_by_sign as scale_by_sign
from entropy_rl.contrib.controls import unbounded_entropy_bonus as unbounded_entropy_bonus
from entropy_rl.contrib.eapo import eapo as eapo
from entropy_rl.contrib.external import external_token_weight as external_token_weight
from entropy_rl.contrib.external import meds_reward as meds_reward
from entropy_rl.contrib.external import oger_reward as oger_reward
from entropy_rl.contrib.flexible_clip import flexible_clip as flexible_clip
from entropy_rl.contrib.flexible_clip import flexible_clip_did as flexible_clip_did
from entropy_rl.contrib.flexible_clip import flexible_clip_id as flexible_clip_id
from entropy_rl.contrib.flexible_clip import flexible_clip_od as flexible_clip_od
from entropy_rl.contrib.gtpo import grpo_s as grpo_s
from entropy_rl.contrib.gtpo import gtpo as gtpo
from entropy_rl.contrib.heal import heal as heal
from entropy_rl.contrib.length_adaptive_gae import length_adaptive_gae as length_adaptive_gae
from entropy_rl.contrib.miner import miner as miner
from entropy_rl.contrib.opefo import opefo as opefo
from entropy_rl.contrib.pass_at_k import grpo_passk as grpo_passk
from entropy_rl.contrib.pass_at_k import pass_at_k_training as pass_at_k_training
from entropy_rl.contrib.per_update_entropy import (
    per_update_adaptive_entropy as per_update_adaptive_entropy,
)
from entropy_rl.contrib.pipo import pipo as pipo
from entropy_rl.contrib.policy_split import policy_split as policy_split
from entropy_rl.contrib.qae import qae as qae
from entropy_rl.contrib.s_trace import s_trace as s_trace
from entropy_rl.contrib.ucpo import ucpo as ucpo
from entropy_rl.contrib.uec_replay import uec_replay as uec_replay

__all__ = _public_list(globals())
