"""Claims: every goal and bound with its value on the true network, its interval, and whether it is met."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from repairopt.patches import number

from .models import Strict


class ClaimRow(Strict):
    """One goal, bound or watched measure on one set of rows."""

    text: str = Field(description="as written in the spec")
    name: str = Field(description="the measure")
    role: Literal["goal", "bound", "wish", "watch"]
    data: str = Field(description="set of rows; empty for bounds on the change itself")
    bound: str | None = Field(default=None, description="what it is compared with, such as '<= 0.05'")
    unit: str
    before: float | None = Field(default=None, description="of the original network")
    value: float | None = Field(default=None, description="of this network; null where it was not measured")
    met: bool | None = Field(default=None, description="null where nothing is promised or nothing was measured")
    low: float | None = Field(default=None, description="of the interval for new data")
    high: float | None = None
    confidence: float | None = Field(
        default=None, description="that new data lie on the good side of the interval's far end"
    )
    shown: bool | None = Field(default=None, description="whether the bound is met on new data with that confidence")
    rows: int | None = Field(default=None, description="rows it was counted on")
    left_out: int = Field(default=0, description="rows of the set that are in no group compared")
    basis: str = Field(description="how it was found")


def decided_by(claims: Sequence[ClaimRow], strict: bool = False) -> list[ClaimRow]:
    """The claims that decide whether all is met: goal and bounds, on held-out rows too where ``strict``."""
    return [c for c in claims if c.role in ("goal", "bound") and (strict or c.data != "held_out")]


def all_met(claims: Sequence[ClaimRow], strict: bool = False) -> bool:
    """Whether goal and bounds are met; one that could not be measured is not."""
    return all(claim.met is True for claim in decided_by(claims, strict))


def claim_table(claims: Sequence[ClaimRow]) -> str:
    """The claims as a table for a terminal."""
    width = min(56, max([24, *(len(_label(claim)) for claim in claims)]))
    lines = [f"{'':8}  {'':{width}}  {'before':>9} {'now':>9}  {'bound':>9}  interval"]
    for claim in claims:
        mark = claim.role if claim.met is None else "met" if claim.met else "NOT MET"
        first, *rest = textwrap.wrap(_label(claim), width) or [""]
        ends = "" if claim.low is None or claim.high is None else f"{number(claim.low)} to {number(claim.high)}"
        ends += "  not shown for new data" if claim.shown is False else ""
        figures = f"{number(claim.before):>9} {number(claim.value):>9}  {claim.bound or '':>9}"
        lines.append(f"{mark:8}  {first:{width}}  {figures}  {ends}")
        rest += [f"({claim.left_out} rows are in no group compared)"] if claim.left_out else []
        lines += [f"{'':8}  {part}" for part in rest]
    return "\n".join(line.rstrip() for line in lines)


def _label(claim: ClaimRow) -> str:
    return claim.name + (f" on {claim.data}" if claim.data else "")


def plain(claims: Sequence[ClaimRow]) -> list[dict[str, Any]]:
    """The claims as JSON for the header of a patch."""
    return [claim.model_dump(mode="json") for claim in claims]
