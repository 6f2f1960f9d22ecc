"""What a user passes as goal, constraints, data and held-out data, as a specification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import check_labelled, column_names, is_dataset, to_tensors

from .contracts import Constraint, Grouped, Property, Transferable, inputs_of, measured, stands_for_population
from .folds import overlap
from .specification import Specification, as_property


def repeated_rows(spec: Specification, data: Any) -> str:
    """A warning where held-out rows stand in the repair data too; empty where none do."""
    own = [x for item in (spec.goal, *spec.on_outputs) for x in _inputs_of(item)] + [x for x, _ in labelled_pairs(data)]
    held_out = [x for item in spec.held_out for x in _inputs_of(item)]
    counts = {x.data_ptr(): (overlap(own, [x]), len(x)) for x in held_out}  # statements may share rows: the most counts
    count, total = max(counts.values(), default=(0, 0))
    if not count:
        return ""
    return (
        f"{count:,} of {total:,} held-out rows equal a row of the repair data: what the report says of held-out "
        f"data is too good by that much. Split by rows, without repeats, before the repair."
    )


def _inputs_of(item: Any) -> list[Tensor]:
    """Inputs of a property or constraint of samples; sampled inputs, which nobody held out, do not count."""
    item = measured(item)
    found = inputs_of(item)
    drawn = isinstance(item, Grouped) and item.samples.paired
    return [found] if found is not None and not drawn and stands_for_population(item) else []


def make_specification(goal: Any, constraints: Any = (), held_out: Any = ()) -> Specification:
    """The specification that the arguments of ``solve_repair`` stand for; held-out rows become twins of each item.

    A goal may be a whole specification, and has its own constraints then; held-out data are a pair ``(inputs,
    labels)``, a dataset or loader of pairs, or properties and constraints.
    """
    whole = isinstance(goal, Specification)
    if whole and (constraints or (goal.held_out and held_out)):
        raise SpecificationError("constraints, held_out: the specification that was passed as the goal has its own.")
    spec = goal if whole else Specification(as_property(goal), constraints)
    held_out = spec.held_out or held_out
    pair = isinstance(held_out, tuple | list) and len(held_out) == 2
    if is_dataset(held_out) or (pair and not any(isinstance(item, Property | Constraint) for item in held_out)):
        given, labels = (held_out, None) if is_dataset(held_out) else held_out
        items = [item for item in (spec.goal, *spec.watch, *spec.on_outputs) if isinstance(item, Transferable)]
        _check_columns(items, given)
        inputs, labels = to_tensors(given, labels, owner="held_out")
        held_out = tuple(item.on(inputs, labels) for item in items)
    return replace(spec, held_out=held_out)


def _check_columns(items: list[Any], inputs: Any) -> None:
    """Held-out frames have the columns of the frames that groups were made from, in the same order."""
    names = column_names(inputs)
    for item in items:
        gap = measured(item)
        own = gap.samples.columns if isinstance(gap, Grouped) else ()
        if own and names and own != names:
            raise SpecificationError(
                f"held_out: its columns are {', '.join(names[:20])}; those of '{item.name}' are {', '.join(own[:20])}. "
                f"Bring them into the same order, frame[columns]."
            )


def labelled_pairs(data: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    """``(inputs, labels)``, a dataset or loader of pairs, or a list of these, checked."""
    if is_dataset(data):
        return (check_labelled("data", data, None, integers=True),)
    if isinstance(data, tuple | list) and not len(data):
        return ()
    single = isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], tuple)
    pairs = [data] if single else data
    if isinstance(pairs, list | tuple):
        pairs = [(one, None) if is_dataset(one) else one for one in pairs]
    if not isinstance(pairs, list | tuple) or any(not isinstance(p, tuple | list) or len(p) != 2 for p in pairs):
        raise SpecificationError(
            f"data: expected a pair (inputs, labels), or a list of such pairs; got {type(data).__name__}."
        )
    return tuple(check_labelled("data", *pair, integers=True) for pair in pairs)
