"""What a patch says about itself: who made it of what, and what is claimed of the repaired model.

Claims are any JSON. Those of a report have the same keys throughout: ``name``, ``value``, ``before``, ``bound`` (None
where nothing is promised), ``met``, ``data`` (``"repair"`` or ``"held-out"``), ``basis``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from repairopt.errors import PatchError

Claim = dict[str, Any]


@dataclass(frozen=True, eq=False)
class PatchInfo:
    """The origin of a patch and what is claimed of it.

    Attributes:
        solver: The back ends that found the change, or however else it came to be.
        seed: Random seed, or None.
        spec_hash: SHA-256 of the specification, or empty; see :func:`hash_spec`.
        claims: What is claimed of the repaired model; dicts of anything that JSON knows.
        notes: Free text.
        versions: Versions of Python, repairopt and the libraries.
        created: When, UTC, ISO 8601.
    """

    solver: str = ""
    seed: int | None = None
    spec_hash: str = ""
    claims: Sequence[Mapping[str, Any]] = ()
    notes: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.spec_hash and not re.fullmatch(r"[0-9a-f]{64}", str(self.spec_hash)):
            raise PatchError(
                f"spec_hash={self.spec_hash!r}: expected 64 hexadecimal digits. hash_spec(...) makes them of a text, "
                f"a file or anything that JSON knows."
            )
        object.__setattr__(self, "claims", tuple(_checked_claim(i, claim) for i, claim in enumerate(self.claims)))
        object.__setattr__(self, "versions", {str(key): str(value) for key, value in self.versions.items()})

    def to_dict(self) -> dict[str, Any]:
        """As JSON for the header of a file."""
        return {**vars(self), "claims": list(self.claims), "versions": dict(self.versions)}

    def claim_lines(self) -> list[str]:
        """One line for each claim, with a mark where it is not met."""
        lines = []
        for claim in self.claims:
            mark = {True: "met", False: "NOT MET"}.get(claim.get("met"), "")  # type: ignore[arg-type]
            figures = {k: v for k, v in claim.items() if k not in ("name", "met") and v is not None}
            rest = [f"{key} {number(v) if isinstance(v, float) else v}" for key, v in figures.items()]
            lines.append("; ".join(filter(None, [str(claim.get("name", "")), mark, *rest])))
        return lines


def number(value: Any) -> str:
    """A figure for people: four decimals, or four digits where it is small; a dash where there is none.

    Example:
        >>> number(0.123456), number(0.00012346), number(1.0), number(None)
        ('0.1235', '0.0001235', '1', '-')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if value == round(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 100:
        return f"{value:.4f}"
    return f"{value:,.1f}" if 100 <= abs(value) < 1e6 else f"{value:.4g}"


def _checked_claim(number: int, claim: Any) -> Claim:
    if not isinstance(claim, Mapping):
        raise PatchError(f"claims[{number}]: expected a dict, got {type(claim).__name__}. Put it as {{'name': ...}}.")
    try:
        plain: Claim = json.loads(json.dumps(dict(claim), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise PatchError(
            f"claims[{number}], {dict(claim).get('name', 'without a name')!r}: is not JSON ({error}). Use numbers that "
            f"are finite, strings, lists, dicts, True, False, None."
        ) from error
    return plain


def hash_spec(spec: Any) -> str:
    """SHA-256 of a specification: a text, bytes, a file (``pathlib.Path``), or JSON, whose keys are sorted.

    Example:
        >>> hash_spec("gap <= 0.05") == hash_spec(b"gap <= 0.05")
        True
        >>> hash_spec({"a": 1, "b": 2}) == hash_spec({"b": 2, "a": 1})
        True
    """
    if isinstance(spec, os.PathLike):
        try:
            with open(spec, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise PatchError(f"spec '{os.fspath(spec)}': cannot be read ({error}).") from error
    if isinstance(spec, str):
        spec = spec.encode()
    if not isinstance(spec, bytes):
        try:
            spec = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise PatchError(
                f"spec of type {type(spec).__name__}: is not JSON ({error}). Pass a text, bytes, a pathlib.Path, or "
                f"plain dicts and lists."
            ) from error
    return hashlib.sha256(spec).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    return dict(_read())


@functools.cache  # each name costs milliseconds, and what is imported does not change
def _read() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("repairopt", "torch", "numpy", "scipy", "daqp", "piqp", "highspy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
