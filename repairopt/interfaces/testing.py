"""Checks for the tests of others: of a network against a spec, of one's own solver, property or method.

Example:
    >>> from repairopt.solvers import HiGHS
    >>> checks = check_solver(HiGHS())
    >>> "knapsack: answer" in checks
    True
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from repairopt.errors import RepairError
from repairopt.program import Array, Kind, KnownProgram, Program, Solution, Solver, Status, known_programs, run_solver

from .check_methods import check_method
from .property_checks import Expect, check_property, expectation

__all__ = ["assert_bounds", "check_method", "check_property", "check_solver"]

VALUE_TOL = 1e-6  # of the objective, over 1 + its size
POINT_TOL = 1e-4  # of a unique optimum; interior points end this far from a degenerate one
KKT_TOL = 1e-5  # of stationarity and complementarity, over 1 + the size of gradient and objective
REPEAT_TOL = 1e-9  # between two runs


def assert_bounds(model: nn.Module | None, spec: Any, *, strict: bool = False) -> list[Any]:
    """Check that a network meets goal and bounds of a spec, for a test that gates a change.

    Measures that compare with the original network (``accuracy_drop``, ``flips``) compare with the spec's own. The
    plug-in does the same for every goal and bound: ``pytest --repairopt-spec spec.yaml``.

    Args:
        model: The network, in any mode, not modified; None for the spec's own.
        spec: Path of a spec file, or its content as a dict.
        strict: Whether held-out rows decide too.

    Returns:
        The claims, with their values and intervals.

    Raises:
        AssertionError: One is not met; the message shows the table of claims.
        SpecFileError: The spec, its model or data cannot be used.
    """
    from repairopt.interfaces.specfile.claim_rows import all_met, claim_table, decided_by
    from repairopt.interfaces.specfile.measure import measure_claims
    from repairopt.interfaces.specfile.opened import open_spec

    source = dict(spec) if isinstance(spec, Mapping) else spec
    claims = measure_claims(open_spec(source), model)
    if not all_met(claims, strict):
        missed = [claim.text for claim in decided_by(claims, strict) if claim.met is not True]
        raise AssertionError(f"not met: {'; '.join(missed)}\n\n{claim_table(claims)}")
    return claims


def check_solver(solver: Solver) -> list[str]:
    """Run a back end on every known program of its kinds, through the core, and check all that it returns.

    Checked: status, value and unique optimum; that a bound is not above it; optimality conditions and signs of duals,
    where it returns duals; that a ray proves infeasibility, where it returns one; that inputs stay unchanged and a
    second run agrees; that a tiny time limit is obeyed, where it has a ``time_limit``. A back end with
    ``nonconvex = True`` gets indefinite Hessians too and has to find the global optimum. Not checked: speed, and
    programs of more than 100 variables.

    A failed check raises AssertionError; its message names solver, problem, what was expected and what came.

    Args:
        solver: An instance; need not be registered.

    Returns:
        Names of the checks that ran, each as ``"problem: check"``.
    """
    _check_declaration(solver)
    ran = ["declaration"]
    for kind in sorted(solver.kinds):
        for problem in known_programs(kind, nonconvex=getattr(solver, "nonconvex", False)):
            ran += [f"{problem.name}: {check}" for check in _check_problem(solver, problem)]
        if hasattr(solver, "time_limit"):
            _check_time_limit(solver, kind)
            ran.append(f"{kind} of 100 variables: time limit")
    return ran


def _check_declaration(solver: Any) -> None:
    expect = expectation("check_solver", str(getattr(solver, "name", type(solver).__name__)))
    instance = isinstance(solver, Solver) and not isinstance(solver, type)
    expect(instance, "an instance with name, kinds, requires and solve(program)", repr(solver))
    expect(isinstance(solver.name, str) and solver.name != "", "a name that is a non-empty text", repr(solver.name))
    kinds = isinstance(solver.kinds, frozenset) and all(isinstance(kind, Kind) for kind in solver.kinds)
    expect(kinds and len(solver.kinds) > 0, "kinds that are a non-empty frozenset of Kind", repr(solver.kinds))
    requires = isinstance(solver.requires, tuple) and all(isinstance(name, str) for name in solver.requires)
    expect(requires, "requires to be a tuple of import names", repr(solver.requires))


def _check_problem(solver: Solver, problem: KnownProgram) -> list[str]:
    expect = expectation("check_solver", solver.name, problem.name)
    program, ran = problem.program, ["answer", "input unchanged", "two runs equal"]
    before = [array.copy() for array in _arrays(program)]
    first = _run(expect, program, solver)
    for old, new in zip(before, _arrays(program), strict=True):
        expect(np.array_equal(old, new), "the program's arrays unchanged", f"{new} where {old} was passed")
    _check_answer(expect, problem, first)
    if first.status is Status.OPTIMAL and first.row_duals is not None and program.integer is None:
        _check_duals(expect, program, first)
        ran.append("optimality conditions")
    if first.ray is not None:
        _check_ray(expect, program, first)
        ran.append("ray")
    second = _run(expect, program, solver)
    expect(second.status is first.status, f"a second run to end as the first, {first.status}", second.status)
    if first.delta is not None and second.delta is not None:
        apart = float(np.abs(first.delta - second.delta).max())
        expect(apart <= REPEAT_TOL * (1 + np.abs(first.delta).max()), "two runs to agree", f"points {apart:.3g} apart")
    return ran


def _run(expect: Expect, program: Program, solver: Solver, **options: Any) -> Solution:
    try:
        return run_solver(program, solver, **options)
    except RepairError as error:
        expect(False, "an answer", f"{type(error).__name__}: {error}")
        raise


def _check_answer(expect: Expect, problem: KnownProgram, solution: Solution) -> None:
    got = f"{solution.status} (native text: {solution.message!r})"
    doubted = solution.status is Status.FEASIBLE and solution.claimed is problem.status  # what is wrong follows
    expect(doubted or solution.status is problem.status, f"status {problem.status}", got)
    if problem.status is not Status.OPTIMAL:
        return
    close = abs(solution.objective - problem.objective) <= VALUE_TOL * (1 + abs(problem.objective))
    expect(close, f"objective {problem.objective:.9g}", f"{solution.objective:.9g}")
    if problem.delta is not None and solution.delta is not None:
        near = np.abs(solution.delta - problem.delta).max() <= POINT_TOL * (1 + np.abs(problem.delta).max())
        expect(bool(near), f"delta {problem.delta}", solution.delta)
    if doubted and solution.row_duals is not None and problem.program.integer is None:
        _check_duals(expect, problem.program, solution)
        expect(False, f"status {problem.status}", got)
    if not np.isnan(solution.bound):
        below = solution.bound <= problem.objective + VALUE_TOL * (1 + abs(problem.objective))
        expect(below, f"a lower bound of at most {problem.objective:.9g}", solution.bound)


def _check_duals(expect: Expect, program: Program, solution: Solution) -> None:
    assert solution.delta is not None
    low, high = program.bounds()
    size = 1 + float(np.abs(program.gradient).max(initial=0.0))
    text = "H d + g + A' row_duals + bound_duals = 0"
    expect(solution.stationarity <= KKT_TOL * size, text, f"a residual of {solution.stationarity:.3g}")
    groups: list[Any] = [("row", solution.row_duals, program.matrix @ solution.delta, program.lower, program.upper)]
    if solution.bound_duals is not None:
        groups.append(("bound", solution.bound_duals, solution.delta, low, high))
    for what, duals, values, lower, upper in groups:
        expect(np.shape(duals) == values.shape, f"{what}_duals of shape {values.shape}", np.shape(duals))
        for side, part, slack in (("upper", duals, upper - values), ("lower", -duals, values - lower)):
            product = np.maximum(part, 0.0) * np.where(np.isfinite(slack), np.abs(slack), 1.0)
            if product.max(initial=0.0) > KKT_TOL * (size + abs(solution.objective)):
                worst, sign = int(product.argmax()), "positive" if side == "upper" else "negative"
                got = f"{duals[worst]:.6g} for {what} {worst}, which is {slack[worst]:.6g} away from it"
                expect(False, f"a {sign} {what} dual only where the {side} side holds", got)


def _check_ray(expect: Expect, program: Program, solution: Solution) -> None:
    """A ray proves infeasibility if ``ray' A d`` over the box stays above what the sides of the rows allow."""
    ray: Any = solution.ray
    expect(solution.status is Status.INFEASIBLE, "a ray only with status infeasible", solution.status)
    expect(np.shape(ray) == (program.m,), f"a ray of shape ({program.m},)", np.shape(ray))
    combined, (low, high) = program.matrix.T @ ray, program.bounds()
    small = 1e-7 * max(1e-300, float(np.abs(ray).max()))
    allowed = _support(ray, program.lower, program.upper, small)
    least = -_support(-combined, low, high, small)
    text = "a ray with ray' A d above what the rows allow"
    expect(least > allowed, text, f"{least:.6g} at least, {allowed:.6g} allowed")


