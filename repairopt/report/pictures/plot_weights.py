"""Which weights changed, and by how much of their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .evidence import LayerChange
from .style import AFTER, drawing, wrapped


def plot_layers(layers: Sequence[LayerChange]) -> Any:
    """A Matplotlib figure: size of the change of each parameter, as a share of the parameter's size."""
    place = np.arange(len(layers))[::-1]
    shares = [100 * layer.relative if np.isfinite(layer.relative) else 0.0 for layer in layers]
    with drawing(1.1 + 0.32 * len(layers)) as (figure, axes):
        axes.barh(place, shares, color=AFTER, height=0.6)
        for at, share, layer in zip(place, shares, layers, strict=True):
            text = f" {_percent(share)} %, {layer.changed:,} of {int(np.prod(layer.shape)):,}"
            axes.annotate(text, (share, at), va="center", fontsize=8.5)
        axes.set_yticks(place, [wrapped(layer.name) for layer in layers])
        axes.set_xlim(0, max(shares) * 1.75 or 1.0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("change, % of the parameter's size; weights changed")
        axes.set_title("Change of each parameter")
    return figure


def _percent(share: float) -> str:
    return f"{share:,.0f}" if share >= 100 else f"{share:.2g}"


def plot_layer(layer: LayerChange) -> Any:
    """A Matplotlib figure: one parameter as a heat map, outputs down and inputs across; white is unchanged."""
    cells = layer.cells
    limit = float(np.abs(cells).max()) or 1.0
    with drawing(1.55 + min(3.0, max(0.35, 4.0 * cells.shape[0] / max(cells.shape)))) as (figure, axes):
        image = axes.imshow(cells, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axes.grid(visible=False)
        shape = " x ".join(map(str, layer.shape))
        axes.set_title(wrapped(f"{layer.name} ({shape}): {layer.changed:,} weights changed", 52))
        coarse = cells.size < np.prod(layer.shape)
        axes.set_xlabel("inputs of the layer" + (", several weights a cell" if coarse else ""))
        axes.set_ylabel("outputs" if cells.shape[0] > 1 else "")
        ticks = [np.unique(np.linspace(0, n - 1, min(n, 5)).astype(int)) for n in cells.shape]
        axes.set_yticks(ticks[0] if cells.shape[0] > 1 else [])
        axes.set_xticks(ticks[1])
        if coarse:
            axes.set_xticks([])
            axes.set_yticks([])
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=35, pad=0.04)
        bar.set_label("change over the rms of the parameter's weights")
    return figure
