"""`entropy-rl analyze`: from files to printed tables, and texts scored by a model."""

import contextlib
import csv
import io
import json
import shutil
import sys
import types
from pathlib import Path

import hf_fixtures
import numpy as np
import pytest
import tokenizers
import yaml
from fake_evaluation import FakeTask
from transformers import PreTrainedTokenizerFast

from entropy_rl.analysis import REFLECTIVE, WORDS
from entropy_rl.cli.main import main
from entropy_rl.commands.analyze import AnalyzeConfig, check_config
from entropy_rl.config.common import ModelConfig
from entropy_rl.evaluation import summarize
from entropy_rl.evaluation.load_samples import Row, read_rows, responses_of, words_of
from entropy_rl.evaluation.samples import write_result
from entropy_rl.evaluation.score_texts import score_rows, score_tokens
from entropy_rl.evaluation.sentence_encoder import load_embedding
from entropy_rl.lm_head.log_probs import log_prob_and_entropy_from_logits
from entropy_rl.report.analysis_figures import _edges
from entropy_rl.runs.jsonl import write_jsonl
from entropy_rl.runs.load_model import load_model, load_tokenizer
from entropy_rl.tasks.countdown import Countdown
from entropy_rl.tasks.task import Problem

SENTENCES = (
    "First we add 3 and 5.",
    "However, that is too large.",
    "Wait, let me check.",
    "The answer is 24.",
    "Therefore we go on.",
)
RARE = "Zebras quietly juggle purple quaternions."


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return hf_fixtures.make_hf_dir(tmp_path_factory.mktemp("model") / "model", tokenizer=True)


@pytest.fixture(scope="module")
def samples(tmp_path_factory, model) -> Path:
    """Recorded samples of 12 problems: "However", "Wait, .." and what is rare have more entropy."""
    directory = tmp_path_factory.mktemp("samples")
    write_samples(directory / "samples.jsonl", load_tokenizer(model), rare=True)
    return directory


def write_samples(path, tokenizer, rare=False, problems=12):
    draw = np.random.default_rng(0)
    rows = []
    for problem in range(problems):
        for sample in range(2):
            chosen = draw.permutation(SENTENCES)
            tokens, entropy = [], []
            for sentence in [*chosen, RARE] if rare and sample == 0 else chosen:
                pieces = tokenizer.encode(f" {sentence}" if tokens else sentence)
                high = draw.exponential(0.3, len(pieces))
                high += {"W": 1.0, "Z": 1.5}.get(sentence[0], 0)
                high[:2] += 1.5 * (sentence[0] == "H")  # the space may be a token of its own
                tokens, entropy = tokens + pieces, entropy + high.tolist()
            rows.append(
                {
                    "problem": problem,
                    "sample": sample,
                    "prompt": f"problem {problem}",
                    "completion": tokenizer.decode(tokens),
                    "tokens": [*tokens, tokenizer.eos_token_id],
                    "entropy": [*entropy, 0.0],
                }
            )
    write_jsonl(path, rows)
    return rows


def analyze(*arguments) -> int:
    return main(["analyze", *map(str, arguments)])


@pytest.fixture(scope="module")
def analyzed(samples, model, tmp_path_factory):
    """Directory and printed text of an analysis."""
    directory = tmp_path_factory.mktemp("out")
    base = directory / "base.jsonl"
    write_samples(base, load_tokenizer(model))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        arguments = ("--samples", samples, "--base", base, "--output", directory / "analysis")
        assert analyze(*arguments, "--model.path", model, "--min_count", 5) == 0
    return directory / "analysis", said.getvalue()


def test_the_command_finds_and_prints_planted_differences(analyzed):
    directory, said = analyzed
    found = json.loads((directory / "analysis.json").read_text())
    assert (found["problems"], found["responses"], found["sentences"]) == (12, 24, 132)
    lines = {(line["name"], line["against"]): line for line in found["pivotal"]}
    assert lines["contrastive", "other tokens"]["group"]["count"] == 24
    assert lines["contrastive", "other tokens"]["p_adjusted"] < 0.05
    assert found["reflective"]["difference"] > 0 and found["reflective"]["group"]["count"] == 24
    assert (
        found["settings"]["min_count"] == 5
        and found["versions"]["entropy_rl"]
        and found["dynamics"] is None
    )
    assert "contrastive" in said and "significantly more entropy than other tokens" in said
    assert "12 problems, 24 responses" in said


