r"""Arguments of TeX's commands without braces: \frac\pi2 is \frac{\pi}{2}."""

from __future__ import annotations

import re

from entropy_rl.tasks.math.equality.latex import closing_brace

_ARITY = {"frac": 2, "binom": 2, "dbinom": 2, "tbinom": 2, "sqrt": 1, "mathbb": 1}
_ARITY |= dict.fromkeys(("vec", "hat", "bar", "dot", "tilde", "overline", "overrightarrow"), 1)
_COMMAND = re.compile(rf"\\({'|'.join(_ARITY)})(?![A-Za-z])|[\^_]\s*(?=\\(?:frac|sqrt|[dt]?binom))")
_OPTION = re.compile(r"\s*\[[^\[\]{}]*\]")
_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|[0-9A-Za-z{])")
_MAX_NESTED = 10


def brace_arguments(text: str, depth: int = 0) -> str:
    r"""Put braces around arguments of one token, in \frac, \sqrt, \binom, \mathbb and accents.

    An exponent or a subscript that is such a command gets them, too: 2^\frac12 is 2^{\frac{1}{2}}.
    More digits of an exponent stay as they are: 2^10 is 2^{10}, as most models mean it.

    Args:
      text: LaTeX.
      depth: Of commands around it; too deep ones are not changed.
    """
    if depth > _MAX_NESTED:
        return text
    parts, start = [], 0
    for match in _COMMAND.finditer(text):
        found = _find_arguments(text, match, depth) if match.start() >= start else None
        if found is None:
            continue
        option, arguments, end = found
        braced = (f"{{{brace_arguments(argument, depth + 1)}}}" for argument in arguments)
        parts += [text[start : match.start()], match[0].rstrip(), option, *braced]
        start = end
    return "".join(parts) + text[start:]


def _find_arguments(
    text: str, match: re.Match[str], depth: int
) -> tuple[str, list[str], int] | None:
    """The option of a root, the arguments of a command, and the index behind them."""
    end, option, arguments = match.end(), "", []
    if match[1] == "sqrt" and (root := _OPTION.match(text, end)):
        end, option = root.end(), root[0].strip()
    for _ in range(_ARITY[match[1]] if match[1] else 1):
        token = _TOKEN.match(text, end)
        if token is None:
            return None
        first, end = token.start(1), token.end()
        if token[1] == "{":
            length = closing_brace(text[end:])
            if length is None:
                return None
            arguments.append(text[end : end + length])
            end += length + 1
            continue
        command = _COMMAND.match(text, first)
        if command:  # an argument with arguments of its own: \sqrt\frac12
            found = _find_arguments(text, command, depth + 1) if depth < _MAX_NESTED else None
            if found is None:
                return None
            end = found[2]
        arguments.append(text[first:end])
    return option, arguments, end
