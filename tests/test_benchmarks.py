"""The benchmarks measure what they say: ratios, lengths, the model that stops, slopes; the program
runs.
"""

import argparse
import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import entropy_rl as er
from entropy_rl.config.lora import LORA_TARGETS
from entropy_rl.experience.encoding import encode_prompt
from entropy_rl.experience.observations import encode_observation
from entropy_rl.models.lora import adapter_shapes, module_of

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The modules of benchmarks/, which is no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import environments
        import real_model
        import report
        import scaling
        import side_by_side
        import turns
        import worker
        import workload
    finally:
        sys.path.remove(str(BENCHMARKS))
    modules = (environments, real_model, report, scaling, side_by_side, turns, worker, workload)
    return type("Bench", (), {module.__name__: module for module in modules})


def runs(cpu, tokens=(1, 1, 1), peak=(1, 1, 1)):
    return [
        {"cpu": c, "wall": 2 * c, "tokens": n, "peak_rss": p}
        for c, n, p in zip(cpu, tokens, peak, strict=True)
    ]


def test_the_table_of_the_real_model_has_rates_and_the_ratios_of_pairs(bench):
    def of(cpu, peak):
        return [
            {"cpu": c, "first": 9.0, "load": 1.0, "peak_gib": p}
            for c, p in zip(cpu, peak, strict=True)
        ]

    runs = {"ours": of([2, 4, 3], [5, 6, 5]), "transformers": of([8, 6, 9], [4, 4, 4.5])}
    line = bench.real_model.table({"runs": {"prefill": runs}}).splitlines()[-1]
    # 2048 tokens in medians of 3 and 8 CPU-seconds; pairs 4, 1.5, 3.
    assert line == "| prefill | 2048 | 683 | 256 | 3.00 [1.50, 4.00] | 9.0 | 6.00, 4.50 |"


def test_a_step_of_episodes_says_what_it_prefills_once_more(bench):
    counts = {"prompt_tokens": 512, "observation_tokens": 6144}
    systems = {
        "ours": {"runs": [counts | {"again": 0}] * 3},
        "trl": {"runs": [counts | {"again": n} for n in (7, 5, 6)]},
        "tunix": {"error": "none"},
    }
    (said,) = bench.report._prefilled(systems)
    assert "ours 512 of prompts, 6144 of observations, and 0 of the turns" in said
    assert "trl 512 of prompts, 6144 of observations, and 6 of the turns" in said
    assert bench.report._prefilled({"ours": {"runs": runs([1, 2, 3])}}) == []


def test_both_forms_of_the_environment_have_the_same_tokens_turns_and_rewards(bench):
    turns, size = bench.turns, bench.workload.SIZES["turns"]
    tokenizer = turns.make_tokenizer(size)
    ours, theirs = turns.Turns(dataclasses.asdict(size)), turns.TurnsOfTRL(size)
    problems = ours.problems("train")
    assert len(problems) == size.prompts
    prompt = encode_prompt(problems[1], tokenizer)
    assert len(prompt) == size.prompt_tokens and prompt[0] == bench.workload.FIRST_WORD + 7
    for actions in (["w3", "w4 w5", "", "w9"], ["w3 w4", "w5 w6", "w1", "w7"]):
        ours.reset(problems[0], 0)
        theirs.reset()
        for action in actions[:-1]:
            observation = ours.step(action)
            assert observation.text == theirs.act(action)
        ids = encode_observation([observation.text], "tool", problems[0], 1, tokenizer)
        assert len(ids) == size.observation_tokens
        assert ours.step(actions[-1]).judgement == (theirs.get_reward() == 1)


# --- the workload
# ------------------------------------------------------------------------------------------


def test_the_stop_probability_gives_the_mean_of_the_cut_off_law(bench):
    p = bench.workload.stop_probability(113, 256)
    mean = sum(min(n, 256) * p * (1 - p) ** (n - 1) for n in range(1, 20000))
    assert mean == pytest.approx(113, abs=1e-6)
    assert bench.workload.stop_probability(1, 256) == pytest.approx(1)
    assert bench.workload.stop_probability(256, 256) == 0
    with pytest.raises(ValueError, match="allowed: >= 1 and <= 256"):
        bench.workload.stop_probability(257, 256)


