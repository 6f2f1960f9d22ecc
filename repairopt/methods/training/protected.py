"""Groups of rows by the protected columns of their inputs, for methods that treat groups alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repairopt.errors import SpecificationError

from .fit import Training

MOST = 50  # more values in the protected columns are no groups


@dataclass(frozen=True, kw_only=True)
class TrainedByGroup(Training):
    """Fields of the methods that train a network of a table by the groups of its rows.

    Attributes:
        protected: Columns of the protected attribute: one, or all of a one-hot code.
        anew: Whether training begins from random weights; otherwise from those of the original.
    """

    epochs: int = 50
    protected: tuple[int, ...] = ()
    anew: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_protected(type(self).__name__, self.protected)


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of rows.

    Attributes:
        columns: The protected columns: one, or several of a one-hot code.
        values: What each group has in them, ``(groups, columns)``.
        of: Group of each row, ``(N,)``.
    """

    columns: tuple[int, ...]
    values: Tensor
    of: Tensor

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.values)


def protected_groups(method: Any, inputs: Tensor) -> Groups:
    """The groups of the rows, by a method's field ``protected``.

    Raises:
        SpecificationError: No column is named, it is none of a table of numbers, or its rows form no groups.
    """
    name, columns = type(method).__name__, tuple(method.protected)
    check_protected(name, columns)
    if not columns:
        raise SpecificationError(
            f"method {name}: needs the protected columns of the inputs; pass protected=(5,) for column 5, or all "
            f"columns of a one-hot code."
        )
    if inputs.ndim != 2 or max(columns) >= inputs.shape[1]:
        raise SpecificationError(
            f"method {name}: protected={columns} names columns of a table; inputs have shape {tuple(inputs.shape)}."
        )
    values, of = torch.unique(inputs[:, list(columns)], dim=0, return_inverse=True)
    if not 2 <= len(values) <= MOST:
        raise SpecificationError(
            f"method {name}: protected={columns} has {len(values)} different values; expected 2 to {MOST} groups."
        )
    return Groups(columns, values, of)


def check_protected(name: str, columns: Sequence[Any]) -> None:
    """Refuse what are no different column numbers."""
    good = isinstance(columns, Sequence) and all(
        isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in columns
    )
    if not good or len(set(columns)) < len(columns):
        raise SpecificationError(f"method {name}: protected={columns!r}; expected different column numbers, 0 or more.")
