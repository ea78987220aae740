"""Export a model or the newest checkpoint of a run as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from entropy_rl.cli.main import run_verb
from entropy_rl.config.common import ModelConfig


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export a run as a Hugging Face directory: `entropy-rl export`.

    Args:
      model: Directory of a run; also a Hugging Face directory or `asset:NAME`, to convert its
        dtype.
      output: Directory to create; it must not exist or be empty.
      dtype: Dtype of the saved weights.
    """

    model: str
    output: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


def export(config: ExportConfig) -> Path:
    """Write config.json, *.safetensors and the tokenizer files.

    Returns:
      The output directory.

    Raises:
      ValueError: If there is no model to export.
      FileExistsError: If the output directory is not empty.
    """
    from entropy_rl.models import save_hf
    from entropy_rl.runs.load_model import load_model  # `export --help` must not import jax

    model = load_model(ModelConfig(path=config.model))
    save_hf(
        config.output,
        model.config,
        model.params,
        tokenizer_dir=model.directory,
        dtype=config.dtype,
        source_config=model.directory,
    )
    return Path(config.output)


def main(config: ExportConfig) -> None:
    """The verb `export` of the command line."""
    print(f"wrote {export(config)}")


if __name__ == "__main__":
    sys.exit(run_verb("export", sys.argv[1:]))
