"""Parts of mixed-integer programs: binary variables beside those of a continuous program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.program.hessian import padded
from repairopt.program.program import Array, Program
from repairopt.program.rows import Source

Index = npt.NDArray[np.int64]
Limits = tuple[tuple[Index, int], ...]


def switched(
    program: Program,
    left: Any,
    right: Any,
    sides: tuple[Array, Array],
    sources: tuple[Source, ...],
    *,
    limits: Limits,
    bounds: tuple[Array, Array],
    counts: bool = False,
) -> Program:
    """The program over its variables and the binaries: rows ``left``, ``right``, and one for each limit."""
    from scipy import sparse

    many = right.shape[1]
    budget = sparse.lil_matrix((len(limits), program.n + many))
    for i, (items, _) in enumerate(limits):
        budget[i, program.n + items] = 1.0
    low, high = program.bounds()
    join = np.concatenate
    return Program(
        gradient=join([np.zeros(program.n), np.ones(many)] if counts else [program.gradient, np.zeros(many)]),
        hessian=None if counts else padded(program.hessian, many),
        constant=0.0 if counts else program.constant,
        matrix=sparse.vstack([sparse.hstack([left, right]), budget], format="csr"),
        lower=join([sides[0], np.full(len(limits), -np.inf)]),
        upper=join([sides[1], [float(most) for _, most in limits]]),
        delta_lower=join([low, bounds[0]]),
        delta_upper=join([high, bounds[1]]),
        integer=np.arange(program.n + many) >= program.n,
        sources=sources + tuple(Source("choice", -1, f"at most {most} of {len(items)}") for items, most in limits),
        n_delta=program.n_delta,
    )


def flat(items: Sequence[Index]) -> tuple[Index, Index]:
    """All indices, and for each the item that it belongs to."""
    index = np.concatenate([np.zeros(0, dtype=np.int64), *items])
    return index, np.repeat(np.arange(len(items)), [len(item) for item in items]).astype(np.int64)


def owned(values: Array, owner: Index, many: int) -> Any:
    """One row for each value, in the column of the binary of its owner; ``scipy.sparse``."""
    from scipy import sparse

    return sparse.csr_matrix((values, (np.arange(len(values)), owner)), shape=(len(values), many))


def sources_of(program: Program) -> tuple[Source, ...]:
    """The sources of the rows, made up where the program has none."""
    return program.sources or tuple(Source("row", -1, str(i)) for i in range(program.m))
