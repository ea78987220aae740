"""What every system is given: sizes, prompts, one fixed batch, and a random model that knows how to
stop.

A random model hardly ever ends a completion. Here one end-of-sequence token is made likely enough
that lengths are geometric, with a mean of 0.44 of the limit or another share: so every system stops
each row by its own logic. The padding token is made impossible, because some systems take a sampled
one for padding.

Only numpy is needed to read a workload; making a model needs this library.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

PAD, EOS, FIRST_WORD = 0, 1, 2
MEAN_SHARE = 113 / 256  # mean length of a completion, as a share of the limit
LEARNING_RATE = 1e-6  # small: the model must not kl_penalty away from its lengths while it is timed
CLIP = 0.2


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and the work for it: `samples` completions of each prompt, or turns of an episode, of
    `mean_share` of `new_tokens`.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    prompts: int = 16
    samples: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 256
    mean_share: float = MEAN_SHARE
    turns: int = 1  # of an episode, which has `new_tokens` at most
    observation_tokens: int = 0  # between two turns
    lora_rank: int = 16

    @property
    def lora_alpha(self) -> float:
        return 2.0 * self.lora_rank

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    @property
    def rows_at_once(self) -> tuple[int, ...]:
        """Rows whose logits may be held at once: as many as fit into 1.5 GB, and 16 if that is
        much less.
        """
        most = self.rows
        while most * (self.prompt_tokens + self.new_tokens) * self.vocab * 4 > 1.5e9:
            most //= 2
        return (16, most) if most >= 64 else (most,)


SIZES = {
    "tiny": Size(  # for tests
        2, 32, 2, 1, 64, 256, prompts=2, prompt_tokens=8, new_tokens=24, lora_rank=4
    ),
    "small": Size(4, 256, 4, 2, 1024, 8192),
    "medium": Size(8, 512, 8, 2, 2048, 32768),
    "turns": Size(
        2,
        128,
        2,
        1,
        512,
        4096,
        prompts=8,
        new_tokens=384,
        mean_share=1 / 12,
        turns=4,
        observation_tokens=32,
    ),
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """The fixed batch of log-prob pass and update: P*G rows, N columns, prompts without padding."""

    prompts: np.ndarray  # int32[P, S]
    completion_ids: np.ndarray  # int32[P*G, N], PAD behind the end
    mask: np.ndarray  # bool[P*G, N], True up to and with the end-of-sequence token
    rewards: np.ndarray  # f32[P*G]
    advantages: np.ndarray  # f32[P*G], normalized in each group

    @property
    def tokens(self) -> int:
        """Response tokens: what a user wants done."""
        return int(self.mask.sum())


def stop_probability(mean: float, limit: int) -> float:
    """The p of a geometric law that, cut off at `limit`, has the mean (1 - (1 - p)^limit) / p.

    Returns:
      The probability; 0 if the mean is the limit.

    Raises:
      ValueError: If no p has this mean.
    """
    if not 1 <= mean <= limit:
        raise ValueError(f"mean: {mean} is not allowed; allowed: >= 1 and <= {limit}")
    if mean == limit:
        return 0.0
    low, high = 1e-9, 1.0
    for _ in range(100):
        p = (low + high) / 2
        low, high = (p, high) if (1 - (1 - p) ** limit) / p > mean else (low, p)
    return p


def draw_lengths(seed: int, rows: int, mean: float, limit: int) -> np.ndarray:
    """Geometric lengths int[rows], cut off at the limit."""
    p = stop_probability(mean, limit)
    if p == 0:
        return np.full(rows, limit)
    return np.minimum(np.random.default_rng(seed).geometric(p, rows), limit)


def rewards_of(lengths: np.ndarray) -> np.ndarray:
    """The rule: 1 for an odd number of tokens, else 0."""
    return (np.asarray(lengths) % 2).astype(np.float32)


def make_batch(size: Size, seed: int = 10, lengths: np.ndarray | None = None) -> Batch:
    """Uniform tokens of geometric lengths, or of the given ones."""
    rng = np.random.default_rng(seed + 1)
    prompts = rng.integers(
        FIRST_WORD, size.vocab, (size.prompts, size.prompt_tokens), dtype=np.int32
    )
    if lengths is None:
        lengths = draw_lengths(seed, size.rows, size.mean_share * size.new_tokens, size.new_tokens)
    columns = np.arange(size.new_tokens)[None]
    ids = rng.integers(FIRST_WORD, size.vocab, (size.rows, size.new_tokens), dtype=np.int32)
    ids[(columns == lengths[:, None] - 1) & (lengths[:, None] < size.new_tokens)] = EOS
    mask = columns < lengths[:, None]
    rewards = rewards_of(lengths)
    groups = rewards.reshape(size.prompts, size.samples)
    spread = groups.std(1, ddof=1, keepdims=True) + 1e-6
    advantages = ((groups - groups.mean(1, keepdims=True)) / spread).reshape(-1)
    return Batch(prompts, np.where(mask, ids, PAD), mask, rewards, advantages.astype(np.float32))


def kind_of(work: str) -> tuple[str, bool]:
    """Returns what is done, and whether it trains a LoRA adapter: `lora-update` is an `update`."""
    return work.removeprefix("lora-"), work.startswith("lora-")


def projections(size: Size) -> dict[str, tuple[int, int]]:
    """The matrices of a layer that get an adapter, with their (in, out)."""
    kv = size.hidden // size.heads * size.kv_heads
    return {
        "q_proj": (size.hidden, size.hidden),
        "k_proj": (size.hidden, kv),
        "v_proj": (size.hidden, kv),
        "o_proj": (size.hidden, size.hidden),
        "gate_proj": (size.hidden, size.mlp),
        "up_proj": (size.hidden, size.mlp),
        "down_proj": (size.mlp, size.hidden),
    }


def draw_adapter(size: Size, seed: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """An adapter as after some training: B is not 0.

    Returns:
      projection -> (A f32[layers, in, rank], B f32[layers, rank, out]).
    """
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.normal(0, rows**-0.5, (size.layers, rows, size.lora_rank)).astype(np.float32),
            rng.normal(0, 0.02, (size.layers, size.lora_rank, columns)).astype(np.float32),
        )
        for name, (rows, columns) in projections(size).items()
    }


def prepare(directory: Path, size: Size) -> Path:
    """Writes size.json, batch.npz and model/ (a Hugging Face directory), once, and returns the
    directory.
    """
    if not (directory / "model" / "config.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "size.json").write_text(json.dumps(dataclasses.asdict(size)))
        np.savez(directory / "batch.npz", **vars(make_batch(size)))
        _save_model(directory / "model", size)
    return directory


def load(directory: Path) -> tuple[Size, Batch]:
    """What `prepare` wrote, without the model."""
    size = Size(**json.loads((directory / "size.json").read_text()))
    with np.load(directory / "batch.npz") as arrays:
        return size, Batch(**arrays)


def make_model(size: Size, seed: int = 0):
    """(DecoderConfig, params) of a random model that stops as the module's docstring says.

    The value bias of the last layer is the same at all positions, so it gives every hidden state a
    common direction. The embedding of EOS, which is also its row of the head, points along it, as
    far as the mean probability of a stop demands; that of PAD points the other way.
    """
    import jax

    from entropy_rl.models import DecoderConfig, make_policy

    config = DecoderConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_layers=size.layers,
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.hidden // size.heads,
        rope_theta=1e4,
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        tie_embeddings=True,
    )
    policy = make_policy(config)
    params = jax.tree.map(lambda x: np.array(x), policy.init(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    bias = params["layers"]["self_attn"]["v_proj"]["bias"]
    bias[-1] = rng.normal(size=bias.shape[1:])

    shape = (8, size.prompt_tokens + size.new_tokens)
    ids = rng.integers(FIRST_WORD, size.vocab, shape, dtype=np.int32)
    hidden = np.asarray(jax.jit(policy.apply)(params, ids)).reshape(-1, size.hidden)
    hidden = hidden[rng.permutation(len(hidden))[:512]]
    direction = hidden.mean(0) / np.linalg.norm(hidden.mean(0))
    table = params["embed_tokens"]["embedding"]
    others = np.log(np.exp(hidden @ table[FIRST_WORD:].T).sum(1))
    along = hidden @ direction
    wanted = stop_probability(size.mean_share * size.new_tokens, size.new_tokens)
    low, high = 0.0, 100.0
    for _ in range(60):
        far = (low + high) / 2
        mean = (1 / (1 + np.exp(others - far * along))).mean()
        low, high = (far, high) if mean < wanted else (low, far)
    table[PAD] = -20 / along.mean() * direction
    table[EOS] = far * direction if wanted else table[PAD]
    return config, params


def _save_model(directory: Path, size: Size) -> None:
    from entropy_rl.models import save_hf

    config, params = make_model(size)
    save_hf(directory, config, params)
    # Beside the architecture: what generation needs, and a limit of positions that is ours.
    fields = json.loads((directory / "config.json").read_text())
    fields |= {
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "max_position_embeddings": size.prompt_tokens + size.new_tokens,
    }
    (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
