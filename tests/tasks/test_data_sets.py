"""Published math sets: from files in their schemas to the problems of a task."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from error_lines import says
from math_files import (
    AIME_2024,
    AIME_2024_CAPITALS,
    AIME_2025,
    AMC_2023,
    DAPO_AFTER,
    DAPO_BEFORE,
    GSM8K_TEST,
    MATH_500,
    dapo_row,
    write_dapo,
    write_jsonl,
    write_parquet,
    write_published,
)

from entropy_rl.cli.main import main
from entropy_rl.tasks import load_task
from entropy_rl.tasks.math import prepare as preparing
from entropy_rl.tasks.math import sets
from entropy_rl.tasks.math.prepare import prepare

DAPO = [
    ("What is problem A?", "1"),
    ("What is problem B?", "2"),
    ("What is problem D?", "-4"),
    ("What is problem E?", "1000"),
]
EXPECTED = {
    "dapo_math_17k": DAPO,
    "math_500": [
        ("Compute\n$\\dbinom{8}{4}$.", "70"),
        ("Simplify $\\frac{2}{\\sqrt{2}}$.", "\\sqrt{2}"),
    ],
    "aime_2024": [
        ("Find the remainder when $0 + 1$ is divided by 1000.", "204"),
        ("Find the remainder when $1 + 1$ is divided by 1000.", "25"),
        ("Find the remainder when $2 + 1$ is divided by 1000.", "0"),
    ],
    "aime_2025": [
        ("Find the sum of all bases b > 9.", "70"),
        ("Find the degree measure of the arc.", "336"),
    ],
    "amc_2023": [("What is $142.0$ as a whole number?", "142"), ("What is $-4$?", "-4")],
    "gsm8k": [("Janet's ducks lay 16 eggs. She eats 20. How many?", "-4")],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return write_published(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, files) -> str:
    directory = str(tmp_path_factory.mktemp("data"))
    for name, source in files.items():
        assert (
            main(["data", "prepare", name, "--source", str(source), "--data_dir", directory]) == 0
        )
    return directory


def math(data_dir: str, **args):
    return load_task("math", {"prompt": "{problem}\\boxed", "data_dir": data_dir} | args)


def pairs(problems) -> list[tuple[str, str]]:
    return [(problem.prompt.removesuffix("\\boxed"), problem.answer) for problem in problems]


# --- every set, from its file to the task
# ------------------------------------------------------------------


def test_all_published_sets_are_tried_here():
    assert list(EXPECTED) == list(sets.PUBLISHED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_prepared_set_gives_a_task_its_problems_in_the_order_of_the_file(data_dir, name):
    problems = math(data_dir, test=name).problems("test")
    assert pairs(problems) == EXPECTED[name]
    assert [problem.id for problem in problems] == list(range(len(problems)))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_set_is_a_split_by_its_own_name(data_dir, name):
    assert pairs(math(data_dir).problems(name)) == EXPECTED[name]


def test_gsm8k_gives_its_train_split_to_train_and_its_test_split_to_the_rest(data_dir):
    task = math(data_dir, train="gsm8k", validation="gsm8k", test="gsm8k")
    assert [answer for _, answer in pairs(task.problems("train"))] == ["72", "10000"]
    assert pairs(task.problems("validation")) == pairs(task.problems("test")) == EXPECTED["gsm8k"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("dapo_math_17k", {"source_id": "id-A"}),
        (
            "math_500",
            {
                "solution": "It is $\\boxed{70}$.",
                "subject": "Counting & Probability",
                "level": 1,
                "source_id": "test/counting_and_probability/181.json",
            },
        ),
        (
            "aime_2024",
            {"solution": "We add.", "url": "https://artofproblemsolving.com/0", "source_id": "60"},
        ),
        ("aime_2025", {"source_id": "0"}),
        ("amc_2023", {"url": "https://aops.com/0", "source_id": "0"}),
        ("gsm8k", {"solution": ""}),
    ],
)
def test_what_else_a_file_tells_of_a_problem_is_kept(data_dir, name, row):
    source = sets.find_source("name", name, "test", data_dir)
    first = sets.read_prepared(source.directory, source.split)[0]
    assert {
        field: first[field] for field in first if field not in ("id", "problem", "answer")
    } == row


def test_the_rationale_of_gsm8k_is_its_solution(data_dir):
    rows = sets.read_prepared(sets.set_directory("gsm8k", data_dir), "train")
    assert rows[1]["solution"] == "10 times #### 1000 is it."


# --- what is counted
# ---------------------------------------------------------------------------------------


def test_duplicates_and_contradictions_of_dapo_are_left_out_and_counted(data_dir, files):
    counts = sets.read_metadata("dapo_math_17k", data_dir)["splits"]["train"]
    assert counts == {
        "rows": 12,
        "kept": 4,
        "deduplicated": True,
        "duplicates": 5,
        "contradictory_problems": 1,
        "contradictory_rows": 3,
        "first_contradiction": "row 3 has '7', row 8 has '8': What is problem C?",
        "distinct_source_ids": 6,
        "longest_problem": {"id": 0, "characters": 18},
        "fields_left_out": ["ability", "data_source"],
    }
    assert counts["rows"] == counts["kept"] + counts["duplicates"] + counts["contradictory_rows"]


def test_an_answer_that_is_written_otherwise_is_no_contradiction(tmp_path):
    rows = [dapo_row("P?", answer, "i") for answer in ("1000", "1,000", "1000.0")]
    prepare("dapo_math_17k", str(write_dapo(tmp_path / "f.parquet", rows)), data_dir=str(tmp_path))
    counts = sets.read_metadata("dapo_math_17k", str(tmp_path))["splits"]["train"]
    assert (counts["kept"], counts["duplicates"], counts["contradictory_problems"]) == (1, 2, 0)
    assert pairs(math(str(tmp_path)).problems("dapo_math_17k")) == [("P?", "1000")]


def test_the_other_sets_keep_every_row_and_count_what_repeats(tmp_path):
    rows = [MATH_500[0], MATH_500[1], MATH_500[0], MATH_500[1] | {"answer": "3"}]
    prepare("math_500", str(write_jsonl(tmp_path / "f.jsonl", rows)), data_dir=str(tmp_path))
    counts = sets.read_metadata("math_500", str(tmp_path))["splits"]["test"]
    assert (counts["rows"], counts["kept"], counts["duplicates"]) == (4, 4, 1)
    assert (counts["contradictory_problems"], counts["contradictory_rows"]) == (1, 2)
    assert counts["first_contradiction"].startswith(
        "line 2 has '\\\\sqrt{2}', line 4 has '3': Simplify"
    )
    assert [answer for _, answer in pairs(math(str(tmp_path)).problems("math_500"))][-1] == "3"


def test_the_metadata_tell_where_a_set_is_from(data_dir, files):
    info = tfds.builder_from_directory(f"{data_dir}/amc_2023/1.0.0").info
    metadata = dict(info.metadata)
    assert metadata["repository"] == "AI-MO/aimo-validation-amc"
    assert metadata["revision"] == "69d78a4a2c840e82d69af6bc742bda09005f6316"
    assert metadata["sources"] == {"test": str(files["amc_2023"])}
    assert len(metadata["sha256"]["test"]) == 64
    assert info.homepage == "https://huggingface.co/datasets/AI-MO/aimo-validation-amc"


# --- schemas
# -----------------------------------------------------------------------------------------------


def test_aime_2024_is_read_in_its_other_schema(tmp_path):
    file = write_parquet(tmp_path / "f.parquet", AIME_2024_CAPITALS)
    prepare("aime_2024", str(file), data_dir=str(tmp_path))
    assert pairs(math(str(tmp_path)).problems("aime_2024")) == [
        ("Find the value of $4^2$.", "16"),
        ("Find the value of $2^2$.", "4"),
    ]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("aime_2024", AIME_2024),
        ("amc_2023", AMC_2023),
        ("aime_2025", AIME_2025),
        ("gsm8k", GSM8K_TEST),
    ],
)
def test_a_file_may_be_jsonl_or_parquet(tmp_path, name, rows):
    write = {"jsonl": write_jsonl, "parquet": write_parquet}
    for kind in write:
        directory = tmp_path / kind
        file = write[kind](directory / f"test.{kind}", rows)
        prepare(name, str(file), data_dir=str(directory))
        assert pairs(math(str(directory)).problems(name)) == EXPECTED[name]


def message(**fields) -> dict:
    return {"prompt": [dapo_row("P?", "1", "i")["prompt"][0] | fields]}


RIGHT = {
    "dapo_math_17k": dapo_row("P?", "1", "i"),
    "math_500": MATH_500[0],
    "aime_2024": AIME_2024[0],
    "aime_2025": AIME_2025[0],
    "amc_2023": AMC_2023[0],
    "gsm8k": GSM8K_TEST[0],
}


@pytest.mark.parametrize(
    ("name", "row", "line"),
    [
        (
            "amc_2023",
            {"id": 0, "question": "Q?", "answer": 1.0, "url": "u"},
            "must have the fields id, problem, answer, url of amc_2023, got id, question, answer, "
            "url (those of math-ai/amc23, another set of the same name with 40 problems)",
        ),
        (
            "aime_2024",
            {"problem": "P?", "solution": "70"},
            "must have the fields id, problem, solution, answer, url, year or ID, Problem, "
            "Solution, Answer of aime_2024, got problem, solution",
        ),
        (
            "math_500",
            AIME_2025[0],
            "must have the fields problem, solution, answer, subject, level, unique_id of "
            "math_500, got problem, answer, id",
        ),
        (
            "gsm8k",
            AIME_2025[0],
            "must have the fields question, answer of gsm8k, got problem, answer, id",
        ),
        (
            "dapo_math_17k",
            AIME_2025[0],
            "must have the fields prompt, reward_model, extra_info of dapo_math_17k, "
            "got problem, answer, id",
        ),
    ],
)
def test_a_file_with_other_fields_is_refused_with_those_expected(tmp_path, capsys, name, row, line):
    file = write_jsonl(tmp_path / "test.jsonl", [row])
    assert main(["data", "prepare", name, "--source", str(file), "--data_dir", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", f"entropy-rl data prepare: {file}: {line}\n")


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("aime_2024", {"year": "2023"}, "'year': must be 2024, got '2023'"),
        ("aime_2025", {"year": 2024}, "'year': must be 2025, got 2024"),
        (
            "aime_2025",
            {"answer": "1000"},
            "the answer: must be an integer from 0 to 999, got '1000'",
        ),
        (
            "aime_2025",
            {"answer": "1/2"},
            "the answer: must be an integer from 0 to 999, got '1/2'",
        ),
        ("aime_2025", {"problem": " "}, "'problem': must be a non-empty text, got ' '"),
        ("amc_2023", {"answer": None}, "'answer': must be a number or a non-empty text, got None"),
        ("math_500", {"level": "Level 5"}, "'level': must be an integer, got 'Level 5'"),
        (
            "gsm8k",
            {"answer": "It is 4."},
            "'answer': must end with '#### ' and a number, got 'It is 4.'",
        ),
        (
            "gsm8k",
            {"answer": "#### four"},
            "'answer': must end with '#### ' and a number, got '#### four'",
        ),
        ("dapo_math_17k", {"prompt": "P?"}, "'prompt': must be a list of one message, got 'P?'"),
        ("dapo_math_17k", {"prompt": []}, "'prompt': must be a list of one message, got []"),
        (
            "dapo_math_17k",
            message(role="system"),
            "'prompt': must have the role 'user' and a text as content, got {'content': 'Solve the",
        ),
        (
            "dapo_math_17k",
            message(content="P?"),
            "'prompt': must be DAPO's instruction, a blank line, the problem, ",
        ),
        (
            "dapo_math_17k",
            message(content=f"{DAPO_BEFORE}{DAPO_AFTER}"),
            "'prompt': must be DAPO's instruction, a blank line, the problem, ",
        ),
        (
            "dapo_math_17k",
            message(content=f"{DAPO_BEFORE}P?"),
            "'prompt': must be DAPO's instruction, a blank line, the problem, ",
        ),
        (
            "dapo_math_17k",
            message(content=f"P?{DAPO_AFTER}"),
            "'prompt': must be DAPO's instruction, a blank line, the problem, ",
        ),
        (
            "dapo_math_17k",
            {"reward_model": {}},
            "'reward_model': must be an object with 'ground_truth', got {}",
        ),
        (
            "dapo_math_17k",
            {"extra_info": None},
            "'extra_info': must be an object with 'index', got None",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_row_is_refused_in_one_line_and_leaves_nothing(
    tmp_path, capsys, name, changes, line
):
    file = write_jsonl(tmp_path / "test.jsonl", [RIGHT[name], RIGHT[name] | changes])
    data = tmp_path / "data"
    assert main(["data", "prepare", name, "--source", str(file), "--data_dir", str(data)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"entropy-rl data prepare: {file}:2: {line}")
    assert err.count("\n") == 1 and len(err) < 500
    assert list(data.iterdir()) == []


def test_a_row_of_a_parquet_file_is_named_by_its_number(tmp_path):
    rows = [GSM8K_TEST[0], {"question": "Q?", "answer": "four"}]
    file = write_parquet(tmp_path / "test.parquet", rows)
    with pytest.raises(
        ValueError,
        match=f"^{file}: row 2: 'answer': must end with '#### ' and a number, got 'four'",
    ):
        prepare("gsm8k", str(file), data_dir=str(tmp_path))


def test_a_later_row_without_a_field_is_refused(tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [MATH_500[0], {"problem": "P?"}])
    with pytest.raises(
        ValueError, match=f"^{file}:2: must have the fields problem, .*, got none named 'level'"
    ):
        prepare("math_500", str(file), data_dir=str(tmp_path))


def test_the_other_schema_of_aime_2024_tells_its_year_too(tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [AIME_2024_CAPITALS[0] | {"ID": "2023-I-4"}])
    with pytest.raises(ValueError, match=f"^{file}:1: 'ID': must be 2024, got '2023'"):
        prepare("aime_2024", str(file), data_dir=str(tmp_path))


def test_a_set_of_contradictions_only_is_refused(tmp_path):
    file = write_dapo(tmp_path / "f.parquet", [dapo_row("P?", answer, "i") for answer in "12"])
    with pytest.raises(
        ValueError, match="must have a problem with one answer, got two different answers for every"
    ):
        prepare("dapo_math_17k", str(file), data_dir=str(tmp_path))


# --- what a task may name
# ----------------------------------------------------------------------------------


def test_a_set_of_the_users_own_is_named_like_a_published_one(tmp_path):
    file = write_jsonl(
        tmp_path / "f.jsonl", [{"q": f"Q{i}?", "a": i / 2, "x": 0} for i in range(30)]
    )
    prepare("mine", str(file), data_dir=str(tmp_path), problem_field="q", answer_field="a")
    assert (tmp_path / "user_maths" / "mine" / "1.0.0" / "dataset_info.json").is_file()
    task = math(str(tmp_path), train="mine", test="mine")
    assert pairs(task.problems("train")) == [(f"Q{i}?", f"{i / 2:g}") for i in range(30)]
    assert task.problems("test") == task.problems("train")


def test_a_file_and_a_prepared_set_give_the_same_problems(tmp_path):
    rows = [
        {"problem": f"Is {i} even?\n$\\frac{{{i}}}{{2}}$ ", "answer": str(i)} for i in (3, 1, 2, 1)
    ]
    file = write_parquet(tmp_path / "f.parquet", rows)
    prepare("mine", str(file), data_dir=str(tmp_path))
    task = math(str(tmp_path), train="mine", test=str(file))
    assert task.problems("train") == task.problems("test")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"train": "dapo_math_17k"},
            "task.args.train: must be a prepared set, got 'dapo_math_17k', which is not in {0}; "
            "`entropy-rl data prepare dapo_math_17k --data_dir {0}` prepares it",
        ),
        (
            {"test": "math500"},
            "task.args.test: must be a data file (JSONL, parquet or Arrow), a directory or a "
            "pattern of them, or one of the sets dapo_math_17k, math_500, aime_2024, aime_2025, "
            "amc_2023, gsm8k, got 'math500'; "
            "did you mean 'math_500'?",
        ),
        (
            {"test": "nowhere.jsonl"},
            "task.args.test: must be a data file (JSONL, parquet or Arrow), a directory or a ",
        ),
        (
            {"data_dir": "gs://bucket/x", "test": "math_500"},
            "data_dir: must be a directory on this machine, got 'gs://bucket/x'",
        ),
    ],
)
def test_a_name_that_cannot_be_read_is_one_line(tmp_path, arguments, line):
    with pytest.raises(ValueError) as error:
        math(**({"data_dir": str(tmp_path)} | arguments))
    assert says(str(error.value), line.format(tmp_path)) and "\n" not in str(error.value)


def test_a_split_that_is_no_set_is_refused_with_the_nearest_one(tmp_path):
    task = math(str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"^split: must be one of tra.*, got 'aime24' \(did you mean 'aime_20\d\d'\?\)",
    ):
        task.problems("aime24")
    with pytest.raises(
        ValueError, match=r"^split: must be a prepared set, got 'math_500', .* prepare math_500 --"
    ):
        task.problems("math_500")


def test_a_name_that_is_a_file_as_well_is_refused(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("math_500"), MATH_500)
    with pytest.raises(
        ValueError, match=r"got 'math_500', which is both; './math_500' is the file"
    ):
        math(data_dir, test="math_500")
    assert pairs(math(data_dir, test="./math_500").problems("test")) == EXPECTED["math_500"]


def test_a_set_without_the_split_that_is_wanted_is_not_replaced_by_another(tmp_path):
    file = write_jsonl(tmp_path / "test.jsonl", GSM8K_TEST)
    prepare("gsm8k", str(file), data_dir=str(tmp_path))
    assert pairs(math(str(tmp_path), test="gsm8k").problems("test")) == EXPECTED["gsm8k"]
    with pytest.raises(
        ValueError,
        match=r"must be a set with the split 'train', got 'gsm8k', which was",
    ):
        math(str(tmp_path), train="gsm8k")


def test_a_directory_that_somebody_else_wrote_is_no_prepared_set(tmp_path):
    directory = tmp_path / "math_500" / "1.0.0"
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text("{}")
    with pytest.raises(
        ValueError,
        match=r"/math_500/1.0.0: must be a set written by `entropy-rl data",
    ):
        math(str(tmp_path), test="math_500")
    assert sets.prepared_names(str(tmp_path)) == []


def test_rows_come_by_id_whatever_the_order_on_disk(tmp_path):
    class Shuffled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"id": np.int64, "problem": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                "train": (
                    (i, {"id": i, "problem": f"\N{GREEK SMALL LETTER PI}{i}"}) for i in range(50)
                )
            }

        _generate_examples = None

    builder = Shuffled(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    assert [row["id"] for row in builder.as_data_source("train")] != list(range(50))
    rows = sets.read_prepared(Path(builder.data_dir), "train")
    assert rows == [{"id": i, "problem": f"\N{GREEK SMALL LETTER PI}{i}"} for i in range(50)]


def test_tensorflow_is_never_imported(tmp_path, files):
    code = (
        "import sys\n"
        "from entropy_rl.cli.main import main\n"
        "from entropy_rl.tasks import load_task\n"
        f"assert main(['data', 'prepare', 'gsm8k', '--source', {str(files['gsm8k'])!r}]) == 0\n"
        "assert main(['data', 'overlap', 'gsm8k', 'gsm8k']) == 0\n"
        "assert len(load_task('math', {'test': 'gsm8k'}).problems('test')) == 1\n"
        "print([name for name in ('tensorflow', 'jax') if name in sys.modules])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"TFDS_DATA_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "[]"
    assert (
        json.loads((tmp_path / "gsm8k" / "1.0.0" / "metadata.json").read_text())["title"] == "GSM8K"
    )


# --- one writer
# ------------------------------------------------------------------------------------------------


def prepare_watched(directory, file, watch):
    """Prepare a set; `watch` is called when it has begun."""

    def call(sources):
        watch()
        return lambda split, rows: None

    return prepare("gsm8k", str(file), data_dir=str(directory), watch=call)


def test_a_second_process_that_prepares_a_set_is_refused(tmp_path):
    file = write_jsonl(tmp_path / "test.jsonl", GSM8K_TEST)
    directory = tmp_path / "sets"

    def second():
        with pytest.raises(ValueError) as error:
            prepare("gsm8k", str(file), data_dir=str(directory))
        assert str(error.value) == (
            f"{directory}/gsm8k/1.0.0: must have one writer, got a second process; process "
            f"{os.getpid()} on {socket.gethostname()} writes to it"
        )
        assert prepare("mine", str(user), data_dir=str(directory))  # another set

    user = write_jsonl(tmp_path / "f.jsonl", [{"problem": "p", "answer": "1"}])
    assert prepare_watched(directory, file, second)
    assert sorted(path.name for path in directory.iterdir()) == ["gsm8k", "user_maths"]
    assert not prepare("gsm8k", str(file), data_dir=str(directory))


def test_a_preparation_that_was_killed_or_failed_does_not_block(tmp_path):
    file = write_jsonl(tmp_path / "test.jsonl", GSM8K_TEST)
    directory = tmp_path / "sets"
    directory.mkdir()
    (directory / "gsm8k.lock").write_text(json.dumps({"pid": 1, "host": "another"}))

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_watched(directory, file, fail)
    assert prepare_watched(directory, file, lambda: None)
    assert [path.name for path in directory.iterdir()] == ["gsm8k"]


def test_a_set_that_another_process_has_built_meanwhile_is_not_built_again(tmp_path, monkeypatch):
    file = write_jsonl(tmp_path / "test.jsonl", GSM8K_TEST)
    other = write_jsonl(tmp_path / "test_other.jsonl", GSM8K_TEST[:1] * 2)
    one_writer, results = preparing.one_writer, []

    def after_another(*arguments):
        monkeypatch.undo()
        results.append(prepare("gsm8k", str(file), data_dir=str(tmp_path / "sets")))
        return one_writer(*arguments)

    monkeypatch.setattr(preparing, "one_writer", after_another)
    results.append(prepare("gsm8k", str(file), data_dir=str(tmp_path / "sets")))
    assert results == [True, False]
    shutil.rmtree(tmp_path / "sets")
    monkeypatch.setattr(preparing, "one_writer", after_another)
    with pytest.raises(ValueError, match="must have the source that it was prepared from"):
        prepare("gsm8k", str(other), data_dir=str(tmp_path / "sets"))
