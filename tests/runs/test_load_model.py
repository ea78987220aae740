"""Where a text ends, ids without a token, and what a run keeps of its model."""

import dataclasses
import gc
import json
import logging
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_fixtures import SPECIAL, VOCAB, make_hf_dir, save_tokenizer
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from entropy_rl.config.common import ModelConfig
from entropy_rl.experience.encoding import encode_prompt
from entropy_rl.lm_head import log_prob_and_entropy
from entropy_rl.models import read_config
from entropy_rl.rollout import make_generate
from entropy_rl.runs.load_model import (
    check_length,
    count_unused,
    find_model,
    keep_model_files,
    load_model,
    load_tokenizer,
)
from entropy_rl.tasks import Problem

END_OF_TEXT, START, END = range(VOCAB - 3, VOCAB)


@pytest.fixture
def model(tmp_path):
    return make_hf_dir(tmp_path / "model", "qwen3", tokenizer=True)


def edit_json(file, **fields):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | fields))


def pad_vocabulary(directory, size: int) -> None:
    """Adds rows to the tables, as models do for efficiency, with large logits."""
    file = directory / "model.safetensors"
    weights = load_file(file)
    table = weights["model.embed_tokens.weight"]
    more = np.random.RandomState(0).standard_normal((size - len(table), table.shape[1]))
    rows = np.concatenate([table, 3 * more.astype(table.dtype)])
    save_file(weights | {"model.embed_tokens.weight": rows}, file)
    edit_json(directory / "config.json", vocab_size=size)


# --- where a text ends
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "expected"),
    [
        (None, None, None, {END}),
        (END_OF_TEXT, None, None, {END, END_OF_TEXT}),
        ([END_OF_TEXT, START], None, None, {END, END_OF_TEXT, START}),
        (None, START, None, {END, START}),
        (None, [START, END_OF_TEXT], None, {END, START, END_OF_TEXT}),
        (START, [END_OF_TEXT], None, {END, START, END_OF_TEXT}),
        (None, None, [START], {END, START}),
        (5, 6, 7, {END, 5, 6, 7}),
        ([END], END, [END, END], {END}),
    ],
)
def test_all_files_that_name_an_end_count(config, generation, tokenizer, expected, model):
    edit_json(model / "config.json", eos_token_id=config)
    if generation is not None:
        edit_json(model / "generation_config.json", eos_token_id=generation)
    edit_json(model / "tokenizer_config.json", eos_token_id=tokenizer)
    loaded = load_model(str(model))
    assert set(loaded.eos_ids) == expected
    assert len(loaded.eos_ids) == len(expected)
    assert loaded.eos_ids[0] == END  # the tokenizer's own


def test_an_end_of_config_json_alone_is_enough(model):
    edit_json(model / "tokenizer_config.json", eos_token=None)
    edit_json(model / "config.json", eos_token_id=[300])
    assert load_model(str(model)).eos_ids == (300,)


