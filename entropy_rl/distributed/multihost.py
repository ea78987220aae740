"""Multi-process runs, with one process per host: initialization, barriers and collectives.

With a single process, these functions do nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from entropy_rl.config.checks import require

VARIABLE = "ENTROPY_RL_DISTRIBUTED"
_HEARTBEAT_TIMEOUT = 30  # seconds until a silent process counts as lost, and the others exit
# Seconds that a process which is done waits for the others. JAX's default, 5 minutes, would end the
# shards of an evaluation that take longer than the first one.
_SHUTDOWN_TIMEOUT = 7 * 24 * 3600
_LEAVING_TIMEOUT_MS = 10_000  # within which processes that fail alike are expected to end


def join() -> None:
    """Initialize `jax.distributed` if ENTROPY_RL_DISTRIBUTED is set; before any device is used.

    With `auto`, JAX detects the cluster: TPU pods, GKE, Slurm, Open MPI. Otherwise the value is
    `HOST:PORT,PROCESSES,INDEX`: address of the first process, number of processes, index of this
    one.

    Raises:
      ValueError: If the variable has another form.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return
    if "cpu" in (jax.config.jax_platforms or ""):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if value == "auto":
        try:
            _initialize()
        except ValueError as error:  # of jax, such as "coordinator_address should be defined."
            raise ValueError(
                f"{VARIABLE}: must be HOST:PORT,PROCESSES,INDEX where jax finds no cluster, got "
                f"'auto' ({str(error).rstrip('.')})"
            ) from error
        return
    address, *numbers = value.split(",")
    port = address.rpartition(":")[2] if ":" in address else ""
    if len(numbers) != 2 or not all(_is_number(text) for text in (port, *numbers)):
        raise ValueError(f"{VARIABLE}: must be auto or HOST:PORT,PROCESSES,INDEX, got {value!r}")
    count, index = map(int, numbers)
    form = "HOST:PORT,PROCESSES,INDEX with"
    require(1 <= int(port) <= 65535, VARIABLE, value, f"{form} a port from 1 to 65535")
    require(count >= 1, VARIABLE, value, f"{form} at least 1 process")
    require(index < count, VARIABLE, value, f"{form} an index from 0 to {count - 1}")
    _initialize(coordinator_address=address, num_processes=count, process_id=index)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _initialize(**arguments: Any) -> None:
    jax.distributed.initialize(
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        **arguments,
    )
    # JAX's handler only records SIGTERM; until a run catches the signal, it must end the process.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave(code: int) -> NoReturn:
    """End this process of several with an exit code, after an error.

    At a normal exit, `jax.distributed` waits minutes for the other processes, which may wait for
    this one in a collective, and then aborts all of them: the exit code would be lost. The wait
    here is short. It is for processes that fail alike: the first one must not end before the
    others have learned of the error.
    """
    from jax._src.distributed import global_state

    with contextlib.suppress(jax.errors.JaxRuntimeError):
        global_state.client.wait_at_barrier("entropy_rl leaves", _LEAVING_TIMEOUT_MS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader has exited, or it is closed
            stream.flush()
    os._exit(code)


def count() -> int:
    """Return the number of processes."""
    return jax.process_count()


def index() -> int:
    """Return the index of this process."""
    return jax.process_index()


def is_first() -> bool:
    """Return True in the process that writes files."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait for all processes at a named barrier."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """Gather a value of each process, in their order.

    Args:
      value: A JSON-serializable value.
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


def on_first(action: Callable[[], Any]) -> Any:
    """Run an action in the first process; every process must call it, and gets the result.

    Args:
      action: Returns a JSON-serializable value.

    Raises:
      ValueError: In all processes, if the action raises a ValueError or an OSError; the first one
        raises the original.
    """
    if jax.process_count() == 1:
        return action()
    result, failure = None, None
    if is_first():
        try:
            result = action()
        except (ValueError, OSError) as error:
            failure = error
    result, message = gather([result, None if failure is None else str(failure)])[0]
    if failure is not None:
        raise failure
    if message is not None:
        raise ValueError(message)
    return result


def concatenate(tree: Any) -> Any:
    """Concatenate arrays of all processes along the first axis; all processes must call it.

    Args:
      tree: Pytree of numpy arrays, of the same shapes in every process.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def fetch(tree: Any) -> Any:
    """Copy arrays to the host, including global ones; all processes must call it."""

    def fetch_leaf(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return jax.device_get(x)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(fetch_leaf, tree)
