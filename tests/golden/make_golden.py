"""Makes the golden values: what transformers and torch compute on the fixtures of `hf_fixtures`.

    python -m venv golden-env
    golden-env/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors ml_dtypes
    golden-env/bin/python tests/golden/make_golden.py [NAME ...]

Writes NAME.npz beside this file: `ids` int32[2, T] right-padded with 0, `lengths` int32[2],
`logits` f32[2, T, V] (0 at padding), `greedy` int32[2, 8] (the greedy continuations, full forward
passes without a cache), `fingerprint` f64[] (Σ|w| over the weights, to tell another fixture from a
wrong model).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, logging

sys.path.insert(0, str(Path(__file__).parents[1]))
import hf_fixtures

LENGTHS = (12, 9)
NEW_TOKENS = 8
# A smaller lead of the best token over the second could tip over in another order of summation.
MIN_MARGIN = 1e-3


def golden(name: str) -> dict[str, np.ndarray]:
    """The values of one fixture."""
    with tempfile.TemporaryDirectory() as directory:
        hf_fixtures.make_hf_dir(directory, name)
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    random = np.random.RandomState(7)
    ids = random.randint(0, hf_fixtures.VOCAB - len(hf_fixtures.SPECIAL), (2, max(LENGTHS))).astype(
        np.int32
    )
    logits = np.zeros((2, max(LENGTHS), hf_fixtures.VOCAB), np.float32)
    greedy = np.zeros((2, NEW_TOKENS), np.int32)
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = 0
        tokens = torch.tensor(ids[row : row + 1, :length], dtype=torch.long)
        logits[row, :length] = model(tokens).logits[0].numpy()
        for t in range(NEW_TOKENS):
            best = model(tokens).logits[0, -1].topk(2)
            margin = float(best.values[0] - best.values[1])
            if margin < MIN_MARGIN:
                raise SystemExit(
                    f"{name}: row {row}, token {t}: the best two logits are {margin} apart"
                )
            greedy[row, t] = int(best.indices[0])
            tokens = torch.cat([tokens, best.indices[None, :1]], dim=1)
    fingerprint = sum(
        np.abs(w.astype(np.float64)).sum() for w in hf_fixtures.tensors(name).values()
    )
    return {
        "ids": ids,
        "lengths": np.array(LENGTHS, np.int32),
        "logits": logits,
        "greedy": greedy,
        "fingerprint": fingerprint,
    }


if __name__ == "__main__":
    logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    for name in sys.argv[1:] or hf_fixtures.CONFIGS:
        values = golden(name)
        np.savez_compressed(Path(__file__).with_name(f"{name}.npz"), **values)
        print(
            f"{name}: |logits| <= {np.abs(values['logits']).max():.3f}, greedy "
            f"{values['greedy'].tolist()}"
        )
