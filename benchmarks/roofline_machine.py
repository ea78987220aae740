"""What the device can do, measured where the work is: the denominators of every share of a
roofline.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.rollout.batching import device_memory

_QUEUED = 10  # calls in a row for one time: starting the next hides behind the one that runs
_COPY_BYTES = {"cpu": 2**26}
_COPY_BYTES_OTHERWISE = 2**30
_MATMUL_SIZE = {"cpu": 1024}
_MATMUL_SIZE_OTHERWISE = 8192


class Machine(NamedTuple):
    """Rates of one device.

    Attributes:
      bandwidth: Bytes per second, read and written, of x -> a x over a large array.
      matmul: FLOP per second of a large square product, by type; float32 in the precision that the
        backend takes by default, as in training.
    """

    bandwidth: float
    matmul: dict[str, float]


def say(text: str) -> None:
    """Tells how far things are."""
    print(text, file=sys.stderr, flush=True)


def timed(run: Callable[[], Any], runs: int) -> tuple[list[float], Any]:
    """Seconds of each run, after a first one that compiles, and what the last one returned."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    say(f"  first run, with compilation: {time.perf_counter() - start:.1f} s")
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        last = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return seconds, last


def measure_machine(runs: int) -> Machine:
    """Measures the default device; medians of several runs."""
    backend = jax.default_backend()
    items = _COPY_BYTES.get(backend, _COPY_BYTES_OTHERWISE) // 4
    array = [jnp.ones(items, jnp.float32)]
    scale = jax.jit(lambda x: x * 1.0001, donate_argnums=0)

    def copy() -> jax.Array:
        for _ in range(_QUEUED):
            array[0] = scale(array[0])
        return array[0]

    say("copy bandwidth")
    bandwidth = _QUEUED * 2 * 4 * items / statistics.median(timed(copy, runs)[0])
    array.clear()
    return Machine(bandwidth, {name: _matmul_rate(name, runs) for name in ("bfloat16", "float32")})


def _matmul_rate(dtype: str, runs: int) -> float:
    n = _MATMUL_SIZE.get(jax.default_backend(), _MATMUL_SIZE_OTHERWISE)
    # Not constants: power, and with it the clock, depends on the bits that change.
    a, b = (jax.random.normal(key, (n, n), dtype) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(jnp.dot)

    def multiply() -> jax.Array:
        for _ in range(_QUEUED):
            c = product(a, b)
        return c

    say(f"matmul rate, {dtype}")
    return _QUEUED * 2 * n**3 / statistics.median(timed(multiply, runs)[0])


def memory_of_device() -> int | None:
    """Bytes that programs may use on the default device; None if it does not tell."""
    try:
        return device_memory(jax.devices()[:1])
    except ValueError:
        return None


def describe() -> dict[str, Any]:
    """The device and the versions, for the record."""
    device = jax.devices()[0]
    return {
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "used": 1,
            "visible": jax.device_count(),
            "memory_bytes": memory_of_device(),
            "compiler": device.client.platform_version,
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
