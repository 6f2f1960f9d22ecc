"""Ctrl-C in a run of many repairs."""

from __future__ import annotations

from repairopt.report import Repair

INTERRUPTED = "interrupted"


def unless_interrupted(repair: Repair) -> Repair:
    """A repair that ran to its end.

    A single repair answers Ctrl-C with its best point so far. A caller that runs many would take that point for one
    that ended, and go on; here the signal goes on to whoever waits for all of them.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the repair.
    """
    if repair.report.stopped == INTERRUPTED:
        raise KeyboardInterrupt
    return repair
