"""What expressions of a VNN-LIB file mean: input boxes, and rows of outputs."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .contracts import Array

DISJUNCTS, DIGITS, LARGEST = 100_000, 400, 10**300  # limits of what is read; more is refused
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, eq=False)
class VnnlibCase:
    """One input box of a file, and what must hold for all outputs of it.

    The property holds at an output ``y`` exactly if for every group ``g`` some row ``r`` with ``group[r] == g`` has
    ``matrix[r] @ y - offset[r] > 0``.

    Attributes:
        lower: Smallest inputs ``(d,)``, in float64, rounded down.
        upper: Largest inputs ``(d,)``, rounded up.
        matrix: Coefficients ``(R, k)`` of the rows.
        offset: Their constants ``(R,)``.
        group: Group of each row ``(R,)``, from 0 on without gaps.
    """

    lower: Array
    upper: Array
    matrix: Array
    offset: Array
    group: Array


class Refused(Exception):
    """A line of a file and why it is refused."""

    def __init__(self, line: int, reason: str) -> None:
        self.line, self.reason = line, reason


class Form(list[Any]):
    """An expression in parentheses: words and expressions, and the line where it begins."""

    __slots__ = ("line",)

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line


Linear = dict[str, Fraction]  # coefficients by name, the constant under ""
Conjunction = list[tuple[int, Linear]]  # line, and a form that is at most 0


class CaseReader:
    """Turns declared names and assertions into cases."""

    def __init__(self, names: Mapping[str, int], asserts: Sequence[Form]) -> None:
        self.names, self.asserts = names, asserts
        self.inputs, self.outputs = self._counted("X", "input"), self._counted("Y", "output")
        self.last = asserts[-1].line if asserts else max(names.values(), default=1)

    def _counted(self, letter: str, what: str) -> int:
        places = {int(name[2:]): line for name, line in self.names.items() if name[0] == letter}
        if not places:
            raise Refused(max(self.names.values(), default=1), f"no {what} {letter}_0 is declared.")
        if missing := [i for i in range(len(places)) if i not in places]:
            last = max(places)
            raise Refused(places[last], f"'{letter}_{last}' is declared, but '{letter}_{missing[0]}' is not.")
        return len(places)

    def cases(self) -> list[VnnlibCase]:
        """One case for each input box."""
        parts = [self._alternatives(form[1]) for form in self.asserts]
        count = math.prod(map(len, parts))
        if count > DISJUNCTS:
            raise Refused(self.last, f"the assertions have {count:,} disjuncts; at most {DISJUNCTS:,} are read.")
        fixed, bounds = _Rows(self), _Bounds({}, {})
        possible = all(fixed.read(found[0], bounds) for found in parts if len(found) == 1)
        boxes: dict[tuple[Any, ...], tuple[_Bounds, list[_Rows]]] = {}
        choices = itertools.product(*(found for found in parts if len(found) > 1)) if possible else ()
        for choice in choices:
            rows, box = _Rows(self, list(fixed.rows)), bounds.copy() if choice else bounds
            if all(rows.read(found, box) for found in choice):
                boxes.setdefault(box.key, (box, []))[1].append(rows)
        return self._finished(boxes)

    def _finished(self, boxes: Mapping[Any, tuple[_Bounds, list[_Rows]]]) -> list[VnnlibCase]:
        cases, empty = [], 0
        for box, violations in boxes.values():
            if box.is_empty():
                empty += 1
                continue
            lower, upper = box.arrays(self)
            if not all(rows.rows for rows in violations):
                reason = "an input box has no condition on the outputs: every point of it would be a counterexample."
                raise Refused(self.last, reason)
            cases.append(_case(lower, upper, violations, self.outputs))
        if not cases:
            raise Refused(self.last, "no input satisfies the assertions: the property says nothing.")
        if empty:
            warnings.warn(f"{empty} of {len(boxes)} input boxes are empty and were left out", stacklevel=4)
        return cases

    def _alternatives(self, form: Form) -> list[Conjunction]:
        """A condition as a disjunction of conjunctions."""
        head, arguments = form[0] if form else "", form[1:]
        if head in ("and", "or"):
            if not arguments or any(isinstance(argument, str) for argument in arguments):
                raise Refused(form.line, f"'{head}' is given '{shown(form)}'; expected conditions in parentheses.")
            parts = [self._alternatives(argument) for argument in arguments]
            if head == "or":
                return [found for part in parts for found in part]
            if math.prod(map(len, parts)) > DISJUNCTS:
                raise Refused(form.line, f"the condition has more than {DISJUNCTS:,} disjuncts.")
            return [sum(found, []) for found in itertools.product(*parts)] if len(parts) > 1 else parts[0]
        if head not in ("<=", "<", ">=", ">", "="):
            raise Refused(form.line, f"'{shown(form)}' is no condition; expected and, or, <=, >=, <, > or =.")
        if len(arguments) != 2:
            raise Refused(form.line, f"'{head}' has {len(arguments)} arguments; expected two.")
        left, right = (self._linear(argument, form.line) for argument in arguments)
        below, above = (form.line, _sum(left, right, -1)), (form.line, _sum(right, left, -1))
        return [[below]] if head[0] == "<" else [[above]] if head[0] == ">" else [[below, above]]

    def _linear(self, term: Any, line: int) -> Linear:
        if isinstance(term, str):
            if term in self.names:
                return {term: Fraction(1)}
            number = _NUMBER.fullmatch(term)
            if not number or len(term) > DIGITS:
                raise Refused(line, f"'{term[:40]}' is neither a declared name nor a number.")
            return {"": Fraction(term)}
        head, *arguments = term or [""]
        if not isinstance(head, str) or head not in ("+", "-", "*") or not arguments:
            raise Refused(term.line, f"'{shown(term)}' is no term; expected a name, a number, or +, - or * of terms.")
        found, *others = [self._linear(argument, term.line) for argument in arguments]
        if head == "*":
            for other in others:
                found = _product(found, other, term.line)
            return found
        if head == "-" and not others:
            return {name: -value for name, value in found.items()}
        for other in others:
            found = _sum(found, other, 1 if head == "+" else -1)
        return found


def shown(form: Any) -> str:
    """The start of an expression as text."""
    text = form if isinstance(form, str) else f"({' '.join(shown(part) for part in form[:4])})"
    return text if len(text) <= 60 else text[:57] + "..."


def _sum(left: Linear, right: Linear, sign: int) -> Linear:
    found = dict(left)
    for name, value in right.items():
        found[name] = found.get(name, Fraction(0)) + sign * value
    return found


def _product(left: Linear, right: Linear, line: int) -> Linear:
    constant, other = (left, right) if set(left) <= {""} else (right, left)
    if not set(constant) <= {""}:
        raise Refused(line, "variables are multiplied with each other; expected linear terms.")
    factor = constant.get("", Fraction(0))
    return {name: factor * value for name, value in other.items()}


@dataclass
class _Bounds:
    """Bounds of inputs by their places."""

    lower: dict[int, Fraction]
    upper: dict[int, Fraction]

    def copy(self) -> _Bounds:
        """The same bounds, to be narrowed."""
        return _Bounds(dict(self.lower), dict(self.upper))

    def narrow(self, place: int, bound: Fraction, is_upper: bool) -> None:
        """Add a bound."""
        side, better = (self.upper, min) if is_upper else (self.lower, max)
        side[place] = better(side[place], bound) if place in side else bound

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal boxes."""
        return tuple(sorted(self.lower.items())), tuple(sorted(self.upper.items()))

    def is_empty(self) -> bool:
        """Whether no point holds all bounds."""
        return any(place in self.upper and self.upper[place] < bound for place, bound in self.lower.items())

    def arrays(self, reader: CaseReader) -> tuple[Array, Array]:
        """Both sides, rounded outward; refused where an input has no bound."""
        for side, what in ((self.lower, "lower"), (self.upper, "upper")):
            if missing := [place for place in range(reader.inputs) if place not in side]:
                name = f"X_{missing[0]}"
                raise Refused(reader.names[name], f"input '{name}' has no {what} bound; regions need both.")
        places = range(reader.inputs)
        return (
            np.array([_rounded(self.lower[i], -math.inf) for i in places]),
            np.array([_rounded(self.upper[i], math.inf) for i in places]),
        )


