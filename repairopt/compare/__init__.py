"""Many repairs in one call: frontiers, bounds that are not met, calibration of margins."""

from .calibration import CalibratedMargin, calibrate_margin
from .frontier import Frontier, FrontierPoint, trace_frontier
from .tasks import loan_decisions, train_network
from .unmet import Unmet, explain_unmet
