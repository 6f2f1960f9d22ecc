"""The measures of the language: those that classes declare, see :mod:`repairopt.specify.measures`.

Classes of this package stand in ``CLASSES``; others are named by an entry point in the group ``repairopt.measures``,
or added by :func:`add_measures`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from repairopt import specify
from repairopt.errors import SpecificationError, public, shown

from .python_code import OwnMeasure

CLASSES: tuple[Any, ...] = (
    specify.OddsGap,
    specify.GroupGap,
    specify.WorstGroup,
    specify.CalibrationError,
    specify.ErrorRate,
    specify.MissRate,
    specify.ConfusionRate,
    specify.ExpectedCost,
    specify.AccuracyDrop,
    specify.FlipRate,
    specify.UnfixedRate,
    specify.KeepLabels,
    specify.FixLabels,
    specify.KeepOutputs,
    specify.OutputBounds,
    specify.CertifiedRadius,
    specify.AdversarialError,
    specify.AttackSuccess,
    specify.UnprovedRegions,
    specify.KeepLowest,
    OwnMeasure,
    specify.ChangeLimit,
    specify.LinearRows,
)
KINDS = {  # what an argument of a kind is, and the forms of value that it may be written in
    "column": ("a column", ("name", "text")),
    "columns": ("a column, or a [list] of columns", ("name", "text", "list")),
    "matrix": ("a [list] of [lists] of numbers", ("list",)),
    "label": ("a class", ("name", "text", "number")),
    "labels": ("a [list] of classes", ("list",)),
    "number": ("a number", ("number",)),
    "count": ("a whole number", ("number",)),
    "choice": ("one of the choices", ("name", "text")),
    "data": ("a set of rows", ("name", "text")),
    "filter": ("a condition on columns", ("filter",)),
    "values": ("a [list] of values", ("list",)),
    "output": ("a class, or a [list] of one factor for each output", ("name", "text", "number", "list")),
    "python": ('Python code as "package.module:function"', ("text",)),
    "file": ("a file name in quotes", ("text",)),
}


BY_NAME: dict[str, specify.Measure] = {}


@public
def add_measures(kind: Any) -> Any:
    """Add the measures that a class declares to the language.

    Args:
        kind: A class with ``measures``.

    Raises:
        SpecificationError: It declares none, or one whose name another class has, or an argument of an unknown kind.
    """
    declared = vars(kind).get("measures", ()) if isinstance(kind, type) else ()
    if not declared or not all(isinstance(measure, specify.Measure) for measure in declared):
        raise SpecificationError(
            f"{getattr(kind, '__name__', shown(kind))}: declares no measures; expected measures = (Measure(...), ...)."
        )
    for measure in declared:
        known = BY_NAME.get(measure.name)
        if known is not None and known.kind.__qualname__ != kind.__qualname__:
            raise SpecificationError(
                f"{kind.__name__}: {known.kind.__name__} has a measure '{measure.name}' already; choose another name."
            )
        unknown = [argument for argument in measure.arguments if argument.kind not in KINDS]
        if unknown:
            raise SpecificationError(
                f"measure '{measure.name}': argument '{unknown[0].name}' has the kind '{unknown[0].kind}'; choose from "
                f"{', '.join(KINDS)}."
            )
        BY_NAME[measure.name] = replace(measure, kind=kind, makes=measure.makes or kind.__name__)
    return kind


@cache
def load_measures() -> None:
    """Add the measures of other packages, once."""
    for point in entry_points(group="repairopt.measures"):
        add_measures(point.load())


for _kind in CLASSES:
    add_measures(_kind)
MEASURES = tuple(BY_NAME.values())


def reference() -> str:
    """The table of measures as Markdown."""
    lines = ["| measure | bounded | unit | meaning | arguments | example | becomes |", "|---|---|---|---|---|---|---|"]
    for m in BY_NAME.values():
        how = f"{m.direction}: {', '.join(m.relations)}" if m.relations else m.direction
        arguments = ", ".join(a.describe().replace("|", "\\|") for a in m.arguments)
        use = "" if m.goal else " (bounds only)"
        lines.append(f"| `{m.name}`{use} | {how} | {m.unit} | {m.meaning} | {arguments} | `{m.example}` | {m.makes} |")
    return "\n".join(lines) + "\n"


def reference_text(width: int = 100) -> str:
    """The same for a terminal."""
    import textwrap

    lines: list[str] = []
    for m in BY_NAME.values():
        how = " ".join(m.relations) or "stands alone"
        lines += [f"{m.name}   {how}   [{m.unit}]" + ("" if m.goal else "   bounds only")]
        lines += textwrap.wrap(m.meaning, width, initial_indent="    ", subsequent_indent="    ")
        for a in m.arguments:
            text = f"{a.describe()}: {a.meaning}" + (" (required)" if a.default is specify.REQUIRED else "")
            lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="          ")
        lines += [f"    example: {m.example}", ""]
    return "\n".join(lines)
