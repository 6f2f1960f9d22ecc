"""Inputs by group, for group fairness: drawn by setting the protected feature, or real rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import (
    check_beside,
    check_inputs,
    column_names,
    column_position,
    is_frame,
    listed_values,
    refuse_missing,
)

MANY = 10  # groups up to which there may be as many as rows


@dataclass(frozen=True, eq=False)
class GroupSamples:
    """Inputs ``(M, ...)``, the group index of each ``member (M,)``, and one name for each group.

    The groups of ``paired`` samples stand one after the other and differ in the protected feature alone, row by row;
    ``redraw`` makes the same kind of samples from other rows, where that is known. ``rows`` are the positions of real
    rows among those passed, None where inputs were made; ``left_out`` how many of those are in no group; ``columns``
    the names of a frame's columns.
    """

    inputs: Tensor
    member: Tensor
    names: tuple[str, ...]
    paired: bool = False
    redraw: Callable[[Any], GroupSamples] | None = field(default=None, repr=False)
    rows: Tensor | None = field(default=None, repr=False)
    columns: tuple[str, ...] = ()
    left_out: int = 0

    def __post_init__(self) -> None:
        counts = torch.bincount(self.member, minlength=len(self.names))
        if int(counts.min()) == 0:
            raise SpecificationError(f"group '{self.names[int(counts.argmin())]}' has no rows; leave it out.")

    @property
    def q(self) -> int:
        """Number of groups."""
        return len(self.names)

    @cached_property
    def counts(self) -> Tensor:
        """Rows of each group, ``(q,)``."""
        return torch.bincount(self.member, minlength=self.q)

    @cached_property
    def _weights(self) -> Tensor:
        return torch.nn.functional.one_hot(self.member, self.q).T.double() / self.counts[:, None]

    def mean_by_group(self, values: Tensor) -> Tensor:
        """Mean of ``values (M, c)`` over each group, ``(q, c)``; works inside ``vmap`` and under differentiation."""
        if self.paired:
            return values.reshape(self.q, -1, values.shape[-1]).mean(1)
        with torch.autocast(values.device.type, enabled=False):  # which would round rates
            return self._weights.to(values) @ values

    def details(self) -> dict[str, float]:
        """How many rows are in no group, where there are any."""
        return {"rows left out, in no group compared": float(self.left_out)} if self.left_out else {}

    def subsample(self, count: int, seed: int = 0) -> GroupSamples:
        """At most ``count`` random inputs of each group; the same rows of each where the groups are paired."""
        draw = torch.Generator().manual_seed(seed)
        if self.paired:
            each = len(self.member) // self.q
            rows = torch.randperm(each, generator=draw)[:count].sort().values
            pick = torch.cat([rows + a * each for a in range(self.q)])
        else:
            groups = [(self.member == a).nonzero()[:, 0] for a in range(self.q)]
            pick = torch.cat([g[torch.randperm(len(g), generator=draw)[:count]].sort().values for g in groups])
        own: Any = None if self.rows is None else self.rows[pick]
        return replace(self, inputs=self.inputs[pick.to(self.inputs.device)], member=self.member[pick], rows=own)

    def where(self, keep: Tensor) -> GroupSamples:
        """The inputs of a mask ``(M,)``; they no longer count as paired."""
        mask = keep.cpu()
        rows: Any = None if self.rows is None else self.rows[mask]
        chosen = self.inputs[keep.to(self.inputs.device)]
        return replace(self, inputs=chosen, member=self.member[mask], paired=False, rows=rows)

    def again(self, inputs: Any) -> GroupSamples:
        """The same kind of samples from other rows; a SpecificationError where the groups were given as arrays."""
        if self.redraw is None:
            raise SpecificationError(
                "group gap: its groups were given as arrays, so other rows cannot be divided into groups. Pass the "
                "held-out gap yourself: held_out=(GroupGap.given(...),)."
            )
        return self.redraw(inputs)


def sampled_groups(
    owner: str,
    inputs: Any,
    column: int | str,
    values: Sequence[float] | None = None,
    *,
    count: int = 10_000,
    rest: str = "joint",
    seed: int = 0,
    label: str = "",
) -> GroupSamples:
    """Draw ``count`` inputs for each group: the protected column set, the others from their empirical distribution.

    ``owner`` is who asks, for messages; ``label`` what the column is called. ``rest="joint"`` draws whole rows, the
    same for each group; ``"marginals"`` draws each other column on its own; ``"conditional"`` draws rows of the group
    itself.

    Raises:
        SpecificationError: Unknown ``rest``, column out of range, fewer than two groups, or a group without rows.
    """
    where, label = column_position(owner, inputs, column), label or _label(column)
    x, found = _protected(owner, inputs, where, values)
    if rest not in ("joint", "marginals", "conditional"):
        raise SpecificationError(f"'{owner}': rest={rest!r}; choose from joint, marginals, conditional.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise SpecificationError(f"'{owner}': count={count!r}; expected a whole number, 1 or more.")
    options: dict[str, Any] = {"count": count, "rest": rest, "seed": seed + 1, "label": label}

    def redraw(other: Any) -> GroupSamples:
        return sampled_groups(owner, other, column if is_frame(other) else where, found, **options)

    draw = torch.Generator().manual_seed(seed)
    picks = [torch.randint(len(x), (count,), generator=draw) for _ in range(1 if rest == "joint" else x.shape[1])]
    parts = []
    for value in found:
        if rest == "conditional":
            own = (x[:, where] == value).nonzero()[:, 0]
            if not len(own):
                raise SpecificationError(f"'{owner}': no row has value {value:g} in {label}.")
            parts.append(x[own[torch.randint(len(own), (count,), generator=draw)]])
            continue
        rows = x[picks[0]] if rest == "joint" else torch.stack([x[p, j] for j, p in enumerate(picks)], dim=1)
        rows[:, where] = value
        parts.append(rows)
    names = tuple(f"{label} = {value:g}" for value in found)
    member = torch.arange(len(found)).repeat_interleave(count)
    known: Any = {"paired": rest != "conditional", "redraw": redraw, "columns": column_names(inputs)}
    return GroupSamples(torch.cat(parts), member, names, **known)


def observed_groups(
    owner: str,
    inputs: Any,
    column: int | str | None,
    values: Any = None,
    *,
    sensitive_features: Any = None,
    label: str = "",
) -> GroupSamples:
    """Divide real rows ``(N, ...)`` into groups, by a column or by ``sensitive_features (N,)`` of any type.

    Rows with other than the ``values`` given, and then those without a group, are left out and counted; ``owner`` and
    ``label`` as in :func:`sampled_groups`.

    Raises:
        SpecificationError: Neither or both ways to tell the group, sizes disagree, or a group without rows.
    """
    if isinstance(values, str):
        raise SpecificationError(f"'{owner}': values={values!r}; expected a list of groups, such as [{values!r}, ...].")
    if (column is None) == (sensitive_features is None):
        raise SpecificationError(f"'{owner}': pass either column or sensitive_features, to tell each row's group.")
    if column is not None:
        where, label = column_position(owner, inputs, column), label or _label(column)
        x, found = _protected(owner, inputs, where, values)
        member = torch.full((len(x),), -1)
        for a, value in enumerate(found):
            member[x[:, where] == value] = a
        names = tuple(f"{label} = {value:g}" for value in found)
        redraw: Any = lambda other: observed_groups(  # noqa: E731
            owner, other, column if is_frame(other) else where, found, label=label
        )
    else:
        check_beside(f"'{owner}'", inputs, sensitive_features=sensitive_features)
        x, _ = check_inputs(f"'{owner}'", inputs, integers=True)
        labels = listed_values(f"'{owner}'", "sensitive_features", sensitive_features)
        if len(labels) != len(x):
            raise SpecificationError(f"'{owner}': {len(labels)} sensitive_features for {len(x)} inputs.")
        if values is None:
            refuse_missing(f"'{owner}'", "group", labels)
        found = sorted(set(labels), key=str) if values is None else list(values)
        place = {value: a for a, value in enumerate(found)}
        member = torch.tensor([place.get(label, -1) for label in labels])
        names, redraw = tuple(str(value) for value in found), None
    if len(found) < 2:
        raise SpecificationError(f"'{owner}': only one group, {found}; a gap needs at least two.")
    counts = [int((member == a).sum()) for a in range(len(found))]
    if 0 in counts:
        raise SpecificationError(f"'{owner}': group {names[counts.index(0)]} has no rows. Leave it out of values.")
    known = member >= 0
    if len(found) > MANY and 2 * len(found) > int(known.sum()):
        raise SpecificationError(
            f"'{owner}': {len(found)} groups for {int(known.sum())} rows; expected a few groups with many rows each. "
            f"Divide numbers into ranges, as by pandas.cut(values, 4), and pass them as sensitive_features."
        )
    own: Any = {"rows": known.nonzero()[:, 0], "columns": column_names(inputs), "left_out": int((~known).sum())}
    return GroupSamples(x[known], member[known], names, redraw=redraw, **own)


def _label(column: int | str) -> str:
    return column if isinstance(column, str) else f"column {column}"


def _protected(owner: str, inputs: Any, column: int, values: Sequence[float] | None) -> tuple[Tensor, list[float]]:
    x, _ = check_inputs(f"'{owner}'", inputs, integers=True)
    x = x.to(torch.float32) if not x.is_floating_point() else x
    if x.ndim != 2 or not 0 <= column < x.shape[1]:
        raise SpecificationError(
            f"'{owner}': column {column} does not exist in inputs of shape {tuple(x.shape)}; expected rows (N, d) and "
            f"a column 0 to {x.shape[-1] - 1}."
        )
    found = [float(v) for v in (torch.unique(x[:, column]) if values is None else values)]
    if len(found) < 2:
        raise SpecificationError(f"'{owner}': column {column} has only one value, {found}; a gap needs two groups.")
    return x, found
