"""How the cost of this library grows: with packed tokens, the vocabulary, the group and the spread
of lengths.

    python benchmarks/scaling.py --output scaling.json --plot scaling.png

One factor is varied at a time, around a small model. Every point is compiled, run once and then
timed; the least CPU-seconds of the runs count. A line is fitted to each factor, and the points are
named at which the local slope changes by more than a quarter.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the library need not be installed
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation is not measured here, so it may be kept from one time to the next.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

import report  # noqa: E402
import side_by_side  # noqa: E402
import worker  # noqa: E402
import workload  # noqa: E402

WORK = ("rollout", "score", "update")
BEND = 0.25  # share by which a slope must differ from the one before
NOISE = 0.1  # of the cost: a change of slope that adds less than this is none

BASE = workload.Size(
    layers=2,
    hidden=128,
    heads=2,
    kv_heads=1,
    mlp=512,
    vocab=4096,
    prompts=8,
    prompt_tokens=32,
    new_tokens=128,
)
_MEAN = 48  # tokens of a completion while the spread is varied


class Factor(NamedTuple):
    """A varied quantity: its unit, workload sizes by value, and whether it counts tokens."""

    unit: str
    per: float  # the slope is reported per this many units
    sizes: dict[float, workload.Size]
    is_tokens: bool = False


FACTORS = {
    "packed tokens": Factor(
        "response tokens",
        1000,
        {
            share: dataclasses.replace(BASE, mean_share=share)
            for share in (0.05, 0.2, 0.4, 0.7, 1.0)
        },
        is_tokens=True,
    ),
    "vocabulary": Factor(
        "entries", 1000, {v: dataclasses.replace(BASE, vocab=v) for v in (1024, 4096, 16384, 32768)}
    ),
    "group size": Factor(
        "samples of a prompt, of 64 rows",
        1,
        {g: dataclasses.replace(BASE, samples=g, prompts=64 // g) for g in (2, 4, 8, 16, 32)},
    ),
    "spread": Factor(
        f"limit over mean length ({_MEAN} tokens)",
        1,
        {
            limit / _MEAN: dataclasses.replace(BASE, new_tokens=limit, mean_share=_MEAN / limit)
            for limit in (48, 72, 120, 192)
        },
    ),
}


class Line(NamedTuple):
    """y = start + slope x, and the x at which the points leave it."""

    start: float
    slope: float
    bends: tuple[float, ...]


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line of least squares, and the bends.

    Args:
      x: Two or more different values, ascending.
      y: The cost at each.

    Returns:
      The line; a point is a bend if the slope behind it differs by more than `BEND` from the slope
      before it, and by more than `NOISE` of its cost over the next step.

    Raises:
      ValueError: If x does not ascend or the lengths differ.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError(
            f"x: {x.tolist()} is not allowed; allowed: two or more ascending values, one for each y"
        )
    slope, start = np.polyfit(x, y, 1)
    local = np.diff(y) / np.diff(x)
    change = np.abs(np.diff(local))
    is_bend = (change > BEND * np.abs(local[:-1])) & (
        change * np.diff(x)[1:] > NOISE * np.abs(y[1:-1])
    )
    return Line(float(start), float(slope), tuple(x[1:-1][is_bend].tolist()))


def time_point(size: workload.Size, work: str, runs: int) -> dict[str, float]:
    """Least CPU-seconds and wall of `runs` runs after a first one, and the mean of their packed
    tokens.
    """
    from systems import ours

    with tempfile.TemporaryDirectory() as directory:
        workload.prepare(Path(directory), size)
        (make,) = list(ours.options(Path(directory), work).values())[:1]
        run = make()
        run(0)
        measured = [worker.measure(run, number) for number in range(1, 1 + runs)]
    return {
        "cpu": min(m["cpu"] for m in measured),
        "wall": min(m["wall"] for m in measured),
        "tokens": float(np.mean([m["tokens"] for m in measured])),
    }


def sweep(factor: Factor, work: str, runs: int) -> dict[str, Any]:
    """Times a factor and fits its line.

    Returns:
      points (x, cpu, wall, tokens), and start, slope (CPU-seconds per `factor.per`) and bends of
      the line.
    """
    points = []
    for value, size in factor.sizes.items():
        point = time_point(size, work, runs)
        points.append({"x": point["tokens"] if factor.is_tokens else value} | point)
        side_by_side.say(f"  {work}: {points[-1]['x']:.5g} {factor.unit}: {point['cpu']:.3f} CPU-s")
    points.sort(key=lambda point: point["x"])
    line = fit([point["x"] for point in points], [point["cpu"] for point in points])
    return {
        "points": points,
        "start": line.start,
        "slope": line.slope * factor.per,
        "bends": line.bends,
    }


def markdown(result: dict[str, Any]) -> str:
    """A table for each factor, as in the README."""
    machine = result["machine"]
    parts = [
        f"`{result['command']}`, {result['date']}, commit {result['commit']}, on "
        f"{machine['cores']} cores of "
        f"{machine['cpu']} (load before: {machine['load']}); least CPU-seconds of "
        f"{result['runs']} runs."
    ]
    for name, works in result["factors"].items():
        factor = FACTORS[name]
        lines = [
            f"| {name} ({factor.unit}) | CPU-s at each | slope | bends at |",
            "| --- | --- | --- | --- |",
        ]
        for work, found in works.items():
            points = ", ".join(f"{_number(p['x'])}: {p['cpu']:.3g}" for p in found["points"])
            per = f"{factor.per:g} {factor.unit}" if factor.per != 1 else "unit"
            bends = ", ".join(_number(x) for x in found["bends"]) or "none"
            slope = f"{found['start']:.2g} {found['slope']:+.2g} CPU-s per {per}"
            lines.append(f"| {report.TITLES[work]} | {points} | {slope} | {bends} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _number(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:g}"


def plot(result: dict[str, Any], file: Path) -> None:
    """A panel for each factor, with points, fitted lines and a ring around each bend."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(result["factors"])
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(4 * len(names), 3.6), layout="constrained"
    )
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        factor = FACTORS[name]
        for color, (work, found) in zip(
            ("C0", "C1", "C2"), result["factors"][name].items(), strict=False
        ):
            x, y = (np.array([p[field] for p in found["points"]]) for field in ("x", "cpu"))
            axis.plot(x, y, "o", color=color, label=report.TITLES[work])
            axis.plot(
                x, found["start"] + found["slope"] / factor.per * x, "-", color=color, alpha=0.5
            )
            bent = np.isin(x, found["bends"])
            axis.plot(x[bent], y[bent], "o", color=color, markersize=12, fillstyle="none")
        axis.set_title(name)
        axis.set_xlabel(factor.unit)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("CPU-seconds (ring: a bend)")
    np.atleast_1d(axes)[0].legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    description, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--factors", nargs="+", choices=FACTORS, default=list(FACTORS), help="default: all")
    add("--work", nargs="+", choices=WORK, default=list(WORK), help="default: all")
    add("--runs", type=int, default=3, help="timed runs of a point; default: 3")
    add("--output", type=Path, help="a JSON file for the points and lines")
    add("--plot", type=Path, help="a PNG of them")
    add("--markdown", action="store_true", help="print what stands in the README")
    add("--show", type=Path, help="run nothing; print the tables of this JSON file, and plot it")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error(f"--runs: {arguments.runs} is not allowed; allowed: >= 1")
    if arguments.show:
        try:
            result = json.loads(arguments.show.read_text())
        except (OSError, ValueError) as error:
            parser.error(f"--show: {error}")
    else:
        result = side_by_side.header("scaling.py") | {"runs": arguments.runs, "factors": {}}
        for name in arguments.factors:
            side_by_side.say(name)
            works = {work: sweep(FACTORS[name], work, arguments.runs) for work in arguments.work}
            result["factors"][name] = works
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        plot(result, arguments.plot)
    text = markdown(result)
    print(text if arguments.markdown else report.aligned(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
