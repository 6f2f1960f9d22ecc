"""Back ends, one file each; import them from ``repairopt.solvers``. Native libraries are imported on ``solve()``."""

from .clarabel import Clarabel
from .daqp import DAQP
from .highs import HiGHS
from .osqp import OSQP
from .piqp import PIQP

__all__ = ["DAQP", "OSQP", "PIQP", "Clarabel", "HiGHS"]
