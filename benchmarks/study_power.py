"""Power of a comparison of two arms by Pass@K, by simulation.

    python benchmarks/study_power.py

The success rate of problem p in seed s of an arm is

    logit = theta_p + u_s + v_sp (+ a shift in one arm)
    theta ~ N(-2, 2.3²),  u ~ N(0, a²),  v ~ N(0, b²)

with c ~ Binomial(samples, rate) correct samples. Printed is the smallest difference of Pass@K that
a paired t test over seeds, at alpha = 0.05, finds with a probability of 80%.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import expit
from scipy.stats import t as student

from entropy_rl.stats.pass_at_k import pass_at_k

MEAN, DEVIATION = -2.0, 2.3  # of the logits of problems, near those of the model before training
NOISE = ((0.15, 0.5), (0.3, 0.8), (0.5, 1.2))  # of a seed, and of a problem in a seed
ALPHA, POWER = 0.05, 0.8


def simulate(
    shift: float, seeds: int, noise: tuple[float, float], args: argparse.Namespace
) -> tuple[float, float]:
    """(the fraction of simulations that find the shift, the mean difference of Pass@K)."""
    rng = np.random.default_rng(0)
    shape = (args.simulations, 2, seeds, args.problems)
    logits = rng.normal(MEAN, DEVIATION, (args.simulations, 1, 1, args.problems))
    logits = logits + rng.normal(0, noise[0], (*shape[:3], 1)) + rng.normal(0, noise[1], shape)
    logits[:, 1] += shift
    table = pass_at_k(args.samples, np.arange(args.samples + 1), args.k)
    values = table[rng.binomial(args.samples, expit(logits))].mean(axis=-1)
    difference = values[:, 1] - values[:, 0]
    error = difference.std(axis=1, ddof=1) / np.sqrt(seeds)
    found = difference.mean(axis=1) > student.ppf(1 - ALPHA / 2, seeds - 1) * error
    return found.mean(), difference.mean()


def smallest_difference(seeds: int, noise: tuple[float, float], args: argparse.Namespace) -> float:
    """The mean difference of the smallest shift that is found with the power."""
    low, high = 0.0, 5.0
    for _ in range(10):
        middle = (low + high) / 2
        power, difference = simulate(middle, seeds, noise, args)
        low, high = (middle, high) if power < POWER else (low, middle)
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 3], help="of each arm")
    parser.add_argument("--problems", type=int, default=64, help="of the test")
    parser.add_argument("--samples", type=int, default=128, help="of each problem")
    parser.add_argument("-k", type=int, default=64, help="K of Pass@K")
    parser.add_argument("--simulations", type=int, default=1000, help="of each difference")
    args = parser.parse_args()
    print(f"{'seeds':>5} {'sd of a seed':>13} {'of a problem in it':>19} {'difference':>11}")
    for seeds in args.seeds:
        for noise in NOISE:
            found = smallest_difference(seeds, noise, args)
            print(f"{seeds:5} {noise[0]:13} {noise[1]:19} {found:11.3f}", flush=True)


if __name__ == "__main__":
    main()
