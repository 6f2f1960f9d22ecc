"""From text to a sentence, by Python's own parser; nothing is evaluated, and errors point at the character."""

from __future__ import annotations

import ast
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any, NoReturn

from repairopt.errors import LanguageError

LONGEST = 2000
FORM = 'expected a measure compared with a number, such as recall(">50K") >= 0.55'
RELATIONS: dict[type[ast.cmpop], str] = {ast.LtE: "<=", ast.GtE: ">=", ast.Eq: "=="}
FILTERS: dict[type[ast.cmpop], str] = {**RELATIONS, ast.Lt: "<", ast.Gt: ">", ast.NotEq: "!=", ast.In: "in"}
MIRRORED = {"<=": ">=", ">=": "<=", "==": "=="}


@dataclass(frozen=True)
class Condition:
    """One comparison of a column: ``age >= 60``; the value is a number, a text, or a list of these for ``in``."""

    column: str
    relation: str
    value: Any
    position: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Value:
    """One argument and where it stands; ``form`` is "name", "text", "number", "list" or "filter"."""

    value: Any
    form: str
    position: int = field(compare=False)


@dataclass(frozen=True)
class Sentence:
    """What was written and where its parts stand; ``call`` is the text of the measure with its arguments.

    ``bounds`` are ``(relation, number, position)`` as seen from the measure: ``<=``, ``>=`` or ``==``.
    """

    text: str
    name: str
    positional: tuple[Value, ...]
    named: dict[str, Value]
    places: dict[str, int]
    call: str
    start: int
    bounds: tuple[tuple[str, float, int], ...]


def read_sentence(text: str) -> Sentence:
    """Read one goal or bound, such as ``flips(guard) == 0``; whether the measure exists is not looked at."""
    reader = _Reader(" ".join(str(text).split()))
    return reader.sentence(reader.parse())


def read_filter(text: str) -> tuple[Condition, ...]:
    """Read a condition on columns, such as ``age >= 60 and sex == "Female"``: comparisons that all must hold."""
    reader = _Reader(" ".join(str(text).split()))
    return reader.filter(reader.parse())


