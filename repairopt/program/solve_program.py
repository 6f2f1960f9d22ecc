"""Solve a program: find a back end, check that it can, run it, recheck the answer, prove what has no solution.

The core believes no back end. Residuals are recomputed from the program's data alone: an answer that claims to be
optimal but violates a row is FAILED, one whose multipliers do not prove it is FEASIBLE, and INFEASIBLE comes with a
checked Farkas certificate. Numerical trouble is answered by scaling the program, then by the next back end that suits
it; every try is kept in :attr:`Solution.attempts`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from repairopt.errors import ProgramError, SolverError, shown
from repairopt.program.certificates.elastic import least_violation
from repairopt.program.certificates.farkas import farkas_certificate
from repairopt.program.working_sets.row_oracles import DenseRows
from repairopt.program.working_sets.working_set import FEW, solve_working_set

from .attempt import FEASIBILITY_TOL, check_convex, run_solver
from .backends import available_solvers, find_solver, preferred_solvers
from .memory import check_memory
from .program import Program
from .rechecking import violations
from .solution import Attempt, Solution, Solver, Status

AGREEING = 3  # back ends that say infeasible without a proof; those that follow are slower and know no more
INFINITE = 1e20  # for HiGHS, and next to it for others
FEW_AT_ALL = 100_000  # entries up to which a working set never pays, however many rows there are


def solve(
    program: Program,
    solver: str | Solver | None = None,
    *,
    feasibility_tol: float = FEASIBILITY_TOL,
    optimality_tol: float | None = None,
    time_limit: float | None = None,
    memory_limit: float | None = None,
    fallback: bool | None = None,
    isolate: bool = False,
    prove: bool = True,
) -> Solution:
    """Solve a program and recheck the answer.

    Args:
        program: What to solve; not modified.
        solver: Name, instance, or None for the first installed open-source back end that suits kind, size and density;
            then programs with far more rows than variables are solved with a working set of their rows.
        feasibility_tol: Largest violation that counts as feasible, relative to ``max(1, |side|, |a_i| max(1, |d|))``.
        optimality_tol: Largest duality gap and stationarity that count as optimal, relative to the size of their terms;
            None for 1e-6, or 1e-3 where the point comes in single precision. Only checked where duals came.
        time_limit: Seconds for all tries; overrides a back end's own ``time_limit`` where that is larger or not set.
        memory_limit: Bytes that a back end may take; None for nine tenths of what is free.
        fallback: Whether to go on to other back ends in trouble; None does so where the choice was left to the core.
        isolate: Run the back end in a process of its own, which a crash or a hang (with ``time_limit``) cannot outlive.
        prove: Look for a Farkas certificate where a continuous program is said to be infeasible.

    Returns:
        The answer; of several tries the best.

    Raises:
        SolverNotFoundError: No back end of that name, or its library is not installed.
        UnsupportedError: The back end cannot take this kind of program.
        ProgramError: The Hessian is not positive semidefinite, and the back end needs that; or memory would not do.
        SolverError: The back end raised, and no other one was to be tried.
    """
    if not isinstance(program, Program):
        raise ProgramError(f"solve: got a {type(program).__name__}; expected a Program.")
    first: Any = find_solver(program, solver)
    convex = check_convex(program, first)
    check_size(program)
    check_number("time_limit", time_limit)
    check_number("memory_limit", memory_limit)
    check_number("feasibility_tol", feasibility_tol, none=False)
    check_number("optimality_tol", optimality_tol)
    for name, flag in (("fallback", fallback), ("isolate", isolate), ("prove", prove)):
        if not isinstance(flag, bool | np.bool_) and (flag is not None or name == "isolate"):
            raise ProgramError(f"solve: {name}={shown(flag)}; expected True or False.")
    time_limit = None if time_limit == np.inf else time_limit
    others = solver is None if fallback is None else fallback
    options = {"feasibility_tol": feasibility_tol, "optimality_tol": optimality_tol, "isolate": isolate}
    tries = _Tries(program, time_limit, memory_limit, prove, options, convex)
    if solver is None and not isolate and _pays_by_rows(program):
        tries.by_rows()
    for backend, scaled in _plan(program, first, others):
        if not tries.needed(others):
            break
        tries.run(backend, scaled=scaled, forgiving=others)
    return tries.best()


def check_number(name: str, value: Any, none: bool = True) -> None:
    """A ProgramError where an option is no number above 0, nor None where that is an answer."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (number and value > 0) and (value is not None or not none):
        way = ", or None" if none else ""
        raise ProgramError(f"solve: {name}={shown(value)}; expected a number above 0{way}.")


def check_size(program: Program) -> None:
    """A SolverError where a coefficient is so large that back ends take it for infinite, and some run without end."""
    matrix = program.matrix.data if hasattr(program.matrix, "tocsr") else program.matrix
    hessian: Any = program.hessian if isinstance(program.hessian, np.ndarray) else np.zeros(0)
    for what, numbers in (("gradient", program.gradient), ("rows", matrix), ("Hessian", hessian)):
        largest = max(float(np.max(numbers, initial=0.0)), -float(np.min(numbers, initial=0.0)))
        largest = largest if what != "rows" else max(largest, _hardest(program))
        if largest >= INFINITE:
            raise SolverError(
                f"program: its {what} hold numbers up to {largest:.1e}, and solvers read numbers from "
                f"{INFINITE:.0e} on as infinite. Divide inputs, outputs, goal or limits by their size."
            )


def _hardest(program: Program) -> float:
    """The largest number that a side asks a row to reach; a finite one may stand for none in the other direction."""
    low, high = program.lower, program.upper
    return max(float(np.max(low, initial=0.0)), -float(np.min(high, initial=0.0)))


