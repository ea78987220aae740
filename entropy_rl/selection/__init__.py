"""Selections: which tokens the loss reads and with what weight, (advantages, stats) -> weights."""

from entropy_rl.selection.build import build_selection as build_selection
from entropy_rl.selection.covariance import clip_cov as clip_cov
from entropy_rl.selection.covariance import kl_cov as kl_cov
from entropy_rl.selection.entropy import erc as erc
from entropy_rl.selection.entropy import forking_tokens as forking_tokens
from entropy_rl.selection.entropy import opefo as opefo
from entropy_rl.selection.mismatch import geometric_rejection as geometric_rejection
from entropy_rl.selection.mismatch import icepop as icepop
from entropy_rl.selection.mismatch import sequence_tis as sequence_tis
from entropy_rl.selection.mismatch import token_tis as token_tis
from entropy_rl.selection.selection import Selection as Selection
from entropy_rl.selection.selection import TokenWeights as TokenWeights
from entropy_rl.selection.selection import combine as combine
