"""The specification: one goal, what must stay true, what is verified only; and plain functions as goals."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError, shown
from repairopt.network import Predict, check_labelled, column_names, identity, is_dataset, to_tensors, usable

from .broken_rows import BrokenRows
from .contracts import (
    ChangeConstraint,
    Constraint,
    Divided,
    Property,
    PropertyBound,
    SampleConstraint,
    Statistical,
    Transferable,
    Unstated,
    answers_only,
    inputs_of,
    labels_of,
    measured,
    refuse_void,
)
from .folds import overlap
from .groups.kinds_of_gaps import other_kinds
from .margins import anchor
from .region_goals import as_region_goal
from .sample_weights import LabelledPair, is_weighted, row_weights, weighted

IN_WORDS = "A text is bound to rows first: bind_statement(text, Data({'repair': RowSet(inputs, labels)})).as_goal()."


@dataclass(frozen=True)
class CallableProperty:
    """A plain function ``predict -> number`` as a property.

    Attributes:
        function: Called with ``predict``; returns a float or a scalar tensor, smaller is better.
        target: The network counts as repaired when the function returns at most this.
        name: What the report calls it; the function's own name unless given.
    """

    function: Callable[[Predict], Any]
    target: float = Unstated(0.0)
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise SpecificationError(f"CallableProperty: name is {self.name!r}; expected a text.")
        if not self.name:
            object.__setattr__(self, "name", getattr(self.function, "__name__", type(self.function).__name__))

    def value(self, predict: Predict) -> Tensor:
        """Whatever the function returns, as a scalar tensor."""
        found = self.function(predict)
        number = (
            isinstance(found, Tensor)
            and not found.is_complex()
            or isinstance(found, int | float | np.number | np.bool_)
        )
        if not number:
            raise SpecificationError(
                f"'{self.name}' returned a {type(found).__name__}; expected one real number, or a tensor of one."
            )
        return found if isinstance(found, Tensor) else torch.tensor(found, dtype=torch.float64)


def as_property(goal: Any, target: float | None = None) -> Any:
    """A plain function, regions or a constraint as a property with a target; others as they are, or with it given.

    The target is 0 unless given, or what the constraint allows.
    """
    goal = as_region_goal(goal)
    if isinstance(goal, PropertyBound) and goal.limit is not None and not goal.relative:
        goal, target = goal.property, float(goal.limit if target is None else target)
    elif isinstance(goal, SampleConstraint) and not isinstance(goal, Property) and not isinstance(goal, type):
        goal = BrokenRows(goal)
    if callable(goal) and not hasattr(goal, "value") and not isinstance(goal, type):
        return CallableProperty(goal) if target is None else CallableProperty(goal, float(target))
    if target is None:
        return goal
    try:
        return replace(goal, target=float(target))
    except TypeError:
        raise SpecificationError(
            f"goal {goal!r}: target= can override the target of a dataclass only; set it on the object."
        ) from None


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Inputs ``(N, ...)`` and labels ``(N,)`` under a name."""

    name: str
    inputs: Tensor
    labels: Tensor
    held_out: bool = False