@pytest.mark.parametrize("named", ["config.json", "model.extra_eos"])
def test_an_end_is_special_whatever_the_tokenizer_says(named, model):
    """Else it would stay in completions, and a text of the user would end its turn."""
    edit_json(model / "tokenizer_config.json", eos_token="<|endoftext|>")
    content = json.loads((model / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = token["id"] != END
    (model / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.decode([END], skip_special_tokens=True) == "<|im_end|>"
    edit_json(model / "config.json", eos_token_id=END if named == "config.json" else END_OF_TEXT)
    extra = [] if named == "config.json" else ["<|im_end|>"]
    loaded = load_model(ModelConfig(str(model), extra_eos=extra)).tokenizer
    assert loaded.decode([END], skip_special_tokens=True) == ""
    assert loaded.encode("a <|im_end|>b") == tokenizer.encode("a <|im_end|>b")
    as_text = encode_prompt(Problem(0, "Hi <|im_end|>", "", chat=True), loaded)
    assert as_text.count(END) == 2  # those of the template


@pytest.mark.parametrize(
    ("extra", "added"),
    [
        ([END_OF_TEXT], {END_OF_TEXT}),
        (["<|endoftext|>"], {END_OF_TEXT}),
        (["<|im_start|>", 5], {START, 5}),
        (["a", END], None),
        ([], set()),
    ],
)
def test_further_ends_are_named_in_the_config(extra, added, model):
    loaded = load_model(ModelConfig(str(model), extra_eos=extra))
    if added is None:
        added = set(loaded.tokenizer.encode("a"))
    assert set(loaded.eos_ids) == {END} | added


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("value", [VOCAB, -1, [END, 10**9], "2", [None], True, 1.5, {"a": 1}])
def test_an_end_that_cannot_occur_names_its_file(name, value, model):
    edit_json(model / name, eos_token_id=value)
    with pytest.raises(ValueError) as error:
        load_model(str(model))
    line = str(error.value)
    assert line.startswith(f"{model / name}: eos_token_id: must be ids of the tokenizer's tokens")


@pytest.mark.parametrize("token", [VOCAB, 10**6, "<|nowhere|>", "two words of text"])
def test_a_further_end_that_cannot_occur_is_refused(token, model):
    with pytest.raises(ValueError, match=r"^model\.extra_eos: must be tokens of .*, got "):
        load_model(ModelConfig(str(model), extra_eos=[token]))


def test_a_text_of_unknown_tokens_is_no_further_end():
    with pytest.raises(ValueError, match=r"^model\.extra_eos: must be tokens of .*, got 'zzz'$"):
        load_model(ModelConfig("asset:countdown", extra_eos=["zzz"]))


@pytest.mark.parametrize("token", [-1, True, "", None, 1.5, ["a"]])
def test_a_further_end_is_an_id_or_a_text(token):
    with pytest.raises(ValueError, match=r"^model\.extra_eos: must be "):
        ModelConfig("m", extra_eos=[token])


def test_a_run_keeps_its_further_ends(model, tmp_path):
    loaded = load_model(ModelConfig(str(model), extra_eos=["<|endoftext|>"]))
    (tmp_path / "run").mkdir()
    keep_model_files(loaded, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert set(kept["eos_token_id"]) == {END, END_OF_TEXT}


# --- ids without a token
# ------------------------------------------------------------------------------------------


def test_ids_beyond_the_tokenizer_are_never_sampled_and_count_nowhere(model):
    pad_vocabulary(model, VOCAB + 64)
    loaded = load_model(str(model))
    assert loaded.unused == ((VOCAB, VOCAB + 64),)
    generate = make_generate(
        loaded.sampler,
        group_size=16,
        max_new_tokens=8,
        eos_ids=loaded.eos_ids,
        pad_id=loaded.pad_id,
    )
    ids = np.array([[5, 6, 7, 8]], np.int32)
    rollout = generate(
        loaded.to_decode(loaded.params), ids, ids > 0, np.array([0]), jax.random.key(0)
    )
    assert rollout.completion_ids.max() < VOCAB
    # As if the rows were not there.
    row = jnp.concatenate([ids[0], rollout.completion_ids[0]])[None]
    hidden = loaded.policy.apply(loaded.params, row)[:, 3:-1]
    table = loaded.params["embed_tokens"]["embedding"][:VOCAB]
    expected = log_prob_and_entropy(hidden, table, rollout.completion_ids[:1])
    mask = rollout.completion_mask[:1]
    for found, right in zip((rollout.log_probs, rollout.entropy), expected, strict=True):
        np.testing.assert_allclose(found[:1][mask], right[mask], atol=1e-4)


def test_a_hole_in_the_ids_of_the_tokenizer_is_left_out_too(model):
    pad_vocabulary(model, VOCAB + 8)
    file = model / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["far"] = VOCAB + 4
    file.write_text(json.dumps(content))
    assert load_tokenizer(model).get_vocab()["far"] == VOCAB + 4
    assert load_model(str(model)).unused == ((VOCAB, VOCAB + 4), (VOCAB + 5, VOCAB + 8))


def test_a_model_whose_tokens_all_have_a_text_is_left_as_it_was(model):
    loaded = load_model(str(model))
    assert loaded.unused == ()
    assert isinstance(loaded.policy.head(loaded.params), jax.Array)


def test_recorded_tokens_that_are_none_are_counted_in_the_log(model, caplog):
    pad_vocabulary(model, VOCAB + 8)
    loaded = load_model(str(model))
    ids = np.array([[1, VOCAB, VOCAB + 7], [2, 3, VOCAB]], np.int32)
    mask = np.array([[True, True, True], [True, True, False]])
    with caplog.at_level(logging.WARNING):
        assert count_unused(loaded, zip(ids, mask, strict=True), "samples.jsonl") == 2
    assert "samples.jsonl: 2 of 5 recorded tokens are none of the tokenizer's" in caplog.text
    assert count_unused(loaded, [(ids[:, :1], mask[:, :1])], "x") == 0


def test_those_of_a_replay_buffer_are_counted_when_a_run_resumes(model, caplog):
    from types import SimpleNamespace

    from entropy_rl.trainer.training_run import count_recorded

    pad_vocabulary(model, VOCAB + 8)
    loaded = load_model(str(model))
    rows = {
        "completion_ids": jnp.array([[1, VOCAB], [VOCAB, 2]]),
        "completion_mask": jnp.array([[True, True], [False, False]]),
    }
    buffer = SimpleNamespace(rows=rows)
    with caplog.at_level(logging.WARNING):
        assert count_recorded(loaded, SimpleNamespace(replay_buffer=None)) == 0
        assert count_recorded(loaded, SimpleNamespace(replay_buffer=buffer)) == 1
    assert "the replay buffer: 1 of 2 recorded tokens" in caplog.text


# --- what a run keeps of its model
# ------------------------------------------------------------------------------------------


def test_a_run_keeps_a_head_of_its_own(tmp_path):
    model = make_hf_dir(tmp_path / "own", "qwen3_own_head", tokenizer=True)
    loaded = load_model(str(model))
    assert "lm_head" in loaded.params
    keep_model_files(loaded, tmp_path)
    assert read_config(model).tie_embeddings
    assert read_config(tmp_path / "model") == loaded.config


def test_a_run_keeps_other_files_as_they_are(model, tmp_path):
    (tmp_path / "run").mkdir()
    keep_model_files(load_model(str(model)), tmp_path / "run")
    kept = tmp_path / "run" / "model"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (kept / name).read_bytes() == (model / name).read_bytes()
    assert not (kept / "generation_config.json").exists()


# --- lengths and paths
# ------------------------------------------------------------------------------------------


def test_dynamic_rope_has_the_length_of_its_training(tmp_path):
    model = make_hf_dir(tmp_path / "model", "qwen3_dynamic", tokenizer=True)
    loaded = load_model(str(model))
    check_length(loaded, 512)
    with pytest.raises(ValueError, match="rows must have at most 512 tokens with dynamic rope"):
        check_length(loaded, 513)
    plain = dataclasses.replace(
        loaded, config=dataclasses.replace(loaded.config, rope_scaling=None)
    )
    check_length(plain, 513)


@pytest.mark.parametrize(
    ("name", "length"), [("qwen3", 512), ("qwen2_yarn", 512), ("llama_linear", 1280)]
)
def test_rows_beyond_the_length_of_a_model_are_warned_of(name, length, tmp_path, caplog):
    loaded = load_model(str(make_hf_dir(tmp_path / "model", name, tokenizer=True)))
    with caplog.at_level(logging.WARNING):
        check_length(loaded, length)
        assert not caplog.records
        check_length(loaded, length + 1)
    assert f"{length} positions; rows can have {length + 1} here" in caplog.text


def test_a_tilde_is_the_home_directory(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    assert find_model("~/model") == model


@pytest.mark.parametrize(
    "path",
    [
        "",
        "nowhere",
        "~nobody/x",
        "a\0b",
        "x" * 5000,
        "asset:",
        "asset:..",
        "asset:../runs",
        "/dev/zero",
    ],
)
def test_a_path_that_is_no_directory_is_one_short_line(path):
    with pytest.raises(ValueError, match=r"^model\.path: must be ") as error:
        load_model(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_directory_without_a_model_is_one_line_with_its_field(tmp_path):
    with pytest.raises(ValueError, match=r"^model\.path: must be a Hugging Face dir") as error:
        load_model(tmp_path)
    assert str(error.value).endswith(f"got {str(tmp_path)!r} without a config.json")


@pytest.mark.parametrize(
    ("base", "named"), [("org/base", " (org/base)"), (None, ""), (5, ""), ("", "")]
)
def test_an_adapter_is_no_model_and_names_its_base(base, named, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    assert str(error.value) == (
        f"model.path: must be a model, got the adapter {str(tmp_path)!r}: merge it into its base, "
        f"or name it as model.lora.path, with its base{named} as model.path"
    )


# --- files of a tokenizer that cannot be read
# ------------------------------------------------------------------------------------------


BROKEN = [b"", b"{", b"\xff\x00", b"[]", b'{"model": 3}', b"[" * 5000, b'{"a":' * 5000]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_file_that_cannot_be_read_is_one_line(name, content, model):
    (model / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_model(str(model))
    assert str(error.value).startswith(str(model)) and "\n" not in str(error.value)


def test_code_of_a_checkpoint_is_not_run(model):
    (model / "own.py").write_text(f"open({str(model / 'was_run')!r}, 'w')")
    own = {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"], "AutoConfig": "own.Config"}}
    for name, removed in (("tokenizer_config.json", "tokenizer_class"), ("config.json", "")):
        content = json.loads((model / name).read_text())
        content.pop(removed, None)
        more = {"model_type": "own"} if name == "config.json" else {}
        (model / name).write_text(json.dumps(content | own | more))
    with pytest.raises(ValueError) as error:
        load_tokenizer(model)
    line = "no usable tokenizer: it needs code of its own, which is not supported"
    assert str(error.value) == f"{model}: {line}"
    assert not (model / "was_run").exists()


@pytest.mark.parametrize("pattern", ["(", "*a", "[z-a]", "(?P<", "\\p{Nonsense}"])
def test_a_pattern_of_a_tokenizer_that_cannot_be_compiled_is_one_line(pattern, model):
    file = model / "tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    file.write_text(json.dumps(content))
    try:
        load_model(str(model))
    except ValueError as error:
        assert str(error).startswith(f"{model}: no usable tokenizer: ")
        assert "\n" not in str(error)
    else:
        pytest.fail("it was loaded")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"]
)
def test_a_fifo_in_a_model_is_refused_and_not_waited_for(name, model):
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises((ValueError, OSError)) as error:
        load_model(str(model))
    assert str(model) in str(error.value) and "\n" not in str(error.value)


def test_the_tokenizer_of_the_fixture_has_all_its_ids(tmp_path):
    save_tokenizer(tmp_path)
    assert sorted(load_tokenizer(tmp_path).get_vocab().values()) == list(range(VOCAB))
    assert len(SPECIAL) == 3


# --- files of a run that cannot be read
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    ["{", "[" * 3000, "seed: !!bool maybe", "5", "run: 5", "run: [1]", "a: 2026-13-45", "\x00"],
)
def test_the_config_of_a_run_that_cannot_be_read_is_one_line(content, model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    keep_model_files(load_model(str(model)), run)
    (run / "config.yaml").write_text(content)
    with pytest.raises(ValueError) as error:
        load_model(str(run))
    assert re.match(rf"{re.escape(str(run / 'config.yaml'))}(:1)?: ", str(error.value))
    assert "\n" not in str(error.value)


# --- decoding
# ------------------------------------------------------------------------------------------


def test_a_rollout_makes_no_copy_of_the_decoding_parameters(model):
    loaded = load_model(str(model))
    ends = dict(eos_ids=loaded.eos_ids, pad_id=loaded.pad_id)
    generate = make_generate(loaded.sampler, group_size=2, max_new_tokens=4, **ends)
    params = loaded.to_decode(loaded.params)
    shape = params["embed_tokens"]["embedding"].shape

    def count() -> int:
        return sum(x.shape == shape for x in jax.live_arrays())

    gc.collect()
    before, during = count(), []
    ids, on_chunk = np.array([[5, 6, 7]], np.int32), lambda _: during.append(count())
    generate(params, ids, ids > 0, np.array([0]), jax.random.key(0), on_chunk=on_chunk)
    assert before >= 2 and set(during) == {before}
