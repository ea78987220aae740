"""An evaluation on disk: whatever ends it, and whoever shares it, no sample is lost or drawn
twice.
"""

import dataclasses
import json
import random
import re

import jax.numpy as jnp
import pytest
from fake_evaluation import MAX_PROMPT, MODEL, NEW, FakeTask

from entropy_rl.config.rollout import EvaluationConfig
from entropy_rl.evaluation import evaluate_into, evaluation_prompts, read_result, read_samples
from entropy_rl.tasks.task import Verdict

CONFIG = EvaluationConfig("dev", samples=6, max_new_tokens=NEW, rows_per_call=4)


class Killed(Exception):
    """Ends an evaluation where a signal would."""


def run(
    directory,
    task=None,
    *,
    shard=(0, 1),
    kill_at=None,
    config=CONFIG,
    params=MODEL.params,
    model=MODEL,
):
    """Evaluates into a directory; `kill_at` ends it at that call of on_progress."""
    directory.mkdir(exist_ok=True)
    task = task or FakeTask()
    prompts = evaluation_prompts(config, task, MODEL.tokenizer, MAX_PROMPT)
    calls = []

    def on_progress(*progress):
        calls.append(progress)
        if len(calls) == kill_at:
            raise Killed

    result = evaluate_into(
        directory,
        model,
        params,
        task,
        prompts,
        config,
        seed=3,
        shard=shard,
        on_progress=on_progress,
    )
    return result, [done for done, _, _ in calls]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    result, _ = run(directory)
    return result, directory


def samples(directory):
    return (directory / "samples.jsonl").read_bytes()


def in_order(directory):
    """What the samples are, but for the last bits of floats, which depend on the rows beside
    them.
    """
    rows = [{**row, "log_probs": None, "entropy": None} for row in read_samples(directory)]
    return sorted(rows, key=lambda row: (row["problem"], row["sample"]))


def test_the_result_is_on_disk_as_it_was_returned(whole):
    result, directory = whole
    assert read_result(directory) == result
    assert len(list(read_samples(directory))) == 30


def test_what_is_complete_is_not_drawn_again(whole):
    result, directory = whole
    before = samples(directory)

    class NoTask(FakeTask):
        def judge(self, problems, completions):
            raise AssertionError("nothing is left to judge")

    again, done = run(directory, NoTask())
    assert (again, done, samples(directory)) == (result, [30], before)


