"""A function of the user as a property: ``custom("module:function") <= 0.01``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from repairopt.errors import RepairError
from repairopt.specify import ROWS, Argument, Given, Measure

from .python_code import load_code
from .row_sets import RowSet


def _make_own(kind: Any, given: Given) -> Any:
    rows = given.rows(labels=False)
    try:
        function = load_code(str(given.arguments["function"]), given.folder)
    except RepairError as error:
        raise given.fail("function", str(error)) from error
    below = bool(given.bounds) and given.bounds[0][0] == ">="
    return kind(function, rows, given.limit(), given.name, -1.0 if below else 1.0)


@dataclass(frozen=True, eq=False)
class OwnMeasure:
    """The user's function of ``predict`` and rows as a property; ``sign`` is -1 where larger is better."""

    function: Callable[..., Any]
    rows: RowSet
    target: float
    name: str
    sign: float

    measures = (
        Measure(
            "custom",
            "Your own: function(predict, data) gives a number; data has inputs, labels and columns.",
            'custom("measures:overconfidence") <= 0.01',
            "your own",
            ("<=", ">="),
            (Argument("function", "python", "the function"), *ROWS),
            _make_own,
            way="- ",
            makes="CallableProperty",
        ),
    )

    def value(self, predict: Any) -> torch.Tensor:
        """What the function returns."""
        found = torch.as_tensor(self.function(predict, self.rows))
        return self.sign * (found if found.is_floating_point() else found.double())
