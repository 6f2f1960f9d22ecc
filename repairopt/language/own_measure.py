"""A function of the user as a property: ``custom("module:function") <= 0.01``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .row_sets import RowSet


@dataclass(frozen=True, eq=False)
class OwnMeasure:
    """The user's function of ``predict`` and rows as a property; ``target`` is in the library's direction.

    ``sign`` is -1 where larger is better; ``name`` is what reports call it.
    """

    function: Callable[..., Any]
    rows: RowSet
    target: float
    name: str
    sign: float

    def value(self, predict: Any) -> torch.Tensor:
        """What the function returns."""
        found = torch.as_tensor(self.function(predict, self.rows))
        return self.sign * (found if found.is_floating_point() else found.double())
