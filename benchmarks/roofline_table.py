"""The result as text."""

from __future__ import annotations

from typing import Any


def table(result: dict[str, Any]) -> str:
    """A head about device and model, and a line for each measurement or failure."""
    machine, device, options = result["machine"], result["device"], result["options"]
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in machine["matmul"].items())
    head = f"{'':20} {'layers':>7} {'ms, median [min, max]':>27} {'tokens/s':>9} "
    head += f"{'GB/s':>7} {'of copy':>8}"
    lines = [
        f"{device['kind']}, 1 of {device['visible']} visible; jax {result['versions']['jax']}",
        f"{options['shape']}, products in {options['dtype']}, remat {options['remat']}, "
        f"attention {options['attention']} and {options['decode_attention']}",
        f"copy {machine['bandwidth'] / 1e9:.4g} GB/s; matmul, TFLOP/s: {rates}",
        "",
        f"{head} {'TFLOP/s':>8} {'of matmul':>9} {'roofline ms':>12} {'of roofline':>11}",
    ]
    for x in result["measurements"]:
        ms = f"{1e3 * x['median']:.4g} [{1e3 * x['min']:.4g}, {1e3 * x['max']:.4g}]"
        layers = f"{x['layers']}/{x['all_layers']}"
        lines.append(
            f"{x['what']:20} {layers:>7} {ms:>27} {x['tokens_per_second']:>9.4g} "
            f"{x['bytes'] / x['median'] / 1e9:>7.4g} {x['share_of_bandwidth']:>8.1%} "
            f"{x['flops'] / x['median'] / 1e12:>8.3g} {x['share_of_matmul']:>9.1%} "
            f"{1e3 * x['roofline_seconds']:>12.4g} {x['share_of_roofline']:>11.1%}"
        )
    lines += [f"{x['what']:20} {x['error']}" for x in result["failures"]]
    if any(x["layers"] < x["all_layers"] for x in result["measurements"]):
        lines.append("\nFewer layers than the model has: not its speed.")
    return "\n".join(lines)
