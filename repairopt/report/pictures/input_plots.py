"""The most affected inputs, as images."""

from __future__ import annotations

from typing import Any

import numpy as np

from repairopt.errors import SpecificationError

from .evidence import AffectedInputs
from .style import SETTINGS, WIDTH, figure_class, split_name, wrapped

COLUMNS = 4


def plot_inputs(affected: AffectedInputs) -> Any:
    """A Matplotlib figure of the images, each with the answer before and after and whether that is right.

    Raises:
        SpecificationError: The inputs are no images.
    """
    if not affected.are_images:
        raise SpecificationError(
            f"'{affected.name}': inputs of shape {affected.inputs.shape[1:]} are no images; expected (H, W), (1, H, W) "
            f"or (3, H, W). The page shows them as a table."
        )
    made = figure_class()
    import matplotlib

    count = len(affected.rows)
    rows = -(-count // COLUMNS)
    with matplotlib.rc_context(SETTINGS):
        figure = made(figsize=(WIDTH, 0.75 + 1.62 * rows), layout="constrained")
        for k, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).flat):
            axes.axis("off")
            if k < count:
                axes.imshow(_image(affected.inputs[k]), cmap="gray", interpolation="nearest")
                axes.set_title(_title(affected, k), fontsize=9, loc="center")
        figure.suptitle(wrapped(f"{affected.name}, {split_name(affected.held_out)}", 52), fontsize=10)
    return figure


def _title(affected: AffectedInputs, k: int) -> str:
    before, after, label = int(affected.before[k]), int(affected.after[k]), int(affected.labels[k])
    change = f"{before} → {after}" if before != after else f"still {after}"
    if label < 0:
        return change
    return f"{change}\n{'right' if after == label else f'wrong, is {label}'}"


def _image(pixels: Any) -> Any:
    """``(H, W)`` or ``(H, W, 3)`` in 0 to 1."""
    shown = pixels if pixels.ndim == 2 else pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, -1)
    low, high = float(shown.min()), float(shown.max())
    return (shown - low) / (high - low) if high > low else np.zeros_like(shown, dtype=np.float64)
