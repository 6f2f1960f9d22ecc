from .calibrate_margin import CalibratedMargin, calibrate_margin
from .conclude import Repair
from .constraints import Bound, ChangeLimit, FixLabels, KeepLabels, KeepOutputs, LinearRows, OutputBounds
from .errors import (
    ModelError,
    ProgramError,
    RepairError,
    RepairFailedError,
    SolverError,
    SolverNotFoundError,
    SpecificationError,
    UnsupportedError,
)
from .formulate import RepairProgram, formulate_repair
from .frontier import Frontier, FrontierPoint, trace_frontier
from .group_metrics import GroupMetrics
from .group_offsets import GroupOffsets
from .html_report import write_html
from .language.bind import BoundStatement, bind_statement
from .language.row_sets import Data, RowSet
from .language.statements import Statement, parse
from .localization.weight_selectors import CARE, Gradient, Inputs, Layers, Neurons
from .localize import Location
from .methods.autoric import Bisection, Incremental, OneShot
from .methods.grid_repair import OnGrid
from .methods.sequential import Sequential
from .methods.sparse_repair import AtMostBroken, FewWeights, MostFixed
from .methods.sqp import SQP
from .out_of_reach import Unmet, explain_unmet
from .pipeline import solve_repair
from .program import Kind, Program
from .properties import AccuracyDrop, ErrorRate, FlipRate, GroupGap, MissRate, OddsGap
from .report import Report, Verdict
from .select_rows import Strictest
from .solve import Solution, Status, available_solvers
from .specify import Constraint, Property, Specification
from .surrogate import SurrogateSettings

__all__ = [
    "SQP",
    "CARE",
    "AccuracyDrop",
    "AtMostBroken",
    "Bisection",
    "Bound",
    "BoundStatement",
    "ChangeLimit",
    "Constraint",
    "Data",
    "ErrorRate",
    "FewWeights",
    "FixLabels",
    "FlipRate",
    "Gradient",
    "GroupGap",
    "GroupMetrics",
    "GroupOffsets",
    "Incremental",
    "Inputs",
    "KeepLabels",
    "KeepOutputs",
    "Kind",
    "Layers",
    "LinearRows",
    "Location",
    "MissRate",
    "ModelError",
    "MostFixed",
    "Neurons",
    "OnGrid",
    "OddsGap",
    "OneShot",
    "OutputBounds",
    "Program",
    "ProgramError",
    "Property",
    "Repair",
    "RepairError",
    "RepairFailedError",
    "RepairProgram",
    "Report",
    "RowSet",
    "Sequential",
    "Solution",
    "SolverError",
    "SolverNotFoundError",
    "Specification",
    "SpecificationError",
    "Statement",
    "Status",
    "Strictest",
    "SurrogateSettings",
    "UnsupportedError",
    "Verdict",
    "available_solvers",
    "bind_statement",
    "formulate_repair",
    "parse",
    "solve_repair",
    "calibrate_margin",
    "CalibratedMargin",
    "trace_frontier",
    "explain_unmet",
    "Frontier",
    "FrontierPoint",
    "Unmet",
    "write_html",
]
