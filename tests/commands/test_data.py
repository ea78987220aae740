"""The verbs `data prepare`, `data list` and `data show`: what they say, refuse and leave behind."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from math_files import (
    GSM8K_TEST,
    GSM8K_TRAIN,
    MATH_500,
    dapo_row,
    write_dapo,
    write_jsonl,
    write_parquet,
    write_published,
)

from entropy_rl.cli.main import main
from entropy_rl.tasks.math import catalog, sets
from entropy_rl.tasks.math.prepare import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a verb of `data` on a directory of the test's own; returns what it prints."""

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["data", *map(str, arguments), "--data_dir", str(tmp_path / "data")]) == code
        out, err = capsys.readouterr()
        if code == 0:
            assert err == ""
            return out
        assert (
            out == ""
            and err.count("\n") == 1
            and err.startswith(f"entropy-rl data {arguments[0]}: ")
        )
        return err.removeprefix(f"entropy-rl data {arguments[0]}: ").rstrip("\n")

    return run


@pytest.fixture
def math_500(tmp_path) -> Path:
    return write_jsonl(tmp_path / "test.jsonl", MATH_500)


def columns(out: str) -> dict[str, str]:
    """The lines of two columns, with what is broken into several put together."""
    entries, name = {}, None
    for line in out.splitlines():
        name = line[2:23].strip() or name
        if line.startswith("  "):
            entries[name] = f"{entries.get(name, '')} {line[24:]}".strip()
    return entries


