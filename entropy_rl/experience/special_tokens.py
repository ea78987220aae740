"""Encode special tokens in a text as plain text: they cannot end a turn, or begin one."""

from __future__ import annotations

import functools
import json
import re
from typing import Any


@functools.lru_cache(maxsize=4)
def special_tokens(tokenizer: Any, every: bool = False) -> re.Pattern[str]:
    """Return a pattern of the special tokens' texts; without any, one that matches nothing.

    Args:
      tokenizer: The tokenizer.
      every: Take all added tokens, such as <tool_call>, not only those that count as special.
    """
    added = tokenizer.added_tokens_decoder.values()
    texts = {token.content for token in added if (every or token.special) and token.content}
    # The longest first, as one may begin with another.
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


@functools.lru_cache(maxsize=4)
def special_ids(tokenizer: Any) -> dict[str, tuple[int, bool]]:
    """Return (id, whether it splits a text as it is) of the special tokens by their texts.

    Such a token is found before a text is normalized, whatever is around it: what follows it does
    not change the tokens before it.
    """
    return {
        token.content: (i, not (token.lstrip or token.single_word or token.normalized))
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content
    }


def encode_as_text(
    text: str,
    plain: list[tuple[int, int]],
    tokenizer: Any,
    add_special_tokens: bool,
    every: bool = False,
) -> list[int]:
    """Encode a text in which special tokens count outside of some places only.

    A copy of the tokenizer knows its special tokens by other names, by which they are replaced
    outside of those places. Encoding the parts one by one would lose merges and prefixes.

    Args:
      text: The text.
      plain: The places (start, end) in which special tokens are text, in order.
      tokenizer: The tokenizer.
      add_special_tokens: Whether to add the tokens that the tokenizer puts around a text.
      every: As in `special_tokens`.

    Raises:
      ValueError: If the copy is not equal to the tokenizer.
    """
    copy, names = _renamed(tokenizer, every)
    pattern = special_tokens(tokenizer, every)

    def pieces(clean: bool) -> tuple[str, str]:
        """Return the text with and without other names; `clean` blanks them in the places."""
        renamed, original, place = "", "", 0
        for start, end in [*plain, (len(text), len(text))]:
            outside, inside = text[place:start], text[start:end]
            inside = pattern.sub(" ", inside) if clean else inside
            renamed += pattern.sub(lambda found: names[found[0]], outside) + inside
            original += outside + inside
            place = end
        return renamed, original

    renamed, original = pieces(clean=True)
    same = copy.encode(renamed, add_special_tokens=add_special_tokens).ids
    if same != tokenizer.encode(original, add_special_tokens=add_special_tokens):
        raise ValueError("must have no special token, as this tokenizer cannot encode one as text")
    return copy.encode(pieces(clean=False)[0], add_special_tokens=add_special_tokens).ids


@functools.lru_cache(maxsize=4)
def _renamed(tokenizer: Any, every: bool) -> tuple[Any, dict[str, str]]:
    """Return a copy of a tokenizer with other names for its special tokens, and the names."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("must have no special token, as this tokenizer cannot encode one as text")
    spec = json.loads(backend.to_str())
    special = [token for token in spec["added_tokens"] if every or token["special"]]
    names = {token["content"]: f"\ue002{token['id']}\ue003" for token in special}
    for token in special:
        token["content"] = names[token["content"]]
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): i for text, i in model["vocab"].items()}
    else:  # Unigram: pairs of text and score
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(spec)), names
