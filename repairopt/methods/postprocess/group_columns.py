"""Which input columns tell the groups that a property compares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.methods.task import Task
from repairopt.specify import Divided, inputs_of, measured

from .group_offsets import MOST_VALUES, GroupOffsets
from .two_networks import network_of_logits


def with_offsets(task: Task, method: Any) -> tuple[GroupOffsets, dict[str, Any]]:
    """The network of a repair with an offset for each group and logit, all 0; what settings say of its outputs.

    Args:
        task: The repair.
        method: Has ``column``, ``values`` and ``cuts`` as :class:`GroupOffsets`; ``column=None`` finds the columns
            that tell the groups of the goal, or else of a bound.

    Raises:
        SpecificationError: No property compares groups, no column tells them, or see :func:`network_of_logits`.
    """
    name = f"method {type(method).__name__}"
    network, read = network_of_logits(task, method)
    items = [measured(item) for item in (task.goal, *task.constraints)]
    compared: Any = next((item.samples for item in items if isinstance(item, Divided)), None)
    if compared is None:
        if method.column is None:
            raise SpecificationError(
                f"{name}: neither the goal '{task.goal.name}' nor a bound compares groups. Pass column=, the position "
                f"of the input column that tells the group."
            )
        inputs = _any_inputs(task, name)
    else:
        inputs = compared.inputs
    how: dict[str, Any] = {"column": method.column, "values": method.values, "cuts": method.cuts}
    if method.column is None:
        if method.values is not None or method.cuts is not None:
            raise SpecificationError(f"{name}: values= and cuts= divide a column; pass column= as well.")
        found = find_columns(inputs, compared.member)
        if found is None:
            raise SpecificationError(
                f"{name}: no column of the inputs of shape {tuple(inputs.shape)} tells the groups "
                f"{', '.join(compared.names)}. The network must read the group; pass column= (and values= or cuts=)."
            )
        how = found
    return GroupOffsets(network, inputs, how.pop("column"), **how), read


def find_columns(inputs: Tensor, member: Tensor) -> dict[str, Any] | None:
    """The column whose values, the one-hot columns that, or the column whose ranges tell the groups; None without.

    Args:
        inputs: Rows ``(M, d)``.
        member: Group of each, ``(M,)``.

    Returns:
        Arguments of :class:`GroupOffsets`.
    """
    if inputs.ndim != 2:
        return None
    x, member, count = inputs.detach().cpu(), member.cpu(), int(member.max()) + 1
    by_values = {}
    for j in range(x.shape[1]):
        values, place = x[:, j].unique(return_inverse=True)
        if count <= len(values) <= MOST_VALUES:
            owners = torch.zeros(len(values), count, dtype=torch.bool)
            owners[place, member] = True
            if bool((owners.sum(1) == 1).all()):
                by_values[j] = [values[owners[:, a]].tolist() for a in range(count)]
    if by_values:
        column = min(by_values, key=lambda j: sum(map(len, by_values[j])))
        return {"column": column, "values": by_values[column]}
    one_hot = [_equal_column(x, member == a) for a in range(count)]
    if None not in one_hot:
        return {"column": one_hot}
    for j in range(x.shape[1]):
        ends = sorted((float(x[member == a, j].min()), float(x[member == a, j].max())) for a in range(count))
        if all(high < low for (_, high), (low, _) in zip(ends, ends[1:], strict=False)):
            return {"column": j, "cuts": [low for low, _ in ends[1:]]}
    return None


def _equal_column(x: Tensor, mask: Tensor) -> int | None:
    same = (x == mask[:, None].to(x)).all(0).nonzero()
    return int(same[0]) if len(same) else None


def _any_inputs(task: Task, name: str) -> Tensor:
    held = [inputs_of(measured(item)) for item in (task.goal, *task.constraints)]
    found = [x for x, _ in task.data] + [x for x in held if x is not None]
    if not found:
        raise SpecificationError(f"{name}: there are no inputs. Pass data=(inputs, labels) to solve_repair.")
    return found[0]
