"""Coverage of the intervals of Pass@K, by simulation.

    python benchmarks/interval_coverage.py --bootstrap
    python benchmarks/interval_coverage.py --few

A test set of P problems has success rates p ~ Beta(a, b), and c ~ Binomial(64, p) correct samples
of each; the true Pass@K is 1 - E[(1 - p)^K]. Printed is how often a 95% interval covers it.

`--few` prints instead, for few problems, how often the bootstrap intervals cover: of the mean of
log-normal values (σ = 0.5), such as lengths, and of the difference of Pass@K of two runs with their
own p ~ Beta(0.3, 1), whose true value is 0. Beside it is how often one of four independent such
comparisons at K = 1 is significant at 0.05 after Holm's correction, by either p-value.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import betaln

from entropy_rl.stats import (
    bootstrap_interval,
    holm,
    paired_bootstrap,
    sign_flip_p_value,
    wilson_interval,
)
from entropy_rl.stats.pass_at_k import Interval, pass_at_k

SAMPLES = 64
KS = np.array([1, 8, 32, 60, 64])
PRIORS = ((1.0, 1.0), (0.3, 1.0), (0.1, 0.6))
PROBLEMS = (30, 200)
FEW = (2, 4, 8, 16, 30, 64)
COMPARED_KS = np.array([1, 4, 16, 32])


def simulated_values(
    problems: int, a: float, b: float, simulations: int, seed: int = 0, ks: np.ndarray = KS
) -> tuple[np.ndarray, np.ndarray]:
    """(pass@k f64[problems, simulations, ks], true values f64[ks])."""
    rng = np.random.default_rng(seed)
    correct = rng.binomial(SAMPLES, rng.beta(a, b, (simulations, problems))).T
    table = pass_at_k(SAMPLES, np.arange(SAMPLES + 1)[:, None], ks)
    return table[correct], 1 - np.exp(betaln(a, b + ks) - betaln(a, b))


def coverage(interval: Interval, truth: np.ndarray) -> np.ndarray:
    """f64[ks], the fraction of simulations whose interval contains the true value."""
    return np.mean((interval.low <= truth + 1e-12) & (truth - 1e-12 <= interval.high), axis=0)


def percentile_bootstrap(values: np.ndarray) -> Interval:
    """`bootstrap_interval` without its rule for equal values, which gives them an interval."""
    mean, low, high = bootstrap_interval(values)
    equal = np.isinf(low)
    return Interval(mean, np.where(equal, mean, low), np.where(equal, mean, high))


def length_coverage(problems: int, simulations: int, sigma: float = 0.5) -> float:
    """Coverage of `bootstrap_interval` for log-normal values."""
    values = np.random.default_rng(0).lognormal(0, sigma, (problems, simulations))
    return float(coverage(bootstrap_interval(values), np.exp(sigma**2 / 2)))


def difference_coverage(problems: int, simulations: int) -> tuple[np.ndarray, float, float]:
    """Coverage of `paired_bootstrap` at each of `COMPARED_KS`, and two family-wise errors.

    These are the fractions of four tests at K = 1 with an adjusted p <= 0.05: by the p-values of
    the bootstrap, and by those of sign flips.
    """
    one, other = (
        simulated_values(problems, 0.3, 1.0, simulations, seed, COMPARED_KS)[0] for seed in (0, 1)
    )
    test = paired_bootstrap(one, other, resamples=2000, is_fraction=True)
    flips = sign_flip_p_value(one, other, patterns=2000)
    errors = [
        float(np.mean([holm(p).min() <= 0.05 for p in p_values[:, 0].reshape(-1, 4)]))
        for p_values in (test.p_value, flips)
    ]
    return coverage(test, np.zeros(len(COMPARED_KS))), *errors


def print_few(simulations: int) -> None:
    """Print the tables of `--few`."""
    ks = (f"K={k:<5}" for k in COMPARED_KS)
    print(f"{'problems':>8} {'lengths':>8}", *ks, "Holm, bootstrap p  Holm, sign flips")
    for problems in FEW:
        covered, by_bootstrap, by_flips = difference_coverage(problems, simulations)
        print(
            f"{problems:8} {length_coverage(problems, simulations):8.3f}",
            *(f"{x:<7.3f}" for x in covered),
            f"{by_bootstrap:17.3f}  {by_flips:16.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=4000, help="of each cell")
    parser.add_argument("--bootstrap", action="store_true", help="also the percentile bootstrap")
    parser.add_argument("--few", action="store_true", help="bootstrap intervals of few problems")
    args = parser.parse_args()
    if args.few:
        print_few(args.simulations)
        return
    methods = {"wilson": wilson_interval}
    if args.bootstrap:
        methods["bootstrap"] = percentile_bootstrap
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
