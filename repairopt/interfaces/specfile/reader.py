"""Read a spec file: safe YAML, every error with the file's line, the allowed values and a guess at what was meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repairopt.errors import LanguageError, SpecFileError, path_of
from repairopt.interfaces.specfile.language.statements import Statement, did_you_mean, parse
from repairopt.interfaces.specfile.language.syntax import read_filter

if TYPE_CHECKING:
    from .models import Spec

LARGEST = 2**22  # bytes of a spec file
PROVED = "regions_proved() >= 1"  # the goal of a spec that states regions alone
MOST_NODES = 100_000  # keys, values and list entries of a spec file, aliases written out
CUT_OFF = "\n    Is it cut off? In [a, b] YAML ends a bound at ] and at some commas: put each on a line after '- '."
Path_ = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class SpecFile:
    """A spec file that was read and checked, with the line of each key; nothing that it names was opened."""

    path: Path
    spec: Spec
    goal: Statement | None
    bounds: tuple[Statement, ...]
    watch: tuple[Statement, ...]
    lines: Mapping[Path_, int] = field(repr=False)

    @property
    def folder(self) -> Path:
        """What file names in it are relative to."""
        return self.path.parent

    @property
    def hash(self) -> str:
        """SHA-256 of what it says; comments, order and blanks do not count."""
        from repairopt.patches import hash_spec

        return hash_spec(self.spec.model_dump(mode="json"))

    def existing(self, where: Sequence[Any], name: str) -> Path:
        """The path of a file that the spec names; an error that guesses at what was meant where it is not there."""
        path = self.folder / name
        if not path.is_file():
            near = [p.name for p in path.parent.glob("*") if p.is_file()] if path.parent.is_dir() else []
            raise self.fail(where, f"there is no file '{path}'; {did_you_mean(path.name, sorted(near)[:20])}")
        return path

    def fail(self, where: Sequence[Any], reason: str) -> SpecFileError:
        """An error that names the line of a key."""
        return SpecFileError(f"{_place(self.path, self.lines, tuple(where))}: {reason}")


def read_bytes(path: Path) -> bytes:
    """The bytes of a spec file; an error where it cannot be read, or is too large."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SpecFileError(
            f"{path}: cannot be read ({error.strerror or error}). `repairopt demo` writes one."
        ) from error
    if len(raw) > LARGEST:
        raise SpecFileError(f"{path}: has {len(raw):,} bytes; a spec file is a short YAML text. Is it another file?")
    return raw


def read_spec(path: str | Path) -> SpecFile:
    """Read and check a YAML file; no other file is opened, no code is run. An error has a line for each problem."""
    file = path_of(path, "spec file")
    found, lines = load_yaml(file, read_bytes(file))
    return check_spec(file, found, lines)


def check_spec(path: Path, content: Any, lines: Mapping[Path_, int] | None = None) -> SpecFile:
    """Check the content of a spec file at ``path``, plain dicts and lists, with the line of each key."""
    from pydantic import ValidationError

    from .models import Spec

    places = lines or {}
    if not isinstance(content, dict):
        came = "nothing" if content is None else f"a {type(content).__name__}"
        raise SpecFileError(
            f"{path}: is no spec file: expected keys such as model, data, goal; got {came}. "
            f"`repairopt init MODEL DATA` writes one."
        )
    try:
        spec = Spec.model_validate(content)
    except ValidationError as error:
        problems = sorted({explain_error(item, content, places) for item in error.errors(include_url=False)})
        raise SpecFileError("\n".join(f"{path}, line {line}: {text}" for line, text in problems)) from None
    goal_text = spec.goal if spec.goal is not None or not spec.regions else PROVED
    texts: list[tuple[Path_, str]] = [(("goal",), goal_text)] if goal_text is not None else []
    texts += [(("bounds", i), text) for i, text in enumerate(spec.bounds)]
    texts += [(("watch", i), text) for i, text in enumerate(spec.watch)]
    found: dict[str, list[Statement]] = {"goal": [], "bounds": [], "watch": []}
    errors = []
    for where, text in texts:
        try:
            found[where[0]].append(parse(text))
        except LanguageError as error:
            hint = CUT_OFF if text.count("(") > text.count(")") else ""
            errors.append(f"{_place(path, places, where)}: {error}{hint}")
    for name, rows in spec.data.items():
        try:
            read_filter(rows.where) if rows.where is not None else None
        except LanguageError as error:
            errors.append(f"{_place(path, places, ('data', name, 'where'))}: {error}")
    if errors:
        raise SpecFileError("\n".join(errors))
    goal = next(iter(found["goal"]), None)
    checked = SpecFile(path, spec, goal, tuple(found["bounds"]), tuple(found["watch"]), places)
    _check_uses(checked, texts)
    return checked


def _place(path: Path, lines: Mapping[Path_, int], where: Path_) -> str:
    """File and line of a key; the file alone for content that was not read from one."""
    return f"{path}, line {line_of(lines, where)}" if lines else str(path)


def line_of(lines: Mapping[Path_, int], where: Path_) -> int:
    """Line of a key, or of the nearest one above it; 1 where nothing is known."""
    while where and where not in lines:
        where = where[:-1]
    return lines.get(where, 1)