def test_lengths_are_geometric_up_to_the_limit(bench):
    lengths = bench.workload.draw_lengths(0, 20000, 113, 256)
    assert lengths.min() >= 1 and lengths.max() == 256
    assert lengths.mean() == pytest.approx(113, rel=0.02)
    p = bench.workload.stop_probability(113, 256)
    assert (lengths == 256).mean() == pytest.approx((1 - p) ** 255, rel=0.1)
    assert (lengths <= 50).mean() == pytest.approx(1 - (1 - p) ** 50, rel=0.05)
    assert (bench.workload.draw_lengths(0, 3, 256, 256) == 256).all()


def test_a_batch_ends_each_row_with_eos_unless_it_is_cut_off(bench):
    size = dataclasses.replace(bench.workload.SIZES["tiny"], prompts=8)
    batch = bench.workload.make_batch(size)
    lengths = batch.mask.sum(1)
    last = batch.completion_ids[np.arange(size.rows), lengths - 1]
    assert ((last == bench.workload.EOS) == (lengths < size.new_tokens)).all()
    assert (lengths == size.new_tokens).any() and (lengths < size.new_tokens).any()
    assert (batch.completion_ids[~batch.mask] == bench.workload.PAD).all()
    assert not np.isin(batch.completion_ids[batch.mask], bench.workload.PAD).any()
    assert batch.tokens == lengths.sum()
    assert (batch.rewards == lengths % 2).all()
    groups = batch.advantages.reshape(size.prompts, size.samples)
    np.testing.assert_allclose(groups.mean(1), 0, atol=1e-6)


@pytest.mark.slow
def test_the_models_of_the_benchmark_stop_as_often_as_they_should(bench):
    size = dataclasses.replace(bench.workload.SIZES["tiny"], prompts=64, new_tokens=48)
    config, params = bench.workload.make_model(size)
    generate = er.make_generate(
        er.make_policy(config),
        group_size=8,
        max_new_tokens=48,
        eos_ids=[bench.workload.EOS],
        pad_id=bench.workload.PAD,
    )
    prompts = bench.workload.make_batch(size).prompts
    rollout = generate(
        params, prompts, np.ones(prompts.shape, bool), np.arange(64), jax.random.key(0)
    )
    lengths = np.asarray(rollout.completion_mask.sum(-1))
    # 512 rows with a deviation of 17 tokens: 0.75 of the mean's error.
    assert lengths.mean() == pytest.approx(bench.workload.MEAN_SHARE * 48, abs=3)
    assert not (np.asarray(rollout.completion_ids)[np.asarray(rollout.completion_mask)] == 0).any()


def test_what_is_held_at_once_fits_into_memory(bench):
    sizes = bench.workload.SIZES
    assert sizes["small"].rows_at_once == (16, 128)  # 128 * 320 * 8192 * 4 bytes = 1.34 GB
    assert sizes["medium"].rows_at_once == (32,)  # 32 * 320 * 32768 * 4 bytes = 1.34 GB


def test_the_projections_are_those_of_an_adapter_of_the_library(bench):
    size = dataclasses.replace(bench.workload.SIZES["small"], hidden=96, heads=6, kv_heads=2)
    shapes = bench.workload.projections(size)
    assert tuple(shapes) == LORA_TARGETS
    spec = er.models.lora_spec(er.models.LoraConfig(rank=size.lora_rank, alpha=size.lora_alpha))
    decoder = er.DecoderConfig(
        vocab_size=size.vocab, hidden_size=96, intermediate_size=size.mlp, num_layers=size.layers,
        num_heads=6, num_kv_heads=2, head_dim=16, rope_theta=1e4, norm_eps=1e-6, qkv_bias=True,
        qk_norm=False, tie_embeddings=True,
    )  # fmt: skip
    adapter = adapter_shapes(spec, decoder)["layers"]
    for name, (a, b) in bench.workload.draw_adapter(size).items():
        leaves = adapter[module_of(name)][name]
        assert (a.shape, b.shape) == (leaves["lora_a"].shape, leaves["lora_b"].shape)


class FakeWorker:
    """A system whose log-probs are 0, and which trains 10 parameters, or 8 if it is tunix."""

    def __init__(self, system, *_):
        self.system = system

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, do, **command):
        if do == "probe":
            trained = 8 if self.system == "tunix" and command["lora"] else 10
            zeros = np.zeros((1 + command["lora"], 2, 3))
            found = dict(log_probs=zeros, entropy=zeros, grad_norm=1.0, trainable=trained)
            np.savez(command["file"], **found)
        run = {"cpu": 1.0, "wall": 1.0, "tokens": 5, "peak_rss": 2**20, "rss_before": 0}
        answers = {"prepare": {"option": f"after {command.get('option')}", "first": run}}
        return answers.get(do, run if do == "run" else {})


