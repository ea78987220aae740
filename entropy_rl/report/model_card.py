"""The model card of an exported run: README.md of its directory."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from entropy_rl.models.peft import ADAPTER_CONFIG
from entropy_rl.report.curves import CURVES_FILE
from entropy_rl.report.reported_run import ReportedRun, read_runs
from entropy_rl.report.summary import evaluation_rows, interval_note
from entropy_rl.report.tables import markdown_table
from entropy_rl.runs.checkpoint import newest_undamaged
from entropy_rl.runs.directory import checkpoints_of
from entropy_rl.runs.hub import is_pinned, split_id
from entropy_rl.yaml_text import dump_yaml

CARD_FILE = "README.md"
_OF_THE_MACHINE = ("run", "mesh")  # sections that change no result


def write_model_card(run: Path, directory: Path, dtype: str, note: str | None = None) -> None:
    """Write README.md into an export, and copy the training curves of the run if there are any.

    Args:
      run: The directory of the run.
      directory: The export.
      dtype: Of the exported weights.
      note: How the base of an exported adapter was changed for the run; None if it was not.

    Raises:
      ValueError: A file of the run cannot be read.
    """
    step, _ = newest_undamaged(checkpoints_of(run), contents=False)
    found = _until(read_runs([str(run)])[0], step or 0)
    has_curves = (run / CURVES_FILE).is_file()
    if has_curves:
        shutil.copy(run / CURVES_FILE, directory)
    is_adapter = (directory / ADAPTER_CONFIG).is_file()
    text = model_card(found, dtype, has_curves, "peft" if is_adapter else "transformers", note)
    (directory / CARD_FILE).write_text(text, encoding="utf-8")


def model_card(
    run: ReportedRun,
    dtype: str,
    has_curves: bool,
    library: str = "transformers",
    note: str | None = None,
) -> str:
    """The text: front matter of the hub, how the model was made, Pass@K, curves, config."""
    config = _public({k: v for k, v in run.config.items() if k not in _OF_THE_MACHINE})
    base = str((config.get("model") or {}).get("path", "random weights"))
    task, start = config.get("task") or {}, (run.starts or [{}])[-1]
    name = str(task.get("name") or (config.get("data") or {}).get("train", "?"))
    front: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    front["tags"] = ["entropy_rl", "reinforcement-learning" if "advantage" in config else "sft"]
    if is_pinned(base):  # any other path is of this machine, even if it looks like an id
        front["base_model"], _ = split_id(base)
    code = f"entropy_rl {(start.get('versions') or {}).get('entropy_rl', '?')}"
    facts = {
        "Initial model": base,
        "Data": " ".join([name, *(f"{k}={v}" for k, v in (task.get("args") or {}).items())]),
        "Method": run.method,
        "Steps": run.metrics[-1]["step"] if run.metrics else 0,
        "Seed": config.get("seed"),
        "Weights": dtype if note is None else f"{dtype}, {note}",
        "Code": f"{code}, commit {start['commit']}" if start.get("commit") else code,
        "Devices": start.get("devices", "?"),
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {run.name}",
        "Trained with entropy_rl.",
        markdown_table(("", ""), [(name, str(value)) for name, value in facts.items()]),
    ]
    if run.evaluations:
        columns = {label: result for label, (_, _, result) in run.first_and_last.items()}
        header, *rows = evaluation_rows(columns)
        split = (config.get("evaluation") or {}).get("split", "?")
        parts += [
            "## Evaluation",
            f"Split `{split}` of the task; in brackets: "
            f"{interval_note(list(columns.values()))}. One run with one seed does not show which "
            "method is better.",
            markdown_table(header, rows),
        ]
    if has_curves:
        parts += ["## Training", f"![training curves]({CURVES_FILE})"]
    text = dump_yaml(config, allow_unicode=True)
    return "\n\n".join([*parts, "## Config", f"```yaml\n{text}```"]) + "\n"


def _until(run: ReportedRun, step: int) -> ReportedRun:
    """The run up to the checkpoint that was exported; later steps were killed."""
    metrics = [row for row in run.metrics if row["step"] <= step]
    evaluations = {s: found for s, found in run.evaluations.items() if s <= step}
    return dataclasses.replace(run, metrics=metrics, evaluations=evaluations)


def _public(value: Any) -> Any:
    """Names instead of absolute paths, which would tell where the files are on this machine."""
    if isinstance(value, Mapping):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if not isinstance(value, str) or not os.path.isabs(os.path.expanduser(value)):
        return value
    # A text, such as a prompt, may begin with a slash too.
    is_text = any(c.isspace() or c in "{}" for c in value) and not os.path.exists(value)
    return value if is_text else Path(value).name
