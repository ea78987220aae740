"""Load a model from a Hugging Face directory or hub id, the assets of the package, or a run."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from entropy_rl.config.checks import at_place
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.files import error_text
from entropy_rl.config.values import field_at
from entropy_rl.distributed.sharding import Placement, commit
from entropy_rl.lm_head.vocabulary import Ranges, is_unused
from entropy_rl.models import (
    DecoderConfig,
    backbone_params,
    make_policy,
    read_checkpoint_config,
    read_config,
)
from entropy_rl.models.attention import check_backend
from entropy_rl.models.hf_config import read_json
from entropy_rl.models.lora import Base, adapter_shapes
from entropy_rl.models.peft import ADAPTER_CONFIG, read_adapter_config, write_adapter_config
from entropy_rl.models.rope import DynamicRopeScaling, LinearRopeScaling, YarnRopeScaling
from entropy_rl.precision import check_32_bit
from entropy_rl.rollout.programs import keep_params
from entropy_rl.runs.directory import MODEL_DIRECTORY
from entropy_rl.runs.hub import MODEL_FIELDS, split_id
from entropy_rl.runs.model_files import find_adapter, find_model, is_local, is_run, model_files
from entropy_rl.runs.tokenizer import (
    eos_ids_of,
    load_tokenizer,
    mark_special,
    unused_ids,
)
from entropy_rl.runs.weights import Weights, load_weights, make_adapter
from entropy_rl.types import TENSOR_AXIS, Params, Policy

log = logging.getLogger(__name__)

_TEXT_SUFFIXES = (".json", ".jinja", ".model", ".tiktoken", ".txt")


@dataclasses.dataclass(frozen=True)
class Model:
    """A policy with its parameters and its tokenizer.

    Attributes:
      policy: For training, on all devices of the mesh.
      sampler: The same for decoding on the devices of this process, with the parameters that
        `to_decode` returns.
      to_decode: (params) -> parameters for `sampler`.
      placement: Where arrays lie.
      params: For `policy`.
      config: The architecture.
      tokenizer: Of Hugging Face.
      eos_ids: Tokens that end a completion.
      pad_id: Fills the end of rows.
      directory: Of config.json and the tokenizer.
      unused: Ranges of ids that are no token of the tokenizer, and never sampled.
      base: The frozen parameters, if the model has an adapter.
      adapter: That adapter; `params` are both joined.
    """

    policy: Policy
    sampler: Policy
    to_decode: Callable[[Params], Params]
    placement: Placement
    params: Params
    config: DecoderConfig
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    directory: Path
    unused: Ranges = ()
    base: Base | None = None
    adapter: Params | None = None

    @property
    def trained(self) -> Params:
        """What a training run updates: the adapter if there is one, or else all parameters."""
        return self.params if self.base is None else self.adapter

    def params_with(self, trained: Params) -> Params:
        """Return the parameters for `policy` and `to_decode` with the `TrainState.params`."""
        return trained if self.base is None else self.base.join(trained)

    def merged(self) -> Model:
        """Return the model with its adapter, if there is one, merged into its parameters."""
        weights = Weights(self.params, self.placement, self.base, self.adapter).merged()
        return dataclasses.replace(self, params=weights.params, base=None, adapter=None)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Model({str(self.directory)!r}, {count:,} parameters)"


class ModelFiles(NamedTuple):
    """What is read of a model before its weights.

    Attributes:
      config: The architecture that config.json names.
      tokenizer: Of Hugging Face.
      eos_ids: Tokens that end a completion.
      pad_id: Fills the end of rows.
      directory: Of config.json and the tokenizer.
      unused: As in `Model`.
    """

    config: DecoderConfig
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    directory: Path
    unused: Ranges


def read_model_files(config: ModelConfig) -> ModelFiles:
    """Read config.json and the tokenizer of a model, for checks that need no weights.

    Args:
      config: The `model` section; of a Hub model, no weights are downloaded.

    Raises:
      ValueError: If there is no such model, or one of these files cannot be used.
    """
    return _read_files(config, model_files(find_model(config.path, weights=False)))


def _read_files(config: ModelConfig, directory: Path) -> ModelFiles:
    decoder = read_config(directory)
    tokenizer = load_tokenizer(directory)
    unused = unused_ids(directory, tokenizer, decoder.vocab_size)
    eos_ids = eos_ids_of(directory, tokenizer, config.extra_eos)
    mark_special(tokenizer, eos_ids)
    # Masks mark padding, so any id can serve for a tokenizer without a padding token.
    pad_id = eos_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return ModelFiles(decoder, tokenizer, eos_ids, pad_id, directory, unused)


def make_model(
    make: Callable[[Mesh | None], Policy],
    params: Params,
    config: DecoderConfig,
    placement: Placement | None = None,
    **files: Any,
) -> Model:
    """A `Model` of a policy that is made once for training and once for decoding.

    Args:
      make: (mesh) -> policy.
      params: The parameters.
      config: The architecture.
      placement: Where arrays lie; None for one device.
      **files: The other attributes: tokenizer, eos_ids, pad_id, directory, unused, base, adapter.
    """
    placement = placement or Placement()
    policy = make(placement.mesh)
    sampler = make(placement.local_mesh)._replace(to_decode=keep_params)
    return Model(
        policy, sampler, placement.make_to_decode(policy), placement, params, config, **files
    )


def load_model(
    config: ModelConfig | str | os.PathLike[str],
    mesh: Mesh | None = None,
    key: jax.Array | None = None,
    files: ModelFiles | None = None,
) -> Model:
    """Load a model from whatever `config.path` names.

    Args:
      config: The `model` section, or its path alone, such as "asset:countdown".
      mesh: The mesh that the policy will run on; None for one device.
      key: Draws a new adapter, where `config.lora` has no path.
      files: What `read_model_files` has read of it; None to read that here.

    Returns:
      The model; its parameters are float32, but for a base with another `base_dtype`. That of a
      LoRA run has the run's adapter, or is a base with that adapter merged if `config.lora` asks
      for one on top of it.

    Raises:
      ValueError: If there is no usable model, or it cannot run with this config.
    """
    if not isinstance(config, ModelConfig):
        config = ModelConfig(os.fspath(config))
    check_32_bit()
    # What is small comes first: weights may take minutes.
    path = find_model(config.path)
    files = files or _read_files(config, model_files(path))
    decoder = _read_architecture(path)
    make = functools.partial(_make_policy, config, decoder, files.unused)
    check_heads(decoder, mesh, config.decode_attention)
    check_backend(config.attention, config.decode_attention)
    placement = Placement(mesh, decoder.num_kv_heads)
    if config.lora is None:
        weights = load_weights(path, decoder, placement)
    else:
        new = make_adapter(config.lora, decoder, key, config.path)
        weights = load_weights(path, decoder, placement, config.lora.base_dtype)
        weights = weights.on_top(config, *new)
    kept = files._asdict() | dict(config=decoder, base=weights.base, adapter=weights.adapter)
    return make_model(make, weights.params, placement=placement, **kept)


def with_adapter(model: Model, config: ModelConfig, key: jax.Array) -> Model:
    """Return a model with another adapter on its base, whose arrays are shared.

    Args:
      model: A model with an adapter.
      config: The `model` section, of which `lora` is read.
      key: As in `load_model`.

    Raises:
      ValueError: As `load_model`.
    """
    spec, adapter = make_adapter(config.lora, model.config, key)
    base = dataclasses.replace(model.base, spec=spec)
    adapter = commit(model.placement.put_params(adapter))
    return dataclasses.replace(model, params=base.join(adapter), base=base, adapter=adapter)


def check_models(config: Any, fetch: bool = True) -> None:
    """Check that the models that a config names are there, without their weights.

    Args:
      config: Has the section `model`, and perhaps `critic` and `teacher`.
      fetch: Whether to download or convert files that are not here yet; without, a Hub model
        and `asset:smollm2` pass.

    Raises:
      ValueError: If one is not, or an adapter has no readable config.
    """
    for field in MODEL_FIELDS:
        path = field_at(config, field)
        if path is None or not (fetch or is_local(path)):
            continue
        try:
            if field == "model.lora.path":
                read_adapter_config(find_adapter(path))
            else:
                find_model(path, weights=False, field=field)
        except (OSError, ValueError) as error:
            text = error_text(error).removeprefix(f"{field}: ")
            raise ValueError(f"{field}: {text}") from error


class Backbone(NamedTuple):
    """A model without its head over the vocabulary; its parameters may be an adapter."""

    policy: Policy
    params: Params
    hidden_size: int


def load_backbone(path: str | None, config: ModelConfig, model: Model) -> Backbone:
    """Load the backbone of a critic.

    Args:
      path: As a `model.path`, with the same tokenizer; None for that of the policy, whose arrays
        are then shared: an adapter, if that is what is trained.
      config: The `model` section, of which all but the path holds for the critic too.
      model: The policy.

    Raises:
      ValueError: As `load_model`.
    """
    if path is None:
        return Backbone(model.policy, backbone_params(model.trained), model.config.hidden_size)
    found = load_other(path, config, model.placement.mesh, "critic.path")
    return Backbone(found.policy, backbone_params(found.params), found.config.hidden_size)


def load_other(path: str, config: ModelConfig, mesh: Mesh | None, field: str) -> Model:
    """Load another model than the policy, which does not decode.

    Args:
      path: As a `model.path`.
      config: The `model` section, of which all but path, adapter and decoding hold for it too.
      mesh: The mesh.
      field: The config field that names it, for errors.

    Raises:
      ValueError: As `load_model`.
    """
    other = dataclasses.replace(config, path=path, decode_attention="auto", lora=None)
    find_model(path, field=field)  # its errors name the field themselves
    with at_place(field):
        return load_model(other, mesh).merged()


def check_same_tokenizer(path: str, of: str, field: str) -> int:
    """Check that two models have the same tokens, before any weights are read.

    Args:
      path: As a `model.path`.
      of: The `model.path` of the policy.
      field: The config field of `path`, for errors.

    Returns:
      The number of these tokens.

    Raises:
      ValueError: If they have not, or there is no usable tokenizer.
    """
    directory = model_files(find_model(path, weights=False, field=field))
    own = load_tokenizer(model_files(find_model(of, weights=False))).get_vocab()
    if load_tokenizer(directory).get_vocab() != own:
        raise ValueError(f"{field}: must have the tokenizer of {of}, got another one in {path}")
    return len(set(own.values()))


def check_heads(config: DecoderConfig, mesh: Mesh | None, decode_attention: str = "auto") -> None:
    """Check that the heads divide over the tensor axis; the KV heads too, where a kernel needs it.

    Args:
      config: The architecture.
      mesh: The mesh; None for one device.
      decode_attention: As in the `model` section.

    Raises:
      ValueError: If they do not.
    """
    if mesh is None:
        return
    devices = mesh.shape[TENSOR_AXIS]
    if config.num_heads % devices:
        raise ValueError(
            f"mesh.tensor: must be a divisor of the model's {config.num_heads} heads, got {devices}"
        )
    if decode_attention == "ragged" and config.num_kv_heads % devices:
        raise ValueError(
            f"model.decode_attention: must be auto or xla if mesh.tensor ({devices}) does not "
            f"divide the model's {config.num_kv_heads} KV heads, got 'ragged'"
        )


def trained_policy(config: ModelConfig, path: Path) -> Policy:
    """Return the policy as functions of what a run trains: of an adapter, which `init` makes 0.

    Args:
      config: The `model` section of the run.
      path: The run, or the model that it starts from.

    Raises:
      ValueError: As `load_model`.
    """
    architecture = _read_architecture(path)
    policy = _make_policy(config, architecture, unused_of(path), None)
    if config.lora is None:
        return policy
    base = load_model(config, key=jax.random.key(0)).base
    shapes = adapter_shapes(base.spec, architecture)
    zeros = lambda key: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
    return base.bind(policy)._replace(init=zeros)


def unused_of(path: Path) -> Ranges:
    """Return the ranges of ids of a model or a run that are no token of its tokenizer."""
    directory = model_files(path)
    return unused_ids(directory, load_tokenizer(directory), _read_architecture(path).vocab_size)


def _make_policy(
    config: ModelConfig, decoder: DecoderConfig, unused: Ranges, mesh: Mesh | None = None
) -> Policy:
    check_backend(config.attention, config.decode_attention)
    return make_policy(
        decoder,
        jnp.dtype(config.compute_dtype),
        remat=config.remat,
        attention=config.attention,
        decode_attention=config.decode_attention,
        mesh=mesh,
        unused=unused,
    )


def _read_architecture(path: Path) -> DecoderConfig:
    # A run has the architecture of its model, and its weights in checkpoints.
    return read_config(model_files(path)) if is_run(path) else read_checkpoint_config(path)


def count_unused(model: Model, recorded: Iterable[tuple[Any, Any]], where: str) -> int:
    """Count recorded tokens that are none of the tokenizer's, and logs them.

    The policy gives them no probability: earlier versions sampled ids beyond the tokenizer.

    Args:
      model: The model.
      recorded: int32[...] and bool[...], recorded completions and their tokens.
      where: What holds them, for the log.
    """
    count = total = 0
    for ids, mask in recorded:
        count += int((is_unused(ids, model.unused) & mask).sum())
        total += int(mask.sum())
    if count:
        log.warning(
            "%s: %d of %d recorded tokens are none of the tokenizer's, and have no probability",
            where, count, total,
        )  # fmt: skip
    return count


def check_length(model: Model | ModelFiles, tokens: int) -> None:
    """Warn where rows can get longer than what the model was made for.

    Args:
      model: The model, or its files; `max_position_embeddings` of its config.json is what counts.
      tokens: Prompt and completion together.

    Raises:
      ValueError: With dynamic rope, whose frequencies change with the length beyond that: a token
        would have another log-prob when it is sampled than in the whole row.
    """
    rope = model.config.rope_scaling
    if isinstance(rope, DynamicRopeScaling) and tokens > rope.max_position_embeddings:
        raise ValueError(
            f"{model.directory}: rows must have at most {rope.max_position_embeddings} tokens with "
            f"dynamic rope, got {tokens}; yarn and linear rope have no such limit"
        )
    made_for = read_json(model.directory / "config.json").get("max_position_embeddings")
    if made_for is not None and isinstance(rope, LinearRopeScaling):
        made_for *= rope.factor
    elif made_for is not None and isinstance(rope, YarnRopeScaling):
        made_for = max(made_for, rope.original_max_position_embeddings * rope.factor)
    if made_for is not None and tokens > made_for:
        log.warning(
            "%s was made for %d positions; rows can have %d here", model.directory, made_for, tokens
        )


def keep_model_files(model: Model, directory: Path) -> None:
    """Copy config.json and the tokenizer into a run, so that it can be loaded by itself."""
    target = directory / MODEL_DIRECTORY
    if target.is_dir():
        return
    temporary = directory / (MODEL_DIRECTORY + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for path in model.directory.iterdir():
        # Weights can be there in more than one format. The model of a LoRA run was merged.
        is_text = path.suffix in _TEXT_SUFFIXES and ".safetensors" not in path.name
        if path.is_file() and is_text and path.name != ADAPTER_CONFIG:
            shutil.copy(path, temporary)
    _record_differences(model, temporary)
    if model.base is not None:
        write_adapter_config(temporary, model.base.spec, *split_id(model.base.path))
    temporary.replace(target)


def _record_differences(model: Model, directory: Path) -> None:
    """Write into a copy of the model's files what was decided otherwise when it was loaded.

    So that the run is loaded, evaluated and exported as it was trained: a head of its own, and
    further end tokens.
    """
    if read_config(directory).tie_embeddings and not model.config.tie_embeddings:
        _update_json(directory / "config.json", tie_word_embeddings=False)
    if set(eos_ids_of(directory, model.tokenizer)) != set(model.eos_ids):
        _update_json(directory / "generation_config.json", eos_token_id=list(model.eos_ids))


def _update_json(file: Path, **fields: Any) -> None:
    content = (read_json(file) if file.exists() else {}) | fields
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
