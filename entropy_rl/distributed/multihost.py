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
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from entropy_rl.config.checks import require, shown
from entropy_rl.config.values import differences
from entropy_rl.escape import echo

VARIABLE = "ENTROPY_RL_DISTRIBUTED"
_JOIN_TIMEOUT = 300  # seconds within which all processes must have started
_ANNOUNCE_SECONDS = 20
_HEARTBEAT_TIMEOUT = 30  # seconds until a silent process counts as lost, and the others exit
# Seconds that a process which is done waits for the others. JAX's default, 5 minutes, would end the
# shards of an evaluation that take longer than the first one.
_SHUTDOWN_TIMEOUT = 7 * 24 * 3600
_LEAVING_TIMEOUT_MS = 10_000  # within which processes that fail alike are expected to end
_POLL_SECONDS = 1
# From the failure of another process until this one ends as well, unless it fails alike before.
_GRACE_SECONDS = 5
_FAILED = "failed"
leaving = threading.Lock()  # held by the thread that ends this process, until it has


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
            _initialize("", "this process")
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
    _initialize(
        f" at {address}",
        f"process {index} of {count}",
        coordinator_address=address,
        num_processes=count,
        process_id=index,
    )


def refuse(verb: str) -> None:
    """Refuse to run a verb of one process with ENTROPY_RL_DISTRIBUTED.

    Raises:
      ValueError: If the variable is set.
    """
    value = os.environ.get(VARIABLE)
    require(not value, VARIABLE, value, f"unset, because {verb} runs in one process")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _initialize(where: str, who: str, **arguments: Any) -> None:
    with _announced(where, who):
        jax.distributed.initialize(
            # At the end of its own limit, jax aborts the process with a stack of C++.
            initialization_timeout=2 * _JOIN_TIMEOUT,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
            **arguments,
        )
    threading.Thread(target=_end_with_others, daemon=True).start()
    # JAX's handler only records SIGTERM; until a run catches the signal, it must end the process.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _announced(where: str, who: str) -> Iterator[None]:
    """Print that this process waits for the others, and end it if they do not come."""
    joined = threading.Event()

    def announce() -> None:
        begun = time.monotonic()
        while not joined.wait(_ANNOUNCE_SECONDS):
            if time.monotonic() - begun >= _JOIN_TIMEOUT:
                late = f"{who}: the others did not come within {_JOIN_TIMEOUT} s{where}"
                echo(f"entropy-rl: {late}; their logs say why", file=sys.stderr)
                os._exit(1)
            echo(f"waiting for the other processes{where}", file=sys.stderr)

    threading.Thread(target=announce, daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def _end_with_others() -> None:
    """End this process with a line if another one fails, rather than in a collective without it."""
    failed = {}
    while not failed:
        time.sleep(_POLL_SECONDS)
        try:
            failed = told(_FAILED)
        except jax.errors.JaxRuntimeError:  # the connection has ended
            return
    time.sleep(_GRACE_SECONDS)
    if leaving.locked():
        return
    number, code = next(iter(failed.items()))
    echo(
        f"entropy-rl: process {index()} of {count()} cannot go on: process {number} has ended with "
        f"exit code {code}; its log says why",
        file=sys.stderr,
    )
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process of several with an exit code, after an error.

    At a normal exit, `jax.distributed` waits minutes for the other processes, which may wait for
    this one in a collective, and then aborts all of them: the exit code would be lost. The wait
    here is short. It is for processes that fail alike, and for the others, which end as well when
    they learn of the error: the first process must not end before them.
    """
    leaving.acquire()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if code - 128 not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            tell(_FAILED, code)
        _client().wait_at_barrier("entropy_rl leaves", _LEAVING_TIMEOUT_MS)
    if is_first():  # the others, when they lose the connection to it, log that
        time.sleep(_POLL_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader has exited, or it is closed
            stream.flush()
    os._exit(code)


def _client() -> Any:
    from jax._src.distributed import global_state

    return global_state.client


def tell(topic: str, value: int) -> None:
    """Give all processes a number of this one, without waiting for them; see `told`."""
    _client().key_value_set(f"entropy_rl/{topic}/{index()}", str(value), allow_overwrite=True)


def told(topic: str) -> dict[int, int]:
    """Return the numbers that processes have told about a topic so far, by process index."""
    found = _client().key_value_dir_get(f"entropy_rl/{topic}/")
    return {int(name.rpartition("/")[2]): int(value) for name, value in found}


def count() -> int:
    """Return the number of processes."""
    return jax.process_count()


def index() -> int:
    """Return the index of this process."""
    return jax.process_index()


def is_first() -> bool:
    """Return True in the process that writes files."""
    return jax.process_index() == 0


def signal_of_all(topic: str, number: Callable[[], int]) -> int:
    """Wait until all processes are here, and return the largest of their numbers.

    Unlike a collective, the wait may take hours and be interrupted by a signal.

    Args:
      topic: Of `tell`, where processes that have not come yet see the numbers.
      number: Returns the number of this process, which may change meanwhile, such as a signal.
    """
    while True:
        tell(topic, number())
        if len(told(topic)) == count():
            return max(gather(number()))
        time.sleep(_POLL_SECONDS)


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


def check_same(values: Mapping[str, Any]) -> None:
    """Check that all processes have the same values; every process must call it.

    Args:
      values: JSON-serializable values by name, which may be nested.

    Raises:
      ValueError: In all processes; names the first value that differs.
    """
    if not jax.distributed.is_initialized():  # without a look at the devices
        return
    first, *others = gather(values)
    for number, other in enumerate(others, 1):
        for name, ours, theirs in differences(first, other):
            raise ValueError(
                f"{name}: must be the same in all processes, got {shown(ours, 60)} in process 0 "
                f"and {shown(theirs, 60)} in process {number}"
            )


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
