"""Encode prompts: the chat template, the tokens before a text, and special tokens in the data."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from entropy_rl.config.files import error_text, reading
from entropy_rl.config.values import unknown
from entropy_rl.experience.special_tokens import encode_as_text, special_tokens
from entropy_rl.tasks.task import Problem

# Stands for a message while a template is rendered. It is of the private-use area: no text has it.
_MARKER = "\ue000message{}\ue001"
# Today for chat templates: what that of Llama 3.2 takes where it has no clock.
_TODAY = datetime.datetime(2024, 7, 26)
_PADDED = "dHIjmMSUWVy"  # directives of strftime that a "-" writes without leading zeros


def encode_prompt(problem: Problem, tokenizer: Any) -> list[int]:
    """Return the token ids of a prompt exactly as the model sees it.

    A chat prompt is wrapped by the tokenizer's chat template with the turn of the assistant opened,
    and has the template's special tokens only. Any other gets those that the tokenizer puts before
    a text, such as Llama's <|begin_of_text|>, unless it begins with them.

    Special tokens in the text of a problem, such as "<|im_end|>", are encoded as plain text: they
    cannot end the user's turn. `Problem.special_tokens` asks for the tokens instead.

    Raises:
      ValueError: If a chat template is needed and missing or fails or has no variable of a given
        name, the tokenizer ends every text as if it were finished, the text cannot be encoded, or
        there is no token.
    """
    where = f"task: the prompt of problem {problem.id}"
    try:
        for text in (problem.prompt, *(content for _, content in problem.messages)):
            text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: must be Unicode text, got {error_text(error)}") from None
    text, plain = _chat(problem, tokenizer) if problem.chat else (problem.prompt, _spans(problem))
    is_special = special_tokens(tokenizer)
    before, ends = _tokens_around(tokenizer)
    if ends and not problem.chat:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer ends every text with its end token; remove "
            "it from the post_processor of tokenizer.json"
        )
    with reading(where):
        if problem.special_tokens or not any(is_special.search(text, *span) for span in plain):
            ids = tokenizer.encode(text, add_special_tokens=not problem.chat)
        else:
            ids = encode_as_text(text, plain, tokenizer, add_special_tokens=not problem.chat)
    if before and ids[: 2 * len(before)] == 2 * before:
        ids = ids[len(before) :]
    if not ids:
        raise ValueError(f"{where} has no tokens: {problem.prompt!r}")
    return ids


@functools.lru_cache(maxsize=4)
def _tokens_around(tokenizer: Any) -> tuple[list[int], bool]:
    """Return the tokens that a tokenizer puts before a text, and whether it ends every text."""
    return tokenizer.encode(""), tokenizer.encode("a")[-1:] == [tokenizer.eos_token_id]


def _spans(problem: Problem) -> list[tuple[int, int]]:
    """Return the places of the problem's own text in a prompt that is made from a template."""
    parts = problem.template.split("{problem}")
    count = len(parts) - 1
    if not count:
        return []
    size = (len(problem.prompt) - sum(map(len, parts))) // count
    starts, place = [], 0
    for part in parts[:-1]:
        starts.append(place + len(part))
        place = starts[-1] + size
    return [(start, start + size) for start in starts]


def _chat(problem: Problem, tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """Return a chat prompt, and the places of its messages."""
    where = f"{tokenizer.name_or_path}: the chat template"
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; "
            "set task.args.chat to false, or add one"
        )
    messages = (*problem.messages, ("user", problem.prompt))
    roles, texts = zip(*messages, strict=True)
    kwargs = dict(problem.chat_template_kwargs)
    check_template_kwargs(tokenizer, kwargs, "task.args.chat_template_kwargs")
    with reading(where):
        text = render(tokenizer, messages, kwargs)
        check_opened_turn(tokenizer, str(tokenizer.chat_template), roles, json.dumps(kwargs))
        parts = _around_messages(tokenizer, str(tokenizer.chat_template), roles, json.dumps(kwargs))
    places = None if parts is None else _places(text, parts, texts)
    if places is None:
        # It treats messages differently: which parts are theirs cannot be told.
        special = special_tokens(tokenizer)
        if not problem.special_tokens and any(map(special.search, texts)):
            raise ValueError(
                f"{where}: must put the message between two fixed texts where it holds special "
                f"tokens, as that of problem {problem.id} does"
            )
        return text, []
    return text, places