def everything_in(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


# --- prepare: the log
# --------------------------------------------------------------------------------------


def test_the_log_tells_what_was_found(run, tmp_path):
    files = write_published(tmp_path)
    log = columns(run("prepare", "dapo_math_17k", "--source", files["dapo_math_17k"]))
    assert log["repository"] == "BytedTsinghua-SIA/DAPO-Math-17k, revision 65877096c24f"
    assert log["source"] == str(files["dapo_math_17k"])
    assert log["sha256"].endswith("not the published 534375d6bb86...")
    assert log["rows"] == "12; the published file has 1,791,700"
    assert log["kept"] == "4"
    assert log["duplicates"] == "5 rows repeat a problem, left out"
    assert log["contradictions"] == "1 with two different answers in 3 rows, left out"
    assert log["the first"] == "row 3 has '7', row 8 has '8': What is problem C?"
    assert log["source ids"] == "6 different ones"
    assert log["longest problem"] == "18 characters, id 0"
    assert log["directory"] == str(tmp_path / "data" / "dapo_math_17k" / "1.0.0")
    assert log["overlap"] == "not looked for: no set of the other role is prepared"


def test_a_file_like_the_published_one_is_said_to_be_that(run, math_500, monkeypatch):
    published = sets.PUBLISHED["math_500"]
    sum_ = "b42afe9cb2ae9fbd50f7d1ef2bd22d90e1d42bc3f5d12f3e1e1ac0a3d1b4f2ce"
    file = catalog.SourceFile("test", "test.jsonl", rows=2, sha256=sum_)
    monkeypatch.setitem(sets.PUBLISHED, "math_500", dataclasses.replace(published, files=(file,)))
    monkeypatch.setattr("entropy_rl.tasks.math.prepare._sha256", lambda path: sum_)
    log = columns(run("prepare", "math_500", "--source", math_500))
    assert log["sha256"] == "b42afe9cb2ae..., as published"
    assert log["rows"] == "2, as published"


def test_the_log_tells_the_overlap_with_prepared_sets_of_the_other_role(run, tmp_path):
    long = " ".join(f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    rows = [
        MATH_500[0] | {"problem": text}
        for text in (long, f"{long[:-5]} end", "Short one?", "Not there.")
    ]
    run("prepare", "math_500", "--source", write_jsonl(tmp_path / "m.jsonl", rows))
    questions = [
        {"question": "A train?", "answer": "#### 1"},
        {"question": "SHORT one", "answer": "#### 1"},
    ]
    run("prepare", "gsm8k", "--source", write_jsonl(tmp_path / "test.jsonl", questions))
    own = write_jsonl(tmp_path / "own.jsonl", [{"problem": "short one", "answer": 1}])
    log = columns(run("prepare", "own", "--source", own))
    # A set of one's own may be for either: it is compared as a training set and as a test set.
    assert log["overlap"] == (
        "of 4 problems of math_500, own has 1; 1 by half of their 13-grams, 1 by any "
        "of 2 problems of gsm8k, own has 1; 1 by half of their 13-grams, 1 by any"
    )
    dapo = write_dapo(
        tmp_path / "d.parquet", [dapo_row(f"And {long}!", "1", "i"), dapo_row("Q?", "1", "i")]
    )
    log = columns(run("prepare", "dapo_math_17k", "--source", dapo))
    assert log["overlap"] == (
        "of 4 problems of math_500, dapo_math_17k has 0; 2 by half of their 13-grams, 2 by any "
        "of 2 problems of gsm8k, dapo_math_17k has 0; 0 by half of their 13-grams, 0 by any "
        "of 1 problems of own, dapo_math_17k has 0; 0 by half of their 13-grams, 0 by any"
    )


def test_every_line_fits_into_80_columns(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, source in write_published(Path(".")).items():
        outputs = [run("prepare", name, "--source", source), run("show", name), run("list")]
        for line in "".join(outputs).splitlines():
            assert len(line) <= 80 or str(tmp_path) in line, line


# --- prepare: again, and otherwise
# -------------------------------------------------------------------------


def test_the_same_source_again_changes_nothing_and_says_so(run, tmp_path, math_500):
    first = run("prepare", "math_500", "--source", math_500)
    before = everything_in(tmp_path / "data")
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(math_500.read_bytes())
    for arguments in ([], ["--source", math_500], ["--source", copy]):
        out = run("prepare", "math_500", *arguments)
        assert out.startswith(f"math_500 is already prepared from {math_500}\n")
        assert columns(out) == {
            name: text for name, text in columns(first).items() if name != "overlap"
        }
    assert everything_in(tmp_path / "data") == before


def test_another_source_for_a_prepared_name_is_refused_unless_it_may_overwrite(
    run, tmp_path, math_500
):
    run("prepare", "math_500", "--source", math_500)
    before = everything_in(tmp_path / "data")
    other = write_jsonl(tmp_path / "other.jsonl", MATH_500[1:])
    line = run("prepare", "math_500", "--source", other, code=2)
    assert line == (
        f"math_500: must have the source that it was prepared from, {math_500}, got another one; "
        "--overwrite true replaces it"
    )
    assert everything_in(tmp_path / "data") == before
    log = columns(run("prepare", "math_500", "--source", other, "--overwrite", "true"))
    assert (log["source"], log["kept"]) == (str(other), "1")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["math_500"]


def test_other_fields_of_the_same_file_are_another_source(run, tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [{"problem": "P?", "question": "Q?", "answer": 1}])
    run("prepare", "mine", "--source", file)
    assert "was prepared from" in run(
        "prepare", "mine", "--source", file, "--problem_field", "question", code=2
    )


def test_a_replacement_that_fails_leaves_the_old_set(run, tmp_path, math_500):
    run("prepare", "math_500", "--source", math_500)
    before = everything_in(tmp_path / "data")
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [*MATH_500, MATH_500[0] | {"level": "5"}])
    line = run("prepare", "math_500", "--source", wrong, "--overwrite", "true", code=2)
    assert line.startswith(f"{wrong}:3: 'level': must be an integer, got '5'")
    assert everything_in(tmp_path / "data") == before


def test_an_interruption_between_the_old_set_and_the_new_one_loses_neither(
    run, tmp_path, math_500, monkeypatch
):
    run("prepare", "math_500", "--source", math_500)
    before = everything_in(tmp_path / "data")
    other = write_jsonl(tmp_path / "other.jsonl", MATH_500[1:])
    rename = Path.rename

    def interrupted(path, target):
        if path.parent.parent.name == "incomplete.math_500":  # the new set
            raise KeyboardInterrupt
        return rename(path, target)

    again = ("prepare", "math_500", "--source", other, "--overwrite", "true")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        run(*again, code=130)
    assert everything_in(tmp_path / "data") == before
    # As a process leaves it that is killed there:
    aside = tmp_path / "data" / "incomplete.math_500"
    aside.mkdir()
    (tmp_path / "data" / "math_500" / "1.0.0").rename(aside / "replaced")
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [MATH_500[0] | {"level": "5"}])
    run("prepare", "math_500", "--source", wrong, "--overwrite", "true", code=2)
    assert everything_in(tmp_path / "data") == before
    assert columns(run(*again))["kept"] == "1"


@pytest.mark.parametrize("moment", ["_generate_examples", "_collect"], ids=["writing", "reading"])
def test_a_killed_preparation_leaves_nothing_that_looks_prepared(run, tmp_path, math_500, moment):
    code = (
        "import os, signal\n"
        "from entropy_rl.cli.main import main\n"
        "from entropy_rl.tasks.math import builders\n"
        "def die(self, given):\n"
        f"    if {moment == '_generate_examples'}:\n"
        "        yield 0, {'id': 0} | given[0]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"builders.MathBuilder.{moment} = lambda self, given: list(die(self, given))\n"
        f"main(['data', 'prepare', 'math_500', '--source', {str(math_500)!r}, '--data_dir', "
        f"{str(tmp_path / 'data')!r}])\n"
    )
    died = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert died.returncode == -signal.SIGKILL
    assert "must be a prepared set" in run("show", "math_500", code=2)
    assert "math_500      eval   500          not prepared" in run("list")
    assert columns(run("prepare", "math_500", "--source", math_500))["kept"] == "2"
    assert "right answer '70'" in run("show", "math_500")


def test_a_full_disk_is_one_line_and_leaves_nothing(run, tmp_path, math_500, monkeypatch):
    def fail(self):
        raise RuntimeError(
            'Failed to write split "test": No space left on device; writing x; at byte 0'
        )

    monkeypatch.setattr("tensorflow_datasets.core.GeneratorBasedBuilder.download_and_prepare", fail)
    assert run("prepare", "math_500", "--source", math_500, code=1) == (
        f'{tmp_path / "data/math_500/1.0.0"}: cannot be written: Failed to write split "test": No '
        "space left "
        "on device"
    )
    assert list((tmp_path / "data").iterdir()) == []


def test_a_foreign_directory_is_not_replaced_without_being_asked(run, tmp_path, math_500):
    directory = tmp_path / "data" / "math_500" / "1.0.0"
    directory.mkdir(parents=True)
    (directory / "thesis.txt").write_text("x")
    line = run("prepare", "math_500", "--source", math_500, code=2)
    assert line.startswith(f"{directory}: must be a prepared set or not exist, got ")
    assert (directory / "thesis.txt").is_file()


# --- prepare: names and sources
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "the command line: missing: name"),
        (
            ["math500"],
            "name: must be one of dapo_math_17k, math_500, aime_2024, aime_2025, amc_2023, "
            "gsm8k, any other name with --source FILE, got 'math500' (did you mean 'math_500'?)",
        ),
        (
            ["math_500", "--source", "nowhere"],
            "source: must be a JSONL or parquet file, got 'nowhere'",
        ),
        (
            ["math_500", "--source", "."],
            "source: must be a directory with test.jsonl, got '.', which lacks a file",
        ),
        (
            ["mine", "--source", "."],
            "source: must be a directory with files .jsonl, .parquet or .arrow, or one of ",
        ),
        (
            ["mine", "--source", "nowhere"],
            "source: must be a data file (JSONL, parquet or Arrow), or a directory or a pattern",
        ),
        (
            ["../mine", "--source", "f"],
            "name: must be one of dapo_math_17k, math_500, ",
        ),
        (["test", "--source", "f"], "name: must be one of dapo_math_17k"),
        (["a b", "--source", "f"], "name: must be one of dapo_math_17k"),
        (
            ["math_500", "--problem_field", "q"],
            "problem_field: must be null for math_500, which defines its fields, got 'q'",
        ),
        (
            ["gsm8k", "--source", "f"],
            "source: must be a file whose name begins with train or test, or the directory",
        ),
        (
            ["mine", "--source", "f", "--answer_field", "a"],
            "f:1: answer_field: must be one of 'problem', 'answer', got 'a'",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_name_or_source_is_one_line_and_writes_nothing(
    run, tmp_path, monkeypatch, arguments, line
):
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("f"), [{"problem": "P?", "answer": 1}])
    assert run("prepare", *arguments, code=2).startswith(line)
    assert not (tmp_path / "data").exists() or list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("folder", ["", "main"])
