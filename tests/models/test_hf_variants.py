"""Ropes, biases, Mistral and untied heads against transformers, and their export."""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_fixtures import (
    CONFIGS,
    VARIANTS,
    edit_config,
    edit_weights,
    make_hf_dir,
    set_type,
    tensors,
)
from safetensors.numpy import load_file, save_file
from test_hf import assert_same_params, golden, greedy

from entropy_rl.config.common import MeshConfig
from entropy_rl.distributed.sharding import Placement, make_mesh
from entropy_rl.models import load_hf, make_policy, read_checkpoint_config, read_config, save_hf
from entropy_rl.models.rope import (
    DynamicRopeScaling,
    LinearRopeScaling,
    YarnRopeScaling,
    rope_frequencies,
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("variants")
    return {name: make_hf_dir(root / name, name) for name in VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_greedy_continuations_are_those_of_transformers(name, directories):
    values = golden(name)
    total = sum(np.abs(w.astype(np.float64)).sum() for w in tensors(name).values())
    np.testing.assert_allclose(total, values["fingerprint"], rtol=1e-12)
    config, params = load_hf(directories[name])
    policy = make_policy(config)
    logits = jax.jit(lambda params, ids: policy.apply(params, ids) @ policy.head(params).T)(
        params, values["ids"]
    )
    real = np.arange(values["ids"].shape[1])[None] < values["lengths"][:, None]
    np.testing.assert_allclose(logits[real], values["logits"][real], rtol=0, atol=2e-5)
    tokens = greedy(policy, params, values["ids"], values["lengths"], steps=8, group_size=1)
    np.testing.assert_array_equal(tokens, values["greedy"])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("with_source", [True, False])
def test_an_exported_variant_is_read_as_it_was(name, with_source, directories, tmp_path):
    from transformers import AutoConfig

    config, params = load_hf(directories[name])
    out = tmp_path / "out"
    save_hf(out, config, params, source_config=directories[name] if with_source else None)
    again, same = load_hf(out)
    assert again == config
    assert_same_params(same, params)
    exported = AutoConfig.from_pretrained(out)
    assert exported.tie_word_embeddings == config.tie_embeddings
    if with_source:
        assert exported.model_type == CONFIGS[name]["model_type"]


def test_the_variants_are_what_their_names_say(directories):
    found = {name: read_config(directory) for name, directory in directories.items()}
    assert isinstance(found["qwen2_yarn"].rope_scaling, YarnRopeScaling)
    assert isinstance(found["llama_linear"].rope_scaling, LinearRopeScaling)
    assert found["qwen3_dynamic"].rope_scaling == DynamicRopeScaling(2.0, 512)
    assert found["llama_bias"].qkv_bias and found["llama_bias"].o_bias
    assert found["llama_bias"].mlp_bias and not found["qwen3_bias"].mlp_bias
    assert found["mistral"].windows == (None, None)
    assert found["mistral_window"].windows == (4, 4)


@pytest.mark.parametrize("name", ["llama_bias", "qwen2_yarn"])
def test_logits_on_a_mesh_are_those_of_transformers(name, directories):
    values = golden(name)
    placement = Placement(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), kv_heads=2)
    config, params = load_hf(directories[name], sharding=placement.of_path)
    policy = make_policy(config, mesh=placement.mesh)
    ids = np.concatenate([values["ids"]] * 2)  # a row for each device of the data axes
    logits = jax.jit(lambda params, ids: policy.apply(params, ids) @ policy.head(params).T)(
        params, ids
    )
    real = np.arange(ids.shape[1])[None] < values["lengths"][:, None]
    np.testing.assert_allclose(logits[:2][real], values["logits"][real], rtol=0, atol=3e-5)


# --------------------------------------------------------------------------------------------------
# No tensor is dropped
# --------------------------------------------------------------------------------------------------


def test_a_head_that_differs_from_the_tied_embedding_is_used(directories, caplog):
    directory = directories["qwen3_own_head"]
    assert read_config(directory).tie_embeddings
    with caplog.at_level(logging.WARNING):
        config = read_checkpoint_config(directory)
    assert not config.tie_embeddings
    assert "lm_head.weight differs from the embedding: the head is used" in caplog.text
    _, params = load_hf(directory)
    head = load_file(directory / "model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(params["lm_head"]["kernel"], head)


@pytest.mark.parametrize("kind", ["one bit", "one row", "bfloat16", "of another shape"])
def test_any_difference_makes_it_a_head_of_its_own(kind, tmp_path):
    directory = make_hf_dir(tmp_path / "model", "qwen3")
    head = load_file(directory / "model.safetensors")["model.embed_tokens.weight"].copy()
    if kind == "one bit":
        head.view(np.uint32)[-1, -1] ^= 1
    elif kind == "one row":
        head[7] = 0
    elif kind == "bfloat16":
        import ml_dtypes

        head = head.astype(ml_dtypes.bfloat16)
    else:
        head = np.concatenate([head, head[:1]])
    edit_weights(directory, **{"lm_head.weight": head})
    if kind == "of another shape":
        with pytest.raises(ValueError, match=r"lm_head\.weight must have shape \(384, 64\)"):
            load_hf(directory)
        return
    config, params = load_hf(directory)
    assert not config.tie_embeddings
    np.testing.assert_array_equal(params["lm_head"]["kernel"], head.astype(np.float32))


def test_the_same_head_in_a_tied_file_is_no_second_table(tmp_path):
    directory = make_hf_dir(tmp_path / "model", "qwen3")
    table = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(directory, **{"lm_head.weight": table})
    config, params = load_hf(directory)
    assert config.tie_embeddings and "lm_head" not in params


def test_an_untied_file_without_a_head_is_refused(tmp_path):
    directory = make_hf_dir(tmp_path / "model", "qwen3")
    edit_config(directory, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"missing tensors \(1\): lm_head\.weight"):
        load_hf(directory)


def test_an_untied_file_whose_head_equals_the_embedding_stays_untied(tmp_path):
    directory = make_hf_dir(tmp_path / "model", "qwen3")
    table = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(directory, **{"lm_head.weight": table})
    edit_config(directory, tie_word_embeddings=False)
    config, params = load_hf(directory)
    assert not config.tie_embeddings
    np.testing.assert_array_equal(params["lm_head"]["kernel"], table)


@pytest.mark.parametrize(
    "tensor",
    [
        "lm_head.bias",
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.0.mlp.gate_proj.bias",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.embed_positions.weight",
        "v_head.summary.weight",
    ],
)
def test_a_tensor_that_the_decoder_does_not_use_is_refused(tensor, tmp_path):
    directory = make_hf_dir(tmp_path / "model", "qwen2")
    edit_weights(directory, **{tensor: np.zeros(64, np.float32)})
    with pytest.raises(ValueError, match=rf"unexpected tensors \(1\): {tensor}"):
        load_hf(directory)


def test_an_adapter_beside_the_weights_is_not_left_out_silently(tmp_path):
    directory = make_hf_dir(tmp_path / "model", "qwen2")
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json: must be merged into the weights"):
        load_hf(directory)


def test_an_index_that_names_a_tensor_of_no_file_is_refused(tmp_path):
    directory = make_hf_dir(tmp_path / "model", "qwen2", shards=2)
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names tensors that are in no file \(1\): model\.extra"):
        load_hf(directory)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "..", "", 5, None])
