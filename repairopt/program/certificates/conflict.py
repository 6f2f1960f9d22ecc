"""Explain why a program has no solution: an irreducible set of rows and bounds that contradict each other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from repairopt.errors import ProgramError
from repairopt.program.attempt import run_solver
from repairopt.program.program import Program
from repairopt.program.rows import Source
from repairopt.program.solution import FarkasCertificate, Solver, Status

from .duality import absolute_columns, gamma
from .elastic import PHASE_ONE
from .farkas import check_ray, farkas_certificate

SHOWN = 20  # members that the text lists


@dataclass(frozen=True)
class Member:
    """One side of a row, or one bound of a variable.

    ``source`` is where a row comes from: ``'row 7'`` for a program without sources, None for a bound.
    """

    kind: Literal["row", "bound"]
    index: int
    side: Literal["lower", "upper"]
    limit: float
    source: Source | None = None

    def __str__(self) -> str:
        name = f"variable {self.index}" if self.source is None else str(self.source)
        return f"{name}: {'at most' if self.side == 'upper' else 'at least'} {self.limit:.6g}"


@dataclass(frozen=True, eq=False)
class Conflict:
    """Sides of rows, then bounds, that cannot hold together.

    ``irreducible`` says whether, tested one by one, the rest can hold once any single member is removed; False only
    where a time limit ended the tests. ``certificate`` is the proof over the rows of the whole program; None for
    mixed-integer programs whose relaxation has a solution: there the back end's word was taken.
    """

    members: tuple[Member, ...]
    irreducible: bool
    certificate: FarkasCertificate | None

    @property
    def rows(self) -> tuple[Source, ...]:
        """Where the rows come from, each once."""
        return tuple(dict.fromkeys(member.source for member in self.members if member.source is not None))

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the constraints that the rows come from, each once."""
        return tuple(dict.fromkeys(source.constraint for source in self.rows))

    @property
    def bounds(self) -> tuple[int, ...]:
        """Variables whose bounds take part, each once."""
        return tuple(dict.fromkeys(member.index for member in self.members if member.kind == "bound"))

    def __str__(self) -> str:
        counts = Counter(source.constraint for source in self.rows)
        names = [f"'{name}'" + (f" ({counts[name]} rows)" if counts[name] > 1 else "") for name in self.constraints]
        many = f"{len(self.bounds)} variable{'' if len(self.bounds) == 1 else 's'}"
        within = f"within the bounds of {many}" if self.bounds else ""
        if len(names) == 1:
            text = f"This constraint cannot hold {within}: {names[0]}"
            text = text if within else f"The rows of this constraint cannot hold together: {names[0]}"
        else:
            text = f"These {len(names)} constraints cannot hold together{within and ' ' + within}: {', '.join(names)}"
        lines = [f"  {member}" for member in self.members[:SHOWN]]
        if len(self.members) > SHOWN:
            lines.append(f"  and {len(self.members) - SHOWN} more")
        close = "If any one of them is dropped, the rest can hold." if self.irreducible else "Not all may be needed."
        return "\n".join([text + ".", *lines, close])


Shrink = Callable[[Sequence[Member]], Sequence[Member] | None]


def explain_conflict(
    program: Program, *, solver: str | Solver | None = None, time_limit: float | None = None
) -> Conflict:
    """Find rows and bounds that cannot hold together, none of which could be left out.

    The rows and bounds that carry a Farkas proof are a first such set, and with multipliers from the simplex method
    mostly an irreducible one already (Gleeson and Ryan, Identifying minimally infeasible subsystems of inequalities,
    1990). Then each member is left out in turn: if the rest still has a proof, that becomes the set. Sets are not
    unique; no smallest one is sought.

    For a mixed-integer program whose relaxation has a solution, rows are left out by solving the program each time;
    integrality and bounds stay and are no members. After ``time_limit`` seconds in all, what has been reached is
    returned.

    Raises:
        ProgramError: The program has a solution, or comes within some 1e-10 of having one.
    """
    deadline = None if time_limit is None else time.perf_counter() + time_limit
    bare = replace(program, hessian=None, gradient=np.zeros(program.n))
    whole = farkas_certificate(bare, solver=solver, time_limit=time_limit)
    if whole is None and program.integer is not None:
        return _integer_conflict(bare, PHASE_ONE if solver is None else solver, deadline)
    if whole is None:
        raise ProgramError(
            "explain_conflict: no proof of infeasibility was found; the program has a solution, or is within 1e-10 of "
            "one. Call least_violation(program) to see how far its rows are from holding."
        )
    proof = whole

    def shrink(members: Sequence[Member]) -> Sequence[Member] | None:
        nonlocal proof
        found = _proof_of(bare, members, solver, _left(deadline))
        if found is None:
            return None
        proof = found
        return _support(bare, found)

    return Conflict(*_filter(_support(bare, whole), shrink, deadline, chunk=1), proof)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(1e-3, deadline - time.perf_counter())


