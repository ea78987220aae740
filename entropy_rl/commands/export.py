"""Export a model or the newest checkpoint of a run as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Literal

from entropy_rl.cli.main import run_verb
from entropy_rl.config.checks import require
from entropy_rl.config.common import ModelConfig


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export a run as a Hugging Face directory: `entropy-rl export`.

    Args:
      model: Directory of a run; also another model as of `model.path`, to convert its dtype.
      output: Directory to create; it must not exist or be empty.
      dtype: Dtype of the saved weights.
      push: Upload the export of a run with its model card to the Hugging Face hub, as
        NAMESPACE/NAME; a new repository is private. Needs `hf auth login`.
    """

    model: str
    output: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    push: str | None = None

    def __post_init__(self):
        if self.push is not None:
            is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", self.push, re.ASCII)
            require(is_id is not None, "push", self.push, "NAMESPACE/NAME or null")


def export(config: ExportConfig) -> Path:
    """Write config.json, *.safetensors, the tokenizer files and, of a run, a model card.

    Returns:
      The output directory.

    Raises:
      ValueError: If there is no model to export, or it cannot be uploaded.
      FileExistsError: If the output directory is not empty.
    """
    from entropy_rl.models import save_hf  # `export --help` must not import jax
    from entropy_rl.report.model_card import write_model_card
    from entropy_rl.runs.hub import upload
    from entropy_rl.runs.load_model import find_model, is_run, load_model

    source = find_model(config.model)
    require(
        config.push is None or is_run(source), "push", config.push, "null if the model is no run"
    )
    model = load_model(ModelConfig(path=config.model))
    save_hf(
        config.output,
        model.config,
        model.params,
        tokenizer_dir=model.directory,
        dtype=config.dtype,
        source_config=model.directory,
    )
    if is_run(source):
        write_model_card(source, Path(config.output), config.dtype)
    if config.push is not None:
        upload(Path(config.output), config.push)
    return Path(config.output)


def main(config: ExportConfig) -> None:
    """The verb `export` of the command line."""
    print(f"wrote {export(config)}")
    if config.push is not None:
        print(f"uploaded to {config.push}")


if __name__ == "__main__":
    sys.exit(run_verb("export", sys.argv[1:]))