class _Reader:
    """One text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def fail(self, position: int, reason: str) -> NoReturn:
        raise LanguageError(self.text, position, reason) from None

    def at(self, node: ast.AST) -> int:
        """Position of a node in characters; Python counts bytes."""
        return len(self.text.encode()[: node.col_offset].decode(errors="ignore"))  # type: ignore[attr-defined]

    def parse(self) -> ast.expr:
        if not self.text:
            self.fail(0, f"nothing is written here; {FORM}")
        if len(self.text) > LONGEST:
            raise LanguageError(self.text[:60] + " ...", 0, f"longer than {LONGEST} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns of odd escapes
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            self._explain(error)
        except (ValueError, RecursionError, MemoryError):
            self.fail(0, f"cannot be read; {FORM}")

    def _explain(self, error: SyntaxError) -> NoReturn:
        place = min(max((error.offset or 1) - 1, 0), len(self.text))
        for sign, allowed in (("≤", "<="), ("≥", ">="), ("=<", "<="), ("=>", ">=")):
            if sign in self.text:
                self.fail(self.text.index(sign), f"unknown sign {sign!r}; write {allowed}")
        if "%" in self.text:
            self.fail(self.text.index("%"), "shares are written as numbers: 0.05 for 5 %")
        single = next((i for i, c in enumerate(self.text) if c == "=" and self._alone(i)), None)
        if single is not None:
            self.fail(single, "a single = gives an argument its value; compare with <=, >= or ==")
        self.fail(place, f"cannot be read here ({error.msg}); {FORM}")

    def _alone(self, place: int) -> bool:
        around = self.text[max(0, place - 1) : place + 2]
        return (
            self.text[:place].count("(") == self.text[:place].count(")")
            and not set(around) & set("<>!")
            and around.count("=") == 1
        )

    def sentence(self, node: ast.expr) -> Sentence:
        if not isinstance(node, ast.Compare):
            return self._around(node, ())
        sides = [node.left, *node.comparators]
        relations = [self._relation(op, sides[i], sides[i + 1]) for i, op in enumerate(node.ops)]
        measures = [i for i, side in enumerate(sides) if isinstance(side, ast.Call | ast.Name)]
        if len(measures) != 1:
            place = self.at(sides[measures[1]] if measures else sides[0])
            self.fail(place, f"one measure is compared with numbers; {FORM}")
        if len(sides) > 3 or (len(sides) == 3 and measures != [1]):
            self.fail(self.at(sides[-1]), "at most one number on each side of the measure")
        bounds = []
        for i, relation in enumerate(relations):
            number = sides[i + 1] if i == measures[0] else sides[i]
            seen = relation if i == measures[0] else MIRRORED[relation]
            bounds.append((seen, self._number(number), self.at(number)))
        return self._around(sides[measures[0]], tuple(bounds))

    def _relation(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> str:
        if type(op) not in RELATIONS:
            between = self.text[self._end(left) : self.at(right)]
            place = self._end(left) + len(between) - len(between.lstrip())
            self.fail(place, f"unknown comparison {between.strip()!r}; choose from <=, >=, ==")
        return RELATIONS[type(op)]

    def _end(self, node: ast.expr) -> int:
        return len(self.text.encode()[: node.end_col_offset].decode(errors="ignore"))

    def _around(self, node: ast.expr, bounds: tuple[tuple[str, float, int], ...]) -> Sentence:
        call = self.text[self.at(node) : self._end(node)]
        if isinstance(node, ast.Name):
            return Sentence(self.text, node.id, (), {}, {}, call, self.at(node), bounds)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            self.fail(self.at(node), f"{call!r} is no measure; {FORM}")
        positional = tuple(self.value(arg) for arg in node.args)
        named: dict[str, Value] = {}
        places: dict[str, int] = {}
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg in named:
                self.fail(self.at(keyword), "each argument is given once, as name=value")
            named[keyword.arg], places[keyword.arg] = self.value(keyword.value), self.at(keyword)
        return Sentence(self.text, node.func.id, positional, named, places, call, self.at(node), bounds)

    def value(self, node: ast.expr) -> Value:
        place = self.at(node)
        if isinstance(node, ast.Name):
            return Value(node.id, "name", place)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return Value(node.value, "text", place)
        if isinstance(node, ast.List | ast.Tuple):
            return Value([self.value(item).value for item in node.elts], "list", place)
        if isinstance(node, ast.Compare | ast.BoolOp):
            return Value(self.filter(node), "filter", place)
        if isinstance(node, ast.Constant | ast.UnaryOp):
            return Value(self._number(node), "number", place)
        reason = (
            f"{self.text[place : self._end(node)]!r} is no value; expected a name, a number, a [list], a condition "
            f"such as age >= 60, or a text in quotes (names with other signs than letters, digits and _ need quotes)"
        )
        self.fail(place, reason)

    def _number(self, node: ast.expr) -> float:
        sign, inner = 1, node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, inner = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        found = inner.value if isinstance(inner, ast.Constant) else None
        if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) <= sys.float_info.max:
            self.fail(self.at(node), f"{self.text[self.at(node) : self._end(node)]!r} is not a number")
        return sign * found

    def filter(self, node: ast.expr) -> tuple[Condition, ...]:
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            return tuple(condition for part in node.values for condition in self.filter(part))
        if not isinstance(node, ast.Compare):
            reason = 'expected a condition such as age >= 60 and sex == "Female"; only "and" joins them'
            self.fail(self.at(node), reason)
        sides = [node.left, *node.comparators]
        return tuple(self._condition(sides[i], op, sides[i + 1]) for i, op in enumerate(node.ops))

    def _condition(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Condition:
        if type(op) not in FILTERS:
            self.fail(self._end(left), f"unknown comparison; choose from {', '.join(FILTERS.values())}")
        first, second, relation = self.value(left), self.value(right), FILTERS[type(op)]
        if first.form == "number" and second.form == "name":  # 60 <= age
            first, second = second, first
            relation = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(relation, relation)
        if first.form not in ("name", "text"):
            self.fail(first.position, "a condition starts with the name of a column")
        if (second.form == "list") != (relation == "in"):
            self.fail(second.position, "'in' needs a [list], the other comparisons one number or text")
        return Condition(str(first.value), relation, second.value, first.position)
