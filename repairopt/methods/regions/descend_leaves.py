"""Regions of few dimensions by all layers: gradient steps on the bounds of the boxes that the regions are divided into.

Bounds of whole regions say nothing of use where regions are large. So these are divided first, and the lower lines of
activations, which each box has of its own (alpha-CROWN), move with the weights: a network whose boxes prove it is found
with a small change of its outputs. The price of this change starts high and falls while boxes are open. After the first
proof it rises and falls with what is proved, boxes stay as they were divided, steps become smaller, and the cheapest
proof stands. Measured on a controller of 4-64-64-2 (seed 3): boxes of the last layer alone ask for a margin that costs
0.012 of mean squared error; the first proof with all layers costs 0.0014, the last one 0.0008, and 0.0006 where the
last layer finishes it on the way back (:mod:`.margins`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import torch
from torch import Tensor

from repairopt.network import LastLayer, Leaves, NetworkSteps, RowGroups, own_last_layer, relax
from repairopt.specify import samples_in

from .keep_points import KeepRows
from .last_layer import PROVED, RegionSearchState
from .margins import proved_at
from .reduce import Proved

BATCH, KEPT = 64, 512  # boxes, and keep points, of a step
LOOK = 30  # steps after which boxes are bounded anew and divided
MANY = 0.1  # share of the boxes that are open, above which it is the weights that must move, not the boxes
FALL, DROP = 1.15, 1.3  # of the price of the change at each look that boxes are open, few of them or many
RISE, CALM = 1.15, 0.9  # of that price at each look that all are proved; of the steps, at each after the first proof
GAIN, STALL = 0.98, 150  # cost, as a multiple of the last one, that counts as a gain; steps without one at the end
MORE, TURNS = 4, 10  # boxes after the first proof, as a multiple of those for it; splits of one box at a look
JUMP = 0.03  # change of the outputs by the first step, in their deviations
NEAR, FEW = 2.0, 200  # margins below which a box is trained on; boxes at least
ALPHA, RATE = 10, 0.1  # steps on the lower lines of open boxes at a look; step of these lines with the weights
COARSE = 1.0  # what bounds lack on average, in deviations of the outputs, from which boxes are too coarse
PROBE, FAR = 30, 10.0  # the same for some boxes that are looked at before
FIRST, TRIES = 0.7, 4  # share of the way from the weights before that is tried first; how many are
FINISH = 4  # boxes that the last layer may divide there, as a multiple of those of the descent
WISH = 1.0  # price of what wishes miss on average, in deviations, as a multiple of that of the change
DECAY = (0.9, 0.99)  # of Adam's moments


@dataclass(frozen=True)
class LeafDescent:
    """How the weights of all layers are moved where regions are divided into boxes.

    Attributes:
        leaves: Boxes at first.
        steps: At most until boxes prove the regions.
        after: Steps after the first proof, to a smaller change.
        keep: First price of the mean squared change of the outputs, in deviations, on keep points.
        margin: What bounds are pushed to, in deviations of the outputs.
    """

    leaves: int = 1000
    steps: int = 600
    after: int = 450
    keep: float = 20.0
    margin: float = 0.02


@dataclass(eq=False)
class LeafTraining:
    """Weights that move, and the leaves that are to prove them.

    Attributes:
        network: The network, refreshed with the weights at each look.
        weights: Those that move, by name, as they are.
        root: The regions, as leaves.
        rows: What must hold of the outputs.
        keep: Inputs on which outputs stay, ``(N, d)``.
        wishes: Rows of constraints by sample.
        spread: Mean deviation of the outputs.
        settings: Of the steps.
        late: Whether the time is over.
        seed: Chooses batches.
        leaves: What the regions are divided into.
        steps: Taken.
    """

    network: NetworkSteps
    weights: Mapping[str, Tensor]
    root: Leaves
    rows: RowGroups
    keep: Tensor
    wishes: Sequence[KeepRows]
    spread: float
    settings: LeafDescent
    late: Callable[[], bool]
    seed: int
    leaves: Leaves = field(init=False)
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.before = self.network.forward(self.keep)
        self.inputs = [one.constraint.inputs.detach().cpu().double().flatten(1) for one in self.wishes]
        self.own = {name: value.detach().double().clone().requires_grad_() for name, value in self.weights.items()}
        self.moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in self.own.items()}
        self.draw = torch.Generator().manual_seed(self.seed)
        self.size, self.cost, self.gained, self.best, self.proved = 1.0, inf, inf, dict(self.weights), self.root

    def run(self) -> bool:
        """Move weights until all leaves are proved, then on to a smaller change; whether they were."""
        settings, price, end = self.settings, self.settings.keep, self.settings.steps
        last, few = own_last_layer(self.network)[0], self.root
        while len(few) < PROBE:
            few = few.halved(last)
        self.leaves = few
        if self._lacks(few.least(last)) > FAR:
            return False
        self.leaves = grown(self.root, last, settings.leaves, self.late)
        bound = self.leaves.least(last)
        if self._lacks(bound) > COARSE:
            return False
        shares = self.leaves.boxes.used_shares()
        while self.steps < min(end, self.gained + STALL) and not self.late():
            for _ in range(LOOK):
                self._step(bound, shares, price)
            self.network.refresh({name: value.detach() for name, value in self.own.items()})
            bound = self._divided(shares)
            many = float((bound <= PROVED).double().mean())
            if many == 0:
                end = self.steps + settings.after if self.cost == inf else end
                self._remember()
            if self.cost < inf:
                self.size *= CALM
            price *= RISE if many == 0 else 1 / (DROP if many > MANY else FALL)
            shares = {index: share.clone() for index, share in self.leaves.boxes.used_shares().items()}
        if self.cost == inf:
            self.best = {name: value.detach().clone() for name, value in self.own.items()}
        return self.cost < inf

    def _lacks(self, bound: Tensor) -> float:
        """What bounds lack on average, in deviations: so coarse boxes may say nothing of how weights must move."""
        return float((-bound).clamp_min(0).mean()) / self.spread

    def _divided(self, shares: Mapping[int, Tensor]) -> Tensor:
        """Bounds of the regions anew, divided from the start until they are proved; then of the leaves at hand."""
        last, most = own_last_layer(self.network)[0], self.settings.leaves
        if self.cost == inf:
            self.leaves = grown(renewed(self.root, self.network, self.rows), last, most, self.late)
            return self.leaves.least(last)
        leaves = renewed(self.leaves, self.network, self.rows, shares)
        bound = leaves.least(last)
        few = 0 < int((bound <= PROVED).sum()) <= MANY * len(leaves)
        self.leaves = grown(leaves, last, MORE * most, self.late, TURNS) if few else leaves
        return self.leaves.least(last) if few else bound

    def _remember(self) -> None:
        """Keep the weights of now, which are proved, if they cost less than those kept."""
        cost = self.change(self.network.forward(self.keep)) ** 2 + WISH * float(self._missed(whole=True))
        if cost < GAIN * self.cost:
            self.gained = self.steps
        if cost < self.cost:
            self.cost, self.best = cost, {name: value.detach().clone() for name, value in self.own.items()}
            self.proved = self.leaves

    def between(self, share: float) -> dict[str, Tensor]:
        """Weights on the way from those before, at 0, to those that were reached, at 1."""
        return {name: old + share * (self.best[name] - old) for name, old in self.weights.items()}

    def change(self, outputs: Tensor) -> float:
        """Root mean square change of outputs ``(N, k)`` on the keep points, in deviations."""
        return float(((outputs - self.before) / self.spread).square().mean().sqrt())

    def broken(self, last: LastLayer) -> float:
        """Share of the samples of wishes that the network of today breaks with a last layer; the worst wish's."""
        worst, (_, matrix, offset) = 0.0, own_last_layer(self.network)
        for one, inputs in zip(self.wishes, self.inputs, strict=True):
            samples = samples_in(one.constraint)
            features = self.network.forward(inputs[samples], self.network.features_at)
            margins = one.constraint.margins_of(last(features) @ matrix.T + offset, samples)
            worst = max(worst, float((margins < 0).any(1).double().mean()))
        return worst

    def _step(self, bound: Tensor, shares: dict[int, Tensor], price: float) -> None:
        """One step of the weights and of the lines of some boxes; their bounds and lines are written in place."""
        margin = self.settings.margin * self.spread
        near = bound.argsort()[: max(FEW, int((bound < NEAR * margin).sum()))]
        chosen = near[torch.randint(len(near), (BATCH,), generator=self.draw)]
        some = torch.randint(len(self.keep), (KEPT,), generator=self.draw)
        own = {index: share[chosen].clone().requires_grad_() for index, share in shares.items()}
        with torch.enable_grad():
            self.network.refresh(self.own)
            low = self._bounds(chosen, own)
            lack = self.settings.margin * (1 - low / margin).clamp_min(0).log1p().mean()
            moved = ((self.network.forward(self.keep[some]) - self.before[some]) / self.spread).square().mean()
            loss = lack + price * (moved + WISH * self._missed())
            slopes = torch.autograd.grad(loss, [*self.own.values(), *own.values()])
        bound[chosen] = low.detach()
        self.steps += 1
        self._move(dict(zip(self.own, slopes, strict=False)))
        for (index, share), slope in zip(own.items(), slopes[len(self.own) :], strict=True):
            step = slope / slope.abs().amax(1, keepdim=True).clamp_min(1e-12)
            shares[index][chosen] = (share.detach() - RATE * step).clamp(0, 1)

    def _bounds(self, chosen: Tensor, shares: dict[int, Tensor]) -> Tensor:
        boxes, region = self.leaves.boxes, self.leaves.region[chosen]
        frame = None if boxes.frame is None else boxes.frame[chosen]
        made = relax(self.network, boxes.lower[chosen], boxes.upper[chosen], alternatives=1, frame=frame)
        low = replace(made, shares=shares).below(self.rows.matrix[region], self.network.output)[0]
        return self.rows.least(low - self.rows.offset[region], region)

    def _missed(self, whole: bool = False) -> Tensor:
        """What wishes miss on a batch of samples, or on all, on average, in deviations."""
        total = torch.zeros((), dtype=torch.float64)
        for one, inputs in zip(self.wishes, self.inputs, strict=True):
            samples = samples_in(one.constraint)
            at = torch.arange(len(samples)) if whole else torch.randint(len(samples), (KEPT,), generator=self.draw)
            margins = one.constraint.margins_of(self.network.forward(inputs[samples[at]]), samples[at])
            total = total + (one.required[at] - margins).clamp_min(0).sum(1).mean() / self.spread
        return total

    def _move(self, slopes: Mapping[str, Tensor]) -> None:
        """A step of Adam (Kingma and Ba, ICLR 2015) whose size is such that the first one moves the outputs by JUMP."""
        steps = {}
        for name, slope in slopes.items():
            first, second = self.moments[name]
            first.mul_(DECAY[0]).add_((1 - DECAY[0]) * slope)
            second.mul_(DECAY[1]).add_((1 - DECAY[1]) * slope**2)
            sizes = (second / (1 - DECAY[1] ** self.steps)).sqrt() + 1e-12
            steps[name] = first / (1 - DECAY[0] ** self.steps) / sizes
        if self.steps == 1:
            few, tiny = self.keep[:KEPT], 1e-5
            self.network.refresh({name: value.detach() - tiny * steps[name] for name, value in self.own.items()})
            moved = ((self.network.forward(few) - self.before[:KEPT]) / self.spread).square().mean().sqrt()
            self.size = tiny * JUMP / max(float(moved), 1e-12)
        with torch.no_grad():
            for name, value in self.own.items():
                value.sub_(self.size * steps[name])


