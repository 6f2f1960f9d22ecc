"""Quadratic models of a property, linearized constraints, and the program made of both."""

from .convexify import check_way
from .linearization import Linearization, Picks, linearize
from .linearized_rows import LinearizedRows
from .quadratic import Surrogate, fit_surrogate
from .row_selection import MostViolated, Strictest, select_rows
from .step_program import build_program
from .surrogate_kinds import SurrogateSettings
