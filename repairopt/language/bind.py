"""Statements on data: the properties and constraints of the library, and the way back to the statement's own unit.

The library minimizes: a property is met where it is at most its target. ``recall >= 0.55`` becomes a miss rate of at
most 0.45, ``certified_radius >= 0.1`` an inverse radius of at most 10; reports speak of what was written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from repairopt.constraints import Bound, ChangeLimit, FixLabels, KeepLabels, KeepOutputs, LinearRows, OutputBounds
from repairopt.errors import LanguageError, RepairError, SpecificationError
from repairopt.properties import AccuracyDrop, ErrorRate, FlipRate, GroupGap, MissRate, OddsGap
from repairopt.robustness import AdversarialError, CertifiedRadius

from .own_measure import OwnMeasure
from .python_code import load_code
from .row_sets import Data, RowSet, holds
from .statements import Statement, did_you_mean, parse

WAYS: dict[str, Callable[[float], float]] = {
    "": lambda v: v,
    "1 - ": lambda v: 1.0 - v,
    "1 / ": lambda v: 1.0 / v,
    "- ": lambda v: -v,
}


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
        return hasattr(self.item, "value")

    @property
    def wish(self) -> bool:
        """Whether it is priced, not bounded."""
        return getattr(self.item, "weight", None) is not None

    def shown(self, value: float) -> float:
        """A value of the library in the statement's unit."""
        return WAYS[self.way](value)

    def as_goal(self) -> Any:
        """The property with its target; a LanguageError where the statement is a bound only, or has no comparison."""
        measure = self.statement.measure
        if not measure.goal or not self.is_property:
            raise self.statement.fail(
                "", f"{measure.name} is a bound, not a goal; as a goal use error_rate, gap, recall, ..."
            )
        if not self.statement.bounds:
            raise self.statement.fail("", f"a goal is compared with a number: {measure.example}")
        return self.item

    def as_constraint(self) -> Any:
        """The constraint; a LanguageError where the statement has no comparison and is no wish."""
        if not self.is_property:
            return self.item
        if not self.statement.bounds:
            raise self.statement.fail("", f"a bound is compared with a number: {self.statement.measure.example}")
        return Bound(self.item, limit=float(self.item.target), name=self.statement.name)


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
    binder = _Binder(statement, arguments, data)
    try:
        found: BoundStatement = getattr(binder, statement.measure.name)()
    except LanguageError:
        raise
    except RepairError as error:
        raise statement.fail("", str(error)) from error
    return found


