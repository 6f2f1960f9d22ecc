"""HiGHS prints a banner when the first of its objects in a process is made, before any option can silence it."""

from __future__ import annotations

from typing import Any

from repairopt.program import native_output

_made = False


def quiet_highs() -> Any:
    """The library ``highspy``, its banner printed to nowhere."""
    global _made
    import highspy

    if not _made:
        with native_output(wanted=True, echo=False):
            highspy.Highs()
        _made = True
    return highspy
