"""parse(): a goal or bound as text becomes a statement, checked against the table of measures.

Example:
    >>> statement = parse('recall(">50K") >= 0.55')
    >>> statement.measure.name, statement.arguments["label"], statement.bounds
    ('recall', '>50K', (('>=', 0.55),))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from repairopt.errors import LanguageError
from repairopt.specify import REQUIRED, Argument, Measure

from .measures import BY_NAME, KINDS, load_measures
from .syntax import Sentence, Value, read_sentence


@dataclass(frozen=True)
class Statement:
    """A goal, a bound, or a measure to watch.

    Attributes:
        text: Text as written, in one line.
        name: The measure with its arguments: what reports call it.
        measure: Its entry in the table.
        arguments: All of them, defaults filled in.
        bounds: ``(relation, number)``; empty for what is only watched or stands alone.
        places: Where each argument stands in the text.
    """

    text: str
    name: str
    measure: Measure
    arguments: dict[str, Any]
    bounds: tuple[tuple[str, float], ...]
    places: dict[str, int] = field(compare=False, repr=False)

    @property
    def wish(self) -> bool:
        """Whether it has a price in place of a bound."""
        return self.arguments.get("price") is not None

    def fail(self, argument: str, reason: str) -> LanguageError:
        """An error that points at an argument."""
        return LanguageError(self.text, self.places.get(argument, self.places[""]), reason)

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Statement:
    """Read a goal or bound, such as ``gap(sex, favorable=">50K", kind=parity) <= 0.05``.

    Args:
        text: The measure, its arguments and what it is compared with; ``repairopt schema --language`` lists all.

    Returns:
        The statement; :func:`repairopt.bind_statement` makes a property or constraint of it.

    Raises:
        LanguageError: The message points at the character that cannot stand there and says what is allowed.

    Example:
        >>> parse("flips(guard) == 0").name
        'flips(guard)'
        >>> parse("recal(1) >= 0.5")
        Traceback (most recent call last):
        ...
        repairopt.errors.LanguageError: there is no measure 'recal'; did you mean 'recall'? ...
    """
    sentence = read_sentence(text)
    measure = _measure(sentence)
    arguments, places = _arguments(sentence, measure)
    _check_bounds(sentence, measure)
    bounds = tuple((relation, number) for relation, number, _ in sentence.bounds)
    return Statement(sentence.text, sentence.call, measure, arguments, bounds, places)


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint: the nearest known name, and all of them."""
    near = get_close_matches(name, known, n=1)
    return (f"did you mean '{near[0]}'? " if near else "") + f"known: {', '.join(known)}"


def _measure(sentence: Sentence) -> Measure:
    load_measures()
    if sentence.name not in BY_NAME:
        hint = did_you_mean(sentence.name, list(BY_NAME))
        raise LanguageError(sentence.text, sentence.start, f"there is no measure '{sentence.name}'; {hint}")
    return BY_NAME[sentence.name]


def _arguments(sentence: Sentence, measure: Measure) -> tuple[dict[str, Any], dict[str, int]]:
    known = {argument.name: argument for argument in measure.arguments}
    takes = f"{measure.name} takes {', '.join(one.describe() for one in measure.arguments) or 'no arguments'}"
    if len(sentence.positional) > len(known):
        raise LanguageError(sentence.text, sentence.positional[len(known)].position, takes)
    given: dict[str, Value] = dict(zip(known, sentence.positional, strict=False))
    for name, value in sentence.named.items():
        place = sentence.places[name]
        if name not in known:
            hint = did_you_mean(name, list(known)) if known else "it takes none"
            raise LanguageError(sentence.text, place, f"{measure.name} has no argument '{name}'; {hint}")
        if name in given:
            raise LanguageError(sentence.text, place, f"'{name}' is given twice; {takes}")
        given[name] = value
    found: dict[str, Any] = {}
    for argument in measure.arguments:
        if argument.name in given:
            found[argument.name] = _checked(sentence, argument, given[argument.name])
        elif argument.default is REQUIRED:
            reason = f"{measure.name} needs '{argument.name}', {KINDS[argument.kind][0]}: {argument.meaning}"
            raise LanguageError(sentence.text, sentence.start, f"{reason}. Example: {measure.example}")
        else:
            found[argument.name] = argument.default
    return found, {"": sentence.start} | {name: value.position for name, value in given.items()}


def _checked(sentence: Sentence, argument: Argument, value: Value) -> Any:
    if value.form == "name" and value.value == "None" and argument.default is None:
        return None
    reason = ""
    if value.form not in KINDS[argument.kind][1]:
        reason = f"'{argument.name}' is {KINDS[argument.kind][0]}: {argument.meaning}"
    elif argument.choices and value.value not in argument.choices:
        reason = f"'{argument.name}' is one of {', '.join(argument.choices)}; got {value.value!r}"
    elif argument.kind == "count" and (not isinstance(value.value, int) or value.value < 1):
        reason = f"'{argument.name}' is a whole number, 1 or more"
    elif argument.kind == "python" and len(value.value.split(":")) != 2:
        reason = 'expected Python code as "package.module:function"'
    if reason:
        raise LanguageError(sentence.text, value.position, reason)
    return value.value


def _check_bounds(sentence: Sentence, measure: Measure) -> None:
    for relation, number, place in sentence.bounds:
        reason = ""
        if not measure.relations:
            reason = f"{measure.name} stands alone; leave the comparison out"
        elif relation not in measure.relations:
            reason = f"{measure.name} is bounded {measure.direction}; write {measure.example}"
        elif relation == "==" and number != 0:
            reason = "== is for 0 alone; write <= for a larger number"
        elif measure.unit.startswith("share, 0 to 1") and not 0 <= number <= 1:
            reason = f"{measure.name} is a share; expected 0 to 1, 0.05 for 5 %"
        elif measure.unit == "rows" and (number < 0 or number != int(number)):
            reason = f"{measure.name} counts rows; expected a whole number from 0"
        elif measure.way == "1 / " and number <= 0:
            reason = "a radius is above 0"
        if reason:
            raise LanguageError(sentence.text, place, reason)
    if len(sentence.bounds) == 2 and not measure.both:
        raise LanguageError(sentence.text, sentence.bounds[1][2], f"{measure.name} is bounded on one side only")
