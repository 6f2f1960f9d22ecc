"""Refuse a solve that does not fit into memory before anything is allocated."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from repairopt.errors import ProgramError

from .program import Program

NEGLIGIBLE = 2**26  # bytes that are there without asking
SHARE = 0.9  # of the memory that is free, up to which a solve may go


def check_memory(backend: Any, program: Program, memory_limit: float | None = None) -> None:
    """Refuse what would not fit.

    Args:
        backend: Its ``memory(program)`` gives the bytes that it will take; one without is not checked.
        program: What it is to solve.
        memory_limit: Bytes; None for nine tenths of what the machine has free.

    Raises:
        ProgramError: It needs more; the message has the number of bytes and what to do.
    """
    need = memory_needed(backend, program)
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


def memory_needed(backend: Any, program: Program) -> float:
    """Bytes that a back end says it will take beyond the program; 0 where it does not say."""
    rule = getattr(backend, "memory", None)
    return float(rule(program)) if callable(rule) else 0.0


def available_memory() -> float:
    """Bytes that can still be taken, by the operating system and the limits of a container; infinite if unknown."""
    found = [_linux_available(), _container_left()]
    if all(one is None for one in found) and hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            found = [float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")]
    known = [one for one in found if one is not None]
    return min(known) if known else float("inf")


def readable(size: float) -> str:
    """Bytes in words: exact below a kibibyte, else in binary units, with the number in full."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit} ({size:,.0f} bytes)"
    return f"{size:,.0f} bytes"


def _linux_available() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * float(line.split()[1])
    return None


def _container_left() -> float | None:
    """What a control group (version 2) leaves."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = float((folder / "memory.current").read_text(encoding="ascii"))
        cache = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        reclaimable = sum(float(line.split()[1]) for line in cache if line.startswith("inactive_file "))
        return None if limit == "max" else max(0.0, float(limit) - used + reclaimable)
    except (OSError, ValueError, IndexError):
        return None
