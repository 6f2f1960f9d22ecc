"""Which back end is taken when none is asked for: one table, measured by ``benchmarks/solvers.py``.

The first line that fits a program counts. Its back ends are taken in order, those that are not installed left out. Not
in the table, so never chosen unasked: licensed ones, modelling layers, and back ends of other packages, which state a
``preference`` of their own (ranks here are 0, 1, 2, ...).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from repairopt.program import Kind, Program

NEVER = float("inf")
LARGE = 100_000  # places in a matrix from which on its storage decides
WIDE = 0.1  # rows over variables up to which rows are few
SPARSE = 0.1  # share of stored entries up to which a matrix in sparse storage counts as sparse


@dataclass(frozen=True)
class Rule:
    """One line of the table: the back ends for a kind of program, the best first, and what was measured.

    It speaks of programs of at most so many ``variables``; of ``sparse`` matrices, Hessians given as a diagonal and a
    factor (``low_rank``), or far fewer rows than variables (``few_rows``, see ``WIDE``) alone.
    """

    kind: Kind
    order: tuple[str, ...]
    variables: float = NEVER
    sparse: bool = False
    low_rank: bool = False
    few_rows: bool = False
    because: str = ""

    def fits(self, kind: Kind, variables: int, rows: int, *, sparse: bool, low_rank: bool) -> bool:
        """Whether the line speaks of programs of this kind and size."""
        return (
            kind is self.kind
            and variables <= self.variables
            and (not self.sparse or sparse)
            and (not self.low_rank or low_rank)
            and (not self.few_rows or rows <= WIDE * variables)
        )


TABLE = (
    Rule(Kind.LP, ("piqp", "highs", "clarabel", "scipy", "daqp"), 5000, sparse=True, because="uses sparsity"),
    Rule(Kind.LP, ("highs", "piqp", "clarabel", "scipy", "daqp"), sparse=True, because="simplex uses sparsity"),
    Rule(Kind.LP, ("daqp", "piqp", "highs", "clarabel", "scipy", "woodbury", "scip"), 300, because="fastest up to 300"),
    Rule(Kind.LP, ("highs", "scipy", "piqp", "clarabel"), few_rows=True, because="few pivots; others factor n x n"),
    Rule(Kind.LP, ("piqp", "highs", "clarabel", "scipy", "daqp", "woodbury"), 5000, because="fastest above 300"),
    Rule(Kind.LP, ("highs", "piqp", "scipy", "woodbury"), because="PIQP's dense (n, n) matrix grows too large"),
    Rule(Kind.QP, ("daqp", "piqp", "clarabel", "proxqp", "osqp", "woodbury", "scip"), 60, because="fastest up to 60"),
    Rule(Kind.QP, ("daqp", "piqp", "woodbury", "clarabel"), 300, low_rank=True, because="fastest up to 300"),
    Rule(Kind.QP, ("woodbury", "daqp", "piqp", "clarabel"), low_rank=True, because="no n x n matrix is built"),
    Rule(Kind.QP, ("piqp", "clarabel", "proxqp", "daqp", "osqp", "woodbury", "scip"), 5000, because="fastest above 60"),
    Rule(Kind.QP, ("piqp", "clarabel", "osqp", "woodbury"), because="no other takes a dense Hessian of that size"),
    Rule(Kind.MILP, ("highs", "scip", "scipy"), because="fastest open one"),
    Rule(Kind.MIQP, ("scip",), because="the only open one that proves its bound"),
)


def rank(name: str, program: Program) -> float:
    """Place of a back end in the line that fits a program; infinite where it has none."""
    low_rank = not (program.hessian is None or isinstance(program.hessian, np.ndarray))
    order = _order(program.kind, program.n, program.m, is_sparse(program), low_rank)
    return float(order.index(name)) if name in order else NEVER


@lru_cache(maxsize=256)
def _order(kind: Kind, variables: int, rows: int, sparse: bool, low_rank: bool) -> tuple[str, ...]:
    """The back ends of the first line that fits; every back end asks for each program of a repair."""
    fitting = (rule for rule in TABLE if rule.fits(kind, variables, rows, sparse=sparse, low_rank=low_rank))
    return next((rule.order for rule in fitting), ())


def is_sparse(program: Program) -> bool:
    """Whether the matrix is large, stored as a sparse one, and has few entries."""
    matrix = program.matrix
    size = program.m * program.n
    return hasattr(matrix, "tocsr") and size >= LARGE and matrix.nnz <= SPARSE * size


def described() -> Iterator[tuple[str, str, str]]:
    """The table as text: kind, which programs, back ends."""
    for rule in TABLE:
        parts = ["sparse"] if rule.sparse else []
        parts += ["low-rank Hessian"] if rule.low_rank else []
        parts += ["at most a tenth as many rows as variables"] if rule.few_rows else []
        parts += [] if rule.variables == NEVER else [f"up to {rule.variables:,.0f} variables"]
        yield str(rule.kind), ", ".join(parts) or "any other", ", ".join(rule.order)
