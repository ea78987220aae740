"""Export a model or the newest checkpoint of a run for Hugging Face's libraries."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Literal

from entropy_rl.cli.main import run_verb
from entropy_rl.config.checks import require
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.files import check_creatable, expand_home
from entropy_rl.escape import echo


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export a run as a Hugging Face directory: `entropy-rl export`.

    Args:
      model: Directory of a run; or another model, as a `model.path`, to convert its dtype.
      output: Directory to create; it must not exist or be empty.
      dtype: Dtype of the saved weights; null for bfloat16, and float32 for an adapter.
      push: Upload the export of a run with its model card to the Hugging Face hub, as
        NAMESPACE/NAME; a new repository is private. Needs `hf auth login`.
      format: Of a LoRA run: `merged` writes a whole model, with the adapter merged into its
        weights; `peft` writes the adapter alone, as PEFT does.
    """

    model: str
    output: str
    dtype: Literal["float32", "bfloat16"] | None = None
    push: str | None = None
    format: Literal["merged", "peft"] = "merged"

    def __post_init__(self):
        expand_home(self, "output")
        if self.push is not None:
            is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", self.push, re.ASCII)
            require(is_id is not None, "push", self.push, "NAMESPACE/NAME or null")


def export(config: ExportConfig) -> Path:
    """Write *.safetensors with their config, the tokenizer files and, of a run, a model card.

    Returns:
      The output directory.

    Raises:
      ValueError: If there is no model to export, or it cannot be uploaded.
      FileExistsError: If the output directory is not empty.
    """
    from entropy_rl.models import save_hf  # `export --help` must not import jax
    from entropy_rl.models.peft import save_adapter
    from entropy_rl.report.model_card import write_model_card
    from entropy_rl.runs.hub import split_id, upload
    from entropy_rl.runs.load_model import load_model
    from entropy_rl.runs.model_files import find_model, is_run

    check_config(config)
    model, is_adapter = load_model(ModelConfig(path=config.model)), config.format == "peft"
    source = find_model(config.model)
    dtype = config.dtype or ("float32" if is_adapter else "bfloat16")
    if is_adapter:
        base, revision = split_id(model.base.path)
        save_adapter(config.output, model.base.spec, model.adapter, base, revision, dtype)
    else:
        save_hf(
            config.output,
            model.config,
            model.merged().params,
            tokenizer_dir=model.directory,
            dtype=dtype,
            source_config=model.directory,
        )
    if is_run(source):
        write_model_card(source, Path(config.output), dtype)
    if config.push is not None:
        upload(Path(config.output), config.push)
    return Path(config.output)


def check_config(config: ExportConfig) -> None:
    """Check what needs no weights: the output, the model, and what can be written of it.

    Raises:
      ValueError: If there is no model to export, or it cannot be exported like this.
      FileExistsError: If the output directory is not empty.
    """
    from entropy_rl.models.hf import check_output
    from entropy_rl.runs.model_files import find_model, is_local, is_run
    from entropy_rl.runs.stored import CONFIG_FILE, read_recorded_config

    check_creatable(check_output(config.output))
    source = find_model(config.model) if is_local(config.model) else None
    recorded = None
    if source is not None and is_run(source):
        recorded = read_recorded_config(source / CONFIG_FILE)
    allowed = "null if the model is no run"
    require(config.push is None or recorded is not None, "push", config.push, allowed)
    has_adapter = ((recorded or {}).get("model") or {}).get("lora") is not None
    allowed = "merged for a model without an adapter"
    require(config.format == "merged" or has_adapter, "format", config.format, allowed)


def main(config: ExportConfig) -> None:
    """The verb `export` of the command line."""
    echo(f"wrote {export(config)}")
    if config.push is not None:
        echo(f"uploaded to {config.push}")


if __name__ == "__main__":
    sys.exit(run_verb("export", sys.argv[1:]))
