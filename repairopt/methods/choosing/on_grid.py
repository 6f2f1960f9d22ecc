"""Repair of a quantized layer: every weight changes by whole steps of its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from repairopt.errors import SpecificationError
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Engine
from repairopt.program import Array, IntegerProgram, Program, grid
from repairopt.verify import Judgement

from .few_weights import Choosing

OFF_GRID = 0.01  # steps by which a weight may be off its grid: rounding of float32 among large codes


@dataclass(frozen=True)
class OnGrid(Choosing):
    """Weights change by whole steps of a grid, as those of an int8 layer do; a mixed-integer program.

    The weights of the model are ``step * code`` with whole codes, as in a dequantized or fake-quantized layer, and stay
    so. Exact for the last linear layer, as all rows are there.

    Attributes:
        step: Size of a step: one number; or for each parameter by name a number, or an array that broadcasts to its
            shape, such as ``(out, 1)`` for a scale of each output channel. None takes the largest ``|weight|`` of each
            output channel over the largest code, or of the whole tensor where that does not fit.
        bits: Bits of a code; codes reach from ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``.
    """

    step: float | Mapping[str, Any] | None = None
    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, {"bits": Expected(2, 16, whole=True)})

    def _formulate(self, task: Task, program: Program) -> IntegerProgram:
        step, codes = weight_grid(task.engine, self.step, self.bits)
        half = 2 ** (self.bits - 1)
        return grid(program, step, codes, (-half, half - 1))

    def _continue(self, task: Task, best: tuple[Judgement, Outcome]) -> Outcome:
        return replace(best[1], on_target=True, indivisible=True)


def weight_grid(engine: Engine, step: float | Mapping[str, Any] | None, bits: int) -> tuple[Array, Array]:
    """Step and present code of each chosen weight.

    Args:
        engine: The network and its ``n`` chosen weights.
        step: See :class:`OnGrid`.
        bits: See :class:`OnGrid`.

    Returns:
        Steps and codes, ``(n,)`` each; codes are whole numbers.

    Raises:
        SpecificationError: A weight is not on the grid, a step is not above 0, or its shape does not fit.
    """
    steps, codes = [], []
    parameters = dict(engine.model.named_parameters(remove_duplicate=False))
    for name, index in engine.indices.items():
        weight = parameters[name].detach().double().cpu()
        sizes = _steps(name, weight, step.get(name) if isinstance(step, Mapping) else step, bits)
        code = weight / sizes
        off = (code - code.round()).abs()
        if float(off.max()) > OFF_GRID:
            where = np.unravel_index(int(off.argmax()), tuple(weight.shape))
            raise SpecificationError(
                f"method OnGrid: entry {tuple(map(int, where))} of '{name}' is {float(off.max()):.2g} steps off its "
                f"grid; expected whole steps. Pass step= with the scale of the quantized layer."
            )
        flat = index.cpu()
        steps.append(sizes.expand_as(weight).flatten()[flat].numpy())
        codes.append(code.round().flatten()[flat].numpy())
    return np.concatenate(steps), np.concatenate(codes)


def _steps(name: str, weight: Any, step: Any, bits: int) -> Any:
    largest_code = 2 ** (bits - 1) - 1
    if step is None:
        rows = weight.abs().flatten(1).amax(1) if weight.ndim > 1 else weight.abs().amax()
        sizes = (rows / largest_code).reshape(-1, *[1] * (weight.ndim - 1)).clamp(min=1e-300)
        whole = (weight / sizes - (weight / sizes).round()).abs().max() <= OFF_GRID
        return sizes if bool(whole) else (weight.abs().max() / largest_code).clamp(min=1e-300)
    sizes = torch.as_tensor(step, dtype=torch.float64)
    try:
        sizes = sizes.expand_as(weight) if sizes.ndim else sizes
    except RuntimeError:
        raise SpecificationError(
            f"method OnGrid: the step of '{name}' has shape {tuple(sizes.shape)}; expected a number, or a shape that "
            f"broadcasts to {tuple(weight.shape)}, such as ({weight.shape[0]}, 1) for one of each output."
        ) from None
    if not bool(((sizes > 0) & torch.isfinite(sizes)).all()):
        raise SpecificationError(f"method OnGrid: a step of '{name}' is not above 0; pass the scale of the layer.")
    return sizes
