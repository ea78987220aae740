"""Devices of a plan: a TPU topology, without the hardware, or virtual CPU devices."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

import jax

from entropy_rl.config.extras import install_command
from entropy_rl.config.values import unknown
from entropy_rl.planning.chips import CHIPS, TPUS, Chip

_NAME = re.compile(r"(\w+):\d+(x\d+){1,2}")


@dataclasses.dataclass(frozen=True)
class Devices:
    """Target devices of a plan.

    Attributes:
      name: Display name.
      backend: cpu or tpu.
      all: All devices, for ahead-of-time compilation.
      host: The devices of one host; with several hosts a topology of its own, because the compiler
        does not support programs on a part of a topology.
      hosts: Number of hosts.
      chip: Data of the chip; None if unknown.
    """

    name: str
    backend: str
    all: Sequence[jax.Device]
    host: Sequence[jax.Device]
    hosts: int
    chip: Chip | None


def start_on_cpu(devices: int | None) -> None:
    """Restrict JAX to virtual CPU devices; must be called before it initializes a backend."""
    # Or libtpu looks for a TPU over the network, complains that there is none, and locks it for one
    # process.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name, value in (("TPU_WORKER_HOSTNAMES", "localhost"), ("TPU_ACCELERATOR_TYPE", "v5p-8")):
        os.environ.setdefault(name, value)
    try:
        jax.config.update("jax_platforms", "cpu")
        if devices is not None:
            jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:  # it has some already: they must do
        pass


def check_chip(name: str | None) -> None:
    """Check the name of a chip, if any.

    Raises:
      ValueError: There is no such chip.
    """
    if name is not None and name not in CHIPS:
        raise ValueError(unknown("chip", name, CHIPS))


def virtual_devices(count: int, chip: str | None) -> Devices:
    """Return virtual CPU devices of one host.

    Args:
      count: Number of devices.
      chip: Name of the chip whose memory and rates to assume.

    Raises:
      ValueError: If there are fewer devices, or no such chip.
    """
    check_chip(chip)
    found = jax.devices("cpu")
    if len(found) < count:
        raise ValueError(
            f"devices: must be at most {len(found)}, the devices of this process, got {count}"
        )
    return Devices(
        f"{count} virtual CPU devices", "cpu", found[:count], found[:count], 1, chip and CHIPS[chip]
    )


def topology_devices(name: str) -> Devices:
    """Return the devices of a TPU topology.

    Args:
      name: Name such as v5p:4x4x4; a host has four chips.

    Raises:
      ValueError: If there is no such topology, or no compiler for it.
    """
    generation = name.partition(":")[0]
    must_be = (
        f"must be one of {', '.join(TPUS)} with the chips along each axis, such as v5e:4x4 or "
        f"v5p:2x2x4, got {name!r}"
    )
    if not _NAME.fullmatch(name) or generation not in TPUS:
        raise ValueError(f"topology: {must_be}")
    try:
        from libtpu import get_library_path  # noqa: F401  # a directory of that name is not enough
    except ImportError:
        raise ValueError(
            f"topology: the TPU compiler is not installed: `{install_command('tpu')}`"
        ) from None
    from jax.experimental import topologies

    # The two cores of a v4 chip are one device, as they are by default on a real one.
    more = {"chip_config_name": "megacore"} if generation == "v4" else {}
    of_host = f"{generation}:{'2x2' if generation in ('v5e', 'v6e') else '2x2x1'}"
    try:
        found, host = (
            topologies.get_topology_desc(platform="tpu", topology_name=slice_name, **more).devices
            for slice_name in (name, of_host)
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].rpartition("INVALID_ARGUMENT: ")[2]
        raise ValueError(f"topology: {must_be}: {reason}") from None
    # The compilation cache supports only existing devices.
    jax.config.update("jax_enable_compilation_cache", False)
    hosts = len({device.process_index for device in found})
    return Devices(f"TPU {name}", "tpu", found, host, hosts, CHIPS[generation])
