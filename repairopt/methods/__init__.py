"""How a repair proceeds: one folder for each family of methods, one file for each method.

The class of every registered method can be imported from here; what is not listed below is loaded at its first use.
"""

from typing import Any

from .autoric.autoric import Bisection, Incremental, OneShot
from .autoric.sequential import Sequential
from .choosing.few_weights import AtMostBroken, FewWeights, MostFixed
from .choosing.on_grid import OnGrid
from .cross_entropy import root_rows
from .method import OPTIONAL, Method, check_uses, uses
from .outcome import Outcome
from .points.aprnn import APRNN
from .points.counterexample_guided import CounterexampleGuided, SpecRepair
from .points.local_repair import LocalRepair
from .points.mdnn import MDNN
from .points.nnrepair import NNRepair
from .points.polytopes import Polytope
from .points.prdnn import PRDNN
from .points.reassure import REASSURE
from .postprocess.best_by_group import Thresholds
from .postprocess.group_offsets import GroupOffsets
from .postprocess.offsets_by_group import OffsetsByGroup
from .postprocess.thresholds import ThresholdPoint, threshold_frontier
from .postprocess.vote import Vote
from .regions.descend_leaves import LeafDescent
from .regions.region_repair import RegionRepair
from .registry import available_methods, find_method, method_class
from .search.swarm import Swarm
from .settings import TrustRegion
from .sqp.division import TINIEST
from .sqp.expected_gain import GainModel, Positions, steepest_sides
from .sqp.filter import MET
from .sqp.method import SQP
from .sqp.nonlinear_program import NonlinearProgram
from .sqp.shortfall import OutOfFold, cannot_be_shown, is_statistical, value_without_noise
from .subtask import task_on, with_rows_of_goal
from .task import Log, Task
from .training.fine_tune import FineTune
from .training.pass_cost import operations
from .training.train_then_correct import TrainThenCorrect


def __getattr__(name: str) -> Any:
    return method_class(name)