def _places(text: str, parts: list[str], texts: tuple[str, ...]) -> list[tuple[int, int]] | None:
    """Return the places of the messages in a text; None where they are not between the parts.

    Args:
      text: The rendered prompt.
      parts: What the template puts before, between and after the messages.
      texts: The messages; templates may strip white space.
    """
    if not (text.startswith(parts[0]) and text.endswith(parts[-1])):
        return None
    places, start = [], len(parts[0])
    for content, after in zip(texts[:-1], parts[1:-1], strict=True):
        forms = (content, content.strip(), content.rstrip(), content.lstrip())
        shown = next((form for form in forms if text.startswith(form + after, start)), None)
        if shown is None:
            return None
        places.append((start, start + len(shown)))
        start += len(shown) + len(after)
    end = len(text) - len(parts[-1])
    return None if end < start else [*places, (start, end)]


@functools.lru_cache(maxsize=1024)
def _around_messages(
    tokenizer: Any, template: str, roles: tuple[str, ...], kwargs: str
) -> list[str] | None:
    """Return the texts around the messages; None if one is not shown just once, or in order.

    Args:
      tokenizer: The tokenizer.
      template: Its chat template, a part of the key.
      roles: The roles of the messages.
      kwargs: Variables of the template, as JSON.

    Raises:
      ValueError: If a message is not shown.
    """
    marks = [_MARKER.format(i) for i in range(len(roles))]
    rest = render(tokenizer, list(zip(roles, marks, strict=True)), json.loads(kwargs))
    for role, mark in zip(roles, marks, strict=True):
        if mark not in rest:
            raise ValueError(f"must show the message of the {role}, got a text without it")
    parts = []
    for mark in marks:
        if rest.count(mark) != 1:
            return None
        before, _, rest = rest.partition(mark)
        parts.append(before)
    return [*parts, rest]


@functools.lru_cache(maxsize=1024)
def check_opened_turn(tokenizer: Any, template: str, roles: tuple[str, ...], kwargs: str) -> None:
    """Check that a chat template opens the turn of the assistant, as it begins in a conversation.

    Only a template that ignores `add_generation_prompt` is refused, and only if it puts a text
    before what the assistant says: `[/INST]` of Llama 2 needs none. Where it heeds the variable, it
    may open the turn with more than that text, such as `<think>`, or with less.

    Args:
      tokenizer: The tokenizer.
      template: Its chat template, a part of the key.
      roles: The roles of the messages before the turn.
      kwargs: Variables of the template, as JSON.

    Raises:
      ValueError: If it does not.
    """
    marks = [_MARKER.format(i) for i in range(len(roles) + 1)]
    messages, variables = list(zip(roles, marks[:-1], strict=True)), json.loads(kwargs)
    try:
        ended = render(tokenizer, messages, variables, open_turn=False)
        if render(tokenizer, messages, variables) != ended:
            return
        whole = render(tokenizer, [*messages, ("assistant", marks[-1])], variables, open_turn=False)
    except Exception:  # a template of prompts alone, which may raise anything
        return
    before, mark, _ = whole.partition(marks[-1])
    header = before.removeprefix(ended)
    if mark and before.startswith(ended) and header.strip():
        raise ValueError(
            f"must end with {header!r}, which opens the turn of the assistant, where "
            "add_generation_prompt is true, got a text without it; add `{% if "
            f"add_generation_prompt %}}{{{{ {header!r} }}}}{{% endif %}}` to its end"
        )


