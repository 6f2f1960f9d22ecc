"""Which steps to accept: by a share of what the models promised, and by a filter where that comes to a stop.

A fixed weight of what bounds miss against the objective says whether models and network agree; it is no penalty that a
repair ends at a balance of, because a sequence that it stops goes on by the filter, which asks for less missed at any
price in the objective, but never for a pair that an earlier point dominates.

References:
    Fletcher and Leyffer, Nonlinear programming without a penalty function, 2002.
    Wachter and Biegler, On the implementation of an interior-point filter line-search algorithm, 2006, for the
    switching condition and second-order corrections.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LESS_MISSED = 0.9  # of what a point in the filter misses, that a new one may
LESS_OBJECTIVE = 1e-2  # of what it misses, by which the objective must be smaller otherwise
SHARE = 0.1  # of the promised fall
WEIGHT = 10.0  # of what is missed, in the fall that is compared with what was promised
MET = 1e-9  # missed by less counts as met


@dataclass(frozen=True, order=True)
class Pair:
    """What bounds miss, all together, and the objective: at a point, or as models promise them.

    Attributes:
        missed: Not negative.
        objective: Its value.
    """

    missed: float
    objective: float

    @property
    def weighted(self) -> float:
        """Both in one number."""
        return self.objective + WEIGHT * self.missed


@dataclass
class Filter:
    """Pairs that a new point has to better in one of the two."""

    entries: list[Pair] = field(default_factory=list)

    def accepts(self, trial: Pair) -> bool:
        """Whether no entry dominates a pair."""
        return all(
            trial.missed <= LESS_MISSED * old.missed or trial.objective <= old.objective - LESS_OBJECTIVE * old.missed
            for old in self.entries
        )

    def add(self, pair: Pair) -> None:
        """Remember a pair; those that it dominates are forgotten."""
        self.entries = [old for old in self.entries if old.missed < pair.missed or old.objective < pair.objective]
        self.entries.append(pair)

    def judge(self, now: Pair, trial: Pair, promised: Pair, *, stopped: bool) -> bool:
        """Whether to go from one point to another.

        Args:
            now: At the current point.
            trial: At the trial point.
            promised: What the models promised of the trial point.
            stopped: Whether several steps in a row were rejected.

        Returns:
            Where bounds are met: whether they stay met and the objective falls by a share of what was promised. Where
            some are missed: whether both together fall by a share of what was promised; once stopped, whether less is
            missed and the filter accepts the pair.
        """
        if not trial.missed < float("inf"):
            return False
        if now.missed <= MET:
            fall = SHARE * max(0.0, now.objective - promised.objective)
            return trial.missed <= MET and trial.objective < now.objective - fall
        fall = now.weighted - trial.weighted
        if fall > 0 and fall >= SHARE * (now.weighted - promised.weighted):
            return True
        return stopped and trial.missed <= LESS_MISSED * now.missed and self.accepts(trial)

    def left(self, now: Pair) -> None:
        """Remember a point that is left while bounds are missed."""
        if now.missed > MET:
            self.add(now)