def test_the_numbers_are_reproducible(analyzed, samples, model, tmp_path):
    arguments = (
        "--samples",
        samples / "samples.jsonl",
        "--output",
        tmp_path,
        "--model.path",
        model,
    )
    assert analyze(*arguments, "--min_count", 5) == 0
    one, other = (json.loads((d / "analysis.json").read_text()) for d in (analyzed[0], tmp_path))
    for name in ("pivotal", "reflective", "most_entropic", "entropy"):
        assert one[name] == other[name]


def test_sentences_unlike_the_base_are_rare(analyzed):
    directory, said = analyzed
    found = json.loads((directory / "analysis.json").read_text())["rare"]
    assert (found["sentences"], found["base_sentences"]) == (132, 120)
    rows = list(csv.DictReader((directory / "sentences.csv").open()))
    assert len(rows) == 252 and rows[0]["text"] == RARE and rows[0]["rare"] == "True"
    assert {
        row["text"] for row in rows if row["rare"] == "True" and float(row["distance"]) > 1e-9
    } == {RARE}
    assert found["contrast"]["difference"] > 0
    assert "Rare sentences" in said


def test_outdated_files_of_an_earlier_analysis_are_removed(analyzed, samples, model, tmp_path):
    before = shutil.copytree(analyzed[0], tmp_path / "again")
    (before / "notes.txt").write_text("mine")
    assert {"sentences.csv", "rare_map.png", "rare_map.svg"} <= {
        path.name for path in before.iterdir()
    }
    assert analyze("--samples", samples, "--output", before, "--model.path", model) == 0
    left = {path.name for path in before.iterdir()}
    figures = {"entropy_of_behaviors.png", "entropy_of_behaviors.svg"}
    assert left == {"analysis.json", "notes.txt", *figures}


# --- whose words ---


def test_the_words_are_those_of_the_task_that_a_config_next_to_the_samples_names(
    tmp_path, caplog, monkeypatch
):
    run = tmp_path / "run"
    evaluation = run / "evaluations" / "0"
    evaluation.mkdir(parents=True)
    (evaluation / "config.yaml").write_text("split: test\n")
    for task, words, reflective in (
        ("countdown", Countdown.words, Countdown.reflective),
        ("countdown_turns", Countdown.words, Countdown.reflective),
        ("math", WORDS, REFLECTIVE),
        ("not_here:Task", WORDS, REFLECTIVE),
    ):
        (run / "config.yaml").write_text(f"task: {{name: '{task}'}}\n")
        for path in (run, run / "samples.jsonl", evaluation):
            assert words_of(path) == (words, reflective)
    own = types.ModuleType("own_words")
    own.Half = types.SimpleNamespace(words={"a": ("b",)})
    own.Other = types.SimpleNamespace(reflective=("x+",))
    own.Letters = types.SimpleNamespace(words={"causal": "because"})
    own.Broken = types.SimpleNamespace(reflective=["("])
    monkeypatch.setitem(sys.modules, own.__name__, own)
    for task, expected in (("Half", ({"a": ("b",)}, REFLECTIVE)), ("Other", (WORDS, ("x+",)))):
        (run / "config.yaml").write_text(f"task: {{name: 'own_words:{task}'}}\n")
        assert words_of(run) == expected
    for task, says in (
        ("Letters", "words.causal: must be a non-empty list of non-empty words, got 'because'"),
        ("Broken", "reflective: "),
    ):
        (run / "config.yaml").write_text(f"task: {{name: 'own_words:{task}'}}\n")
        with pytest.raises(ValueError, match=f"^task.name: own_words:{task}: {says}"):
            words_of(run)
    assert words_of(tmp_path / "texts.jsonl") == (WORDS, REFLECTIVE)
    assert "cannot import 'not_here:Task'" in caplog.text