def _plan(program: Program, first: Any, others: bool) -> Iterator[tuple[Any, bool]]:
    """The first back end, the same on the scaled program, then those that come after it."""
    yield first, False
    yield first, True
    if others:
        for name in preferred_solvers(program):
            if name != first.name:
                yield name, False


def _pays_by_rows(program: Program) -> bool:
    """Whether a working set of rows beats all rows at once; measured by ``benchmarks/solvers.py``."""
    size, many = program.m * program.n, program.m / max(1, program.n)
    dense = not hasattr(program.matrix, "tocsr")
    return dense and program.integer is None and (many > 5 and size > FEW or many > 100 and size > FEW_AT_ALL)


@dataclass
class _Tries:
    """All tries at one program, and the best answer so far."""

    program: Program
    time_limit: float | None
    memory_limit: float | None
    prove: bool
    options: dict[str, Any]
    convex: bool
    started: float = field(default_factory=time.perf_counter)
    attempts: tuple[Attempt, ...] = ()
    answer: Solution | None = None
    error: Exception | None = None
    called_infeasible: set[str] = field(default_factory=set)

    def time_left(self) -> float | None:
        """Seconds left, or the whole limit while next to nothing of it is used."""
        if self.time_limit is None:
            return None
        used = time.perf_counter() - self.started
        return self.time_limit if used < 0.01 else max(1e-3, self.time_limit - used)

    def needed(self, others: bool) -> bool:
        """Whether another try may help: trouble so far, or iterations that ended where others follow; and time left."""
        answer = self.answer
        if answer is None:
            return True
        unproven = answer.status is Status.INFEASIBLE and answer.proof is None
        open_ = unproven and self.prove and self.program.integer is None
        trouble = answer.status is Status.FAILED or answer.claimed is not None or open_
        trouble = trouble and len(self.called_infeasible) < AGREEING
        late = self.time_limit is not None and time.perf_counter() - self.started >= self.time_limit
        stuck = others and answer.status is Status.NO_POINT
        return (trouble or stuck) and answer.retry and not answer.interrupted and not late

    def run(self, backend: Any, *, scaled: bool, forgiving: bool) -> None:
        """One try. What it raises is kept where other back ends may follow."""
        try:
            found: Any = find_solver(self.program, backend)
            check_memory(found, self.program, self.memory_limit)
            limit = self.time_left()
            answer = run_solver(
                self.program, found, scaled=scaled, time_limit=limit, checked=self.convex, **self.options
            )
        except (SolverError, ProgramError) as error:
            if not forgiving:
                if self.answer is not None:  # the scaled program crashed, the first try did not
                    return
                raise
            name = backend if isinstance(backend, str) else backend.name
            self.error = self.error or error
            self.attempts += (Attempt(name, Status.FAILED, scaled, str(error)),)
            return
        self.take(answer)

    def by_rows(self) -> None:
        """A working set of the rows; all rows at once follow where that ends in trouble."""
        program = self.program
        head = replace(program, matrix=None, lower=np.zeros(0), upper=np.zeros(0), sources=())
        rows = DenseRows(program.matrix, program.lower, program.upper)
        structured = program.hessian is not None and not isinstance(program.hessian, np.ndarray)
        way = "daqp" if structured and "daqp" in available_solvers() else None  # measured: few rows, no dense factor
        try:
            answer = solve_working_set(head, rows, solver=way, time_limit=self.time_left())
        except SolverError as error:
            self.error = error
            return
        self.take(Solution(**{name: getattr(answer, name) for name in Solution.__dataclass_fields__}))

    def take(self, answer: Solution) -> None:
        """Keep an answer where it is better than the one before."""
        provable = self.prove and answer.retry and self.program.integer is None
        if answer.status is Status.INFEASIBLE and provable:
            self.called_infeasible.add(answer.solver)
            answer = self._proven(answer)
        attempts = tuple(replace(one, message=answer.message) for one in answer.attempts)
        self.attempts += attempts or (Attempt(answer.solver, answer.status, False, answer.message, answer.seconds),)
        if self.answer is None or _rank(answer) < _rank(self.answer):
            self.answer = answer

    def _proven(self, answer: Solution) -> Solution:
        """The answer with a proof of infeasibility; taken back where a point that holds all rows turns up instead."""
        limit = self.time_left()
        proof = farkas_certificate(self.program, ray=answer.ray, time_limit=limit)
        if proof is not None:
            return replace(answer, proof=proof)
        with contextlib.suppress(SolverError):
            nearest = least_violation(self.program, measure="max", time_limit=limit)
            values = np.asarray(self.program.matrix @ nearest.delta)
            if violations(self.program, nearest.delta, values)[1] <= 1e-9:
                text = f"claimed infeasible, but a point that holds all rows was found; {answer.message}"
                return replace(answer, status=Status.FAILED, claimed=Status.INFEASIBLE, message=text)
        return replace(answer, message=f"{answer.message}; no multipliers that prove it were found")

    def best(self) -> Solution:
        """The best answer with all attempts; the first error where there was no answer at all."""
        if self.answer is None:
            assert self.error is not None
            raise self.error
        return replace(self.answer, attempts=self.attempts)


def _rank(answer: Solution) -> tuple[int, float]:
    """Smaller is better: proven answers, then points, then claims."""
    order = [Status.OPTIMAL, Status.UNBOUNDED, Status.FEASIBLE, Status.INFEASIBLE, Status.NO_POINT, Status.FAILED]
    proven = answer.status is Status.INFEASIBLE and answer.proof is not None
    gap = answer.gap if answer.status is Status.FEASIBLE and np.isfinite(answer.gap) else 0.0
    return (0 if proven else order.index(answer.status)), gap
