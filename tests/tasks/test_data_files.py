"""Data files: formats, compression, several files, directories, and what is refused."""

import bz2
import gzip
import json
import lzma
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from math_files import write_jsonl, write_parquet

from entropy_rl.tasks.data_files.files import count_rows, field_names, find_data_files, read_rows
from entropy_rl.tasks.math import Math

ROWS = [{"problem": f"P{i}?", "answer": i} for i in range(5)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


COMPRESS = {"gz": gzip.compress, "zst": zstd, "bz2": bz2.compress, "xz": lzma.compress}


def write_arrow(path: Path, rows: list[dict], kind: str = "stream", batch: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def save_to_disk(directory: Path, rows: list[dict], shards: int = 1) -> Path:
    """Writes the layout of `datasets.Dataset.save_to_disk`."""
    names = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    size = -(-len(rows) // shards)
    for i, name in enumerate(names):
        write_arrow(directory / name, rows[i * size : (i + 1) * size])
    (directory / "state.json").write_text(
        json.dumps(
            {
                "_data_files": [{"filename": name} for name in names],
                "_fingerprint": "0",
                "_format_columns": None,
                "_split": None,
            }
        )
    )
    (directory / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return directory


def problems(source, split: str = "test") -> list[str]:
    return [problem.answer for problem in Math(**{split: source}).problems(split)]


ALL = ["0", "1", "2", "3", "4"]


# --- formats
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["data.jsonl.{}", "data"])
def test_compressed_jsonl_is_read_by_its_content(tmp_path, suffix, name):
    file = tmp_path / name.format(suffix)
    file.write_bytes(COMPRESS[suffix](JSONL))
    assert problems(str(file)) == ALL
    assert count_rows(file) == 5 and field_names(file) == ["problem", "answer"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_several_compressed_members_are_one_file(tmp_path, suffix):
    file = tmp_path / f"data.jsonl.{suffix}"
    half = JSONL.index(b'{"problem": "P2?"')
    file.write_bytes(b"".join(COMPRESS[suffix](part) for part in (JSONL[:half], JSONL[half:])))
    assert problems(str(file)) == ALL


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_that_is_cut_off_is_one_line(tmp_path, suffix):
    rows = "".join(json.dumps({"problem": f"{i * i}", "answer": i}) + "\n" for i in range(20_000))
    content = COMPRESS[suffix](rows.encode())
    file = tmp_path / f"data.jsonl.{suffix}"
    file.write_bytes(content[: len(content) // 2])
    names = {"gz": "gzip", "zst": "zstd", "bz2": "bzip2", "xz": "xz"}
    with pytest.raises(
        ValueError,
        match=rf"^{file}: must be a complete {names[suffix]} file, got an error after line \d+ \(",
    ) as error:
        problems(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_an_invalid_line_of_a_compressed_file_is_named(tmp_path, suffix):
    file = tmp_path / f"data.jsonl.{suffix}"
    file.write_bytes(COMPRESS[suffix](JSONL + b"{\n"))
    with pytest.raises(ValueError, match=rf"^{file}:6: must be one JSON object per line"):
        problems(str(file))


ROW = '{"problem": "a", "answer": "2"}'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f"[\n{ROW}\n]\n", "1: must be one JSON object per line, got a JSON array; `jq -c '.[]'` "),
        (f"[{ROW}]", "1: must be one JSON object per line, got a JSON array; `jq -c '.[]'` "),
        ('{\n "problem": "a"\n}\n', "1: must be one JSON object per line, got an object over sev"),
        (
            "problem,answer\na,2\n",
            "1: must be one JSON object per line, got what looks like CSV; ",
        ),
        (
            '"problem","answer"\n',
            "1: must be one JSON object per line, got what looks like CSV; ",
        ),
        (
            "problem\tanswer\n",
            "1: must be one JSON object per line, got what looks like TSV; ",
        ),
        (
            f"{ROW}\r{ROW}\r",
            "1: must be one JSON object per line, got lines that end in CR alone; ",
        ),
        (f"{ROW}\n".encode("utf-16"), "1: must be UTF-8 text, got UTF-16; `iconv -f UTF-16 "),
        (
            f"{ROW}\n".encode("utf-16-le"),
            "1: must be one JSON object per line, got UTF-16; `iconv ",
        ),
        (f"{ROW}\nnone, a\n", "2: must be one JSON object per line, got invalid JSON (Expecting"),
        (
            f'{ROW}\n{{"problem": "a", "answer": "2", "answer": "3"}}\n',
            "2: must be a JSON object with each key once, got 'answer' twice",
        ),
        (
            '{"extra_info": {"a": 1, "a": 2}, "problem": "a", "answer": "2"}\n',
            "1: must be a JSON object with each key once, got 'a' twice",
        ),
    ],
)
def test_what_is_no_jsonl_is_named_with_what_converts_it(tmp_path, content, line):
    file = tmp_path / "data.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        problems(str(file))
    assert str(error.value).startswith(f"{file}:{line}") and "\n" not in str(error.value)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_may_end_as_on_windows_and_begin_with_a_byte_order_mark(tmp_path, end):
    file = tmp_path / "data.jsonl"
    file.write_bytes(f"\ufeff{ROW}{end}{ROW}{end}".encode())
    assert len(problems(str(file))) == 2


def test_what_is_compressed_must_be_jsonl(tmp_path):
    file = tmp_path / "data.parquet.gz"
    file.write_bytes(gzip.compress(write_parquet(tmp_path / "f", ROWS).read_bytes()))
    with pytest.raises(ValueError, match=r"must be JSONL where it is compressed, got parquet$"):
        problems(str(file))
    zip_ = tmp_path / "data.zip"
    zip_.write_bytes(b"PK\x03\x04rest")
    with pytest.raises(ValueError, match=r"must be JSONL, parquet or Arrow, got a zip archive; un"):
        problems(str(zip_))


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_both_arrow_formats_are_read(tmp_path, kind):
    file = write_arrow(tmp_path / "data.arrow", ROWS, kind)
    assert problems(str(file)) == ALL
    assert count_rows(file) == 5 and field_names(file) == ["problem", "answer"]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_row_of_an_arrow_file_is_named_by_its_number(tmp_path, kind):
    file = write_arrow(tmp_path / "d.arrow", [*ROWS, {"problem": " ", "answer": 1}], kind)
    with pytest.raises(ValueError, match=rf"^{file}: row 6: 'problem': must be a non-empty text"):
        problems(str(file))


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_broken_arrow_file_is_one_line(tmp_path, kind):
    rows = [{"problem": f"P{i}?" * 50, "answer": i} for i in range(500)]
    file = write_arrow(tmp_path / "data.arrow", rows, kind, batch=100)
    file.write_bytes(file.read_bytes()[:-9000])
    with pytest.raises(ValueError, match=rf"^{file}: must be a complete Arrow {kind}, got ") as e:
        problems(str(file))
    assert "\n" not in str(e.value)


def test_the_suffix_of_an_arrow_file_must_be_true(tmp_path):
    file = write_jsonl(tmp_path / "data.arrow", ROWS)
    with pytest.raises(ValueError, match="must be an arrow file, as its name says, got other con"):
        problems(str(file))


@pytest.mark.parametrize("name", ["data.parquet", "data.arrow", "data.jsonl.zst"])
def test_without_pyarrow_one_line_says_how_to_install_it(tmp_path, monkeypatch, name):
    file = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(file, ROWS)
    elif name.endswith("arrow"):
        write_arrow(file, ROWS)
    else:
        file.write_bytes(zstd(JSONL))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=rf"^{file}: must be read with pyarrow") as error:
        problems(str(file))
    assert "`pip install pyarrow`" in str(error.value) and "\n" not in str(error.value)


# --- several files
# ------------------------------------------------------------------------------------------


def write_shards(directory: Path, count: int = 5, name: str = "part-{}.jsonl") -> Path:
    for i in range(count):
        write_jsonl(directory / name.format(i), ROWS[i : i + 1])
    return directory


def test_a_directory_a_pattern_and_a_list_are_read_in_order(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "shards")
    paths = [str(shards / f"part-{i}.jsonl") for i in range(5)]
    for source in (
        str(shards),
        f"{shards}/",
        f"{shards}/*.jsonl",
        f"{tmp_path}/**/*.jsonl",
        f"{shards}/part-[0-4].jsonl",
        paths,
        [paths[0], f"{shards}/part-[1-4].jsonl"],
    ):
        assert problems(source) == ALL
    assert problems(paths[::-1]) == ALL[::-1]
    monkeypatch.chdir(tmp_path)
    assert problems("shards") == problems("shards/*") == ALL


def test_shards_of_unpadded_numbers_are_in_the_order_of_the_numbers(tmp_path):
    for i in range(11):
        write_jsonl(tmp_path / f"part-{i}.jsonl", [{"problem": "P?", "answer": i}])
    assert problems(str(tmp_path)) == [str(i) for i in range(11)]


def test_ids_count_the_rows_of_all_files(tmp_path):
    shards = write_shards(tmp_path)
    assert [p.id for p in Math(test=str(shards)).problems("test")] == [0, 1, 2, 3, 4]


def test_an_invalid_row_is_named_with_its_own_file(tmp_path):
    write_shards(tmp_path)
    bad = write_jsonl(tmp_path / "part-3.jsonl", [ROWS[3], {"problem": "P?"}])
    with pytest.raises(ValueError, match=rf"^{bad}:2: answer_field: must be one of 'problem', got"):
        problems(str(tmp_path))


@pytest.mark.parametrize("folder", ["", "data"])
def test_a_directory_in_the_layout_of_the_hub_gives_each_setting_its_split(tmp_path, folder):
    for split, answers in (("train", "012"), ("test", "3"), ("validation", "4")):
        for i, answer in enumerate(answers):
            name = f"{split}-{i:05}-of-{len(answers):05}.parquet"
            write_parquet(tmp_path / folder / name, [{"problem": "P?", "answer": answer}])
    task = Math(train=str(tmp_path), validation=str(tmp_path), test=str(tmp_path))
    found = {
        split: [p.answer for p in task.problems(split)] for split in ("train", "validation", "test")
    }
    assert found == {"train": ["0", "1", "2"], "validation": ["4"], "test": ["3"]}


def test_a_directory_with_one_split_serves_for_every_setting(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", ROWS)
    assert problems(str(tmp_path), "test") == problems(str(tmp_path), "train") == ALL


@pytest.mark.parametrize("shards", [1, 2])
def test_a_directory_of_save_to_disk_is_read(tmp_path, shards):
    directory = save_to_disk(tmp_path / "saved", ROWS, shards)
    assert problems(str(directory)) == ALL


def test_a_dataset_dict_gives_each_setting_its_split(tmp_path):
    save_to_disk(tmp_path / "train", ROWS[:3], 2)
    save_to_disk(tmp_path / "test", ROWS[3:])
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    task = Math(train=str(tmp_path), validation=str(tmp_path), test=str(tmp_path))
    assert [p.answer for p in task.problems("train")] == ["0", "1", "2"]
    assert [p.answer for p in task.problems("test")] == ["3", "4"]
    assert task.problems("validation") == task.problems("test")
    assert list(find_data_files("w", str(tmp_path), None)) == ["train", "test"]


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_shards(tmp_path / "shards")
    file = write_jsonl(tmp_path / "f.jsonl", ROWS)
    for source in ("~/f.jsonl", "~/shards", "~/shards/*.jsonl", ["~/f.jsonl"]):
        assert problems(source) == ALL
    assert find_data_files("w", "~/f.jsonl", "test") == {"": (file,)}


@pytest.mark.parametrize(
    ("files", "given", "line"),
    [
        ([], "{}", "must be a directory with files .jsonl, .parquet or .arrow, or one of save_to"),
        (["README.md", "x.json"], "{}", "must be a directory with files .jsonl, .parquet or .arr"),
        (["a.jsonl", "b.parquet"], "{}", "must be a directory with files of one format, got"),
        (["train.jsonl", "other.jsonl"], "{}", "must be a directory whose files all begin with t"),
        (["train.jsonl", "extra-train.jsonl"], "{}", "must be a directory whose files all begin "),
        (["train-00001-of-00003.jsonl"], "{}", "must have all 3 shards of 'train', got none with"),
        (["train.jsonl", "dev.jsonl"], "{}", ""),
        (["a.jsonl"], "{}/*.parquet", "must match at least one file, got"),
        (["a.jsonl"], "{}/b*", "must match at least one file, got"),
        (["a.jsonl"], [], "must be a list of at least one file, got []"),
        (["a.jsonl"], ["{}/a.jsonl", "{}/*"], "must name each file once, got"),
    ],
)
def test_a_source_that_is_not_clear_is_refused_in_one_line(tmp_path, files, given, line):
    for name in files:
        write_jsonl(tmp_path / name, ROWS)
    filled = (
        [x.format(tmp_path) for x in given] if isinstance(given, list) else given.format(tmp_path)
    )
    if not line:  # of train and dev, `test` takes dev
        assert problems(filled) == ALL
        return
    with pytest.raises(ValueError) as error:
        problems(filled)
    assert str(error.value).startswith(f"task.args.test: {line}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        (["train_gen-00000-of-00001", "train_sft-00000-of-00001"], "train_gen-*"),
        (["train-00000-of-00002-a1b2", "train-00001-of-00002-c3d4", "train_sft"], "train-*"),
        (["train.en", "train.de"], "train.de.*"),
        (["train1", "train2", "train_b3"], "train1*"),
    ],
)
def test_several_sets_of_a_split_are_refused(tmp_path, files, pattern):
    for name in (*files, "test-1", "test-2"):
        write_jsonl(tmp_path / f"{name}.jsonl", ROWS)
    with pytest.raises(ValueError) as error:
        find_data_files("w", str(tmp_path), "train")
    line = str(error.value)
    assert line.startswith("w: must be a directory with one data set for each split, got '")
    assert line.endswith(f"; name the files by a pattern such as '{tmp_path}/{pattern}'")
    assert find_data_files("w", f"{tmp_path}/{pattern}", "train")[""]
    # Parts of one set are one split, and other splits do not matter.
    assert len(find_data_files("w", str(tmp_path), "test")["test"]) == 2


@pytest.mark.parametrize("item", ["no/such.jsonl", "math_500", 3, None, ["a.jsonl"], "x\0"])
def test_an_item_of_a_list_that_is_no_file_is_named(tmp_path, item):
    file = str(write_jsonl(tmp_path / "a.jsonl", ROWS))
    with pytest.raises(ValueError, match=r"^task.args.test\[1\]: must be a file, a directory or a"):
        problems([file, item])


def test_a_directory_without_the_split_of_the_setting_is_refused(tmp_path):
    for split in ("validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"^task.args.train: must be a directory with the split '"):
        problems(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("{", "state.json: must be JSON with '_data_files', got"),
        ("{}", "state.json: must be JSON with '_data_files', got"),
        ('{"_data_files": 1}', "state.json: must have a list as '_data_files', got 1"),
        ('{"_data_files": []}', "state.json: must name the data files, got"),
        ('{"_data_files": [{"filename": "x.arrow"}]}', "must have the file 'x.arrow' of its st"),
    ],
)
def test_a_damaged_directory_of_save_to_disk_is_one_line(tmp_path, state, line):
    save_to_disk(tmp_path, ROWS)
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ValueError) as error:
        problems(str(tmp_path))
    assert str(error.value).startswith(str(tmp_path)) and line in str(error.value)


def test_an_empty_shard_is_refused(tmp_path):
    pq.write_table(pa.table({"problem": [], "answer": []}), tmp_path / "b.parquet")
    write_parquet(tmp_path / "a.parquet", ROWS)
    with pytest.raises(ValueError, match=r"b.parquet: must have at least one row, got an empty f"):
        list(read_rows([tmp_path / "a.parquet", tmp_path / "b.parquet"]))
