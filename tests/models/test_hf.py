"""Loading and saving Hugging Face directories, and the decoder against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import hf_fixtures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_fixtures import ARCHITECTURES, make_hf_dir
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from entropy_rl.models import hf, load_hf, make_policy, read_config, save_hf
from entropy_rl.types import DecodeCache

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    return {name: make_hf_dir(root / name, name) for name in ARCHITECTURES}


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as values:
        return dict(values)


def assert_same_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def greedy(policy, params, ids, lengths, steps: int, group_size: int) -> np.ndarray:
    """The most likely continuations int32[P * G, steps], through the cache."""
    params = policy.to_decode(params)
    mask = np.arange(ids.shape[1])[None] < lengths[:, None]
    hidden, prompts = jax.jit(policy.prefill)(params, ids, mask)
    cache = DecodeCache(prompts, jnp.array(mask), policy.empty_rows(len(ids) * group_size, steps))
    pick = jax.jit(
        lambda params, hidden: jnp.argmax(hidden @ policy.head(params).T, -1).astype(jnp.int32)
    )
    decode = jax.jit(policy.decode)
    tokens = [jnp.repeat(pick(params, hidden), group_size)]
    for t in range(steps - 1):
        hidden, cache = decode(params, tokens[-1], jnp.int32(t), cache)
        tokens.append(pick(params, hidden))
    return np.stack(tokens, axis=1)


# --------------------------------------------------------------------------------------------------
# Foreign truth
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_golden_values_belong_to_these_weights(name):
    total = sum(np.abs(w.astype(np.float64)).sum() for w in hf_fixtures.tensors(name).values())
    np.testing.assert_allclose(total, golden(name)["fingerprint"], rtol=1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_transformers(name, directories):
    values = golden(name)
    config, params = load_hf(directories[name])
    policy = make_policy(config)
    logits = jax.jit(lambda params, ids: policy.apply(params, ids) @ policy.head(params).T)(
        params, values["ids"]
    )
    real = np.arange(values["ids"].shape[1])[None] < values["lengths"][:, None]
    np.testing.assert_allclose(logits[real], values["logits"][real], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_continuations_through_the_cache_are_those_of_transformers(name, directories):
    values = golden(name)
    config, params = load_hf(directories[name])
    tokens = greedy(
        make_policy(config), params, values["ids"], values["lengths"], steps=8, group_size=2
    )
    np.testing.assert_array_equal(tokens, np.repeat(values["greedy"], 2, axis=0))


def assert_reads_as_transformers_does(directory: Path):
    """`read_config` against AutoConfig, field by field."""
    from transformers import AutoConfig

    ours, theirs = read_config(directory), AutoConfig.from_pretrained(directory)
    same_names = ("vocab_size", "hidden_size", "intermediate_size", "initializer_range")
    for name in same_names:
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == theirs.num_key_value_heads
    default = theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == getattr(theirs, "head_dim", default)
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.qkv_bias == (theirs.model_type == "qwen2")
    assert ours.qk_norm == (theirs.model_type == "qwen3")
    rope = dict(theirs.rope_parameters)
    assert ours.rope_theta == rope.pop("rope_theta")
    rope.pop("type", None)  # the older name of rope_type
    assert rope.pop("rope_type") == ("default" if ours.rope_scaling is None else "llama3")
    assert ({} if ours.rope_scaling is None else vars(ours.rope_scaling)) == rope
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None) or ["full_attention"] * ours.num_layers
    assert ours.windows == tuple(window if kind == "sliding_attention" else None for kind in kinds)


SIZES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WINDOW = {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 7}
READ = {
    "llama, all but the sizes left out": {"model_type": "llama"},
    "qwen3, all but the sizes left out": {"model_type": "qwen3", "num_key_value_heads": 2},
    "nulls": {
        "model_type": "llama",
        "head_dim": None,
        "num_key_value_heads": None,
        "rope_scaling": None,
    },
    "llama3 scaling as transformers 5 writes it": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "original_max_position_embeddings": 64,
            **LLAMA3,
        },
    },
    "llama3 scaling without the original length": {
        "model_type": "llama",
        "rope_theta": 5e5,
        "max_position_embeddings": 4096,
        "rope_scaling": {"type": "llama3", **LLAMA3},
    },
    "a window on the last layer": {"model_type": "qwen2", **WINDOW, "max_window_layers": 2},
    "a window beyond the layers": {"model_type": "qwen2", **WINDOW, "max_window_layers": 3},
    "qwen2, a window that is not named": {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
    "qwen3, a window that is not named": {
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "max_window_layers": 0,
    },
    "a window of null": {
        "model_type": "qwen2",
        **WINDOW,
        "sliding_window": None,
        "max_window_layers": 1,
    },
    "a window by layer types": {
        "model_type": "qwen3",
        **WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.mark.parametrize("case", [*ARCHITECTURES, *READ])
def test_config_is_read_as_transformers_reads_it(case, tmp_path, directories):
    if case in READ:
        (tmp_path / "config.json").write_text(json.dumps(SIZES | READ[case]))
    assert_reads_as_transformers_does(tmp_path if case in READ else directories[case])


@pytest.mark.torch
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("max_shard_bytes", [5 * 10**9, 100_000])
def test_transformers_generates_the_same_from_an_export(
    name, max_shard_bytes, directories, tmp_path
):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    values = golden(name)
    save_hf(tmp_path / "out", *load_hf(directories[name]), max_shard_bytes=max_shard_bytes)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    for row, length in enumerate(values["lengths"]):
        prompt = torch.tensor(values["ids"][row : row + 1, :length], dtype=torch.long)
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False
        )
        np.testing.assert_array_equal(out[0, length:].numpy(), values["greedy"][row])


# --------------------------------------------------------------------------------------------------
# Two roads that must meet
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_has_the_tensors_it_was_loaded_from_bit_for_bit(name, dtype, tmp_path):
    source = make_hf_dir(tmp_path / "source", name, dtype=dtype, tokenizer=name == "llama3")
    config, params = load_hf(source)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    save_hf(tmp_path / "out", config, params, dtype=dtype, source_config=source)
    before, after = (
        load_file(source / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    for tensor, values in before.items():
        assert (values.dtype, values.shape) == (after[tensor].dtype, after[tensor].shape)
        np.testing.assert_array_equal(values, after[tensor])
    again_config, again_params = load_hf(tmp_path / "out")
    assert again_config == config
    assert_same_params(again_params, params)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_reads_the_config_of_an_export(name, directories, tmp_path):
    from transformers import AutoConfig

    config, params = load_hf(directories[name])
    for source, dtype in ((None, "float32"), (directories[name], "bfloat16")):
        out = tmp_path / dtype
        save_hf(out, config, params, dtype=dtype, source_config=source)
        assert_reads_as_transformers_does(out)
        exported = AutoConfig.from_pretrained(out)
        assert str(exported.dtype) in (dtype, f"torch.{dtype}")
        assert exported.architectures == hf_fixtures.CONFIGS[name]["architectures"]
    assert (exported.eos_token_id, exported.max_position_embeddings) == (
        383,
        512,
    )  # kept from the source


def test_half_precision_sources_load_exactly(tmp_path):
    _, params = load_hf(make_hf_dir(tmp_path, "qwen3", dtype="float16"))
    source = hf_fixtures.tensors("qwen3")["model.layers.1.mlp.up_proj.weight"].astype(np.float16)
    np.testing.assert_array_equal(
        params["layers"]["mlp"]["up_proj"]["kernel"][1], source.T.astype(np.float32)
    )


def test_parameters_can_be_loaded_in_bfloat16(directories):
    _, params = load_hf(directories["qwen3"], dtype=jnp.bfloat16)
    _, full = load_hf(directories["qwen3"])
    assert_same_params(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), full))


def test_shards_and_a_single_file_are_the_same_model(directories, tmp_path):
    config, params = load_hf(directories["llama3"])
    sharded_config, sharded = load_hf(make_hf_dir(tmp_path / "in", "llama3", shards=3))
    assert sharded_config == config
    assert_same_params(sharded, params)

    save_hf(tmp_path / "out", config, params, max_shard_bytes=100_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and {file.name for file in files} == set(index["weight_map"].values())
    sizes = [sum(w.nbytes for w in load_file(file).values()) for file in files]
    assert max(sizes) <= 100_000 and sum(sizes) == index["metadata"]["total_size"]
    assert_same_params(load_hf(tmp_path / "out")[1], params)


def layout(path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Two mesh axes on the kernels, one on the rest, one replicated."""
    mesh = jax.make_mesh(
        (2, 2, 2), ("data", "a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    spec = {
        1: ("a",),
        2: ("b", "a") if path in ("embed_tokens/embedding", "lm_head/kernel") else (None, "a"),
    }
    return NamedSharding(mesh, PartitionSpec(*spec.get(len(shape), (None, "a", "b"))))


@pytest.mark.parametrize("name", ["qwen2", "llama3"])
def test_loading_onto_eight_devices_gives_the_same_values(name, directories, tmp_path):
    config, params = load_hf(directories[name])
    _, sharded = load_hf(directories[name], sharding=layout)
    assert_same_params(sharded, params)
    kernel = sharded["layers"]["mlp"]["down_proj"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    assert kernel.addressable_shards[0].data.shape == (2, 48, 32)  # of [2, 96, 64]
    save_hf(tmp_path / "out", config, sharded)
    assert_same_params(load_hf(tmp_path / "out")[1], params)


def test_a_sharded_parameter_is_read_in_blocks_and_each_block_once():
    reads = []

    class Tensor:
        def __init__(self, values):
            self.values = values

        def __getitem__(self, index):
            reads.append(self.values[index].size)
            return self.values[index]

    values = np.arange(2 * 96 * 64, dtype=np.float32).reshape(2, 96, 64)  # two layers, (out, in)
    path, shape = "layers/mlp/up_proj/kernel", (2, 64, 96)
    tensors = [Tensor(layer) for layer in values]
    leaf = hf._load_leaf(path, shape, tensors, jnp.float32, layout(path, shape))
    np.testing.assert_array_equal(leaf, values.swapaxes(1, 2))
    assert reads == [32 * 48] * (
        2 * 4
    )  # layers x blocks; the replicas on the data axis share theirs


def test_tokenizer_and_chat_template_survive_an_export(directories, tmp_path):
    from transformers import AutoTokenizer

    source = make_hf_dir(tmp_path / "source", "qwen2", tokenizer=True)
    (source / "generation_config.json").write_text('{"eos_token_id": [383, 381]}')
    save_hf(tmp_path / "out", *load_hf(source), tokenizer_dir=source, source_config=source)
    before, after = (
        AutoTokenizer.from_pretrained(source),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    chat = [{"role": "user", "content": "Make 24 from 3, 5 and 7 \u2013 \u4f60\u597d"}]
    text = before.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n") and "<|im_start|>user\nMake 24" in text
    assert after.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == text
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.decode(after(text)["input_ids"]) == text
    assert after.convert_tokens_to_ids(list(hf_fixtures.SPECIAL)) == [381, 382, 383]
    assert (tmp_path / "out" / "generation_config.json").is_file()
