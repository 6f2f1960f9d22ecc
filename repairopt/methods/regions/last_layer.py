"""Regions by the last layer: rows of true and of relaxed points, branch and bound, until everything is proved.

The bound of a leaf is concave in the last layer (see :mod:`repairopt.network.sets.crown`), so what a leaf lacks is a
cut of a quadratic program. First rows at points that break the regions; then leaves are split while their bounds do not
prove a candidate; only where boxes are too many, the margin grows, and only where that does not help, cuts are added:
on ACAS Xu property 8 (2_9) points with a margin left 43 % of the volume open after 300 s and 38,922 boxes, and cuts of
3,984 boxes prove it after 55 s. :mod:`.margins` and :mod:`.reduce` make the change small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from repairopt.network import Frame, LastLayer, Leaves, NetworkSteps, RegionSearch, RowGroups, attack_regions

from .least_change import Change, LeastChange

POINTS = 150  # of the worst points that an attack finds, and as many random ones, become rows at first
HITS = 60  # points of one look at the leaves that become rows
ENOUGH = 30  # new rows of points with half the margin after which the program is solved anew
GROWTH, PATIENCE = 1.7, 1.6  # of the margin, and of the number of leaves at which it grows next
TOO_MANY = 2.0  # times as many leaves, at which the margin grows however far the bounds are from it
CUTS = 200
POINT, CUT, KEEP = 0, 1, 2  # labels of rows
PROVED = 1e-9  # bound above which a leaf counts as proved in the search


@dataclass(eq=False)
class RegionSearchState:
    """A search for a last layer with which all leaves are proved.

    Attributes:
        network: The network, as steps.
        lower: The regions, ``(Q, d)``.
        upper: ``(Q, d)``.
        frame: What they stand for, where they are not the inputs themselves.
        search: How hard they are attacked.
        leaves: What the regions are divided into.
        original: The last layer before.
        program: The rows at hand.
        largest: Margin beyond which it does not grow.
        rounded: From a last layer to the same in the precision of the network.
        late: Whether the time is over.
        keep: Adds soft rows that a last layer breaks, and says how many; None for none.
        most: Leaves at most.
        deepest: Splits of a leaf at most.
        grow_at: Leaves at which the margin grows.
        give_up_at: Leaves at which a first proof is given up, because the margin did not help.
        alpha_steps: Gradient steps on the lower lines of activations of leaves that are not proved; 0 for none.
        counts: What was done.
        worst: Least value that the last attack found.
        lowest: The last layer that true points alone ask for, where it was attacked.
        points: Features, regions and groups that rows of points are of, and the share of the margin that they ask for.
    """

    network: NetworkSteps
    lower: Tensor
    upper: Tensor
    search: RegionSearch
    leaves: Leaves
    original: LastLayer
    program: LeastChange
    largest: float
    rounded: Callable[[LastLayer], LastLayer]
    late: Callable[[], bool]
    frame: Frame | None = None
    keep: Callable[[Tensor], int] | None = None
    most: int = 60_000
    deepest: int = 40
    grow_at: float = 3000
    give_up_at: float = float("inf")
    alpha_steps: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("rounds", "points", "cuts", "splits"), 0))
    worst: float = 0.0
    lowest: LastLayer | None = None
    points: list[tuple[Tensor, Tensor, Tensor, float]] = field(default_factory=list)

    @property
    def margin(self) -> float:
        """What rows of points ask for."""
        return self.program.margin

    @property
    def rows(self) -> RowGroups:
        """What must hold, in terms of the last layer's results."""
        return self.leaves.rows

    @property
    def given_up(self) -> bool:
        """Whether leaves are too many for a first proof."""
        return len(self.leaves) > self.give_up_at

    def features(self, inputs: Tensor) -> Tensor:
        """What the last layer reads, ``(N, h)``, with a 1 behind it."""
        found = self.network.forward(inputs, self.network.features_at)
        return torch.cat([found, found.new_ones(len(found), 1)], 1)

    def propose(self) -> tuple[LastLayer, Change]:
        """The last layer of least change for the rows at hand, rounded."""
        change = self.program.solve()
        for _ in range(6):
            if self.keep is None or not self.keep(change.matrix):
                break
            change = self.program.solve()
        first = self.original
        made = LastLayer(first.weight + change.matrix[:, :-1], first.bias + change.matrix[:, -1])
        return self.rounded(made), change

    def add_points(
        self, features: Tensor, region: Tensor, last: LastLayer, share: float = 1.0, choice: LastLayer | None = None
    ) -> int:
        """Rows at points where a group is below a share of the margin; how many.

        Of each such group it is the row that is best, with ``choice`` where that is given.
        """
        values, rows = self.rows.best(self.rows.values(last(features[:, :-1]), region), region)
        if choice is not None:
            rows = self.rows.best(self.rows.values(choice(features[:, :-1]), region), region)[1]
        count = 0
        for group in range(values.shape[1]):
            low = values[:, group] < share * self.margin
            count += self.add_rows(features[low], region[low], rows[low, group], share, POINT)
            self.points.append((features[low], region[low], torch.full((int(low.sum()),), group), share))
        self.counts["points"] += count
        return count

    def choose_anew(self, choice: LastLayer) -> None:
        """For each point at hand the row of its group that is best with a last layer, in place of the one before.

        A last layer that satisfies the rows as they are satisfies those that are best with it: the least change of
        these is no larger.
        """
        self.program.keep_only(self.program.label != POINT)
        for features, region, group, share in self.points:
            rows = self.rows.best(self.rows.values(choice(features[:, :-1]), region), region)[1]
            self.add_rows(features, region, rows.gather(1, group[:, None])[:, 0], share, POINT)

    def add_cuts(self, leaves: Leaves, last: LastLayer) -> int:
        """Rows at the relaxed points where bounds of groups are taken that do not prove these."""
        cuts = leaves.cuts(last)
        values, rows = self.rows.best(cuts.value, leaves.region)
        at, count = torch.arange(len(leaves)), 0
        for group in range(values.shape[1]):
            low = values[:, group] <= PROVED
            features = cuts.features[at, rows[:, group]][low]
            full = torch.cat([features, features.new_ones(len(features), 1)], 1)
            count += self.add_rows(full, leaves.region[low], rows[low, group], 0.5, CUT)
        self.counts["cuts"] += count
        return count

    def add_rows(self, features: Tensor, region: Tensor, row: Tensor, share: float, label: object) -> int:
        """Rows that ask for a share of the margin: features with a 1 behind them ``(B, h + 1)``, region and row."""
        coefficients, offset = self.rows.matrix[region, row], self.rows.offset[region, row]
        before = (coefficients * self.original(features[:, :-1])).sum(1)
        self.program.add(coefficients, features, offset - before, share, label=label)
        return len(features)

    def first_proof(self) -> tuple[LastLayer, Change] | None:
        """A last layer with which all leaves are proved; None where rows contradict each other or that is given up."""
        while not self.late():
            self.counts["rounds"] += 1
            last, change = self.propose()
            if change.conflict or self.given_up:
                break
            if self._prove(last):
                return last, change
        return None

    def _prove(self, last: LastLayer) -> bool:
        """Split leaves until all are proved, or rows or a larger margin were added."""
        waiting = torch.arange(len(self.leaves))
        while not self.late() and not self.given_up:
            least = self.leaves[waiting].least(last)
            open_ = waiting[least <= PROVED]
            if not len(open_):
                return bool((self.leaves.least(last) > PROVED).all())
            leaves = self.leaves[open_]
            if self.alpha_steps:
                leaves = leaves.sharpened(last, self.alpha_steps)
                self.leaves = self.leaves.without(open_).join(leaves)
                open_ = torch.arange(len(self.leaves) - len(leaves), len(self.leaves))
                still = leaves.least(last) <= PROVED
                open_, leaves = open_[still], leaves[still]
                if not len(open_):
                    return bool((self.leaves.least(last) > PROVED).all())
            cuts = leaves.cuts(last)
            values, best = self.rows.best(cuts.value, leaves.region)
            row = best.gather(1, values.argmin(1, keepdim=True))[:, 0]
            at = torch.arange(len(leaves))
            if self._hit(leaves, cuts.corner[at, row], last) or self._grown(values.amin(1)):
                return False
            can, room = leaves.depth < self.deepest, max(self.most - len(self.leaves), 0)
            can[values.amin(1).masked_fill(~can, torch.inf).argsort()[room:]] = False
            if not bool(can.all()):
                worst = values.amin(1).masked_fill(can, torch.inf).argsort()[: min(CUTS, int((~can).sum()))]
                self.add_cuts(leaves[worst], last)
                if not bool(can.any()):
                    return False
            chosen, slope = leaves[can], cuts.slope[at, row][can]
            halves = chosen.halves(chosen.best_split(last, slope))
            self.counts["splits"] += len(chosen)
            self.leaves = self.leaves.without(open_[can]).join(halves)
            if not bool(can.all()):
                return False
            waiting = torch.arange(len(self.leaves) - len(halves), len(self.leaves))
        return False

    def _hit(self, leaves: Leaves, corner: Tensor, last: LastLayer) -> bool:
        """Add rows at corners and centers where values are below half of the margin; whether they matter."""
        features = self.features(torch.cat([corner, leaves.centers()]))
        region = torch.cat([leaves.region, leaves.region])
        value = self.rows.least(self.rows.values(last(features[:, :-1]), region), region)
        hit = torch.nonzero(value < self.margin / 2)[:, 0]
        hit = hit[value[hit].argsort()[:HITS]]
        if not len(hit):
            return False
        count = self.add_points(features[hit], region[hit], last, 0.75)
        return bool((value[hit] <= PROVED).any()) or count >= ENOUGH

    def _grown(self, least: Tensor) -> bool:
        """Whether the margin grew, because leaves are many and what they lack is about the margin."""
        few = len(self.leaves) <= self.grow_at or self.margin >= self.largest
        far = float(-least.median()) >= 1.5 * self.margin and len(self.leaves) < TOO_MANY * self.grow_at
        if few or far:
            return False
        self.program.margin *= min(GROWTH, self.largest / self.margin)
        self.grow_at *= PATIENCE
        return True

    def attack(self, last: LastLayer, below: float = 0.0) -> tuple[Tensor, Tensor]:
        """Points at which values of a last layer are not above a number, at most some hundred, and their regions."""
        raised = replace(self.rows, offset=self.rows.offset + below)
        points, region, worst = attack_regions(
            self.network, self.lower, self.upper, raised, self.search, last, self.frame
        )
        self.worst = float(worst.min()) + below
        if len(points) > 2 * POINTS:
            values = self.rows.least(self.rows.values(last(self.features(points)[:, :-1]), region), region)
            draw = torch.Generator().manual_seed(self.search.seed)
            some = torch.randperm(len(points), generator=draw)[:POINTS]
            chosen = torch.cat([values.argsort()[:POINTS], some]).unique()
            points, region = points[chosen], region[chosen]
        return points, region
