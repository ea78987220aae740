"""Stream a completion or an episode to the terminal, each token shaded by its entropy."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.common import ModelConfig, TaskConfig
from entropy_rl.config.files import check_writable, expand_home
from entropy_rl.config.values import refuse_unused

if TYPE_CHECKING:
    from entropy_rl.rollout.state import Completions
    from entropy_rl.runs.load_model import ModelFiles
    from entropy_rl.tasks.task import Problem, Task

_CHUNK = 4  # decode steps between host synchronizations


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Sample one completion of a question or of a problem: `entropy-rl sample`.

    For a problem of an environment, an episode is played turn by turn.

    Args:
      model: A Hugging Face directory or id, `asset:NAME`, or the directory of a run (its newest
        checkpoint).
      question: The prompt, verbatim; null for a problem of the task. The tokenizer's special
        tokens come before it, as in training; without a chat template, its BOS token as well,
        unless the question equals a problem.
      chat: Apply the tokenizer's chat template to the question, as a user message.
      task: The task of the problem; a question that equals one of its problems is judged too.
      problem: Id of the problem.
      split: Split of the task.
      temperature: Sampling temperature; 0 is greedy.
      max_new_tokens: Maximum tokens of the completion, or of all turns of an episode.
      stop: Stop strings; the completion, or a turn, ends with the token that completes one.
      seed: Seed of the sample.
      figure: An SVG file to write the shaded completion to; null for none.
    """

    POSITIONAL: ClassVar = ("model.path", "question")

    model: ModelConfig
    question: str | None = None
    chat: bool = False
    task: TaskConfig | None = None
    problem: int | None = None
    split: str = "test"
    temperature: float = 1.0
    max_new_tokens: int = 256
    stop: list[str] = dataclasses.field(default_factory=list)
    seed: int = 0
    figure: str | None = None

    def __post_init__(self):
        check_numbers(self, "")
        expand_home(self, "figure")
        one = (self.question is None) != (self.problem is None)
        require(one, "question", self.question, "set if and only if problem is null")
        require(self.question != "", "question", self.question, "a non-empty string")
        require(
            self.problem is None or self.task is not None,
            "problem",
            self.problem,
            "null without task.name",
        )
        if self.task is None:
            refuse_unused(self, "", "because task is null", "split")
        require(self.temperature >= 0, "temperature", self.temperature, ">= 0")
        require_at_least(1, "", self, "max_new_tokens")
        require_at_least(0, "", self, "seed")
        if self.figure is not None:
            require(self.figure.endswith(".svg"), "figure", self.figure, "a file NAME.svg")
            check_writable(Path(self.figure), "figure")


