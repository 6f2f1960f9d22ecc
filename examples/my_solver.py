# %% [markdown]
# # Your own solver
#
# A back end is a class with `name`, `kinds`, `requires` and `solve(program)`. This one is complete: it solves convex
# quadratic programs with nothing but NumPy and SciPy, returns multipliers, and proves infeasibility. It has no time
# limit, so the checks leave that out.
#
# With `G d >= h` for all sides of rows and bounds, it repeats proximal steps, each from the point `p` it has reached,
#
#     minimize  1/2 d'Hd + g'd + r/2 |d - p|^2   subject to  G d >= h
#
# which settle in a few steps for a small `r`, also where `H` is singular. `H + r I = L L'` turns a step into a search
# for the shortest vector `z = L'd + L^-1 (g - r p)` with `M z >= b`, and that into one call of non-negative least
# squares (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23): with `u >= 0` as close as can be to
# `M'u = 0, b'u = 1`, either the residual is zero and `u` proves that no point exists, or it shows where `z` points.

# %%
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from repairopt import CallableProperty, KeepLabels, Settings, solve_repair
from repairopt.interfaces.testing import check_solver
from repairopt.program import Kind, Program, Solution, Status, solve


# %%
@dataclass(frozen=True)
class LeastDistance:
    """Convex QP by proximal steps, each a least-distance problem; for some hundred rows."""

    proximal: float = 1e-6  # r, relative to the largest entry of H
    max_steps: int = 100

    name: ClassVar[str] = "least_distance"
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.QP})
    requires: ClassVar[tuple[str, ...]] = ("scipy",)

    def solve(self, program: Program) -> Solution:
        """Proximal steps until the point stays where it is."""
        hessian = program.dense_hessian()
        weight = self.proximal * max(1e-300, np.abs(hessian).max())
        root = np.linalg.cholesky(hessian + weight * np.eye(program.n))
        lines, sides, owners, signs = one_sided(program)
        rows = solve_triangular(root, lines.T, lower=True).T  # M
        lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-300)
        point, goal = np.zeros(program.n), np.append(np.zeros(program.n), 1.0)
        for step in range(1, self.max_steps + 1):
            shift = solve_triangular(root, program.gradient - weight * point, lower=True)
            needed = sides + rows @ shift  # b
            system = np.vstack([rows.T, needed]) / lengths
            u = nnls(system, goal)[0] if len(sides) else np.zeros(0)
            if np.linalg.norm(system @ u - goal) < 1e-8:
                ray = by_row(program, -signs * u / lengths, owners)[: program.m]
                return Solution(Status.INFEASIBLE, message="M'u = 0, b'u = 1", ray=ray)
            held = u > 0
            z = np.linalg.lstsq(rows[held], needed[held], rcond=None)[0]  # the shortest on the lines that hold it
            new = solve_triangular(root, z - shift, lower=True, trans=1)
            if falls_without_limit(program, lines, new):
                return Solution(Status.UNBOUNDED, message=f"on its way to {np.abs(new).max():.1g}", iterations=step)
            moved, point = np.abs(new - point).max(), new
            if moved <= 1e-9 * (1 + np.abs(point).max()):
                force = np.linalg.lstsq(rows[held].T, z, rcond=None)[0]
                duals = by_row(program, -signs[held] * force, owners[held])
                y, bound = duals[: program.m], duals[program.m :]
                return Solution(
                    Status.OPTIMAL, point, message="settled", row_duals=y, bound_duals=bound, iterations=step
                )
        return Solution(Status.NO_POINT, message="step limit", iterations=self.max_steps)


def one_sided(program: Program) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`G d >= h`, the row (or `m +` the bound) that each line of it comes from, and the sign it came with."""
    matrix = program.matrix.toarray() if hasattr(program.matrix, "tocsr") else program.matrix
    matrix = np.vstack([matrix, np.eye(program.n)])
    low, high = program.bounds()
    lower, upper = np.append(program.lower, low), np.append(program.upper, high)
    below, above = np.flatnonzero(np.isfinite(lower)), np.flatnonzero(np.isfinite(upper))
    lines, sides = np.vstack([matrix[below], -matrix[above]]), np.append(lower[below], -upper[above])
    return lines, sides, np.append(below, above), np.repeat([1.0, -1.0], [len(below), len(above)])


def by_row(program: Program, values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Sums of the multipliers of each row, then of each bound."""
    return np.bincount(owners, weights=values, minlength=program.m + program.n)


def falls_without_limit(program: Program, lines: np.ndarray, point: np.ndarray) -> bool:
    """Far out, on a way that leads down and that neither curvature nor a line stops."""
    size = np.abs(point).max()
    way, hessian = point / max(size, 1.0), program.dense_hessian()
    free = np.abs(hessian @ way).max() <= 1e-6 * np.abs(hessian).max() and np.all(lines @ way >= -1e-6)
    return bool(size > 1e6 and free and program.gradient @ way < 0)


# %% [markdown]
# ## Check it
#
# `check_solver` solves every known program of the kinds that the class claims, and looks at statuses, values,
# multipliers, certificates, and that inputs stay as they were. A failure names the program, what was expected and
# what came.


# %%
def checked() -> list[str]:
    """Names of the checks that ran."""
    return check_solver(LeastDistance())


# %% [markdown]
# ## Use it
#
# An instance goes wherever a name does; nothing needs to be registered. Here it repairs a small classifier: the margin
# of one input has to change sign while the labels of the others stay.


# %%
def repaired() -> str:
    """Report of a repair with the class above."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double().eval()
    inputs = torch.randn(40, 4, dtype=torch.float64)
    labels = model(inputs).argmax(1)
    order = (model(inputs)[:, 0] - model(inputs)[:, 1]).abs().argsort()  # the first is nearest to the boundary
    wrong, rest = order[:1], order[1:]

    def margin(predict):  # type: ignore[no-untyped-def]
        logits = predict(inputs[wrong])[0]
        return logits[labels[wrong[0]]] - logits[1 - labels[wrong[0]]]

    keep = KeepLabels(inputs[rest], labels[rest])
    return str(
        solve_repair(
            model, CallableProperty(margin, -0.05), [keep], weights=["2"], settings=Settings(solver=LeastDistance())
        ).report
    )


# %% [markdown]
# ## Register it
#
# For `solver="least_distance"`, in scripts that never import the class, the package that holds it declares an entry
# point in its `pyproject.toml`:
#
#     [project.entry-points."repairopt.solvers"]
#     least_distance = "mypackage.my_solver:LeastDistance"
#
# After `pip install`, `repairopt.available_solvers("QP")` lists it. repairopt imports no library to find that out.

# %%
if __name__ == "__main__":
    print(f"{len(checked())} checks passed.")
    program = Program(
        gradient=np.array([-2.0, -5.0]), hessian=np.diag([1.0, 2.0]), matrix=np.ones((1, 2)), upper=np.array([3.0])
    )
    for solver in (LeastDistance(), None):
        solution = solve(program, solver)
        print(f"{solution.solver}: {solution.status}, delta {solution.delta}, row duals {solution.row_duals}")
    print(repaired())
