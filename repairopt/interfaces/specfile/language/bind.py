"""Statements on data: the properties and constraints of the library, and the way back to the statement's own unit.

The library minimizes: ``recall >= 0.55`` becomes a miss rate of at most 0.45; reports speak of what was written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from repairopt.errors import LanguageError, RepairError, SpecificationError, public
from repairopt.specify import (
    WAYS,
    Bound,
    BrokenRows,
    ChangeBox,
    Property,
    SampleConstraint,
    price_of,
    refuse_void,
    weighted,
)

from .row_sets import Data, RowSet, holds
from .statements import Statement, did_you_mean, parse


@dataclass(frozen=True, eq=False)
class BoundStatement:
    """A statement on data, as a property or constraint ``item`` of the library.

    ``data`` names the set of rows, empty for bounds on the change itself. ``way`` leads from the library's value to the
    statement's: ``""`` the same, ``"1 - "``, ``"1 / "``, ``"- "``.
    """

    statement: Statement
    data: str
    item: Any
    way: str = ""
    rows: RowSet | None = None

    @property
    def is_property(self) -> bool:
        """Whether the item has a value; else it is a constraint with margins or rows."""
        return isinstance(self.item, Property)

    @property
    def by_location(self) -> bool:
        """Whether it speaks of the chosen weights in their order, which the repair alone knows."""
        return not self.data and not isinstance(self.item, ChangeBox) and not self.is_property

    @property
    def wish(self) -> bool:
        """Whether it is priced, not bounded."""
        return price_of(self.item) is not None

    @property
    def can_be_goal(self) -> bool:
        """Whether a repair can bring it about: it bounds rows or a measure of them, not the change, and is no wish."""
        by_row = isinstance(self.item, SampleConstraint) and not self.wish
        return bool(self.statement.bounds) and (by_row or (self.is_property and self.statement.measure.goal))

    def shown(self, value: float) -> float:
        """A value of the library in the statement's unit."""
        return WAYS[self.way](value)

    def as_goal(self) -> Any:
        """The property with its target; of a bound on rows the share of those that break it, which is to be 0.

        A LanguageError where the statement is a bound only, or has no comparison.
        """
        measure = self.statement.measure
        by_row = isinstance(self.item, SampleConstraint) and not self.wish
        if not measure.goal or not (self.is_property or by_row):
            reason = f"{measure.name} is a bound, not a goal; as a goal use error_rate, gap, recall, ..."
            raise self.statement.fail("", reason)
        if not self.statement.bounds:
            raise self.statement.fail("", f"a goal is compared with a number: {measure.example}")
        return self.item if self.is_property else BrokenRows(self.item)

    def as_constraint(self) -> Any:
        """The constraint; a LanguageError where the statement has no comparison and is no wish."""
        if not self.is_property:
            return self.item
        if not self.statement.bounds:
            raise self.statement.fail("", f"a bound is compared with a number: {self.statement.measure.example}")
        return Bound(self.item, limit=float(self.item.target), name=self.item.name)


@public
def bind_statement(statement: Statement | str, data: Data, on: str | None = None) -> BoundStatement:
    """A goal or bound on data: a property or constraint of the library.

    Args:
        statement: The text, or what :func:`repairopt.parse` made of it.
        data: Sets of rows by name, with their columns and classes.
        on: Set to use in place of ``repair``, such as ``held_out``.

    Returns:
        The library's object, and the way back from its value to the unit of the statement.

    Raises:
        LanguageError: There is no such set, column or class, or the library refuses the data; the message points at it.

    Example:
        >>> rows = RowSet([[0.0], [1.0]], [0, 1], {"sex": ["f", "m"]})
        >>> bind_statement("accuracy >= 0.75", Data({"repair": rows})).as_constraint().limit
        0.25
    """
    if isinstance(statement, str):
        statement = parse(statement)
    arguments = dict(statement.arguments)
    if on is not None and arguments.get("data") == "repair":
        arguments["data"] = on
    given = _Given(statement, arguments, data)
    try:
        item = statement.measure.make(statement.measure.kind, given)
        rows = given.rows(labels=False) if given.set else None
        item = weighted(item, None if rows is None else rows.weights)
        if statement.bounds:
            refuse_void(f"'{statement.name}': the limit", item, given.limit())
    except LanguageError:
        raise
    except RepairError as error:
        raise statement.fail("", str(error)) from error
    return BoundStatement(statement, given.set, item, given.way, rows)


