"""A word-level tokenizer: one token for each word of the grammar and each number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_rl.tasks.countdown.game import MAX_NUMBER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Ids follow this order; `,` occurs in drills only.
VOCABULARY = (
    *("<pad>", "<bos>", "<eos>", "<unk>"),
    *(":", "+", "-", "*", "=", ",", "wait", "undo", "stop", "done"),
    *(str(number) for number in range(MAX_NUMBER + 1)),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer.

    Text is split at white space and nothing is added: the `<bos>` of a prompt is part of its text.
    A word outside the vocabulary becomes `<unk>`, an ordinary token on purpose: decoding drops
    special tokens, and a completion must not become correct by losing a word.

    Returns:
      The tokenizer; ids follow `VOCABULARY`.
    """
    import tokenizers  # imported here, so that the task runs without transformers
    from transformers import PreTrainedTokenizerFast

    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"
        )
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
