"""What points ask of the outputs, as linear rows: for methods that reason about a network outside of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from repairopt.errors import UnsupportedError
from repairopt.methods.task import Task
from repairopt.program import Array, LayeredNetwork, SmoothLayer
from repairopt.specify import samples_in
from repairopt.verify import layered_copy


@dataclass(frozen=True, eq=False)
class OutputRowsOfPoints:
    """Points and what their outputs ``y`` must hold: ``matrix[i] @ y >= least[i]``.

    Attributes:
        inputs: Flat, in float64, ``(N, d)``.
        matrix: ``(N, p, k)``.
        least: ``(N, p)``.
        value: ``matrix @ y`` of the original network, ``(N, p)``.
    """

    inputs: Array
    matrix: Array
    least: Array
    value: Array

    @property
    def wrong(self) -> Any:
        """Which points do not hold, ``(N,)``."""
        return (self.value < self.least).any(1)


def linear_copy(model: Any, shape: tuple[int, ...], method: object) -> LayeredNetwork:
    """A piecewise linear network as layers in NumPy; an UnsupportedError for one with smooth activations."""
    copy = layered_copy(model, shape)
    smooth = [layer.name for layer in copy.layers if isinstance(layer, SmoothLayer)]
    if smooth:
        raise UnsupportedError(
            f"method {type(method).__name__}: is for piecewise linear networks, and this one has {smooth[0]}. Choose "
            f"another method, such as prdnn."
        )
    return copy


def rows_of_outputs(task: Task, leads: tuple[Array, ...]) -> list[OutputRowsOfPoints]:
    """The rows of each constraint by sample, whose margins are linear in the outputs.

    Args:
        task: Its constraints are those of :func:`.least_norm.points_of`.
        leads: Smallest margins of each constraint, flat.
    """
    found = []
    for item, lead in zip(task.constraints, leads, strict=True):
        constraint: Any = item
        samples = samples_in(constraint)
        inputs = constraint.inputs[samples.to(constraint.inputs.device)]
        outputs = task.engine.predict()(inputs).detach().cpu().double()
        leaf = outputs.clone().requires_grad_()
        with torch.enable_grad():
            margins = constraint.margins_of(leaf, samples)
            sums = [margins[:, j].sum() for j in range(margins.shape[1])]
            slopes = torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in sums], 1).numpy()
        value = np.einsum("npk,nk->np", slopes, outputs.numpy())
        offset = margins.detach().numpy() - value
        flat = inputs.detach().cpu().double().flatten(1).numpy()
        found.append(OutputRowsOfPoints(flat, slopes, lead.reshape(value.shape) - offset, value))
    return found
