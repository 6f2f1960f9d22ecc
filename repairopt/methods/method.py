"""What a method is, and which settings of a repair it uses."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from repairopt.errors import SpecificationError

from .outcome import Outcome
from .task import Task


@runtime_checkable
class Method(Protocol):
    """How a repair proceeds. Its settings are its fields; a frozen dataclass is the usual form.

    A class may have ``uses``, a set of names among :data:`OPTIONAL`: the settings of a repair that it makes use of.
    Without it the method counts as using all but ``start`` and ``sample_weight``, weights of the rows of ``data``.
    """

    def run(self, task: Task) -> Outcome:
        """Propose a candidate. What the repair may end with must pass ``task.judge.keep``; exploring need not."""
        ...


OPTIONAL = ("solver", "isolate", "tolerance", "start", "weights", "sample_weight", "regions")  # what some methods lack
SOLVING = frozenset({"solver", "isolate", "tolerance", "weights"})  # what methods that solve programs use


def uses(method: Any) -> frozenset[str]:
    """The settings among :data:`OPTIONAL` that a method makes use of; ``regions``: goals of whole input regions."""
    return frozenset(getattr(method, "uses", SOLVING))


def check_uses(method: Any, given: dict[str, bool], able: dict[str, list[str]]) -> None:
    """Refuse settings that the method would ignore.

    Args:
        method: The chosen method.
        given: For each name of :data:`OPTIONAL` whether the user set it.
        able: For each name the registered methods that use it.

    Raises:
        SpecificationError: The first setting that would be ignored, and the methods that use it.
    """
    for name in OPTIONAL:
        if given.get(name) and name not in uses(method):
            raise SpecificationError(
                f"{name}=: method {type(method).__name__} does not use it. Leave it out, or choose a method that does: "
                f"{', '.join(able[name])}."
            )
