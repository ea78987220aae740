"""Speed and memory on SmolLM2-135M beside transformers and torch, in pairs of runs.

    python benchmarks/real_model.py --output real_model.json
    python benchmarks/real_model.py --show real_model.json

It needs asset:smollm2 (docs/smollm2.md), and torch and transformers in an environment of their own:
that of TRL of `side_by_side.py`, which is made under .cache/benchmarks (minutes, once), or
--torch_python PYTHON. Every measurement is a process of its own, ours and theirs in turn, and the
measure is CPU-seconds, on one core: the machine may be shared, and threads that wait for others
would spin. --dtype bfloat16: activations and the weights of sampling; training keeps float32
weights in both.

prefill  keys and values of 32 prompts of 64 tokens, and the logits after their last
rollout  48 tokens for each of 64 rows: 8 prompts of 64 tokens, 8 samples; none ends early
update   one GRPO step with AdamW on 16 rows, 2 prompts of 64 tokens with 8 completions of 64;
         ours with the entropy-shaped advantage
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, LEARNING_RATE, CLIP = 64, 1e-5, 0.2
SHAPES = {
    "prefill": (32, 1, 0),
    "rollout": (8, 8, 48),
    "update": (2, 8, 64),
}  # prompts, samples, new
TOKENS = {
    "prefill": 32 * PROMPT,
    "rollout": 64 * 48,
    "update": 16 * (PROMPT + 64),
}
# A reserved token of SmolLM2: as the only end of a text, it is hardly ever sampled.
NEVER = 3


def random_ids(rows: int, columns: int) -> np.ndarray:
    """Ids of ordinary tokens, int32[rows, columns]."""
    return np.random.default_rng(0).integers(100, 49000, (rows, columns)).astype(np.int32)


# --- the systems: each returns a function that does the work once


def ours(work: str, directory: str, dtype: str) -> Callable[[int], None]:
    import jax
    import jax.numpy as jnp
    import optax

    import entropy_rl as er

    config, params = er.load_hf(directory)
    policy = er.make_policy(config, jnp.dtype(dtype), remat="dots")  # as in configs/real_model.yaml
    prompts, samples, new = SHAPES[work]
    ids = random_ids(prompts, PROMPT)
    mask = jnp.ones(ids.shape, bool)
    if work == "prefill":
        decoding = jax.jit(policy.to_decode)(params)

        @jax.jit
        def prefill(params, ids):
            hidden, caches = policy.prefill(params, ids, mask)
            return caches, hidden @ policy.head(params).T

        return lambda _: jax.block_until_ready(prefill(decoding, ids))
    if work == "rollout":
        generate = er.make_generate(
            policy, group_size=samples, max_new_tokens=new, eos_ids=(NEVER,), pad_id=0
        )
        index = jnp.arange(prompts, dtype=jnp.int32)
        return lambda number: jax.block_until_ready(
            generate(params, jnp.asarray(ids), mask, index, jax.random.key(number))
        )
    rows = prompts * samples
    completion = random_ids(rows, new)
    zeros, ones = np.zeros((rows, new), np.float32), np.ones((rows, new), bool)
    data = er.TrainBatch(
        ids=jnp.asarray(np.concatenate([np.repeat(ids, samples, 0), completion], 1)),
        prompt_length=jnp.full(rows, PROMPT, jnp.int32),
        completion_ids=jnp.asarray(completion),
        completion_mask=jnp.asarray(ones),
        old_log_probs=zeros,
        old_entropy=zeros,
        sampler_log_probs=zeros,
        rewards=jnp.asarray(np.arange(rows) % 2, jnp.float32),
        has_reward=jnp.ones(rows, bool),
    )
    settings = er.PassSettings(max_tokens_per_micro_batch=1024, group_size=samples)
    stats = jax.jit(er.make_stats_pass(policy, settings=settings))
    log_probs = np.asarray(stats(params, data)[0])
    data = data.replace(old_log_probs=log_probs, sampler_log_probs=log_probs)
    advantage = er.chain(
        er.group_normalize(group_size=samples), er.shape_by_entropy(alpha=0.4, kappa=2.0)
    )
    optimizer = optax.adamw(LEARNING_RATE)
    clip = {"name": "ppo_clip", "clip_low": CLIP, "clip_high": CLIP}
    loss = er.build_loss(er.LossConfig(surrogate=clip))
    update = er.make_update(policy, advantage, optimizer, loss, settings=settings)
    state = er.init_state(params, optimizer)

    def step(_: int) -> None:
        nonlocal state
        state, _metrics = jax.block_until_ready(update(state, data))

    return step


def transformers(work: str, directory: str, dtype: str) -> Callable[[int], None]:
    import torch
    from transformers import AutoModelForCausalLM

    # Training keeps float32 weights and computes in bfloat16 by autocast, as ours does.
    low = dtype == "bfloat16"
    kept = torch.bfloat16 if low and work != "update" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=kept)
    prompts, samples, new = SHAPES[work]
    ids = torch.from_numpy(random_ids(prompts, PROMPT)).long()
    if work == "prefill":

        @torch.no_grad()
        def prefill(_: int) -> None:
            model(ids, use_cache=True, logits_to_keep=1)

        return prefill
    if work == "rollout":
        ids = ids.repeat_interleave(samples, 0)

        @torch.no_grad()
        def rollout(number: int) -> None:
            torch.manual_seed(number)
            settings = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                eos_token_id=NEVER, pad_token_id=0, **settings,
            )  # fmt: skip

        return rollout
    rows = prompts * samples
    completion = torch.from_numpy(random_ids(rows, new)).long()
    whole = torch.cat([ids.repeat_interleave(samples, 0), completion], 1)
    rewards = (torch.arange(rows) % 2).float().view(prompts, samples)
    centered = rewards - rewards.mean(1, keepdim=True)
    advantage = (centered / (rewards.std(1, keepdim=True) + 1e-6)).view(rows, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def completion_log_probs() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = model(whole, logits_to_keep=new + 1, use_cache=False).logits[:, :-1]
        logits = logits.float()
        chosen = torch.gather(logits, -1, completion[..., None])[..., 0]
        return chosen - torch.logsumexp(logits, -1)

    with torch.no_grad():
        old = completion_log_probs()

    def step(_: int) -> None:
        optimizer.zero_grad()
        ratio = (completion_log_probs() - old).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        (-torch.minimum(ratio * advantage, clipped * advantage).mean()).backward()
        optimizer.step()

    return step


SYSTEMS = {"ours": ours, "transformers": transformers}


def measure(system: str, work: str, directory: str, dtype: str) -> dict[str, float]:
    """One process: load, do the work once (with compilation), then once more, measured."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    start = time.process_time()
    run = SYSTEMS[system](work, directory, dtype)
    loaded = time.process_time()
    run(0)
    first = time.process_time()
    run(1)
    return {
        "cpu": time.process_time() - first,
        "first": first - loaded,
        "load": loaded - start,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def table(result: dict[str, Any]) -> str:
    """Medians, and the ratio of CPU-seconds pair by pair with its range."""
    lines = [
        "| work | tokens | ours, tokens per CPU-s | transformers | ratio [least, most] "
        "| first run of ours, CPU-s | peak RSS, GiB: ours, transformers |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for work, runs in result["runs"].items():
        tokens = TOKENS[work]
        pairs = list(zip(runs["ours"], runs["transformers"], strict=True))
        ratios = sorted(theirs["cpu"] / own["cpu"] for own, theirs in pairs)
        rate, peak = {}, {}
        for system, of_system in runs.items():
            rate[system] = tokens / statistics.median(run["cpu"] for run in of_system)
            peak[system] = max(run["peak_gib"] for run in of_system)
        first = statistics.median(run["first"] for run in runs["ours"])
        lines.append(
            f"| {work} | {tokens} | {rate['ours']:.0f} | {rate['transformers']:.0f} "
            f"| {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] "
            f"| {first:.1f} | {peak['ours']:.2f}, {peak['transformers']:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = "a JSON file for every single run; default: real_model.json"
    add("--output", default="real_model.json", help=default)
    add("--show", help="run nothing; print the table of this JSON file")
    add("--pairs", type=int, default=3, help="timed pairs of runs; default: 3")
    add("--works", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    add("--torch_python", help="an interpreter with torch and transformers; default: TRL's")
    of_products = "of activations and of the weights of sampling; default: float32"
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help=of_products)
    add("--worker", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measure(*given.worker)))
        return 0
    if given.show:
        print(table(json.loads(Path(given.show).read_text())))
        return 0
    from environments import environment_of, python_of

    from entropy_rl.runs.load_model import find_model

    directory = str(find_model("asset:smollm2"))
    pythons = {"ours": sys.executable, "transformers": given.torch_python}
    pythons["transformers"] = pythons["transformers"] or str(
        python_of("trl", Path(".cache/benchmarks"))
    )
    runs: dict[str, dict[str, list]] = {work: {s: [] for s in SYSTEMS} for work in given.works}
    for pair in range(given.pairs):
        for work in given.works:
            for system in SYSTEMS:
                done = subprocess.run(
                    [pythons[system], __file__, "--worker", system, work, directory, given.dtype],
                    env=environment_of("ours" if system == "ours" else "trl"),
                    stdout=subprocess.PIPE, text=True, check=True,
                )  # fmt: skip
                found = json.loads(done.stdout.splitlines()[-1])
                runs[work][system].append(found)
                print(f"pair {pair + 1}/{given.pairs}  {work}  {system}  {found}", file=sys.stderr)
        Path(given.output).write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    print(table({"runs": runs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
