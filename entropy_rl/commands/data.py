"""The verbs `data prepare`, `data list` and `data show`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from entropy_rl.commands.data_fields import describe_fields
from entropy_rl.commands.data_overlap import contamination
from entropy_rl.config.checks import check_numbers, require_at_least
from entropy_rl.escape import echo

# --------------------------------------------------------------------------------------------------
# prepare
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Prepare a set for use as `task.args.train` or `test`: `entropy-rl data prepare NAME`.

    Args:
      name: A published set of `entropy-rl data list`, or any other name with --source.
      source: A data file (JSONL, parquet or Arrow), or a directory or a pattern of them; for a
        published set its file or the directory of its files. Null downloads a published set from
        the Hugging Face hub.
      data_dir: Directory of prepared sets; null for the TFDS default, ~/tensorflow_datasets.
      problem_field: Field of the problem text in your own file; null to look for it by name.
      answer_field: Field of the answer in your own file; null to look for it by name.
      overwrite: Replace the set prepared under this name.
    """

    POSITIONAL: ClassVar = ("name",)

    name: str
    source: str | None = None
    data_dir: str | None = None
    problem_field: str | None = None
    answer_field: str | None = None
    overwrite: bool = False


def prepare(config: PrepareConfig) -> None:
    """The verb `data prepare`."""
    from entropy_rl.runs.preemption import ending_on_sigterm
    from entropy_rl.tasks.math import sets
    from entropy_rl.tasks.math.prepare import prepare

    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_on_sigterm("stopped; nothing was written"))
        done = prepare(**dataclasses.asdict(config), watch=functools.partial(_watch, stack))
    metadata = sets.read_metadata(config.name, config.data_dir)
    if not done:
        echo(f"{config.name} is already prepared from {' and '.join(metadata['sources'].values())}")
    for line in _describe(config.name, metadata, config.data_dir):
        echo(line)
    for split in metadata["splits"] if done else ():
        rows = sets.read_prepared(sets.set_directory(config.name, config.data_dir), split)
        for line in _answers([row["answer"] for row in rows]):
            echo(line)
    if done:
        for line in contamination(config.name, config.data_dir):
            echo(_entry("overlap", line))


_LONG = 50_000  # rows; shorter files take less than a second


def _watch(
    stack: contextlib.ExitStack, sources: Mapping[str, Sequence[Path]]
) -> Callable[[str, int], None]:
    """Show the progress of reading long files until the stack is closed."""
    from entropy_rl.tasks.data_files.files import count_rows

    total = sum(map(count_rows, sources.values()))
    if total < _LONG:
        return lambda split, rows: None
    from entropy_rl.runs.logging import Progress  # slow to import

    bar = stack.enter_context(Progress("reading rows", total, every=200_000))
    done = {}

    def show(split: str, rows: int) -> None:
        done[split] = rows
        bar.show(sum(done.values()), "")

    return show


def _describe(name: str, metadata: Mapping[str, Any], data_dir: str | None) -> Iterator[str]:
    """Yield the description of a prepared set, as lines of two columns."""
    from entropy_rl.tasks.math import sets

    published = sets.PUBLISHED.get(name)
    if published:
        yield f"{name}: {published.title}"
        yield _entry("repository", f"{published.repository}, revision {published.revision[:12]}")
        yield _entry("license", published.license or "its card states none")
        if published.unconfirmed:
            yield _entry("unconfirmed", published.unconfirmed)
    else:
        yield f"{name}: a set of your own"
    files = {file.split: file for file in published.files} if published else {}
    for split, found in metadata["splits"].items():
        before = f"{split} " if len(metadata["splits"]) > 1 else ""
        yield _COLUMNS(f"{before}source", metadata["sources"][split])
        for entry, text in _describe_split(found, metadata["sha256"][split], files.get(split)):
            yield _entry(f"{before}{entry}", text)
    yield _COLUMNS("directory", sets.set_directory(name, data_dir))


def _describe_split(found: Mapping[str, Any], sha256: str, file: Any) -> Iterator[tuple[str, str]]:
    """Yield entries for one split; `file` is the published one, None for the user's own set."""
    note = ""
    if file is not None:
        note = (
            ", as published"
            if sha256 == file.sha256
            else f", not the published {file.sha256[:12]}..."
        )
    yield "sha256", f"{sha256[:12]}...{note}"
    note = ""
    if file is not None:
        note = (
            ", as published"
            if file.rows == found["rows"]
            else f"; the published file has {file.rows:,}"
        )
    yield "rows", f"{found['rows']:,}{note}"
    if found["fields_left_out"]:
        yield "fields unused", ", ".join(found["fields_left_out"])
    yield "kept", f"{found['kept']:,}"
    done = "left out" if found["deduplicated"] else "kept all the same"
    count = found["duplicates"]
    yield "duplicates", f"{count:,} rows repeat a problem, {done}" if count else "none"
    count, rows = found["contradictory_problems"], found["contradictory_rows"]
    if count:
        yield "contradictions", f"{count:,} with two different answers in {rows:,} rows, {done}"
        yield "the first", found["first_contradiction"]
    else:
        yield "contradictions", "none"
    if found["distinct_source_ids"] is not None:
        yield "source ids", f"{found['distinct_source_ids']:,} different ones"
    longest = found["longest_problem"]
    yield "longest problem", f"{longest['characters']:,} characters, id {longest['id']}"


