"""Differential evolution and swarms over the values of some weights: what the family of Arachne searches with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.network import Array

from .part import Part
from .particles import Particles

PHI = 4.1  # sum of both pulls before constriction
CONSTRICTION = 2 / (PHI - 2 + np.sqrt(PHI**2 - 4 * PHI))  # Clerc and Kennedy: 0.7298
STILL = 10  # moves or generations without a better value, at least
Fitness = Callable[[Array], Array]  # of values (K, m), larger is better


@dataclass(frozen=True, eq=False)
class Siblings:
    """The values of some weights, and for each what the weights of its layer are like, all ``(m,)``.

    Attributes:
        part: The weights.
        mean: Mean of the weights of the parameter that each is of.
        spread: Their standard deviation.
        low: The least of them.
        high: The greatest of them.
    """

    part: Part
    mean: Array
    spread: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, part: Part) -> Siblings:
        """Those of the weights of a part."""
        own = dict(part.engine.model.named_parameters())
        rows = []
        for name, indices in part.engine.indices.items():
            all_of = own[name].detach().double().cpu()
            numbers = [all_of.mean(), all_of.std(correction=0), all_of.min(), all_of.max()]
            rows.append(np.tile([float(one) for one in numbers], (len(indices), 1)))
        return cls(part, *np.concatenate(rows).T)

    def drawn(self, count: int, draw: np.random.Generator) -> Array:
        """Values ``(count, m)``, each from the normal distribution of its siblings."""
        return draw.normal(self.mean, self.spread, (count, len(self.mean)))


def evolve(
    siblings: Siblings,
    fitness: Fitness,
    *,
    population: int,
    generations: int,
    seed: int,
    found: Callable[[int, Array, float], None],
) -> tuple[Array, float]:
    """Differential evolution as in version 2 of Arachne: rand/1/bin, scale drawn from 0.5 to 1, crossover 0.7.

    Args:
        siblings: The weights.
        fitness: Larger is better.
        population: Values in a generation; the first are drawn from the siblings' normal distribution.
        generations: At most so many; fewer where the best stays for more than ``max(10, generations / 10)``.
        seed: Of all draws.
        found: Called with generation, values and fitness of each new best.

    Returns:
        The best values ``(m,)`` and their fitness.
    """
    from scipy.optimize import differential_evolution

    most = max(STILL, generations / 10)
    state: dict[str, Any] = {"best": np.inf, "still": 0, "generation": 0}

    def after(values: Array, convergence: float) -> bool:
        state["generation"] += 1
        now = state["now"]
        better = now < state["best"]
        state["still"] = 0 if better else state["still"] + 1
        if better:
            state["best"] = now
            found(state["generation"], values, -now)
        return bool(state["still"] > most)

    def cost(values: Array) -> Array:
        rated = -fitness(values.T)
        state["now"] = min(state.get("now", np.inf), float(rated.min()))
        return rated

    low = np.minimum(2 * siblings.low, 2 * siblings.high)
    high = np.maximum(2 * siblings.low, 2 * siblings.high)
    high = np.where(high > low, high, low + 1e-9)
    begin = np.clip(siblings.drawn(max(5, population), np.random.default_rng(seed)), low, high)
    made = differential_evolution(
        cost,
        list(zip(low, high, strict=True)),
        strategy="rand1bin",
        maxiter=generations,
        mutation=(0.5, 1.0),
        recombination=0.7,
        tol=0.0,
        atol=-1.0,
        seed=seed,
        callback=after,
        polish=False,
        init=begin,
        updating="deferred",
        vectorized=True,
    )
    return np.asarray(made.x), -float(made.fun)


def swarm_of_values(
    siblings: Siblings,
    fitness: Fitness,
    *,
    particles: int,
    iterations: int,
    seed: int,
    found: Callable[[int, Array, float], None],
) -> tuple[Array, float]:
    """The swarm of version 1 of Arachne: constriction for phi = 4.1, speeds between a fifth and five times the range.

    The range is that of the weights of each weight's layer. Places begin as draws from the normal distribution of
    these, speeds at 0. The search ends after 10 moves without a better value.
    """
    draw, width = np.random.default_rng(seed), siblings.high - siblings.low
    rules = Particles(
        iterations=iterations,
        patience=STILL,
        inertia=CONSTRICTION,
        pull=CONSTRICTION * PHI / 2,
        slowest=width / 5,
        fastest=5 * width,
        stops=False,
    )
    values, cost = rules.move(
        lambda places: -fitness(places),
        siblings.drawn(particles, draw),
        draw,
        found=lambda step, place, score: found(step, place, -score),
    )
    return values, -cost
