"""Back ends, one file each; import them from ``repairopt.solvers``. Native libraries are imported on ``solve()``."""

from typing import TYPE_CHECKING, Any

from .clarabel import Clarabel
from .cvxpy import CVXPY, as_cvxpy
from .daqp import DAQP
from .gurobi import Gurobi
from .highs import HiGHS
from .osqp import OSQP
from .piqp import PIQP
from .proxqp import ProxQP
from .pyomo import Pyomo, as_pyomo
from .scip import SCIP
from .scipy import SciPy

if TYPE_CHECKING:
    from .matrix_free import WoodburyIPM

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


def __getattr__(name: str) -> Any:
    """The back end that imports torch, which the others do without: programs are solved in a process that has none."""
    if name == "WoodburyIPM":
        from .matrix_free import WoodburyIPM

        return WoodburyIPM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
