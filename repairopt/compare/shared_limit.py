"""One time limit for a call that runs many repairs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from repairopt.network import Stop
from repairopt.pipeline import Settings
from repairopt.report import Repair

TIME_LIMIT = "time limit"


@dataclass
class SharedLimit:
    """Counts ``settings.time_limit`` from now on: each repair gets an even share of what is left.

    What repairs do not use goes to those after them.

    Attributes:
        settings: Of the call.
        stopped: ``"time limit"`` once a repair ended at its share, or was not begun.
    """

    settings: Settings
    stopped: str = ""
    started: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float | None:
        """Seconds, from 0; None without a limit."""
        limit = self.settings.time_limit
        return None if limit is None else max(0.0, limit - (time.perf_counter() - self.started))

    def run(self, repair: Callable[[Settings], Repair], to_come: int = 1, *, needed: bool = False) -> Repair:
        """Run a repair with its settings.

        Args:
            repair: What runs it.
            to_come: Repairs that share what is left, this one among them.
            needed: Begin it even where no time is left: a repair of no time gives back the network as it was.

        Raises:
            Stop: No time is left.
        """
        left = self.left
        if left is None:
            return repair(self.settings)
        if not left and not needed:
            self.stopped = TIME_LIMIT
            raise Stop(TIME_LIMIT)
        found = repair(replace(self.settings, time_limit=max(1e-3, left / max(1, to_come))))
        self.stopped = self.stopped or (TIME_LIMIT if found.report.stopped == TIME_LIMIT else "")
        return found