def _support(direction: Array, lower: Array, upper: Array, small: float) -> float:
    """Largest ``direction' v`` over the box ``lower <= v <= upper``; entries up to ``small`` count as 0."""
    kept = np.abs(direction) > small
    sides = np.where(direction > 0, upper, lower)[kept]
    return float(direction[kept] @ sides)


def _check_time_limit(solver: Solver, kind: Kind) -> None:
    expect = expectation("check_solver", solver.name, f"{kind} of 100 variables")
    solution = _run(expect, _larger_program(kind), solver, time_limit=1e-6)
    allowed = (Status.OPTIMAL, Status.FEASIBLE, Status.NO_POINT)
    got = f"{solution.status} (native text: {solution.message!r})"
    expect(solution.status in allowed, "optimal, feasible or no point under a time limit of 1e-6 s", got)


def _larger_program(kind: Kind) -> Program:
    n, m, random = 100, 150, np.random.default_rng(0)
    factor = random.normal(size=(n, n // 2))
    return Program(
        gradient=random.normal(size=n),
        hessian=factor @ factor.T if kind in (Kind.QP, Kind.MIQP) else None,
        matrix=random.normal(size=(m, n)),
        lower=np.full(m, -np.inf),
        upper=1.0 + random.exponential(size=m),
        delta_lower=np.full(n, -2.0),
        delta_upper=np.full(n, 2.0),
        integer=np.ones(n, dtype=bool) if kind in (Kind.MILP, Kind.MIQP) else None,
    )


def _arrays(program: Program) -> list[Any]:
    hessian, matrix = program.hessian, program.matrix
    parts: list[Any] = (
        [hessian] if isinstance(hessian, np.ndarray) else [hessian.diagonal, hessian.factor] if hessian else []
    )
    parts += [matrix.toarray() if hasattr(matrix, "tocsr") else matrix, program.integer]
    parts += [program.gradient, program.lower, program.upper, *program.bounds()]
    return [part for part in parts if part is not None]
