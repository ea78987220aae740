"""Broken Hugging Face directories: each is refused in one clear line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_fixtures import edit_config, edit_weights, make_hf_dir, set_type
from safetensors.numpy import load_file, save_file

from entropy_rl.models import hf, load_hf, make_policy, read_config, save_hf


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    return {name: make_hf_dir(root / name, name) for name in ("qwen2", "llama3")}


@pytest.fixture
def broken(tmp_path) -> Path:
    return make_hf_dir(tmp_path / "model", "llama3")


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


ROPES = "one of default, linear, dynamic, llama3, yarn"
UNSUPPORTED = [
    ({"model_type": "gemma2"}, "model_type", "one of qwen2, qwen3, llama, mistral", "'gemma2'"),
    ({"attention_bias": "true"}, "attention_bias", "true or false", "'true'"),
    ({"mlp_bias": 1}, "mlp_bias", "true or false", "1"),
    ({"hidden_act": "gelu"}, "hidden_act", "'silu'", "'gelu'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "1.0", "0.5"),
    ({"quantization_config": {"bits": 4}}, "quantization_config", "absent", "{'bits': 4}"),
    ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope_type", ROPES, "'longrope'"),
    ({"rope_scaling": {"rope_type": "mrope"}}, "rope_type", ROPES, "'mrope'"),
    ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type", ROPES, "['yarn']"),
    ({"rope_scaling": {"full_attention": {}}}, "rope_type", ROPES, "'one per layer type'"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor", "a number >= 1", "None"),
    ({"rope_scaling": {"type": "yarn"}}, "factor", "a number >= 1", "None"),
    ({"rope_scaling": {"type": "dynamic", "factor": "2"}}, "factor", "a number >= 1", "'2'"),
    *(
        (
            {"rope_scaling": {"type": kind, "factor": 0.5, **bounds}},
            "factor",
            "a number >= 1",
            "0.5",
        )
        for kind, bounds in (
            ("linear", {}),
            ("dynamic", {}),
            ("yarn", {}),
            ("llama3", {"low_freq_factor": 1, "high_freq_factor": 4}),
        )
    ),
    *(
        (
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4,
                    "high_freq_factor": high,
                }
            },
            "high_freq_factor",
            "> low_freq_factor (4)",
            str(high),
        )
        for high in (1, 4)
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_slow": 33}},
        "beta_fast",
        ">= beta_slow (33)",
        "32.0",
    ),
    *(
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 4,
                "max_window_layers": layers,
            },
            "max_window_layers",
            "a whole number >= 0",
            repr(layers),
        )
        for layers in ("28", [1], -1, 1.0)
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 0}},
        "truncate",
        "true or false",
        "0",
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": float("nan")}},
        "beta_fast",
        "a number > 0",
        "nan",
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": "8"}},
        "original_max_position_embeddings",
        "a whole number >= 1",
        "'8'",
    ),
    ({"rope_theta": float("nan")}, "rope_theta", "a number > 0", "nan"),
    ({"rope_theta": float("inf")}, "rope_theta", "a number that float32 holds", "inf"),
    ({"rms_norm_eps": 1e-60}, "rms_norm_eps", "a number that float32 holds", "1e-60"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps", "a number that float32 holds", "inf"),
    ({"initializer_range": 1e39}, "initializer_range", "a number that float32 holds", "1e+39"),
    ({"vocab_size": 10**30}, "vocab_size", "a whole number <= 2147483647", str(10**30)),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers", "a whole number <= 10000", "1000000"),
    ({"head_dim": 15}, "head_dim", "even", "15"),
    ({"model_type": ["llama"]}, "model_type", "one of qwen2, qwen3, llama, mistral", "['llama']"),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
        "low_freq_factor",
        "a number > 0",
        "None",
    ),
    ({"rope_scaling": "dynamic"}, "rope_scaling", "a JSON object", "'dynamic'"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings", "true or false", "'false'"),
    (
        {"model_type": "qwen2", "use_sliding_window": "false"},
        "use_sliding_window",
        "true or false",
        "'false'",
    ),
    ({"hidden_size": None}, "hidden_size", "a whole number >= 1", "None"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers", "a whole number >= 1", "'2'"),
    (
        {"num_key_value_heads": 3},
        "num_key_value_heads",
        "a divisor of num_attention_heads (4)",
        "3",
    ),
    ({"rope_theta": -1.0}, "rope_theta", "a number > 0", "-1.0"),
    (
        {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types",
        "a list of 2 of full_attention",
        "['full_attention', 'sliding_attention']",
    ),
]


@pytest.mark.parametrize("fields, name, allowed, found", UNSUPPORTED)
def test_an_unsupported_config_is_refused_with_file_value_and_what_is_allowed(
    broken, fields, name, allowed, found
):
    edit_config(broken, **fields)
    with pytest.raises(ValueError) as error:
        read_config(broken)
    file = broken / "config.json"
    assert one_line(error) == f"{file}: {name}: must be {allowed}, got {found}"


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/config\.json: not found"):
        load_hf(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff", "[" * 3000, '{"a":' * 5000, ""])
def test_a_config_that_is_no_json_object_is_refused(broken, content):
    (broken / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    assert one_line(error).startswith(f"{broken / 'config.json'}: ")


def test_a_directory_without_safetensors_is_refused(broken):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError) as error:
        load_hf(broken)
    assert one_line(error).startswith(
        f"{broken}: has no model.safetensors and no model.safetensors.index.json"
    )


def test_an_absent_shard_is_named(tmp_path):
    directory = make_hf_dir(tmp_path, "llama3", shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_hf(directory)
    assert one_line(error).endswith(
        "names files that do not exist: model-00002-of-00003.safetensors"
    )


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": []}', '{"a": 5}', '{"weight_map": {"a": 5}}', "no json", "5"]
)
def test_a_broken_index_is_named(tmp_path, content):
    directory = make_hf_dir(tmp_path, "llama3", shards=2)
    (directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError) as error:
        load_hf(directory)
    assert one_line(error).startswith(str(directory / "model.safetensors.index.json"))


@pytest.mark.parametrize("keep", [0, 4, 200, 300_000])
def test_a_truncated_file_is_named(broken, keep):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    assert one_line(error).startswith(f"{file}: is damaged or truncated: ")


def test_a_corrupt_header_is_named(broken):
    file = broken / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[10:60] = b"\xff" * 50
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    assert one_line(error).startswith(f"{file}: is damaged or truncated: ")


def test_missing_tensors_are_named_and_counted(broken):
    edit_weights(broken, remove=["lm_head.weight"])
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    assert one_line(error) == f"{broken}: missing tensors (1): lm_head.weight"
    edit_weights(
        broken, remove=[f"model.layers.1.{m}.weight" for m in ("mlp.up_proj", "mlp.down_proj")]
    )
    edit_config(broken, num_hidden_layers=3)
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    message = one_line(error)
    assert message.startswith(
        f"{broken}: missing tensors (12): lm_head.weight, model.layers.1.mlp.down_proj.weight"
    )
    assert message.endswith(" and 7 more")


def test_unexpected_tensors_are_named(broken):
    edit_weights(broken, **{"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)})
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    message = one_line(error)
    assert message == f"{broken}: unexpected tensors (1): model.layers.0.self_attn.q_proj.bias"


def test_rotary_buffers_and_the_second_name_of_a_tied_table_are_ignored(tmp_path):
    directory = make_hf_dir(tmp_path, "qwen2")
    _, params = load_hf(directory)
    table = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    buffer = np.zeros(8, np.float32)
    edit_weights(
        directory,
        **{"lm_head.weight": table, "model.layers.0.self_attn.rotary_emb.inv_freq": buffer},
    )
    jax.tree.map(np.testing.assert_array_equal, load_hf(directory)[1], params)


def test_a_wrong_shape_is_shown_beside_the_right_one(broken):
    edit_weights(broken, **{"model.layers.1.mlp.up_proj.weight": np.zeros((64, 96), np.float32)})
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    assert one_line(error) == (
        f"{broken / 'model.safetensors'}: tensor model.layers.1.mlp.up_proj.weight must have "
        "shape (96, 64) (config.json), got (64, 96)"
    )


def test_quantized_tensors_are_refused(broken):
    edit_weights(broken, **{"model.norm.weight": np.zeros(64, np.int8)})
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    assert one_line(error).endswith("tensor model.norm.weight must be F32, F16 or BF16, got I8")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_float8_tables_are_refused_though_numpy_cannot_read_them(tmp_path, name):
    directory = make_hf_dir(tmp_path, "qwen2", dtype="float32")
    weights = load_file(directory / "model.safetensors")
    edit_weights(directory, **{"lm_head.weight": weights["model.embed_tokens.weight"]})
    set_type(directory / "model.safetensors", name, "F8_E4M3")
    with pytest.raises(ValueError) as error:
        load_hf(directory)
    assert one_line(error).endswith(f"tensor {name} must be F32, F16 or BF16, got F8_E4M3")


def test_tables_without_dimensions_are_refused_by_their_shape(tmp_path):
    directory = make_hf_dir(tmp_path, "qwen2", dtype="float32")
    scalar = np.zeros((), np.float32)
    edit_weights(directory, **{"lm_head.weight": scalar, "model.embed_tokens.weight": scalar})
    with pytest.raises(ValueError, match=r"must have shape \(384, 64\) .*, got \(\)$"):
        load_hf(directory)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    directory = make_hf_dir(tmp_path, "qwen2", shards=2)
    first, second = sorted(directory.glob("model-*.safetensors"))
    name, values = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: values}, second)
    with pytest.raises(ValueError) as error:
        load_hf(directory)
    assert one_line(error) == f"{second}: tensor {name} is also in {first.name}"


# --------------------------------------------------------------------------------------------------
# Saving with care
# --------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(directories, tmp_path):
    config, params = load_hf(directories["qwen2"])
    (tmp_path / "note.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(FileExistsError, match="must not exist or be an empty directory"):
            save_hf(taken, config, params)
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "empty").mkdir()
    save_hf(tmp_path / "empty", config, params)
    assert sorted(file.name for file in (tmp_path / "empty").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_save_that_fails_leaves_nothing_behind(directories, tmp_path, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(hf, "save_file", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_hf(tmp_path / "out", *load_hf(directories["qwen2"]))
    assert not list(tmp_path.iterdir())


def test_exported_files_are_readable_by_others_and_say_that_they_are_torch_s(directories, tmp_path):
    save_hf(tmp_path / "out", *load_hf(directories["qwen2"]))
    file = tmp_path / "out" / "model.safetensors"
    assert file.stat().st_mode & 0o777 == 0o644
    size = int.from_bytes(file.read_bytes()[:8], "little")
    assert json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"] == {"format": "pt"}


def test_what_cannot_be_saved_is_refused_before_anything_is_written(directories, tmp_path):
    config, params = load_hf(directories["qwen2"])
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="dtype: must be float32 or bfloat16, got 'float16'"):
        save_hf(out, config, params, dtype="float16")
    with pytest.raises(ValueError, match=r"they differ in: lm_head/kernel$"):
        save_hf(out, dataclasses.replace(config, tie_embeddings=False), params)
    with pytest.raises(
        ValueError, match=r"config\.json: must describe the model that is saved, got another"
    ):
        save_hf(out, config, params, source_config=directories["llama3"])
    with pytest.raises(
        FileNotFoundError, match=r"has no tokenizer\.json, tokenizer\.model or vocab\.json"
    ):
        save_hf(out, config, params, tokenizer_dir=directories["qwen2"])
    both = dataclasses.replace(config, qk_norm=True)
    with pytest.raises(ValueError, match="no Hugging Face architecture has both"):
        save_hf(out, both, make_policy(both).init(jax.random.key(0)))
    config, params = load_hf(directories["llama3"])
    windowed = dataclasses.replace(config, sliding_window=4, sliding_layers=(True, False))
    with pytest.raises(ValueError, match="sliding_window: must be None for llama, got 4"):
        save_hf(out, windowed, params)
    assert not out.exists()
