"""Plan a run: compile it without its devices, and estimate memory and time per step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from entropy_rl.cli.failure import DoesNotFit
from entropy_rl.cli.main import run_verb
from entropy_rl.config.plan import PlanConfig


def main(config: PlanConfig) -> None:
    """The verb `plan` of the command line.

    Raises:
      ValueError: If the config cannot work.
      DoesNotFit: It does not fit; the line names what is too large.
    """
    # Imported here: `plan --help` must not import jax, and jax must not initialize other devices.
    from entropy_rl.planning.devices import start_on_cpu, topology_devices, virtual_devices

    start_on_cpu(config.devices)
    from entropy_rl.planning.plan import make_plan
    from entropy_rl.planning.search import search, search_text
    from entropy_rl.planning.shapes import find_architecture
    from entropy_rl.planning.table import plan_text
    from entropy_rl.runs.jsonl import write_atomically

    architecture = find_architecture(config)
    if config.topology is not None:
        devices = topology_devices(config.topology)
    else:
        devices = virtual_devices(config.devices, config.chip)
    if config.search:
        best, *others = search(config, architecture, devices)
        print(f"{search_text([best, *others])}\n")
    else:
        best, others = make_plan(config, architecture, devices), []
    print(plan_text(best))
    if config.output is not None:
        plain = best.to_plain() | {"others": [other.to_plain() for other in others]}
        write_atomically(Path(config.output), json.dumps(plain, indent=1) + "\n")
    if best.too_large is not None:
        raise DoesNotFit(best.too_large)


if __name__ == "__main__":
    sys.exit(run_verb("plan", sys.argv[1:]))