class _Given:
    """A statement on data, as a measure sees it; see :class:`repairopt.specify.Given`."""

    def __init__(self, statement: Statement, arguments: dict[str, Any], data: Data) -> None:
        self.statement, self.arguments, self.all = statement, arguments, data
        self.bounds, self.classes, self.folder = statement.bounds, data.classes, data.folder
        self.set, self.fail = str(arguments.get("data", "")), statement.fail
        from_above = bool(statement.bounds) and statement.bounds[0][0] != ">="
        way = statement.measure.way
        self.way = "" if way == "- " and (from_above or not statement.bounds) else way
        self.name = f"{self.way}{statement.name}"  # the library bounds a miss rate: it may not call it recall

    def rows_of(self, name: str) -> RowSet:
        if name not in self.all.sets:
            raise self.statement.fail(
                "", f"there is no set of rows '{name}'; {did_you_mean(name, list(self.all.sets))}"
            )
        return self.all.sets[name]

    def rows(self, labels: bool = True) -> RowSet:
        if self.set not in self.all.sets:
            hint = did_you_mean(self.set, list(self.all.sets))
            raise self.statement.fail("data", f"there is no set of rows '{self.set}'; {hint}")
        where = self.arguments.get("where")
        if where is not None:
            try:
                holds(self.all.sets[self.set], where)
            except SpecificationError as error:
                raise self.statement.fail("where", str(error)) from error
        found = self.all.part(self.set, where, self.arguments.get("first"))
        if not len(found):
            raise self.statement.fail("where", f"no row of '{self.set}' fulfils this condition")
        if labels and found.labels is None:
            raise self.statement.fail("data", f"'{self.set}' has no labels, which {self.statement.measure.name} needs")
        return found

    def regions(self) -> Any:
        if not self.all.regions:
            raise self.statement.fail("", "the spec states no regions; expected regions: with one or more")
        return self.all.regions

    def label(self, argument: str, value: Any) -> int:
        names = [str(name) for name in self.all.classes]
        if str(value) in names:
            return names.index(str(value))
        if isinstance(value, int) and not isinstance(value, bool) and (not names or 0 <= value < len(names)):
            return value
        known = did_you_mean(str(value), names) if names else "classes are whole numbers from 0 here"
        raise self.statement.fail(argument, f"there is no class {value!r}; {known}")

    def favorable(self) -> int:
        if self.arguments["favorable"] is not None:
            return self.label("favorable", self.arguments["favorable"])
        if len(self.all.classes) > 2:
            known = ", ".join(map(str, self.all.classes))
            raise self.statement.fail("", f"with more than two classes, favorable= is needed; classes: {known}")
        return 1

    def groups(self) -> dict[str, Any]:
        column, columns = self.arguments["column"], self.rows(False).columns
        options = {"values": self.arguments["values"], "min_rows": self.arguments["min_rows"]}
        if not isinstance(column, list):
            if str(column) in columns:
                return options | {"sensitive_features": columns[str(column)].tolist()}
            return options | {"column": self.column()}
        names = [str(name) for name in column]
        if len(set(names)) < 2:
            raise self.fail("column", f"[{', '.join(names)}] crosses nothing; expected two different columns or more")
        if not set(names) & set(columns):
            return options | {"column": [self._position(name) for name in names]}
        inputs = torch.as_tensor(self.rows(False).inputs)
        crossed = {n: columns[n].tolist() if n in columns else inputs[:, self._position(n)].tolist() for n in names}
        return options | {"sensitive_features": crossed}

    def column(self) -> int:
        if isinstance(self.arguments["column"], list):
            raise self.fail("column", "kind=sampled sets one column; columns are crossed by the other kinds")
        return self._position(str(self.arguments["column"]))

    def _position(self, column: str) -> int:
        known = [str(name) for name in self.all.input_columns]
        if column not in known:
            names = list(dict.fromkeys([*map(str, self.rows(False).columns), *known]))
            raise self.fail("column", f"there is no column '{column}'; {did_you_mean(column, names)}")
        return known.index(column)

    def limit(self, default: float = 0.0) -> float:
        return float(WAYS[self.way](self.bounds[0][1])) if self.bounds else default

    def stated(self, argument: str) -> bool:
        return argument in self.statement.places

    def count(self) -> int:
        if not self.bounds:
            raise self.fail("", f"a bound is compared with a number: {self.statement.measure.example}")
        return int(self.limit())

    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for argument in self.statement.measure.arguments:
            value = self.arguments[argument.name]
            if argument.kind == "number":
                found[argument.name] = None if value is None else float(value)
            elif argument.kind == "label":
                found[argument.name] = self.label(argument.name, value)
            elif argument.kind in ("choice", "count") and argument.name != "first":
                found[argument.name] = value
        return found
