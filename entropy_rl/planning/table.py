"""Format a plan as text tables."""

from __future__ import annotations

from entropy_rl.planning.chips import GiB
from entropy_rl.planning.plan import Plan
from entropy_rl.report.terminal import aligned

_PER = ("program", "iteration", "inner iteration", "innermost iteration")


def plan_text(plan: Plan) -> str:
    """Format devices, memory, collectives and minimum time of a plan."""
    return "\n\n".join([_head(plan), _memory(plan), _collectives(plan), _work(plan), _totals(plan)])


def _head(plan: Plan) -> str:
    layout, chip = plan.layout, plan.devices.chip
    rates, usable = "rates not known", ""
    if chip is not None:
        if plan.memory < chip.hbm:  # the pool of JAX on a GPU
            usable = f" that JAX takes of {chip.hbm / GiB:.2f}"
        rates = f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s ({chip.source})"
    return "\n".join(
        [
            f"{plan.devices.name}: {layout.chips} chips, {plan.devices.hosts} hosts; "
            f"mesh data {layout.data} x fsdp {layout.fsdp} x tensor {layout.tensor}",
            f"of a chip: {plan.memory / GiB:.2f} GiB{usable}, {rates}",
            plan.rows,
        ]
    )


def _memory(plan: Plan) -> str:
    kept = [("resident for the whole run, per chip", "GiB")]
    beside = {
        "KV cache, at its largest": plan.step.cache,
        "Python, JAX and compiled programs": plan.step.process,
    }
    parts = plan.resident | {name: size for name, size in beside.items() if size is not None}
    kept += [(name, _gib(size)) for name, size in parts.items()]
    rows = [
        (
            "GiB per chip",
            "arguments",
            "outputs",
            "aliased",
            "temporaries",
            "other resident",
            "peak",
            "fraction of memory",
        )
    ]
    for phase in plan.step.phases:
        program, beside = phase.program, _gib(sum(phase.beside.values()))
        sizes = (program.arguments, program.outputs, program.aliased, program.temporaries)
        cells = ["too large"] * 4 if program.refused is not None else [_gib(size) for size in sizes]
        rows.append(
            (program.name, *cells, beside, _gib(phase.peak), f"{phase.peak / plan.memory:.0%}")
        )
    return f"{aligned(kept)}\n\n{aligned(rows)}\n" + "\n".join(
        f"largest in {phase.program.name}: "
        + ", ".join(f"{name} {_gib(size)}" for size, name in phase.program.largest[:3])
        for phase in plan.step.phases
    )


def _collectives(plan: Plan) -> str:
    rows = [("collectives, per chip, from the HLO", "kind", "per", "count", "GB")]
    rows += [
        (
            phase.program.name,
            collective.kind,
            _PER[min(collective.depth, len(_PER) - 1)],
            str(amount.count),
            _number(amount.bytes / 1e9),
        )
        for phase in plan.step.phases
        for collective, amount in phase.program.collectives.items()
    ]
    return aligned(rows)


def _work(plan: Plan) -> str:
    rows = [("a step, per chip, counted from the shapes", "TFLOP", "GB", "seconds")]
    for work in plan.works:
        seconds = "-" if work.seconds is None else _number(work.seconds)
        rows.append((work.name, _number(work.flops / 1e12), _number(work.bytes / 1e9), seconds))
    return aligned(rows)


def _totals(plan: Plan) -> str:
    efficiency, steps = plan.config.efficiency, plan.config.steps
    assumed = f"{plan.assumption}; {efficiency:.0%} of the peak rates"
    totals = plan.totals()
    if not totals:
        return f"no estimate of time: say --chip; {assumed}"
    rate = f"at most {totals['tokens_per_second']:.0f} tokens/s"
    cost = f"{totals['hours']:.1f} h, {totals['chip_hours']:.1f} chip-hours"
    return (
        f"at least {totals['step_seconds']:.1f} s per step, {rate}; {steps} steps: {cost}\n"
        f"({assumed}; no network, no host, no judge, no waiting)"
    )


def _number(value: float) -> str:
    """Format with two decimals, or with the first nonzero digit below 0.01."""
    return f"{value:.2f}" if value == 0 or value >= 0.01 else f"{value:.1g}"


def _gib(size: float) -> str:
    return _number(size / GiB)
