"""A smaller change that is still proved: on the leaves of a proof the least change is a convex program.

Every leaf asks that its bounds are above 0; what a candidate lacks becomes a cut at the relaxed point where the bound
is taken. Bounds are concave in the last layer, so what is proved lies between what was proved before and the candidate:
the last proved point on this way is kept, and a stop at any time has a proof. Rows of true points alone give a lower
bound of what any repair of the last layer must change. Leaves that do not prove a last layer on the way to that one get
lower lines of activations that are best for it, are split where these are not enough, and the program is solved again.
Measured on ACAS Xu 5_1, in somewhat less time: a change that costs 5.8e-6 with splits of 300 leaves a round and the
usual lines, 2.5e-6 with these; at least 1.2e-6 is needed.
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
from .least_change import Change

ROUNDS = 40  # of cuts, on the same leaves
NEW_CUTS = 200  # in a round
SETTLED = 1.01  # objective, as a multiple of that of the last program, at which leaves are split
CLOSE = 1.03  # objective, as a multiple of its lower bound, at which nothing more is gained
WORTH, STALLS = 0.99, 2  # objective, as a multiple of the last one, that counts as no progress; how often in a row
NEAR, NEAR_SHARE = 200, 0.1  # leaves, or share of them, that candidates are bounded on
TELL = 0.8  # objective, as a multiple of that of the last report, at which the next one is due
ATTACKS = 4  # of the last layer that true points ask for, for one lower bound
STEPS = 3  # on the way from what is proved to a candidate
PUSH = 0.3  # of the way from what is proved to the lower bound, at which leaves are to prove
ALPHA = 10  # gradient steps on the lower lines of new leaves
SPLITS = 100  # of leaves between two programs


@dataclass(frozen=True, eq=False)
class Proved:
    """A last layer with which all leaves are proved.

    Attributes:
        last: The last layer, rounded to the precision of the network.
        leaves: What proves it.
        objective: Mean squared change of the outputs on keep points, and what soft rows cost.
        least: Lower bound of the objective of any last layer that satisfies the rows of true points, at the margin that
            this one keeps where ``margin`` is set.
        margin: Least value that an attack finds, in units of the outputs.
        least_at_all: The lower bound at the smallest margin.
    """

    last: LastLayer
    leaves: Leaves
    objective: float
    least: float = 0.0
    margin: float = 0.0
    least_at_all: float = 0.0


def lower_bound(state: RegionSearchState) -> float:
    """Objective of the last layer that true points and kept rows alone ask for: no repair of it changes less.

    The rows are those that were chosen in groups. Where this layer breaks a region, an attack adds points, some times.
    0 where the program did not settle.
    """
    first, change = state.original, None
    for _ in range(ATTACKS):
        program = state.program
        change = program.part((program.label == POINT) | (program.label == KEEP)).solve()
        last = LastLayer(first.weight + change.matrix[:, :-1], first.bias + change.matrix[:, -1])
        if state.lowest is not None and torch.equal(state.lowest.weight, last.weight):
            break
        state.lowest = last
        points, region = state.attack(last)
        if not len(points):
            break
        state.add_points(state.features(points), region, last)
    assert change is not None
    return change.objective if change.settled and not change.conflict else 0.0


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
    program.margin = margin
    state.choose_anew(proved.last)
    best, leaves, stalled = replace(proved, least=lower_bound(state)), proved.leaves, 0
    told, before = best, float("inf")
    for refinement in range(refinements + 1):
        best, change = _on_leaves(state, best, leaves, margin)
        state.choose_anew(best.last)
        best = replace(best, least=lower_bound(state))
        if best.objective < TELL * told.objective:
            told = best
            report(best)
        stalled = stalled + 1 if best.objective > WORTH * before else 0
        before = best.objective
        over = best.objective <= CLOSE * best.least or stalled > STALLS or state.late()
        if over or change is None or refinement == refinements:
            break
        leaves = _refined(state, leaves, best, margin)
    if best.last is not told.last or best.least > told.least:
        report(best)
    return best


def _on_leaves(state: RegionSearchState, best: Proved, leaves: Leaves, margin: float) -> tuple[Proved, Change | None]:
    """The least change that is proved on some leaves, nearly; and the last change of the program, if that is so.

    Most leaves are never in the way. So candidates are bounded on those that are near to be, and on all only at the
    end; what is in the way there joins them.

    Args:
        state: The search.
        best: What is proved, on these leaves or on those that they were split from.
        leaves: What is to prove it.
        margin: As in :func:`reduce_change`.
    """
    start = leaves.bounds(best.last)
    choice = _choice(state, best.last, leaves, start)
    _forget_others(state, choice)
    known = _least_of(leaves, start, choice)
    near = torch.zeros(len(leaves), dtype=torch.bool)
    near[known.argsort()[: max(NEAR, int(NEAR_SHARE * len(leaves)))]] = True
    if bool((known > PROVED).all()):
        best = replace(best, leaves=leaves)
    while True:
        numbers = torch.nonzero(near)[:, 0]
        part = _Part(leaves[numbers], choice[numbers], known[numbers], numbers)
        found, change = _on_part(state, best, part, margin)
        if found.last is best.last:
            return best, change
        least = _chosen(leaves, found.last, choice)
        failed = least <= PROVED
        if not bool(failed.any()):
            return replace(found, leaves=leaves), change
        wider = near | failed | (least <= margin)
        if state.late() or torch.equal(wider, near):
            return best, None
        near = wider


@dataclass(frozen=True, eq=False)
class _Part:
    """Some leaves, the rows that are chosen on them, their bounds at what is proved, their numbers among all."""

    leaves: Leaves
    choice: Tensor
    known: Tensor
    numbers: Tensor


def _on_part(state: RegionSearchState, best: Proved, part: _Part, margin: float) -> tuple[Proved, Change | None]:
    """As :func:`_on_leaves`, where only some leaves ask for something."""
    inside, known = bool((part.known > PROVED).all()), part.known
    for _ in range(ROUNDS):
        if state.late():
            return best, None
        last, change = state.propose()
        if change.conflict:
            return best, None
        best = replace(best, objective=objective_of(state, best.last))
        least = _chosen(part.leaves, last, part.choice)
        if bool((least > margin / 2).all()):
            return replace(best, last=last, objective=objective_of(state, last)), change
        if inside:
            best, known = _on_the_way(state, best, part, known, last, least, margin)
            if best.objective <= SETTLED * change.objective:
                return best, change
        bad = torch.nonzero(least <= margin / 2)[:, 0]
        bad = bad[least[bad].argsort()[:NEW_CUTS]]
        _add(state, part, last, bad, margin)
    return best, change


def _aim(state: RegionSearchState, last: LastLayer) -> LastLayer:
    """A last layer on the way from what is proved to the one that true points ask for."""
    new = state.lowest
    assert new is not None
    return LastLayer(last.weight + PUSH * (new.weight - last.weight), last.bias + PUSH * (new.bias - last.bias))


def _choice(state: RegionSearchState, last: LastLayer, leaves: Leaves, bounds: Tensor) -> Tensor:
    """For each leaf and group the row that is to be proved, ``(B, G)``.

    It is the one that proves most at a last layer and on the way from it, of those that prove that last layer.
    """
    rows, region = leaves.rows, leaves.region
    several = torch.nonzero(rows.member[region].sum(-1).amax(-1) > 1)[:, 0]
    both = bounds.clone()
    if len(several):
        both[several] = torch.minimum(bounds[several], leaves[several].bounds(_aim(state, last)))
    value, choice = rows.best(both.masked_fill(bounds <= PROVED, -torch.inf), region)
    return torch.where(value == -torch.inf, rows.best(bounds, region)[1], choice)


def _forget_others(state: RegionSearchState, choice: Tensor) -> None:
    """Forget cuts of rows that are not to be proved any more."""
    program, count = state.program, state.rows.offset.shape[1]
    of_leaf = program.label < 0
    leaf, row = np.divmod(np.where(of_leaf, -1 - program.label, 0), count)
    wanted = (choice.numpy()[leaf] == row[:, None]).any(1)
    program.keep_only(~of_leaf | wanted)


def _least_of(leaves: Leaves, bounds: Tensor, choice: Tensor) -> Tensor:
    """Least bound of the chosen rows of each leaf, ``(B,)``."""
    used = leaves.rows.member[leaves.region].any(-1)
    return bounds.gather(1, choice).masked_fill(~used, torch.inf).amin(1)


def _chosen(leaves: Leaves, last: LastLayer, choice: Tensor) -> Tensor:
    return _least_of(leaves, leaves.bounds(last), choice)


def _on_the_way(
    state: RegionSearchState, best: Proved, part: _Part, known: Tensor, last: LastLayer, least: Tensor, margin: float
) -> tuple[Proved, Tensor]:
    """A proved point on the way from what is proved to a candidate that is not, and the bounds there.

    Bounds of chosen rows are concave on the way: leaves that prove both ends prove all between, and of the others the
    chord says how far they do at least. From there on the chord to the end says more.
    """
    floor, share = margin / 4, 0.0
    open_ = torch.nonzero(least <= floor)[:, 0]
    if not len(open_):
        open_ = least.argsort()[:1]
    at, there, leaves = known[open_], least[open_], part.leaves[open_]
    old, new = best.last, last
    found = old
    for _ in range(STEPS):
        room = ((at - floor) / (at - there).clamp_min(1e-300)).clamp(0, 1)
        step = float(room.min())
        if step * (1 - share) < 1e-3:
            break
        share += step * (1 - share)
        weight = old.weight + share * (new.weight - old.weight)
        found = state.rounded(LastLayer(weight, old.bias + share * (new.bias - old.bias)))
        at = _chosen(leaves, found, part.choice[open_])
    if found is old or not bool((at > PROVED).all()):
        return best, known
    objective = objective_of(state, found)
    if objective >= best.objective:
        return best, known
    between = (1 - share) * known + share * least  # at least, by concavity
    between[open_] = at
    return replace(best, last=found, objective=objective), between


def objective_of(state: RegionSearchState, last: LastLayer) -> float:
    """Objective of a last layer: the mean squared change of outputs on keep points, and what soft rows cost."""
    return state.program.cost(change_of(state, last))


def change_of(state: RegionSearchState, last: LastLayer) -> Tensor:
    """Weights and bias of a last layer less those before, ``(k, h + 1)``."""
    first = state.original
    return torch.cat([last.weight - first.weight, (last.bias - first.bias)[:, None]], 1)


def _add(state: RegionSearchState, part: _Part, last: LastLayer, bad: Tensor, margin: float) -> None:
    """Cuts of some leaves, labelled with these, and rows at the corners where a true point breaks the margin."""
    own = part.leaves[bad]
    cuts = own.cuts(last)
    features = state.features(cuts.corner.flatten(0, 1)).unflatten(0, cuts.corner.shape[:2])
    at = torch.arange(len(bad))
    used, count = own.rows.member[own.region].any(-1), own.rows.offset.shape[1]
    for group in range(part.choice.shape[1]):
        row = part.choice[bad, group]
        low = used[:, group] & (cuts.value[at, row] <= margin / 2)
        point = cuts.features[at, row]
        full = torch.cat([point, point.new_ones(len(point), 1)], 1)
        label = -1 - (part.numbers[bad] * count + row)[low].numpy()
        state.add_rows(full[low], own.region[low], row[low], 1.0, label)
        true = features[at, row]
        value = own.rows.values(last(true[:, :-1]), own.region)[at, row]
        broken = low & (value < margin)
        alone = own.rows.member[own.region, group].sum(-1) == 1  # else another row may hold there: no bound from below
        kind = np.where(alone[broken].numpy(), POINT, -1 - (part.numbers[bad] * count + row)[broken].numpy())
        state.add_rows(true[broken], own.region[broken], row[broken], 1.0, kind)


def _refined(state: RegionSearchState, leaves: Leaves, best: Proved, margin: float) -> Leaves:
    """The leaves with those sharpened, and split where that is not enough, that are in the way of a smaller change."""
    old, aim = best.last, _aim(state, best.last)
    least = leaves.least(aim)
    chosen = torch.nonzero(least <= margin)[:, 0]  # what cuts ask for, at least
    chosen = chosen[least[chosen].argsort()[:SPLITS]]
    if not len(chosen):
        return leaves
    own = leaves[chosen]
    own = replace(own, boxes=replace(own.boxes, shares=own.boxes.used_shares()))
    sharp = _sharpened(own, aim, old)
    weak = sharp.least(aim) <= margin
    if bool(weak.any()):
        sharp = sharp[~weak].join(_sharpened(sharp[weak].halved(aim), aim, old))
    kept = torch.ones(len(leaves), dtype=torch.bool)
    kept[chosen] = False
    numbers = torch.cat([torch.arange(len(leaves))[kept], torch.full((len(sharp),), -1)])
    _renumber(state, len(leaves), numbers.numpy())
    return leaves[kept].join(sharp)


def _sharpened(leaves: Leaves, aim: LastLayer, proved: LastLayer) -> Leaves:
    """Leaves with lines that prove as much as they can of a last layer, where they still prove another one."""
    made = leaves.sharpened(aim, ALPHA)
    lost = (made.least(proved) <= PROVED) & (leaves.least(proved) > PROVED)
    if not bool(lost.any()):
        return made
    before, after = leaves.boxes.used_shares(), made.boxes.used_shares()
    shares = {index: torch.where(lost[:, None], before[index], after[index]) for index in after}
    return replace(made, boxes=replace(made.boxes, shares=shares))


def _renumber(state: RegionSearchState, count: int, numbers: Any) -> None:
    """Cuts of leaves that changed are forgotten, others bear their leaf's new number; ``numbers`` are the old."""
    program, rows = state.program, state.rows.offset.shape[1]
    places = np.full(count, -1)
    places[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
    of_leaf = program.label < 0
    leaf, row = np.divmod(np.where(of_leaf, -1 - program.label, 0), rows)
    moved = places[leaf]
    program.label = np.where(of_leaf, -1 - (moved * rows + row), program.label)
    program.keep_only(~of_leaf | (moved >= 0))