def main(config: SampleConfig) -> None:
    """The verb `sample` of the command line."""
    # Imported here: `sample --help` must not import jax.
    import jax
    import numpy as np

    from entropy_rl.config.rollout import DecodingConfig
    from entropy_rl.escape import printable
    from entropy_rl.experience.episodes import begin_episodes, environments_of, turn_tokens
    from entropy_rl.experience.padding import pad_rows, padded_length
    from entropy_rl.experience.sampler import check_finite
    from entropy_rl.experience.scoring import score
    from entropy_rl.report.answer_figure import answer_figure
    from entropy_rl.report.terminal import has_colors, scale
    from entropy_rl.rollout import make_generate
    from entropy_rl.rollout.stop_strings import stop_rule
    from entropy_rl.runs.jsonl import write_atomically
    from entropy_rl.runs.load_model import check_length, load_model, read_model_files
    from entropy_rl.tasks import closing, load_task
    from entropy_rl.types import FinishReason

    task = None
    if config.task is not None:
        task = load_task(config.task.name, config.task.args, config.task.episodes)
    files = read_model_files(config.model)
    prompt, ids, problem = _prompt(config, files, task)
    stop = stop_rule(files.tokenizer, config.stop, "stop")
    check_length(files, len(ids) + config.max_new_tokens)
    mask = np.arange(padded_length(len(ids)))[None] < len(ids)
    ids = pad_rows([ids], mask.size, 0, np.int32)
    model = load_model(config.model, files=files)
    key, decoding = jax.random.key(config.seed), DecodingConfig(slots=1, chunk_steps=_CHUNK)
    episodes, of_turn = None, None
    if problem is not None:
        episodes = begin_episodes(task, model.tokenizer, [problem], 0, key)
        of_turn = turn_tokens(task, decoding, config.max_new_tokens)
    generate = make_generate(
        model.sampler,
        group_size=1,
        max_new_tokens=config.max_new_tokens,
        eos_ids=model.eos_ids,
        pad_id=model.pad_id,
        temperature=config.temperature,
        decoding=decoding,
        stop=stop,
        max_turn_tokens=of_turn,
    )
    index = np.array([0 if problem is None else problem.id], np.int32)
    colors = has_colors(sys.stdout)
    printer = _Printer(model.tokenizer, colors)
    print(f"{printable(prompt)}\n")
    params = model.to_decode(model.params)
    answers = environments_of(episodes)
    rollout = jax.device_get(
        generate(params, ids, mask, index, key, on_tokens=printer.show, **answers)
    )
    printer.finish()
    check_finite(f"{model.directory}", rollout, lambda row: "this sample")
    row = rollout.completion_mask[0]
    print(f"\n\n{scale()}" if colors else "\n")
    facts = {
        "length": f"{int(row.sum())} tokens",
        "ended by": FinishReason(int(rollout.finish_reason[0])).name.lower(),
        "log-prob": f"{float(rollout.log_probs[0][row].sum()):.3f}",
        "entropy": f"{float(rollout.entropy[0][row].mean()):.4f} nats per token",
    }
    if problem is not None:
        with closing(task):
            judgements = None if episodes is None else episodes.judgements()
            scores = score(task, model.tokenizer, [problem], rollout, judgements)
        if episodes is not None:
            facts["turns"] = str(len(episodes.rows[0].actions))
        judgement = scores.judgements[0]
        facts["verdict"] = judgement.verdict.value
        if judgement.graded is not None:
            facts["graded"] = f"{judgement.graded:g}"
        facts |= {printable(name): f"{value:g}" for name, value in judgement.parts.items()}
        if scores.answers[0] is not None:
            facts["answer"] = printable(scores.answers[0])
    elif task is not None:
        facts["verdict"] = f"none: the question is no problem of the split {config.split!r}"
    print("\n".join(f"{name:9} {value}" for name, value in facts.items()))
    if config.figure is not None:
        Path(config.figure).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(config.figure), answer_figure(prompt, printer.texts, facts))


def check_config(config: SampleConfig) -> None:
    """Check what needs no weights: the model, the question or problem, and the stop strings.

    Raises:
      ValueError: If something in the config cannot work.
    """
    from entropy_rl.rollout.stop_strings import check_stop_strings
    from entropy_rl.runs.load_model import check_models, read_model_files
    from entropy_rl.runs.model_files import is_local
    from entropy_rl.tasks import closing, load_task

    check_models(config, fetch=False)
    task = None
    with contextlib.ExitStack() as opened:
        if config.task is not None:
            task = load_task(config.task.name, config.task.args, config.task.episodes)
            opened.enter_context(closing(task))
        if is_local(config.model.path):
            files = read_model_files(config.model)
            _prompt(config, files, task)
            check_stop_strings(files.tokenizer, config.stop, "stop")


