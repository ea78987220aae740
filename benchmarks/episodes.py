"""Cost of episodes of several turns beside completions of the same tokens, on this machine.

    python benchmarks/episodes.py --output episodes.json

Rows of an episode have turns of a fixed length with observations between them; a completion has as
many tokens, all of them sampled. Both run in pairs in one process, in changing order; the measure
is CPU-seconds. The environment answers at once, so this is the cost of parking rows and of
appending observations to their caches.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.models import DecoderConfig, make_policy
from entropy_rl.rollout import make_generate
from entropy_rl.types import FinishReason

PAD, EOS, FIRST = 0, 1, 2
PROMPT = 64


@dataclasses.dataclass
class Fixed:
    """Answers every turn with the same tokens, `turns - 1` times."""

    turns: int
    observation: list[int]

    def __post_init__(self):
        self.answered: dict[int, int] = {}

    def submit(self, row: int, ids: list[int], reason: FinishReason, room: int) -> None:
        self.answered[row] = self.answered.get(row, 0) + 1

    def reply(self, row: int) -> list[int] | FinishReason:
        last = self.answered[row] == self.turns
        return FinishReason.TURNS if last else self.observation


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--rows", type=int, default=64, help="episodes, 8 of each prompt; default: 64")
    add("--turns", type=int, default=4, help="of an episode; default: 4")
    add("--turn-tokens", type=int, default=48, help="tokens of a turn; default: 48")
    add("--observation-tokens", type=int, default=32, help="tokens between turns; default: 32")
    add("--hidden", type=int, default=256, help="hidden size of the model; default: 256")
    add("--layers", type=int, default=4, help="of the model; default: 4")
    add("--pairs", type=int, default=7, help="timed pairs of runs; default: 7")
    add("--output", type=Path, help="a JSON file for every single run")
    args = parser.parse_args()

    config = DecoderConfig(
        vocab_size=8192,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_layers=args.layers,
        num_heads=args.hidden // 64,
        num_kv_heads=max(1, args.hidden // 128),
        head_dim=64,
        rope_theta=1e4,
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        tie_embeddings=True,
    )
    # Without its end-of-sequence token, all rows have the same length.
    policy = make_policy(config, unused=((EOS, EOS + 1),))
    params = policy.init(jax.random.key(0))
    draw = np.random.default_rng(0)
    ids = draw.integers(FIRST, config.vocab_size, (args.rows // 8, PROMPT)).astype(np.int32)
    prompts = (ids, np.ones(ids.shape, bool), np.arange(len(ids), dtype=np.int32))
    observation = draw.integers(FIRST, config.vocab_size, args.observation_tokens).tolist()
    new = args.turns * args.turn_tokens + (args.turns - 1) * args.observation_tokens
    settings = dict(group_size=8, max_new_tokens=new, eos_ids=[EOS], pad_id=PAD)
    completions = make_generate(policy, **settings)
    episodes = make_generate(
        policy, **settings, max_turn_tokens=args.turn_tokens,
        decoding=DecodingConfig(chunk_steps=args.turn_tokens),
    )  # fmt: skip

    def run_completions() -> int:
        return int(
            jax.device_get(completions(params, *prompts, jax.random.key(1)).completion_mask).sum()
        )

    def run_episodes() -> int:
        rollout = episodes(
            params, *prompts, jax.random.key(1), environments=Fixed(args.turns, observation)
        )
        return int(jax.device_get(rollout.completion_mask).sum())

    works = {"completions": run_completions, "episodes": run_episodes}
    sampled = {name: work() for name, work in works.items()}  # compiles
    assert sampled["completions"] == args.rows * new, sampled
    assert sampled["episodes"] == args.rows * args.turns * args.turn_tokens, sampled
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for pair in range(args.pairs):
        for name in sorted(works, reverse=bool(pair % 2)):
            begin = time.process_time()
            works[name]()
            seconds[name].append(time.process_time() - begin)
        print(f"pair {pair + 1} of {args.pairs}", {n: round(s[-1], 2) for n, s in seconds.items()},
              file=sys.stderr)  # fmt: skip
    ratios = [e / c for e, c in zip(seconds["episodes"], seconds["completions"], strict=True)]
    result = {
        **{name: value for name, value in vars(args).items() if name != "output"},
        "tokens_per_row": new,
        "cpu_seconds": seconds,
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
    }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{args.rows} rows of {new} tokens: completions {medians['completions']:.2f} CPU-s, "
        f"episodes of {args.turns} turns {medians['episodes']:.2f} CPU-s, "
        f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    )
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
