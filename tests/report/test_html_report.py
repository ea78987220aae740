"""`entropy-rl report`: the page shows the records of runs, and escapes all model output."""

import copy
import dataclasses
import html
import json
import re
import shlex
import shutil
import subprocess
import types

import numpy as np
import pytest
from report_runs import CONFIG, GROUP, HOSTILE, write_run, write_samples

from entropy_rl.analysis import annotate, compile_patterns, find_rare, word_patterns
from entropy_rl.cli.main import main
from entropy_rl.evaluation import compare_runs, read_samples
from entropy_rl.report.build import LabeledCurve
from entropy_rl.report.chart_data import training_panels
from entropy_rl.report.comparison_tables import verdict
from entropy_rl.report.curves import COLORS, PANELS
from entropy_rl.report.model_card import _public, _until
from entropy_rl.report.paper_figures import draw_paper_figures
from entropy_rl.report.pass_at_k import pass_at_k_figure
from entropy_rl.report.reported_run import read_runs, short_names
from entropy_rl.report.samples import LONGEST, Limits, select_responses, select_samples
from entropy_rl.report.style import figure_style
from entropy_rl.runs.jsonl import read_jsonl, write_jsonl
from entropy_rl.tasks.countdown import Countdown

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def make_page(output, *arguments):
    assert main(["report", *map(str, arguments), "--output", str(output)]) == 0
    return output.read_text()


