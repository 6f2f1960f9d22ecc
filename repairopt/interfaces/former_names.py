"""Module names from before the package was divided into rooms; they import with a warning until the next release."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {  # former module -> where its names are now
    **dict.fromkeys(("properties", "constraints", "robustness", "group_gaps", "intervals"), ("specify",)),
    "group_metrics": ("specify",),
    "group_offsets": ("methods",),
    "problems": ("program.examples", "compare"),
    "solve": ("program",),
    "select_rows": ("surrogate",),
    **dict.fromkeys(("formulate", "prepare", "conclude"), ("pipeline", "report")),
    **dict.fromkeys(("frontier", "out_of_reach", "calibrate_margin"), ("compare",)),
    "threshold_frontier": ("methods",),
    "html_report": ("report",),
    "evaluate": ("network",),
    "testing": ("interfaces.testing",),
    "sklearn_classifier": ("interfaces.sklearn_classifier",),
    "huggingface": ("interfaces.huggingface",),
    "track": ("interfaces.track",),
    "specfile": ("interfaces.specfile",),
    "specfile.networks": ("interfaces.specfile.networks",),  # spec files name it
    "specfile.open_spec": ("interfaces.specfile.opened",),
}


class _FormerModule(ModuleType):
    """A module whose names are looked up where they are now."""

    def __getattr__(self, name: str) -> Any:
        for place in MOVED[self.__name__.removeprefix("repairopt.")] if not name.startswith("__") else ():
            module = importlib.import_module(f"repairopt.{place}")
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class FormerNames(MetaPathFinder, Loader):
    """Finds modules by their former names."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The specification of a module with a former name; None for any other."""
        former = name.startswith("repairopt.") and name.removeprefix("repairopt.") in MOVED
        return ModuleSpec(name, self) if former else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, after a warning that names where its names are now."""
        places = " and ".join(f"repairopt.{place}" for place in MOVED[spec.name.removeprefix("repairopt.")])
        warnings.warn(f"{spec.name} is deprecated; import from {places}.", DeprecationWarning, stacklevel=6)
        made = _FormerModule(spec.name)
        made.__path__ = []  # some had modules inside
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


def install() -> None:
    """Make the former names importable."""
    if not any(isinstance(finder, FormerNames) for finder in sys.meta_path):
        sys.meta_path.append(FormerNames())
