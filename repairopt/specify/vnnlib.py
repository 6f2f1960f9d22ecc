"""Read VNN-LIB files, the format in which verifiers state properties of whole input regions.

A file states what a counterexample is: an input box, by bounds on ``X_i``, and conditions on the outputs ``Y_j``. Here
it becomes what must hold instead: one case for each input box, whose groups of rows are the negated conditions. The
parser is for version 1: ``declare-const``, ``assert``, ``and``, ``or``, comparisons of linear terms. Numbers are read
as fractions and bounds of inputs rounded outward, so that no point of the file's box is lost. A strict comparison is
read as one that is not, which makes the property stronger. Files of version 2 are left to the package ``vnnlib``.

References:
    Demarchi, Guidotti, Pulina, Tacchella, Supporting standardization of neural networks verification with VNN-LIB and
    CoCoNet, FoMLAS 2023.
"""

from __future__ import annotations

import os
import re

from repairopt.errors import SpecFileError, path_of, require_extra

from .vnnlib_cases import CaseReader, Form, Refused, VnnlibCase, shown
from .vnnlib_second import parse_second_version

NESTING = 200  # parentheses within each other; more is refused
_TOKEN = re.compile(r"[()]|[^\s()]+")
_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)
_SILENT = frozenset({"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"})


def read_vnnlib(path: str | os.PathLike[str]) -> list[VnnlibCase]:
    """The cases of a VNN-LIB file, one for each input box, in the order of the file.

    Args:
        path: A file of version 1, or of version 2 where the package ``vnnlib`` is installed.

    Returns:
        At least one case. A property holds for the file if it holds for all of them.

    Raises:
        SpecFileError: The file cannot be read, or says what is not supported: inputs without bounds, rows that mix
            inputs and outputs or several inputs, products of variables, more than 100,000 disjuncts.
        MissingExtraError: The file is of version 2, and ``vnnlib`` is not installed.
    """
    file = path_of(path, "VNN-LIB file")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecFileError(f"'{file}': is not text ({error}); expected a VNN-LIB file, unpacked.") from error
    except OSError as error:
        raise SpecFileError(f"'{file}': cannot be read ({error.strerror or error}).") from error
    if re.search(r"^\s*\(vnnlib-version", text, re.MULTILINE):
        require_extra("vnnlib", f"'{file}': version 2 of VNN-LIB", "vnnlib", hint="; or state it in version 1.")
        parse = parse_second_version
    else:
        parse = _parse
    try:
        return CaseReader(*parse(text)).cases()
    except Refused as error:
        raise SpecFileError(f"'{file}', line {error.line}: {error.reason}") from None


def _forms(text: str) -> list[Form]:
    stack: list[Form] = []
    found: list[Form] = []
    line = 0
    for line, raw in enumerate(text.splitlines(), 1):
        for token in _TOKEN.findall(raw.partition(";")[0]):
            if token == "(":
                stack.append(Form(line))
                if len(stack) > NESTING:
                    raise Refused(line, f"parentheses are nested more than {NESTING} deep.")
            elif not stack:
                raise Refused(line, f"'{token}' stands outside of parentheses; expected (assert ...) or the like.")
            elif token == ")":
                form = stack.pop()
                (stack[-1] if stack else found).append(form)
            else:
                stack[-1].append(token)
    if stack:
        raise Refused(stack[-1].line, "'(' is never closed.")
    if not found:
        raise Refused(line, "the file has no expressions; expected declarations and assertions.")
    return found


def _parse(text: str) -> tuple[dict[str, int], list[Form]]:
    """The line of each declared name, and the asserted expressions, each inside its ``assert``."""
    names: dict[str, int] = {}
    asserts: list[Form] = []
    for form in _forms(text):
        head = form[0] if form and isinstance(form[0], str) else "()"
        if head in ("declare-const", "declare-fun"):
            _declare(form, names)
        elif head == "assert":
            if len(form) != 2 or isinstance(form[1], str):
                raise Refused(form.line, f"assert has {len(form) - 1} arguments or none in parentheses; expected one.")
            asserts.append(form)
        elif head not in _SILENT:
            raise Refused(form.line, f"command '{head}' is unknown; expected declare-const or assert.")
    return names, asserts


def _declare(form: Form, names: dict[str, int]) -> None:
    name = form[1] if len(form) > 1 else None
    expected = [form[0], name, "Real"] if form[0] == "declare-const" else [form[0], name, [], "Real"]
    if list(form) != expected or not isinstance(name, str):
        example = "X_0 Real" if form[0] == "declare-const" else "X_0 () Real"
        raise Refused(form.line, f"'{shown(form)}' is no declaration that is read; expected ({form[0]} {example}).")
    if not _VARIABLE.fullmatch(name):
        raise Refused(form.line, f"'{name}' is no input X_i and no output Y_j; expected such names.")
    if name in names:
        raise Refused(form.line, f"'{name}' is declared again; it was in line {names[name]}.")
    names[name] = form.line
