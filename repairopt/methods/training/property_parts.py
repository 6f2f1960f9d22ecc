"""A property on parts of its inputs, one for each step of a training."""

from __future__ import annotations

from typing import Any

from repairopt.errors import SpecificationError
from repairopt.specify import Folds, Restrictable, inputs_of


def parts_of(item: Any, size: int, seed: int) -> list[Any]:
    """A property on parts of about ``size`` inputs each; whole where it cannot be divided."""
    inputs = inputs_of(item)
    count = -(-len(inputs) // size) if inputs is not None and isinstance(item, Restrictable) else 1
    while count > 1:
        folds = Folds(count, seed)
        try:
            return [item.where(lambda x, k=k, folds=folds: folds.of(x) == k) for k in range(count)]
        except SpecificationError:  # a part lacks a group or a class
            count //= 2
    return [item]
