"""A tiny encoder of the BERT kind in a Hugging Face directory, made from a seed without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 96,
    "pad_token_id": 0,
}
CORPUS = (
    "the sum of three and five is eight",
    "wait, let me check that again.",
    "zebras juggle numbers",
)


def tensors(prefix: str = "") -> dict[str, np.ndarray]:
    """Weights under Hugging Face's names, spelled out here as a second opinion on the library's."""
    random = np.random.RandomState(7)  # the legacy generator, whose numbers are promised to stay
    size, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]

    def normal(*shape: int, scale: float = 0.3, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * random.standard_normal(shape)).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": normal(CONFIG["vocab_size"], size),
        "embeddings.position_embeddings.weight": normal(CONFIG["max_position_embeddings"], size),
        "embeddings.token_type_embeddings.weight": normal(CONFIG["type_vocab_size"], size),
        "embeddings.LayerNorm.weight": normal(size, mean=1.0),
        "embeddings.LayerNorm.bias": normal(size),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for name, rows, columns in (
            ("attention.self.query", size, size),
            ("attention.self.key", size, size),
            ("attention.self.value", size, size),
            ("attention.output.dense", size, size),
            ("intermediate.dense", inner, size),
            ("output.dense", size, inner),
        ):
            weights[f"{layer}.{name}.weight"] = normal(rows, columns)
            weights[f"{layer}.{name}.bias"] = normal(rows)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights[f"{layer}.{name}.weight"] = normal(size, mean=1.0)
            weights[f"{layer}.{name}.bias"] = normal(size)
    weights |= {"pooler.dense.weight": normal(size, size), "pooler.dense.bias": normal(size)}
    return {prefix + name: value for name, value in weights.items()}


def make_encoder_dir(directory: Path, prefix: str = "", **changes) -> Path:
    """Writes the fixture, with changes to its config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors(prefix), directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "unk_token": "[UNK]",
                "pad_token": "[PAD]",
            }
        )
    )
    return directory
