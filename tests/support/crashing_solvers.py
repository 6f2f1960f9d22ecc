"""Back ends that crash, hang or raise, for tests of isolation; importable, so that they can be sent to a process."""

import ctypes
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from repairopt.program import Kind, Program, Solution, Status


@dataclass(frozen=True)
class Crashing:
    """Does as it is told."""

    how: str = "segfault"
    verbose: bool = False

    name: ClassVar[str] = "crashing"
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    requires: ClassVar[tuple[str, ...]] = ()

    def solve(self, program: Program) -> Solution:
        """Crash, hang, raise, or answer."""
        if self.how == "segfault":
            ctypes.string_at(0)
        if self.how == "hang":
            time.sleep(600)
        if self.how == "raise":
            raise ValueError("inside")
        if self.verbose:
            ctypes.CDLL(None).puts(b"native words")
            ctypes.CDLL(None).fflush(None)
        return Solution(Status.FEASIBLE, np.zeros(program.n), message="answered")
