"""The published records of the studies.

Those of the first edition give the report that it gave: all of study.json is compared, of the texts
of its flags the numbers, and every line of a table of study.md; the text around the tables differs,
and so does a column that was added since. Pages have the numbers of the records of SmolLM2.
"""

import json
import lzma
import re
import tarfile
from pathlib import Path

import pytest

from entropy_rl.cli.main import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "first_edition"
ARCHIVES = {"countdown": "records.tar.gz", "countdown_length": "length_records.tar.gz"}
# Names in study.json, and in the file of the first edition.
KEYS = {"baseline_differences": "beside"}
ADDED = "unique_answers"  # a control that the first edition did not report


@pytest.mark.parametrize(
    "name", ["countdown_length", pytest.param("countdown", marks=pytest.mark.slow)]
)
def test_published_records_give_the_numbers_of_the_first_edition(name, tmp_path, monkeypatch):
    wanted = json.loads(lzma.decompress((GOLDEN / "studies.json.xz").read_bytes()))[name]
    output = tmp_path / "runs" / "study" / name
    with tarfile.open(ROOT / "docs" / "study" / ARCHIVES[name]) as archive:
        archive.extractall(output, filter="data")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("entropy_rl.studies.report.write_figures", lambda *_: [])
    assert main(["study", "--config", f"configs/study/{name}.yaml", "--do", "report"]) == 0
    found = json.loads((output / "study.json").read_text())
    del found["design"]
    assert found.pop("matched") == {}  # which needs the lengths of samples
    assert {KEYS.get(key, key) for key in found} == set(wanted["numbers"])
    found["flags"], wanted["numbers"]["flags"] = (
        {arm: re.findall(r"[\d.]+", " ".join(flags)) for arm, flags in of_study["flags"].items()}
        for of_study in (found, wanted["numbers"])
    )
    cut_skills(wanted["numbers"])
    for key, value in found.items():
        assert without_added(value) == wanted["numbers"][KEYS.get(key, key)], key
    assert f"| truncated | {ADDED} |" in (output / "study.md").read_text()
    found_lines = tables((output / "study.md").read_text())
    wanted_lines = [cut_cells(line) for line in wanted["tables"]]
    assert unregistered(found_lines) == unregistered(wanted_lines)
    # What is written beside the records has current names.
    assert "mini_batch_prompts" in (output / "config.yaml").read_text()


def cut_skills(numbers):
    """Cut the intervals of skills that are fractions, which the first edition did not."""
    for arm, measures in numbers["arms"].items():
        units = [unit["measures"] for unit in numbers["units"] if unit["arm"] == arm]
        for name, (mean, low, high, seeds) in measures.items():
            values = [of_unit[name] for of_unit in units if name in of_unit]
            is_fraction = name.startswith("skill/") and min(values) >= 0 and max(values) <= 1
            if is_fraction and seeds > 1:
                measures[name] = [mean, max(low, 0.0), min(high, 1.0), seeds]


def cut_cells(line):
    """The same for a line of a table; ends without a sign are those of no difference."""
    line = re.sub(r"\[-[\d.]+, (?=\d)", "[0, ", line)
    return re.sub(r"(\[0\.\d+), 1\.0\d*\]", r"\1, 1]", line)


def unregistered(lines):
    """Leave out what the table of exploratory differences, the third by arm, no longer repeats."""
    kept, table = [], 0
    for line in lines:
        table += line.startswith(("| arm | seeds |", "| arm | complete seeds |"))
        is_repeated = line.startswith(("| arm", "| ---", "| base ", "| shaped ", "| uniform "))
        if not (table == 3 and is_repeated and "complete seeds" not in line):
            kept.append(line)
    return kept


def without_added(value):
    if isinstance(value, dict):
        return {key: without_added(item) for key, item in value.items() if key != ADDED}
    return [without_added(item) for item in value] if isinstance(value, list) else value


def tables(page):
    """The lines of all tables, without the column `ADDED`."""
    lines, at = [], None
    for line in page.splitlines():
        cells = line.split(" | ") if line.startswith("|") else []
        if ADDED in cells:
            at = cells.index(ADDED)
        elif not cells:
            at = None
        if cells:
            lines.append(" | ".join(cell for i, cell in enumerate(cells) if i != at))
    return lines


def read_archive(name):
    """Yield the arm, the seed and the result of each run of an archive."""
    with tarfile.open(ROOT / "docs" / "study" / name) as archive:
        for file in archive.getnames():
            if found := re.fullmatch(r"runs/(\w+)/(\d+)/evaluate/evaluation.json", file):
                yield found[1], int(found[2]), json.load(archive.extractfile(file))


def test_the_pages_have_the_numbers_of_the_published_records_of_the_language_model():
    def short(value):
        return f"{value:.3f}".removeprefix("0")

    def cells(result):
        pass_at = {k: short(value) for k, (value, *_) in result["pass_at_k"].items()}
        return [
            *(pass_at[k] for k in ("1", "4", "16", "64", "128")),
            *(short(result[name][0]) for name in ("mean_entropy", "unique_answers")),
            f"{result['mean_length'][0]:.1f}",
            f"{result['truncated']:.1%}",
            short(result["skill"]["equations"]),
        ]

    page = (ROOT / "docs" / "study_smollm2.md").read_text()
    found = {}
    for line in re.findall(r"^\| \w+(?:, seed \d)? \| .*$", page, flags=re.M):
        run, *row = (cell.strip(" *") for cell in line.strip("|").split("|"))
        if len(row) == 12 and run != "run":  # the table of runs, without its head
            arm, _, seed = run.partition(", seed ")
            found[arm, int(seed or 0)] = row[:5] + row[6:11]  # all but "chance" and "sampled"
    results = {(arm, seed): result for arm, seed, result in read_archive("smollm2_records.tar.gz")}
    assert found == {run: cells(result) for run, result in results.items()}
    for text in (page, (ROOT / "README.md").read_text()):
        assert f"{len(results)} of 28 runs" in text
    header = (ROOT / "configs" / "arithmetic_grpo.yaml").read_text()
    low, high, seeds = re.search(r"between (\S+) and (\S+) \((\w+) seeds", header).groups()
    plain = [result["pass_at_k"]["1"][0] for (arm, _), result in results.items() if arm == "plain"]
    assert (low, high) == (f"{min(plain):.2f}", f"{max(plain):.2f}")
    assert ["three", "four", "five", "six", "seven"].index(seeds) == len(plain) - 3
