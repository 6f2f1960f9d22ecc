"""How the pictures look: colours that print and that colour-blind readers tell apart, sizes that a phone can show.

Before is hollow and light, after is full and dark, a limit is a black dashed line: nothing is told by colour alone.

References:
    Okabe and Ito, Color universal design, 2008: the palette.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

from repairopt.errors import require_extra

BEFORE, AFTER = "#E69F00", "#0072B2"  # orange, blue
WORSE, BETTER, QUIET = "#D55E00", "#009E73", "#8C8C8C"  # vermilion, bluish green, grey
WIDTH = 4.8  # inches; the text is still readable where the picture is 340 pixels wide
SETTINGS: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markersize": 6,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "repairopt",
}


def have_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


@cache
def figure_class() -> Any:
    """Matplotlib's ``Figure``, which a notebook shows without ``pyplot``; else a MissingExtraError."""
    require_extra("report", "A picture", "matplotlib")
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure of no window and no global state."""

        def _repr_png_(self) -> bytes:
            return picture_bytes(self, "png")

    return NotebookFigure


@contextmanager
def drawing(
    height: float, title: str, across: str = "", up: str = "", *, legend: int = 0, ratios: Sequence[float] = (1,)
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, with a title and names of the axes; one panel for each of ``ratios``, then a list.

    ``height`` is in inches; ``legend`` is the number of its columns, 0 for none.
    """
    made = figure_class()
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        figure = made(figsize=(WIDTH, height), layout="constrained")
        panels = list(figure.subplots(len(ratios), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0])
        panels[0].set(title=wrapped(title, 52), ylabel=up)
        panels[-1].set_xlabel(across)
        yield figure, panels if len(panels) > 1 else panels[0]
        if legend:
            handles = panels[0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside lower left", ncols=legend, columnspacing=1.0)


def picture_bytes(figure: Any, kind: str = "svg", dpi: int = 150) -> bytes:
    """A Matplotlib figure as the bytes of an ``"svg"`` or ``"png"`` file, the same for the same figure."""
    import matplotlib

    target = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(target, format=kind, dpi=dpi, metadata=metadata)
    return target.getvalue()


def data_uri(figure: Any) -> str:
    """A figure as the address of an image that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture_bytes(figure)).decode()


def wrapped(text: str, width: int = 24) -> str:
    """A label in as few lines as fit beside a picture, of about the same length."""
    lines = textwrap.wrap(text, width)
    for narrower in range(len(text) // max(1, len(lines)), width):
        even = textwrap.wrap(text, narrower)
        if len(even) == len(lines):
            return "\n".join(even)
    return "\n".join(lines)


def split_name(held_out: bool) -> str:
    """How a report calls the data."""
    return "held-out data" if held_out else "repair data"
