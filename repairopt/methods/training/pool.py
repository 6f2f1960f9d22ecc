"""Further rows from which methods select: their field ``pool``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.methods.material import Material
from repairopt.methods.task import Task
from repairopt.network import check_labelled

from .fit import Pair, joined


def labelled_pool(method: Any, task: Task, rows: Material) -> Pair:
    """The pool with its labels; without one the rows of goal and constraints, that is the repair set.

    Raises:
        SpecificationError: The pool has no labels.
    """
    name = type(method).__name__
    if method.pool is None:
        return joined(rows.failing, rows.passing)
    if isinstance(method.pool, Tensor):
        raise SpecificationError(f"method {name}: selects rows to learn; pass pool=(inputs, labels), with labels.")
    inputs, labels = check_labelled(f"method {name}: pool", *method.pool, integers=True)
    return inputs.to(task.engine.device), labels.to(task.engine.device)
