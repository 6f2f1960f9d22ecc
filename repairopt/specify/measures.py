"""Measures: how a class is written in the language of goals and bounds, declared once, as its attribute ``measures``.

Parser, binder, reference and report read it; ``repairopt.interfaces.specfile.language.measures`` lists the classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

from .contracts import Array

REQUIRED = object()
WAYS: dict[str, Callable[[float], float]] = {  # from the library's value, which is minimized, to the statement's
    "": lambda v: v,
    "1 - ": lambda v: 1.0 - v,
    "1 / ": lambda v: 1.0 / v if v else math.inf,
    "- ": lambda v: -v,
}
UP, DOWN = ("<=",), (">=",)


@dataclass(frozen=True)
class Argument:
    """One argument of a measure, written ``name=value``; ``choices`` are the allowed values of kind ``"choice"``.

    ``kind`` is a key of ``KINDS`` of the language, ``default`` is ``REQUIRED`` where it must not be left out.
    """

    name: str
    kind: str
    meaning: str
    default: Any = REQUIRED
    choices: tuple[str, ...] = ()

    def describe(self) -> str:
        """Name, default and choices."""
        text = self.name + ("" if self.default in (REQUIRED, None) else f"={self.default}")
        return text + (f" ({' | '.join(self.choices)})" if self.choices else "")


class Given(Protocol):
    """A statement on data, from which an item is made.

    ``name`` is what reports call it, ``arguments`` and ``bounds`` are as written, with defaults filled in; ``classes``
    has the names of the classes or is empty, ``folder`` is what file names are relative to.
    """

    name: str
    arguments: dict[str, Any]
    bounds: tuple[tuple[str, float], ...]
    classes: Any
    folder: Any

    def rows(self, labels: bool = True) -> Any:
        """The rows that the statement speaks of, with ``inputs``, ``labels`` and ``columns``."""

    def rows_of(self, name: str) -> Any:
        """A set of rows by name."""

    def regions(self) -> Any:
        """The input regions that are stated beside the rows."""

    def limit(self, default: float = 0.0) -> float:
        """The bound in the unit of the class; the default where the measure is only watched."""

    def options(self) -> dict[str, Any]:
        """The arguments that are numbers, classes or choices, as the class takes them."""

    def label(self, argument: str, value: Any) -> int:
        """The number of a class."""

    def favorable(self) -> int:
        """The favorable class, the second of two unless it is given."""

    def groups(self) -> dict[str, Any]:
        """``column`` or ``sensitive_features``, and ``values``."""

    def column(self) -> int:
        """Number of the column of the inputs that the statement names."""

    def stated(self, argument: str) -> bool:
        """Whether an argument is written, so that its value is not the default."""

    def count(self) -> int:
        """The bound, a number of rows."""

    def fail(self, argument: str, reason: str) -> Exception:
        """An error that points at an argument."""


def make_labelled(kind: Any, given: Given) -> Any:
    """``kind(inputs, labels, target=..., name=..., ...)``, with the statement's arguments; labels where it has any."""
    labels = "labels" in {one.name for one in fields(kind)}
    rows = given.rows(labels)
    own = {"labels": rows.labels} if labels else {}
    return kind(rows.inputs, **own, target=given.limit(), name=given.name, **given.options())


DATA = Argument("data", "data", "rows it is measured on", "repair")
WHERE = Argument("where", "filter", "only rows for which this holds", None)
ROWS = (DATA, WHERE)
FIRST = Argument("first", "count", "only so many rows", None)
LABEL = Argument("label", "label", "the class")
COLUMN = Argument("column", "columns", "column that tells the group of each row; a [list] of columns crosses them")
FAVORABLE = Argument("favorable", "label", "the class that people want; needed with more than two classes", None)
VALUES = Argument("values", "values", "the groups, if not all values of the column", None)
MIN_ROWS = Argument("min_rows", "count", "smaller groups are left out and named", 1)
GROUPS = (COLUMN, FAVORABLE, VALUES, *ROWS, MIN_ROWS)
BY_GROUP = (COLUMN, VALUES, *ROWS, MIN_ROWS)
MARGIN = Argument("margin", "number", "lead over each other class that a step asks for, logits", 1e-3)
SHARE = Argument("share", "number", "share of the rows that may fail all the same", 0.0)
WISH = "makes it a wish: price of a mean violation of one logit; None for a hard bound"
PRICE = Argument("price", "number", WISH, None)
BOX = (
    Argument("lower", "number", "smallest allowed input", 0.0),
    Argument("upper", "number", "largest allowed input", 1.0),
)


@dataclass(frozen=True)
class Measure:
    """How one class is written.

    Attributes:
        name: How the measure is called.
        meaning: What it measures, in a sentence.
        example: A whole goal or bound.
        unit: Unit of the number that it is compared with.
        relations: Comparisons that make sense: ``<=``, ``>=``, ``==``; empty for what stands alone.
        arguments: Arguments, in the order in which they may be given without their names.
        make: From the class and a statement on data to a property or constraint.
        way: From the class's value to the statement's: ``""`` the same, ``"1 - "``, ``"1 / "``, or ``"- "`` where it is
            bounded from below.
        goal: Whether it may be the goal of a repair; others are bounds only.
        both: Whether it may be bounded on both sides at once.
        read: For a bound on the weight change, from the item, the weights before and the change to a number.
        makes: Names of the classes that it becomes; the class that declares it unless given.
        kind: The class that declares it; set by the language.
    """

    name: str
    meaning: str
    example: str
    unit: str = "share, 0 to 1"
    relations: tuple[str, ...] = UP
    arguments: tuple[Argument, ...] = ROWS
    make: Callable[[Any, Given], Any] = make_labelled
    way: str = ""
    goal: bool = True
    both: bool = False
    read: Callable[[Any, Array, Array], float] | None = None
    makes: str = ""
    kind: Any = None

    @property
    def direction(self) -> str:
        """The direction in which it is bounded, in words."""
        if not self.relations:
            return "stands alone"
        if {"<=", ">="} <= set(self.relations):
            return "both ways"
        return "from below" if ">=" in self.relations else "from above"
