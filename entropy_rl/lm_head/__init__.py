"""The head over the vocabulary: log-probs, entropies and losses without full logits."""

from etils import epy as _epy

# Lazy: modules of this package import packages whose modules import one of this package.
with _epy.lazy_api_imports(globals()):
    from entropy_rl.lm_head.fused_loss import fused_head_loss as fused_head_loss
    from entropy_rl.lm_head.log_probs import log_prob_and_entropy as log_prob_and_entropy
    from entropy_rl.lm_head.log_probs import (
        log_prob_and_entropy_from_logits as log_prob_and_entropy_from_logits,
    )
    from entropy_rl.lm_head.reverse_kl import top_k_reverse_kl as top_k_reverse_kl

__all__ = [
    "fused_head_loss",
    "log_prob_and_entropy",
    "log_prob_and_entropy_from_logits",
    "top_k_reverse_kl",
]
