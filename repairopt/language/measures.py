"""The table of measures: what each one says, its arguments, unit and direction. The parser and the reference read it.

One entry for each measure; :mod:`repairopt.language.bind` has one function of the same name for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REQUIRED = object()
KINDS = {
    "column": "a column",
    "label": "a class",
    "labels": "a [list] of classes",
    "number": "a number",
    "count": "a whole number",
    "choice": "one of the choices",
    "data": "a set of rows",
    "filter": "a condition on columns",
    "values": "a [list] of values",
    "output": "a class, or a [list] of one factor for each output",
    "python": 'Python code as "package.module:function"',
    "file": "a file name in quotes",
}


@dataclass(frozen=True)
class Argument:
    """One argument of a measure: ``kind`` is a key of ``KINDS``, ``default`` is ``REQUIRED`` where it must be given."""

    name: str
    kind: str
    meaning: str
    default: Any = REQUIRED
    choices: tuple[str, ...] = ()

    def describe(self) -> str:
        """Name, default and choices."""
        text = self.name + ("" if self.default in (REQUIRED, None) else f"={self.default}")
        return text + (f" ({' | '.join(self.choices)})" if self.choices else "")


@dataclass(frozen=True)
class Measure:
    """One measure of the language.

    Attributes:
        name: How it is written.
        makes: The class of the library that it becomes.
        meaning: What it measures, in a sentence.
        unit: Of the number it is compared with.
        relations: Comparisons that make sense: ``<=``, ``>=``, ``==``; empty for what stands alone.
        arguments: In the order in which they may be given without their names.
        example: A whole goal or bound.
        goal: Whether it may be the goal of a repair; others are bounds only.
        interval: Whether a confidence interval for new data is reported.
    """

    name: str
    makes: str
    meaning: str
    unit: str
    relations: tuple[str, ...]
    arguments: tuple[Argument, ...]
    example: str
    goal: bool = True
    interval: bool = False

    @property
    def direction(self) -> str:
        """In which direction it is bounded, in words."""
        if not self.relations:
            return "stands alone"
        return (
            "both ways"
            if {"<=", ">="} <= set(self.relations)
            else "from below"
            if ">=" in self.relations
            else "from above"
        )


DATA = Argument("data", "data", "rows it is measured on", "repair")
WHERE = Argument("where", "filter", "only rows for which this holds", None)
ROWS = (DATA, WHERE)
LABEL = Argument("label", "label", "the class")
COLUMN = Argument("column", "column", "column that tells the group of each row")
FAVORABLE = Argument("favorable", "label", "the class that people want; needed with more than two classes", None)
VALUES = Argument("values", "values", "the groups, if not all values of the column", None)
SHARE = Argument("share", "number", "share of the rows that may fail all the same", 0.0)
PRICE = Argument(
    "price", "number", "makes it a wish: price of a mean violation of one logit; None for a hard bound", None
)
LOWER = Argument("lower", "number", "smallest allowed input", 0.0)
UPPER = Argument("upper", "number", "largest allowed input", 1.0)
SCORES = ("max_difference", "difference", "kl", "jensen_shannon")
UP, DOWN = ("<=",), (">=",)

MEASURES: tuple[Measure, ...] = (
    Measure(
        "gap",
        "GroupGap, OddsGap",
        "How differently groups are treated: parity: rates of the favorable class; opportunity: the same among rows "
        "whose true class is the favorable one; odds: the larger gap within the true classes; sampled: rates on rows "
        "that differ in the group's column alone, drawn from the data.",
        "difference of rates, 0 to 1 (kl, jensen_shannon: nats)",
        UP,
        (
            COLUMN,
            FAVORABLE,
            Argument("kind", "choice", "what is compared", "parity", ("parity", "opportunity", "odds", "sampled")),
            Argument("score", "choice", "largest or mean difference over pairs of groups", "max_difference", SCORES),
            VALUES,
            Argument("given", "labels", "true classes within which odds are compared; all by default", None),
            Argument(
                "rest", "choice", "how sampled draws the other columns", "joint", ("joint", "marginals", "conditional")
            ),
            Argument("count", "count", "rows that sampled draws for each group", 10_000),
            *ROWS,
        ),
        'gap(sex, favorable=">50K", kind=parity) <= 0.05',
        interval=True,
    ),
    *(
        Measure(
            name,
            makes,
            f"{what}; defined as in fairlearn, the same as gap(..., kind={kind}).",
            "difference of rates, 0 to 1",
            UP,
            (COLUMN, FAVORABLE, VALUES, *ROWS),
            f"{name}(sex) <= 0.05",
            interval=True,
        )
        for name, makes, kind, what in (
            ("demographic_parity_difference", "GroupGap", "parity", "Largest difference of the favorable rate"),
            ("equal_opportunity_difference", "OddsGap", "opportunity", "Largest difference of the true positive rate"),
            ("equalized_odds_difference", "OddsGap", "odds", "Largest difference of true and false positive rates"),
        )
    ),
    Measure(
        "error_rate",
        "ErrorRate",
        "Share of the rows with another class than their label.",
        "share, 0 to 1",
        UP,
        ROWS,
        "error_rate(reported) <= 0",
        interval=True,
    ),
    Measure(
        "accuracy",
        "ErrorRate",
        "Share of the rows with the class of their label.",
        "share, 0 to 1",
        DOWN,
        ROWS,
        "accuracy >= 0.9",
        interval=True,
    ),
    Measure(
        "recall",
        "MissRate",
        "Share of the rows of a class that are given it.",
        "share, 0 to 1",
        DOWN,
        (LABEL, *ROWS),
        'recall(">50K") >= 0.55',
        interval=True,
    ),
    Measure(
        "miss_rate",
        "MissRate",
        "One minus recall.",
        "share, 0 to 1",
        UP,
        (LABEL, *ROWS),
        'miss_rate(">50K") <= 0.45',
        interval=True,
    ),
    Measure(
        "accuracy_drop",
        "AccuracyDrop",
        "Accuracy of the original network minus accuracy now, on the same rows.",
        "share, 0.01 is one point",
        UP,
        ROWS,
        "accuracy_drop <= 0.01",
        interval=True,
    ),
    Measure(
        "flip_rate",
        "FlipRate",
        "Share of all rows that the original network gets right and this one does not.",
        "share, 0 to 1",
        UP,
        ROWS,
        "flip_rate <= 0.005",
        interval=True,
    ),
    Measure(
        "flips",
        "KeepLabels",
        "Number of rows that were right and are wrong now; with reference=original of all that get another class. A "
        "hard bound for each row.",
        "rows",
        ("<=", "=="),
        (
            DATA,
            Argument("margin", "number", "lead over each other class that a step asks for, logits", 1e-3),
            Argument("reference", "choice", "what must stay", "label", ("label", "original")),
            PRICE,
            WHERE,
        ),
        "flips(guard) == 0",
        goal=False,
    ),
    Measure(
        "unfixed",
        "FixLabels",
        "Number of rows that the original network gets wrong and that are wrong still.",
        "rows",
        ("<=", "=="),
        (
            DATA,
            Argument("margin", "number", "lead over each other class that a step asks for, logits", 1e-3),
            PRICE,
            WHERE,
        ),
        "unfixed(reported, margin=1) == 0",
        goal=False,
    ),
    Measure(
        "fix",
        "FixLabels",
        "A wish, no bound: rows that the original network gets wrong are to get their label, at a price.",
        "none",
        (),
        (
            DATA,
            Argument("margin", "number", "lead over each other class that a step asks for, logits", 1e-3),
            Argument("price", "number", "of a mean violation of one logit", 0.1),
            WHERE,
        ),
        "fix(reported, margin=1)",
        goal=False,
    ),
    Measure(
        "output_change",
        "KeepOutputs",
        "Largest change of any output of any row.",
        "logits",
        UP,
        (DATA, SHARE, WHERE),
        "output_change(guard) <= 0.5",
        goal=False,
    ),
    Measure(
        "output",
        "OutputBounds",
        "One output of the network, or a combination of all, on each row: output([1, -1]) is the lead of the first "
        "class.",
        "logits",
        ("<=", ">="),
        (Argument("of", "output", "which"), DATA, SHARE, WHERE),
        "output([1, -1], guard) >= 0",
        goal=False,
    ),
    Measure(
        "certified_radius",
        "CertifiedRadius",
        "Radius around the rows, maximum norm, within which the class is proved not to change (zonotopes): 1 / "
        "mean(1 / radius), or the least.",
        "units of the inputs",
        DOWN,
        (
            DATA,
            Argument("aggregate", "choice", "over the rows", "mean", ("mean", "least")),
            LOWER,
            UPPER,
            Argument("first", "count", "only so many rows", None),
            WHERE,
        ),
        "certified_radius(guard, first=20) >= 0.1",
    ),
    Measure(
        "attack_error",
        "AdversarialError",
        "Share of the rows for which gradient steps find a wrong point within a radius, maximum norm; a lower bound.",
        "share, 0 to 1",
        UP,
        (
            DATA,
            Argument("radius", "number", "of the balls, units of the inputs"),
            LOWER,
            UPPER,
            Argument("first", "count", "only so many rows", None),
            WHERE,
        ),
        "attack_error(guard, radius=0.05) <= 0.1",
    ),
    Measure(
        "custom",
        "CallableProperty",
        "Your own: function(predict, data) gives a number; data has inputs, labels and columns.",
        "your own",
        ("<=", ">="),
        (Argument("function", "python", "the function"), DATA, WHERE),
        'custom("measures:overconfidence") <= 0.01',
    ),
    Measure(
        "max_change",
        "ChangeLimit",
        "Largest change of any weight.",
        "units of the weights",
        UP,
        (),
        "max_change <= 0.1",
        goal=False,
    ),
    Measure(
        "relative_change",
        "ChangeLimit",
        "Largest change of any weight over its size.",
        "share of the weight",
        UP,
        (),
        "relative_change <= 0.2",
        goal=False,
    ),
    Measure(
        "linear_rows",
        "LinearRows",
        "Your own rows on the change of the chosen weights, lower <= matrix @ change <= upper, arrays of an npz file.",
        "none",
        (),
        (Argument("file", "file", "npz with matrix, lower and upper"),),
        'linear_rows("rows.npz")',
        goal=False,
    ),
)
BY_NAME = {measure.name: measure for measure in MEASURES}


def reference() -> str:
    """The table of measures as Markdown."""
    lines = ["| measure | bounded | unit | meaning | arguments | example | becomes |", "|---|---|---|---|---|---|---|"]
    for m in MEASURES:
        how = f"{m.direction}: {', '.join(m.relations)}" if m.relations else m.direction
        arguments = ", ".join(a.describe().replace("|", "\\|") for a in m.arguments)
        use = "" if m.goal else " (bounds only)"
        lines.append(f"| `{m.name}`{use} | {how} | {m.unit} | {m.meaning} | {arguments} | `{m.example}` | {m.makes} |")
    return "\n".join(lines) + "\n"


def reference_text(width: int = 100) -> str:
    """The same for a terminal."""
    import textwrap

    lines: list[str] = []
    for m in MEASURES:
        how = " ".join(m.relations) or "stands alone"
        lines += [f"{m.name}   {how}   [{m.unit}]" + ("" if m.goal else "   bounds only")]
        lines += textwrap.wrap(m.meaning, width, initial_indent="    ", subsequent_indent="    ")
        for a in m.arguments:
            text = f"{a.describe()}: {a.meaning}" + (" (required)" if a.default is REQUIRED else "")
            lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="          ")
        lines += [f"    example: {m.example}", ""]
    return "\n".join(lines)
