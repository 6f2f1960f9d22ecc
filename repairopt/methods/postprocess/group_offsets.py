"""GroupOffsets: a network whose outputs can be moved for each group alone, by weights that a repair may set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, SpecificationError
from repairopt.network import check_inputs, column_position, shadow
from repairopt.specify import is_sequence

MOST_VALUES = 50  # of a column that is divided by its values


class GroupOffsets(nn.Module):
    """A network with ``offsets``, numbers that are added to its outputs, one row for each group of its inputs.

    At first they are 0 and the answers those of the network; a repair sets them with ``weights="offsets"``, alone or
    beside other weights (``["offsets", "network.fc5.*"]``); ``weights="auto"`` considers them. Thresholds by group are
    the same thing for two classes (Hardt, Price and Srebro 2016), but here they are weights: they are chosen together
    with others, under any bounds, and stay inside the network, its patch and its ONNX file.

    The network reads the group when it decides. Where the law forbids that, neither this nor the column of a protected
    input may be used.

    Attributes:
        network: The network given; shared, not copied, and never modified.
        column: Positions of the columns that tell the group.
        offsets: ``(q, k)``, of each group for each output.

    References:
        Hardt, Price and Srebro, Equality of Opportunity in Supervised Learning, NeurIPS 2016.
    """

    values: Tensor
    group: Tensor

    def __init__(
        self,
        network: nn.Module,
        inputs: Any,
        column: int | str | Sequence[int | str],
        *,
        values: Sequence[float | Sequence[float]] | None = None,
        cuts: Sequence[float] | None = None,
    ) -> None:
        """Give a network offsets.

        Args:
            network: From rows ``(N, d)`` to outputs ``(N, k)``.
            inputs: Some rows, array, tensor or frame ``(N, d)``: for the values of the column and the number of
                outputs.
            column: The column that tells the group, by position or by a frame's name; a sequence of columns that are
                0 or 1 (one-hot) has a group for each.
            values: Value, or values, of each group in that column; inputs with another one get no offset. None for
                a group for each value that occurs.
            cuts: Divide the column into ranges in place of values, rising: a value of ``cuts[0]`` or more, and below
                ``cuts[1]``, is in the second of ``len(cuts) + 1`` groups.

        Raises:
            SpecificationError: Columns, values or cuts do not fit the inputs.
            ModelError: The network does not take the rows, or gives no outputs ``(N, k)``.
        """
        super().__init__()
        if not isinstance(network, nn.Module):
            raise ModelError(f"GroupOffsets: expected a torch.nn.Module, got {type(network).__name__}.")
        x, _ = check_inputs("GroupOffsets", inputs)
        several = isinstance(column, Sequence) and not isinstance(column, str)
        columns: list[Any] = [*column] if isinstance(column, Sequence) and not isinstance(column, str) else [column]
        self.column = tuple(column_position("GroupOffsets", inputs, one) for one in columns)
        self.by_range = cuts is not None
        _check_columns(x, self.column, several, values, cuts)
        if several:
            groups: list[list[float]] = [[1.0] for _ in columns]
        elif cuts is not None:
            groups = [[cut] for cut in _numbers("cuts", cuts)]
        else:
            groups = _groups_of(x[:, self.column[0]], values)
        own = [value for group in groups for value in group]
        count = len(groups) + 1 if self.by_range else len(groups)
        like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(1))
        member = torch.tensor([k for k, group in enumerate(groups) for _ in group])
        table = nn.functional.one_hot(member, len(groups)).double()
        offsets = torch.zeros(count, _outputs(network, x[:2].to(like)), dtype=like.dtype)
        self._fill(network, torch.tensor(own, dtype=torch.float64), table, offsets.to(like.device))

    @classmethod
    def from_parts(cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GroupOffsets:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`; :meth:`parts` are what it is made of.

        Args:
            network: From rows ``(N, d)`` to outputs ``(N, k)``.
            settings: ``columns``, their positions, and ``by_range``.
            tensors: ``values`` ``(v,)``, ``group`` ``(v, q)`` and ``offsets`` ``(q, k)``.

        Raises:
            ValueError: They do not fit together.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.column, made.by_range = tuple(int(one) for one in settings["columns"]), bool(settings["by_range"])
        values, group, offsets = (tensors[name] for name in ("values", "group", "offsets"))
        count = len(values) + 1 if made.by_range else group.shape[-1]
        fits = values.ndim == 1 and group.ndim == 2 and len(group) == len(values) and offsets.ndim == 2
        if not fits or len(offsets) != count or not made.column or min(made.column) < 0:
            raise ValueError(f"columns {made.column}, values {values.shape}, group {group.shape}, {offsets.shape}")
        like = next((p for p in network.parameters() if p.is_floating_point()), offsets)
        made._fill(network, values, group, offsets.to(like))
        return made

    def parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors that :meth:`from_parts` makes the module of again."""
        tensors = {"values": self.values, "group": self.group, "offsets": self.offsets.detach()}
        return {"columns": list(self.column), "by_range": self.by_range}, tensors

    def _fill(self, network: nn.Module, values: Tensor, group: Tensor, offsets: Tensor) -> None:
        self.network, self.training = network, network.training
        self.register_buffer("values", values.to(offsets.device))
        self.register_buffer("group", group.to(offsets.device))
        self.offsets = nn.Parameter(offsets.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` of rows ``(N, d)``."""
        group = self.membership(inputs)  # first: the network may write into its inputs
        outputs: Tensor = self.network(inputs)
        return outputs + group.to(outputs.dtype) @ self.offsets

    def membership(self, inputs: Tensor) -> Tensor:
        """Which group each row is in, 0 or 1, ``(N, q)``."""
        known = inputs[:, list(self.column)]
        if self.by_range:
            above = (known >= self.values.to(known.dtype)).to(self.offsets.dtype)
            every = torch.ones_like(above[:, :1])
            return torch.cat([every, above], 1) - torch.cat([above, torch.zeros_like(every)], 1)
        equal = (known == self.values.to(known.dtype)).to(self.offsets.dtype)
        return equal @ self.group.to(equal.dtype)


def _check_columns(x: Tensor, columns: Sequence[Any], several: bool, values: Any, cuts: Any) -> None:
    if x.ndim != 2:
        raise SpecificationError(f"GroupOffsets: inputs have shape {tuple(x.shape)}; expected rows (N, d).")
    for one in columns:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < x.shape[1]:
            raise SpecificationError(
                f"GroupOffsets: column={one!r} does not exist in inputs of shape {tuple(x.shape)}; expected 0 to "
                f"{x.shape[1] - 1}, or a name of a frame's column."
            )
    if sum(given for given in (several, values is not None, cuts is not None)) > 1:
        raise SpecificationError("GroupOffsets: pass one of several columns, values= and cuts=.")
    if several:
        if len(columns) < 2 or len(set(columns)) < len(columns):
            raise SpecificationError(f"GroupOffsets: column={list(columns)}; expected at least two different columns.")
        found = x[:, list(columns)]
        if not bool(((found == 0) | (found == 1)).all()):
            raise SpecificationError(
                f"GroupOffsets: columns {list(columns)} hold other values than 0 and 1, so they are not one-hot. Pass "
                f"one column, with values= or cuts=."
            )
    if cuts is not None:
        rising = _numbers("cuts", cuts)
        if not rising or any(low >= high for low, high in pairwise(rising)):
            raise SpecificationError(f"GroupOffsets: cuts={rising}; expected rising numbers, at least one.")


def _groups_of(found: Tensor, values: Any) -> list[list[float]]:
    occur = found.unique().tolist()
    if values is None:
        if not 2 <= len(occur) <= MOST_VALUES:
            raise SpecificationError(
                f"GroupOffsets: the column has {len(occur)} values; expected 2 to {MOST_VALUES}. Pass values= or cuts=."
            )
        return [[value] for value in occur]
    groups = [_numbers("values", [one] if isinstance(one, Real) else one) for one in _sequence("values", values)]
    every = [value for group in groups for value in group]
    if len(groups) < 2 or not all(groups) or len(set(every)) < len(every):
        raise SpecificationError(
            f"GroupOffsets: values={values!r}; expected at least two groups, each with a value or more, none twice."
        )
    missing = [group for group in groups if not set(torch.tensor(group, dtype=found.dtype).tolist()) & set(occur)]
    if missing:
        raise SpecificationError(
            f"GroupOffsets: no input has a value of {missing[0]} in the column; it has {occur[:10]}. Leave the group "
            f"out, or pass the values as the network reads them."
        )
    return groups


def _sequence(name: str, given: Any) -> list[Any]:
    if not is_sequence(given):
        raise SpecificationError(f"GroupOffsets: {name}={given!r}; expected a sequence of numbers.")
    return list(given)


def _numbers(name: str, given: Any) -> list[float]:
    found = _sequence(name, given)
    for one in found:
        if not isinstance(one, Real) or not isfinite(one):
            raise SpecificationError(f"GroupOffsets: {name} holds {one!r}; expected finite numbers.")
    return [float(one) for one in found]


def _outputs(network: nn.Module, rows: Tensor) -> int:
    """Number of outputs; the network is left as it was."""
    try:
        with torch.no_grad():
            found = shadow(network)(rows)
    except Exception as error:
        raise ModelError(
            f"GroupOffsets: {type(network).__name__} does not take rows of shape {tuple(rows.shape)} "
            f"({type(error).__name__}: {error})."
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"GroupOffsets: {type(network).__name__} gives {what}; expected outputs (N, k).")
    return found.shape[1]
