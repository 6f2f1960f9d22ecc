"""Optional libraries: found, or an error that names the extra that brings them."""

from __future__ import annotations

from importlib.util import find_spec

from repairopt.errors import MissingExtraError


def require_extra(extra: str, task: str, *modules: str) -> None:
    """Check that the libraries of an extra are installed, without importing them.

    Args:
        extra: Name of the extra of repairopt.
        task: What needs it, for the message.
        *modules: Names of the libraries.

    Raises:
        MissingExtraError: One is not installed.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{task} needs {', '.join(missing)}, not installed here. Install with: pip install repairopt[{extra}]"
        )
