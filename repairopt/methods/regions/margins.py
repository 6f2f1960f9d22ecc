"""A smaller change that is still proved: the margin shrinks, and boxes are divided where they do not prove it yet.

For each margin the rows of true points have one last layer of least change, with the row of each group that holds in
what is proved. Where an attack finds no point of it below the margin, it is the least change at this margin, and a
margin above 0 is what makes a proof of it possible: boxes that do not prove it get lower lines of activations that are
best for it, and are split where these are not enough. Measured on ACAS Xu 2_6 and 3_1, in the time that cuts of boxes
take (:mod:`.reduce`): about the same change, and none at its margin is smaller; those of cuts cost a third more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from repairopt.network import LastLayer, Leaves

from .last_layer import KEEP, POINT, POINTS, PROVED, RegionSearchState
from .reduce import Proved, change_of, objective_of

STEP = 0.5  # the next margin, as a multiple of the last
NEAR, BEYOND, AGAIN = 0.9, 0.7, 2  # margins not proved and proved that are close; what is tried then, and how often
HOPELESS = 3  # margins that are not proved, of as many, after which cuts are better
ASKED = 0.98  # of the margin, below which a point counts as one that breaks it
CLEAR = 0.02  # of the margin, above which bounds of leaves are to be, so that the check's rounding is covered
ATTACKS = 6  # of the last layer of one margin
BOXES = 200  # that may be sharpened, or split, for each refinement
SHARE, FEW = 0.5, 40  # of the boxes that are left, for one margin; boxes that a margin counts for at least
ALPHA = 10  # gradient steps on the lower lines of activations of a box
TELL = 0.8  # objective, as a multiple of that of the last report, at which the next one is due


def shrink_margin(
    state: RegionSearchState,
    proved: Proved,
    floor: float,
    refinements: int,
    report: Callable[[Proved], None] = lambda _: None,
) -> Proved:
    """Go from a proved last layer to those of smaller margins, as long as they can be proved.

    Args:
        state: The search that found it.
        proved: The proof, at the margin of the program.
        floor: Smallest margin, in units of the outputs.
        refinements: A few hundred boxes are sharpened or split for each.
        report: Called with better proofs.
    """
    program, leaves, left = state.program, proved.leaves, BOXES * refinements
    program.keep_only((program.label == POINT) | (program.label == KEEP))
    best, told, margin, failed, again, tries = proved, proved, program.margin, 0.0, AGAIN, 0
    while left > FEW and margin > floor and not state.late():
        if failed > NEAR * margin:
            if not again:
                break
            failed, again = BEYOND * failed, again - 1  # boxes that were divided for it may prove a step below
        goal = max(floor, (margin * failed) ** 0.5 if failed else STEP * margin)
        if best is proved and not failed and len(leaves) == len(state.lower):
            goal = floor  # no box was split: nothing may be in the way
        leaves, last, used = proved_at(state, goal, best, leaves, int(SHARE * left))
        left -= max(used, FEW)
        if last is None:
            failed, tries = goal, tries + 1
            if best is proved and tries == HOPELESS:
                break
            continue
        margin, best = goal, Proved(last, leaves, objective_of(state, last))
        if best.objective < TELL * told.objective:
            told = best
            report(best)
    return best


def proved_at(
    state: RegionSearchState, margin: float, best: Proved, leaves: Leaves, most: int
) -> tuple[Leaves, LastLayer | None, int]:
    """The last layer of a margin if it can be proved, with the leaves and how many of them had work."""
    used = 0
    state.choose_anew(best.last)
    for _ in range(ATTACKS):
        last = _least_at(state, margin, best.last, leaves)
        if last is None:
            return leaves, None, used
        leaves, now, points, region = _divided(state, leaves, last, most - used)
        used += now
        if points is None:
            return leaves, last, used
        if not len(points):
            break
        state.add_points(state.features(points), region, last, choice=best.last)
    return leaves, None, used


def _values(state: RegionSearchState, last: LastLayer, points: Tensor, region: Tensor) -> Tensor:
    """Value of the worst group at points ``(N, d)`` of regions ``(N,)``."""
    return state.rows.least(state.rows.values(last(state.features(points)[:, :-1]), region), region)


def _least_at(state: RegionSearchState, margin: float, choice: LastLayer, leaves: Leaves) -> LastLayer | None:
    """The least change such that no center of a leaf and no point of an attack is below a margin; None in conflict."""
    state.program.margin = margin
    centers, last = leaves.centers(), None
    for _ in range(ATTACKS):
        last, change = state.propose()
        if change.conflict or state.late():
            return None
        values = _values(state, last, centers, leaves.region)
        worst = values.argsort()[:POINTS]
        worst = worst[values[worst] < ASKED * margin]
        points, region = state.attack(last, ASKED * margin)
        points, region = torch.cat([points, centers[worst]]), torch.cat([region, leaves.region[worst]])
        if not len(points) or not state.add_points(state.features(points), region, last, choice=choice):
            break
    return last


def _divided(
    state: RegionSearchState, leaves: Leaves, last: LastLayer, most: int
) -> tuple[Leaves, int, Tensor | None, Tensor]:
    """Leaves sharpened and split until they prove a last layer, or as many had work as may be.

    Returns:
        The leaves, how many had work, points that break a row and their regions; None for points where all is proved.
    """
    clear = max(PROVED, CLEAR * state.margin)
    waiting, used, none = torch.arange(len(leaves)), 0, torch.zeros(0, dtype=torch.int64)
    while True:
        open_ = waiting[leaves[waiting].least(last) <= clear]
        if not len(open_):
            return leaves, used, None, none
        if used + len(open_) > most or state.late() or bool((leaves.depth[open_] >= state.deepest).any()):
            return leaves, used, leaves.boxes.lower[:0], none
        used += len(open_)
        own = leaves[open_].sharpened(last, ALPHA)
        weak = own.least(last) <= clear
        new = own[~weak]
        if bool(weak.any()):
            own = own[weak]
            cuts = own.cuts(last)
            values, rows = leaves.rows.best(cuts.value, own.region)
            at, row = torch.arange(len(own)), rows.gather(1, values.argmin(1, keepdim=True))[:, 0]
            corner = cuts.corner[at, row]
            points, region = torch.cat([corner, own.centers()]), own.region.repeat(2)
            low = _values(state, last, points, region) < state.margin / 2
            if bool(low.any()):
                return leaves, used, points[low], region[low]
            new = new.join(own.halves(own.best_split(last, cuts.slope[at, row])))
        leaves = leaves.without(open_).join(new)
        waiting = torch.arange(len(leaves) - len(new), len(leaves))


def bounded(state: RegionSearchState, best: Proved, floor: float) -> Proved:
    """The same with its margin, and what true points ask for at least at this margin and at the smallest one.

    Rows are those that hold in what is proved: a last layer that satisfies another row of a group may change less.
    """
    program = state.program
    program.keep_only((program.label == POINT) | (program.label == KEEP))
    values = _values(state, best.last, best.leaves.centers(), best.leaves.region)
    state.attack(best.last)
    margin = min(state.worst, float(values.min()))
    found = []
    for wanted in (margin, min(margin, floor)):
        _least_at(state, wanted, best.last, best.leaves)
        state.choose_anew(best.last)
        held = program.slack(change_of(state, best.last)) >= -1e-9
        program.keep_only((program.label == KEEP) | held)
        change = program.solve()
        found.append(change.objective if change.settled and not change.conflict else 0.0)
    objective = objective_of(state, best.last)
    return replace(best, objective=objective, margin=margin, least=found[0], least_at_all=found[1])
