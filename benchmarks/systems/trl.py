"""TRL by its own GRPOTrainer, with Hugging Face's `generate` (vLLM is for GPUs).

Chosen to its advantage: float32 without autocast; no gradient checkpointing, as memory suffices; as
many threads as there are cores; no reference model; no logging; no clipping of the gradient. The
kind of cache, the head and the rows that are computed at once are tried out, see `options`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import peft
import tokenizers
import torch
import transformers
import turns
import workload
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import selective_log_softmax_and_entropy

torch.set_num_threads(os.cpu_count() or 1)
transformers.logging.set_verbosity_error()


def versions() -> dict[str, str]:
    packages = ("trl", "torch", "transformers", "peft")
    return {package: importlib.metadata.version(package) for package in packages}


def _tokenizer(size: workload.Size) -> transformers.PreTrainedTokenizerFast:
    """Text is the numbers of its tokens."""
    words = tokenizers.models.WordLevel(
        {str(i): i for i in range(size.vocab)}, unk_token=str(workload.PAD)
    )
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": str(workload.PAD), "eos_token": str(workload.EOS)}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)


class _Lengths:
    """The reward, which also keeps how many tokens there were."""

    __name__ = "odd_number_of_tokens"

    def __init__(self):
        self.tokens = 0

    def __call__(self, completion_ids: list[list[int]], **_) -> list[float]:
        lengths = np.array(
            [len(ids) for ids in completion_ids]
        )  # the end-of-sequence token included
        self.tokens = int(lengths.sum())
        return workload.rewards_of(lengths).tolist()


def _adapter(size: workload.Size) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=size.lora_rank,
        lora_alpha=size.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(workload.projections(size)),
        task_type="CAUSAL_LM",
    )


def _set_adapter(model: peft.PeftModel, size: workload.Size) -> None:
    """Puts the adapter of `workload.draw_adapter` in place of that which the model has."""
    layers = model.get_base_model().model.layers
    for name, (a, b) in workload.draw_adapter(size).items():
        for i, layer in enumerate(layers):
            (matrix,) = (m for path, m in layer.named_modules() if path.endswith(f".{name}"))
            matrix.lora_A["default"].weight.data = torch.from_numpy(a[i].T.copy())
            matrix.lora_B["default"].weight.data = torch.from_numpy(b[i].T.copy())


def _trainer(
    directory: Path,
    size: workload.Size,
    rows: int,
    cache: str | None = None,
    lora: bool = False,
    **of_episodes,
) -> GRPOTrainer:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory / "model", dtype=torch.float32
    )
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=size.rows // rows,
        num_generations=size.samples,
        max_completion_length=size.new_tokens,
        cache_implementation=cache,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        epsilon=workload.CLIP,
        loss_type="dapo",  # its default: the mean over all tokens
        learning_rate=workload.LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=10**6,
        report_to="none",
        disable_tqdm=True,
        max_tool_calling_iterations=size.turns - 1,  # the last turn calls nothing
    )
    fixed = dict(reward_funcs=_Lengths(), processing_class=_tokenizer(size))
    trainer = GRPOTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["2"] * size.prompts}),
        peft_config=_adapter(size) if lora else None,
        **of_episodes or fixed,
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=10**6)
    trainer.current_gradient_accumulation_steps = size.rows // rows  # its training loop sets it
    trainer.model.train()
    return trainer


def _inputs(size: workload.Size, batch: workload.Batch, part: slice) -> dict[str, torch.Tensor]:
    """Of these rows what its `_generate_and_score_completions` returns."""
    prompts = torch.from_numpy(np.repeat(batch.prompts, size.samples, axis=0)[part]).long()
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": torch.from_numpy(batch.completion_ids[part]).long(),
        "completion_mask": torch.from_numpy(batch.mask[part]).long(),
        "advantages": torch.from_numpy(batch.advantages[part]),
        "num_items_in_batch": torch.tensor(batch.tokens),
    }


def probe(directory: Path, lora: bool) -> dict:
    size, batch = workload.load(directory)
    trainer = _trainer(directory, size, size.rows, lora=lora)
    inputs = _inputs(size, batch, slice(0, size.samples))
    mask = inputs["completion_mask"]

    def score():
        with torch.no_grad():
            return [x * mask for x in _fused(trainer, inputs, size.samples)]

    found = [score()]
    if lora:
        _set_adapter(trainer.model, size)
        found.append(score())
    trainer.compute_loss(trainer.model, inputs | {"num_items_in_batch": mask.sum()}).backward()
    squares = [p.grad.square().sum() for p in trainer.model.parameters() if p.grad is not None]
    log_probs, entropy = (torch.stack(values).numpy() for values in zip(*found, strict=True))
    return {
        "log_probs": log_probs,
        "entropy": entropy,
        "grad_norm": float(torch.stack(squares).sum().sqrt()),
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


def options(directory: Path, work: str) -> dict[str, Callable]:
    """Ways that a knowledgeable user would try on a CPU."""
    size, _ = workload.load(directory)
    if work == "episodes":
        rows = size.rows_at_once[-1]
        return {
            f"{name} cache": functools.partial(_episodes, directory, rows, cache)
            for name, cache in {"dynamic": None, "static": "static"}.items()
        }
    if work == "rollout":
        caches = {"dynamic cache": None, "static cache": "static"}
        return {
            name: functools.partial(_rollout, directory, cache) for name, cache in caches.items()
        }
    if work == "score":
        heads = {"fused head": _fused, "logits": _logits}
        return {
            f"{name}, {rows} rows at once": functools.partial(_score, directory, rows, head)
            for name, head in heads.items()
            for rows in size.rows_at_once
        }
    kind, lora = workload.kind_of(work)
    make = {"update": _train, "step": _step}[kind]
    return {
        f"{rows} rows at once": functools.partial(make, directory, rows, lora)
        for rows in size.rows_at_once
    }


def _rollout(directory: Path, cache: str | None) -> Callable[[int], int]:
    size, batch = workload.load(directory)
    trainer = _trainer(directory, size, size.rows, cache)
    prompts = [row.tolist() for row in batch.prompts for _ in range(size.samples)]

    def run(number: int) -> int:
        torch.manual_seed(number)
        completions, _ = trainer._generate_single_turn(prompts, None, {}, size.samples)
        return sum(map(len, completions))

    return run


def _joined(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, int]:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    return ids, mask, inputs["completion_ids"].shape[1]


def _fused(trainer: GRPOTrainer, inputs: dict[str, torch.Tensor], rows: int):
    """What its trainer calls, in the loss and for the old log-probs."""
    ids, mask, new = _joined(inputs)
    log_probs, entropy, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, new, batch_size=rows, compute_entropy=True
    )
    return log_probs, entropy


def _logits(trainer: GRPOTrainer, inputs: dict[str, torch.Tensor], rows: int):
    """Its functions for logits that are there: only those of the completion, as `generate` would
    ask for.
    """
    ids, mask, new = _joined(inputs)
    parts = []
    for start in range(0, len(ids), rows):
        part = slice(start, start + rows)
        output = trainer.model(
            input_ids=ids[part], attention_mask=mask[part], logits_to_keep=new + 1
        )
        logits = output.logits[:, :-1]
        parts.append(
            selective_log_softmax_and_entropy(logits, ids[part, -new:], entropy_requires_grad=False)
        )
    log_probs, entropy = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropy)


def _score(directory: Path, rows: int, head: Callable) -> Callable[[int], int]:
    size, batch = workload.load(directory)
    trainer, inputs = _trainer(directory, size, size.rows), _inputs(size, batch, slice(None))

    def run(_: int) -> int:
        with torch.inference_mode():
            head(trainer, inputs, rows)
        return batch.tokens

    return run


def _train(directory: Path, rows: int, lora: bool) -> Callable[[int], int]:
    size, batch = workload.load(directory)
    trainer = _trainer(directory, size, rows, lora=lora)
    parts = [
        _inputs(size, batch, slice(start, start + rows)) for start in range(0, size.rows, rows)
    ]

    def run(_: int) -> int:
        for part in parts:
            trainer.accelerator.backward(trainer.compute_loss(trainer.model, part))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return batch.tokens

    return run


def _step(directory: Path, rows: int, lora: bool) -> Callable[[int], int]:
    """The inner loop of its `train`: the first training step generates for all, with the cheaper
    cache.
    """
    size, batch = workload.load(directory)
    trainer = _trainer(directory, size, rows, cache="static", lora=lora)
    (lengths,) = trainer.reward_funcs
    prompts = [
        {"prompt": " ".join(map(str, row))} for row in batch.prompts for _ in range(size.samples)
    ]

    def run(number: int) -> int:
        torch.manual_seed(number)
        for _ in range(size.rows // rows):
            trainer.training_step(trainer.model, prompts, None)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return lengths.tokens

    return run


def _calling(tokenizer: transformers.PreTrainedTokenizerFast):
    """The tokenizer, by which every turn calls the environment: a random model never does."""

    class Calling(type(tokenizer)):
        def parse_response(self, ids: list[int], **_) -> dict:
            text = self.decode(ids, skip_special_tokens=True)
            call = {"name": turns.TOOL, "arguments": {"action": text}}
            return {
                "role": "assistant",
                "content": text,
                "tool_calls": [{"type": "function", "function": call}],
            }

    tokenizer.__class__ = Calling
    tokenizer.response_template = {}  # else its trainer looks for one
    return tokenizer


def _episodes(directory: Path, rows: int, cache: str | None) -> Callable[[int], dict[str, int]]:
    """As `_step`, with `environment_factory`; what is prefilled is counted where it generates."""
    size, _ = workload.load(directory)
    trainer = _trainer(
        directory,
        size,
        rows,
        cache,
        processing_class=_calling(turns.make_tokenizer(size)),
        environment_factory=lambda: turns.TurnsOfTRL(size),
    )
    prompts = [
        {"prompt": [{"role": "user", "content": text}]}
        for text in turns.prompts(size)
        for _ in range(size.samples)
    ]
    counts: dict[str, int] = {}
    generate, whole = trainer._generate_single_turn, trainer._generate

    def counted(ids: list[list[int]], *arguments, **more):
        counts["given"] = counts.get("given", 0) + sum(map(len, ids))
        return generate(ids, *arguments, **more)

    def masked(prompts: list):
        found = whole(prompts)
        prompt_ids, _, mask, *_ = found
        counts["prompt_tokens"] = sum(map(len, prompt_ids))
        counts["tokens"] = sum(map(sum, mask))
        counts["observation_tokens"] = sum(map(len, mask)) - counts["tokens"]
        return found

    trainer._generate_single_turn, trainer._generate = counted, masked

    def run(number: int) -> dict[str, int]:
        counts.clear()
        torch.manual_seed(number)
        for _ in range(size.rows // rows):
            trainer.training_step(trainer.model, prompts, None)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        new = counts["prompt_tokens"] + counts["observation_tokens"]
        return {**counts, "again": counts["given"] - new}

    return run
