"""Two-dimensional slices of regions: what a network answers before and after, where it fails, and what is proved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from repairopt.errors import SpecificationError
from repairopt.program import ProofVerdict, RegionProof

from .drawing_library import load_matplotlib
from .evidence import RegionMap
from .plots import AFTER, QUIET, WORSE, drawing

GRID = 181  # points along each side of a slice
COLORS = ("#DCE9F5", "#FBE8C8", "#DDF0E4", "#EADCF0", "#F6DADA", "#E8E8E0", "#D5EEF0", "#F4F0CF", "#E3DDD3", "#D9D9EC")
Run = Callable[[Any], Any]  # outputs (N, k) of inputs (N, d), arrays


def map_region(
    before: Run,
    after: Run,
    proof: RegionProof,
    verdict: ProofVerdict,
    *,
    box: int = 0,
    axes: tuple[int, int] | None = None,
    through: Sequence[float] | None = None,
    lowest: bool = False,
    names: Sequence[str] = (),
) -> RegionMap:
    """Look at a slice of one box of a proof.

    Args:
        before: The original network: outputs ``(N, k)`` of inputs ``(N, d)``.
        after: The repaired network.
        proof: Its leaves are drawn.
        verdict: What the check found; boxes that it left open are drawn as such.
        box: Number of the box.
        axes: The two inputs that vary; by default those that leaves were cut in most.
        through: The point ``(d,)`` through which the slice runs; by default a violation, else the middle of an open
            box, else of the box.
        lowest: Whether the lowest output is the answer, as in ACAS Xu networks; else the highest.
        names: Names of the inputs.

    Raises:
        SpecificationError: The box is flat in all inputs but one, or an argument does not fit it.
    """
    if not 0 <= box < len(proof.lower):
        raise SpecificationError(f"map of a region: box {box}; expected one of 0 to {len(proof.lower) - 1}.")
    if proof.vertices is not None:
        raise SpecificationError("map of a region: slices are drawn of boxes of inputs, and a region is a polytope.")
    lower, upper, own = proof.lower[box], proof.upper[box], proof.leaf_box == box
    wide = np.flatnonzero(upper > lower)
    if axes is None and len(wide) > 1:
        cuts = [len(np.unique(proof.leaf_lower[own, dimension])) for dimension in wide]
        order = np.lexsort((-(upper - lower)[wide], -np.array(cuts)))[:2]
        axes = int(wide[order].min()), int(wide[order].max())
    if axes is None or len({*axes} & {*wide.tolist()}) != 2:
        raise SpecificationError(f"map of a region: axes {axes}; expected two inputs in which box {box} is not flat.")
    point = _point(proof, verdict, box) if through is None else np.asarray(through, dtype=np.float64)
    if point.shape != lower.shape or (point < lower).any() or (point > upper).any():
        raise SpecificationError("map of a region: the slice has to run through a point of the box.")
    pair = list(axes)
    sides = [np.linspace(lower[axis], upper[axis], GRID) for axis in pair]
    grid = np.repeat(point[None], GRID * GRID, axis=0)
    grid[:, pair] = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
    outputs = [np.asarray(run(grid), dtype=np.float64) for run in (before, after)]
    answers = [(one.argmin(1) if lowest else one.argmax(1)).reshape(GRID, GRID) for one in outputs]
    broken = [(proof.rows[box].values(one) <= 0).reshape(GRID, GRID) for one in outputs]
    leaves = _rectangles(proof.leaf_lower[own], proof.leaf_upper[own], point, pair)
    left = _rectangles(verdict.open_lower, verdict.open_upper, point, pair)
    said = tuple(names[axis] if len(names) > axis else f"input {axis}" for axis in pair)
    sizes = (lower[pair], upper[pair], answers[0], answers[1], broken[0], broken[1])
    return RegionMap(f"box {box}", (said[0], said[1]), *sizes, leaves, left, verdict.status.value, verdict.share)


def _point(proof: RegionProof, verdict: ProofVerdict, box: int) -> Any:
    lower, upper = proof.lower[box], proof.upper[box]
    inside = [one for one in (verdict.point,) if one is not None and ((one >= lower) & (one <= upper)).all()]
    if inside:
        return inside[0]
    own = np.asarray(verdict.open_box) == box
    if own.any():
        lower, upper = verdict.open_lower[own][0], verdict.open_upper[own][0]
    return lower / 2 + upper / 2


def _rectangles(lower: Any, upper: Any, point: Any, pair: list[int]) -> Any:
    """The boxes that a slice meets, as ``(L, 4)``: both lower and both upper ends."""
    others = [axis for axis in range(len(point)) if axis not in pair]
    met = ((lower[:, others] <= point[others]) & (upper[:, others] >= point[others])).all(1)
    return np.concatenate([lower[met][:, pair], upper[met][:, pair]], axis=1)


def plot_region_map(region: RegionMap, label: Callable[[int], str] = str) -> Any:
    """The slice before and after: answers as areas, failures hatched, proved leaves outlined, open ones filled."""
    load_matplotlib()
    import matplotlib.patches as shapes
    from matplotlib.colors import ListedColormap

    shares = f", {region.share:.4%} of the volume proved" if region.status == "undecided" else f", {region.status}"
    title = f"Answers on a slice of {region.name}{shares}"
    colors = ListedColormap(COLORS)
    extent = (region.lower[0], region.upper[0], region.lower[1], region.upper[1])
    with drawing(5.6, title, region.axes[0], region.axes[1], ratios=[1, 1]) as (figure, panels):
        panels[1].set_ylabel(region.axes[1])
        sides = (("before", region.before, region.broken_before), ("after", region.after, region.broken_after))
        for axes, (name, answers, broken) in zip(panels, sides, strict=True):
            options: Any = {"extent": extent, "origin": "lower", "aspect": "auto", "interpolation": "nearest"}
            axes.imshow(answers % len(COLORS), cmap=colors, vmin=-0.5, vmax=len(COLORS) - 0.5, **options)
            axes.grid(visible=False)
            places = [np.linspace(region.lower[k], region.upper[k], answers.shape[0]) for k in (0, 1)]
            if broken.any():
                axes.contourf(*places, broken.astype(float), levels=[0.5, 1.5], colors="none", hatches=["//////"])
                axes.contour(*places, broken.astype(float), levels=[0.5], colors=[WORSE], linewidths=1.2)
            share = f", fails on {broken.mean():.2%} of the slice" if broken.any() else ", holds on the slice"
            options = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
            axes.text(0.015, 0.96, name + share, transform=axes.transAxes, va="top", fontsize=9, bbox=options)
        for boxes, options in (
            (region.leaves, {"facecolor": "none", "edgecolor": AFTER, "linewidth": 0.5, "alpha": 0.8}),
            (region.open, {"facecolor": WORSE, "edgecolor": WORSE, "linewidth": 0.2, "alpha": 0.4}),
        ):
            for left, bottom, right, top in boxes:
                panels[1].add_patch(shapes.Rectangle((left, bottom), right - left, top - bottom, **options))
        shown = sorted({*np.unique(region.before).tolist(), *np.unique(region.after).tolist()})
        handles = [shapes.Patch(facecolor=COLORS[k % len(COLORS)], edgecolor=QUIET, label=label(k)) for k in shown]
        handles += [shapes.Patch(facecolor="none", edgecolor=AFTER, label="leaf of the proof")]
        if len(region.open):
            handles.append(shapes.Patch(facecolor=WORSE, alpha=0.4, label="not proved"))
        if region.broken_before.any() or region.broken_after.any():
            handles.append(shapes.Patch(facecolor="none", edgecolor=WORSE, hatch="//////", label="property fails"))
        figure.legend(handles=handles, loc="outside lower left", ncols=min(3, len(handles)), columnspacing=1.0)
    return figure
