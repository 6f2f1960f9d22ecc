"""The filter: no penalty has to weigh a missed bound against the objective.

References:
    Fletcher and Leyffer, Nonlinear programming without a penalty function, 2002.
    Wachter and Biegler, On the implementation of an interior-point filter line-search algorithm, 2006, for the
    switching condition and second-order corrections.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LESS_MISSED = 0.9  # of what a point in the filter misses, that a new one may
LESS_OBJECTIVE = 1e-2  # of what it misses, by which the objective must be smaller otherwise
SHARE = 0.1  # of the promised fall of the objective, where no bound is missed
MET = 1e-9  # missed by less counts as met


@dataclass
class Filter:
    """Pairs of what was missed and of the objective that a new point has to better in one of the two."""

    entries: list[tuple[float, float]] = field(default_factory=list)

    def accepts(self, missed: float, objective: float) -> bool:
        """Whether no entry dominates a point."""
        return all(
            missed <= LESS_MISSED * old or objective <= best - LESS_OBJECTIVE * old for old, best in self.entries
        )

    def add(self, missed: float, objective: float) -> None:
        """Remember a point; those that it dominates are forgotten."""
        self.entries = [pair for pair in self.entries if pair[0] < missed or pair[1] < objective]
        self.entries.append((missed, objective))

    def judge(self, now: tuple[float, float], trial: tuple[float, float], promised: float) -> bool:
        """Whether to go from one pair to another.

        Args:
            now: What is missed and the objective, at the current point.
            trial: The same at the trial point.
            promised: Fall of the objective that the model promised.

        Returns:
            Whether the trial is accepted. Where bounds are met, they must stay met and the objective must fall by a
            share of what was promised. Where some are missed, less must be missed, or as much with a smaller objective.
        """
        missed, objective = trial
        if not missed < float("inf"):
            return False
        if now[0] <= MET:
            return missed <= MET and objective <= now[1] - SHARE * max(0.0, promised) and objective < now[1]
        if not self.accepts(missed, objective):
            return False
        better = missed <= LESS_MISSED * now[0] or (missed <= now[0] and objective < now[1])
        if better:
            self.add(*now)
        return better