def test_the_recipe_of_the_game_has_the_words_of_its_task():
    recipe = yaml.safe_load(
        (Path(__file__).parents[2] / "configs/countdown_analyze.yaml").read_text()
    )
    assert recipe["words"] == {name: list(words) for name, words in Countdown.words.items()}
    assert recipe["reflective"] == list(Countdown.reflective)


# --- texts ---


def test_texts_are_scored_like_a_plain_forward_pass(model, tmp_path):
    texts = [
        ("Use 3 and 5.", "First 3 + 5 = 8."),
        ("Now", ""),
        ("Using the numbers 3, 5, 7", "Wait 🤔"),
        ("x", "y"),
    ]
    write_jsonl(tmp_path / "texts.jsonl", [{"prompt": p, "completion": c} for p, c in texts])
    loaded = load_model(ModelConfig(str(model)))
    rows = read_rows(tmp_path / "texts.jsonl")
    scored = score_rows(rows, loaded, temperature=0.7, max_tokens_per_micro_batch=64)
    for (prompt, completion), row, response in zip(
        texts, scored, responses_of(scored, loaded.tokenizer), strict=True
    ):
        before = loaded.tokenizer.encode(prompt)
        assert row.tokens == loaded.tokenizer.encode(completion) and response.text == completion
        ids = np.array([before + row.tokens])
        logits = loaded.policy.apply(loaded.params, ids) @ loaded.policy.head(loaded.params).T / 0.7
        _, entropy = log_prob_and_entropy_from_logits(logits[0, :-1], ids[0, 1:])
        np.testing.assert_allclose(row.entropy, entropy[len(before) - 1 :], atol=2e-5)
    assert [row.problem for row in scored] == [1, 0, 2, 3]  # in the order of the prompts


def test_the_scores_of_a_text_do_not_keep_those_of_others_in_memory(model):
    loaded = load_model(ModelConfig(str(model)))
    rows = [([1, 2], [3] * size, [True] * size) for size in (1, 9)]
    scores = score_tokens(rows, loaded, temperature=1.0, max_tokens_per_micro_batch=64)
    assert [array.shape for pair in scores for array in pair] == [(1,), (1,), (9,), (9,)]
    assert all(array.base is None for pair in scores for array in pair)


def test_samples_are_kept_until_their_use(samples, tmp_path):
    path = Path(samples)
    read = check_config(AnalyzeConfig(samples=str(path), output=str(tmp_path / "out")))
    first, second = read(path), read(path)
    assert first == second == read_rows(path) and first is not second


