"""Makes the golden values of LoRA: what PEFT computes in torch on a fixture of `hf_fixtures`.

    python -m venv golden-env
    golden-env/bin/pip install torch==2.13.0 transformers==5.24.0 peft==0.21.2 safetensors ml_dtypes
    golden-env/bin/python tests/golden/make_peft_golden.py

Writes peft/ beside this file: the adapter as PEFT saves it, with rsLoRA and B ≠ 0, and values.npz:
`ids` int32[2, T]; `log_probs` f32[2, T - 1] of each next token; `gradient/NAME`, of minus their
mean; and `after/NAME`, the adapter after three updates of that loss by torch's AdamW. NAME is that
of a tensor of the adapter.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, logging

sys.path.insert(0, str(Path(__file__).parents[1]))
import hf_fixtures

FIXTURE, TOKENS, UPDATES = "qwen3", 12, 3
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        hf_fixtures.make_hf_dir(directory, FIXTURE)
        base = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, use_rslora=True, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    for name, x in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(x, std=0.1)
    model.peft_config["default"].base_model_name_or_path = FIXTURE
    target = Path(__file__).with_name("peft")
    model.save_pretrained(target)
    (target / "README.md").unlink()
    ids = np.random.RandomState(8).randint(0, hf_fixtures.VOCAB - 8, (2, TOKENS)).astype(np.int32)
    tokens = torch.tensor(ids, dtype=torch.long)

    def log_probs() -> torch.Tensor:
        every = model(tokens).logits[:, :-1].log_softmax(-1)
        return every.gather(-1, tokens[:, 1:, None])[..., 0]

    values = {"ids": ids, "log_probs": log_probs().detach().numpy()}
    trained = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(trained, **ADAMW)
    for update in range(UPDATES):
        optimizer.zero_grad()
        (-log_probs().mean()).backward()
        if update == 0:
            for name, x in model.named_parameters():
                if x.requires_grad:
                    name = name.replace(".default", "")
                    values[f"gradient/{name}"] = x.grad.numpy().copy()
        optimizer.step()
    for name, x in get_peft_model_state_dict(model).items():
        values[f"after/{name}"] = x.detach().numpy()
    np.savez_compressed(target / "values.npz", **values)
    print({name: x.shape for name, x in values.items()})


if __name__ == "__main__":
    logging.disable_progress_bar()
    main()