def _check_uses(file: SpecFile, texts: list[tuple[Path_, str]]) -> None:
    """What a statement is used for fits its measure, and no two have one name."""
    seen: dict[str, Path_] = {}
    statements = [*([file.goal] if file.goal else []), *file.bounds, *file.watch]
    for (where, _), statement in zip(texts, statements, strict=True):
        role, measure = where[0], statement.measure
        if role == "goal" and not measure.goal:
            reason = f"{measure.name} is a bound, not a goal; put it under bounds. Goals: error_rate, gap, recall, ..."
            raise file.fail(where, str(statement.fail("", reason)))
        if role in ("goal", "bounds") and measure.relations and not statement.bounds:
            raise file.fail(where, str(statement.fail("", f"it is compared with a number: {measure.example}")))
        if role == "watch" and (statement.bounds or not measure.goal):
            raise file.fail(where, str(statement.fail("", "watched measures are values without a comparison")))
        if statement.name in seen:
            line = line_of(file.lines, seen[statement.name])
            raise file.fail(where, f"'{statement.name}' stands on line {line} too.")
        seen[statement.name] = where


def load_yaml(path: Path, raw: bytes) -> tuple[Any, dict[Path_, int]]:
    """The content of a YAML file, plain dicts and lists, with the line of each key."""
    import yaml

    try:
        text = raw.decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Path_, int] = {}
        _collect(path, node, (), lines, [0])
        return yaml.safe_load(text), lines
    except SpecFileError:
        raise
    except UnicodeDecodeError as error:
        raise SpecFileError(
            f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start}); expected a spec "
            f"file. `repairopt init MODEL DATA` writes one."
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        shown = text.splitlines()[line - 1 : line]
        pointer = f"\n    {shown[0]}\n    {' ' * (mark.column if mark else 0)}^" if shown else ""
        what = " ".join(filter(None, [error.context, error.problem]))
        raise SpecFileError(f"{path}, line {line}: no valid YAML: {what}.{_advice(what)}{pointer}") from None
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        LookupError,
    ) as error:
        raise SpecFileError(f"{path}: no valid YAML: {error}.{_advice(str(error))}") from None


def _advice(what: str) -> str:
    if "could not determine a constructor" in what:
        return " Tags that make Python objects are refused."
    if "flow sequence" in what and "got '['" in what:
        return " A bound with a [list] in it stands on a line of its own after '- ', or in quotes."
    if "cannot start any token" in what or "mapping values" in what:
        return " Put texts with special signs into quotes."
    return ""


def _collect(path: Path, node: Any, where: Path_, lines: dict[Path_, int], seen: list[int]) -> None:
    """The line of every key; a key that stands twice or is no text, and a tree without end, are refused."""
    import yaml

    seen[0] += 1
    here = f"{path}, line {node.start_mark.line + 1}" if node is not None else str(path)
    if len(where) > 20:
        raise SpecFileError(f"{here}: is nested more than 20 levels deep.")
    if seen[0] > MOST_NODES:
        raise SpecFileError(f"{here}: says more than {MOST_NODES:,} things, aliases written out. Write fewer aliases.")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{path}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise SpecFileError(f"{here}: a list or mapping stands as a key; expected a text before the colon.")
            place = (*where, key.value)
            if place in lines:
                raise SpecFileError(f"{here}: '{key.value}' stands on line {lines[place]} too; keep one.")
            lines[place] = key.start_mark.line + 1
            _collect(path, value, place, lines, seen)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*where, i)] = value.start_mark.line + 1
            _collect(path, value, (*where, i), lines, seen)


def explain_error(item: Any, content: Any, lines: Mapping[Path_, int]) -> tuple[int, str]:
    """Line and text of one of pydantic's errors."""
    where, missing = _within(item["loc"], content)
    line, kind = line_of(lines, where), item["type"]
    name = ".".join(str(part) for part in where) or "the file"
    if kind == "extra_forbidden":
        known = _known_keys(where[:-1], content)
        parent = ".".join(str(part) for part in where[:-1])
        inside = f" in {parent}" if parent else ""
        return line, f"unknown key '{where[-1]}'{inside}; {did_you_mean(str(where[-1]), known)}"
    if kind == "missing":
        return line, f"'{'.'.join(map(str, (*where, *missing)))}' is missing"
    if kind == "literal_error":
        return line, f"{name}: {item['input']!r} is not allowed; expected {item['ctx']['expected']}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if not where and (key := message.partition(":")[0]) in content:
        return line_of(lines, (key,)), message
    got = item.get("input")
    shown = f"; got {got!r}" if isinstance(got, str | int | float | bool | list) and kind != "value_error" else ""
    return line, f"{name}: {message[0].lower() + message[1:]}{shown}"


def _within(loc: Sequence[Any], content: Any) -> tuple[Path_, Path_]:
    """The part of pydantic's location that leads into the content, and the rest; names of types are left out."""
    at, where = content, list[Any]()
    for i, part in enumerate(loc):
        inside = isinstance(at, dict) and part in at
        if inside or (isinstance(at, list) and isinstance(part, int) and part < len(at)):
            at = at[part]
        elif i == len(loc) - 1 and isinstance(at, dict):
            return tuple(where), (part,)
        else:
            continue
        where.append(part)
    return tuple(where), ()


def _known_keys(where: Path_, content: Any) -> list[str]:
    from . import models

    if isinstance(content, dict) and "subjects" in content:
        return list((models.ContestantSpec if where else models.StudySpec).model_fields)

    parts = {"": "Spec", "data": "SetSpec", "inputs": "ColumnSpec", "regions": "RegionSpec"}
    key = str(where[0]) if where else ""
    model: Any = getattr(models, parts.get(key, f"{key.capitalize()}Spec"), None)
    return list(model.model_fields) if model is not None else []