def test_texts_are_analyzed_with_a_model_and_refused_without(model, tmp_path, capsys):
    text = "First we add. However, we check. Then we stop."
    write_jsonl(
        tmp_path / "t.jsonl", [{"prompt": f"problem {i}", "completion": text} for i in range(3)]
    )
    assert analyze("--samples", tmp_path / "t.jsonl", "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "t.jsonl: must have entropies, or give --model.path" in error
    assert not (tmp_path / "out").exists()
    arguments = (
        "--samples",
        tmp_path / "t.jsonl",
        "--output",
        tmp_path / "out",
        "--model.path",
        model,
    )
    assert analyze(*arguments, "--max_tokens_per_micro_batch", 64) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert (found["problems"], found["responses"]) == (3, 3)
    assert {line["group"]["count"] for line in found["pivotal"]} >= {3, 6}


# --- a run ---


def of_evaluation(sample):
    """Additional fields of an evaluation row: the first sample is correct."""
    verdict = ("correct", "wrong")[sample]
    return {"sample": sample, "verdict": verdict, "right_answer": "", "answer": "8", "length": 7,
            "finish_reason": "eos"}  # fmt: skip


def test_a_run_is_analyzed_over_its_steps_and_empty_classes_are_not_tested(
    workspace, monkeypatch, capsys
):
    monkeypatch.chdir(workspace)
    # The files of a run, without training.
    run = workspace / "run"
    tokenizer = load_tokenizer(workspace / "model")
    (run / "model").mkdir(parents=True)
    for file in (workspace / "model").iterdir():
        if file.suffix == ".json":
            (run / "model" / file.name).write_bytes(file.read_bytes())
    (run / "config.yaml").write_text("seed: 0\n")
    tokens = [*tokenizer.encode("3 + 5 = 8 wait", add_special_tokens=False), 2]
    row = {
        "problem": 1,
        "prompt": "<bos> 3 5 : 8",
        "completion": "3 + 5 = 8 wait",
        "tokens": tokens,
    }
    entropy = [0.1, 0.9, 0.2, 0.0, 0.0, 0.6, 0.0]
    write_jsonl(run / "samples.jsonl", [row | {"step": s, "entropy": entropy} for s in (1, 1, 2)])
    write_jsonl(run / "metrics.jsonl", [{"step": s, "entropy": 0.3, "length": 7.0} for s in (1, 2)])

    evaluated = [row | {"entropy": entropy, **of_evaluation(sample)} for sample in (0, 1)]
    for step in (0, 2, 4):
        directory = run / "evaluations" / str(step)
        directory.mkdir(parents=True)
        write_jsonl(directory / "samples.jsonl", evaluated)
        if step < 4:  # the last one is not complete
            prompts = types.SimpleNamespace(problems=[Problem(1, row["prompt"], "")], left_out=0)
            write_result(directory, summarize(evaluated, FakeTask(), prompts, 2))

    assert analyze("--samples", "run") == 0
    said = capsys.readouterr().out
    assert "not tested: causal, contrastive, sequential, reasoning verbs" in said.replace(
        "\n   ", " "
    )
    assert (
        "evaluations of the run" in said and "reflective" in said.split("evaluations of the run")[1]
    )
    found = json.loads(Path("analysis/analysis.json").read_text())["dynamics"]
    assert found["metrics"][0] == {
        "step": 1, "correct": None, "length": 7.0, "entropy": 0.3, "bonus_share": None
    }  # fmt: skip
    assert [(p["step"], p["responses"], p["length"]) for p in found["training"]] == [
        (1, 2, 7.0),
        (2, 1, 7.0),
    ]
    assert [(p["step"], p["responses"]) for p in found["evaluations"]] == [(0, 2), (2, 2)]
    assert {step: curve["1"][0] for step, curve in found["pass_at_k"].items()} == {
        "0": 0.5,
        "2": 0.5,
    }
    assert "causal" in json.loads(Path("analysis/analysis.json").read_text())["settings"]["words"]
    figures = {path.name for path in Path("analysis").glob("*.png")}
    assert figures == {"entropy_of_behaviors.png", "dynamics.png"}

    words = '{operators: ["+"], results: ["="]}'
    assert analyze("--samples", "run", "--words", words, "--reflective", "[wait]") == 0
    found = json.loads(Path("analysis/analysis.json").read_text())
    assert {line["name"]: line["group"]["mean"] for line in found["pivotal"][:2]} == {
        "operators": 0.9, "results": 0.0
    }  # fmt: skip
    assert found["dynamics"]["training"][0]["behaviors"]["operators"] == {
        "per_response": 1.0,
        "entropy": 0.9,
    }
    assert found["pivotal"][0]["p_value"] == 1.0  # one problem


# --- bad input ---


GOOD = {"prompt": "p", "completion": "c", "problem": 1, "tokens": [1, 2], "entropy": [0.1, 0.2]}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--samples", "missing.jsonl"],
            "missing.jsonl: must be a JSONL file or the directory of",
        ),
        (["--samples", "empty"], "a training run, got a directory without samples.jsonl"),
        (["--samples", "x", "--base", "x"], "base: must be different from samples, got 'x'"),
        (
            ["--samples", "x", "--words", "{}"],
            "words: must be a mapping with at least one class, got {}",
        ),
        (
            ["--samples", "x", "--words", "{a: []}"],
            "words.a: must be a non-empty list of non-empty words, got []",
        ),
        (
            ["--samples", "x", "--words", "{a: [' ']}"],
            "words.a: must be a non-empty list of non-empty words, got [' ']",
        ),
        (
            ["--samples", "x", "--words", "{a: [true]}"],
            "words.a[0]: must be a string, got True",
        ),
        (
            ["--samples", "x", "--words", "{a: [yes]}"],
            "--words: yes must be true or false, or in quotes if it is a text",
        ),
        (
            ["--samples", "x", "--words", "{reflective: [a]}"],
            "words: must be a name other than 'all classes' and 'reflective', got 'reflective'",
        ),
        (
            ["--samples", "x", "--reflective", "[]"],
            "reflective: must be a non-empty list of non-empty expressions, got []",
        ),
        (
            ["--samples", "x", "--reflective", "['a', '(b']"],
            "reflective: must be a Python regular expression, got '(b' (missing )",
        ),
        (["--samples", "x", "--rare_share", "1"], "rare_share: must be > 0 and < 1, got 1.0"),
        (["--samples", "x", "--neighbors", "0"], "neighbors: must be >= 1, got 0"),
        ([], "missing: samples"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert analyze(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "analysis").exists()


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], "s.jsonl: must hold samples, got none"),
        (["[1]"], "s.jsonl:1: must be a JSON object, got [1]"),
        (["nonsense", "{}"], "s.jsonl:1: must be JSON"),
        ([{"prompt": "p"}], "s.jsonl:1: completion: must be a string, got None"),
        (
            [GOOD, GOOD | {"entropy": [0.1]}],
            "s.jsonl:2: entropy: must be a number >= 0 for each of the 2 tokens, got [0.1]",
        ),
        ([GOOD | {"entropy": [0.1, float("nan")]}], "of the 2 tokens, got [0.1, nan]"),
        ([GOOD | {"entropy": [0.1, "a"]}], "s.jsonl:1: entropy:"),
        ([GOOD | {"tokens": "ab"}], "s.jsonl:1: tokens: must be a list of token ids, got 'ab'"),
        (
            [GOOD | {"problem": [7]}],
            "s.jsonl:1: problem: must be an integer or a string, got [7]",
        ),
        (
            [GOOD, {"prompt": "p", "completion": "c"}],
            "s.jsonl:2: must have entropies in all lines of the file or in none",
        ),
        ([GOOD], "model.path: must be given, because no config next to"),
        (
            [GOOD | {"tokens": [1, 10**6]}],
            "s.jsonl:1: tokens: must be ids below 384, the size of the tokenizer",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(lines, message, model, tmp_path, capsys):
    file = tmp_path / "s.jsonl"
    file.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    known = [] if "model.path" in message else ["--model.path", model]
    assert analyze("--samples", file, "--output", tmp_path / "out", *known) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_incomplete_last_line_is_left_out(tmp_path):
    file = tmp_path / "s.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-9])
    assert len(read_rows(file)) == 1
    # A complete line without its newline counts.
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD))
    assert len(read_rows(file)) == 2


