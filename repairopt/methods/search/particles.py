"""Particles: global-best particle swarm optimization, the engine of every method that searches with a swarm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.network import Array

INERTIA, PULL = 0.7298, 1.49618  # Clerc and Kennedy: a swarm with these contracts for any pulls drawn from 0 to 1
Rate = Callable[[Array], Array]  # scores (K,), smaller is better, of places (K, n)


def _lowest(own: Array, scores: Array, best: float) -> int | None:
    return int(scores.argmin()) if scores.min() < best else None


def _ignore(step: int, place: Array, score: float) -> None:
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class Particles:
    """The rules by which a swarm moves.

    Attributes:
        iterations: At most so many moves.
        patience: Stop after so many moves in a row without a gain.
        gain: By how much the best score must fall to count as a gain; 0 for any fall.
        inertia: Share of the speed that is kept.
        pull: Largest pull to the best place of a particle, and to that of the swarm.
        slowest: Least size of each component of a speed, a number or ``(n,)``.
        fastest: Largest size of each component of a speed.
        stops: Whether a bound stops a particle; else it stays at the bound with its speed.
    """

    iterations: int = 100
    patience: int = 25
    gain: float = 0.0
    inertia: float = INERTIA
    pull: float = PULL
    slowest: Any = 0.0
    fastest: Any = np.inf
    stops: bool = True

    def move(
        self,
        rate: Rate,
        places: Array,
        draw: np.random.Generator,
        bounds: tuple[Any, Any] = (-np.inf, np.inf),
        *,
        speeds: Array | None = None,
        choose: Callable[[Array, Array, float], int | None] = _lowest,
        found: Callable[[int, Array, float], None] = _ignore,
        check: Callable[[], None] = lambda: None,
    ) -> tuple[Array, float]:
        """Move the swarm until nothing better is found.

        Args:
            rate: Scores of places.
            places: Where the particles begin, ``(K, n)``.
            draw: Draws the pulls.
            bounds: Lower and upper bounds of places.
            speeds: Speeds at the start, ``(K, n)``; None for 0.
            choose: From the best places of the particles, their scores and the best score so far the new best place of
                the swarm, or None; it may raise scores of places that it refuses.
            found: Called with the move, the place and the score of each new best.
            check: Called before each move.

        Returns:
            The best place ``(n,)`` and its score; the first place, infinite, where none was chosen.
        """
        speeds = np.zeros_like(places) if speeds is None else speeds
        own, scores = places.copy(), rate(places)
        best, best_score, still = places[0], np.inf, 0
        for step in range(self.iterations + 1):
            check()
            k = choose(own, scores, best_score)
            gained = k is not None and best_score - scores[k] >= self.gain
            still = 0 if gained else still + 1
            if k is not None:
                best, best_score = own[k].copy(), float(scores[k])
                found(step, best, best_score)
            if still >= self.patience or step == self.iterations:
                break
            pulls = self.pull * draw.random((2, *places.shape))
            speeds = self.inertia * speeds + pulls[0] * (own - places) + pulls[1] * (best - places)
            if np.any(np.asarray(self.slowest) > 0) or np.any(np.isfinite(self.fastest)):
                speeds = np.copysign(np.clip(np.abs(speeds), self.slowest, self.fastest), speeds)
            moved = np.clip(places + speeds, *bounds)
            if self.stops:
                speeds = np.where(moved == places + speeds, speeds, 0.0)
            places = moved
            now = rate(places)
            better = now < scores
            own[better], scores[better] = places[better], now[better]
        return best, best_score
