"""The verbs `entropy-rl data ...`: prepare, list and show data sets, overlap, prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from entropy_rl.cli.main import main
from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.common import ModelConfig, TaskConfig
from entropy_rl.config.evaluate import EvaluateConfig
from entropy_rl.config.train import TrainConfig

# --------------------------------------------------------------------------------------------------
# prepare
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Prepare a set for use as `task.args.train` or `test`: `entropy-rl data prepare NAME`.

    Args:
      name: A published set of `entropy-rl data list`, or any other name with --source.
      source: JSONL or parquet file; for a published set also the directory of its files. Null
        downloads a published set from the Hugging Face hub.
      data_dir: Directory of prepared sets; null for the TFDS default, ~/tensorflow_datasets.
      problem_field: Field of the problem text in your own file; null for `problem`.
      answer_field: Field of the answer in your own file; null for `answer`.
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
        print(
            f"{config.name} is already prepared from {' and '.join(metadata['sources'].values())}"
        )
    for line in _describe(config.name, metadata, config.data_dir):
        print(line)
    if done:
        for line in _contamination(config.name, config.data_dir):
            print(line)


_LONG = 50_000  # rows; shorter files take less than a second


def _watch(stack: contextlib.ExitStack, sources: Mapping[str, Path]) -> Callable[[str, int], None]:
    """Show the progress of reading long files until the stack is closed."""
    from entropy_rl.tasks.math.files import count_rows

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
    yield _COLUMNS("lies in", sets.set_directory(name, data_dir))


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
    """Published and user's math sets, and which are prepared: `entropy-rl data list`.

    Args:
      data_dir: Directory of prepared sets; null for the TFDS default, ~/tensorflow_datasets.
    """

    data_dir: str | None = None


def list_sets(config: ListConfig) -> None:
    """The verb `data list`."""
    from entropy_rl.tasks.math import sets

    row = "{:14}{:7}{:13}{:14}{}".format
    print(row("name", "role", "published", "prepared", "source"))
    there = sets.prepared_names(config.data_dir)
    for name in dict.fromkeys([*sets.PUBLISHED, *there]):
        published, prepared = sets.PUBLISHED.get(name), "not prepared"
        if name in there:
            metadata = sets.read_metadata(name, config.data_dir)
            prepared = "+".join(f"{split['kept']:,}" for split in metadata["splits"].values())
        if published:
            rows = "+".join(f"{file.rows:,}" for file in published.files)
            print(row(name, published.role, rows, prepared, published.repository))
        else:
            source = Path(metadata["sources"][sets.USER_SPLIT]).name
            print(row(f"{name} ", "both", "own", prepared, source))
    print(f"prepared sets lie in {sets.data_root(config.data_dir)}")


@dataclasses.dataclass(frozen=True)
class ShowConfig:
    """A prepared set or file and its first problems: `entropy-rl data show NAME`.

    Args:
      name: A prepared set, or a JSONL or parquet file.
      count: Number of problems to show.
      data_dir: Directory of prepared sets; null for the TFDS default, ~/tensorflow_datasets.
      problem_field: Field of the problem text in a file.
      answer_field: Field of the answer in a file.
    """

    POSITIONAL: ClassVar = ("name",)

    name: str
    count: int = 3
    data_dir: str | None = None
    problem_field: str = "problem"
    answer_field: str = "answer"

    def __post_init__(self):
        check_numbers(self, "")
        require_at_least(0, "", self, "count")


def show(config: ShowConfig) -> None:
    """The verb `data show`."""
    from entropy_rl.tasks.math import sets

    source = sets.find_source("name", config.name, None, config.data_dir)
    sources = [source]
    if source.split is not None:
        metadata = sets.read_metadata(config.name, config.data_dir)
        for line in _describe(config.name, metadata, config.data_dir):
            print(line)
        sources = [dataclasses.replace(source, split=split) for split in metadata["splits"]]
    for source in sources:
        pairs = sets.read_source(source, config.problem_field, config.answer_field)
        title = config.name if source.split is None else f"{config.name} {source.split}"
        if source.split is None:
            print(f"{title}: {len(pairs):,} problems")
        for i, (problem, answer) in enumerate(pairs[: config.count]):
            print(f"\n== {title} {i}, right answer {answer!r}")
            for line in problem.splitlines():
                print(textwrap.fill(line, 80, break_long_words=False, break_on_hyphens=False))


# --------------------------------------------------------------------------------------------------
# overlap
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OverlapConfig:
    """Test problems that occur in a training set: `entropy-rl data overlap TRAIN TEST`.

    Args:
      train: A prepared set, or a JSONL or parquet file.
      test: A prepared set, or a JSONL or parquet file.
      ngram: Words per n-gram; 13 as in appendix C of the GPT-3 paper, arXiv 2005.14165. A problem
        with fewer words is a single n-gram.
      data_dir: Directory of prepared sets; null for the TFDS default, ~/tensorflow_datasets.
      problem_field: Field of the problem text in a file.
      answer_field: Field of the answer in a file.
    """

    POSITIONAL: ClassVar = ("train", "test")

    train: str
    test: str
    ngram: int = 13
    data_dir: str | None = None
    problem_field: str = "problem"
    answer_field: str = "answer"

    def __post_init__(self):
        check_numbers(self, "")
        require_at_least(1, "", self, "ngram")


def overlap(config: OverlapConfig) -> None:
    """The verb `data overlap`."""
    from entropy_rl.tasks.math import sets
    from entropy_rl.tasks.math.overlap import (
        count_matches,
        find_overlap,
        split_words,
        worst_matches,
    )

    sources = [
        sets.find_source(role, getattr(config, role), role, config.data_dir)
        for role in ("train", "test")
    ]
    train, test = (
        [
            problem
            for problem, _ in sets.read_source(source, config.problem_field, config.answer_field)
        ]
        for source in sources
    )
    words = [split_words(text) for text in test]
    matches = find_overlap(map(split_words, train), words, config.ngram)
    counts = count_matches(matches)
    short = sum(len(of_problem) < config.ngram for of_problem in words)
    print(f"{len(test):,} test problems of {sources[1].title}")
    print(f"{len(train):,} training problems of {sources[0].title}")
    for name, count in (
        ("the same problem", counts["exact"]),
        (f"at least half of the {config.ngram}-grams", counts["half"]),
        (f"any {config.ngram}-gram", counts["any"]),
    ):
        print(f"  {name:30}{count:6,} of {len(test):,} ({count / len(test):.1%})")
    print(
        f"  {'looked for as a whole':30}{short:6,} of {len(test):,} (less than {config.ngram} "
        "words)"
    )
    for match in worst_matches(matches, 5):
        same = "the same as" if match.exact else f"{match.train_share:.0%} in"
        print(
            f"\n== test {match.test}: {match.share:.0%} in the training set, {same} train "
            f"{match.train}"
        )
        for text in (test[match.test], train[match.train]):
            print(textwrap.shorten(text, 78, placeholder=" ..."))


def _contamination(name: str, data_dir: str | None) -> Iterator[str]:
    """Yield the overlaps of a set with all prepared sets of the other role, as lines."""
    from entropy_rl.tasks.math import sets
    from entropy_rl.tasks.math.overlap import count_matches, find_overlap, split_words

    parts = []
    for other in sets.prepared_names(data_dir):
        splits = sets.read_metadata(other, data_dir)["splits"]
        parts += [(other, split, role) for split, role in sets.splits_by_role(other, splits)]
    # A set of the user's own has both roles, but is not compared with itself.
    pairs = [
        (train, test)
        for train in parts
        for test in parts
        if (train[2], test[2]) == ("train", "test")
        and train[:2] != test[:2]
        and name in (train[0], test[0])
    ]
    words = {}
    for part in sorted({part[:2] for pair in pairs for part in pair}):
        try:
            rows = sets.read_prepared(sets.set_directory(part[0], data_dir), part[1])
        except ValueError as error:
            yield _entry("overlap", f"not looked for in {part[0]}: {error}")
            continue
        words[part] = [split_words(row["problem"]) for row in rows]
    for train, test in pairs:
        if train[:2] not in words or test[:2] not in words:
            continue
        counts = count_matches(find_overlap(words[train[:2]], words[test[:2]]))
        yield _entry(
            "overlap",
            f"of {counts['problems']:,} problems of {test[0]}, {train[0]} has {counts['exact']:,}; "
            f"{counts['half']:,} by half of their 13-grams, {counts['any']:,} by any",
        )
    if not pairs:
        yield _entry("overlap", "not looked for: no set of the other role is prepared")


# --------------------------------------------------------------------------------------------------
# prompts
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """The first prompts of a config as the model sees them: `entropy-rl data prompts`.

    Reads the config files of `train` and `evaluate`.

    Args:
      model: The model whose tokenizer encodes the prompts; its weights are not read.
      task: Problems and prompt template.
      split: Split of the task; null for `task.train_split`.
      count: Number of prompts.
      tokens: Show every token with its id, one per line.
      data_dir: Directory of prepared sets for the task `math`; null for that of `task.args`.
    """

    ALSO_READS: ClassVar = (TrainConfig, EvaluateConfig)

    model: ModelConfig
    task: TaskConfig
    split: str | None = None
    count: int = 2
    tokens: bool = False
    data_dir: str | None = None

    def __post_init__(self):
        check_numbers(self, "")
        require_at_least(1, "", self, "count")
        require(
            self.data_dir is None or self.task.name == "math",
            "data_dir",
            self.data_dir,
            "null unless task.name is math",
        )


def prompts(config: PromptsConfig) -> None:
    """The verb `data prompts`."""
    from entropy_rl.experience.prompts import encode_prompt
    from entropy_rl.runs.load_model import find_model, load_tokenizer, model_files
    from entropy_rl.tasks import closing, load_task

    where = {} if config.data_dir is None else {"data_dir": config.data_dir}
    task = load_task(config.task.name, config.task.args | where)
    split = config.split or config.task.train_split
    with closing(task):
        problems = task.problems(split)
    tokenizer = load_tokenizer(model_files(find_model(config.model.path)))
    for problem in list(problems)[: config.count]:
        ids = encode_prompt(problem, tokenizer)
        print(f"== {split} {problem.id}: {len(ids)} tokens, right answer {problem.answer!r}")
        print(tokens_of(tokenizer, ids) if config.tokens else tokenizer.decode(ids))


def tokens_of(tokenizer: Any, ids: list[int]) -> str:
    """Return one line per token: position, id and quoted text, in which whitespace is visible."""
    return "\n".join(
        f"{i:5} {token:7} {tokenizer.decode([token])!r}" for i, token in enumerate(ids)
    )


if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
