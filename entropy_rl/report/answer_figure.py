"""One completion as an SVG picture, each token shaded by its entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from entropy_rl.escape import printable
from entropy_rl.report.terminal import FULL, shade

COLUMNS = 88  # characters of a line
_WIDTH, _HEIGHT, _MARGIN = 8.4, 20.0, 16.0  # of a character, of a line, in pixels
_STEPS = (0.1, 0.25, 0.5, 0.75, 1)  # of the legend, fractions of the darkest shade


def answer_figure(
    prompt: str, tokens: Sequence[tuple[str, float | None]], facts: Mapping[str, str]
) -> str:
    """Return an SVG picture of a prompt, the shaded tokens of its completion, and facts below.

    Args:
      prompt: The prompt.
      tokens: Text of each token, and its entropy in nats; None for one that was not sampled.
      facts: Names and values, such as length and verdict.
    """
    legend = [("entropy in nats ", None)]
    for share in _STEPS:
        legend += [(f" {share * FULL:.2f} ", share * FULL), (" ", None)]
    told = "  ".join(f"{name}: {value}" for name, value in facts.items())
    paragraphs = [[(prompt, None)], tokens, legend, [(told, None)]]
    parts, line = [], 0
    for paragraph in paragraphs:
        last = 0
        for row, column, text, entropy in _placed(paragraph):
            parts += _drawn(line + row, column, text, entropy)
            last = row
        line += last + 2
    width, height = COLUMNS * _WIDTH + 2 * _MARGIN, (line - 1) * _HEIGHT + 2 * _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" font-family="monospace" font-size="14" fill="#000">',
            '<rect width="100%" height="100%" rx="6" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _placed(
    tokens: Sequence[tuple[str, float | None]],
) -> Iterator[tuple[int, int, str, float | None]]:
    """Break tokens into lines: row, column, text and entropy of each piece."""
    row = column = 0
    for text, entropy in tokens:
        for i, piece in enumerate(printable(text).split("\n")):
            if i:
                row, column = row + 1, 0
            while piece:
                if column and column + len(piece.rstrip()) > COLUMNS:
                    row, column, piece = row + 1, 0, piece.lstrip(" ")
                cut = len(piece) if len(piece) <= COLUMNS else piece.rfind(" ", 0, COLUMNS) + 1
                now, piece = piece[: cut or COLUMNS], piece[cut or COLUMNS :]
                yield row, column, now, entropy
                column += len(now)


def _drawn(row: int, column: int, text: str, entropy: float | None) -> Iterator[str]:
    x, y, width = _MARGIN + column * _WIDTH, _MARGIN + row * _HEIGHT, len(text) * _WIDTH
    color = None if entropy is None else shade(entropy)
    if color is not None:
        rgb = "rgb({}, {}, {})".format(*color)
        yield (
            f'<rect x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{_HEIGHT:.0f}" '
            f'fill="{rgb}"><title>{entropy:.3f}</title></rect>'
        )
    if text.strip():
        # The length is that of the shade, whatever font the viewer has.
        yield (
            f'<text x="{x:.1f}" y="{y + 0.72 * _HEIGHT:.1f}" textLength="{width:.1f}" '
            f'xml:space="preserve" pointer-events="none">{escape(text)}</text>'
        )
