"""Export a model or the newest checkpoint of a run for Hugging Face's libraries."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Literal

from entropy_rl.config.checks import require
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.files import check_creatable, expand_home
from entropy_rl.escape import echo

log = logging.getLogger(__name__)


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
    from entropy_rl.runs.hub import HUB_ID, is_hub_id, split_id, upload
    from entropy_rl.runs.load_model import load_model
    from entropy_rl.runs.model_files import find_model, is_run

    check_config(config)
    model, is_adapter = load_model(ModelConfig(path=config.model)), config.format == "peft"
    source = find_model(config.model)
    dtype = config.dtype or ("float32" if is_adapter else "bfloat16")
    note = None
    if is_adapter:
        path = model.base.path
        base, revision = split_id(path)
        if HUB_ID.fullmatch(path) and not is_hub_id(path):
            base = f"./{path}"  # on another machine PEFT would take it for a Hub id
        save_adapter(config.output, model.base.spec, model.adapter, base, revision, dtype)
        note = _base_note(source, path)
        if note is not None:
            log.warning("%s: %s", config.output, note)
        if path.startswith("asset:") or is_run(find_model(path)):
            log.warning(
                "%s: PEFT cannot load the base %s: export it (`entropy-rl export --model %s "
                "--output BASE --dtype float32`) and set base_model_name_or_path to that directory",
                config.output, path, path,
            )  # fmt: skip
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
        write_model_card(source, Path(config.output), dtype, note)
    if config.push is not None:
        upload(Path(config.output), config.push)
    return Path(config.output)


def _base_note(run: Path, base: str) -> str | None:
    """Say how a LoRA run changed its base; None if it did not."""
    from entropy_rl.models.hf_tensors import open_tensors
    from entropy_rl.runs.model_files import find_model, is_run
    from entropy_rl.runs.stored import CONFIG_FILE, read_recorded_config

    dtype = read_recorded_config(run / CONFIG_FILE)["model"]["lora"].get("base_dtype", "float32")
    if dtype == "float32":
        return None
    how = f"quantized to {dtype}"
    if dtype == "bfloat16":
        found = find_model(base)
        tensors = {} if is_run(found) else open_tensors(found, warn=False)
        weights = [x for name, (_, x) in tensors.items() if name.endswith(("weight", "bias"))]
        if weights and all(x.get_dtype() == "BF16" for x in weights):
            return None
        how = "rounded to bfloat16"
    return f"trained on the base {how}; `export --format merged --dtype float32` writes that model"


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
