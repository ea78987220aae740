"""The systems that are compared. Each file has the same three functions and runs in its own
environment.

versions()                 -> {package: version}
probe(directory, lora)     -> {"log_probs", "entropy", "grad_norm", "trainable"}: [1, G, N] over
                              the first group of the fixed batch, the norm of the GRPO gradient, and
                              the number of trained parameters; with LoRA [2, G, N], by the fresh
                              adapter and by that of `workload.draw_adapter`, which has the norm
options(directory, work)   -> {name: make}, the ways in which the system can do a work; `make()`
                              returns `run(number) -> useful tokens`, and the number seeds what is
                              sampled
"""