def _prompt(
    config: SampleConfig, model: ModelFiles, task: Task | None
) -> tuple[str, list[int], Problem | None]:
    """Return the prompt, its tokens, and the problem that it equals, if any.

    Raises:
      ValueError: There is no such problem, or the prompt cannot be encoded.
    """
    from entropy_rl.experience.encoding import encode_prompt
    from entropy_rl.tasks import problems_of
    from entropy_rl.tasks.task import Problem

    problems = [] if task is None else problems_of(task, config.split, "split")
    if config.problem is not None:
        problem = next((p for p in problems if p.id == config.problem), None)
        ids = [p.id for p in problems] or [None]
        allowed = f"an id of the split {config.split!r}, from {min(ids)} to {max(ids)}"
        require(problem is not None, "problem", config.problem, allowed)
        return problem.prompt, encode_prompt(problem, model.tokenizer), problem
    ids = encode_prompt(Problem(0, config.question, "", config.chat), model.tokenizer)
    unknown = _unknown_token(model.tokenizer)
    require(
        unknown is None or model.tokenizer.convert_tokens_to_ids(unknown) not in ids,
        "question",
        config.question,
        f"text of which the tokenizer knows every word (others become {unknown})",
    )
    encoded = [encode_prompt(problem, model.tokenizer) for problem in problems]
    begin = model.tokenizer.bos_token_id
    # A tokenizer with a chat template adds the BOS token itself where the model needs it: it may
    # begin a turn, as SmolLM2's, and must not begin a plain text then.
    adds_none = not model.tokenizer.chat_template and begin is not None and ids[0] != begin
    if adds_none and ids not in encoded:  # a problem is sampled as in training
        ids = [begin, *ids]
    same = problems[encoded.index(ids)] if ids in encoded else None
    return config.question, ids, same


def _unknown_token(tokenizer: Any) -> str | None:
    """Return the token that stands for a word that the tokenizer does not know.

    It is that of its model, and may be no special token, so that a decoded text shows it. A
    tokenizer of bytes has none, or names the token that begins or ends a text.
    """
    unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    return None if unknown in ends else unknown


class _Printer:
    """Print new tokens of a completion as they are sampled.

    Args:
      tokenizer: The model's tokenizer.
      colors: Whether to shade tokens.
    """

    def __init__(self, tokenizer: Any, colors: bool):
        from entropy_rl.analysis import TokenSpans

        self._spans = TokenSpans(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
        self._colors = colors
        self._known, self._printed, self._in_observation = 0, 0, False
        # Text and entropy of each token; None for the tokens of an observation
        self.texts: list[tuple[str, float | None]] = []

    def show(self, completions: Completions) -> None:
        """Print the tokens sampled since the last call."""
        from entropy_rl.report.samples import token_texts

        length, known = int(completions.length[0]), self._known
        # Again from the last token with a text on, whose text that of the next one depends on.
        start = next((i for i in range(known - 1, -1, -1) if self.texts[i][0]), 0)
        ids = completions.ids[0][start:length].tolist()
        found = token_texts(self._spans, lambda token: "", ids)[known - start :]
        entropies = completions.entropy[0][known:length].tolist()
        if completions.sampled is not None:
            entropies = [
                h if own else None
                for h, own in zip(entropies, completions.sampled[0][known:].tolist(), strict=False)
            ]
        new = [(text, h) for (text, _), h in zip(found, entropies, strict=True)]
        self.texts[known:] = new
        # Half a character may become a whole one; some tokenizers decode all bytes of a run so.
        self._known = length
        for i in range(length - 1, -1, -1):
            text = self.texts[i][0]
            if text.endswith("\ufffd"):
                self._known = i
            elif text:
                break
        self._print(self._known)

    def finish(self) -> None:
        """Print what was held back."""
        self._print(len(self.texts))

    def _print(self, until: int) -> None:
        from entropy_rl.report.terminal import observed, shaded

        for text, entropy in self.texts[self._printed : until]:
            if (entropy is None) != self._in_observation:
                self._in_observation = entropy is None
                print("\n>" if entropy is None else "\n", end="")
            if entropy is None:
                print(observed(text, self._colors), end="", flush=True)
            else:
                print(shaded(text, entropy, self._colors), end="", flush=True)
        self._printed = max(self._printed, until)
