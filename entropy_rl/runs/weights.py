"""Load the weights of a model: of a Hugging Face directory, a run, or a base with an adapter."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import jax

from entropy_rl.config.common import ModelConfig
from entropy_rl.config.files import error_text
from entropy_rl.config.lora import LoraConfig
from entropy_rl.distributed.host_memory import check_memory
from entropy_rl.distributed.sharding import Placement, commit
from entropy_rl.models import DecoderConfig, load_hf, make_policy
from entropy_rl.models.lora import (
    Base,
    LoraSpec,
    adapter_shapes,
    check_rank,
    init_adapter,
    lora_spec,
    merge,
)
from entropy_rl.models.peft import load_adapter, read_adapter_config, read_base_name
from entropy_rl.models.quantized import cast_floats, float_type, store
from entropy_rl.runs.checkpoint import restore_params
from entropy_rl.runs.directory import CONFIG_FILE, checkpoints_of
from entropy_rl.runs.hub import is_hub_id, split_id
from entropy_rl.runs.identity import model_identity, recorded_weights
from entropy_rl.runs.model_files import find_adapter, find_model, is_run, model_files
from entropy_rl.runs.stored import read_recorded_config
from entropy_rl.types import Params

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a model.

    Attributes:
      params: Of its policy; a base and an adapter are joined.
      placement: Where they lie.
      base: The base, if there is an adapter.
      adapter: The adapter.
    """

    params: Params
    placement: Placement
    base: Base | None = None
    adapter: Params | None = None

    def on_top(self, config: ModelConfig, spec: LoraSpec, adapter: Params) -> Weights:
        """Return these weights, an own adapter merged, as the base of another adapter."""
        params = store(self.merged().params, config.lora.base_dtype)
        adapter = self.placement.put_params(adapter)
        return _adapted(params, spec, self.placement, config.path, adapter)

    def merged(self) -> Weights:
        """Return the weights with their adapter merged, if there is one."""
        if self.base is None:
            return self
        constrain = self.placement.constrain
        params = jax.jit(lambda params: constrain(merge(params)))(self.params)
        return Weights(params, self.placement)


def make_adapter(
    config: LoraConfig, decoder: DecoderConfig, key: jax.Array | None, path: str | None = None
) -> tuple[LoraSpec, Params]:
    """Read the adapter that a `model.lora` names, or draw a new one.

    Args:
      config: The section.
      decoder: The architecture of the base.
      key: Draws a new one; None where nothing is trained.
      path: The `model.path` of the base, to warn of an adapter of another one; None for no warning.

    Raises:
      ValueError: If it does not fit the base, cannot be read, or would change nothing.
    """
    if config.path is not None:
        found = find_adapter(config.path)
        try:
            adapter, base = load_adapter(found, decoder), read_base_name(found)
        except (OSError, ValueError) as error:
            raise ValueError(f"model.lora.path: {error_text(error)}") from error
        if path is not None and base is not None and _is_other(base, path):
            log.warning("model.lora.path: trained on the base %s, got the base %s", base, path)
        return adapter
    if key is None:
        raise ValueError(
            "model.lora.path: must be an adapter where nothing is trained, as a new one changes "
            "nothing, got None"
        )
    spec = lora_spec(config)
    check_rank(spec, decoder)
    return spec, init_adapter(key, spec, decoder)


def _is_other(base: str, path: str) -> bool:
    """Whether the base that an adapter names is not a `model.path`, which may have been moved."""
    if is_hub_id(base) and is_hub_id(path):
        return split_id(base)[0] != split_id(path)[0]
    names = (os.path.abspath(os.path.expanduser(split_id(name)[0])) for name in (base, path))
    return len({os.path.basename(name) for name in names}) > 1


def load_weights(
    path: Path, decoder: DecoderConfig, placement: Placement, dtype: str = "float32"
) -> Weights:
    """Load the weights of a model.

    Args:
      path: A Hugging Face directory or a run.
      decoder: Its architecture.
      placement: Where arrays lie.
      dtype: Of the parameters of a Hugging Face directory or of a run without an adapter.

    Raises:
      ValueError: If they cannot be read, the base of a LoRA run is another one now, or the machine
        has not enough memory.
    """
    shapes = jax.eval_shape(make_policy(decoder).init, jax.random.key(0))
    if not is_run(path):
        sharding = None if placement.mesh is None else placement.of_path
        stored = float_type(dtype)
        check_memory(jax.eval_shape(lambda x: cast_floats(x, stored), shapes), "the weights")
        return Weights(load_hf(path, stored, sharding, decoder)[1], placement)
    recorded = read_recorded_config(path / CONFIG_FILE).get("model") or {}
    if recorded.get("lora") is None:
        check_memory(shapes, "the weights")
        params = restore_params(checkpoints_of(path), placement.abstract(shapes))
        return Weights(store(params, dtype), placement)
    spec = read_adapter_config(model_files(path))
    of_base = _find_base(path, recorded["path"])
    # What is small comes first.
    shapes = placement.abstract(adapter_shapes(spec, decoder))
    adapter = restore_params(checkpoints_of(path), shapes)
    dtype = recorded["lora"].get("base_dtype", dtype)
    base = load_weights(of_base, decoder, placement, dtype).merged()
    return _adapted(store(base.params, dtype), spec, placement, recorded["path"], adapter)


def _find_base(run: Path, path: str) -> Path:
    """Find the base of a LoRA run, and check that its weights are those the run began with."""
    try:
        found = find_model(path)
    except ValueError as error:
        raise ValueError(
            f"{run}: the base of its adapter must be where the run began, got none: {error}; put "
            f"it or a symbolic link there, or change model.path in {run / CONFIG_FILE}; its "
            "digests are checked"
        ) from error
    if recorded_weights(run) not in ({}, model_identity(path)["weights"]):
        raise ValueError(
            f"{run}: the base of its adapter must have the weights that the run began with, got "
            f"others in {path}"
        )
    return found


def _adapted(
    params: Params, spec: LoraSpec, placement: Placement, path: str, adapter: Params
) -> Weights:
    # Programs depend on whether their arguments are committed: the adapter of a state is.
    base, adapter = Base(commit(params), spec, path), commit(adapter)
    return Weights(base.join(adapter), placement, base, adapter)