def _filter(
    members: Sequence[Member], shrink: Shrink, deadline: float | None, chunk: int
) -> tuple[tuple[Member, ...], bool]:
    """Deletion filter: leave out chunks, then single members; what is left, and whether it came to its end."""
    needed: set[Member] = set()
    while True:
        i = 0
        while i < len(members):
            if deadline is not None and time.perf_counter() >= deadline:
                return _sorted(members), False
            if members[i] in needed:
                i += 1
                continue
            less = shrink([*members[:i], *members[i + chunk :]])
            if less is not None:
                kept = set(less)
                members, i = [member for member in members if member in kept], 0 if chunk == 1 else i
                continue
            if chunk == 1:
                needed.add(members[i])
            i += chunk
        if chunk == 1:
            return _sorted(members), deadline is None or time.perf_counter() < deadline
        chunk //= 2


def _sorted(members: Sequence[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: (member.kind == "bound", member.index, member.side)))


def _support(program: Program, proof: FarkasCertificate) -> list[Member]:
    """Sides and bounds that a proof uses."""
    slope = np.asarray(program.matrix.T @ proof.ray)
    used = np.flatnonzero(proof.ray)
    error = gamma(len(used) + 3) * absolute_columns(program, proof.ray)
    bounds = [_side(program, "bound", int(j), slope[j] < 0) for j in np.flatnonzero(slope)]
    bounds = [bound for bound in bounds if np.isfinite(bound.limit)]
    tiny = np.abs(slope) <= 8.0 * error
    members = [bound for bound in bounds if not tiny[bound.index]]
    rows = [_side(program, "row", int(i), proof.ray[i] > 0) for i in used]
    part, places = restricted(program, [*members, *rows])
    if check_ray(part, proof.ray[places]) is not None:
        return [*members, *rows]
    return [*members, *(bound for bound in bounds if tiny[bound.index]), *rows]


def _side(program: Program, kind: Literal["row", "bound"], i: int, upper: bool) -> Member:
    low, high = (program.lower, program.upper) if kind == "row" else program.bounds()
    source = None if kind == "bound" else program.sources[i] if program.sources else Source(f"row {i}")
    return Member(kind, i, "upper" if upper else "lower", float((high if upper else low)[i]), source)


def restricted(program: Program, members: Sequence[Member]) -> tuple[Program, Any]:
    """The program with the given sides and bounds alone, and the rows of the whole that its rows are."""
    rows = np.array(sorted({member.index for member in members if member.kind == "row"}), dtype=np.int64)
    place = {int(row): k for k, row in enumerate(rows)}
    lower, upper = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
    low, high = np.full(program.n, -np.inf), np.full(program.n, np.inf)
    for member in members:
        ends = (lower, upper) if member.kind == "row" else (low, high)
        at = place[member.index] if member.kind == "row" else member.index
        ends[member.side == "upper"][at] = member.limit
    part = replace(
        program, matrix=program.matrix[rows], lower=lower, upper=upper, delta_lower=low, delta_upper=high, sources=()
    )
    return part, rows


def _proof_of(
    program: Program, members: Sequence[Member], solver: str | Solver | None, time_limit: float | None
) -> FarkasCertificate | None:
    part, rows = restricted(program, members)
    found = farkas_certificate(part, solver=solver, time_limit=time_limit)
    if found is None:
        return None
    ray = np.zeros(program.m)
    ray[rows] = found.ray
    rational = None if found.rational is None else {int(rows[i]): value for i, value in found.rational.items()}
    return replace(found, ray=ray, rational=rational)


def _integer_conflict(program: Program, solver: str | Solver, deadline: float | None) -> Conflict:
    def shrink(members: Sequence[Member]) -> Sequence[Member] | None:
        part, _ = restricted(program, members)
        low, high = program.bounds()
        part = replace(part, delta_lower=low, delta_upper=high)
        status = run_solver(part, solver, time_limit=_left(deadline)).status
        return members if status is Status.INFEASIBLE else None

    sides = [(program.upper, True), (program.lower, False)]
    members = [_side(program, "row", int(i), upper) for side, upper in sides for i in np.flatnonzero(np.isfinite(side))]
    if shrink(members) is None:
        raise ProgramError(
            "explain_conflict: the mixed-integer program was not found to be infeasible. Raise time_limit, or solve it."
        )
    return Conflict(*_filter(members, shrink, deadline, chunk=max(1, len(members) // 2)), None)
