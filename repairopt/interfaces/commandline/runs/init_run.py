"""Write a first spec for a model and its data: what was guessed is said in comments, and ``check`` runs at once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repairopt.errors import ResultError, SpecFileError
from repairopt.interfaces.specfile.guesses import Guess, guess_spec, target
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.patches import whole_file

from .results import InitResult
from .solve_run import Progress

WAYS = 30  # to read the rows that are tried, about
HEAD = """\
# Written by `repairopt init`. Comments say what was guessed: look at it, then
#   repairopt check {name}                 what holds now
#   repairopt solve {name} --out repair    the repair, as a patch with a report
# All measures: repairopt schema --language
"""


def write_first_spec(
    model: str,
    data: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    label: str | None = None,
    sensitive: Sequence[str] = (),
    fixed: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress,
) -> InitResult:
    """Write a spec file for a model and a file of rows; options are those of ``repairopt init``."""
    path = Path(out)
    if path.exists() and not overwrite:
        raise ResultError(f"'{path}' exists. Use --overwrite, or another --out.")
    if not path.parent.is_dir():
        raise ResultError(f"'{path}': there is no folder '{path.parent}'. Make it before.")
    with progress.stage("looking at model and data", WAYS) as step:
        filled = dict(map(_filled, fixed))
        options: dict[str, Any] = {"label": label, "sensitive": sensitive, "fixed": filled, "tell": step}
        guess = guess_spec(model, data, path, weights=weights, **options)
    text = spec_text(guess, path.name)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
    with progress.stage("reading what was written"):
        open_spec(path)
    return InitResult(
        exit_code=0,
        out=str(path),
        inputs=guess.inputs,
        label=f"{guess.content['label']['column']}, {guess.label}",
        sensitive_features=", ".join(guess.content.get("sensitive_features", [])) or guess.sensitive,
        candidates=[{"measure": measure, "value": value} for measure, value in guess.candidates],
    )


def _filled(text: str) -> tuple[str, float]:
    """Name and number of ``--fixed NAME=NUMBER``."""
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise SpecFileError(f"--fixed {text}: expected NAME=NUMBER, such as --fixed state=0.")
    return name, int(value) if value.is_integer() else value


def spec_text(guess: Guess, name: str) -> str:
    """The spec file as text, with comments."""
    said, lines = guess.content, [HEAD.format(name=name)]
    lines += _block("model", said["model"])
    lines += _block("data", said["data"])
    repeats = "; equal rows stay together" if said["split"].get("together") else ""
    lines.append(f"split: {_flow(said['split'])}    # rows that the repair never sees{repeats}")
    if "inputs" in said:
        lines += [f"# {guess.inputs}", "inputs:    # in the order in which the network reads them"]
        lines += [f"  {_flow(column)}: {_flow(how) if how else ''}".rstrip() for column, how in said["inputs"].items()]
    else:
        lines += [f"# {guess.inputs}", f"array: {_flow(said['array'])}"]
    lines.append(f"label: {_flow(said['label'])}    # {guess.label}")
    if said.get("sensitive_features"):
        lines.append(f"sensitive_features: {_flow(said['sensitive_features'])}    # {guess.sensitive}")
    lines += ["", "# Three goals to choose from, with what the network comes to now:"]
    for i, (measure, value) in enumerate(guess.candidates):
        lines.append(f"{'' if not i else '# '}goal: {_text(target(measure, value))}    # now {value:.4g}")
    lines += ["bounds:    # what must stay true", f"  - {_text('accuracy_drop <= 0.01')}", "change: {layers: auto}", ""]
    return "\n".join(lines)


def _block(key: str, value: dict[str, Any]) -> list[str]:
    return [f"{key}:", *(f"  {_flow(name)}: {_flow(item)}" for name, item in value.items())]


def _flow(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    """A text, in quotes where YAML would read something else."""
    import yaml

    try:
        whole = yaml.safe_load(f"[{value}, x]")
    except yaml.YAMLError:
        whole = None
    plain = whole == [value, "x"] and yaml.safe_load(f"{value}: 1") == {value: 1}
    single = value.isprintable() and "'" not in value
    return value if plain else f"'{value}'" if single else json.dumps(value, ensure_ascii=False)
