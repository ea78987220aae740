"""The verb `data select`: reasoning texts chosen by their log-prob, without its confounding."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.files import check_creatable, expand_home
from entropy_rl.config.sft import ChatDataConfig
from entropy_rl.config.values import refuse_unused
from entropy_rl.escape import echo

if TYPE_CHECKING:
    from entropy_rl.analysis import TokenSpans
    from entropy_rl.evaluation.score_texts import TextRow
    from entropy_rl.experience.chats import EncodedText
    from entropy_rl.runs.load_model import Model, ModelFiles
    from entropy_rl.stats.step_length import StepRegression, StepScores

SELECTED, STATISTICS = "selected.jsonl", "selection.json"


@dataclasses.dataclass(frozen=True)
class SelectConfig:
    """Reasoning texts chosen by how probable a model finds them: `entropy-rl data select`.

    First tokens of steps are improbable, so that the mean log-prob prefers texts of long steps.
    ASLEC (arXiv 2604.06834) corrects for it. Writes selected.jsonl, which `sft` reads, and
    selection.json.

    Args:
      model: The model that scores.
      data: Files, as in `sft`; `train` is read.
      output: Directory of the result; it must not exist.
      keep: Number of texts that are kept, of each prompt or of all.
      group_by: prompt, to choose among the texts of the same prompt; all, among all of them.
      score: logp, the mean log-prob of all tokens; drop, of all but first tokens of steps
        (ASLEC-DROP); casl, the first without what the fraction of first tokens adds, by a
        regression (ASLEC-CASL).
      steps: What ends a step: sentence, a period or question mark before a space; line, a line
        break; paragraph, an empty line.
      first_tokens: Tokens of a step that count as first ones; 1 in the paper, 2 in its code.
      source_field: Field of a row whose values each get a regression of their own, such as the
        teacher, as in the code of the paper; null for one regression, as in its text.
      max_tokens_per_micro_batch: Tokens of one forward pass; changes memory and speed only.
    """

    # Of sections that others share.
    UNUSED: ClassVar = (
        "data.validation",
        "data.held_out",
        "model.remat",
        "model.decode_attention",
    )

    model: ModelConfig
    data: ChatDataConfig
    output: str
    keep: int
    group_by: Literal["prompt", "all"] = "prompt"
    score: Literal["logp", "drop", "casl"] = "casl"
    steps: Literal["sentence", "line", "paragraph"] = "sentence"
    first_tokens: int = 1
    source_field: str | None = None
    max_tokens_per_micro_batch: int = 4096

    def __post_init__(self):
        check_numbers(self, "")
        expand_home(self, "output")
        require_at_least(1, "", self, "keep", "first_tokens", "max_tokens_per_micro_batch")
        refuse_unused(self, "", "because `data select` does not use it", *self.UNUSED)
        require(
            self.source_field is None or self.score == "casl",
            "source_field",
            self.source_field,
            f"null with score {self.score}, which has no regression",
        )


def select(config: SelectConfig) -> None:
    """The verb `data select`.

    Raises:
      ValueError: If the data cannot be used, the output exists, or another process writes it.
    """
    from entropy_rl.runs.hub import pin_models
    from entropy_rl.runs.lock import LOCK_FILE, one_writer

    output = Path(config.output)
    config = pin_models(config, output)
    read = check_config(config)
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = output.with_name(f"{output.name}.{LOCK_FILE}")
    with one_writer(lock, f"output: {output}"):
        _check_output(config)  # another process may have written it meanwhile
        statistics = _select(config, read, output)
    _show(statistics, output)


def _select(config: SelectConfig, read: _Texts, output: Path) -> dict[str, Any]:
    """Score the texts, write the directory at once, and return the statistics."""
    import jax

    from entropy_rl.config.common import MeshConfig
    from entropy_rl.distributed.sharding import make_mesh
    from entropy_rl.models.hf import new_directory
    from entropy_rl.runs.load_model import load_model
    from entropy_rl.stats.step_length import step_scores

    contents, texts, length = read.contents, read.texts, read.step_length
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    model = load_model(config.model, mesh, files=read.files)
    log_probs = _log_probs(read.parts, model, config.max_tokens_per_micro_batch)
    scores = step_scores(log_probs, read.first)
    groups = _groups(texts, config)
    values, fits = _values(scores, read.sources, config)
    kept = _top(values, groups, config.keep)
    by_logp = set(_top(scores.logp, groups, config.keep))
    statistics = {
        "model": config.model.path,
        "rule": {"steps": config.steps, "first_tokens": config.first_tokens},
        "score": config.score,
        "texts": len(texts),
        "without_steps": read.without_steps,
        "groups": len(set(groups)),
        "kept": len(kept),
        "kept_by_logp_too": len(by_logp & set(kept)),
        "step_length": float(length.mean()),
        "step_length_of_kept": float(length[kept].mean()),
        "step_length_by_logp": float(length[sorted(by_logp)].mean()),
        "correlation_with_step_length": _correlations(scores, length, values, config.score),
        "regressions": {source: fit._asdict() for source, fit in fits.items()},
    }
    chosen = (contents[i] | {"scores": _scores_of(i, scores, values, config.score)} for i in kept)
    with new_directory(output) as temporary:
        with (temporary / SELECTED).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        text = json.dumps(statistics, indent=1) + "\n"
        (temporary / STATISTICS).write_text(text, encoding="utf-8")
    return statistics


class _Texts(NamedTuple):
    """The texts that have steps, before they are scored.

    Attributes:
      files: Of the model.
      contents: Their rows.
      texts: Their tokens.
      parts: Prompts and completions.
      first: bool[targets] of each, the first tokens of steps.
      step_length: f64[texts], the mean tokens of a step.
      sources: Their sources.
      without_steps: Number of texts that are left out.
    """

    files: ModelFiles
    contents: list[dict[str, Any]]
    texts: list[EncodedText]
    parts: list[TextRow]
    first: list[np.ndarray]
    step_length: np.ndarray
    sources: list[str]
    without_steps: int


def check_config(config: SelectConfig) -> _Texts:
    """Check what needs no weights: the output and the data.

    Returns:
      The texts.

    Raises:
      ValueError: If the data cannot be used, or the output exists.
    """
    from entropy_rl.analysis import TokenSpans
    from entropy_rl.evaluation.score_texts import padded_lengths
    from entropy_rl.experience.chat_data import read_contents
    from entropy_rl.runs.load_model import read_model_files

    _check_output(config)
    files = read_model_files(config.model)  # data come before weights
    tokenizer = files.tokenizer
    rows = list(read_contents(config.data, "train", tokenizer, files.eos_ids))
    contents, texts = [content for content, _ in rows], [row[0] for _, row in rows]
    _check_json(contents)
    spans = TokenSpans(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
    first = [_first_of(text, spans, config.steps, config.first_tokens) for text in texts]
    usable = [mask.any() and not mask.all() for mask in first]
    if not any(usable):
        raise ValueError(
            f"data.train: must have a text with tokens that begin a step and others, by the rule "
            f"{config.steps!r}, got none of {len(texts)}"
        )
    contents, texts, first = (
        [x for x, use in zip(part, usable, strict=True) if use] for part in (contents, texts, first)
    )
    begins = [_first_of(text, spans, config.steps, 1) for text in texts]
    length = np.array([of_text.size / of_text.sum() for of_text in begins])  # tokens of a step
    sources, parts = _sources(contents, config), _parts(texts)
    size = config.max_tokens_per_micro_batch
    longest, allowed = sum(padded_lengths(parts)), "the longest prompt and completion"
    require(size >= longest, "max_tokens_per_micro_batch", size, f">= {longest}, {allowed}")
    without = len(usable) - len(texts)
    return _Texts(files, contents, texts, parts, first, length, sources, without)


def _check_output(config: SelectConfig) -> None:
    output = Path(config.output)
    require(not output.exists(), "output", config.output, "a directory that does not exist yet")
    check_creatable(output)


def _check_json(contents: Sequence[dict[str, Any]]) -> None:
    """Check, before any work, that the rows can be written."""
    for i, row in enumerate(contents):
        for name, value in row.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"data.train: must have fields that JSON can hold, as rows are written to "
                    f"{SELECTED}, got {type(value).__name__} in {name!r} of row {i + 1}"
                ) from error


def _first_of(text: EncodedText, spans: TokenSpans, rule: str, count: int) -> np.ndarray:
    """Mark the first `count` tokens of steps among the targets of a text, bool[targets]."""
    from entropy_rl.analysis.steps import first_tokens

    turns = np.split(text.ids, np.flatnonzero(np.diff(text.mask)) + 1)
    said = turns[0 if text.mask[0] else 1 :: 2]
    return np.concatenate([first_tokens(*spans(turn.tolist()), rule, count) for turn in said])


def _parts(texts: Sequence[EncodedText]) -> list[TextRow]:
    starts = [len(text.prompt) for text in texts]
    return [
        (text.ids[:start], text.ids[start:], text.mask[start:])
        for text, start in zip(texts, starts, strict=True)
    ]


def _log_probs(parts: Sequence[TextRow], model: Model, size: int) -> list[np.ndarray]:
    """Log-probs of the targets of each text."""
    from entropy_rl.evaluation.score_texts import score_tokens

    found = score_tokens(parts, model, temperature=1.0, max_tokens_per_micro_batch=size)
    return [log_probs[mask] for (log_probs, _), (_, _, mask) in zip(found, parts, strict=True)]


def _groups(texts: Sequence[EncodedText], config: SelectConfig) -> list[Any]:
    if config.group_by == "all":
        return [()] * len(texts)
    return [text.prompt.tobytes() for text in texts]


def _sources(contents: Sequence[dict[str, Any]], config: SelectConfig) -> list[str]:
    """Return the source of each text, whose texts have a regression of their own."""
    if config.source_field is None:
        return ["all"] * len(contents)
    missing = sum(config.source_field not in row for row in contents)
    where = f"a field of all {len(contents)} rows, {missing} of which are without it"
    require(missing == 0, "source_field", config.source_field, where)
    return [str(row[config.source_field]) for row in contents]


def _values(
    scores: StepScores, sources: Sequence[str], config: SelectConfig
) -> tuple[np.ndarray, dict[str, StepRegression]]:
    """Scores by which texts are chosen, and the regressions by source that they need."""
    from entropy_rl.stats.step_length import StepScores, casl, fit_steps

    if config.score != "casl":
        return getattr(scores, config.score), {}
    values, fits = np.zeros(len(sources)), {}
    for source in dict.fromkeys(sources):
        rows = np.array([other == source for other in sources])
        part = StepScores(*(x[rows] for x in scores))
        try:
            fits[source] = fit_steps(part)
        except ValueError as error:
            raise ValueError(f"data.train: {error} of the source {source!r}") from error
        values[rows] = casl(part, fits[source])
    return values, fits


def _top(values: np.ndarray, groups: Sequence[Any], keep: int) -> list[int]:
    """Indices of the highest values of each group, in the order of the rows; ties by that order."""
    of_group = defaultdict(list)
    for i, group in enumerate(groups):
        of_group[group].append(i)
    return sorted(
        i for rows in of_group.values() for i in sorted(rows, key=lambda i: -values[i])[:keep]
    )


def _correlations(
    scores: StepScores, length: np.ndarray, values: np.ndarray, score: str
) -> dict[str, float | None]:
    """Pearson's correlation of each score with the mean length of steps; None if undefined."""
    found = {"logp": scores.logp, "drop": scores.drop, score: values}

    def correlation(x: np.ndarray) -> float | None:
        defined = len(x) > 1 and x.std() > 0 and length.std() > 0
        return float(np.corrcoef(x, length)[0, 1]) if defined else None

    return {name: correlation(x) for name, x in found.items()}