def test_an_analysis_never_writes_into_a_run(samples, model, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("")
    assert analyze("--samples", samples, "--output", tmp_path, "--model.path", model) == 2
    assert "must not be the directory of a run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


ENCODER = """
import numpy as np

def encode(texts):
    \"\"\"Counts of letters, not normalized.\"\"\"
    assert isinstance(texts, list)
    return [[text.lower().count(letter) for letter in "aehiklnoqrstwz"] for text in texts]

def short(texts):
    return encode(texts[1:])

def flat(texts):
    return np.zeros(len(texts))

def infinite(texts):
    return np.full((len(texts), 3), np.inf)

def fails(texts):
    raise RuntimeError("no such model\\nin two lines")

number = 3
"""


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_encoder", None)


def test_a_users_encoder_decides_the_distances(encoder, samples, model, tmp_path):
    write_samples(tmp_path / "base.jsonl", load_tokenizer(model))
    arguments = (
        "--samples",
        samples,
        "--base",
        tmp_path / "base.jsonl",
        "--output",
        tmp_path / "out",
    )
    assert analyze(*arguments, "--model.path", model, "--encoder", "own_encoder:encode") == 0
    rows = list(csv.DictReader((tmp_path / "out" / "sentences.csv").open()))
    texts = [row["text"] for row in rows]
    vectors = load_embedding("own_encoder:encode")(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    nearest = np.sort(1 - vectors[:132] @ vectors[132:].T, axis=1)[:, :5].mean(axis=1)
    np.testing.assert_allclose([float(row["distance"]) for row in rows[:132]], nearest, atol=1e-5)
    assert [row["distance"] for row in rows[132:]] == [""] * 120


def test_rare_sentences_are_not_tested_with_too_few_base_sentences(
    samples, model, tmp_path, capsys
):
    lines = (samples / "samples.jsonl").read_text().splitlines()
    (tmp_path / "base.jsonl").write_text(lines[0] + "\n")
    arguments = (
        "--samples",
        samples,
        "--base",
        tmp_path / "base.jsonl",
        "--output",
        tmp_path / "out",
    )
    assert analyze(*arguments, "--model.path", model, "--neighbors", 7) == 0
    assert "not tested: rare sentences" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "analysis.json").read_text())["rare"] is None