def test_an_index_that_leads_out_of_the_directory_is_refused(name, tmp_path):
    directory = make_hf_dir(tmp_path / "model", "qwen2", shards=2)
    file = directory / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="weight_map: must name files of this directory, got "):
        load_hf(directory)


def test_rotary_buffers_that_differ_from_the_config_are_named(tmp_path, caplog):
    directory = make_hf_dir(tmp_path / "model", "qwen2")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    config = read_config(directory)
    right = rope_frequencies(config.head_dim, config.rope_theta, None)
    with caplog.at_level(logging.WARNING):
        edit_weights(directory, **{name: right})
        load_hf(directory)
        assert not caplog.text
        edit_weights(directory, **{name: right / 2})
        load_hf(directory)
    assert f"{name} is not used: it differs from config.json" in caplog.text
    caplog.clear()
    set_type(directory / "model.safetensors", name, "F8_E4M3")  # numpy cannot read it
    load_hf(directory)
    assert f"{name} is not used: it differs from config.json" in caplog.text


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "name", ["model-00003-of-00003.safetensors", "adapter_model.safetensors", "model_2.safetensors"]
)
def test_weights_in_a_file_that_is_not_read_are_named(shards, name, tmp_path, caplog):
    directory = make_hf_dir(tmp_path / "model", "qwen2", shards=shards)
    with caplog.at_level(logging.WARNING):
        load_hf(directory)
        assert not caplog.text
        save_file({"lm_head.weight": np.zeros((384, 64), np.float32)}, directory / name)
        load_hf(directory)
    assert f"{directory}: not read: {name}" in caplog.text


def test_an_index_beside_a_single_file_is_named(tmp_path, caplog):
    directory = make_hf_dir(tmp_path / "model", "qwen2")
    (directory / "model.safetensors.index.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        load_hf(directory)
    assert "model.safetensors.index.json: not read" in caplog.text
