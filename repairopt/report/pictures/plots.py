"""The pictures of a report, each a Matplotlib figure of one piece of evidence."""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from repairopt.errors import SpecificationError

from .drawing_library import load_matplotlib, styled
from .evidence import AffectedInputs, LayerChange, Margins, Progress, Rates

BEFORE, AFTER = "#E69F00", "#0072B2"  # orange, blue
WORSE, BETTER, QUIET = "#D55E00", "#009E73", "#8C8C8C"  # vermilion, bluish green, grey
WIDTH = 4.8  # inches; the text is still readable where the picture is 340 pixels wide
STYLES: Any = {
    "font": {"size": 9.5},
    "axes": {"titlesize": 10, "titlelocation": "left", "labelcolor": "#222222", "edgecolor": "#555555"},
    "axes.spines": {"top": False, "right": False},
    "grid": {"color": "#E3E3E3", "linewidth": 0.7},
    "legend": {"frameon": False, "fontsize": 9},
    "svg": {"fonttype": "path", "hashsalt": "repairopt"},
}
SETTINGS: Any = {f"{group}.{key}": value for group, style in STYLES.items() for key, value in style.items()}
SETTINGS |= {"text.parse_math": False}  # users' names may hold dollar signs
SETTINGS |= {"axes.grid": True, "axes.axisbelow": True, "lines.markersize": 6, "hatch.linewidth": 0.6}
SETTINGS |= {"figure.facecolor": "white", "savefig.facecolor": "white"}
MOST_GROUPS, NAMED = 24, 3  # in a picture, and lines of the name of one, which the tables have in full
MOST_SAMPLES = 4000  # that did not cross; those that crossed are all drawn
BINS = 40  # of a histogram
COLUMNS = 4  # of images


def have_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


