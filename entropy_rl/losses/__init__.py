"""Policy-gradient losses: surrogates, token weights, KL terms, controllers."""

from entropy_rl.config.registry import public_list as _public_list
from entropy_rl.losses.aggregation import aggregation_weights as aggregation_weights
from entropy_rl.losses.build import build_loss as build_loss
from entropy_rl.losses.build import build_surrogate as build_surrogate
from entropy_rl.losses.build import build_token_weighting as build_token_weighting
from entropy_rl.losses.clipping import ppo_clip as ppo_clip
from entropy_rl.losses.clipping import unclipped as unclipped
from entropy_rl.losses.controller import Controller as Controller
from entropy_rl.losses.controllers import adaptive_entropy as adaptive_entropy
from entropy_rl.losses.controllers import lagged_adaptive_entropy as lagged_adaptive_entropy
from entropy_rl.losses.covariance_selection import clip_cov as clip_cov
from entropy_rl.losses.covariance_selection import kl_cov as kl_cov
from entropy_rl.losses.entropy_selection import erc as erc
from entropy_rl.losses.entropy_selection import forking_tokens as forking_tokens
from entropy_rl.losses.importance_correction import geometric_rejection as geometric_rejection
from entropy_rl.losses.importance_correction import icepop as icepop
from entropy_rl.losses.importance_correction import sequence_tis as sequence_tis
from entropy_rl.losses.importance_correction import token_tis as token_tis
from entropy_rl.losses.kl import kl_estimate as kl_estimate
from entropy_rl.losses.loss import Loss as Loss
from entropy_rl.losses.loss import LossTerms as LossTerms
from entropy_rl.losses.preference import PreferenceLoss as PreferenceLoss
from entropy_rl.losses.preference import build_preference_loss as build_preference_loss
from entropy_rl.losses.preference import cdpo as cdpo
from entropy_rl.losses.preference import dpo as dpo
from entropy_rl.losses.preference import dpo_norm as dpo_norm
from entropy_rl.losses.preference import ipo as ipo
from entropy_rl.losses.preference import simpo as simpo
from entropy_rl.losses.sequence_ratio import gmpo as gmpo
from entropy_rl.losses.sequence_ratio import gspo as gspo
from entropy_rl.losses.soft_clipping import ce_gppo as ce_gppo
from entropy_rl.losses.soft_clipping import cispo as cispo
from entropy_rl.losses.soft_clipping import dppo_tv as dppo_tv
from entropy_rl.losses.soft_clipping import gppo as gppo
from entropy_rl.losses.soft_clipping import sapo as sapo
from entropy_rl.losses.surrogate import ClipMasks as ClipMasks
from entropy_rl.losses.surrogate import Surrogate as Surrogate
from entropy_rl.losses.surrogate import no_clips as no_clips
from entropy_rl.losses.token_weights import TokenWeighting as TokenWeighting
from entropy_rl.losses.token_weights import TokenWeights as TokenWeights
from entropy_rl.losses.token_weights import combine as combine
from entropy_rl.losses.value import value_loss as value_loss

__all__ = _public_list(globals())
