"""Repairs: ``solve_repair()``, its stages in order, and the same repair as one program for others to solve."""

from .former import without_former
from .formulate import RepairProgram, formulate_repair
from .interrupted import INTERRUPTED, unless_interrupted
from .prepare import prepare_repair
from .settings import DEFAULTS, Settings
from .stages import Proposal, propose_candidate, solve_repair