def test_a_system_that_trains_another_number_of_parameters_is_not_timed_and_its_row_says_so(
    bench, monkeypatch, tmp_path
):
    program = bench.side_by_side
    monkeypatch.setattr(program, "Worker", FakeWorker)
    monkeypatch.setattr(program, "python_of", lambda *_: None)
    monkeypatch.setattr(bench.workload, "prepare", lambda directory, _: tmp_path)
    works = ["update", "lora-update", "lora-step"]
    arguments = argparse.Namespace(
        systems=["ours", "tunix"], sizes=["tiny"], work=works, runs=1, envs=tmp_path, output=None
    )
    result = program.compare(arguments)
    dense, update, step = (case["systems"] for case in result["cases"])
    error = "trains 8 parameters, ours 10"
    assert len(dense["tunix"]["runs"]) == 1
    assert update["tunix"] == step["tunix"] == {"error": error}
    assert step["ours"]["option"] == "after after None"  # that of the update
    assert result["checks"]["tiny"]["tunix"]["trainable"] == 10 and program.failed(result)
    text = bench.report.markdown(result)
    assert f"| tunix | {error} |" in text and "(tiny; 10 parameters are trained)" in text
    assert "Same model (tiny, LoRA of rank 4); " in text and f"not compared ({error})" in text


# --- the figures
# -------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_the_rounds_and_counts_useful_tokens(bench):
    theirs = runs(cpu=(6, 20, 9), tokens=(2, 4, 3), peak=(300, 500, 400))  # 3, 5, 3 per token
    ours = runs(cpu=(2, 2, 6), tokens=(2, 1, 2), peak=(100, 250, 100))  # 1, 2, 3 per token
    found = bench.report.ratios(theirs, ours)
    assert found == {"cpu": 2.5, "wall": 2.5, "memory": 3}  # of 3, 2.5, 1 and of 3, 2, 4
    with pytest.raises(ValueError):
        bench.report.ratio([1.0], [1.0, 2.0])


def test_the_spread_is_least_median_most(bench):
    assert bench.report.spread([3, 1, 2, 10]) == (1, 2.5, 10)


def test_numbers_are_short_and_have_no_exponent(bench):
    assert [bench.report._short(x) for x in (0.01234, 1.2345, 47.51, 1234.5)] == [
        "0.0123",
        "1.23",
        "47.5",
        "1234",
    ]


def test_the_table_says_what_failed(bench):
    first = {"cpu": 9.0, "wall": 10.0}
    ours = {
        "runs": [r | {"rss_before": 0} for r in runs((1, 1, 1), peak=(2**20,) * 3)],
        "first": first,
    }
    case = {"systems": {"ours": ours, "trl": {"error": "RuntimeError: no memory"}}}
    table = bench.report.case_table(case)
    assert "| trl | RuntimeError: no memory |" in table
    assert "| ours | 1 | 1 / 1 / 1 | 2 / 2 / 2 | 1 | 1 (1) | 9 (10) |" in table
    assert "---" not in bench.report.aligned(table)


def test_a_slope_and_its_bends(bench):
    fit = bench.scaling.fit
    line = fit([0, 1, 3], [2, 5, 11])
    assert line.slope == pytest.approx(3) and line.start == pytest.approx(2) and line.bends == ()
    assert fit([0, 1, 2, 3], [1, 2, 3, 6]).bends == (2,)  # slopes 1, 1, 3
    assert fit([0, 1, 2, 3], [1, 2, 3.2, 4.4]).bends == ()  # 1, 1.2, 1.2: below a quarter
    assert fit([0, 1, 2], [100, 100.1, 99.9]).bends == ()  # flat, but for noise
    with pytest.raises(ValueError, match="ascending"):
        fit([0, 0, 1], [1, 2, 3])


# --- the programs
# ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_option_is_chosen_by_its_second_run_and_one_that_fails_is_named(bench):
    def make(seconds):
        def run(number):
            sum(range(int(seconds * 10**8)))  # about so many of CPU
            return 5 + number

        return run

    def fail():
        raise MemoryError("too large\nby far")

    options = {"slow": lambda: make(0.02), "fails": fail, "fast": lambda: make(0.001)}
    run, answer = bench.worker.choose(options)
    assert answer["option"] == "fast" and answer["first"]["tokens"] == 5 and run(3) == 8
    assert answer["options"]["fails"] == "MemoryError: too large"
    with pytest.raises(MemoryError):
        bench.worker.choose({"fails": fail})


