"""Functions and properties of the user, tried twice before a repair."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict

from .contracts import Property, measured, soft_value
from .margins import anchor, goal_value
from .specification import Specification

OWN = __name__.partition(".")[0] + "."  # modules of the library


def check_repeatable(spec: Specification, predictor: Callable[[], Predict]) -> None:
    """A SpecificationError where a function or property of the user gives no one number, or another each time."""
    for item in (spec.goal, *map(measured, spec.on_outputs)):
        if not isinstance(item, Property) or not (
            hasattr(item, "function") or not type(item).__module__.startswith(OWN)
        ):
            continue
        own = anchor(item, predictor())
        first, second = (goal_value(own, predictor()) for _ in range(2))
        if abs(first - second) > 1e-5 * max(1.0, abs(first)):
            raise SpecificationError(
                f"'{item.name}' is {first:g} and then {second:g} for the same network. Draw what is random once, "
                f"outside of the function, and read loaders in one order."
            )
        with torch.no_grad():
            soft = soft_value(own)(predictor())
        if isinstance(soft, Tensor) and soft.numel() != 1:
            raise SpecificationError(
                f"'{item.name}': soft_value returned shape {tuple(soft.shape)}; expected one number. Take a mean or a "
                f"maximum."
            )
