"""Hugging Face directories that are broken or not ours to write: each is refused in one clear
line.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_fixtures import make_hf_dir
from safetensors.numpy import load_file, save_file

from entropy_rl.models import hf, load_hf, make_policy, read_config, save_hf


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    return {name: make_hf_dir(root / name, name) for name in ("qwen2", "llama3")}


@pytest.fixture
def broken(tmp_path) -> Path:
    return make_hf_dir(tmp_path / "model", "llama3")


def edit_config(directory: Path, **fields) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_weights(directory: Path, remove=(), **replace) -> None:
    file = directory / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if k not in remove}
    save_file(weights | replace, file)


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


UNSUPPORTED = [
    ({"model_type": "gemma2"}, "model_type: 'gemma2'", "allowed: qwen2, qwen3, llama"),
    ({"attention_bias": True}, "attention_bias: True", "allowed: False"),
    ({"mlp_bias": True}, "mlp_bias: True", "allowed: False"),
    ({"hidden_act": "gelu"}, "hidden_act: 'gelu'", "allowed: 'silu'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5", "allowed: 1.0"),
    ({"quantization_config": {"bits": 4}}, "quantization_config: {'bits': 4}", "allowed: none"),
    (
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        "rope_type: 'yarn'",
        "allowed: default, llama3",
    ),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_type: 'linear'", "allowed: default, llama3"),
    (
        {"rope_scaling": {"full_attention": {}}},
        "rope_type: 'one per layer type'",
        "allowed: default, llama3",
    ),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
        "low_freq_factor: None",
        "allowed: numbers > 0",
    ),
    ({"rope_scaling": "dynamic"}, "rope_scaling: 'dynamic'", "allowed: a JSON object"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings: 'false'", "allowed: true, false"),
    (
        {"model_type": "qwen2", "use_sliding_window": "false"},
        "use_sliding_window: 'false'",
        "allowed: true, false",
    ),
    ({"hidden_size": None}, "hidden_size: None", "allowed: whole numbers >= 1"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers: '2'", "allowed: whole numbers >= 1"),
    (
        {"num_key_value_heads": 3},
        "num_key_value_heads: 3",
        "allowed: divisors of num_attention_heads (4)",
    ),
    ({"rope_theta": -1.0}, "rope_theta: -1.0", "allowed: numbers > 0"),
    (
        {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types: ['full_attention', 'sliding_attention']",
        "allowed: 2 of full_attention",
    ),
]


@pytest.mark.parametrize("fields, found, allowed", UNSUPPORTED)
def test_an_unsupported_config_is_refused_with_file_value_and_what_is_allowed(
    broken, fields, found, allowed
):
    edit_config(broken, **fields)
    with pytest.raises(ValueError) as error:
        read_config(broken)
    message = one_line(error)
    assert message.startswith(f"{broken / 'config.json'}: {found}") and message.endswith(allowed)


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/config\.json: not found"):
        load_hf(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
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
        "names files that are not there: model-00002-of-00003.safetensors"
    )


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', "no json"])
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
    assert one_line(error).startswith(f"{file}: is damaged or cut off: ")


def test_a_corrupt_header_is_named(broken):
    file = broken / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[10:60] = b"\xff" * 50
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    assert one_line(error).startswith(f"{file}: is damaged or cut off: ")


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
        f"{broken / 'model.safetensors'}: tensor model.layers.1.mlp.up_proj.weight has shape (64, "
        "96); "
        "by config.json it is (96, 64)"
    )


def test_quantised_tensors_are_refused(broken):
    edit_weights(broken, **{"model.norm.weight": np.zeros(64, np.int8)})
    with pytest.raises(ValueError) as error:
        load_hf(broken)
    assert one_line(error).endswith("tensor model.norm.weight has type I8; allowed: F32, F16, BF16")


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
        with pytest.raises(FileExistsError, match="exists and is not an empty directory"):
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
    with pytest.raises(
        ValueError, match="dtype: 'float16' is not supported; allowed: float32, bfloat16"
    ):
        save_hf(out, config, params, dtype="float16")
    with pytest.raises(ValueError, match=r"they differ in: lm_head/kernel$"):
        save_hf(out, dataclasses.replace(config, tie_embeddings=False), params)
    with pytest.raises(
        ValueError, match=r"config\.json: describes another model than the one to save"
    ):
        save_hf(out, config, params, source_config=directories["llama3"])
    with pytest.raises(
        FileNotFoundError, match=r"has no tokenizer\.json, tokenizer\.model or vocab\.json"
    ):
        save_hf(out, config, params, tokenizer_dir=directories["qwen2"])
    both = dataclasses.replace(config, qk_norm=True)
    with pytest.raises(ValueError, match="no architecture of Hugging Face has both"):
        save_hf(out, both, make_policy(both).init(jax.random.key(0)))
    config, params = load_hf(directories["llama3"])
    windowed = dataclasses.replace(config, sliding_window=4, sliding_layers=(True, False))
    with pytest.raises(ValueError, match="sliding_window: Hugging Face's llama has none"):
        save_hf(out, windowed, params)
    assert not out.exists()