@pytest.mark.parametrize("kill_at", [1, 2, 5, 9])
def test_an_evaluation_that_was_ended_after_any_batch_goes_on_to_the_same_file(
    tmp_path, whole, kill_at
):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    assert read_result(tmp_path) is None
    result, done = run(tmp_path)
    assert done[0] == 4 * (kill_at - 1) - 2 * ((kill_at - 1) // 2) and done[-1] == 30
    assert samples(tmp_path) == samples(whole[1]) and result == whole[0]


def test_a_file_that_was_cut_anywhere_ten_times_is_completed_to_the_same_file(tmp_path, whole):
    draw, wanted = random.Random(0), samples(whole[1])
    run(tmp_path)
    file = tmp_path / "samples.jsonl"
    for cut in [0, 1, *(draw.randrange(len(wanted)) for _ in range(8))]:
        file.write_bytes(wanted[:cut])
        (tmp_path / "evaluation.json").unlink()
        result, _ = run(tmp_path)
        assert file.read_bytes() == wanted and result == whole[0]


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_processes_that_share_the_problems_draw_the_same_samples_as_one(tmp_path, whole, shards):
    results = [run(tmp_path, shard=(i, shards))[0] for i in range(shards)]
    assert results[:-1] == [None] * (shards - 1)  # the last one finds all samples there
    assert len(list(tmp_path.glob("samples-*.jsonl"))) == shards
    assert in_order(tmp_path) == in_order(whole[1])
    assert results[-1].pass_at_k == whole[0].pass_at_k == read_result(tmp_path).pass_at_k


def test_another_number_of_processes_goes_on_where_the_first_ended(tmp_path, whole):
    with pytest.raises(Killed):
        run(tmp_path, shard=(0, 2), kill_at=3)
    run(tmp_path, shard=(1, 2))
    assert [run(tmp_path, shard=(i, 3))[0] is None for i in range(3)] == [True, True, False]
    assert in_order(tmp_path) == in_order(whole[1])
    assert run(tmp_path)[0].maj_at_n == whole[0].maj_at_n


@pytest.mark.parametrize("shard", [(-1, 2), (2, 2), (0, 0)])
def test_a_shard_that_is_none_of_those_is_refused(tmp_path, shard):
    index, count = shard
    with pytest.raises(ValueError, match=rf"^shard: must be .* < shards, got {index} of {count}$"):
        run(tmp_path, shard=shard)


def test_processes_beyond_the_number_of_problems_have_no_samples_to_draw(tmp_path, whole):
    results = [run(tmp_path, shard=(i, 7))[0] for i in (5, 0, 1, 2, 3, 4, 6)]
    assert results[:5] == [None] * 5
    assert results[5].pass_at_k == results[6].pass_at_k == whole[0].pass_at_k
    assert in_order(tmp_path) == in_order(whole[1])


def test_samples_of_another_model_or_other_problems_are_not_mixed(tmp_path, whole, monkeypatch):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=3)
    other = {"table": MODEL.params["table"] + 0.1}
    with pytest.raises(
        ValueError, match="must hold samples of the same weights, which have changed"
    ):
        run(tmp_path, params=other)

    class Edited(FakeTask):
        def problems(self, split):
            first, *rest = super().problems(split)
            return [dataclasses.replace(first, answer="10"), *rest]

    with pytest.raises(ValueError, match="must hold samples of the same problems"):
        run(tmp_path, Edited())
    table = MODEL.params["table"]
    for at in ((-1, -1), (-1, 0), (table.shape[0] // 2, 3)):  # one bit, beyond the first row
        one_bit = table.at[at].set(jnp.nextafter(table[at], jnp.inf))
        with pytest.raises(ValueError, match="samples of the same weights, which have changed"):
            run(tmp_path, params={"table": one_bit})
    swapped = table.at[-2:].set(table[-2:][::-1])
    with pytest.raises(ValueError, match="samples of the same weights, which have changed"):
        run(tmp_path, params={"table": swapped})
    other_files = dataclasses.replace(MODEL, directory=tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1}')
    with pytest.raises(ValueError, match="samples of the same model files, which have changed"):
        run(tmp_path, model=other_files)
    encode = MODEL.tokenizer.encode  # as by another chat template
    monkeypatch.setattr(MODEL.tokenizer, "encode", lambda *x, **y: [*encode(*x, **y), 5])
    with pytest.raises(ValueError, match="samples of the same prompts, which have changed"):
        run(tmp_path)
    monkeypatch.undo()
    recorded = json.loads((tmp_path / "origin.json").read_text())
    old = {name: recorded[name] for name in ("weights", "problems")}  # of an earlier version
    (tmp_path / "origin.json").write_text(json.dumps(old))
    assert run(tmp_path)[0] is not None
    for content in ("{", "[]", '{"weights": ""}', "[" * 5000):
        (tmp_path / "origin.json").write_text(content)
        with pytest.raises(ValueError, match=r"origin\.json: must be the origin of samples \("):
            run(tmp_path)
    (tmp_path / "origin.json").unlink()
    with pytest.raises(
        ValueError,
        match=r"must hold origin\.json with its samples, got none; choose another directory",
    ):
        run(tmp_path)


def test_a_second_process_on_the_same_part_is_refused(tmp_path):
    class Twice(FakeTask):
        def judge(self, problems, completions):
            with pytest.raises(
                ValueError, match=r"samples\.jsonl: must have one writer, got a second process"
            ):
                run(tmp_path)
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, Twice())
    assert run(tmp_path)[0] is not None


def test_samples_of_other_settings_and_damaged_lines_are_named(tmp_path, whole):
    run(tmp_path)
    file = tmp_path / "samples.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[7]]))
    with pytest.raises(ValueError, match=r"got sample 1 of problem 3 twice; processes"):
        run(tmp_path)
    file.write_text("".join([*lines, json.dumps(json.loads(lines[0]) | {"sample": 6}) + "\n"]))
    with pytest.raises(ValueError, match=r"samples of these settings, got sample 6 of problem 40$"):
        run(tmp_path)
    for broken in ("{broken}\n", re.sub(r'"entropy": \[[^,\]]*', '"entropy": [null', lines[3])):
        file.write_text("".join([*lines[:3], broken, *lines[3:]]))
        with pytest.raises(ValueError, match=r"samples\.jsonl:4: must be a sample"):
            run(tmp_path)


def test_what_a_broken_model_says_is_refused_and_not_written(tmp_path):
    broken = {"table": MODEL.params["table"] * float("nan")}
    with pytest.raises(
        FloatingPointError, match=r"log-probs are not finite, first in sample 0 of problem 40;"
    ):
        run(tmp_path, params=broken)
    assert not (tmp_path / "samples.jsonl").exists()


@pytest.mark.parametrize("rows_per_call", [4, 12])
def test_a_check_that_crashes_for_the_first_problem_alone_ends_nothing(tmp_path, rows_per_call):
    """Batches of four rows are of one problem, those of twelve of several."""
    crashes = []

    def crash(problem, text):
        crashes[:] = crashes or [problem.id]
        return Verdict.CRASH if problem.id in crashes else None

    config = dataclasses.replace(CONFIG, rows_per_call=rows_per_call)
    result, _ = run(tmp_path / "run", FakeTask(crash), config=config)
    assert result.unjudged == 1 and result.verdicts["crash"] == 1 / 5


def test_an_evaluation_with_judged_samples_goes_on_where_all_others_crash(tmp_path):
    config = dataclasses.replace(CONFIG, rows_per_call=12)
    with pytest.raises(Killed):
        run(tmp_path / "run", config=config, kill_at=3)
    result, _ = run(tmp_path / "run", FakeTask(lambda *_: Verdict.CRASH), config=config)
    assert 0 < result.verdicts["crash"] < 1
