"""Find a localizer by name; names are entry points of the group ``repairopt.localizers``."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from repairopt.errors import SpecificationError

GROUP = "repairopt.localizers"


def available_localizers() -> list[str]:
    """Names of all registered localizers, sorted; nothing is imported."""
    return sorted(_registered())


def localizer_class(name: str) -> Any:
    """The class of a registered localizer; a SpecificationError where it cannot be imported."""
    point = _registered()[name]
    try:
        return point.load()
    except ImportError as error:
        raise SpecificationError(f"localizer {name!r} ({point.value}) cannot be imported: {error}.") from error


@cache
def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
