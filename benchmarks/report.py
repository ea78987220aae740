"""From raw runs to the tables: spread, ratios round by round, Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Runs = Sequence[dict[str, float]]
MiB = 2**20

TITLES = {
    "rollout": "Rollout",
    "score": "Log-prob and entropy",
    "update": "GRPO update",
    "step": "Whole RL step",
    "episodes": "Whole RL step of episodes",
    "lora-update": "GRPO update of a LoRA adapter",
    "lora-step": "Whole RL step with a LoRA adapter",
}


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """(min, median, max)."""
    values = sorted(values)
    return values[0], statistics.median(values), values[-1]


def per_token(runs: Runs, field: str) -> list[float]:
    """Seconds per useful token of every run: what is sampled differs in length from system to
    system.
    """
    return [run[field] / run["tokens"] for run in runs]


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over the rounds of theirs / ours, so that a slow minute of the machine hits both
    sides.

    Raises:
      ValueError: If the numbers of rounds differ.
    """
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def ratios(theirs: Runs, ours: Runs) -> dict[str, float]:
    """How many times more a system needs than ours, per useful token; of peak memory, per run.

    Returns:
      cpu, wall and memory; above 1, ours needs less.
    """
    result = {
        field: ratio(per_token(theirs, field), per_token(ours, field)) for field in ("cpu", "wall")
    }
    return result | {
        "memory": ratio(*([run["peak_rss"] for run in runs] for runs in (theirs, ours)))
    }


def _figures(values: Iterable[float], digits: int = 3) -> str:
    return " / ".join(_short(value, digits) for value in spread(values))


def _short(value: float, digits: int = 3) -> str:
    """Three significant digits and no exponent."""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text


def case_table(case: dict[str, Any]) -> str:
    """The table of one size and one work."""
    header = [
        "system",
        "useful tokens",
        "CPU-s min / median / max",
        "wall s min / median / max",
        "useful tokens per CPU-s",
        "peak MiB (of that, the run)",
        "first run, with compilation: CPU-s (wall s)",
        "CPU, wall, memory against ours",
    ]
    lines = [_row(header), _row(["---"] * len(header))]
    ours = case["systems"].get("ours", {}).get("runs")
    for name, result in case["systems"].items():
        if "error" in result:
            lines.append(_row([name, result["error"]] + [""] * (len(header) - 2)))
            continue
        runs, first = result["runs"], result["first"]
        against = ""
        if ours and name != "ours" and len(ours) == len(runs):
            against = ", ".join(f"{value:.2f}x" for value in ratios(runs, ours).values())
        lines.append(
            _row(
                [
                    name,
                    _short(statistics.median(run["tokens"] for run in runs), 5),
                    _figures(run["cpu"] for run in runs),
                    _figures(run["wall"] for run in runs),
                    _short(statistics.median(1 / value for value in per_token(runs, "cpu"))),
                    f"{_median_mib(run['peak_rss'] for run in runs)} "
                    f"({_median_mib(run['peak_rss'] - run['rss_before'] for run in runs)})",
                    f"{_short(first['cpu'])} ({_short(first['wall'])})",
                    against,
                ]
            )
        )
    return "\n".join(lines)


def _median_mib(values: Iterable[float]) -> str:
    return f"{statistics.median(values) / MiB:.0f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def markdown(result: dict[str, Any]) -> str:
    """Everything that the README shows of a result: what ran where, the checks and the tables."""
    machine = result["machine"]
    versions = (
        "; ".join(f"{n} {v}" for n, v in found.items()) for found in result["versions"].values()
    )
    parts = [
        f"`{result['command']}`, {result['date']}, commit {result['commit']}, on "
        f"{machine['cores']} cores of "
        f"{machine['cpu']} with {machine['memory_gib']} GiB (load before: {machine['load']}); "
        f"{'; '.join(versions)}. Ratios are medians over the rounds of what a system needs per "
        "useful token "
        "against ours, and of peak memory: above 1, ours needs less."
    ]
    for name, message in result["failed"].items():
        parts.append(f"{name} did not run: {message}")
    for size, checks in result["checks"].items():
        said = []
        for system, check in checks.items():
            if "error" in check:
                said.append(f"{system} not compared ({check['error']})")
            else:
                said.append(
                    f"{system} {check['log_prob']:.0e}, {check['entropy']:.0e}, "
                    f"{check['grad_norm']:.0e}"
                )
        if said:
            counts = {check["trainable"] for check in checks.values() if "trainable" in check}
            trained = "".join(f"; {count} parameters are trained" for count in counts)
            parts.append(
                f"Same model ({size}{trained}); greatest difference to ours in log-prob and "
                "entropy (nats), and in "
                f"the norm of the GRPO gradient (relative): {'; '.join(said)}."
            )
    for case in result["cases"]:
        rounds = max((len(s.get("runs", ())) for s in case["systems"].values()), default=0)
        chosen = (f"{name}: {s['option']}" for name, s in case["systems"].items() if "option" in s)
        parts.append(
            f"**{TITLES[case['work']]}, {case['size']}** ({rounds} rounds; {'; '.join(chosen)})"
        )
        parts.append(case_table(case))
        parts.extend(_prefilled(case["systems"]))
    return "\n\n".join(parts)


def _prefilled(systems: dict[str, dict[str, Any]]) -> list[str]:
    """What a step of episodes prefills, as a paragraph; none for other work."""
    said = []
    for name, result in systems.items():
        runs = [run for run in result.get("runs", ()) if "again" in run]
        if runs:
            names = ("prompt_tokens", "observation_tokens", "again")
            counts = (statistics.median(run[field] for run in runs) for field in names)
            prompts, observations, again = (f"{count:.0f}" for count in counts)
            said.append(
                f"{name} {prompts} of prompts, {observations} of observations, and {again} of the "
                "turns before once more"
            )
    return [f"Tokens that a step prefills (medians): {'; '.join(said)}."] if said else []


def aligned(text: str) -> str:
    """The same with the columns of each table below each other, for a terminal."""
    lines, table = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if table:
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            rows = [row for row in table if set(row) != {"---"}]
            lines += [
                "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip()
                for row in rows
            ]
            table = []
        lines.append(line)
    return "\n".join(lines).rstrip()
