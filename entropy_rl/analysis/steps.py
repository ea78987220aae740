"""First tokens of the steps of a reasoning text."""

from __future__ import annotations

import itertools
import re

import numpy as np

# rule -> what ends a step. The paper's text says "\n\n or sentence"; its code splits at `sentence`.
STEP_ENDS = {
    "sentence": re.compile(r"[.?] +"),
    "line": re.compile(r"\n"),
    "paragraph": re.compile(r"\n[ \t]*\n"),
}


def first_tokens(text: str, spans: np.ndarray, rule: str, count: int = 1) -> np.ndarray:
    """Mark the first tokens of each step of a text.

    A step begins with the first character that is no white space, at the start of the text or
    behind the end of a step.

    Args:
      text: The text.
      spans: int32[N, 2], characters begin <= i < end of the text for each token (`TokenSpans`).
      rule: What ends a step, a name of `STEP_ENDS`: "sentence", a period or question mark before a
        space; "line", a line break; or "paragraph", an empty line.
      count: Tokens of each step that are marked, at least 1; no more than the step has.

    Returns:
      bool[N].
    """
    bounds = [0, *(match.end() for match in STEP_ENDS[rule].finditer(text)), len(text)]
    begins = []
    for begin, end in itertools.pairwise(bounds):
        step = text[begin:end]
        if step.strip():
            begins.append(begin + len(step) - len(step.lstrip()))
    # Ends never decrease, and a token without text ends where the previous one does.
    starts = np.unique(np.searchsorted(spans[:, 1], begins, side="right"))
    first = np.zeros(len(spans), bool)
    for start, following in zip(starts, np.append(starts, len(spans))[1:], strict=True):
        first[start : min(start + count, following)] = True
    return first & (spans[:, 0] < spans[:, 1])
