"""Programs with and without solutions, and an independent check of proofs that there is none."""

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from repairopt.program import Program
from repairopt.program.examples import INF


def exact_margin(program, multipliers):
    """The margin of a Farkas proof in rational arithmetic, written out once more and independently; None if invalid."""
    multipliers = {int(i): Fraction(float(y)) if isinstance(y, float) else y for i, y in multipliers.items() if y}
    matrix, margin = program.matrix, Fraction(0)
    for j, (low, high) in enumerate(zip(*program.bounds(), strict=True)):
        slope = sum((y * Fraction(float(matrix[i, j])) for i, y in multipliers.items()), Fraction(0))
        if slope:
            end = float(low if slope > 0 else high)
            if not np.isfinite(end):
                return None
            margin += slope * Fraction(end)
    for i, y in multipliers.items():
        margin -= y * Fraction(float(program.upper[i] if y > 0 else program.lower[i]))
    return margin


def proves(program, found):
    multipliers = found.rational or dict(enumerate(found.ray))
    margin = exact_margin(program, multipliers)
    return margin is not None and margin > 0


def infeasible_at(depth, *, boxed, seed=0, n=6, m=20):
    """Rows that miss a common point by ``depth``; the last is minus a combination of five others, free of rounding."""
    random = np.random.default_rng(seed)
    matrix = np.round(random.normal(size=(m, n)) * 2**10) / 2**10
    weights = np.round(random.random(5) * 8 + 1)
    matrix[-1] = -weights @ matrix[:5]
    inside = np.round(random.normal(size=n) * 2**10) / 2**10
    upper = matrix @ inside
    upper[5:-1] += 1.0
    upper[-1] -= depth
    box = 10.0 if boxed else INF
    return Program(np.ones(n), matrix=matrix, upper=upper, delta_lower=np.full(n, -box), delta_upper=np.full(n, box))


@st.composite
def barely_feasible(draw):
    """Programs with a known point, many rows tight there, some variables free, rows of mixed sizes."""
    n, m = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inside = np.round(random.normal(size=n) * 16) / 16
    matrix = np.round(random.normal(size=(m, n)) * 16) / 16
    if m > 2:
        matrix[-1] = -matrix[:-1].sum(axis=0)
    matrix *= 2.0 ** random.integers(-8, 8, size=(m, 1)) if draw(st.booleans()) else 1.0
    value = matrix @ inside  # without rounding
    room = random.exponential(size=m) * (random.random(m) < 0.3)
    lower, upper = np.where(random.random(m) < 0.3, value, -INF), value + room
    low, high = inside - random.integers(0, 2, size=n), inside + random.integers(0, 2, size=n)
    free = random.random(n) < 0.5
    return inside, Program(
        np.ones(n), None, 0.0, matrix, lower, upper, np.where(free, -INF, low), np.where(free, INF, high)
    )