def test_both_files_of_gsm8k_may_be_given_as_their_directory(run, tmp_path, folder):
    for split, rows in (("train", GSM8K_TRAIN), ("test", GSM8K_TEST)):
        write_parquet(tmp_path / "gsm8k" / folder / f"{split}-00000-of-00001.parquet", rows)
    log = columns(run("prepare", "gsm8k", "--source", tmp_path / "gsm8k"))
    assert (log["train kept"], log["test kept"]) == ("2", "1")
    # Its two splits are a training and a test set, too.
    assert (
        log["overlap"]
        == "of 1 problems of gsm8k, gsm8k has 0; 0 by half of their 13-grams, 0 by any"
    )


def test_a_directory_with_one_of_two_files_is_refused(run, tmp_path):
    write_parquet(tmp_path / "gsm8k" / "test-00000-of-00001.parquet", GSM8K_TEST)
    line = run("prepare", "gsm8k", "--source", tmp_path / "gsm8k", code=2)
    assert line.startswith(
        "source: must be a directory with main/train-00000-of-00001.parquet and "
        "main/test-00000-of-00001.parquet, got "
    )


# --- prepare: the hub
# --------------------------------------------------------------------------------------


def test_without_a_source_a_published_set_is_fetched_at_its_pinned_revision(
    run, math_500, monkeypatch
):
    asked = []

    def download(**arguments) -> str:
        asked.append(arguments)
        return str(math_500)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert columns(run("prepare", "math_500"))["source"] == str(math_500)
    assert asked == [
        {
            "repo_id": "HuggingFaceH4/MATH-500",
            "filename": "test.jsonl",
            "repo_type": "dataset",
            "revision": "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            "local_files_only": True,  # what is in the cache needs no network
        }
    ]
    run("prepare", "math_500")
    assert len(asked) == 1  # what is prepared is not fetched again