def test_rare_sentences_are_those_of_problems_that_both_have(samples, model, tmp_path, capsys):
    lines = [json.loads(line) for line in (samples / "samples.jsonl").read_text().splitlines()]
    base = tmp_path / "base.jsonl"
    arguments = ("--samples", samples, "--base", base, "--output", tmp_path / "out")
    write_jsonl(base, [line for line in lines if line["problem"] >= 8])  # 4 of 12
    assert analyze(*arguments, "--model.path", model) == 0
    out = capsys.readouterr().out
    assert "left out of the rare sentences: 8 problems that only one of both has" in out
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert (found["problems"], found["rare"]["problems"]) == (12, 4)
    assert found["rare"]["sentences"] == found["rare"]["base_sentences"] == 44
    assert f"sentences of {base}) against common sentences" in out
    base.unlink()
    write_jsonl(base, [line | {"prompt": f"other {line['prompt']}"} for line in lines])
    assert analyze(*arguments, "--model.path", model) == 2
    assert "base: must have samples of problems of" in capsys.readouterr().err


def test_samples_of_a_run_that_goes_on_are_read_once(samples, model, tmp_path, monkeypatch):
    growing = tmp_path / "growing.jsonl"
    text = (samples / "samples.jsonl").read_text()
    base = tmp_path / "base.jsonl"
    for path in (growing, base):
        path.write_text(text)

    def go_on(rows, *rest):
        for path in (growing, base):
            with path.open("a") as file:
                file.write(text.splitlines()[0] + "\n")
        return responses_of(rows, *rest)

    monkeypatch.setattr("entropy_rl.evaluation.load_samples.responses_of", go_on)
    arguments = ("--samples", growing, "--base", base, "--output", tmp_path / "out")
    assert analyze(*arguments, "--model.path", model) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["rare"]["sentences"] == found["rare"]["base_sentences"] == 132


def test_the_order_of_the_lines_changes_nothing(samples, model, tmp_path):
    lines = (samples / "samples.jsonl").read_text().splitlines()
    (tmp_path / "turned.jsonl").write_text("".join(f"{line}\n" for line in lines[::-1]))
    found = []
    for path in (samples, tmp_path / "turned.jsonl"):
        output = tmp_path / "out"
        assert analyze("--samples", path, "--output", output, "--model.path", model) == 0
        found.append(json.loads((output / "analysis.json").read_text())["reflective"])
    assert found[0].pop("group") == pytest.approx(found[1].pop("group"))
    assert found[0].pop("other") == pytest.approx(found[1].pop("other"))
    assert found[0] == pytest.approx(found[1])


def test_a_bin_of_the_map_begins_at_the_threshold():
    for threshold, largest in ((0.7, 0.9), (0.9, 0.9), (0.0, 0.0), (0.0, 0.5)):
        edges = _edges(threshold, largest)
        assert threshold in edges and edges[0] == 0 and edges[-1] >= largest
        assert edges[-1] > threshold and (np.diff(edges) > 0).all() and len(edges) < 34


