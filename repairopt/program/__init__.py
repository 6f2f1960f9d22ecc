"""Mathematical programs and their solution, in NumPy alone: no file of this room imports torch."""

from .attempt import run_solver
from .backends import available_solvers, load_solver, missing_libraries, needed_libraries, registered_solvers
from .captured_output import native_output, without_noise
from .certificates.check_region import check_proof
from .certificates.conflict import Conflict, explain_conflict
from .certificates.layered_network import (
    AffineLayer,
    Layer,
    LayeredNetwork,
    RectifierLayer,
    SmoothLayer,
    SumLayer,
    dense_layers,
)
from .certificates.recession import recession_ray
from .certificates.region_proof import OutputRows, ProofStatus, ProofVerdict, RegionProof
from .examples import KnownProgram, known_programs
from .hessian import LowRankHessian, padded
from .integer.integer_program import IntegerProgram, allow_broken, limit_changes, maximize_fixed, rows_by_sample
from .integer.mixed_integer import IntegerSolution, solve_integer
from .integer.weight_grid import grid
from .program import Array, Hessian, Kind, Matrix, Program
from .rows import Rows, Source, stack_rows
from .solution import Solution, Solver, Status
from .solve_program import solve
from .working_sets.row_oracles import DenseRows, Index
from .working_sets.working_set import solve_working_set
