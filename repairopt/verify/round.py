"""One step of a repair and what the true network said of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Round:
    """One solve and what became of it.

    Attributes:
        step: What was done, in words.
        status: Of the solve.
        rows: Rows in the program.
        variables: Variables in the program, slacks included.
        solver: The back end.
        seconds: Wall time of the solve.
        message: What the back end said, in its own words, and what the recheck found.
        log: What the native library printed, where the back end is verbose.
        goal: The goal on the true network afterwards, or NaN.
        broken: Failing samples beyond what is allowed, on the true network, or -1.
        accepted: Whether the point was kept.
        note: Anything worth knowing.
        violation: Largest violation of a row or bound, recomputed; NaN without a solution.
    """

    step: str
    status: str
    rows: int = 0
    variables: int = 0
    solver: str = ""
    seconds: float = 0.0
    message: str = ""
    log: str = ""
    goal: float = float("nan")
    broken: int = -1
    accepted: bool = True
    note: str = ""
    violation: float = float("nan")
