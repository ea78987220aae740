"""The sentence encoder against transformers' own, and its embedding of texts."""

from pathlib import Path

import bert_fixture
import jax
import numpy as np
import pytest
from bert_fixture import make_encoder_dir
from safetensors.numpy import save_file

from entropy_rl.cli.main import main
from entropy_rl.evaluation.sentence_encoder import load_embedding
from entropy_rl.models import encode, load_encoder
from entropy_rl.models.bert import encoder_hidden
from entropy_rl.runs.load_model import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "bert.npz"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return make_encoder_dir(tmp_path_factory.mktemp("encoder") / "encoder")


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_hidden_states_and_vectors_are_those_of_transformers(tmp_path, prefix):
    values = np.load(GOLDEN)
    config, params = load_encoder(make_encoder_dir(tmp_path, prefix))
    hidden = encoder_hidden(config, params, values["ids"], values["mask"])
    mask = values["mask"]
    np.testing.assert_allclose(np.asarray(hidden)[mask], values["hidden"][mask], atol=2e-5)
    vectors = jax.jit(encode, static_argnums=0)(config, params, values["ids"], mask)
    np.testing.assert_allclose(vectors, values["vectors"], atol=5e-6)


@pytest.mark.torch
def test_the_golden_values_are_what_torch_computes_here(directory):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    values = np.load(GOLDEN)
    model = AutoModel.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        found = model(
            torch.tensor(values["ids"]), attention_mask=torch.tensor(values["mask"]).long()
        )
    np.testing.assert_allclose(found.last_hidden_state.numpy(), values["hidden"], atol=2e-5)


def test_a_text_has_the_same_vector_whatever_stands_beside_it(directory):
    embed = load_embedding(directory)
    texts = ["the sum is eight", "wait", "", "zebras juggle " * 40, "数学 🤔", "check that again."]
    alone = np.concatenate([embed([text]) for text in texts])
    np.testing.assert_allclose(embed([*texts, *["five"] * 70])[: len(texts)], alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)
    config, params = load_encoder(directory)
    ids = np.array([load_tokenizer(directory).encode(texts[0])])
    assert ids[0, 0] == 2 and ids[0, -1] == 3  # [CLS] .. [SEP]
    np.testing.assert_allclose(
        alone[:1], encode(config, params, ids, np.ones(ids.shape, bool)), atol=1e-6
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "roberta"}, "model_type: 'roberta' is not supported; allowed: 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not supported; allowed: 'gelu'"),
        ({"hidden_size": 12}, r"has shape \(96, 24\); by config.json it is \(96, 12\)"),
        ({"num_hidden_layers": 3}, "tensor encoder.layer.2.attention.self.query.weight is missing"),
        ({"vocab_size": None}, "vocab_size: missing"),
    ],
)
def test_another_model_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(make_encoder_dir(tmp_path, **changes))


def test_the_program_refuses_what_is_no_encoder_in_one_line(tmp_path, capsys):
    (tmp_path / "s.jsonl").write_text("")
    arguments = [
        "analyze",
        "--samples",
        str(tmp_path / "s.jsonl"),
        "--base",
        "b",
        "--encoder",
        str(tmp_path),
    ]
    assert main(arguments) == 2
    assert "config.json: not found" in capsys.readouterr().err
    assert main([*arguments[:3], "--encoder", "x"]) == 2
    assert (
        "encoder: 'x' is not allowed; allowed: null, unless there is a base"
        in capsys.readouterr().err
    )


def test_a_bfloat16_checkpoint_loads(tmp_path):
    import ml_dtypes

    weights = {
        name: value.astype(ml_dtypes.bfloat16) for name, value in bert_fixture.tensors().items()
    }
    make_encoder_dir(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    _, params = load_encoder(tmp_path)
    assert all(leaf.dtype == np.float32 for leaf in params.values())
