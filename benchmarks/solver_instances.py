"""The programs of ``benchmarks/solvers.py``: from repairs of real networks, and generated ones of growing size."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import environment  # noqa: F401  (one thread)
import numpy as np
from benchmark_files import DATA
from large_programs import box, correlated, dense_case, wide_case

from repairopt import FixLabels, Incremental, OneShot, Settings, solve_repair
from repairopt.methods import Sequential
from repairopt.program import Kind, Program, Solution, solve_working_set
from repairopt.program.backends import find_solver
from repairopt.program.working_sets.row_oracles import DenseRows, RowOracle
from repairopt.surrogate import LinearizedRows

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "tests" / "support"))
SIZES = [(24, 200), (24, 2_000), (24, 20_000), (24, 500_000), (222, 2_000), (222, 50_000), (222, 500_000)]
SIZES += [(1_000, 5_000), (4_000, 5_000)]
LOW_RANK = [(60, 500), (222, 2_000), (1_000, 5_000), (4_000, 5_000), (20_000, 2_000)]
QUICK = [(12, 100)]
REAL = "Programs of real repairs"


@dataclass(frozen=True, eq=False)
class Built:
    """A program with all rows, and the same as a head and rows to look at; None where the rows are few."""

    program: Program
    head: Program | None = None
    rows: RowOracle | None = None


@dataclass(frozen=True)
class Instance:
    """A program by name.

    Attributes:
        family: Programs that differ in size alone; a back end that was too slow for one is not tried on larger ones.
        name: What the tables call it.
        kind: LP or QP.
        size: Weights and rows, for the rule of the family; None where the family shares no size.
        build: Makes it; the same each time.
    """

    family: str
    name: str
    kind: Kind
    size: tuple[int, int] | None
    build: Callable[[], Built] = field(repr=False)


def instances(quick: bool = False) -> list[Instance]:
    """All of them, each family from small to large; without data only the generated ones."""
    found = []
    for family, kind, make in (("LP, dense", Kind.LP, linear), ("QP, dense Hessian", Kind.QP, quadratic)):
        for n, m in QUICK if quick else SIZES:
            found.append(Instance(family, f"{n:,} x {m:,}", kind, (n, m), partial(make, n, m)))
    for n, m in QUICK[:1] if quick else LOW_RANK:
        found.append(Instance("QP, diagonal plus rank 20", f"{n:,} x {m:,}", Kind.QP, (n, m), partial(wide, n, m)))
    return found + real_instances(quick)


def real_instances(quick: bool) -> list[Instance]:
    """From repairs of real networks, as far as the data are there."""
    found: list[tuple[str, Kind, Callable[[], Built]]] = []
    if (DATA / "provable").is_dir():
        for size in (1,) if quick else (5, 100):
            name = f"watermarks, sets of {size}"
            found.append((f"{name}, reciprocal", Kind.LP, partial(watermarks, size, "reciprocal")))
            if not quick:
                found.append((f"{name}, as published", Kind.LP, partial(watermarks, size, "program")))
        if not quick:
            found.append(("fog 3x100, rows that matter", Kind.QP, partial(fog, "3_100", True)))
            found.append(("fog 3x100, all rows", Kind.QP, partial(fog, "3_100", False)))
            found.append(("fog 9x200, rows that matter", Kind.QP, partial(fog, "9_200", True)))
            found.append(("fog 9x200, all rows", Kind.QP, partial(fog, "9_200", False)))
            found.append(("misclassified 256x2, rows that matter", Kind.QP, misclassified))
            found.append(("fog 9x200, third layer, rows that matter", Kind.QP, third_layer))
    if (DATA / "autoric").is_dir() and not quick:
        for task in ("M1 gender", "M2 age"):
            for how in ("one-shot", "incremental", "sequential"):
                name = f"{'census' if task == 'M1 gender' else 'bank'}, {how}"
                found.append((name, Kind.QP, partial(step, task, how)))
    return [Instance(REAL, name, kind, None, build) for name, kind, build in found]


# -------------------------------------------------------------------- generated


def whole(head: Program, matrix: np.ndarray, lower: np.ndarray) -> Built:
    """Rows with lower sides, all at once and to look at."""
    rows = DenseRows(matrix, lower)
    return Built(replace(head, matrix=matrix, lower=lower, upper=np.full(len(lower), np.inf)), head, rows)


def linear(n: int, m: int) -> Built:
    """A box, dense correlated rows that zero satisfies."""
    matrix, lower = correlated(n, m, 0)
    return whole(Program(gradient=np.random.default_rng(1).standard_normal(n), **box(n)), matrix, lower)


def quadratic(n: int, m: int) -> Built:
    """The same with a Hessian of rank n / 3."""
    return whole(*dense_case(n, m, 0))


def wide(n: int, m: int) -> Built:
    """The same with a Hessian given as a diagonal and a factor."""
    return whole(*wide_case(n, m, 0))


# -------------------------------------------------------------------- real


def watermarks(size: int, form: str) -> Built:
    """The last published set of a size."""
    from real_programs import Watermarks

    marks = Watermarks.load(DATA)
    return Built(getattr(marks, form)(marks.sets[size][-1]))


def fog_task(name: str) -> Any:
    """The repairs of ``tests/pipeline/test_known_answers.py``."""
    from real_programs import PointRepair

    margins = {"3_100": {"fix_margin": 0.3, "keep_margin": 5.0}, "9_200": {"keep_margin": 0.3}}
    return PointRepair.fog(DATA, f"mnist_relu_{name}", **margins[name])


def fog(name: str, few: bool) -> Built:
    """Last layer, foggy points to repair, clean points to keep."""
    head, linearization = fog_task(name).last_layer()
    rows = LinearizedRows(linearization)
    return that_matter(head, rows, "daqp") if few else Built(with_rows(head, rows, np.arange(rows.m)), head, rows)


def misclassified() -> Built:
    """Last layer of 784-256-256-10, 100 wrong answers."""
    from real_programs import PointRepair

    head, linearization = PointRepair.misclassified(DATA, keep_margin=4.0).last_layer()
    return that_matter(head, LinearizedRows(linearization), "daqp")


def third_layer() -> Built:
    """The first step of the walk in the third layer of 784-(200 x 8)-10: 40,200 weights."""
    from real_programs import first_step

    head, rows = first_step(replace(fog_task("9_200"), fix_margin=0.3), 4, 0.3)
    return that_matter(head, rows, "woodbury")


def that_matter(head: Program, rows: RowOracle, solver: str) -> Built:
    """The last program of a working set: what a back end is really given."""
    found = solve_working_set(head, rows, solver=solver, batch=100, feasibility_tol=1e-6)
    return Built(with_rows(head, rows, found.working))


def with_rows(head: Program, rows: RowOracle, index: np.ndarray) -> Program:
    """The head with some rows of an oracle."""
    matrix, lower, upper = rows.rows(index)
    return replace(head, matrix=matrix, lower=lower, upper=upper)


class Recorder:
    """A back end that remembers every program and has the default one solve it."""

    name: ClassVar[str] = "recorder"
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    requires: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def solve(self, program: Program) -> Solution:
        """Remember and pass on."""
        self.programs.append(program)
        return find_solver(program).solve(program)


def step(name: str, how: str) -> Built:
    """The largest program that a repair of a network of the AutoRIC paper solves on the way."""
    from protocol import tasks

    task = tasks()[name]
    half = task.part(*task.indices(0)[0])
    methods = {"one-shot": OneShot(task.selection), "incremental": Incremental(task.selection, batch=10)}
    method = methods.get(how, Sequential(buffer=0.004))
    constraints: list[Any] = [half.keep(1.0 if how == "one-shot" else 0.02)]
    if how == "one-shot":
        constraints.append(FixLabels(half.rows, half.labels))
    recorder, weights = Recorder(), task.weights if name == "M1 gender" else "auto"
    solve_repair(
        task.network, half.goal, constraints, weights=weights, method=method, settings=Settings(solver=recorder, seed=0)
    )
    return Built(max(recorder.programs, key=lambda program: program.m * program.n))
