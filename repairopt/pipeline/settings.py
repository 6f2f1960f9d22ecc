"""Settings of a repair that belong to no method: limits, seed, solver, what is told while it runs."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.program import Solver
from repairopt.specify import ROUNDING, Expected, keep_plain
from repairopt.verify import Round


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a repair is run, whatever the method.

    Attributes:
        time_limit: Seconds after which the best point so far is returned, marked so.
        memory_limit: Bytes that activations and intermediate results may take.
        seed: Random seed.
        solver: Back end by name or instance; None chooses an open-source one.
        isolate: Run back ends in a process of their own, so that a crash inside one costs a step, not the run.
        tolerance: Largest relative violation of a row that counts as feasible; that of verdicts unless given.
        start: Weight change to begin at, for methods that can: for parameters by name the change, as ``checkpoint``
            gets it, or a repair or a patch of this model.
        progress: Called with each :class:`Round`. Where it raises, a warning and the report say so, the repair goes on,
            and it is not called again; KeyboardInterrupt ends the repair, with the best point so far.
        checkpoint: Called with the best change so far, a tensor for each parameter, whenever a point is kept. Where it
            raises, as on a full disk, the same holds, but it is called again.

    Raises:
        SpecificationError: A limit or tolerance that is not above 0, or a seed below 0.

    Example:
        >>> Settings(time_limit=60.0, seed=1).time_limit
        60.0
    """

    time_limit: float | None = None
    memory_limit: int = 2**30
    seed: int = 0
    solver: str | Solver | None = None
    isolate: bool = False
    tolerance: float = ROUNDING
    start: Any = None
    progress: Callable[[Round], None] | None = None
    checkpoint: Callable[[dict[str, Tensor]], None] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.time_limit, float) and self.time_limit == math.inf:
            object.__setattr__(self, "time_limit", None)
        numbers = {
            "time_limit": Expected(above=True, none=True),
            "memory_limit": Expected(above=True),
            "tolerance": Expected(above=True),
        }
        for name, expected in numbers.items():
            if not expected.fits(getattr(self, name)):
                value = reprlib.repr(getattr(self, name))
                raise SpecificationError(f"settings: {name}={value}; expected {expected}.")
        keep_plain(self, *numbers)
        object.__setattr__(self, "memory_limit", max(1, int(self.memory_limit)))
        for name in ("progress", "checkpoint"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                value = reprlib.repr(getattr(self, name))
                raise SpecificationError(f"settings: {name}={value}; expected a function of one argument, or None.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or not 0 <= self.seed < 2**63:
            raise SpecificationError(f"settings: seed={self.seed!r}; expected a whole number, 0 or more.")
        object.__setattr__(self, "seed", int(self.seed))
        if not isinstance(self.isolate, bool):
            raise SpecificationError(f"settings: isolate={self.isolate!r}; expected True or False.")


DEFAULTS = Settings()
