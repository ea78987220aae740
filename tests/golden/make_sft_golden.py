"""Makes the golden loss of SFT: what transformers computes, and TRL trains with, on a fixture.

    golden-env/bin/python tests/golden/make_sft_golden.py      (as make_golden.py)

Writes sft.json: rows of `ids`, the number of tokens of the `prompt` of each, which have the label
-100, and `loss`, with `num_items_in_batch` the labels of both micro-batches of one row, as TRL's
SFTTrainer passes it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, logging

sys.path.insert(0, str(Path(__file__).parents[1]))
import hf_fixtures

LENGTHS, PROMPTS = (13, 8), (4, 5)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        hf_fixtures.make_hf_dir(directory, "qwen2")
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    random = np.random.RandomState(9)
    rows = [random.randint(0, hf_fixtures.VOCAB - 8, length).tolist() for length in LENGTHS]
    labels = sum(LENGTHS) - sum(PROMPTS)
    loss = 0.0
    with torch.no_grad():
        for ids, prompt in zip(rows, PROMPTS, strict=True):
            tokens = torch.tensor([ids])
            targets = torch.tensor([[-100] * prompt + ids[prompt:]])
            loss += float(model(tokens, labels=targets, num_items_in_batch=labels).loss)
    found = {"ids": rows, "prompt": PROMPTS, "loss": loss}
    Path(__file__).with_name("sft.json").write_text(json.dumps(found) + "\n")
    print(found)


if __name__ == "__main__":
    logging.disable_progress_bar()
    main()
