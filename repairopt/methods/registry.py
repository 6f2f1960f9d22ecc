"""Find a method: by name, or an instance. Names are entry points of the group ``repairopt.methods``."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from repairopt.errors import SpecificationError

from .method import Method

GROUP = "repairopt.methods"
DEFAULT = "sqp"


def find_method(method: str | Method) -> Method:
    """The method of a name, with its default settings, or the instance itself.

    Args:
        method: ``"auto"`` (:class:`SQP`), another registered name, or an instance.

    Raises:
        SpecificationError: No such name, a module that cannot be imported, or an object without ``run(task)``.
    """
    if isinstance(method, str):
        found: Method = _load(DEFAULT if method == "auto" else method)()
        return found
    if not isinstance(method, Method) or isinstance(method, type):
        raise SpecificationError(f"method={method!r}: expected a name or an instance with run(task).")
    return method


def available_methods() -> list[str]:
    """Names of all registered methods, sorted; nothing is imported."""
    return sorted(_registered())


def method_class(name: str) -> Any:
    """The class of that name among the methods of this package; an AttributeError where no entry point has it."""
    for point in _registered().values():
        if point.attr == name and point.module.startswith(__package__):
            return point.load()
    raise AttributeError(f"module {__package__!r} has no attribute {name!r}")


@cache
def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(name: str) -> Any:
    point = _registered().get(name)
    if point is None:
        raise SpecificationError(
            f"method={name!r}; choose auto, {', '.join(available_methods())}, or pass an instance."
        )
    try:
        return point.load()
    except ImportError as error:
        raise SpecificationError(f"method {name!r} ({point.value}) cannot be imported: {error}.") from error
