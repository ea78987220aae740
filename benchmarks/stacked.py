"""Cost of sampling for several adapters side by side beside one after the other.

    python benchmarks/stacked.py --output stacked.json

A random decoder of the shape of SmolLM2-135M, with K random adapters of all its matrices. "Alone"
samples K times with one adapter, as K runs do; "stacked" once with all of them, as
`entropy-rl train-stacked` does. Both run in pairs in one process, in changing order, after a first
run that compiles; the measure is CPU-seconds. No completion ends early. The updates of stacked runs
are those of the runs alone, so that only the sampling is compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.config.lora import LORA_TARGETS
from entropy_rl.models import DecoderConfig, make_policy
from entropy_rl.models.lora import Base, LoraSpec, init_adapter, stack_adapters
from entropy_rl.rollout import make_generate

NEVER = 3  # its logit is as low as any; nothing ends
GROUP = 8


def decoder(layers: int) -> DecoderConfig:
    """The architecture of SmolLM2-135M, with another number of layers."""
    return DecoderConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=layers, num_heads=9,
        num_kv_heads=3, head_dim=64, rope_theta=1e5, norm_eps=1e-5, qkv_bias=False, qk_norm=False,
        tie_embeddings=True,
    )  # fmt: skip


def draw_adapters(base: Base, config: DecoderConfig, count: int) -> list[Any]:
    """Adapters whose B is not 0."""
    keys = jax.random.split(jax.random.key(1), count)
    found = [init_adapter(key, base.spec, config) for key in keys]
    return [jax.tree.map(lambda x: jnp.asarray(x) + 0.01, adapter) for adapter in found]


def size_of(tree: Any) -> float:
    """MiB of the arrays of a tree."""
    return sum(x.nbytes for x in jax.tree.leaves(tree)) / 2**20


def timed(call: Callable[[], Any]) -> float:
    """CPU-seconds of a call."""
    start = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - start


def measure(args: argparse.Namespace, rows: int, base: Base, adapters: list[Any]) -> dict[str, Any]:
    """Time pairs of stacked and lone sampling with some rows for each adapter."""
    count, prompts = len(adapters), rows // GROUP
    policy = make_policy(decoder(args.layers))
    settings = dict(group_size=GROUP, max_new_tokens=args.tokens, eos_ids=(NEVER,), pad_id=0)
    alone = make_generate(policy, **settings)
    together = make_generate(policy, **settings, adapters=count)
    ids = np.random.default_rng(0).integers(100, 49000, (count * prompts, args.prompt))
    ids = ids.astype(np.int32)
    mask, index = np.ones(ids.shape, bool), np.arange(len(ids), dtype=np.int32)
    keys = jax.random.split(jax.random.key(2), count)

    def run_alone() -> list[Any]:
        found = []
        for i, adapter in enumerate(adapters):
            own = slice(i * prompts, (i + 1) * prompts)
            params = base.join(adapter)
            found.append(
                jax.block_until_ready(alone(params, ids[own], mask[own], index[own], keys[i]))
            )
        return found

    def run_stacked() -> Any:
        return together(base.join(stack_adapters(adapters)), ids, mask, index, keys)

    calls = {"alone": run_alone, "stacked": run_stacked}
    first = {name: timed(call) for name, call in calls.items()}
    lone, all_rows = run_alone(), run_stacked()
    same = np.concatenate([one.completion_ids for one in lone]) == all_rows.completion_ids
    runs = []
    for pair in range(args.pairs):
        order = list(calls) if pair % 2 else list(reversed(calls))
        runs.append({name: timed(calls[name]) for name in order})
        print(f"{rows} rows per adapter, pair {pair + 1}/{args.pairs}: {runs[-1]}", file=sys.stderr)
    return {
        "rows": rows,
        "first": first,
        "runs": runs,
        "rows_that_differ": int((~np.asarray(same).all(-1)).sum()),
        "all_rows": len(same),
    }


def table(result: dict[str, Any]) -> str:
    """Medians, and the ratio of CPU-seconds pair by pair with its range."""
    lines = [
        "| rows per adapter | alone, CPU-s | stacked | ratio [least, most] "
        "| first run, with compilation: alone, stacked | rows with another token |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for found in result["measured"]:
        ratios = sorted(run["stacked"] / run["alone"] for run in found["runs"])
        seconds = {
            name: statistics.median(run[name] for run in found["runs"])
            for name in ("alone", "stacked")
        }
        lines.append(
            f"| {found['rows']} | {seconds['alone']:.1f} | {seconds['stacked']:.1f} "
            f"| {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] "
            f"| {found['first']['alone']:.1f}, {found['first']['stacked']:.1f} "
            f"| {found['rows_that_differ']} of {found['all_rows']} |"
        )
    memory = result["memory"]
    return "\n".join(lines) + (
        f"\n\nParameters and moments of {memory['adapters']} runs: {memory['stacked']:.0f} MiB on "
        f"one base, {memory['alone']:.0f} MiB in processes of their own."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--adapters", type=int, default=8, help="number of adapters; default: 8")
    add("--rank", type=int, default=16, help="of each adapter; default: 16")
    add("--rows", type=int, nargs="+", default=[8, 64], help="of each adapter; default: 8 64")
    add("--layers", type=int, default=30, help="of the model; default: 30, those of SmolLM2-135M")
    add("--prompt", type=int, default=16, help="tokens of a prompt; default: 16")
    add("--tokens", type=int, default=32, help="new tokens of each row; default: 32")
    add("--pairs", type=int, default=3, help="timed pairs of runs; default: 3")
    default = "a JSON file for every single run; default: stacked.json"
    add("--output", default="stacked.json", help=default)
    add("--show", help="run nothing; print the table of this JSON file")
    args = parser.parse_args()
    if args.show:
        print(table(json.loads(Path(args.show).read_text())))
        return
    config = decoder(args.layers)
    spec = LoraSpec(args.rank, float(args.rank), False, LORA_TARGETS)
    base = Base(make_policy(config).init(jax.random.key(0)), spec, "random")
    adapters = draw_adapters(base, config, args.adapters)
    of_base, of_run = size_of(base.params), 3 * size_of(adapters[0])  # two moments
    memory = {
        "adapters": args.adapters,
        "stacked": of_base + args.adapters * of_run,
        "alone": args.adapters * (of_base + of_run),
    }
    measured = [measure(args, rows, base, adapters) for rows in args.rows]
    result = {"memory": memory, "measured": measured}
    Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
