"""Refuse a solve that does not fit into memory before anything is allocated."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from repairopt.errors import ProgramError

from .program import Program

NEGLIGIBLE = 2**26  # bytes that are there without asking
SHARE = 0.9  # of the memory that is free, up to which a solve may go


def check_memory(backend: Any, program: Program, memory_limit: float | None = None) -> None:
    """Refuse by a ProgramError what would not fit, with the number of bytes and what to do.

    ``backend.memory(program)`` gives the bytes that it takes beyond the program; a back end without it is not checked.
    The limit is in bytes; None for nine tenths of what the machine has free.
    """
    rule = getattr(backend, "memory", None)
    need = float(rule(program)) if callable(rule) else 0.0
    if memory_limit is None and need < NEGLIGIBLE:
        return
    limit = SHARE * available_memory() if memory_limit is None else memory_limit
    if need > limit:
        size = f"{program.n:,} variables and {program.m:,} rows"
        raise ProgramError(
            f"'{backend.name}' needs about {readable(need)} for {size}, and {readable(limit)} may be used. Choose "
            f"fewer weights (localize(..., count=...)), keep fewer rows (solve_working_set), give the "
            f"Hessian as LowRankHessian to solver='woodbury', or raise memory_limit."
        )


def available_memory() -> float:
    """Bytes that the operating system and a container's limit (control groups, version 2) leave."""
    import psutil

    left = float(psutil.virtual_memory().available)
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, StopIteration):  # no container, or "max": no limit
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        cache = next(float(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        limit, used = (float((folder / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        left = min(left, max(0.0, limit - used + cache))
    return left


def readable(size: float) -> str:
    """Bytes in words: exact below a kibibyte, else in binary units, with the number in full."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit} ({size:,.0f} bytes)"
    return f"{size:,.0f} bytes"