@cache
def figure_class() -> Any:
    """Matplotlib's ``Figure``, which a notebook shows without ``pyplot``; else a MissingExtraError."""
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class NotebookFigure(Figure):
        """A figure of no window and no global state."""

        def draw(self, renderer: Any) -> None:
            """Of the two drawings of a file, the first is for the layout alone: nothing else is drawn in it."""
            layout = self.get_layout_engine()
            if self.canvas.is_saving() and isinstance(layout, ConstrainedLayoutEngine):
                layout.execute(self)
            else:
                super().draw(renderer)

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
    with styled(SETTINGS):
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
    target = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with styled(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # letters that the font lacks are boxes
        figure.savefig(target, format=kind, dpi=dpi, metadata=metadata)
    return target.getvalue()


def data_uri(figure: Any) -> str:
    """A figure as the address of an image that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture_bytes(figure)).decode()


def wrapped(text: str, width: int = 24, most: int | None = None) -> str:
    """A label in as few lines as fit beside a picture, of about one length; what is beyond ``most`` is left out."""
    lines = textwrap.wrap(text, width)
    if most is not None and len(lines) > most:
        return "\n".join(textwrap.wrap(text, width, max_lines=most, placeholder=" ..."))
    for narrower in range(len(text) // max(1, len(lines)), width):
        even = textwrap.wrap(text, narrower)
        if len(even) == len(lines):
            return "\n".join(even)
    return "\n".join(lines)


def split_name(held_out: bool) -> str:
    """How a report calls the data."""
    return "held-out data" if held_out else "repair data"


def plot_rates(rates: Rates) -> Any:
    """One line for each group: hollow before, full after, with 95 % intervals."""
    shown = slice(0, MOST_GROUPS)
    names = [wrapped(name, most=NAMED) for name in rates.groups[shown]]
    before, after = rates.before[shown], rates.after[shown]
    place = np.arange(len(names))[::-1]
    lines = sum(name.count("\n") + 1 for name in names)
    title = f"{rates.name}, {split_name(rates.held_out)}"
    if len(rates.groups) > MOST_GROUPS:
        title += f", the first {MOST_GROUPS} of {len(rates.groups)} groups"
    with drawing(1.5 + 0.2 * lines + 0.16 * len(names), title, rates.quantity, legend=2) as (figure, axes):
        axes.hlines(place, before, after, color=QUIET, linewidth=1.2, zorder=1)
        if np.isfinite(rates.low[shown]).all():
            reach = np.abs(np.stack([after - rates.low[shown], rates.high[shown] - after]))
            axes.errorbar(after, place, xerr=reach, fmt="none", ecolor=AFTER, capsize=4, linewidth=1.4, zorder=2)
        axes.plot(before, place, "o", mfc="white", mec=BEFORE, mew=1.8, ms=9, label="before", zorder=3)
        axes.plot(after, place, "s", color=AFTER, label="after", zorder=4)
        axes.set_yticks(place, names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
    return figure


def plot_margins(margins: Margins) -> Any:
    """Each sample before (across) and after (up), those that crossed the threshold with their own marks."""
    before, after, limit = margins.before, margins.after, margins.threshold
    fell, rose = (before >= limit) & (after < limit), (before < limit) & (after >= limit)
    stayed = np.flatnonzero(~fell & ~rose)
    stayed = stayed[np.linspace(0, len(stayed) - 1, min(MOST_SAMPLES, len(stayed))).astype(int)]
    title = f"{margins.name}, {split_name(margins.held_out)}, {len(before):,} samples"
    with drawing(4.4, title, f"{margins.quantity}, before", "after", legend=3) as (figure, axes):
        axes.axline((limit, limit), slope=1, color=QUIET, linewidth=0.8, linestyle=":")
        axes.axhline(limit, color="black", linewidth=1.0, linestyle="--")
        axes.axvline(limit, color="black", linewidth=1.0, linestyle="--")
        options: Any = {"linestyle": "none", "rasterized": True}
        axes.plot(before[stayed], after[stayed], ".", color=QUIET, ms=3, label="on the same side", **options)
        axes.plot(before[fell], after[fell], "x", color=WORSE, mew=1.6, label=f"now fail: {fell.sum():,}", **options)
        axes.plot(*(before[rose], after[rose], "^"), color=BETTER, ms=5, label=f"now hold: {rose.sum():,}", **options)
    return figure


def plot_slack(slack: Margins) -> Any:
    """How many samples are how far from breaking a constraint, before and after."""
    both = np.concatenate([slack.before, slack.after])
    low, high = min(float(both.min()), slack.threshold), max(float(both.max()), slack.threshold)
    width = (high - low) / BINS or 1.0
    first = slack.threshold - np.ceil((slack.threshold - low) / width) * width  # so that no bin straddles the threshold
    edges = first + width * np.arange(int(np.ceil((high - first) / width)) + 1)
    failed = int((slack.after < slack.threshold).sum())
    allowed = f" ({slack.allowed:,} may)" if slack.allowed >= 0 else ""
    title = f"{slack.name}, {split_name(slack.held_out)}: {failed:,} of {len(slack.after):,} fail{allowed}"
    with drawing(3.1, title, slack.quantity, "samples", legend=3) as (figure, axes):
        axes.hist(slack.after, edges, color=AFTER, alpha=0.75, label="after")
        axes.hist(slack.before, edges, histtype="step", color=BEFORE, linewidth=1.8, label="before")
        axes.axvline(slack.threshold, color="black", linestyle="--", linewidth=1.2, label="limit")
    return figure


def plot_layers(layers: Sequence[LayerChange]) -> Any:
    """Size of the change of each parameter, as a share of the parameter's size."""
    place = np.arange(len(layers))[::-1]
    shares = [100 * layer.relative if np.isfinite(layer.relative) else 0.0 for layer in layers]
    across = "change, % of the parameter's size; weights changed"
    with drawing(1.1 + 0.32 * len(layers), "Change of each parameter", across) as (figure, axes):
        axes.barh(place, shares, color=AFTER, height=0.6)
        for at, share, layer in zip(place, shares, layers, strict=True):
            percent = f"{share:,.0f}" if share >= 100 else f"{share:.2g}"
            text = f" {percent} %, {layer.changed:,} of {int(np.prod(layer.shape)):,}"
            axes.annotate(text, (share, at), va="center", fontsize=8.5)
        axes.set_yticks(place, [wrapped(layer.name) for layer in layers])
        axes.set_xlim(0, max(shares) * 1.75 or 1.0)
        axes.grid(axis="y", visible=False)
    return figure


def plot_layer(layer: LayerChange) -> Any:
    """One parameter as a heat map, outputs down and inputs across; white is unchanged."""
    cells, coarse = layer.cells, layer.cells.size < np.prod(layer.shape)
    limit = float(np.abs(cells).max()) or 1.0
    height = 1.55 + min(3.0, max(0.35, 4.0 * cells.shape[0] / max(cells.shape)))
    title = f"{layer.name} ({' x '.join(map(str, layer.shape))}): {layer.changed:,} weights changed"
    across = "inputs of the layer" + (", several weights a cell" if coarse else "")
    with drawing(height, title, across, "outputs" if cells.shape[0] > 1 else "") as (figure, axes):
        image = axes.imshow(cells, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axes.grid(visible=False)
        ticks = [np.unique(np.linspace(0, n - 1, min(n, 5)).astype(int)) for n in cells.shape]
        axes.set_yticks(ticks[0] if cells.shape[0] > 1 and not coarse else [])
        axes.set_xticks([] if coarse else ticks[1])
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=35, pad=0.04)
        bar.set_label("change over the rms of the parameter's weights")
    return figure


def plot_convergence(progress: Progress) -> Any:
    """The goal after each round, and the samples that failed beyond what is allowed."""
    rounds = np.arange(len(progress.goal))
    known, kept = np.isfinite(progress.goal), progress.accepted
    broken = bool((progress.broken > 0).any())
    names = ("Progress on the true network", "round (0 is the original network)", wrapped(progress.name, 30))
    with drawing(3.2 + 1.2 * broken, *names, legend=3, ratios=[2, 1] if broken else [1]) as (figure, panels):
        axes = panels[0] if broken else panels
        on, off = known & kept, known & ~kept
        axes.plot(rounds[on], progress.goal[on], "-s", color=AFTER, ms=4.5, label="kept")
        axes.plot(rounds[off], progress.goal[off], "x", color=QUIET, label="not kept")
        if np.isfinite(progress.target):
            axes.axhline(progress.target, color="black", linestyle="--", linewidth=1.1, label="target")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if broken:
            last = panels[1]
            last.bar(rounds, np.clip(progress.broken, 0, None), color=WORSE, width=0.6)
            last.set(ylabel="failing beyond\nallowance", xlim=axes.get_xlim())
            last.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_frontier(
    points: Any, chosen: tuple[float, float] | None = None, original: tuple[float, float] | None = None
) -> Any:
    """What accuracy each level of the property costs; ``chosen`` and ``original`` are value and accuracy."""
    points = list(getattr(points, "points", points))
    if not points or any(not hasattr(p, "value") or not hasattr(p, "accuracy") for p in points):
        raise SpecificationError(
            "frontier: expected one or more points with .value and .accuracy. Pass what trace_frontier returns."
        )
    values, accuracy = np.array(sorted((float(p.value), 100 * float(p.accuracy)) for p in points)).T
    names = ("Accuracy against the property, repair data", "property, smaller is better", "accuracy, %")
    with drawing(3.4, *names, legend=2) as (figure, axes):
        axes.plot(values, accuracy, "-o", color=QUIET, ms=4.5, label="repairs for other targets")
        if original is not None:
            axes.plot(original[0], 100 * original[1], "o", mfc="white", mec=BEFORE, mew=1.8, label="original")
        if chosen is not None:
            axes.plot(chosen[0], 100 * chosen[1], "s", color=AFTER, ms=9, label="this repair")
        axes.margins(0.08)
    return figure


def plot_inputs(affected: AffectedInputs, label: Callable[[int], str] = str) -> Any:
    """The images, each with the answer before and after, named by ``label``, and whether that is right."""
    if not affected.are_images:
        raise SpecificationError(
            f"'{affected.name}': inputs of shape {affected.inputs.shape[1:]} are no images; expected (H, W), (1, H, W) "
            f"or (3, H, W). The page shows them as a table."
        )
    made = figure_class()
    count = len(affected.rows)
    rows = -(-count // COLUMNS)
    with styled(SETTINGS):
        figure = made(figsize=(WIDTH, 0.75 + 1.62 * rows), layout="constrained")
        for k, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).flat):
            axes.axis("off")
            if k < count:
                axes.imshow(_image(affected.inputs[k]), cmap="gray", interpolation="nearest")
                axes.set_title(_title(affected, k, label), fontsize=9, loc="center")
        figure.suptitle(wrapped(f"{affected.name}, {split_name(affected.held_out)}", 52), fontsize=10)
    return figure


def _title(affected: AffectedInputs, k: int, label: Callable[[int], str]) -> str:
    numbers = [int(of[k]) for of in (affected.before, affected.after, affected.labels)]
    before, after, true = (label(number) for number in numbers)
    change = f"{before} → {after}" if before != after else f"still {after}"
    if numbers[2] < 0:
        return change
    return f"{change}\n{'right' if after == true else f'wrong, is {true}'}"


def _image(pixels: Any) -> Any:
    """``(H, W)`` or ``(H, W, 3)`` in 0 to 1."""
    shown = pixels if pixels.ndim == 2 else pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, -1)
    low, high = float(shown.min()), float(shown.max())
    return (shown - low) / (high - low) if high > low else np.zeros_like(shown, dtype=np.float64)