class _Rows:
    """Rows ``coefficients . y <= bound`` of one conjunction."""

    def __init__(self, reader: CaseReader, rows: list[tuple[Linear, Fraction]] | None = None) -> None:
        self.reader, self.rows = reader, [] if rows is None else rows

    def read(self, conjunction: Conjunction, bounds: _Bounds) -> bool:
        """Add forms to the rows or to the bounds; False where one can never hold."""
        for line, form in conjunction:
            constant = form.get("", Fraction(0))
            terms = {name: value for name, value in form.items() if name and value}
            letters = {name[0] for name in terms}
            if max(map(abs, form.values()), default=0) > LARGEST:
                raise Refused(line, f"a number is larger than {LARGEST:.0e}.")
            if not terms:
                if constant > 0:
                    return False
            elif letters == {"Y"}:
                self.rows.append((terms, -constant))
            elif letters == {"X"} and len(terms) == 1:
                ((name, value),) = terms.items()
                if abs(constant) > LARGEST * abs(value):
                    raise Refused(line, f"the bound of '{name}' is larger than {LARGEST:.0e}.")
                bounds.narrow(int(name[2:]), -constant / value, value > 0)
            else:
                what = "mixes inputs and outputs" if len(letters) > 1 else "bounds several inputs at once"
                raise Refused(line, f"a condition {what}; expected bounds of single inputs and rows of outputs.")
        return True


def _case(lower: Array, upper: Array, violations: Sequence[_Rows], outputs: int) -> VnnlibCase:
    rows = [(number, *row) for number, each in enumerate(violations) for row in each.rows]
    matrix, offset = np.zeros((len(rows), outputs)), np.zeros(len(rows))
    for place, (_, terms, bound) in enumerate(rows):
        scale = _exact_scale([*terms.values(), bound])
        for name, value in terms.items():
            matrix[place, int(name[2:])] = float(scale * value)
        offset[place] = _rounded(scale * bound, math.inf)  # harder to exceed, not easier
    return VnnlibCase(lower, upper, matrix, offset, np.array([number for number, *_ in rows]))


def _exact_scale(values: Sequence[Fraction]) -> Fraction:
    """A factor that makes coefficients exact in float64, 1 where they are or where none does."""
    if all(Fraction(float(value)) == value for value in values[:-1]):
        return Fraction(1)
    scaled = math.lcm(*(value.denominator for value in values[:-1]))
    exact = all(abs(scaled * value) <= 2**53 for value in values)
    return Fraction(scaled) if exact else Fraction(1)


def _rounded(value: Fraction, toward: float) -> float:
    """The nearest float64 that does not lie on the other side of the value."""
    found = float(value)
    exact = Fraction(found)
    lost = exact < value if toward > 0 else exact > value
    return math.nextafter(found, toward) if lost else found
