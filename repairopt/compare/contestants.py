"""Who is compared: registered methods, and the systems of the literature that they are with some settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from inspect import cleandoc
from typing import Any

from repairopt.errors import SpecificationError
from repairopt.methods import Method, available_methods, find_method

OWN = ("autoric",)  # rooms of systems that are this library's method: what a repair ends with is measured
MATERIAL = ("validation", "history", "pool", "protected")  # fields that a subject fills


@dataclass(frozen=True)
class System:
    """A system of the literature, or a method of our own.

    Attributes:
        name: Its name in the papers.
        method: Name of the registered method.
        settings: Settings of the method that make it this system.
        family: Room of the method: training, search, points, sqp and so on.
        needs: What it needs beside the specification: validation rows, history, a pool of inputs, protected columns.
        summary: What it does, in one sentence.
        papers: Where it was published, as the class says.
    """

    name: str
    method: str
    settings: tuple[tuple[str, Any], ...]
    family: str
    needs: tuple[str, ...]
    summary: str
    papers: str

    def make(self) -> Method:
        """An instance."""
        made: Method = type(find_method(self.method))(**dict(self.settings))
        return made


@cache
def list_systems() -> tuple[System, ...]:
    """All systems that can be compared, by name; each registered method under its own name is one."""
    found = []
    for name in available_methods():
        kind = type(find_method(name))
        document = cleandoc(kind.__doc__ or "")
        family = _room(kind)
        own = tuple(one.name for one in fields(kind) if one.name in MATERIAL) if is_dataclass(kind) else ()
        papers = document.split("References:\n")[1] if "References:\n" in document else ""
        told = (family, own, document.split("\n\n")[0].replace("\n", " "), " ".join(papers.split("\n\n")[0].split()))
        published: Mapping[str, Mapping[str, Any]] = getattr(kind, "systems", {})
        found += [System(one, name, tuple(settings.items()), *told) for one, settings in published.items()]
        if not published:
            found.append(System(name, name, (), *told))
    return tuple(sorted(found, key=lambda one: (one.family, one.name.lower())))


def named_methods(methods: Any) -> dict[str, Any]:
    """Methods by the label that tables give them: instances, or ``"auto"`` for what a repair takes by default.

    Args:
        methods: A sequence of names (of registered methods or of systems) and instances, or a mapping from labels to
            such.

    Raises:
        SpecificationError: A name is unknown, a label occurs twice, or there is none.
    """
    if isinstance(methods, str) or not isinstance(methods, Mapping | Sequence):
        raise SpecificationError(f"methods={methods!r}; expected a list of names or instances, or a dict from labels.")
    given = list(methods.items()) if isinstance(methods, Mapping) else [(_label(one), one) for one in methods]
    found: dict[str, Any] = {}
    for label, one in given:
        if str(label) in found:
            raise SpecificationError(f"methods: {label!r} occurs twice. Give a dict that labels each.")
        found[str(label)] = _made(one)
    if not found:
        raise SpecificationError("methods is empty; expected at least one. `repairopt compare --list` names them.")
    return found


def _label(method: Any) -> str:
    return method if isinstance(method, str) else type(method).__name__


def _made(method: Any) -> Any:
    if isinstance(method, str) and method == "auto":
        return method  # the default call chooses by what is asked
    if not isinstance(method, str) or method in available_methods():
        return find_method(method)
    known = {one.name.lower(): one for one in list_systems()}
    if method.lower() not in known:
        near = [one.name for one in list_systems() if method.lower() in one.name.lower()]
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise SpecificationError(
            f"methods: {method!r} is no method and no system.{hint} `repairopt compare --list` names all of them."
        )
    return known[method.lower()].make()


def _room(kind: type) -> str:
    return kind.__module__.removeprefix("repairopt.methods.").split(".")[0]


def is_published(method: Any) -> bool:
    """Whether a method is a system of the literature, whose own product is measured."""
    return bool(getattr(method, "systems", ())) and _room(type(method)) not in OWN