def render(tokenizer: Any, messages: Any, kwargs: Mapping[str, Any], open_turn: bool = True) -> str:
    """Render messages (role, content) by the chat template.

    Args:
      tokenizer: The tokenizer.
      messages: The messages.
      kwargs: Variables of the template.
      open_turn: Whether to open the turn of the assistant after them.
    """
    return _apply(tokenizer, messages, kwargs, tokenize=False, add_generation_prompt=open_turn)


def encode_marked(
    tokenizer: Any, messages: Any, kwargs: Mapping[str, Any]
) -> tuple[list[int], list[int]]:
    """Encode messages by a chat template that marks what the assistant says.

    Args:
      tokenizer: The tokenizer.
      messages: The messages.
      kwargs: Variables of the template.

    Returns:
      The tokens, and 1 for each that is between marks, else 0.
    """
    options = dict(tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    found = _apply(tokenizer, messages, kwargs, **options)
    return list(found["input_ids"]), list(found["assistant_masks"])


def _apply(tokenizer: Any, messages: Any, kwargs: Mapping[str, Any], **options: Any) -> Any:
    """Apply the chat template, for which today is always the same day."""
    template = tokenizer.get_chat_template(tools=kwargs.get("tools"))
    if "strftime_now" in template:
        template = _STRFTIME_NOW + template
    messages = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(messages, chat_template=template, **options, **kwargs)


def _strftime_now() -> str:
    """Return a Jinja macro `strftime_now`, as transformers passes no functions to templates."""
    known = {f"%{c}": _TODAY.strftime(f"%{c}") for c in "aAbBcdDeFGhHIjmMprRSTuUVwWxXyYzZ"}
    known |= {f"%-{c}": known[f"%{c}"].lstrip("0") or "0" for c in _PADDED}
    known = {"%%": "\ue002"} | known | {"\ue002": "%"}
    filters = "".join(f" | replace({old!r}, {new!r})" for old, new in known.items())
    # The line break is dropped behind a block (trim_blocks), where that of a template would be.
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro %}}\n"


_STRFTIME_NOW = _strftime_now()


def check_template_kwargs(tokenizer: Any, kwargs: Mapping[str, Any], where: str) -> None:
    """Check that a chat template has variables of these names.

    Args:
      tokenizer: The tokenizer, which has a template.
      kwargs: Variables by name.
      where: Dotted path of the setting, for errors.

    Raises:
      ValueError: If it has not, or cannot be read.
    """
    template = f"{tokenizer.name_or_path}: the chat template"
    with reading(template):
        variables = template_variables(tokenizer, str(tokenizer.chat_template))
    for name in kwargs:
        if name in variables:
            continue
        if name == "tools":
            raise ValueError(
                f"{template}: must have the variable 'tools' to describe them to the model; "
                "without it, set task.args.describe to system"
            )
        if variables:
            raise ValueError(unknown(f"{where}.{name}", name, sorted(variables)))
        raise ValueError(
            f"{where}.{name}: must be absent, as the chat template of {tokenizer.name_or_path} has "
            f"no variables, got {name!r}"
        )


@functools.lru_cache(maxsize=4)
def template_variables(tokenizer: Any, template: str) -> frozenset[str]:
    """Return the variables of a chat template that a caller can set.

    Args:
      tokenizer: The tokenizer.
      template: Its chat template, a part of the key.
    """
    import jinja2
    from jinja2 import meta, nodes

    # `generation` is a tag of transformers; what is between them is what counts here.
    text = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", tokenizer.get_chat_template())
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    tree = environment.parse(text)
    found = set(meta.find_undeclared_variables(tree))
    # A default, as in `if x is not defined: set x = ...`, declares it.
    tests = [test.node for test in tree.find_all(nodes.Test) if test.name in _DEFINED]
    found |= {node.name for node in tests if isinstance(node, nodes.Name)}
    return frozenset(found - _SET_BY_TRANSFORMERS - set(tokenizer.special_tokens_map))


_DEFINED = ("defined", "undefined", "none")
_SET_BY_TRANSFORMERS = frozenset(
    ("messages", "add_generation_prompt", "raise_exception", "strftime_now", "loop", "range")
    + ("namespace", "dict", "cycler", "joiner", "lipsum")
)
