"""Generated programs for mixed-integer repairs: dense rows, a low-rank Hessian, a box; and enumeration."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np

from repairopt.program import Program, solve


def sparse_change(n: int, seed: int = 0, rows: int = 100, rank: int = 8, linear: bool = False) -> Program:
    """Many weights pull down the objective, rows leave each of them some room."""
    draw = np.random.default_rng(seed)
    factor = draw.normal(size=(n, rank)) / np.sqrt(n)
    gradient = draw.normal(size=n)
    matrix = 0.7 * draw.normal(size=(1, n)) + draw.normal(size=(rows, n))
    return Program(
        gradient=gradient,
        hessian=None if linear else factor @ factor.T + 1e-2 * np.eye(n),
        matrix=matrix,
        lower=-2 * np.abs(draw.normal(size=rows)),
        delta_lower=-np.ones(n),
        delta_upper=np.ones(n),
    )


def broken_samples(
    m: int, n: int = 24, seed: int = 0, rank: int = 8, linear: bool = False, correlated: bool = True
) -> Program:
    """Rows that hold without a change and stand in the way of the objective.

    Correlated rows share four directions and are much harder than others, which share one as those of
    :func:`sparse_change` do.
    """
    draw = np.random.default_rng(seed)
    factor = draw.normal(size=(n, rank)) / np.sqrt(n)
    gradient = factor @ draw.normal(size=rank)
    if correlated:
        shared, spread = draw.normal(size=(m, 4)) @ draw.normal(size=(4, n)) / 2, 0.3
    else:
        shared, spread = 0.7 * draw.normal(size=(1, n)), 1.0
    return Program(
        gradient=gradient,
        hessian=None if linear else factor @ factor.T,
        matrix=shared + spread * draw.normal(size=(m, n)),
        lower=-2 * np.abs(draw.normal(size=m)),
        delta_lower=-np.ones(n),
        delta_upper=np.ones(n),
    )


def wrong_samples(m: int, wrong: int, n: int = 24, seed: int = 0) -> Program:
    """The same with some rows, the first, that do not hold without a change."""
    program = broken_samples(m, n, seed)
    lower = program.lower.copy()
    lower[:wrong] = 0.5 * np.abs(np.random.default_rng(seed + 5).normal(size=wrong))
    return replace(program, lower=lower)


def singles(m: int) -> list[list[int]]:
    """Each row is a sample."""
    return [[i] for i in range(m)]


def enumerated(integer) -> float:
    """The least objective over all choices of the largest size allowed; infinite where none is feasible."""
    best, count = np.inf, len(integer.items)
    size = min(count, integer.limits[0][1])
    for picked in combinations(range(count), size):
        chosen = np.isin(np.arange(count), picked)
        found = solve(integer.restricted(chosen), "piqp")
        if found.found:
            best = min(best, found.objective)
    return best
