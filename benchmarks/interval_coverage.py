"""Coverage of the intervals of Pass@K, by simulation.

    python benchmarks/interval_coverage.py --bootstrap

A test set of P problems has success rates p ~ Beta(a, b), and c ~ Binomial(64, p) correct samples
of each; the true Pass@K is 1 - E[(1 - p)^K]. Printed is how often a 95% interval covers it.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import betaln

from entropy_rl.stats import bootstrap_interval, wilson_interval
from entropy_rl.stats.pass_at_k import Interval, pass_at_k

SAMPLES = 64
KS = np.array([1, 8, 32, 60, 64])
PRIORS = ((1.0, 1.0), (0.3, 1.0), (0.1, 0.6))
PROBLEMS = (30, 200)


def simulated_values(
    problems: int, a: float, b: float, simulations: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(pass@k f64[problems, simulations, ks], true values f64[ks])."""
    rng = np.random.default_rng(seed)
    correct = rng.binomial(SAMPLES, rng.beta(a, b, (simulations, problems))).T
    table = pass_at_k(SAMPLES, np.arange(SAMPLES + 1)[:, None], KS)
    return table[correct], 1 - np.exp(betaln(a, b + KS) - betaln(a, b))


def coverage(interval: Interval, truth: np.ndarray) -> np.ndarray:
    """f64[ks], the fraction of simulations whose interval contains the true value."""
    return np.mean((interval.low <= truth + 1e-12) & (truth - 1e-12 <= interval.high), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=4000, help="of each cell")
    parser.add_argument("--bootstrap", action="store_true", help="also the percentile bootstrap")
    args = parser.parse_args()
    methods = {"wilson": wilson_interval}
    if args.bootstrap:
        methods["bootstrap"] = bootstrap_interval
    print(f"{'interval':10} {'problems':>8} {'p ~ Beta':>12}", *(f"K={k:<5}" for k in KS))
    for name, method in methods.items():
        simulations = args.simulations if name == "wilson" else min(args.simulations, 1500)
        for problems in PROBLEMS:
            for a, b in PRIORS:
                values, truth = simulated_values(problems, a, b, simulations)
                covered = coverage(method(values), truth)
                print(
                    f"{name:10} {problems:8} {f'({a:g}, {b:g})':>12}",
                    *(f"{x:<7.3f}" for x in covered),
                    flush=True,
                )


if __name__ == "__main__":
    main()