class _Binder:
    """One statement; a method for each measure of the table."""

    def __init__(self, statement: Statement, arguments: dict[str, Any], data: Data) -> None:
        self.statement, self.arguments, self.all = statement, arguments, data
        self.name, self.set = statement.name, str(arguments.get("data", ""))

    # ---------------------------------------------------------------- arguments

    def rows(self, labels: bool = True) -> RowSet:
        """The rows that the statement speaks of."""
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

    def label(self, argument: str, value: Any) -> int:
        """The number of a class."""
        names = [str(name) for name in self.all.classes]
        if str(value) in names:
            return names.index(str(value))
        if isinstance(value, int) and not isinstance(value, bool) and (not names or 0 <= value < len(names)):
            return value
        known = did_you_mean(str(value), names) if names else "classes are whole numbers from 0 here"
        raise self.statement.fail(argument, f"there is no class {value!r}; {known}")

    def favorable(self) -> int:
        """The favorable class, the second of two unless it is given."""
        if self.arguments["favorable"] is not None:
            return self.label("favorable", self.arguments["favorable"])
        if len(self.all.classes) > 2:
            known = ", ".join(map(str, self.all.classes))
            raise self.statement.fail("", f"with more than two classes, favorable= is needed; classes: {known}")
        return 1

    def groups(self, rows: RowSet) -> dict[str, Any]:
        """How the library is told the groups."""
        column = str(self.arguments["column"])
        if column in rows.columns:
            features = rows.columns[column]
            values = self.arguments["values"]
            return {"sensitive_features": features.tolist(), "values": values}
        return {"column": self.input_column(rows), "values": self.arguments["values"]}

    def input_column(self, rows: RowSet) -> int:
        """Number of a column of the inputs."""
        column, known = str(self.arguments["column"]), [str(name) for name in self.all.input_columns]
        if column not in known:
            names = list(dict.fromkeys([*map(str, rows.columns), *known]))
            raise self.statement.fail("column", f"there is no column '{column}'; {did_you_mean(column, names)}")
        return known.index(column)

    def limit(self, way: str = "", default: float = 0.0) -> float:
        """The bound in the library's unit; the default where it is only watched."""
        return float(WAYS[way](self.statement.bounds[0][1])) if self.statement.bounds else default

    def made(self, item: Any, rows: RowSet | None, way: str = "") -> BoundStatement:
        return BoundStatement(self.statement, self.set if rows is not None else "", item, way, rows)

    # ---------------------------------------------------------------- gaps

    def gap(self) -> BoundStatement:
        kind, score = self.arguments["kind"], self.arguments["score"]
        rows = self.rows(labels=kind in ("opportunity", "odds"))
        options: dict[str, Any] = {"favorable": self.favorable(), "target": self.limit(), "name": self.name}
        if kind == "sampled":
            values = self._encoded(self.arguments["values"])
            draw = {"count": self.arguments["count"], "rest": self.arguments["rest"], "score": score}
            return self.made(GroupGap.sampled(rows.inputs, self.input_column(rows), values, **draw, **options), rows)
        if kind == "parity":
            return self.made(GroupGap.observed(rows.inputs, **self.groups(rows), score=score, **options), rows)
        if score not in ("max_difference", "difference"):
            raise self.statement.fail("score", f"kind={kind} has the scores max_difference and difference")
        if kind == "opportunity":
            options["given"] = (options["favorable"],)
        elif self.arguments["given"] is not None:
            options["given"] = tuple(self.label("given", value) for value in self.arguments["given"])
        found = OddsGap.observed(rows.inputs, rows.labels, **self.groups(rows), score=score, **options)
        return self.made(found, rows)

    def _encoded(self, values: Any) -> Any:
        if values is not None and not all(isinstance(value, int | float) for value in values):
            raise self.statement.fail(
                "values", "kind=sampled sets inputs; its values are numbers as the network reads them"
            )
        return values

    def demographic_parity_difference(self) -> BoundStatement:
        return self._gap("parity")

    def equal_opportunity_difference(self) -> BoundStatement:
        return self._gap("opportunity")

    def equalized_odds_difference(self) -> BoundStatement:
        return self._gap("odds")

    def _gap(self, kind: str) -> BoundStatement:
        self.arguments |= {"kind": kind, "score": "max_difference", "given": None}
        return self.gap()

    # ---------------------------------------------------------------- labels

    def _rate(self, kind: Any, way: str = "", default: float = 0.0, **options: Any) -> BoundStatement:
        rows = self.rows()
        target = self.limit(way, default)
        name = f"{way}{self.name}"  # the library bounds error and miss rates; its report must not call them recall
        return self.made(kind(rows.inputs, rows.labels, target=target, name=name, **options), rows, way)

    def error_rate(self) -> BoundStatement:
        return self._rate(ErrorRate)

    def accuracy(self) -> BoundStatement:
        return self._rate(ErrorRate, "1 - ")

    def recall(self) -> BoundStatement:
        return self._rate(MissRate, "1 - ", label=self.label("label", self.arguments["label"]))

    def miss_rate(self) -> BoundStatement:
        return self._rate(MissRate, label=self.label("label", self.arguments["label"]))

    def accuracy_drop(self) -> BoundStatement:
        return self._rate(AccuracyDrop)

    def flip_rate(self) -> BoundStatement:
        return self._rate(FlipRate)

    def _labels(self, kind: Any, price: float | None, **options: Any) -> BoundStatement:
        rows = self.rows()
        tolerance = 1.0 if price is not None else self._share(rows)
        margin = float(self.arguments["margin"])
        item = kind(
            rows.inputs, rows.labels, margin=margin, tolerance=tolerance, weight=price, name=self.name, **options
        )
        return self.made(item, rows)

    def _share(self, rows: RowSet) -> float:
        if not self.statement.bounds:
            raise self.statement.fail("", f"a bound is compared with a number: {self.statement.measure.example}")
        return min(1.0, self.limit() / len(rows))

    def flips(self) -> BoundStatement:
        return self._labels(KeepLabels, self.arguments["price"], reference=self.arguments["reference"])

    def unfixed(self) -> BoundStatement:
        return self._labels(FixLabels, self.arguments["price"])

    def fix(self) -> BoundStatement:
        return self._labels(FixLabels, float(self.arguments["price"]))

    # ---------------------------------------------------------------- outputs, robustness

    def output_change(self) -> BoundStatement:
        rows = self.rows(labels=False)
        share = float(self.arguments["share"])
        return self.made(KeepOutputs(rows.inputs, self.limit(), tolerance=share, name=self.name), rows)

    def output(self) -> BoundStatement:
        """One or two linear inequalities."""
        rows, of = self.rows(labels=False), self.arguments["of"]
        if isinstance(of, list):
            if not of or not all(isinstance(factor, int | float) for factor in of):
                raise self.statement.fail("of", "expected one number for each output of the network")
            factors = torch.tensor([float(factor) for factor in of])
        else:
            label, count = self.label("of", of), len(self.all.classes)
            if not count:
                raise self.statement.fail(
                    "of", "classes have no names here; write a [list] of one factor for each output"
                )
            factors = torch.eye(count)[label]
        if not self.statement.bounds:
            raise self.statement.fail("", "compare it with a number")
        signs = [1.0 if relation == "<=" else -1.0 for relation, _ in self.statement.bounds]
        matrix = torch.stack([sign * factors for sign in signs])
        bound = torch.tensor([sign * number for sign, (_, number) in zip(signs, self.statement.bounds, strict=True)])
        share = float(self.arguments["share"])
        return self.made(OutputBounds(rows.inputs, matrix, bound, tolerance=share, name=self.name), rows)

    def certified_radius(self) -> BoundStatement:
        rows = self.rows()
        aggregate = {"mean": "mean", "least": "max"}[self.arguments["aggregate"]]
        ends: dict[str, Any] = {"lower": float(self.arguments["lower"]), "upper": float(self.arguments["upper"])}
        target = self.limit("1 / ", 10.0)
        item = CertifiedRadius(rows.inputs, rows.labels, target=target, aggregate=aggregate, name=self.name, **ends)
        return self.made(item, rows, "1 / ")

    def attack_error(self) -> BoundStatement:
        ends: dict[str, Any] = {"lower": float(self.arguments["lower"]), "upper": float(self.arguments["upper"])}
        return self._rate(AdversarialError, radius=float(self.arguments["radius"]), **ends)

    # ---------------------------------------------------------------- change, own code

    def max_change(self) -> BoundStatement:
        return self.made(ChangeLimit(absolute=self.limit(), name=self.name), None)

    def relative_change(self) -> BoundStatement:
        return self.made(ChangeLimit(relative=self.limit(), name=self.name), None)

    def linear_rows(self) -> BoundStatement:
        path = self.all.folder / str(self.arguments["file"])
        try:
            with np.load(path, allow_pickle=False) as file:
                parts = {key: file[key] for key in ("matrix", "lower", "upper")}
        except (OSError, ValueError, KeyError) as error:
            reason = f"'{path}' cannot be read ({error}); expected an npz file with matrix, lower and upper"
            raise self.statement.fail("file", reason) from error
        return self.made(LinearRows(**parts, name=self.name), None)

    def custom(self) -> BoundStatement:
        """A function of ``predict`` and the rows."""
        rows = self.rows(labels=False)
        try:
            function = load_code(str(self.arguments["function"]), self.all.folder)
        except RepairError as error:
            raise self.statement.fail("function", str(error)) from error
        below = bool(self.statement.bounds) and self.statement.bounds[0][0] == ">="
        way = "- " if below else ""
        return self.made(OwnMeasure(function, rows, self.limit(way), self.name, -1.0 if below else 1.0), rows, way)
