"""The program of a repair for people who want to add to it, with CVXPY, Pyomo, or their own code.

Example::

    from repairopt.solvers import as_cvxpy

    repair = formulate_repair(model, gap, [keep], weights="last")
    problem, change = as_cvxpy(repair.program)
    problem = cvxpy.Problem(problem.objective, [*problem.constraints, cvxpy.norm(change, 1) <= 0.5])
    problem.solve()
    print(repair.finish(change.value).report)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.errors import SolverError, SpecificationError, public
from repairopt.methods import Method, Outcome, find_method
from repairopt.program import Array, Program, Status
from repairopt.report import Repair
from repairopt.specify import make_specification
from repairopt.surrogate import Linearization, Strictest, Surrogate, build_program, linearize, select_rows
from repairopt.verify import Stop

from .conclude import conclude_repair
from .former import without_former
from .prepare import Prepared, prepare_repair
from .settings import DEFAULTS, Settings


@dataclass(frozen=True, eq=False)
class RepairProgram:
    """A repair as one mathematical program, and what turns an answer into a repaired network.

    Attributes:
        program: Minimize the model of the goal subject to the selected rows. Its rows carry the names of their
            constraints and samples.
        surrogate: The model of the goal.
        linearization: The constraints around the original network; can give further rows.
        prepared: The repair that the program was made from.
    """

    program: Program
    surrogate: Surrogate
    linearization: Linearization
    prepared: Prepared

    @public
    def finish(self, delta: Any) -> Repair:
        """Judge a weight change on the true network, apply it to a copy, verify and report.

        A change that breaks a constraint is shortened, as after any method.

        Args:
            delta: ``(n,)``, or all variables of the program ``(program.n,)``, the weight change first.

        Returns:
            The repaired copy and its report.

        Raises:
            SpecificationError: The shape is another one, or an entry is not finite.
        """
        n = int(self.program.n_delta or 0)
        values: Array = np.asarray(delta, dtype=np.float64)
        if values.shape not in ((n,), (self.program.n,)) or not np.all(np.isfinite(values)):
            raise SpecificationError(
                f"delta: shape {values.shape}; expected {n} finite numbers, one for each chosen weight, or "
                f"{self.program.n}, one for each variable of the program. Was the program solved?"
            )
        change = values[:n]
        predicted = self.surrogate.predicted(np.zeros(n)) - self.surrogate.predicted(change)
        outcome = Outcome(
            change,
            Status.FEASIBLE,
            self.surrogate,
            self.linearization,
            step=change,
            predicted=predicted,
            on_target=True,
        )
        self.prepared.task.record("given", self.prepared.task.judge.keep(change))
        return conclude_repair(self.prepared, outcome, method="a change from outside", shrink=False)


@public
def formulate_repair(
    model: Any,
    goal: Any,
    constraints: Any = (),
    *,
    selection: Strictest | None = None,
    method: str | Method = "one_shot",
    settings: Settings = DEFAULTS,
    **options: Any,
) -> RepairProgram:
    """Write a repair as one program: a convex model of the goal, selected rows (AutoRIC, Algorithms 1 to 3).

    Args:
        model: As for :func:`repairopt.solve_repair`.
        goal: As there.
        constraints: As there.
        selection: Which rows to take; None for the paper's shares.
        method: Whose model of the goal and trust radius are used.
        settings: As there.
        **options: ``data``, ``held_out`` and ``weights`` of :func:`repairopt.solve_repair`.

    Returns:
        The program, with means to hand it to other libraries and to finish the repair.

    Raises:
        SpecificationError: Goal, constraints or data are malformed.
        SolverError: The time limit ended before there was a program.
    """
    given = (model, goal, constraints, method, settings)
    model, goal, constraints, method, settings, options = without_former(*given, options)
    spec = make_specification(goal, constraints, options.pop("held_out", ()))
    prepared = prepare_repair(model, spec, method=find_method(method), settings=settings, **options)
    try:
        return _formulated(prepared, selection)
    except Stop as stop:
        raise SolverError(
            f"formulate_repair: {stop}, {settings.time_limit} s, before there was a program. Give it more time."
        ) from stop


def _formulated(prepared: Prepared, selection: Strictest | None) -> RepairProgram:
    task = prepared.task
    surrogate = task.fit()
    lin = linearize(task.engine, task.constraints, required=task.required)
    rows = lin.rows(select_rows(lin, selection or Strictest()))
    zero = np.zeros(task.engine.n)
    box, change = task.box(zero, task.trust_radius), task.change_rows(zero)
    program = build_program(surrogate, rows, box=box, change=change, linear=task.linear)
    return RepairProgram(program, surrogate, lin, prepared)