def _scores_of(i: int, scores: StepScores, values: np.ndarray, score: str) -> dict[str, float]:
    found = {"logp": scores.logp, "first": scores.first, "drop": scores.drop, score: values}
    return {name: float(x[i]) for name, x in found.items()} | {
        "fraction_first": float(scores.fraction[i])
    }


def _show(statistics: dict[str, Any], output: Path) -> None:
    s = statistics
    first = s["rule"]["first_tokens"]
    echo(f"steps end by the rule {s['rule']['steps']!r}; first tokens of a step: {first}")
    if s["without_steps"]:
        echo(f"{s['without_steps']} texts are left out, which have no steps by this rule")
    echo(f"kept {s['kept']} of {s['texts']} texts of {s['groups']} groups, by {s['score']}")
    echo(f"  {s['kept_by_logp_too']} of them would be kept by logp too")
    echo(
        f"  tokens of a step: {s['step_length']:.1f} in all texts, {s['step_length_of_kept']:.1f} "
        f"in those kept, {s['step_length_by_logp']:.1f} in those that logp would keep"
    )
    for name, value in s["correlation_with_step_length"].items():
        text = "undefined" if value is None else f"{value:+.3f}"
        echo(f"  correlation of {name} with the length of steps: {text}")
    for source, fit in s["regressions"].items():
        echo(f"  regression of {source}: gamma {fit['fraction']:.3f}, R2 {fit['r2']:.3f}")
    echo(f"{output / SELECTED}")
