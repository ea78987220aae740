"""LM head fused with log-softmax and entropy, without the logits of a whole batch."""
