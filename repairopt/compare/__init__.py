"""Many repairs in one call: methods compared, frontiers, bounds that are not met, calibration of margins."""

from .calibration import CalibratedMargin, calibrate_margin
from .cell import Cell, CellOutcome, Limits
from .comparison import Comparison, compare_repairs, read_cells
from .contestants import System, list_systems, named_methods
from .fixing_metrics import METRICS, Metric, fixing_rates, group_rates
from .frontier import Frontier, FrontierPoint, trace_frontier
from .letters import letter_groups
from .literature import TOOLS
from .recommend import NEEDS, Advice, recommend_methods
from .subject import Subject
from .tasks import loan_decisions, train_network
from .unmet import Unmet, explain_unmet
