"""Surrogates: what is minimised, (advantages, stats) -> losses of the tokens."""

from entropy_rl.surrogates.build import build_surrogate as build_surrogate
from entropy_rl.surrogates.flexible import flexible_clip as flexible_clip
from entropy_rl.surrogates.flexible import flexible_clip_did as flexible_clip_did
from entropy_rl.surrogates.flexible import flexible_clip_id as flexible_clip_id
from entropy_rl.surrogates.flexible import flexible_clip_od as flexible_clip_od
from entropy_rl.surrogates.ratio import ppo_clip as ppo_clip
from entropy_rl.surrogates.ratio import unclipped as unclipped
from entropy_rl.surrogates.row import gmpo as gmpo
from entropy_rl.surrogates.row import gspo as gspo
from entropy_rl.surrogates.row import s_trace as s_trace
from entropy_rl.surrogates.soft import ce_gppo as ce_gppo
from entropy_rl.surrogates.soft import cispo as cispo
from entropy_rl.surrogates.soft import dppo_tv as dppo_tv
from entropy_rl.surrogates.soft import gppo as gppo
from entropy_rl.surrogates.soft import sapo as sapo
from entropy_rl.surrogates.surrogate import ClipMasks as ClipMasks
from entropy_rl.surrogates.surrogate import Surrogate as Surrogate
from entropy_rl.surrogates.surrogate import no_clips as no_clips
