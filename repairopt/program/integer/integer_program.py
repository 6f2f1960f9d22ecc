"""Mixed-integer programs: few weights change, few samples break, most samples are fixed.

Each function turns a continuous program into a mixed-integer one, with what maps its answers back. A binary variable
stands for one *item*: a group of weights that may change, or a sample whose rows may be violated. How far those can go
follows from the bounds of the variables, so every weight concerned needs bounds; no constant is guessed. Weights on a
grid stand in :mod:`repairopt.program.integer.weight_grid`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from repairopt.errors import ProgramError
from repairopt.program.program import Array, Program
from repairopt.program.rows import Source

from .switches import Index, Limits, flat, owned, sources_of, switched

Choice = npt.NDArray[np.bool_]  # for each item whether it is chosen
Groups = Iterable[Sequence[int] | Index]


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """A mixed-integer program and the continuous program that it was made from.

    Attributes:
        program: What a solver gets: the variables of ``original``, then one binary for each item; on a grid, the
            variables of ``original`` in units of ``unit``.
        original: The continuous program.
        frees: What choosing an item frees: ``"weights"``, ``"rows"``, or ``"nothing"`` on a grid, which has no items.
        items: For each item the indices of its weights or rows in ``original``.
        limits: Pairs ``(items, most)``: of these items at most so many may be chosen.
        counts: Whether the objective is the number of chosen items, in place of the objective of ``original``.
        unit: On a grid what one unit of each variable stands for, ``(n,)``; else None.
    """

    program: Program
    original: Program
    frees: str
    items: tuple[Index, ...] = ()
    limits: Limits = ()
    counts: bool = False
    unit: Array | None = None

    def recover(self, point: Array) -> tuple[Array, Choice]:
        """The variables of ``original`` and the choice, at a point of ``program``."""
        if self.unit is not None:
            whole = np.zeros(len(point), dtype=bool) if self.program.integer is None else self.program.integer
            return self.unit * np.where(whole, np.round(point), point), np.zeros(0, dtype=bool)
        return point[: self.original.n], point[self.original.n :] > 0.5

    def lift(self, delta: Array, chosen: Choice) -> Array:
        """The point of ``program`` that variables of ``original`` and a choice make."""
        return delta / self.unit if self.unit is not None else np.concatenate([delta, chosen.astype(np.float64)])

    def objective(self, delta: Array, chosen: Choice) -> float:
        """What ``program`` minimizes, at variables of ``original`` and a choice."""
        return float(chosen.sum()) if self.counts else self.original.objective(delta)

    def allows(self, chosen: Choice) -> bool:
        """Whether a choice is within the limits."""
        low, high = (side[self.original.n :] for side in self.program.bounds())
        within = bool(np.all(low <= chosen) and np.all(chosen <= high))
        return within and all(int(chosen[items].sum()) <= most for items, most in self.limits)

    def restricted(self, chosen: Choice) -> Program:
        """The continuous program that a choice leaves; rows that may be violated keep their place, without sides."""
        picked = chosen if self.frees == "rows" else ~chosen
        index = np.concatenate([np.zeros(0, dtype=np.int64), *(self.items[i] for i in np.flatnonzero(picked))])
        if self.frees == "weights":
            lower, upper = (side.copy() for side in self.original.bounds())
            lower[index] = upper[index] = np.clip(0.0, lower[index], upper[index])
            return replace(self.original, delta_lower=lower, delta_upper=upper)
        lower, upper = self.original.lower.copy(), self.original.upper.copy()
        lower[index], upper[index] = -np.inf, np.inf
        return replace(self.original, lower=lower, upper=upper)

    def cleaned(self, delta: Array, chosen: Choice) -> Array:
        """The same point with exact zeros where nothing may change, and within the bounds."""
        low, high = self.original.bounds()
        clean = np.clip(delta, low, high)
        if self.frees == "weights":
            for i in np.flatnonzero(~chosen):
                clean[self.items[i]] = 0.0
        return clean


def limit_changes(program: Program, count: int, groups: Groups | None = None) -> IntegerProgram:
    """At most ``count`` of the weights, or of the groups of weights, change: one binary for each, 1 where it may.

    The bounds of the weights say how far each may change. ``groups`` has the indices of the weights of each group, such
    as the weights into one neuron; None for a group for each weight. Weights in no group change freely.

    Raises:
        ProgramError: A weight has no bounds, is in two groups or does not exist; or the program is mixed-integer.
    """
    from scipy import sparse

    n = int(program.n_delta or 0)
    items = checked(program, count, "weight", np.arange(n)[:, None] if groups is None else groups, n)
    index, owner = flat(items)
    low, high = (side[index] for side in program.bounds())
    free = np.flatnonzero(~np.isfinite(low) | ~np.isfinite(high))
    if len(free):
        raise ProgramError(
            f"program: weight {index[free[0]]} has no bounds; expected finite ones, since they say how far a chosen "
            f"weight may change. Set a trust radius or a ChangeLimit."
        )
    weights, many = len(index), len(items)
    change = sparse.csr_matrix((np.ones(weights), (np.arange(weights), index)), shape=(weights, program.n))
    none, infinite, zero = sparse.csr_matrix((program.m, many)), np.full(weights, np.inf), np.zeros(weights)
    forced = np.zeros(many)
    forced[owner[(low > 0) | (high < 0)]] = 1.0
    limits: Limits = ((np.arange(many), count),)
    source = Source("few changes", -1, "only chosen weights change")
    extended = switched(
        program,
        sparse.vstack([sparse.csr_matrix(program.matrix), change, change]),
        sparse.vstack([none, owned(-high, owner, many), owned(-low, owner, many)]),
        (np.concatenate([program.lower, -infinite, zero]), np.concatenate([program.upper, zero, infinite])),
        (*sources_of(program), *(source,) * (2 * weights)),
        limits=limits,
        bounds=(forced, np.ones(many)),
    )
    return IntegerProgram(extended, program, "weights", items, limits)


def allow_broken(
    program: Program,
    count: int | Mapping[str, int],
    samples: Groups | None = None,
    *,
    reach: tuple[Array, Array] | None = None,
) -> IntegerProgram:
    """At most ``count`` samples break: their rows may be violated, as far as the bounds of the variables allow.

    ``count`` may be given by names of constraints. ``samples`` has the indices of the rows of each sample; None for
    those of :func:`rows_by_sample`; rows of no sample stay hard. ``reach`` is the least and greatest value of each row,
    ``(m,)`` each, where known better than :func:`row_range` does.

    Raises:
        ProgramError: A row can be violated without limit, is in two samples or does not exist; or the program is
            mixed-integer.
    """
    if isinstance(count, Mapping):
        if samples is not None:
            raise ProgramError("program: count by constraint takes the samples from the rows; pass no samples.")
        parts = [
            checked(program, most, "row", rows_by_sample(program, name), program.m) for name, most in count.items()
        ]
        starts = np.cumsum([0, *map(len, parts)])
        limits: Limits = tuple(
            (np.arange(start, start + len(part)), most)
            for start, part, most in zip(starts[:-1], parts, count.values(), strict=True)
        )
        return _breakable(program, tuple(item for part in parts for item in part), reach, limits=limits)
    items = checked(program, count, "row", rows_by_sample(program) if samples is None else samples, program.m)
    return _breakable(program, items, reach, limits=((np.arange(len(items)), count),))


def maximize_fixed(program: Program, samples: Groups, *, reach: tuple[Array, Array] | None = None) -> IntegerProgram:
    """As few samples as possible stay wrong, while all other rows hold; the program's own objective does not count.

    ``samples`` has the indices of the rows of each wrong sample. Raises what :func:`allow_broken` raises.
    """
    items = checked(program, program.m, "row", samples, program.m)
    return _breakable(program, items, reach, counts=True)


def rows_by_sample(program: Program, constraint: str | None = None) -> list[Index]:
    """Indices of the rows of each sample, by the rows' sources, of one constraint or of all."""
    found: dict[tuple[str, int], list[int]] = {}
    for i, source in enumerate(program.sources):
        if source.sample >= 0 and constraint in (None, source.constraint):
            found.setdefault((source.constraint, source.sample), []).append(i)
    return [np.array(rows, dtype=np.int64) for rows in found.values()]


