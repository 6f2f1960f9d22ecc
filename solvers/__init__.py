"""Back ends, one file each; import them from ``repairopt.solvers``. Native libraries are imported on ``solve()``."""

from .clarabel import Clarabel
from .cvxpy import CVXPY, as_cvxpy
from .daqp import DAQP
from .gurobi import Gurobi
from .highs import HiGHS
from .matrix_free import WoodburyIPM
from .osqp import OSQP
from .piqp import PIQP
from .proxqp import ProxQP
from .pyomo import Pyomo, as_pyomo
from .scip import SCIP
from .scipy import SciPy

__all__ = [
    "CVXPY",
    "DAQP",
    "OSQP",
    "PIQP",
    "SCIP",
    "Clarabel",
    "Gurobi",
    "HiGHS",
    "ProxQP",
    "Pyomo",
    "SciPy",
    "WoodburyIPM",
    "as_cvxpy",
    "as_pyomo",
]