def data_of(page):
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S
    )
    return json.loads(text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two training runs; the second has no shaping, another seed, and is right more often."""
    directory = tmp_path_factory.mktemp("runs")
    plain = copy.deepcopy(CONFIG) | {"advantage": CONFIG["advantage"][:1], "seed": 1}
    write_run(directory / "shaped")
    write_run(directory / "plain", seed=7, config=plain, gain=0.2)
    return directory


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return make_page(
        tmp_path_factory.mktemp("page") / "report.html", runs / "shaped", runs / "plain"
    )


def source(page, label):
    (found,) = [source for source in data_of(page)["samples"] if source["label"] == label]
    return found


# --- the page ---


def test_the_page_needs_no_other_file_and_no_network(page):
    for asking in (
        " src=",
        "<link",
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "http://",
        "https://",
    ):
        assert asking not in page.replace("http://www.w3.org/2000/svg", "").replace(HOSTILE, "")
    assert "default-src 'none'" in page and len(page) < 300_000


def test_text_of_models_and_users_is_escaped(page):
    # In the data `<` is replaced; elsewhere it is escaped.
    assert "document.title" in page and not re.search(r"<img|<script>document", page)
    assert page.count("</script>") == page.count("<script") == 2
    assert "{{7*7}}" in page and source(page, "shaped: training")["prompts"][0].endswith(HOSTILE)


def test_the_curves_are_the_metrics_of_the_runs(page, runs):
    panels = {panel["title"]: panel["series"] for panel in data_of(page)["training"]}
    metrics = [read_jsonl(runs / name / "metrics.jsonl") for name in ("shaped", "plain")]
    for series, rows in zip(panels["share of correct responses"], metrics, strict=True):
        assert series["x"] == list(range(1, 7))
        assert series["y"] == pytest.approx([row["correct"] for row in rows], rel=1e-4)
    assert panels["gradient norm before clipping"][0]["y"][2] is None
    assert "Constant: clip_high 0." in page


def test_long_runs_are_binned(runs, tmp_path):
    run = shutil.copytree(runs / "plain", tmp_path / "long")
    rows = [{"step": s, "correct": s % 2} for s in range(1, 3001)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = make_page(tmp_path / "long.html", run)
    (series,) = data_of(page)["training"][0]["series"]
    assert (
        len(series["x"]) == 600
        and set(series["y"]) == {0.4, 0.6}
        and "means over bins of steps" in page
    )


def test_the_verdict_equals_that_of_compare(page, runs):
    found = compare_runs(*(runs / name / "evaluations" / "6" for name in ("shaped", "plain")))
    said = verdict(found.pass_at_k, "Pass@K")
    assert f"<b>{said[0].upper()}{said[1:]}.</b>" in page
    points = data_of(page)["pass_at_k"][1]
    assert points["label"] == "shaped, step 6" and points["x"] == list(found.curves[0])
    assert points["low"] == pytest.approx(
        [low for _, low, _, _ in found.curves[0].values()], rel=1e-4
    )


def test_the_first_and_last_evaluation_of_a_single_run_are_compared(runs, tmp_path):
    page = make_page(tmp_path / "one.html", runs / "shaped")
    assert "A: shaped, step 0<br>B: shaped, step 6" in page


def test_runs_that_cannot_be_compared_are_shown_with_the_reason(runs, tmp_path):
    other = write_run(tmp_path / "none", evaluations=())
    page = make_page(tmp_path / "page.html", runs / "shaped", other)
    assert "Not compared: none: no complete evaluation" in page


def test_differences_of_configs_come_first_and_are_marked(page):
    rows = re.findall(r'<tr( class="differs")?><th scope="row">([\w.]+)</th>', page)
    differs = [name for mark, name in rows if mark]
    assert differs == ["advantage", "seed", "commit"]
    assert "c0" in page and "not recorded" not in page
    assert "entropy-rl train --config" in page and "evaluation.samples" in page


def test_the_method_of_a_run_is_one_line(tmp_path):
    more = {"loss": {"entropy_coef": 0.01}, "replay": {"name": "uec_replay", "every": 3}}
    write_run(tmp_path / "run", config=CONFIG | more)
    (run,) = read_runs([str(tmp_path / "run")])
    assert run.method == (
        "group_normalize → shape_by_entropy(alpha=0.4, kappa=2.0), "
        "entropy bonus in the loss: 0.01, replay: uec_replay(every=3)"
    )


def test_runs_with_the_same_name_are_named_with_their_parents(tmp_path):
    paths = [tmp_path / "a" / "seed_0", tmp_path / "b" / "seed_0"]
    assert short_names(paths) == ["a/seed_0", "b/seed_0"]
    with pytest.raises(ValueError, match=r"^runs: must be different directories, got "):
        short_names([tmp_path, tmp_path])


# --- the responses ---


def test_every_token_has_its_text_and_numbers(page, runs):
    found, recorded = (
        source(page, "shaped: training"),
        read_jsonl(runs / "shaped" / "samples.jsonl"),
    )
    assert len(found["rows"]) == len(recorded)
    for row, its in zip(found["rows"], recorded, strict=True):
        pieces = [found["pieces"][token] for token in row["tokens"]]
        assert "".join(text for text, is_name in pieces if not is_name) == its["completion"]
        assert pieces[-1] == ["<eos>", True]
        assert row["entropies"] == pytest.approx(its["entropy"], abs=1e-4)
        assert row["log_prob"] == pytest.approx(sum(its["log_probs"]))
        assert (row["before"], row["after"]) == (its["advantage_before"], its["advantage_after"])


def test_advantages_of_an_evaluation_are_those_of_its_complete_groups(page, runs):
    found = source(page, "shaped: evaluation at step 6")
    recorded = {
        (r["problem"], r["sample"]): r for r in read_samples(runs / "shaped" / "evaluations" / "6")
    }
    assert len(found["rows"]) == 6 * GROUP
    for row in found["rows"]:
        group = [
            recorded[row["problem"], sample]["verdict"] == "correct" for sample in range(GROUP)
        ]
        rewards = np.array(group, float)
        std = rewards.std(ddof=1)
        before = (rewards[row["sample"]] - rewards.mean()) / (std + 1e-6 if std else 1)
        entropy = np.array(recorded[row["problem"], row["sample"]]["entropy"])
        assert row["before"] == pytest.approx([before], abs=1e-4)
        assert row["after"] == pytest.approx(
            before + np.minimum(0.4 * entropy, abs(before) / 2), abs=1e-4
        )
    assert f"from samples 0 to {GROUP - 1} of a problem as one group; the run was not" in page


WIDE = Limits(rows=1000, tokens=100_000, analyzed_tokens=1000)


@pytest.mark.parametrize(
    "change, samples, temperature, reason",
    [
        ({}, 3, 1.0, "a group needs 4 samples of a problem, but at most 3 exist"),
        ({}, 8, 0.6, "these entropies are at temperature 0.6, those of training at 1"),
        ({"advantage": [{"name": "whiten"}]}, 8, 1.0, "they depend on the whole mini-batch"),
        (
            {"advantage": [{"name": "remax"}]},
            8,
            1.0,
            "they need greedy_rewards, which evaluations do not record",
        ),
        ({"advantage": [{"name": "gae"}], "critic": {"gamma": 0.9}}, 8, 1.0, "they need values"),
        (
            {"advantage": [{"name": "no_such"}]},
            8,
            1.0,
            "advantage[0].name: must be one of ",
        ),
        (
            {"advantage": [{"name": "os:getcwd"}]},
            8,
            1.0,
            "they need a transform that is not part of the library",
        ),
        ({}, 8, None, "these entropies are at an unknown temperature"),
        (None, 8, 1.0, "the training config of the model is not available"),
    ],
)
def test_unknown_advantages_are_left_out_with_the_reason(
    change, samples, temperature, reason, tmp_path
):
    write_samples(tmp_path / "e", 0, samples=samples)
    config = None if change is None else CONFIG | change
    found = select_samples(tmp_path / "e", WIDE, config, temperature)
    assert reason in found.note
    assert all(row["before"] is row["after"] is None for row in found.shown["rows"])


def test_a_row_without_a_loss_gets_no_bonus(tmp_path):
    """As in training, where `loss.mask_truncated` excludes the row from the shaping."""
    write_samples(tmp_path / "e", 0, samples=GROUP)
    file = tmp_path / "e" / "samples.jsonl"
    rows = read_jsonl(file)
    for row in rows[::2]:
        row["finish_reason"] = "length"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def shown(config):
        return select_samples(tmp_path / "e", WIDE, config, 1.0).shown["rows"]

    every = shown(CONFIG)
    masked = shown(CONFIG | {"loss": {"mask_truncated": True}})
    assert any(row["after"] != row["before"] for row in every if row["finish"] == "length")
    for one, other in zip(masked, every, strict=True):
        assert one["before"] == other["before"]
        if one["finish"] == "length":
            assert set(one["after"]) == set(one["before"])
        else:
            assert one["after"] == other["after"]


def test_the_samples_on_the_page_are_bounded_and_spread(tmp_path):
    write_samples(tmp_path / "e", 0, problems=6)
    limits = Limits(rows=9, tokens=10_000, analyzed_tokens=30)
    found = select_samples(tmp_path / "e", limits, CONFIG, 1.0)
    problems = [row["problem"] for row in found.shown["rows"]]
    assert problems == [0] * GROUP + [5] * GROUP and found.total == 48
    few = select_samples(tmp_path / "e", Limits(rows=9, tokens=1, analyzed_tokens=1), CONFIG, 1.0)
    assert len(few.shown["rows"]) == 1


def test_the_answers_of_an_environment_are_between_the_turns(tmp_path):
    write_samples(tmp_path / "e", 0)
    file = tmp_path / "e" / "samples.jsonl"
    rows = read_jsonl(file)
    rows[0]["observations"] = [[1, " 10 2 : 27"], [LONGEST, "beyond what is shown"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, *_ = select_samples(tmp_path / "e", WIDE, CONFIG, 1.0).shown["rows"]
    assert first["observations"] == [[1, " 10 2 : 27"]] and second["observations"] == []


def test_an_old_run_without_recorded_advantages_is_shown(tmp_path):
    run = write_run(tmp_path / "old", evaluations=())
    (run / "starts.jsonl").unlink()
    rows = read_jsonl(run / "samples.jsonl")
    for row in rows:
        for name in ("reward", "advantage_before", "advantage_after"):
            del row[name]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = make_page(tmp_path / "old.html", run)
    assert "unknown: this run did not record them" in page
    assert "not recorded" in page and 'id="evaluation"' not in page


def test_the_page_names_the_command_that_reproduces_it(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = make_page(
        tmp_path / "a page.html", runs / "plain", "--responses", 7, "--reflective", '["a b"]'
    )
    (said,) = re.findall(r"^entropy-rl report .*?(?=</pre>)", page, flags=re.M)
    arguments = shlex.split(html.unescape(said))[1:]
    assert arguments[-1] == '["a b"]' and main(arguments) == 0
    assert (tmp_path / "a page.html").read_text() == page
    assert f"entropy-rl train --config {runs / 'plain'}/config.yaml --run.directory NEW" in page


def test_an_evaluation_inside_a_run_is_attributed_to_the_run(runs, tmp_path):
    page = make_page(tmp_path / "inside.html", runs / "shaped" / "evaluations" / "3")
    assert f"evaluation of {runs / 'shaped'}" in page and "made by the run in" in page
    assert source(page, "3: evaluation")["rows"][0]["after"] is not None


def test_an_evaluation_without_its_model_is_shown_without_tokens(tmp_path):
    write_samples(tmp_path / "e", 0)
    found = source(make_page(tmp_path / "e.html", tmp_path / "e"), "e: evaluation")
    assert found["rows"][0]["tokens"] is None and found["rows"][0]["text"]


def test_an_evaluation_without_samples_is_shown_by_its_numbers(tmp_path):
    write_samples(tmp_path / "e", 0)
    (tmp_path / "e" / "samples.jsonl").unlink()
    data = data_of(make_page(tmp_path / "e.html", tmp_path / "e"))
    assert data["samples"] == [] and len(data["pass_at_k"]) == 1


# --- the command ---


def test_invalid_runs_are_refused_in_one_line(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(*arguments):
        assert main(["report", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("entropy-rl report: ")

    run = runs / "shaped"
    assert refused() == "the command line: missing: runs"
    assert refused("nowhere").startswith(
        "nowhere: must be the directory of a training run or an evaluation, got no directory"
    )
    assert (
        refused(".") == ".: must be the directory of a training run or an evaluation, got neither"
    )
    assert refused(run, run).startswith("runs: must be different directories, got ")
    assert refused(run, "--output", "page.pdf").endswith(
        "output: must be a file NAME.html, got 'page.pdf'"
    )
    assert refused(*[run] * 9).startswith("runs: must be 1 to 8 directories, got [")
    assert refused(run, "--reflective", "['(']").startswith("reflective: ")
    broken = shutil.copytree(run, tmp_path / "broken")
    for name in ("metrics.jsonl", "starts.jsonl"):
        (broken / name).write_text("{}\n")
        assert refused(broken).startswith(f"{broken / name}: must hold the records of a run")
        (broken / name).unlink()
    (broken / "samples.jsonl").write_text("{}\n")
    assert refused(broken).startswith(f"{broken / 'samples.jsonl'}:1: must be a sample")
    (broken / "config.yaml").write_text("- a list\n")
    assert refused(broken).startswith(
        f"{broken / 'config.yaml'}: must be a mapping of config fields"
    )
    assert not list(tmp_path.glob("*.html"))


def test_the_figures_are_written_as_svg_and_pdf(runs, tmp_path):
    pytest.importorskip("matplotlib")
    figures = tmp_path / "figures"
    make_page(tmp_path / "page.html", runs / "shaped", "--figures", figures)
    names = {f"curve_{name}" for name in PANELS if name != "truncated"} | {
        "pass_at_k",
        "entropy_shaped",
        "rare_map_shaped",
    }
    assert {path.name for path in figures.iterdir()} == {
        *(f"{n}.{s}" for n in names for s in ("svg", "pdf")),
        "captions.txt",
    }
    assert "<svg" in (figures / "curve_entropy.svg").read_text()
    pdf = (figures / "pass_at_k.pdf").read_bytes()
    assert pdf[:4] == b"%PDF" and b"/Type3" not in pdf and b"/FontFile2" in pdf
    assert b"/MediaBox [ 0 0 234 172.8 ]" in pdf  # 3.25 x 2.4 inches
    captions = (figures / "captions.txt").read_text()
    assert "pass_at_k: Pass@K; bands are 95% Wilson intervals" in captions


@pytest.mark.parametrize("is_in_paper", [False, True])
def test_long_names_leave_room_for_the_curves(is_in_paper):
    pytest.importorskip("matplotlib")
    curve = {1: (0.1, 0.05, 0.2, 9), 8: (0.4, 0.3, 0.5, 9)}
    names = [f"{name}: runs/{'long' * 12}/{'evaluated-' * 4}" for name in "AB"]
    with figure_style("column"):
        figure = pass_at_k_figure(dict.fromkeys(names, curve), is_in_paper=is_in_paper)
        figure.draw_without_rendering()
    axes, legend = figure.axes[0].bbox, figure.legends[0].get_window_extent()
    assert axes.width > 0.7 * figure.bbox.width and axes.height > 0.35 * figure.bbox.height
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width and legend.y1 <= axes.y0


def test_figures_take_a_style_of_matplotlib_and_refuse_another(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page = [str(runs / "shaped"), "--output", str(tmp_path / "page.html")]
    figures = ["--figures", str(tmp_path / "figures"), "--figure_style"]
    assert main(["report", *page, *figures, "ggplot"]) == 0
    assert main(["report", *page, *figures, "colum"]) == 2
    assert "figure_style: must be column, page, slides or a style of" in capsys.readouterr().err


def test_a_metric_that_one_run_lacks_is_a_panel_and_no_constant(runs):
    with_bonus, without = read_runs([str(runs / "shaped"), str(runs / "plain")])
    rows = [row | {"bonus_share": 0.2} for row in with_bonus.metrics]
    with_bonus = dataclasses.replace(with_bonus, metrics=rows)
    rows = [{k: v for k, v in row.items() if k != "bonus_share"} for row in without.metrics]
    without = dataclasses.replace(without, metrics=rows)
    assert training_panels([with_bonus])[1]["bonus_share"] == 0.2
    panels, constant = training_panels([with_bonus, without])
    assert "bonus_share" not in constant
    assert [0] in [[s["run"] for s in panel["series"]] for panel in panels]


def test_the_model_card_ends_at_the_exported_step_and_keeps_texts(runs):
    (run,) = read_runs([str(runs / "shaped")])
    last = run.metrics[-1]["step"]
    cut = _until(run, last - 1)
    assert cut.metrics[-1]["step"] == last - 1 and max(cut.evaluations) < last
    texts = {"b": "/no_think {problem}", "c": "/ word" * 99}
    assert _public({"a": "/data/set.jsonl"} | texts) == {"a": "set.jsonl"} | texts


def test_a_run_has_one_color_in_all_figures_and_a_dashed_first_evaluation(runs):
    pytest.importorskip("matplotlib")
    names = ("untrained", "a-b", "a_b")
    report = types.SimpleNamespace(  # the attributes that figures read
        runs=[
            types.SimpleNamespace(
                name=n, metrics=[{"step": 1, "correct": 0.5}] if n != "untrained" else []
            )
            for n in names
        ],
        curves=[
            LabeledCurve(
                run, f"{run}, {step}", step > 0, {1: (0.1, 0.0, 0.2, 6), 2: (0.2, 0.1, 0.3, 6)}
            )
            for run in range(3)
            for step in (0, 6)
        ],
        analyses={},
    )
    figures = draw_paper_figures(report)
    trained = figures["curve_correct"].figure.axes[0].get_lines()
    assert [line.get_color() for line in trained] == [COLORS[1]] * 2 + [COLORS[2]] * 2
    (axis,) = figures["pass_at_k"].figure.axes
    assert not axis.get_title()
    pass_at_k = axis.get_lines()
    assert [line.get_color() for line in pass_at_k] == [COLORS[run] for run in (0, 0, 1, 1, 2, 2)]
    assert [line.get_linestyle() for line in pass_at_k] == ["--", "-"] * 3
    assert len(set(COLORS)) == 8


def test_the_first_evaluation_is_the_base_of_rare_sentences(page, runs):
    data = data_of(page)
    patterns = word_patterns(Countdown.words), compile_patterns(Countdown.reflective)

    def annotated(name, step):
        responses = select_responses(runs / name / "evaluations" / step, 10**6)
        return [annotate(response, *patterns) for response in responses]

    for number, name in enumerate(data["runs"]):
        wanted = find_rare(annotated(name, "6"), annotated(name, "0"))
        groups = data["maps"][number]["groups"]
        texts = sorted(s.text[:200] for s in wanted.placed if s.rare)
        assert sorted(point[2] for point in groups["rare"]) == texts and texts
        assert len(groups["common"]) == wanted.sentences - len(texts)
        assert len(groups["base"]) == wanted.base_sentences > 10
        rows = {row["label"]: row for row in data["analysis"][number]["rows"]}
        assert rows["rare sentences"]["count"] == len(texts)
        assert rows["rare sentences"]["mean"] == pytest.approx(wanted.contrast.group.mean, rel=1e-4)


def test_rare_sentences_need_common_problems(runs, tmp_path):
    run = shutil.copytree(runs / "shaped", tmp_path / "run")
    samples = run / "evaluations" / "0" / "samples.jsonl"
    rows = read_jsonl(samples)
    samples.unlink()
    write_jsonl(samples, [row | {"prompt": f"other {row['prompt']}"} for row in rows])
    assert data_of(make_page(tmp_path / "page.html", run))["maps"] == []


def test_the_first_of_several_evaluations_is_the_base_of_the_others(runs, tmp_path):
    shaped, plain = (runs / name / "evaluations" / "6" for name in ("shaped", "plain"))
    data = data_of(make_page(tmp_path / "page.html", shaped, plain))
    assert [found["run"] for found in data["maps"]] == data["runs"][1:]
    # Deleted samples cannot serve as base.
    write_run(tmp_path / "run")
    (tmp_path / "run" / "evaluations" / "0" / "samples.jsonl").unlink()
    assert data_of(make_page(tmp_path / "page.html", tmp_path / "run"))["maps"] == []


# --- in a browser ---

ACTIONS = """
<pre id="result"></pre><script>
const form = document.forms.filters, cards = () => [...document.querySelectorAll("#list .card")];
const choose = (name, value) => {
  form[name].value = value;
  form.dispatchEvent(new Event("input"));
};
const point = (target, type) => {
  const box = target.getBoundingClientRect();
  const [clientX, clientY] = [box.left + box.width / 2, box.top + 5];
  target.dispatchEvent(new PointerEvent(type, { bubbles: true, clientX, clientY }));
  return document.getElementById("tip").innerText;
};
const found = { title: document.title, charts: document.querySelectorAll(".charts svg").length };
found.all = cards().length;
found.token = point(document.querySelector("#list .text span"), "pointerover");
found.chart = point(document.querySelector("#charts-training svg"), "pointermove");
found.map = point(document.querySelector("#charts-analysis .map svg"), "pointermove");
choose("verdict", "correct");
found.badges = cards().map((card) => card.querySelector(".badge").textContent);
choose("verdict", "");
choose("order", "length");
found.lengths = cards().map((card) => Number(card.innerHTML.match(/>(\\d+) tokens/)[1]));
choose("text", "PROBLEM 13");
found.searched = cards().length;
choose("text", "nowhere to be found");
found.none = cards().length;
const lines = () => document.querySelectorAll("#charts-training svg:first-of-type .series").length;
found.lines = lines();
document.querySelector("#legend button").click();
found.fewer = lines();
found.images = document.images.length;
document.getElementById("result").textContent = JSON.stringify(found);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_charts_tokens_and_filters_work_in_a_browser(page, tmp_path):
    path = tmp_path / "driven.html"
    path.write_text(page.replace("</body>", ACTIONS))
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    arguments += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    arguments += ["--dump-dom", path.as_uri()]
    done = subprocess.run([CHROMIUM, *arguments], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    (text,) = re.findall(r'<pre id="result">(.*?)</pre>', done.stdout)
    found = json.loads(text.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert not console and found["title"] == "shaped · plain" and found["images"] == 0
    assert found["all"] == 12 and found["charts"] >= 8
    assert "entropy" in found["token"] and "advantage 0.5 → 0.5" in found["token"]
    assert "step 3" in found["chart"] and "plain" in found["chart"]
    assert "sentence" in found["map"]
    assert set(found["badges"]) == {"correct"} and len(found["badges"]) == 6
    assert found["lengths"] == sorted(found["lengths"], reverse=True)
    assert (found["searched"], found["none"]) == (2, 0)
    assert found["fewer"] < found["lines"]
