"""Several processes that run one program, one per host: how they join, and what they tell each
other.

With a single process, all of this does nothing.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any

import jax
import numpy as np

VARIABLE = "ENTROPY_RL_DISTRIBUTED"
_SILENCE = (
    30  # seconds without a sign of life after which a process counts as lost, and the others end
)


def join() -> None:
    """Joins the other processes, where the environment says that there are some. Before jax has a
    device.

    `ENTROPY_RL_DISTRIBUTED=auto` lets jax find them: TPU pods, GKE, Slurm, Open MPI. Elsewhere
    `HOST:PORT,PROCESSES,NUMBER` says where the first one listens, how many there are, and which
    this is.

    Raises:
      ValueError: If the variable holds something else.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return
    if "cpu" in (jax.config.jax_platforms or ""):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if value == "auto":
        _initialize()
        return
    address, *numbers = value.split(",")
    if ":" not in address or len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise ValueError(
            f"{VARIABLE}: {value!r} is not allowed; allowed: auto, or HOST:PORT,PROCESSES,NUMBER"
        )
    count, index = map(int, numbers)
    if index >= count:
        raise ValueError(
            f"{VARIABLE}: process {index} of {count} is not allowed; allowed: 0 to {count - 1}"
        )
    _initialize(coordinator_address=address, num_processes=count, process_id=index)


def _initialize(**arguments: Any) -> None:
    jax.distributed.initialize(heartbeat_timeout_seconds=_SILENCE, **arguments)
    # jax's own handler only notes the signal; until a run catches it, it is to end the process.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def count() -> int:
    """The number of processes."""
    return jax.process_count()


def index() -> int:
    """The number of this process."""
    return jax.process_index()


def is_first() -> bool:
    """True for the one process that writes what is there once."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order.

    Args:
      value: Plain, as JSON holds it.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def concatenate(tree: Any) -> Any:
    """Arrays of all processes behind one another, along their first axis; every process must ask.

    Args:
      tree: numpy arrays, of the same shapes in every process.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def fetch(tree: Any) -> Any:
    """Host copies of arrays, also of those that are split over all processes; every process must
    ask.
    """

    def fetch_leaf(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return jax.device_get(x)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(fetch_leaf, tree)