def test_an_environment_that_cannot_be_made_is_told_in_a_line_and_leaves_no_stamp(
    bench, monkeypatch, tmp_path
):
    environments, commands = bench.environments, []
    code = "import sys; sys.exit('WARNING: slow\\nERROR: no such version\\nhint: none')"

    def run(command):
        commands.append(command[1:3])
        if command[2] == "pip":
            real([sys.executable, "-c", code])

    real = environments._run
    monkeypatch.setattr(environments, "_run", run)
    with pytest.raises(environments.EnvironmentFailed, match=r"^ERROR: no such version$"):
        environments.python_of("trl", tmp_path)
    assert commands == [
        ["-m", "venv"],
        ["-m", "pip"],
        ["-m", "pip"],
    ]  # both sources of torch, and no more
    assert not (tmp_path / "trl" / "installed").exists()
    assert environments.python_of("ours", tmp_path) == Path(sys.executable)


@pytest.mark.slow
def test_the_comparison_runs_and_shows_what_it_wrote(bench, tmp_path, capsys):
    file = tmp_path / "results.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "side_by_side.py"),
        "--systems",
        "ours",
        "--sizes",
        "tiny",
    ]
    command += ["--work", "rollout", "--runs", "2", "--envs", str(tmp_path), "--output", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    (case,) = result["cases"]
    ours = case["systems"]["ours"]
    assert (case["size"], case["work"], len(ours["runs"])) == ("tiny", "rollout", 2)
    assert all(run["cpu"] > 0 and 16 <= run["tokens"] <= 16 * 24 for run in ours["runs"])
    assert {"command", "date", "commit", "machine", "versions"} <= result.keys()
    assert bench.side_by_side.main(["--show", str(file), "--markdown"]) == 0
    assert "| ours |" in capsys.readouterr().out


def import_ours():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from systems import ours
    finally:
        sys.path.remove(str(BENCHMARKS))
    return ours


@pytest.mark.slow
def test_a_fresh_adapter_is_the_base_and_the_drawn_one_shows_what_is_not_adapted(bench, tmp_path):
    ours, size = import_ours(), bench.workload.SIZES["tiny"]
    directory = bench.workload.prepare(tmp_path, size)
    dense, lora = ours.probe(directory, lora=False), ours.probe(directory, lora=True)
    fresh, drawn = lora["log_probs"]
    np.testing.assert_array_equal(fresh, dense["log_probs"][0])
    assert np.abs(drawn - fresh).max() > 100 * bench.side_by_side.TOLERANCE
    shapes = bench.workload.projections(size).values()
    assert lora["trainable"] == size.layers * size.lora_rank * sum(map(sum, shapes))
    assert lora["grad_norm"] > 0
    (make,) = ours.options(directory, "lora-update").values()
    assert make()(0) == bench.workload.load(directory)[1].tokens


def test_the_log_prob_pass_counts_the_tokens_of_the_fixed_batch(bench, tmp_path):
    ours = import_ours()
    directory = bench.workload.prepare(tmp_path, bench.workload.SIZES["tiny"])
    _, batch = bench.workload.load(directory)
    (make,) = ours.options(directory, "score").values()
    assert make()(0) == batch.tokens


# --- the page and the command lines
# ------------------------------------------------------------------------------------------


def options_of(source):
    """(option, its help or None) of every option that a program adds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            option = node.args[0].value
            if name in ("add", "add_argument") and str(option).startswith("-"):
                yield option, {keyword.arg for keyword in node.keywords}


def test_the_help_of_every_program_explains_every_option():
    programs = {file.name: list(options_of(file.read_text())) for file in BENCHMARKS.glob("*.py")}
    programs = {name: options for name, options in programs.items() if options}
    page = (BENCHMARKS / "README.md").read_text()
    assert {f"python benchmarks/{name}" in page for name in programs} == {True}
    assert len(programs) == 9
    bare = [(name, o) for name, options in programs.items() for o, args in options
            if "help" not in args]  # fmt: skip
    assert bare == []
    markdown = {name for name, options in programs.items() if "--markdown" in dict(options)}
    assert markdown == {"side_by_side.py", "scaling.py"}


def test_the_page_uses_the_words_of_the_library():
    page = (BENCHMARKS / "README.md").read_text()
    for word in ("live token", "lists of", "parts of 1", " us.", "last list"):
        assert word not in page