def _answers(answers: Sequence[str]) -> Iterator[str]:
    """Lines on right answers that are extracted from solutions, or that no verifier can use."""
    from entropy_rl.tasks.math.right_answers import check_answers

    report = check_answers(answers)
    if report.extracted:
        yield _entry(
            "right answers",
            f"{report.extracted:,} of {report.total:,} are extracted from solutions, after '####' "
            "or from \\boxed{}",
        )
    if report.unusable:
        yield _entry("right answers", report.message)


_COLUMNS = "  {:21} {}".format


def _entry(name: str, text: str) -> str:
    """Return a line of two columns, wrapped in the second."""
    return textwrap.fill(
        _COLUMNS(name, text),
        80,
        subsequent_indent=" " * 24,
        break_long_words=False,
        break_on_hyphens=False,
    )


# --------------------------------------------------------------------------------------------------
# list and show
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ListConfig:
    """Published sets and your own, and which are prepared: `entropy-rl data list`.

    Args:
      data_dir: Directory of prepared sets; null for the TFDS default, ~/tensorflow_datasets.
    """

    data_dir: str | None = None


def list_sets(config: ListConfig) -> None:
    """The verb `data list`."""
    from entropy_rl.tasks.math import sets

    row = "{:14}{:7}{:13}{:14}{}".format
    echo(row("name", "role", "published", "prepared", "source"))
    there = sets.prepared_names(config.data_dir)
    for name in dict.fromkeys([*sets.PUBLISHED, *there]):
        published, prepared = sets.PUBLISHED.get(name), "not prepared"
        if name in there:
            metadata = sets.read_metadata(name, config.data_dir)
            prepared = "+".join(f"{split['kept']:,}" for split in metadata["splits"].values())
        if published:
            rows = "+".join(f"{file.rows:,}" for file in published.files)
            echo(row(name, published.role, rows, prepared, published.repository))
        else:
            source = Path(metadata["sources"][sets.USER_SPLIT]).name
            echo(row(f"{name} ", "both", "own", prepared, source))
    echo(f"prepared sets: {sets.data_root(config.data_dir)}")


@dataclasses.dataclass(frozen=True)
class ShowConfig:
    """A prepared set or file and its first problems: `entropy-rl data show NAME`.

    Args:
      name: A prepared set, or a data file (JSONL, parquet or Arrow), a directory or a pattern of
        them.
      count: Number of problems to show.
      data_dir: Directory of prepared sets; null for the TFDS default, ~/tensorflow_datasets.
      problem_field: Field of the problem in a file, such as extra_info.question; null to look for
        it by name.
      answer_field: Field of the answer in a file; null to look for it by name.
      invalid_rows: Rows of a file in which a field is missing, empty or of a wrong type: `error` or
        `skip`.
    """

    POSITIONAL: ClassVar = ("name",)

    name: str
    count: int = 3
    data_dir: str | None = None
    problem_field: str | None = None
    answer_field: str | None = None
    invalid_rows: Literal["error", "skip"] = "error"

    def __post_init__(self):
        check_numbers(self, "")
        require_at_least(0, "", self, "count")


def show(config: ShowConfig) -> None:
    """The verb `data show`."""
    from entropy_rl.tasks.math import sets
    from entropy_rl.tasks.math.answers import final_answer

    sources = sets.find_sources("name", config.name, config.data_dir)
    if not sources[0].files:
        metadata = sets.read_metadata(config.name, config.data_dir)
        for line in _describe(config.name, metadata, config.data_dir):
            echo(line)
    fields = (config.problem_field, config.answer_field, config.invalid_rows == "skip")
    for source in sources:
        examples = sets.read_source(source, *fields)
        title = config.name if source.split is None else f"{config.name} {source.split}"
        if source.files:
            several = f" in {len(source.files)} files" if len(source.files) > 1 else ""
            echo(f"{title}: {len(examples.rows):,} problems{several}")
            for entry, line in describe_fields(examples):
                echo(_entry(entry, line))
        for line in _answers([row.answer for row in examples.rows]):
            echo(line)
        for row in examples.rows[: config.count]:
            final = final_answer(row.answer)
            extracted = "" if final == row.answer else f", extracted from {row.answer[-40:]!r}"
            echo(f"\n== {title} {row.index}, right answer {final!r}{extracted}")
            for role, text in row.before:
                _echo_text(f"{role}: {text}")
            _echo_text(f"user: {row.problem}" if row.chat else row.problem)


def _echo_text(text: str) -> None:
    for line in text.splitlines():
        echo(textwrap.fill(line, 80, break_long_words=False, break_on_hyphens=False))