@dataclass(frozen=True)
class Specification:
    """One goal, the constraints, and what is verified but never optimized on.

    Attributes:
        goal: The property to bring to its target.
        constraints: What must stay true.
        held_out: Properties and constraints on data that the repair never sees. One with the name of the goal or of a
            constraint stands beside it in the report.
        watch: Further properties to report on repair data; neither goal nor constraint.
        protected: Input columns of protected attributes that nothing is asked of, by position or name;
            every choice of weights leaves them alone but one that names them (``Inputs``, a mask, positions).
        columns: Names of the input columns, in order, where they have some.
        others: Gaps of the kinds that nobody stated, where one kind is; reported in short.
        others_held_out: The same on held-out rows.
        labelled: Labelled rows that nothing else holds, from ``data=`` and ``held_out=``, for accuracy and recalls.
    """

    goal: Property
    constraints: tuple[Constraint | ChangeConstraint, ...] = ()
    held_out: tuple[Property | Constraint, ...] = ()
    watch: tuple[Property, ...] = ()
    protected: tuple[int | str, ...] = ()
    columns: tuple[str, ...] = ()
    others: tuple[Property, ...] = field(default=(), repr=False)
    others_held_out: tuple[Property, ...] = field(default=(), repr=False)
    labelled: tuple[LabelledRows, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        goal = as_property(self.goal)
        object.__setattr__(self, "goal", goal)
        target = getattr(goal, "target", 0.0)
        if target is None or isinstance(target, str | bool):
            raise SpecificationError(f"goal: target is {target!r}; expected a number, such as 0.05.")
        if isinstance(getattr(goal, "function", None), nn.Module):
            raise SpecificationError("goal: got a network; expected a property. Pass (model, goal), in this order.")
        if isinstance(goal, type) or not isinstance(goal, Property):
            raise SpecificationError(
                f"goal {reprlib.repr(goal)}: expected an object with name, target and value(predict), or a plain "
                f"function of predict; got {type(goal).__name__}. "
                f"{IN_WORDS if isinstance(goal, str) else 'repairopt.specify has ready-made ones.'}"
            )
        if not np.isfinite(float(goal.target)):
            raise SpecificationError(f"goal '{goal.name}': target is {goal.target}; expected a finite number.")
        refuse_void(f"goal '{goal.name}': target", goal, float(goal.target))
        for part in ("constraints", "held_out", "watch"):
            object.__setattr__(self, part, _as_tuple(part, getattr(self, part)))
        for item in self.constraints:
            if isinstance(item, type) or not isinstance(item, Constraint | ChangeConstraint):
                way = "repairopt.specify has ready-made ones."
                way = f"Bound({type(item).__name__}(...)) makes one of it." if isinstance(item, Property) else way
                way = IN_WORDS if isinstance(item, str) else way
                raise SpecificationError(
                    f"constraint {reprlib.repr(item)}: expected an object with name and margins(predict), or with name "
                    f"and rows(initial); got {type(item).__name__}. {way}"
                )
        for other in (*self.held_out, *self.watch):
            if isinstance(other, type) or not isinstance(other, Property | Constraint):
                raise SpecificationError(
                    f"held_out, watch: expected properties and constraints, or for held_out one pair (inputs, labels); "
                    f"got {type(other).__name__}."
                )
        self._name_columns()
        name, count = Counter(item.name for item in self.constraints).most_common(1)[0] if self.constraints else ("", 1)
        if count > 1:
            raise SpecificationError(
                f"constraints: the name '{name}' is used {count} times; reports and rows are told apart by name. Pass "
                f"name=... to tell them apart."
            )

    def _name_columns(self) -> None:
        """Take names from the frames that groups were made from, and positions of what is protected."""
        for what in ("protected", "columns"):
            given = getattr(self, what)
            listed = given.tolist() if hasattr(given, "tolist") and not getattr(given, "is_meta", False) else given
            if not isinstance(listed, tuple | list | range) or not all(isinstance(one, int | str) for one in listed):
                raise SpecificationError(f"{what}: got {shown(given)}; expected a list of columns, positions or names.")
            object.__setattr__(self, what, tuple(listed))
        if not self.columns:
            gaps = [one for one in map(measured, (self.goal, *self.constraints)) if isinstance(one, Divided)]
            named = next((gap.samples.columns for gap in gaps if getattr(gap.samples, "columns", ())), ())
            object.__setattr__(self, "columns", tuple(named))
        known, found = list(self.columns), []
        for column in self.protected:
            if isinstance(column, str) and column not in known:
                raise SpecificationError(
                    f"protected: there is no input column '{column}'; expected a position, or one of "
                    f"{', '.join(known[:20]) or 'the names in columns=, which has none'}."
                )
            found.append(known.index(column) if isinstance(column, str) else int(column))
        object.__setattr__(self, "protected", tuple(found))

    @property
    def on_outputs(self) -> tuple[Constraint, ...]:
        """The constraints that look at the network's outputs."""
        return tuple(c for c in self.constraints if isinstance(c, Constraint))

    @property
    def on_change(self) -> tuple[ChangeConstraint, ...]:
        """The constraints that look at the weight change alone."""
        return tuple(c for c in self.constraints if not isinstance(c, Constraint))

    @property
    def of_classes(self) -> tuple[str, ...]:
        """Names of what speaks of classes, among all that is stated."""
        return tuple(item.name for item in self._all if answers_only(item) or labels_of(item) is not None)

    @property
    def of_sizes(self) -> tuple[str, ...]:
        """Names of what reads the size of outputs, not the answers alone."""
        return tuple(item.name for item in self._all if not answers_only(item))

    @property
    def _all(self) -> tuple[Any, ...]:
        return (self.goal, *self.on_outputs, *self.watch, *self.held_out)

    def held_out_counts(self, predict: Predict) -> dict[str, int]:
        """How many held-out samples goal and bounds will be measured on; of the held-out data nothing else is read."""
        found: dict[str, int] = {}
        for item in self.held_out:
            prop = measured(item)
            if isinstance(prop, Statistical):
                with torch.no_grad():
                    found[item.name] = int(anchor(prop, predict).interval(predict, 0.9).count)
        return found

    def anchored(self, predict: Predict) -> Specification:
        """The same with everything fixed that goal and constraints take from the original network ``predict``."""
        constraints = tuple(anchor(one, predict) for one in self.constraints)
        return replace(self, goal=anchor(self.goal, predict), constraints=constraints)


def _as_tuple(what: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, Mapping | str) or not isinstance(value, Sequence):
        if hasattr(value, "name"):
            return (value,)
        raise SpecificationError(f"{what}: expected a list or tuple, got {type(value).__name__}.")
    return tuple(value)


def repeated_rows(spec: Specification, data: Any) -> str:
    """A warning where held-out rows stand in the repair data too; empty where none do."""
    own = [x for item in (spec.goal, *spec.on_outputs) for x in _inputs_of(item)] + [x for x, _ in labelled_pairs(data)]
    held_out = [x for item in spec.held_out for x in _inputs_of(item)]
    counts = {identity(x): (overlap(own, [x]), len(x)) for x in held_out}  # statements may share rows: the most counts
    count, total = max(counts.values(), default=(0, 0))
    if not count:
        return ""
    return (
        f"{count:,} of {total:,} held-out rows equal a row of the repair data: what the report says of held-out "
        f"data is too good by that much. Split by rows, without repeats, before the repair; in a spec file, split: "
        f"{{together: true}} does."
    )


def _inputs_of(item: Any) -> list[Tensor]:
    """Inputs of a property or constraint of samples; sampled inputs, which nobody held out, do not count."""
    item = measured(item)
    found = inputs_of(item)
    drawn = isinstance(item, Divided) and item.samples.paired
    return [found] if found is not None and not drawn else []


def make_specification(goal: Any, constraints: Any = (), held_out: Any = (), data: Any = ()) -> Specification:
    """The specification that the arguments of ``solve_repair`` stand for; held-out rows become twins of each item.

    A goal may be a whole specification, and has its own constraints then; held-out data are ``(inputs, labels)`` or
    ``(inputs, labels, sample_weight)``, a dataset or loader of pairs, or properties and constraints; ``data`` are
    labelled pairs.
    """
    goal, constraints, held_out = usable((goal, constraints, held_out))
    whole = isinstance(goal, Specification)
    if whole and (constraints or (goal.held_out and held_out)):
        raise SpecificationError("constraints, held_out: the specification that was passed as the goal has its own.")
    spec = goal if whole else Specification(as_property(goal), constraints)
    held_out = spec.held_out or held_out
    rows = [LabelledRows("data", *one) for one in data]
    known = [(one.inputs, one.labels) for one in rows]
    known += [found for item in (spec.goal, *spec.on_outputs) if (found := labels_of(item)) is not None]
    others = other_kinds([spec.goal, *(measured(one) for one in (*spec.on_outputs, *spec.watch))], known)
    twins: list[Property] = []
    pair = isinstance(held_out, tuple | list) and len(held_out) in (2, 3)
    if is_dataset(held_out) or (pair and not any(isinstance(item, Property | Constraint) for item in held_out)):
        _refuse_pairs(held_out)
        given, labels, weights = (held_out, None, None) if is_dataset(held_out) else (*held_out, None)[:3]
        items = [item for item in (spec.goal, *spec.watch, *spec.on_outputs) if isinstance(item, Transferable)]
        _check_columns(items, given)
        inputs, labels = to_tensors(given, labels, owner="held_out")
        if not inputs.ndim or not len(inputs):
            raise SpecificationError("held_out: no rows; expected one or more, or leave held_out out.")
        weights = row_weights("held_out", weights, given, len(inputs))
        _check_weighted(items, weights)
        held_out = tuple(_on(item, inputs, labels, weights) for item in items)
        rows += _labelled_rows("held-out data", inputs, labels)
        twins = list(_twins(others, inputs, labels, weights))
    more: Any = {"others": others, "others_held_out": tuple(twins), "labelled": (*spec.labelled, *rows)}
    return replace(spec, held_out=held_out, **more)


def _refuse_pairs(held_out: Any) -> None:
    """A SpecificationError where several pairs are given in place of one."""
    first = held_out[0] if isinstance(held_out, tuple | list) else None
    if not isinstance(first, tuple | list) or not all(getattr(part, "shape", ()) for part in first):
        return
    if len({part.shape for part in first}) > 1:  # rows and labels, and no list of rows
        raise SpecificationError(
            "held_out: is a list of pairs; expected one pair (inputs, labels). Put their rows together, as by "
            "torch.cat, or give properties and constraints for each."
        )


def _labelled_rows(name: str, inputs: Tensor, labels: Any) -> list[LabelledRows]:
    """Held-out rows whose labels are classes; other labels are left to those who can read them."""
    try:
        return [LabelledRows(name, *check_labelled("held_out", inputs, labels, integers=True), held_out=True)]
    except SpecificationError:
        return []


def _check_weighted(items: list[Any], weights: Any) -> None:
    """Rows of the repair and held-out rows both have weights, or neither have."""
    having = [item.name for item in items if is_weighted(item)]
    if bool(having) != (weights is not None):
        told = "held-out rows have weights, those of goal and bounds have none"
        told = f"the rows of '{having[0]}' have weights, held-out rows have none" if having else told
        raise SpecificationError(
            f"held_out: {told}. Pass held_out=(inputs, labels, sample_weight) beside goals and bounds with "
            f"sample_weight=, or weights nowhere."
        )


def _on(item: Any, inputs: Tensor, labels: Any, weights: Any) -> Any:
    """The same on held-out rows, with their weights where its own rows have some."""
    return weighted(item.on(inputs, labels), weights if is_weighted(item) else None)


def _twins(others: Sequence[Any], inputs: Tensor, labels: Any, weights: Any) -> Iterator[Property]:
    """The same gaps on held-out rows, where groups can be told there."""
    for gap in others:
        try:
            yield _on(gap, inputs, labels, weights)
        except SpecificationError:
            continue


def _check_columns(items: list[Any], inputs: Any) -> None:
    """Held-out frames have the columns of the frames that groups were made from, in the same order."""
    names = column_names(inputs)
    for item in items:
        gap = measured(item)
        own = gap.samples.columns if isinstance(gap, Divided) else ()
        if own and names and own != names:
            raise SpecificationError(
                f"held_out: its columns are {', '.join(names[:20])}; those of '{item.name}' are {', '.join(own[:20])}. "
                f"Bring them into the same order, frame[columns]."
            )


def labelled_pairs(data: Any) -> tuple[LabelledPair, ...]:
    """``(inputs, labels)`` or ``(inputs, labels, sample_weight)``, a dataset or loader of pairs, or a list, checked."""
    if is_dataset(data):
        return (LabelledPair(*check_labelled("data", data, None, integers=True)),)
    if isinstance(data, tuple | list) and not len(data):
        return ()
    single = isinstance(data, LabelledPair) or (
        isinstance(data, tuple) and len(data) in (2, 3) and not isinstance(data[0], tuple) and not is_dataset(data[0])
    )
    pairs = [data] if single else data
    if isinstance(pairs, list | tuple):
        pairs = [(one, None) if is_dataset(one) else one for one in pairs]
    if not isinstance(pairs, list | tuple) or any(
        not isinstance(p, tuple | list) or len(p) not in (2, 3) for p in pairs
    ):
        raise SpecificationError(
            f"data: expected a pair (inputs, labels), perhaps with sample_weight as a third, or a list of such pairs; "
            f"got {type(data).__name__}."
        )
    found = []
    for one in pairs:
        inputs, labels, weights = (*one, None if not isinstance(one, LabelledPair) else one.weight)[:3]
        x, y = check_labelled("data", inputs, labels, integers=True)
        found.append(LabelledPair(x, y, row_weights("data", weights, inputs, len(x))))
    return tuple(found)
