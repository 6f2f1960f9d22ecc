"""Comparisons as files: a study names spec files and methods; a spec file alone is a study of one subject."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from repairopt.compare import Limits, Subject, named_methods
from repairopt.errors import SpecFileError, SpecificationError, path_of
from repairopt.network import Classifier
from repairopt.specify import Divided, Grouped

from .models import ContestantSpec, StudySpec
from .opened import OpenSpec, open_spec
from .reader import check_spec, explain_error, load_yaml, read_bytes
from .stated_weights import chosen_weights

BY_DEFAULT = ("auto", "fine_tune", "train_then_correct")  # methods where a spec file alone is given


@dataclass(frozen=True, eq=False)
class Study:
    """What ``compare_repairs`` is given.

    Attributes:
        subjects: In the order of the file.
        methods: Names and instances by label.
        repetitions: How often.
        limits: Of each cell.
        published: Figures of papers to show beside.
    """

    subjects: tuple[Subject, ...]
    methods: dict[str, Any]
    repetitions: int
    limits: Limits
    published: tuple[tuple[str, str, str, float], ...] = ()


def read_published(path: Path) -> tuple[tuple[str, str, str, float], ...]:
    """Published figures from a CSV file with the columns subject, system, metric, value; else a SpecFileError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return tuple((row["subject"], row["system"], row["metric"], float(row["value"])) for row in rows)
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SpecFileError(
            f"{path}: expected a CSV file with the columns subject, system, metric and value, a number ({reason})."
        ) from error


def read_study(path: str | Path, methods: Sequence[str] = ()) -> Study:
    """Read a study, or a spec file as one; ``methods`` takes the place of those that the file names.

    Raises:
        SpecFileError: With file and line; also where a spec file has no held-out rows with labels.
    """
    file = path_of(path, "study")
    content, lines = load_yaml(file, read_bytes(file))
    if not isinstance(content, dict) or "subjects" not in content:
        spec = open_spec(check_spec(file, content, lines))
        named = _labelled(file, [(name, name) for name in methods or BY_DEFAULT])
        return Study((subject_of(spec),), named, StudySpec.model_fields["repetitions"].default, Limits())
    from pydantic import ValidationError

    try:
        said = StudySpec.model_validate(content)
    except ValidationError as error:
        problems = sorted({explain_error(item, content, lines) for item in error.errors(include_url=False)})
        raise SpecFileError("\n".join(f"{file}, line {line}: {text}" for line, text in problems)) from None
    given = list(methods) if methods else said.methods
    limits = Limits(said.time_limit, int(said.memory_limit * 2**30))
    published = () if said.published is None else read_published(file.parent / said.published)
    subjects = tuple(subject_of(open_spec(file.parent / name)) for name in said.subjects)
    labelled = _labelled(file, [_contestant(file, one) for one in given])
    return Study(subjects, labelled, said.repetitions, limits, published)


def _labelled(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Methods by label; a SpecFileError where two have one."""
    labels = [label for label, _ in pairs]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise SpecFileError(
            f"{file}: methods: {twice[0]!r} occurs twice. Name it once, or give each a label of its own in a study, "
            "as in {method: fine_tune, label: long, settings: {epochs: 60}}."
        )
    return dict(pairs)


def _contestant(file: Path, one: str | ContestantSpec) -> tuple[str, Any]:
    if isinstance(one, str):
        return one, one
    label = one.label or one.method
    try:
        made = named_methods({label: one.method})[label]
        known = [field.name for field in fields(made)] if is_dataclass(made) else list(one.settings)
        taken = signature(type(made)).parameters  # those that are deprecated too
        if unknown := [name for name in one.settings if name not in known and name not in taken]:
            raise SpecificationError(f"no setting {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
        return label, type(made)(**{**_differing(made), **one.settings}) if one.settings else made
    except (SpecificationError, TypeError) as error:
        raise SpecFileError(f"{file}: method {label!r}: {error}") from error


def _differing(method: Any) -> dict[str, Any]:
    """The settings of a method that are not the defaults of its class."""
    usual = type(method)()
    return {name: value for name, value in vars(method).items() if vars(usual).get(name) is not value}


def subject_of(spec: OpenSpec) -> Subject:
    """The subject of a spec: repair rows, held-out rows for the test, sets ``train`` and ``validation`` if there are.

    The groups of the first gap among goal, bounds and what is watched are those of the fairness metrics.

    Raises:
        SpecFileError: There are no held-out rows with labels.
    """
    file, sets = spec.file, spec.data.sets
    test = sets.get("held_out")
    if test is None or test.labels is None:
        raise SpecFileError(
            f"{file.path}: methods are compared on rows that none of them saw. Name a file of such rows, with labels, "
            "as data: held_out."
        )
    pairs = {name: (rows.inputs, rows.labels) for name, rows in sets.items() if rows.labels is not None}
    if "repair" not in pairs:
        raise SpecFileError(
            f"{file.path}: methods are compared by right and wrong answers; data: repair has no labels."
        )
    groups, favorable = _groups(spec, len(test))
    return Subject(
        name=file.path.stem,
        model=Classifier(spec.model, outputs=file.spec.model.outputs),
        train=pairs.get("train"),
        validation=pairs.get("validation"),
        repair=pairs["repair"],
        test=pairs["held_out"],
        weights=chosen_weights(spec),
        goal=spec.goal.as_goal() if spec.goal is not None else None,
        constraints=tuple(bound.as_constraint() for bound in spec.bounds),
        groups=groups,
        favorable=favorable,
    )


def _groups(spec: OpenSpec, count: int) -> tuple[Any, int | None]:
    """Groups of the held-out rows and the favorable class; None where no gap speaks of all of them."""
    for one in spec.held_out:
        if isinstance(one.item, Divided) and len(one.item.samples.member) == count:
            names = np.asarray(one.item.samples.names)
            favorable = one.item.favorable if isinstance(one.item, Grouped) else None
            return names[one.item.samples.member.numpy()], favorable
    return None, None