def test_what_is_not_in_the_cache_is_downloaded(run, math_500, monkeypatch):
    asked = []

    def download(local_files_only: bool = False, **arguments) -> str:
        asked.append(local_files_only)
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        return str(math_500)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        huggingface_hub, "get_hf_file_metadata", lambda url, timeout: asked.append(url)
    )
    run("prepare", "math_500")
    assert asked == [
        True,
        sets.PUBLISHED["math_500"].address(sets.PUBLISHED["math_500"].files[0]),
        False,
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "math_500",
            "math_500: cannot download test.jsonl of HuggingFaceH4/MATH-500 (no route); download "
            "https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/"
            "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be/test.jsonl on another machine, then add "
            "--source FILE",
        ),
        (
            "gsm8k",
            "gsm8k: cannot download main/train-00000-of-00001.parquet of openai/gsm8k (no route); "
            "download https://huggingface.co/datasets/openai/gsm8k/resolve/"
            "740312add88f781978c0658806c59bc2815b9866/main/train-00000-of-00001.parquet and "
            "https://huggingface.co/datasets/openai/gsm8k/resolve/"
            "740312add88f781978c0658806c59bc2815b9866/main/test-00000-of-00001.parquet on another "
            "machine, "
            "then add --source DIRECTORY",
        ),
    ],
)
def test_where_the_hub_cannot_be_reached_one_line_says_how_to_do_without(
    run, monkeypatch, name, line
):
    def no_cache(local_files_only: bool = False, **arguments):
        assert local_files_only, "the download is not tried: it would go on for half a minute"
        raise LocalEntryNotFoundError("not in the cache")

    def no_route(url, timeout):
        raise ConnectionError("no route\nand more lines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_cache)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_route)
    assert run("prepare", name, code=2) == line


def test_the_hub_is_not_asked_if_the_user_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "test.jsonl of HuggingFaceH4/MATH-500 (HF_HUB_OFFLINE is set); download " in run(
        "prepare", "math_500", code=2
    )


def test_a_long_file_tells_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("entropy_rl.commands.data._LONG", 5)
    file = write_jsonl(tmp_path / "f.jsonl", [MATH_500[0]] * 9)
    assert (
        main(["data", "prepare", "math_500", "--source", str(file), "--data_dir", str(tmp_path)])
        == 0
    )
    out, err = capsys.readouterr()
    assert err.strip() == "reading rows 9/9"
    assert columns(out)["duplicates"] == "8 rows repeat a problem, kept all the same"


# --- list and show
# -----------------------------------------------------------------------------------------


def test_the_list_has_published_sets_and_those_of_the_user(run, tmp_path):
    assert run("list").splitlines()[:3] == [
        "name          role   published    prepared      source",
        "dapo_math_17k train  1,791,700    not prepared  BytedTsinghua-SIA/DAPO-Math-17k",
        "math_500      eval   500          not prepared  HuggingFaceH4/MATH-500",
    ]
    row = {"problem": "P?", "answer": 1}
    run("prepare", "zz", "--source", write_jsonl(tmp_path / "f.jsonl", [row] * 1200))
    run("prepare", "my-own.set", "--source", write_jsonl(tmp_path / "g.jsonl", [row]))
    run("prepare", "gsm8k", "--source", write_published(tmp_path)["gsm8k"])
    assert run("list").splitlines()[6:] == [
        "gsm8k         both   7,473+1,319  2+1           openai/gsm8k",
        "my-own.set    both   own          1             g.jsonl",
        "zz            both   own          1,200         f.jsonl",
        f"prepared sets: {tmp_path / 'data'}",
    ]


def test_a_set_is_shown_with_what_is_known_and_its_first_problems(run, tmp_path, math_500):
    run("prepare", "math_500", "--source", math_500)
    out = run("show", "math_500", "--count", "1")
    assert out.startswith(
        "math_500: MATH-500\n  repository            HuggingFaceH4/MATH-500, revision 6e4ed1"
    )
    assert out.endswith("\n\n== math_500 test 0, right answer '70'\nCompute\n$\\dbinom{8}{4}$.\n")
    assert "== math_500 test 1" in run("show", "math_500")
    assert "==" not in run("show", "math_500", "--count", "0")


def test_a_file_is_shown_as_it_is(run, tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [{"q": "word " * 40, "a": 0.5}])
    out = run("show", file, "--problem_field", "q", "--answer_field", "a")
    lines = out.splitlines()
    assert lines[:3] == [f"{file}: 1 problems", "", f"== {file} 0, right answer '0.5'"]
    assert len(lines) == 6 and max(map(len, lines[3:])) <= 80
    assert run("show", file, code=2).startswith(
        f"{file}:1: problem_field: must be one of 'q', 'a', got null, for which none of problem, "
    )


def test_both_splits_of_gsm8k_are_shown(run, tmp_path):
    run("prepare", "gsm8k", "--source", write_published(tmp_path)["gsm8k"])
    titles = [line for line in run("show", "gsm8k").splitlines() if line.startswith("==")]
    assert titles == [
        "== gsm8k train 0, right answer '72'",
        "== gsm8k train 1, right answer '10000'",
        "== gsm8k test 0, right answer '-4'",
    ]


def test_of_gsm8k_what_is_prepared_is_shown(run, tmp_path):
    run(
        "prepare",
        "gsm8k",
        "--source",
        write_published(tmp_path)["gsm8k"] / "main" / "train-00000-of-00001.parquet",
    )
    titles = [line for line in run("show", "gsm8k").splitlines() if line.startswith("==")]
    assert [title.split(",")[0] for title in titles] == ["== gsm8k train 0", "== gsm8k train 1"]


@pytest.mark.parametrize("verb", ["prepare", "list", "show", "overlap"])
def test_every_verb_has_a_help_that_names_its_settings(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main(["data", verb, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "--data_dir TEXT" in out and "~/tensorflow_datasets" in out


def test_the_place_of_tfds_is_the_default(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    file = write_jsonl(tmp_path / "f.jsonl", MATH_500)
    assert prepare("math_500", str(file))
    assert (
        json.loads((tmp_path / "tfds/math_500/1.0.0/metadata.json").read_text())["title"]
        == "MATH-500"
    )
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["data", "list"]) == 0
    assert f"prepared sets: {tmp_path}/tensorflow_datasets" in capsys.readouterr().out


# --- what is damaged
# ---------------------------------------------------------------------------------------


def verb(capsys, *arguments):
    code = main(["data", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_a_damaged_set_is_named_and_hinders_no_other(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "What is 1 + 1?", "answer": 2}\n')
    where = ("--source", rows, "--data_dir", tmp_path / "sets")
    assert verb(capsys, "prepare", "broken", *where)[0] == 0
    (record,) = (tmp_path / "sets").rglob("*.array_record*")
    record.write_bytes(record.read_bytes()[:1000])
    code, _, err = verb(capsys, "show", "broken", "--data_dir", tmp_path / "sets")
    assert code == 2 and err.count("\n") == 1
    assert (
        "must be a readable prepared set, got an error (" in err
        and "prepare it again with --overwrite true" in err
    )
    code, out, err = verb(capsys, "prepare", "other", *where)
    assert (code, err) == (0, "") and "not looked for in broken: " in " ".join(out.split())
    assert verb(capsys, "prepare", "broken", *where, "--overwrite", "true")[0] == 0
    assert "What is 1 + 1?" in verb(capsys, "show", "broken", "--data_dir", tmp_path / "sets")[1]


def test_sigterm_ends_a_preparation_with_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "a", "answer": 2}\n')
    prepared = "entropy_rl.tasks.math.builders.MathBuilder._collect"
    monkeypatch.setattr(prepared, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    code, out, err = verb(
        capsys, "prepare", "mine", "--source", rows, "--data_dir", tmp_path / "sets"
    )
    assert (code, out) == (143, "")
    assert err == "entropy-rl data prepare: stopped; nothing was written\n"
    assert not [path for path in (tmp_path / "sets").rglob("*") if path.is_file()]


def test_half_a_character_is_named_with_its_line(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "a", "answer": 2}\n{"problem": "b\\ud800", "answer": 2}\n')
    for arguments in (
        ("show", rows),
        ("prepare", "mine", "--source", rows, "--data_dir", tmp_path / "sets"),
    ):
        code, _, err = verb(capsys, *arguments)
        assert (
            code == 2
            and f"{rows}:2: 'problem': must be Unicode text, got the lone surrogate '\\ud800'"
            in err
        )


def test_a_data_dir_that_cannot_be_one_is_named(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "a", "answer": 2}\n')
    for directory in (rows, "/proc/none"):
        code, _, err = verb(capsys, "prepare", "mine", "--source", rows, "--data_dir", directory)
        assert code == 2 and err.startswith("entropy-rl data prepare: data_dir: must be ")
        assert f"'{directory}'" in err