def row_range(program: Program) -> tuple[Array, Array]:
    """Least and greatest value of each row within the bounds of the variables, ``(m,)`` each; may be infinite."""
    low, high = program.bounds()
    if hasattr(program.matrix, "tocsr"):
        rows = program.matrix.tocsr(copy=True)
        rows.eliminate_zeros()  # a stored zero times an infinite bound is no number
        up, down = rows.maximum(0), rows.minimum(0)
        return up @ low + down @ high, up @ high + down @ low
    rows = program.matrix
    with np.errstate(invalid="ignore"):
        least = np.where(rows > 0, rows * low, np.where(rows < 0, rows * high, 0.0)).sum(axis=1)
        greatest = np.where(rows > 0, rows * high, np.where(rows < 0, rows * low, 0.0)).sum(axis=1)
    return least, greatest


def row_excess(program: Program, reach: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
    """How far each row can be below its lower side and above its upper side, ``(m,)`` each; 0 where it never is."""
    least, greatest = row_range(program) if reach is None else reach
    lower, upper = np.isfinite(program.lower), np.isfinite(program.upper)
    lack = np.where(lower, np.where(lower, program.lower, 0.0) - least, 0.0)
    excess = np.where(upper, greatest - np.where(upper, program.upper, 0.0), 0.0)
    return np.maximum(0.0, lack), np.maximum(0.0, excess)


def _breakable(
    program: Program,
    items: tuple[Index, ...],
    reach: tuple[Array, Array] | None,
    limits: Limits = (),
    counts: bool = False,
) -> IntegerProgram:
    """Each sample's binary adds to each side of its rows what the row can lack at most."""
    from scipy import sparse

    lack, excess = row_excess(program, reach)
    many, (index, owner) = len(items), flat(items)
    endless = index[~np.isfinite(lack[index]) | ~np.isfinite(excess[index])]
    if len(endless):
        name = f" ({program.sources[endless[0]]})" if program.sources else ""
        raise ProgramError(
            f"program: row {endless[0]}{name} can be violated without limit; expected finite bounds of its weights. "
            f"Set a trust radius or a ChangeLimit."
        )
    plain = np.setdiff1d(np.arange(program.m), index)
    below, above = np.isfinite(program.lower[index]), np.isfinite(program.upper[index])
    under, over = index[below], index[above]
    order = np.concatenate([plain, under, over])
    none, sources = sparse.csr_matrix((len(plain), many)), sources_of(program)
    breaks = np.zeros(many)
    np.maximum.at(breaks, owner, np.maximum(lack, excess)[index])
    extended = switched(
        program,
        sparse.csr_matrix(program.matrix)[order],
        sparse.vstack([none, owned(lack[under], owner[below], many), owned(-excess[over], owner[above], many)]),
        (
            np.concatenate([program.lower[plain], program.lower[under], np.full(len(over), -np.inf)]),
            np.concatenate([program.upper[plain], np.full(len(under), np.inf), program.upper[over]]),
        ),
        tuple(sources[i] for i in order),
        limits=limits,
        bounds=(np.zeros(many), (breaks > 0).astype(np.float64)),
        counts=counts,
    )
    return IntegerProgram(extended, program, "rows", items, limits, counts)


def checked(program: Program, count: float, what: str, groups: Groups, size: int) -> tuple[Index, ...]:
    """The groups as index arrays; a ProgramError says what is wrong with what the user passed."""
    if program.integer is not None:
        raise ProgramError("program: is mixed-integer already; expected a continuous one. Choose one kind of choice.")
    if count < 0 or count != int(count):
        raise ProgramError(f"program: count is {count}; expected a whole number, 0 or more.")
    items = tuple(np.atleast_1d(np.asarray(group)).astype(np.int64) for group in groups)
    index, _ = flat(items)
    if len(index) and (index.min() < 0 or index.max() >= size):
        bad = index[(index < 0) | (index >= size)][0]
        raise ProgramError(f"program: {what} {bad} does not exist; expected 0 to {size - 1}.")
    values, times = np.unique(index, return_counts=True)
    if np.any(times > 1):
        raise ProgramError(f"program: {what} {values[times > 1][0]} is in two groups; expected one. Merge the groups.")
    return items
