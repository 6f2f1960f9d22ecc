"""The deadline of a repair: one moment for all that runs in its context, looked at in every loop over the network."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

_DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)


class Stop(Exception):
    """Ends a repair early, for example at its time limit; the best point so far is kept."""


@contextlib.contextmanager
def limited(deadline: float | None) -> Iterator[None]:
    """Within the block, :func:`check_time` raises after a moment of ``time.perf_counter()``; never, where it is None.

    It holds for this thread, and within a block of another deadline for that one no more.
    """
    token = _DEADLINE.set(deadline)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def check_time() -> None:
    """Raise :class:`Stop` once the deadline has passed."""
    if is_late():
        raise Stop("time limit")


def is_late() -> bool:
    """Whether the deadline has passed."""
    return time_left() < 0


def time_left() -> float:
    """Seconds until the deadline; infinite without one."""
    deadline = _DEADLINE.get()
    return math.inf if deadline is None else deadline - time.perf_counter()
