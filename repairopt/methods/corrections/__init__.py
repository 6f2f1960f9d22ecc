"""Corrections: rows that must hold and do not, made to hold by a small change of what a method proposes."""

from .exact_rows import Corrected, correct_rows, keep_corrected
from .hard_rows import hard_constraints, known_inputs, rows_of_goal

__all__ = ["Corrected", "correct_rows", "hard_constraints", "keep_corrected", "known_inputs", "rows_of_goal"]
