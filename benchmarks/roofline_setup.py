"""Inputs of the roofline benchmarks, and the fields of their results."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from roofline_machine import Machine

from entropy_rl.models.decoder import DecoderConfig
from entropy_rl.planning.counting import Cost
from entropy_rl.types import Policy


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model on a device, and the shapes of its inputs.

    Attributes:
      config: The architecture.
      policy: The model.
      dtype: Data type of the matrix products.
      memory: Bytes of the device, if known.
      group: Rows of a prompt.
      prompt: Tokens of a prompt.
      context: For decoding, tokens that a row attends to in the middle of the measurement. For
        training and whole steps, tokens of a row that reaches the limit, prompt included.
      mean: Mean tokens of a completion before it is cut at the limit; None for completions that
        all reach it.
      runs: Number of measurements.
      machine: Measured rates of the device.
    """

    config: DecoderConfig
    policy: Policy
    dtype: str
    memory: int | None
    group: int
    prompt: int
    context: int
    mean: float | None
    runs: int
    machine: Machine | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of a weight in the products."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def limit(self) -> int:
        """Largest number of tokens of a completion."""
        return self.context - self.prompt

    def prompts(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random prompts of a number of rows: ids, mask and indices."""
        shape = (rows // self.group, self.prompt)
        ids = np.random.default_rng(0).integers(0, self.config.vocab_size, shape, np.int32)
        return ids, np.ones(shape, bool), np.arange(shape[0], dtype=np.int32)


def measurement(
    setup: Setup, what: str, seconds: Sequence[float], tokens: float, *costs: Cost, **more
) -> dict:
    """A line of the result.

    Args:
      setup: The setup.
      what: A name.
      seconds: Of each run.
      tokens: That come out of a run.
      *costs: Of a run, one after the other. None may overlap with the next.
      **more: Further facts.
    """
    rate, bandwidth = setup.machine.matmul[setup.dtype], setup.machine.bandwidth
    median, least = statistics.median(seconds), sum(cost.seconds(rate, bandwidth) for cost in costs)
    flops, moved = (
        sum(getattr(cost.total(), name) for cost in costs) for name in ("flops", "bytes")
    )
    return {
        "what": what,
        "seconds": list(seconds),
        "median": median,
        "min": min(seconds),
        "max": max(seconds),
        "tokens": tokens,
        "tokens_per_second": tokens / median,
        "flops": flops,
        "bytes": moved,
        "roofline_seconds": least,
        "share_of_roofline": least / median,
        "share_of_bandwidth": moved / median / bandwidth,
        "share_of_matmul": flops / median / rate,
        **more,
    }
