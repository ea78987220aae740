"""Makes rope.json: rotary frequencies of `transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS`.

In the environment of make_golden.py:

    golden-env/bin/python tests/golden/make_rope_golden.py
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
# name -> fields of config.json, of which the rope is one.
CASES = {
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.5}, "head_dim": 64},
    "linear_new_form": {
        "rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "head_dim": 16,
    },
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 64},
    "dynamic_fraction": {
        "rope_scaling": {"rope_type": "dynamic", "factor": 1.7},
        "head_dim": 24,
        "max_position_embeddings": 100,
        "rope_theta": 1e6,
    },
    # Qwen2.5's model cards.
    "yarn_qwen": {
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "head_dim": 128,
    },
    "yarn_new_form": {"rope_parameters": _YARN | {"rope_theta": 1e6}, "head_dim": 64},
    "yarn_of_the_model_s_length": {
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
        "max_position_embeddings": 4096,
        "head_dim": 64,
    },
    "yarn_betas": {
        "rope_scaling": _YARN | {"beta_fast": 16, "beta_slow": 2, "attention_factor": 1.5},
        "head_dim": 64,
    },
    "yarn_mscale": {
        "rope_scaling": _YARN | {"factor": 40, "mscale": 1.0, "mscale_all_dim": 0.707},
        "head_dim": 64,
    },
    "yarn_one_mscale": {"rope_scaling": _YARN | {"mscale": 0.5}, "head_dim": 64},
    "yarn_not_truncated": {"rope_scaling": _YARN | {"truncate": False}, "head_dim": 32},
    "yarn_short": {
        "rope_scaling": _YARN | {"original_max_position_embeddings": 8},
        "head_dim": 16,
    },
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "rope_theta": 5e5,
        "head_dim": 64,
    },
}


def golden(fields: dict) -> dict:
    """The values of one case."""
    config = LlamaConfig(**{"max_position_embeddings": 512, **json.loads(json.dumps(fields))})
    function = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    found, factor = function(config, "cpu")
    return {"config": fields, "frequencies": found.tolist(), "attention_factor": float(factor)}


if __name__ == "__main__":
    values = {name: golden(fields) for name, fields in CASES.items()}
    Path(__file__).with_name("rope.json").write_text(json.dumps(values, indent=1) + "\n")
