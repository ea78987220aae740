"""Statistics of evaluations: Pass@K, intervals, paired tests, diversity, matched comparisons."""

from entropy_rl.config.registry import public_list as _public_list
from entropy_rl.stats.bootstrap import holm as holm
from entropy_rl.stats.bootstrap import paired_bootstrap as paired_bootstrap
from entropy_rl.stats.bootstrap import sign_flip_p_value as sign_flip_p_value
from entropy_rl.stats.diversity import distinct_ngrams as distinct_ngrams
from entropy_rl.stats.diversity import majority_vote as majority_vote
from entropy_rl.stats.diversity import repetition_rate as repetition_rate
from entropy_rl.stats.matched import pass_at_budget as pass_at_budget
from entropy_rl.stats.matched import pass_at_k_at_equal_length as pass_at_k_at_equal_length
from entropy_rl.stats.pass_at_k import bootstrap_interval as bootstrap_interval
from entropy_rl.stats.pass_at_k import pass_at_k as pass_at_k
from entropy_rl.stats.pass_at_k import pass_at_k_curve as pass_at_k_curve
from entropy_rl.stats.pass_at_k import wilson_interval as wilson_interval

__all__ = _public_list(globals())