def test_problems_are_identified_by_name_or_prompt(tmp_path):
    names = [{"problem": 10**30}, {"problem": "b"}, {"problem": 10**30}]
    rows = [{"prompt": "p", "completion": "c"} | name for name in names]
    write_jsonl(tmp_path / "t.jsonl", [*rows, *({"prompt": p, "completion": "c"} for p in "pqp")])
    assert [row.problem for row in read_rows(tmp_path / "t.jsonl")] == [0, 1, 0, 2, 3, 2]


@pytest.mark.parametrize(
    "name, message",
    [
        ("all-MiniLM-L6-v2", "encoder: must be module:function, got 'all-MiniLM-L6-v2'"),
        ("no_such_module:encode", "encoder: cannot import 'no_such_module:encode'"),
        ("own_encoder:missing", "encoder: cannot import 'own_encoder:missing'"),
        ("own_encoder:number", "encoder: must be a function, got own_encoder:number = 3"),
        (
            "own_encoder:short",
            "short must return an array [3, d], one vector per text, got shape (2,",
        ),
        (
            "own_encoder:flat",
            "flat must return an array [3, d], one vector per text, got shape (3,)",
        ),
        ("own_encoder:infinite", "own_encoder:infinite must return finite numbers, got NaN or inf"),
        ("own_encoder:fails", "own_encoder:fails failed: RuntimeError: no such model"),
    ],
)
def test_an_invalid_encoder_is_refused_in_one_line(encoder, name, message):
    with pytest.raises(ValueError) as refused:
        load_embedding(name)(["one", "two", "three"])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_base_and_output_are_checked_before_texts_are_scored(model, tmp_path, monkeypatch, capsys):
    def no_model(*_, **__):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("entropy_rl.runs.load_model.load_model", no_model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    arguments = ("--samples", "t.jsonl", "--model.path", model)
    for more, message in (
        (("--base", "gone.jsonl"), "gone.jsonl: must be a JSONL file or the directory of"),
        (("--output", "t.jsonl/out"), "output: must be a directory that can be created, got"),
    ):
        assert analyze(*arguments, *more) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"entropy-rl analyze: {message}") and error.count("\n") == 1


def test_an_encoder_that_cannot_be_used_ends_the_program_in_one_line(samples, tmp_path, capsys):
    arguments = ("--samples", samples, "--output", tmp_path / "out", "--encoder")
    assert analyze(*arguments, "x") == 2
    assert "encoder: " in capsys.readouterr().err
    assert analyze(*arguments, "all-MiniLM-L6-v2", "--base", "b") == 2
    error = capsys.readouterr().err
    assert "encoder: must be module:function" in error and error.count("\n") == 1


def test_recorded_ids_without_a_token_are_counted_in_the_log(model, tmp_path, caplog):
    """Earlier versions sampled ids between the tokenizer's and the vocabulary of the model."""
    from entropy_rl.evaluation.load_samples import read_rows, responses_of

    file = tmp_path / "s.jsonl"
    file.write_text(json.dumps(GOOD | {"tokens": [1, 390], "entropy": [0.1, 0.2]}) + "\n")
    rows, tokenizer = read_rows(file), load_tokenizer(model)
    with pytest.raises(ValueError, match="must be ids below 384"):
        responses_of(rows, tokenizer)
    (response,) = responses_of(rows, tokenizer, vocab_size=400)
    assert response.tokens.tolist() == [1, 390]
    assert f"{file}: 1 recorded tokens have no token in the tokenizer" in caplog.text


def test_ids_of_a_tokenizer_may_have_gaps():
    model = tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 7}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model))
    assert len(tokenizer) == 3
    row = Row("s.jsonl:1", 1, "p", "c", tokens=[7, 1], entropy=[0.1, 0.2], step=None)
    (response,) = responses_of([row], tokenizer)
    assert response.tokens.tolist() == [7, 1]
