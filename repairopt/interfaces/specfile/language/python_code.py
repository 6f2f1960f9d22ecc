"""Python code that a spec file names: ``package.module:function``. It runs with all rights of the user."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repairopt.errors import SpecificationError


def load_code(reference: str, folder: Path) -> Callable[..., Any]:
    """Import ``package.module:function``; ``folder`` is searched for the module before the installed ones."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise SpecificationError(f"'{reference}': expected Python code as package.module:function.")
    path = str(folder.resolve())
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
    except Exception as error:
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
