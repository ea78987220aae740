"""Styles of figures for papers: sizes, fonts, and TrueType fonts that can be embedded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

_COMMON = {
    "pdf.fonttype": 42,  # TrueType: Type 3 fonts are refused by IEEE, ACM and ICML
    "ps.fonttype": 42,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.bbox": "standard",  # the size asked for
}


def _sized(width: float, height: float, points: float) -> dict[str, Any]:
    return _COMMON | {
        "figure.figsize": (width, height),
        "font.size": points,
        "axes.titlesize": points,
        "axes.labelsize": points,
        "xtick.labelsize": points - 1,
        "ytick.labelsize": points - 1,
        "legend.fontsize": points - 1,
        "lines.linewidth": 1.2,
    }


# name -> settings of matplotlib; widths in inches of the column and the page of ICML and IEEE
STYLES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "column": _sized(3.25, 2.4, 8),
        "page": _sized(6.75, 3.4, 9),
        "slides": _sized(9.0, 5.0, 16),
    }
)


@contextmanager
def figure_style(name: str) -> Iterator[None]:
    """Draw and save figures in a style.

    Args:
      name: One of `STYLES`, or a style of matplotlib, such as the path of an .mplstyle file, which
        is added to `column`.

    Raises:
      ValueError: If there is no such style.
    """
    import matplotlib.style

    with matplotlib.rc_context(STYLES.get(name, STYLES["column"])):
        if name not in STYLES:
            try:
                matplotlib.style.use(name)
            except OSError:
                raise ValueError(
                    f"figure_style: must be {', '.join(STYLES)} or a style of matplotlib, such as "
                    f"an .mplstyle file, got {name!r}"
                ) from None
        yield
