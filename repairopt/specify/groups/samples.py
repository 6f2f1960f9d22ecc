"""Inputs by group, for group fairness: drawn by setting the protected feature, or real rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError, shown
from repairopt.network import (
    check_beside,
    check_inputs,
    check_labelled,
    column_names,
    column_position,
    is_frame,
    listed_values,
    refuse_missing,
)
from repairopt.specify.expected import is_sequence
from repairopt.specify.sample_weights import Array, effective_count, kish_counts, row_weights

MANY = 10  # groups up to which there may be as many as rows


@dataclass(frozen=True, eq=False)
class GroupSamples:
    """Inputs ``(M, ...)``, the group index of each ``member (M,)``, and one name for each group.

    The groups of ``paired`` samples stand one after the other and differ in the protected feature alone, row by row;
    ``redraw`` makes the same kind of samples from other rows, where that is known. ``rows`` are the positions of real
    rows among those passed, None where inputs were made; ``left_out`` how many of those are in no group; ``columns``
    the names of a frame's columns; ``small`` are groups with too few rows, each with its number of rows; ``weights``
    say how much each row counts ``(M,)``, None for all the same.
    """

    inputs: Tensor
    member: Tensor
    names: tuple[str, ...]
    paired: bool = False
    redraw: Callable[[Any], GroupSamples] | None = field(default=None, repr=False)
    rows: Tensor | None = field(default=None, repr=False)
    columns: tuple[str, ...] = ()
    left_out: int = 0
    small: tuple[tuple[str, int], ...] = ()
    weights: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        counts = torch.bincount(self.member, self.weights, minlength=len(self.names))
        if float(counts.min()) == 0:
            what = "rows" if self.weights is None else "rows of a weight above 0"
            raise SpecificationError(f"group '{self.names[int(counts.argmin())]}' has no {what}; leave it out.")

    @property
    def known(self) -> Tensor:
        """Positions of the real rows among those passed."""
        return torch.arange(len(self.member)) if self.rows is None else self.rows

    @property
    def q(self) -> int:
        """Number of groups."""
        return len(self.names)

    @cached_property
    def counts(self) -> Tensor:
        """Rows of each group, ``(q,)``."""
        return torch.bincount(self.member, minlength=self.q)

    @cached_property
    def cells(self) -> Tensor:
        """How much each row counts in each group, ``(q, M)``, float64: 0 or 1, or 0 or its weight."""
        member = torch.nn.functional.one_hot(self.member, self.q).T.double()
        return member if self.weights is None else member * self.weights

    @cached_property
    def effective(self) -> Tensor:
        """Rows of each group ``(q,)``; of weighted ones the number of unweighted rows that would be as certain."""
        return self.counts if self.weights is None else kish_counts(self.weights, self.cells > 0)

    @cached_property
    def _weights(self) -> Tensor:
        return self.cells / self.cells.sum(1, keepdim=True)

    def weighted(self, owner: str, sample_weight: Any) -> GroupSamples:
        """The same with weights ``(N,)`` of the rows that were passed; ``owner`` asks. Drawn inputs have none."""
        if self.rows is None and self.redraw is not None:
            raise SpecificationError(f"'{owner}': its inputs are drawn, and have no weights. Compare observed rows.")
        weights = row_weights(f"'{owner}'", sample_weight, None, len(self.member) + self.left_out)
        return replace(self, weights=None if weights is None else weights[self.known])

    def mean_by_group(self, values: Tensor) -> Tensor:
        """Mean of ``values (M, c)`` over each group, ``(q, c)``; works inside ``vmap`` and under differentiation."""
        if self.paired:
            return values.reshape(self.q, -1, values.shape[-1]).mean(1)
        with torch.autocast(values.device.type, enabled=False):  # which would round rates
            if (
                values.dtype == torch.float64 and not values.requires_grad
            ):  # of counts: sums are exact, then one rounding
                return self.cells.to(values) @ values / self.cells.sum(1, keepdim=True).to(values)
            return self._weights.to(values) @ values

    def hits(self, rates: Tensor, counts: Tensor, cells: Callable[[], Tensor], favored: Tensor) -> tuple[Array, Array]:
        """Hits ``(c', q)`` and rows ``(c, q)`` behind rates ``(c', q)``, effective ones if weighted.

        ``counts (c, q)`` are rows, ``cells (c, q, M)`` how much each input counts, ``favored (M,)`` which are hits.
        """
        rows, shares = counts.double().cpu().numpy(), rates.detach().double().cpu().numpy()
        if self.weights is None:
            return np.round(shares * rows), rows
        values, mine = favored.detach().double().cpu().numpy(), cells().numpy().reshape(-1, len(self.member))
        rows = np.reshape([float(effective_count(values[one > 0], one[one > 0])) for one in mine], rows.shape)
        return shares * rows, rows

    def details(self) -> dict[str, float]:
        """How many rows are in no group that is compared, where there are any; small groups by name."""
        small = {f"rows left out, small group {name}": float(count) for name, count in self.small}
        others = self.left_out - sum(count for _, count in self.small)
        return small | ({"rows left out, in no group compared": float(others)} if others else {})

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
        own: Any = {name: None if part is None else part[pick] for name, part in self._by_row.items()}
        return replace(self, inputs=self.inputs[pick.to(self.inputs.device)], member=self.member[pick], **own)

    def where(self, keep: Tensor) -> GroupSamples:
        """The inputs of a mask ``(M,)``; they no longer count as paired."""
        mask = keep.cpu()
        own: Any = {name: None if part is None else part[mask] for name, part in self._by_row.items()}
        chosen = self.inputs[keep.to(self.inputs.device)]
        return replace(self, inputs=chosen, member=self.member[mask], paired=False, **own)

    @property
    def _by_row(self) -> dict[str, Tensor | None]:
        return {"rows": self.rows, "weights": self.weights}

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
    column: Any,
    values: Any = None,
    *,
    sensitive_features: Any = None,
    labels: Sequence[str] = (),
    min_rows: int = 1,
    sample_weight: Any = None,
) -> GroupSamples:
    """Divide real rows ``(N, ...)`` into groups, by a column or by ``sensitive_features (N,)`` of any type.

    Several columns or features (a list of arrays, a table ``(N, m)``, a frame, a mapping by name) are crossed: there is
    a group for each combination that occurs, such as ``"Female, Black"``, and ``values`` are tuples.

    Rows with other than the ``values`` given, and then those without a group, are left out and counted; so are those of
    groups with fewer than ``min_rows`` rows, which are named. ``owner`` is who asks, ``labels`` are
    names of the columns, ``sample_weight (N,)`` says how much each row counts.

    Raises:
        SpecificationError: Neither or both ways to tell the group, sizes disagree, or a group without rows.
    """
    if isinstance(values, str):
        raise SpecificationError(f"'{owner}': values={values!r}; expected a list of groups, such as [{values!r}, ...].")
    if isinstance(min_rows, bool) or not isinstance(min_rows, int) or min_rows < 1:
        raise SpecificationError(f"'{owner}': min_rows={min_rows!r}; expected a whole number, 1 or more.")
    if (column is None) == (sensitive_features is None):
        raise SpecificationError(f"'{owner}': pass either column or sensitive_features, to tell each row's group.")
    check_beside(f"'{owner}'", inputs, sensitive_features=sensitive_features, sample_weight=sample_weight)
    several = isinstance(column, list | tuple)
    places: list[int] = []
    heads: list[str] = []
    if column is None:
        told = _told_by_features(owner, inputs, sensitive_features, values)
    else:
        places = [column_position(owner, inputs, one) for one in (column if several else (column,))]
        heads = list(labels) or [_label(one) for one in (column if several else (column,))]
        told = _told_by_columns(owner, inputs, places, heads, values, several)
    x, own_group, found, name = told
    found, small = _large_enough(owner, own_group, found, name, min_rows)
    place = {value: a for a, value in enumerate(found)}
    member = torch.tensor([place.get(label, -1) for label in own_group])
    known = member >= 0
    if len(found) > MANY and 2 * len(found) > int(known.sum()):
        raise SpecificationError(
            f"'{owner}': {len(found)} groups for {int(known.sum())} rows; expected a few groups with many rows each. "
            f"Divide numbers into ranges, as by pandas.cut(values, 4), and pass them as sensitive_features."
        )

    def redraw(other: Any) -> GroupSamples:
        again = column if is_frame(other) else (places if several else places[0])
        return observed_groups(owner, other, again, found, labels=heads)

    own: Any = {"rows": known.nonzero()[:, 0], "columns": column_names(inputs), "left_out": int((~known).sum())}
    own |= {"small": small, "redraw": None if column is None else redraw}
    samples = GroupSamples(x[known], member[known], tuple(map(name, found)), **own)
    return samples if sample_weight is None else samples.weighted(owner, sample_weight)


def _told_by_features(owner: str, inputs: Any, features: Any, values: Any) -> tuple[Tensor, list[Any], list[Any], Any]:
    """Rows, the value of each, the groups, and how a group is called."""
    x, _ = check_inputs(f"'{owner}'", inputs, integers=True)
    labels = crossed_values(owner, features)
    if len(labels) != len(x):
        crossed = isinstance(labels[0], tuple) if labels else False
        hint = " Several features are crossed: pass one list for each feature, not one for each row." if crossed else ""
        raise SpecificationError(f"'{owner}': {len(labels)} sensitive_features for {len(x)} inputs.{hint}")
    if values is None:
        refuse_missing(f"'{owner}'", "group", labels)
    elif not is_sequence(values) or not all(isinstance(value, Hashable) for value in values):
        raise SpecificationError(f"'{owner}': values={shown(values)}; expected a list of groups.")

    def name(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return x, labels, sorted(set(labels), key=name) if values is None else list(values), name


def _told_by_columns(
    owner: str, inputs: Any, places: list[int], heads: list[str], values: Any, several: bool
) -> tuple[Tensor, list[Any], list[Any], Any]:
    """The same where columns of the inputs tell the groups."""
    x, found = _protected(owner, inputs, places[0], None if several else values)
    for where in places[1:]:
        _protected(owner, inputs, where, None)
    rows = [tuple(row) for row in x[:, places].double().tolist()]
    labels: list[Any] = list(rows) if several else [row[0] for row in rows]
    groups: list[Any] = list(found)
    if several:
        groups = sorted(set(rows)) if values is None else [tuple(map(float, value)) for value in values]

    def name(value: Any) -> str:
        return ", ".join(f"{head} = {part:g}" for head, part in zip(heads, value if several else (value,), strict=True))

    return x, labels, groups, name


def _large_enough(
    owner: str, labels: list[Any], found: list[Any], name: Callable[[Any], str], min_rows: int
) -> tuple[list[Any], tuple[tuple[str, int], ...]]:
    """The groups with at least ``min_rows`` rows, and the others with their number of rows; no group may be empty."""
    if len(found) < 2:
        raise SpecificationError(f"'{owner}': only one group, {found}; a gap needs at least two.")
    counts = Counter(labels)
    empty = [name(value) for value in found if not counts[value]]
    if empty:
        raise SpecificationError(f"'{owner}': group {empty[0]} has no rows. Leave it out of values.")
    small = tuple((name(value), counts[value]) for value in found if counts[value] < min_rows)
    large = [value for value in found if counts[value] >= min_rows]
    if len(large) < 2:
        raise SpecificationError(
            f"'{owner}': min_rows={min_rows} leaves {len(large)} of the groups {', '.join(map(name, found))}; expected "
            f"two or more. Choose a smaller number."
        )
    return large, small


def labelled_groups(
    name: str, inputs: Any, labels: Any, column: Any, values: Any, options: dict[str, Any]
) -> tuple[GroupSamples, Tensor]:
    """Labelled rows by group, and the labels of those rows that are in one; takes its own from ``options``.

    Args:
        name: Who asks, for messages.
        inputs: Rows ``(N, ...)``.
        labels: True labels ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        column: As of :func:`observed_groups`.
        values: As there.
        options: Of ``observed`` of a property; ``sensitive_features``, ``min_rows`` and ``sample_weight`` are taken
            out of it.
    """
    own = rows_options(options)
    check_beside(f"'{name}'", inputs, labels=labels, **{k: v for k, v in own.items() if k != "min_rows"})
    x, y = check_labelled(f"'{name}'", inputs, labels, integers=True)
    rows = inputs if is_frame(inputs) else x
    samples = observed_groups(name, rows, column, values, **own)
    return samples, y[samples.known]


def rows_options(options: dict[str, Any]) -> dict[str, Any]:
    """What ``observed`` of a property was told of its rows, taken out of its options."""
    defaults = {"sensitive_features": None, "min_rows": 1, "sample_weight": None}
    return {name: options.pop(name, default) for name, default in defaults.items()}


def crossed_values(owner: str, features: Any) -> list[Any]:
    """One value for each row; a tuple where several features are given, whose values are crossed."""
    parts: list[Any] = []
    if isinstance(features, Mapping):
        parts = list(features.values())
    elif hasattr(features, "columns") and hasattr(features, "to_numpy"):
        parts = [features[name] for name in features.columns]
    elif len(getattr(features, "shape", ())) == 2:
        parts = [features[:, k] for k in range(features.shape[1])]
    elif isinstance(features, list | tuple) and features and all(_is_list(one) for one in features):
        parts = list(features)
    if len(parts) < 2:
        return listed_values(f"'{owner}'", "sensitive_features", parts[0] if parts else features)
    lists = [listed_values(f"'{owner}'", f"sensitive_features {k + 1}", part) for k, part in enumerate(parts)]
    for k, values in enumerate(lists):
        if len(values) != len(lists[0]):
            raise SpecificationError(
                f"'{owner}': sensitive_features 1 has {len(lists[0])} rows, number {k + 1} has {len(values)}; expected "
                f"one value for each row in each."
            )
        refuse_missing(f"'{owner}'", "group", values)
    return list(zip(*lists, strict=True))


def _is_list(value: Any) -> bool:
    """Whether one of several features is a list of values, not one value."""
    return isinstance(value, list) or len(getattr(value, "shape", ())) == 1


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
