"""Programs as models of HiGHS, and changes of such models; the library without its banner."""

from __future__ import annotations

from typing import Any

import numpy as np

from repairopt.program import Program, native_output

from .matrices import sparse_rows
from .same_rows import Index

_made = False


def quiet_highs() -> Any:
    """The library ``highspy``; its banner, printed when the first object of a process is made, goes nowhere."""
    global _made
    import highspy

    if not _made:
        with native_output(wanted=True, echo=False):
            highspy.Highs()
        _made = True
    return highspy


def build_model(highspy: Any, program: Program) -> Any:
    """A ``HighsLp``, integer where the program is."""
    model, rows = highspy.HighsLp(), sparse_rows(program)
    model.num_col_, model.num_row_ = program.n, program.m
    model.col_cost_, model.offset_ = program.gradient, program.constant
    model.col_lower_, model.col_upper_ = program.bounds()
    model.row_lower_, model.row_upper_ = program.lower, program.upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_, model.a_matrix_.value_ = rows.indptr, rows.indices, rows.data
    if program.integer is not None:
        kinds = highspy.HighsVarType
        model.integrality_ = [kinds.kInteger if flag else kinds.kContinuous for flag in program.integer]
    return model


def add_rows(highs: Any, program: Program, index: Index) -> None:
    """Append some rows of a program."""
    if not len(index):
        return
    rows = sparse_rows(program, index)
    starts = rows.indptr[:-1].astype(np.int32)
    entries = (rows.indices.astype(np.int32), rows.data)
    highs.addRows(len(index), program.lower[index], program.upper[index], rows.nnz, starts, *entries)


def change_model(highs: Any, last: Program, order: Index, program: Program, matches: Index) -> Index:
    """Bring the model of one linear program to another one with the same variables, but for its new rows.

    ``order`` says which row of ``last`` each row of the model is, ``matches`` where each row of ``program`` stood in
    ``last``, or -1. Returns which row of ``program`` each remaining row of the model is; the basis stays.
    """
    columns = np.arange(program.n, dtype=np.int32)
    if not np.array_equal(last.gradient, program.gradient):
        highs.changeColsCost(program.n, columns, program.gradient)
    if any(not np.array_equal(a, b) for a, b in zip(last.bounds(), program.bounds(), strict=True)):
        highs.changeColsBounds(program.n, columns, *program.bounds())
    if last.constant != program.constant:
        highs.changeObjectiveOffset(program.constant)
    back = np.full(last.m, -1, dtype=np.int64)
    back[matches[matches >= 0]] = np.flatnonzero(matches >= 0)
    places = back[order]
    gone = np.flatnonzero(places < 0).astype(np.int32)
    if len(gone):
        highs.deleteRows(len(gone), gone)
    kept = places[places >= 0]
    old = matches[kept]
    moved = (last.lower[old] != program.lower[kept]) | (last.upper[old] != program.upper[kept])
    if moved.any():
        which = np.flatnonzero(moved).astype(np.int32)
        highs.changeRowsBounds(len(which), which, program.lower[kept[moved]], program.upper[kept[moved]])
    return kept
