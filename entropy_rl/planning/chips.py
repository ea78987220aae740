"""Memory, peak FLOP/s and bandwidth of chips, from public data sheets."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from entropy_rl.config.checks import require

GiB = 2**30


class Chip(NamedTuple):
    """Data of one chip.

    Attributes:
      name: Name, as in the name of a topology.
      hbm: Bytes of memory: of a TPU those available to the compiler, of a GPU the data sheet's.
      flops: Peak FLOP/s of bfloat16 matrix products with float32 accumulation.
      bandwidth: Memory bandwidth, bytes/s.
      source: URL of the data sheet.
    """

    name: str
    hbm: float
    flops: float
    bandwidth: float
    source: str


_TPU = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"

# Memory of TPUs: 32, 16, 95 and 32 GB in the sheets; here what libtpu 0.0.42 reports as available
# when a program is too large. Of GPUs: as in the sheets, with products of dense matrices (half the
# rates with sparsity). T4 has no bfloat16, which is emulated there: the rate is that of float16.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 30.75 * GiB, 275e12, 1228e9, _TPU + "v4"),
        Chip("v5e", 15.75 * GiB, 197e12, 819e9, _TPU + "v5e"),
        Chip("v5p", 95.74 * GiB, 459e12, 2765e9, _TPU + "v5p"),
        Chip("v6e", 31.25 * GiB, 918e12, 1640e9, _TPU + "v6e"),
        Chip("h100", 80e9, 989e12, 3350e9, _NVIDIA + "h100"),
        Chip("h200", 141e9, 989e12, 4800e9, _NVIDIA + "h200"),
        Chip("a100-40", 40e9, 312e12, 1555e9, _NVIDIA + "a100"),
        Chip("a100-80", 80e9, 312e12, 2039e9, _NVIDIA + "a100"),
        Chip("l4", 24e9, 121e12, 300e9, _NVIDIA + "l4"),
        Chip("rtx4090", 24e9, 165e12, 1008e9, _ADA),
        Chip("t4", 16e9, 65e12, 320e9, _NVIDIA + "tesla-t4"),
    )
}
TPUS = ("v4", "v5e", "v5p", "v6e")

# The part of a GPU's memory that JAX takes for its arrays: the first of these that is set.
_MEMORY_FRACTION = 0.75
_FRACTION_NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def usable_memory(chip: Chip) -> float:
    """Return the bytes of a chip that a run can use.

    Of a GPU, JAX takes 75%, or the fraction in the environment variable XLA_CLIENT_MEM_FRACTION, or
    XLA_PYTHON_CLIENT_MEM_FRACTION of older versions. Source:
    https://docs.jax.dev/en/latest/gpu_memory_allocation.html

    Raises:
      ValueError: The variable is not a number above 0, and at most 1.
    """
    if chip.name in TPUS:
        return chip.hbm
    name = next((name for name in _FRACTION_NAMES if os.environ.get(name)), None)
    if name is None:
        return _MEMORY_FRACTION * chip.hbm
    text = os.environ[name]
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    require(0 < fraction <= 1, name, text, "a number > 0 and <= 1")
    return fraction * chip.hbm
