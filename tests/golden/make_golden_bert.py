"""Makes bert.npz: what transformers and torch compute on the encoder of `bert_fixture`.

    python -m venv golden-env
    golden-env/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors
    golden-env/bin/python tests/golden/make_golden_bert.py

It has `ids` int32[3, T], `mask` bool[3, T], `hidden` f32[3, T, D] (the last hidden states) and
`vectors` f32[3, D] (their mean over the mask, with norm 1, as sentence-transformers has it).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))
import bert_fixture

LENGTHS = (20, 7, 1)


def main() -> None:
    ids = np.random.RandomState(3).randint(0, bert_fixture.CONFIG["vocab_size"], (3, max(LENGTHS)))
    mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    with tempfile.TemporaryDirectory() as directory:
        bert_fixture.make_encoder_dir(Path(directory))
        model = AutoModel.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    with torch.no_grad():
        hidden = model(
            torch.tensor(ids), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    vectors = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    values = {"ids": ids.astype(np.int32), "mask": mask, "hidden": hidden, "vectors": vectors}
    np.savez(Path(__file__).parent / "bert.npz", **values)


if __name__ == "__main__":
    main()
