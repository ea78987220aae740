"""`entropy-rl study`: a grid of training runs, and tests of registered hypotheses."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from entropy_rl.config.files import check_creatable
from entropy_rl.config.study import StudyConfig
from entropy_rl.escape import echo
from entropy_rl.runs.directory import (
    FREE_OF_EVALUATION,
    FREE_OF_TRAINING,
    check_characters,
    check_directory,
    claim_directory,
)
from entropy_rl.studies import (
    Design,
    check_inputs,
    design,
    incomplete,
    plan_text,
    read_records,
    run_units,
    write_report,
)

# Fields that may change between two starts.
_FREE = (
    *("study.do", "study.parallel", "study.only", "study.output", "evaluate.output"),
    *(f"train.{field}" for field in FREE_OF_TRAINING),
    *(f"evaluate.{field}" for field in FREE_OF_EVALUATION),
)
# How the directory of a study is checked.
_OURS: Mapping[str, Any] = MappingProxyType({"field": "output", "free": _FREE})


def main(config: StudyConfig) -> None:
    """Run the command `study`.

    Raises:
      ChildProcessError: Some runs failed; all others are done, and the report is written.
    """
    found = _check_design(config)
    if config.do == "plan":  # shown on a machine without the data too
        echo(plan_text(found))
    _check_inputs(found)
    if config.do == "plan":
        return
    # From here on the config is fixed: the hypotheses are registered before the first run.
    claim_directory(found.directory, found, **_OURS)
    if config.do == "run":
        run_units(found, functools.partial(echo, file=sys.stderr))
    echo(write_report(found))
    if config.do == "run":
        _check_failures(found)


def check_config(config: StudyConfig) -> None:
    """Check all that needs no device: the directory, every config, and what missing runs need.

    Raises:
      ValueError: If something in the config cannot work.
    """
    _check_inputs(_check_design(config))


def _check_design(config: StudyConfig) -> Design:
    found = design(config)
    check_characters(found.directory, "output")
    check_creatable(found.directory)
    check_directory(found.directory, found, **_OURS)
    return found


def _check_inputs(found: Design) -> None:
    study = found.study
    # A complete study is shown where its tasks and models are not.
    if study.do != "report" and incomplete(read_records(found), study.only):
        check_inputs(found, models=study.do == "run")


def _check_failures(found: Design) -> None:
    records = read_records(found)
    failed = [
        unit for unit, record in incomplete(records, found.study.only).items() if record.failed
    ]
    if failed:
        raise ChildProcessError(
            f"{len(failed)} of {len(records)} runs failed, the first: {failed[0]}: "
            f"{records[failed[0]].failed}; the same command retries them"
        )