def grown(leaves: Leaves, last: LastLayer, most: int, late: Callable[[], bool], turns: float = inf) -> Leaves:
    """Leaves with better lines, and split where these are not enough, until all are proved or they are many."""
    waiting, turn = torch.arange(len(leaves)), 0
    while len(leaves) < most and turn < turns and not late():
        turn += 1
        open_ = waiting[leaves[waiting].least(last) <= PROVED]
        if not len(open_):
            break
        sharp = leaves[open_].sharpened(last, ALPHA)
        weak = sharp.least(last) <= PROVED
        new = sharp[~weak].join(sharp[weak].halved(last)) if bool(weak.any()) else sharp
        leaves = leaves.without(open_).join(new)
        waiting = torch.arange(len(leaves) - len(new), len(leaves))
    return leaves


def go_back(
    training: LeafTraining, proved: bool, begin: Callable[[Mapping[str, Tensor]], RegionSearchState]
) -> tuple[dict[str, Tensor], LastLayer, Leaves] | None:
    """On the way back to the weights before, the nearest of some that the last layer makes a proof of.

    Args:
        training: Done.
        proved: Whether its leaves are proved.
        begin: Starts a search of the last layer from some weights.

    Returns:
        The weights, the last layer beside them, and what proves it; None for no proof.
    """
    low, high, found, settings = 0.0, 1.0, None, training.settings
    share = FIRST if proved else 1.0
    for _ in range(TRIES if training.steps else 0):
        weights = training.between(share)
        state = begin(weights)
        leaves = state.leaves = _divided_as(training, state)
        start, margin = Proved(state.original, leaves, 0.0), settings.margin * training.spread
        leaves, last, _ = proved_at(state, margin, start, leaves, FINISH * settings.leaves)
        if last is not None:
            high, found = share, (weights, last, leaves)
        elif share == 1.0:
            break
        else:
            low = share
        share = (low + high) / 2
    if found is None and proved:  # these weights are proved as they are, but for their rounding
        weights = training.between(1.0)
        state = begin(weights)
        leaves = grown(_divided_as(training, state), state.original, 2 * MORE * settings.leaves, training.late, TURNS)
        if bool((leaves.least(state.original) > PROVED).all()):
            found = weights, state.original, leaves
    return found


def _divided_as(training: LeafTraining, state: RegionSearchState) -> Leaves:
    """The leaves of the last proof with its lines, under the weights of a search; without a proof some that are new."""
    if training.proved is training.root:
        return grown(state.leaves, state.original, training.settings.leaves, training.late)
    return renewed(training.proved, state.network, training.rows, training.proved.boxes.shares)


def renewed(
    leaves: Leaves, network: NetworkSteps, rows: RowGroups, shares: Mapping[int, Tensor] | None = None
) -> Leaves:
    """The same leaves under new weights of the network, given the rows of its outputs; with own lines, or the usual."""
    boxes, (_, matrix, offset) = leaves.boxes, own_last_layer(network)
    inner = rows.through(matrix, offset)
    made = Leaves.of(network, boxes.lower, boxes.upper, inner, leaves.region, boxes.frame, boxes.single)
    own = None if shares is None else dict(shares)
    return replace(made, depth=leaves.depth, boxes=replace(made.boxes, shares=own))
