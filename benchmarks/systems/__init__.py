"""The systems that are compared. Each file has the same three functions and runs in its own
environment.

versions()                 -> {package: version}
probe(directory)           -> {"log_probs", "entropy", "grad_norm"} over the first group of the
fixed batch options(directory, work)   -> {name: make}, the ways in which the system can do a work;
`make()` returns
                              `run(number) -> useful tokens`, and the number seeds what is sampled
"""
