"""A smaller change that is still proved: on the leaves of a proof the least change is a convex program.

Every leaf asks that its bounds are above 0; what a candidate lacks becomes a cut at the relaxed point where the bound
is taken. Bounds are concave in the last layer, so what is proved lies between what was proved before and the candidate:
the last proved point on this way is kept, and a stop at any time has a proof. Leaves whose cuts have a price are then
split, because the cuts of halves ask for less, and the program is solved again. Rows of true points alone give a lower
bound of what any repair of the last layer must change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.network import LastLayer, Leaves

from .last_layer import CUT, KEEP, POINT, PROVED, RegionSearchState

ROUNDS = 40  # of cuts, on the same leaves
NEW_CUTS = 200  # in a round
SETTLED = 1.01  # objective, as a multiple of that of the last program, at which leaves are split
CLOSE = 1.03  # objective, as a multiple of its lower bound, at which nothing more is gained
WORTH, STALLS = 0.99, 2  # objective, as a multiple of the last one, that counts as no progress; how often in a row
HALVINGS = 6  # on the way from what is proved to a candidate
PUSH, FARTHEST = 0.15, 0.7  # of the way from what is proved to the lower bound, at which leaves are to prove
SPLITS = 300  # of leaves between two programs


@dataclass(frozen=True, eq=False)
class Proved:
    """A last layer with which all leaves are proved.

    Attributes:
        last: The last layer, rounded to the precision of the network.
        leaves: What proves it.
        objective: Mean squared change of the outputs on keep points, and what soft rows cost.
        least: Lower bound of the objective of any last layer that satisfies the rows of true points.
    """

    last: LastLayer
    leaves: Leaves
    objective: float
    least: float = 0.0


def lower_bound(state: RegionSearchState) -> tuple[LastLayer, float]:
    """The last layer that true points and kept rows alone ask for, and its objective: no repair of it changes less.

    The rows are those that were chosen in groups. Where this layer breaks a region, an attack adds points for the next
    time.
    """
    program = state.program
    change = program.part((program.label == POINT) | (program.label == KEEP)).solve()
    first = state.original
    last = LastLayer(first.weight + change.matrix[:, :-1], first.bias + change.matrix[:, -1])
    if state.lowest is None or not torch.equal(state.lowest.weight, last.weight):
        points, region = state.attack(last)
        if len(points):
            state.add_points(state.features(points), region, last)
        state.lowest = last
    return last, change.objective


def reduce_change(
    state: RegionSearchState,
    proved: Proved,
    margin: float,
    refinements: int,
    report: Callable[[Proved], None] = lambda _: None,
) -> Proved:
    """Go from a proved last layer to a smaller change that is proved.

    Args:
        state: The search that found it.
        proved: The proof.
        margin: What bounds must exceed by half, and rows ask for, in units of the outputs.
        refinements: How often leaves with a price are split.
        report: Called with each better proof.
    """
    program = state.program
    program.keep_only(program.label != CUT)
    program.margin, state.push = margin, PUSH
    best, before, stalled = proved, float("inf"), 0
    for refinement in range(refinements + 1):
        better, settled = _on_leaves(state, best, margin)
        lowest, least = lower_bound(state)
        changed, best = better.last is not best.last, replace(better, least=least)
        if changed:
            report(best)
        stalled = stalled + 1 if best.objective > WORTH * before else 0
        before = best.objective
        over = best.objective <= CLOSE * best.least or stalled > STALLS or not settled
        if over or state.late() or refinement == refinements:
            break
        best = _refined(state, best, lowest, margin)
    return best


def _on_leaves(state: RegionSearchState, proved: Proved, margin: float) -> tuple[Proved, bool]:
    """The least change that is proved on the same leaves, nearly; and whether that was reached."""
    leaves, choice = proved.leaves, _choice(proved)
    best = proved
    for _ in range(ROUNDS):
        if state.late():
            return best, False
        last, change = state.propose()
        if change.conflict:
            return best, False
        best = replace(best, objective=objective_of(state, best.last))
        least = _chosen(leaves, last, choice)
        if bool((least > margin / 2).all()):
            return Proved(last, leaves, objective_of(state, last)), True
        best = _on_the_way(state, best, last, choice, margin)
        if best.objective <= SETTLED * change.objective:
            return best, True
        bad = torch.nonzero(least <= margin / 2)[:, 0]
        bad = bad[least[bad].argsort()[:NEW_CUTS]]
        _add(state, leaves, last, choice, bad, margin)
    return best, True


def _choice(proved: Proved) -> Tensor:
    """For each leaf and group the row that is proved, ``(B, G)``."""
    return proved.leaves.rows.best(proved.leaves.bounds(proved.last), proved.leaves.region)[1]


def _chosen(leaves: Leaves, last: LastLayer, choice: Tensor) -> Tensor:
    """Least bound of the chosen rows of each leaf, ``(B,)``."""
    used = leaves.rows.member[leaves.region].any(-1)
    return leaves.bounds(last).gather(1, choice).masked_fill(~used, torch.inf).amin(1)


def _on_the_way(state: RegionSearchState, best: Proved, last: LastLayer, choice: Tensor, margin: float) -> Proved:
    """The last proved of some halvings between what is proved and a candidate that is not."""
    low, high, found = 0.0, 1.0, best
    for _ in range(HALVINGS):
        share = (low + high) / 2
        weight = best.last.weight + share * (last.weight - best.last.weight)
        between = state.rounded(LastLayer(weight, best.last.bias + share * (last.bias - best.last.bias)))
        if bool((_chosen(best.leaves, between, choice) > margin / 4).all()):
            low, found = share, Proved(between, best.leaves, objective_of(state, between))
        else:
            high = share
    return found if found.objective < best.objective else best


def objective_of(state: RegionSearchState, last: LastLayer) -> float:
    """Objective of a last layer: the mean squared change of outputs on keep points, and what soft rows cost."""
    change = torch.cat([last.weight - state.original.weight, (last.bias - state.original.bias)[:, None]], 1)
    return state.program.cost(change)


def _add(state: RegionSearchState, leaves: Leaves, last: LastLayer, choice: Tensor, bad: Tensor, margin: float) -> None:
    """Cuts of some leaves, labelled with these, and rows at the corners where a true point breaks the margin."""
    own = leaves[bad]
    cuts = own.cuts(last)
    features = state.features(cuts.corner.flatten(0, 1)).unflatten(0, cuts.corner.shape[:2])
    at = torch.arange(len(bad))
    used = leaves.rows.member[own.region].any(-1)
    for group in range(choice.shape[1]):
        row = choice[bad, group]
        low = used[:, group] & (cuts.value[at, row] <= margin / 2)
        point = cuts.features[at, row]
        full = torch.cat([point, point.new_ones(len(point), 1)], 1)
        state.add_rows(full[low], own.region[low], row[low], 1.0, -1 - bad[low].numpy())
        true = features[at, row]
        value = own.rows.values(last(true[:, :-1]), own.region)[at, row]
        broken = low & (value < margin)
        state.add_rows(true[broken], own.region[broken], row[broken], 1.0, POINT)


def _refined(state: RegionSearchState, proved: Proved, lowest: LastLayer, margin: float) -> Proved:
    """The same proof with leaves split that do not prove a last layer on the way to the lowest one.

    Where all leaves prove that one in the end, it takes the place of what was proved.
    """
    old, new, push = proved.last, lowest, state.push
    aim = LastLayer(old.weight + push * (new.weight - old.weight), old.bias + push * (new.bias - old.bias))
    aim = state.rounded(aim)
    leaves, budget = proved.leaves, SPLITS
    numbers = torch.arange(len(leaves))
    waiting = torch.nonzero(leaves.least(aim) <= margin / 2)[:, 0]
    while len(waiting) and budget > 0 and not state.late():
        chosen = waiting[:budget]
        own = leaves[chosen]
        cuts = own.cuts(aim)
        values, best = own.rows.best(cuts.value, own.region)
        row = best.gather(1, values.argmin(1, keepdim=True))[:, 0]
        halves = own.halves(own.best_split(aim, cuts.slope[torch.arange(len(own)), row]))
        kept = torch.ones(len(leaves), dtype=torch.bool)
        kept[chosen] = False
        start = int(kept.sum())
        left = kept.cumsum(0)[waiting[budget:]] - 1
        leaves, numbers = leaves[kept].join(halves), torch.cat([numbers[kept], torch.full((len(halves),), -1)])
        waiting = torch.cat([start + torch.nonzero(halves.least(aim) <= margin / 2)[:, 0], left])
        budget -= len(chosen)
    _renumber(state, len(proved.leaves), numbers.numpy())
    proves = [bool((leaves.least(last) > PROVED).all()) for last in (aim, proved.last)]
    state.push = min(FARTHEST, 1.5 * state.push) if proves[0] else state.push / 2
    if proves[0]:
        return Proved(aim, leaves, objective_of(state, aim), proved.least)
    return Proved(proved.last, leaves, proved.objective, proved.least) if proves[1] else proved


def _renumber(state: RegionSearchState, count: int, numbers: Any) -> None:
    """Cuts of leaves that were split are forgotten, others bear their leaf's new number; ``numbers`` are the old."""
    program = state.program
    places = np.full(count, -1)
    places[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
    of_leaf = program.label < 0
    moved = np.where(of_leaf, places[np.clip(-1 - program.label, 0, count - 1)], 0)
    program.label = np.where(of_leaf, -1 - moved, program.label)
    program.keep_only(~of_leaf | (moved >= 0))
