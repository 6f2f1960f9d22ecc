"""Read version 2 of VNN-LIB by the package ``vnnlib``; what its expressions mean is as in version 1."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from .vnnlib_cases import Form, Refused

_HEADS = {
    "And": "and",
    "Or": "or",
    "LessEqual": "<=",
    "LessThan": "<",
    "GreaterEqual": ">=",
    "GreaterThan": ">",
    "Equal": "=",
    "Plus": "+",
    "Minus": "-",
    "Multiply": "*",
    "Negate": "-",
}


def parse_second_version(text: str) -> tuple[dict[str, int], list[Form]]:
    """The lines of names ``X_i`` and ``Y_j``, and the asserted expressions, as from a file of version 1.

    Tensors are flattened in row-major order, several one after another.
    """
    import vnnlib

    try:
        query = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise _as_refused(str(error)) from None
    if len(query.networks) != 1 or query.networks[0].hidden:
        raise Refused(1, "several networks or hidden tensors are declared; expected one network, inputs and outputs.")
    start: dict[str, tuple[str, int]] = {}
    names: dict[str, int] = {}
    for letter, tensors in (("X", query.networks[0].inputs), ("Y", query.networks[0].outputs)):
        total = 0
        for tensor in tensors:
            start[tensor.name] = (f"{letter}_", total)
            total += math.prod(tensor.shape)
        names |= {f"{letter}_{place}": _line_of(text, tensors[-1].name) for place in range(total)}
    asserts = [_form_of("assert", (each.expr,), start) for each in query.assertions]
    return names, asserts


def _as_refused(message: str) -> Refused:
    """The first error that the package found, with its line."""
    try:
        first = json.loads(message)["errors"][0]
        return Refused(int(first["line"]), f"{first['message']}: '{first['offendingSymbol']}'. {first['hint']}")
    except (ValueError, KeyError, IndexError, TypeError):
        line = re.search(r"line (\d+)", message)
        return Refused(int(line[1]) if line else 1, f"{message}.")


def _line_of(text: str, name: str) -> int:
    """Where a tensor is declared."""
    found = re.search(rf"\(\s*declare-(input|output)\s+{re.escape(name)}\b", text)
    return 1 + text.count("\n", 0, found.start()) if found else 1


def _form_of(head: str, parts: Any, start: dict[str, tuple[str, int]]) -> Form:
    """An expression of the package as one of version 1; its line is that of its first variable or number."""
    form = Form(0)
    form.append(head)
    for part in parts:
        kind = type(part).__name__
        if kind == "Var":
            letter, first = start[part.name]
            place = 0
            for index, size in zip(part.indices, part.shape, strict=True):
                place = place * size + index
            form.append(f"{letter}{first + place}")
        elif kind in ("Float", "Int"):
            form.append(part.lexeme.strip())
        elif kind in _HEADS:
            form.append(_form_of(_HEADS[kind], _parts_of(part), start))
        else:
            raise Refused(form.line or 1, f"'{part}' is a {kind}; expected and, or, comparisons and linear terms.")
        form.line = form.line or getattr(form[-1], "line", 0) or getattr(part, "line", 0)
    return form


def _parts_of(part: Any) -> tuple[Any, ...]:
    for names in (("lhs", "rhs"), ("expr",)):
        if all(hasattr(part, name) for name in names):
            return tuple(getattr(part, name) for name in names)
    return tuple(part.args) if hasattr(part, "args") else (part.head, *part.rest)
