"""Which steps to accept: by sufficient decrease of a merit function, and by a filter where that comes to a stop.

The merit function is the objective plus a fixed weight of the constraint violation. It is no penalty whose balance a
repair ends at: a sequence that it stops goes on by the filter, which asks for less violation at any price in the
objective, but never takes a pair that an earlier point dominates.

References:
    Fletcher and Leyffer, Nonlinear programming without a penalty function, 2002.
    Wachter and Biegler, On the implementation of an interior-point filter line-search algorithm, 2006, for the
    switching condition and second-order corrections.
"""

from __future__ import annotations

from dataclasses import dataclass, field

VIOLATION_SHARE = 0.9  # of the violation of a point in the filter, that a new one may have
ENVELOPE = 1e-2  # of a point's violation, by which the objective must be smaller otherwise
SUFFICIENT_DECREASE = 0.1  # share of the predicted decrease
MERIT_WEIGHT = 10.0  # of the violation in the merit function
MET = 1e-9  # a violation up to this counts as none


@dataclass(frozen=True, order=True)
class Pair:
    """Constraint violation and objective, at a point or as the models predict them.

    Attributes:
        violation: Sum of what the limits are missed by; not negative.
        objective: Its value.
    """

    violation: float
    objective: float

    @property
    def merit(self) -> float:
        """The merit function."""
        return self.objective + MERIT_WEIGHT * self.violation


@dataclass
class Filter:
    """Pairs that a new point must improve on in violation or in objective (Fletcher and Leyffer)."""

    entries: list[Pair] = field(default_factory=list)

    def accepts(self, trial: Pair) -> bool:
        """Whether no entry dominates a pair."""
        return all(
            trial.violation <= VIOLATION_SHARE * old.violation
            or trial.objective <= old.objective - ENVELOPE * old.violation
            for old in self.entries
        )

    def add(self, pair: Pair) -> None:
        """Remember a pair; those that it dominates are forgotten."""
        self.entries = [old for old in self.entries if old.violation < pair.violation or old.objective < pair.objective]
        self.entries.append(pair)

    def acceptable(self, now: Pair, trial: Pair, predicted: Pair, *, stopped: bool) -> bool:
        """Whether to go from one point to another.

        Args:
            now: At the current point.
            trial: At the trial point.
            predicted: What the models predicted of the trial point.
            stopped: Whether several steps in a row were rejected.

        Returns:
            Without violation now: whether none arises and the objective decreases sufficiently. With violation: whether
            the merit function decreases sufficiently; once stopped, whether the violation decreases and the filter
            accepts the pair.
        """
        if not trial.violation < float("inf"):
            return False
        if now.violation <= MET:
            fall = SUFFICIENT_DECREASE * max(0.0, now.objective - predicted.objective)
            return trial.violation <= MET and trial.objective < now.objective - fall
        fall = now.merit - trial.merit
        if fall > 0 and fall >= SUFFICIENT_DECREASE * (now.merit - predicted.merit):
            return True
        return stopped and trial.violation <= VIOLATION_SHARE * now.violation and self.accepts(trial)

    def left(self, now: Pair) -> None:
        """Add a point that is left with a violation to the filter."""
        if now.violation > MET:
            self.add(now)
