"""Python code that a spec file names, ``package.module:function``; it runs with all rights of the user."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repairopt.errors import RepairError, SpecificationError
from repairopt.specify import ROWS, Argument, Given, Measure

from .row_sets import RowSet


def load_code(reference: str, folder: Path) -> Callable[..., Any]:
    """Import ``package.module:function``; ``folder`` is searched for the module before the installed ones."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise SpecificationError(f"'{reference}': expected Python code as package.module:function.")
    path = str(folder.resolve())
    _forget_other(module.partition(".")[0], folder.resolve())
    sys.path.insert(0, path)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        known = ", ".join(n for n, v in vars(sys.modules[module]).items() if callable(v) and not n.startswith("_"))
        raise SpecificationError(
            f"'{reference}': module '{module}' has no '{name}'; it has: {known or 'none'}."
        ) from None
    except (Exception, SystemExit) as error:
        raise SpecificationError(
            f"'{reference}': cannot be imported ({type(error).__name__}: {error}). Modules are looked for in "
            f"'{path}' and among those installed."
        ) from error
    finally:
        if path in sys.path:
            sys.path.remove(path)
    if not callable(found):
        raise SpecificationError(f"'{reference}': is a {type(found).__name__}; expected a function or class.")
    return found


def _forget_other(name: str, folder: Path) -> None:
    """Forget an imported module of this name from elsewhere, where the folder has one of its own."""
    own = [folder / f"{name}.py", folder / name / "__init__.py"]
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if any(file.is_file() for file in own) and loaded is not None and Path(loaded).resolve() not in own:
        for other in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[other]


def _make_own(kind: Any, given: Given) -> Any:
    rows = given.rows(labels=False)
    try:
        function = load_code(str(given.arguments["function"]), given.folder)
    except RepairError as error:
        raise given.fail("function", str(error)) from error
    below = bool(given.bounds) and given.bounds[0][0] == ">="
    return kind(function, rows, given.limit(), given.name, -1.0 if below else 1.0)


@dataclass(frozen=True, eq=False)
class OwnMeasure:
    """The user's function of ``predict`` and rows as a property; ``sign`` is -1 where larger is better."""

    function: Callable[..., Any]
    rows: RowSet
    target: float
    name: str
    sign: float

    measures = (
        Measure(
            "custom",
            "Your own: function(predict, data) gives a number; data has inputs, labels and columns.",
            'custom("measures:overconfidence") <= 0.01',
            "your own",
            ("<=", ">="),
            (Argument("function", "python", "the function"), *ROWS),
            _make_own,
            way="- ",
            makes="CallableProperty",
        ),
    )

    def value(self, predict: Any) -> torch.Tensor:
        """What the function returns."""
        found = torch.as_tensor(self.function(predict, self.rows))
        return self.sign * (found if found.is_floating_point() else found.double())
