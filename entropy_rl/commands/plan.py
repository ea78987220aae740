"""Plan a run: compile it without its devices, and estimate memory and time per step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_rl.cli.failure import DoesNotFit
from entropy_rl.config.files import check_writable
from entropy_rl.config.plan import PlanConfig, PlanSFTConfig
from entropy_rl.escape import echo

if TYPE_CHECKING:
    from entropy_rl.planning.devices import Devices
    from entropy_rl.planning.plan import Plan


def main(config: PlanConfig) -> None:
    """The verb `plan` of the command line.

    Raises:
      ValueError: If the config cannot work.
      DoesNotFit: It does not fit; the line names what is too large.
    """
    devices = _target(config)
    from entropy_rl.planning.plan import make_plan
    from entropy_rl.planning.search import search, search_text
    from entropy_rl.planning.shapes import find_architecture

    architecture = find_architecture(config)
    if config.search:
        best, *others = search(config, architecture, devices)
        echo(f"{search_text([best, *others])}\n")
    else:
        best, others = make_plan(config, architecture, devices), []
    _finish(best, config.output, {"others": [other.to_plain() for other in others]})


def plan_sft(config: PlanSFTConfig) -> None:
    """The verb `plan-sft` of the command line.

    Raises:
      ValueError: If the config cannot work.
      DoesNotFit: It does not fit; the line names what is too large.
    """
    devices = _target(config)
    from entropy_rl.planning.shapes import find_policy
    from entropy_rl.planning.supervised import make_supervised_plan

    _finish(make_supervised_plan(config, find_policy(config), devices), config.output, {})


def check_config(config: PlanConfig) -> None:
    """Check what needs no device: the names of chip and shapes, and the methods of the run.

    Raises:
      ValueError: The config cannot work.
    """
    from entropy_rl.trainer.check_config import build_methods

    _check_names(config)
    build_methods(config)


def check_sft_config(config: PlanSFTConfig) -> None:
    """As `check_config`, for supervised training."""
    from entropy_rl.trainer.supervised import preference_loss

    _check_names(config)
    preference_loss(config)


def _check_names(config: PlanConfig | PlanSFTConfig) -> None:
    from entropy_rl.planning.devices import check_chip
    from entropy_rl.planning.shapes import check_shapes

    check_chip(config.chip)
    check_shapes(config)


def _target(config: PlanConfig | PlanSFTConfig) -> Devices:
    """Check the output, and return the devices."""
    if config.output is not None:
        check_writable(Path(config.output))
    # Imported here: `plan --help` must not import jax, and jax must not initialize other devices.
    from entropy_rl.planning.devices import start_on_cpu, topology_devices, virtual_devices

    start_on_cpu(config.devices)
    if config.topology is not None:
        return topology_devices(config.topology)
    return virtual_devices(config.devices, config.chip)


def _finish(plan: Plan, output: str | None, more: dict[str, Any]) -> None:
    """Print a plan and write it to a file, with more entries."""
    from entropy_rl.planning.table import plan_text
    from entropy_rl.runs.jsonl import write_atomically

    echo(plan_text(plan))
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(output), json.dumps(plan.to_plain() | more, indent=1) + "\n")
    if plan.too_large is not None:
        raise DoesNotFit(plan.too_large)
