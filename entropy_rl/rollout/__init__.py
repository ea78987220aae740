from entropy_rl.rollout.generate import GenerateFn, make_generate, sample_keys

__all__ = ["GenerateFn", "make_generate", "sample_keys"]
