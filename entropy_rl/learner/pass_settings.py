"""`PassSettings`: how a pass of a model over a mini-batch is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from entropy_rl.config.checks import is_count, require
from entropy_rl.distributed.sharding import row_shards

_MIN_SAVED = 1 / 2  # of the tokens


@dataclasses.dataclass(frozen=True)
class PassSettings:
    """How the passes over a mini-batch are computed.

    Only the temperature changes results. The others change memory and speed, and the order in
    which float32 numbers are added.

    Attributes:
      temperature: Sampling temperature, which divides the logits. A critic does not read it.
      max_tokens_per_micro_batch: The gradient is accumulated over micro-batches of at most this
        many tokens, on each group of devices with its own rows. None computes all rows at once,
        padding included.
      group_size: Compute each prompt once for its group of this many contiguous rows. None computes
        it with each row. It needs `max_tokens_per_micro_batch`.
      fuse_loss: Compute the loss in the loop of the LM head over chunks, with `fused_head_loss`.
        None lets `fuses_loss` decide.
      mesh: The mesh that the arrays are sharded over; None for one device.
      constrain: Constrains the sharding of a tree with the names of the parameters, as
        `Placement.constrain`; None leaves it to the compiler.
    """

    temperature: float = 1.0
    max_tokens_per_micro_batch: int | None = None
    group_size: int | None = None
    fuse_loss: bool | None = None
    mesh: Mesh | None = None
    constrain: Callable[[Any], Any] | None = None

    def __post_init__(self):
        require(self.temperature > 0, "PassSettings.temperature", self.temperature, "> 0")
        for name in ("max_tokens_per_micro_batch", "group_size"):
            value = getattr(self, name)
            is_valid = value is None or is_count(value, 1)
            require(is_valid, f"PassSettings.{name}", value, "None or an integer >= 1")
        if self.max_tokens_per_micro_batch is None:
            expected = "None where max_tokens_per_micro_batch is None"
            require(self.group_size is None, "PassSettings.group_size", self.group_size, expected)

    @property
    def shards(self) -> int:
        """Groups of devices with rows of their own."""
        return row_shards(self.mesh)

    def constrained(self, tree: Any) -> Any:
        """The tree with its sharding constrained, if there is a `constrain`."""
        return tree if self.constrain is None else self.constrain(tree)

    def without_groups(self) -> PassSettings:
        """The settings for rows that are in no groups."""
        return dataclasses.replace(self, group_size=None)


def shares_prompts(
    prompts: int, group_size: int, prompt_tokens: int, new_tokens: int, shards: int = 1
) -> bool:
    """Whether a prompt is computed once for its group, for `PassSettings.group_size`.

    It is where that saves at least half of the tokens of rows of full length, since it takes
    another compilation and memory for keys and values of all prompts.

    Args:
      prompts: Prompts of a mini-batch.
      group_size: Rows of a prompt.
      prompt_tokens: Limit of prompt tokens.
      new_tokens: Limit of new tokens.
      shards: Shards of the rows, which must have whole groups.
    """
    saved = (group_size - 1) / group_size * prompt_tokens / (prompt_tokens + new_tokens)
    return prompts % shards == 0 and saved >= _MIN_SAVED
