"""What the terminal says of a round: what was done, and the best value of the goal so far."""

from __future__ import annotations

import math
from collections.abc import Callable

from repairopt.verify import Round


class ToldRounds:
    """Words for each round of a repair; the best value is that of a point where all constraints hold."""

    def __init__(self, shown: Callable[[float], float]) -> None:
        self._shown, self._best = shown, math.inf

    def __call__(self, entry: Round) -> str:
        """The words of the next round."""
        if entry.broken == 0 and entry.goal < self._best:
            self._best = entry.goal
        words = [entry.step]
        words += [f"goal {self._shown(entry.goal):.4g}"] if math.isfinite(entry.goal) else []
        words += [f"best {self._shown(self._best):.4g}"] if math.isfinite(self._best) else []
        return ", ".join(words)
