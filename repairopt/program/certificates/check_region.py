"""The check of a proof of regions, in NumPy alone, which shares no code with the search and trusts nothing of it.

It sees exactly that the leaves tile the boxes (of convex hulls the boxes of weights), computes on each its own bounds
of the rows with all rounding errors (:mod:`.running_bounds`), splits a leaf where its bound is too weak, and runs the
network on many points.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from repairopt.errors import ProofError, forgiven, public
from repairopt.program.program import Array

from .box_tiling import boxes_tile
from .layered_network import LayeredNetwork, RectifierLayer
from .region_proof import ProofStatus, ProofVerdict, RegionProof
from .running_bounds import RunningBounds

DEPTH = 12  # splits of one leaf
TRIED = 8  # dimensions whose halves are bounded for a split
NUMBERS = 2**22  # coefficients of one batch of boxes
FIRST = 10_000  # points that are looked at before anything is bounded
PART = 20_000  # points of one run
VOLUME = 4000  # points by which shares of hulls are estimated

Run = Callable[[Array], Array]
Boxes = tuple[Array, Array, Any, Any]  # lower sides, upper sides, the box of the proof that they are in, and the leaf


@public
def check_proof(
    network: LayeredNetwork,
    proof: RegionProof,
    *,
    samples: int = 1_000_000,
    run: Run | None = None,
    depth: int = DEPTH,
    time_limit: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProofVerdict:
    """Check a proof, in NumPy alone.

    Args:
        network: The deployed network, layer by layer.
        proof: What is claimed of it.
        samples: Points, spread over the boxes, at which the network is run to find a violation.
        run: The deployed network itself: outputs ``(N, k)`` of inputs ``(N, d)``, in its precision; the layers in
            float64 by default. Inputs are numbers of the precision of the proof.
        depth: How often a leaf whose bound is too weak may be split.
        time_limit: Seconds of processor time for bounds, after which leaves are left open; None for none.
        seed: Of the points.
        progress: Called with the leaves that are done and their number, and again for each further split.

    Raises:
        ProofError: The proof is of another network, or its leaves do not tile its boxes.
    """
    start = time.process_time()
    progress = None if progress is None else forgiven("progress", progress)
    _check_belongs(network, proof)
    checker = _Checker(network, proof, run or network.run, np.random.default_rng(seed))
    checker.sample(min(samples, FIRST))
    limit = np.inf if time_limit is None else start + time_limit
    if checker.point is None:
        checker.bound_leaves(depth, limit, progress)
    if checker.point is None:
        checker.sample(max(0, samples - FIRST))
    return checker.verdict(time.process_time() - start)


def _check_belongs(network: LayeredNetwork, proof: RegionProof) -> None:
    if network.fingerprint != proof.fingerprint:
        raise ProofError(
            f"proof of a region: it is of weights with SHA-256 {proof.fingerprint or 'unknown'}, the network has "
            f"{network.fingerprint or 'unknown'}. Expected the network that the proof was made for."
        )
    sizes, outputs = (network.inputs, network.outputs), proof.rows[0].matrix.shape[1]
    if sizes != (proof.inputs, outputs):
        raise ProofError(
            f"proof of a region: it is of {proof.inputs} inputs and {outputs} outputs, the network has {sizes}."
        )
    rectified = sum(layer.size for layer in network.layers if isinstance(layer, RectifierLayer))
    if proof.leaf_slopes is not None and proof.leaf_slopes.shape[1] != rectified:
        raise ProofError(
            f"proof of a region: it has slopes of {proof.leaf_slopes.shape[1]} rectifiers, the network {rectified}."
        )
    for number, (lower, upper) in enumerate(zip(proof.lower, proof.upper, strict=True)):
        own = proof.leaf_box == number
        if not boxes_tile(lower, upper, proof.leaf_lower[own], proof.leaf_upper[own]):
            raise ProofError(
                f"proof of a region: its {int(own.sum())} leaves do not tile box {number}. One is missing, moved or "
                f"shrunk, or they come from no cuts through whole boxes; the proof is refused."
            )


class _Checker:
    """One check: the rows of all boxes in common arrays, and what was found so far."""

    def __init__(self, network: LayeredNetwork, proof: RegionProof, run: Run, draw: np.random.Generator) -> None:
        self.network, self.proof, self.run, self.draw = network, proof, run, draw
        most = max(len(rows.offset) for rows in proof.rows)
        groups = max(int(rows.group.max()) + 1 for rows in proof.rows)
        self.matrix = np.zeros((len(proof.rows), most, network.outputs))
        self.offset = np.zeros((len(proof.rows), most))
        self.member = np.zeros((len(proof.rows), groups, most), dtype=bool)
        for number, rows in enumerate(proof.rows):
            self.matrix[number, : len(rows.offset)] = rows.matrix
            self.offset[number, : len(rows.offset)] = rows.offset
            self.member[number, rows.group, np.arange(len(rows.group))] = True
        width = max([network.inputs, *(layer.size for layer in network.layers)])
        deep = max(layer.size for layer in network.layers)  # at most so many entries are bounded at a time, twice
        self.batch = int(np.clip(NUMBERS // (width * 2 * deep), 1, 64))
        self.point: Array | None = None
        self.point_box = -1
        self.outputs: Array | None = None
        self.open: list[Boxes] = []
        self.least, self.sampled_least = np.inf, np.inf
        self.splits, self.samples = 0, 0

    def sample(self, count: int) -> None:
        """Run the network at random points of each box, until one violates the rows."""
        boxes = len(self.proof.lower)
        for number in range(boxes if count else 0):
            left = -(-count // boxes)
            while left > 0 and self.point is None:
                size = min(left, PART)
                self.look_at(self.drawn(number, size), number)
                left -= size

    def drawn(self, number: int, count: int) -> Array:
        """Points of a box, or of its parameters, spread evenly."""
        lower, upper = self.proof.lower[number], self.proof.upper[number]
        noise = self.draw.random((count, len(lower)))
        if self.proof.hull is None or not self.proof.hull[number]:
            return lower + (upper - lower) * noise
        raw = -np.log1p(-noise) * (upper > 0)
        return raw / raw.sum(1, keepdims=True)

    def look_at(self, points: Array, number: int) -> None:
        """Run the network at points ``(N, d)`` of a box, or of parameters; keeps the first that violates its rows."""
        own = np.array([number])
        points = np.clip(points, self.proof.lower[number], self.proof.upper[number])
        hulls = self.proof.hulls(self.proof.lower[own], self.proof.upper[own], own)
        points = points if hulls is None else hulls.inputs(points)
        if self.proof.execution == "float32":
            points = points.astype(np.float32)
        outputs = np.asarray(self.run(points))
        values = self.proof.rows[number].values(outputs)
        self.samples += len(points)
        self.sampled_least = min(self.sampled_least, float(values.min(initial=np.inf)))
        size = np.abs(outputs).max(initial=1.0) * np.abs(self.proof.rows[number].matrix).sum(1).max() + 1
        for place in np.argsort(values)[:20]:
            if values[place] > 1e-12 * size or self.point is not None:
                return
            if self.proof.rows[number].are_violated(outputs[place]):
                self.point, self.outputs = points[place].astype(np.float64), outputs[place]
                self.point_box = number

    def bound_leaves(self, depth: int, limit: float, progress: Callable[[int, int], None] | None) -> None:
        """Bound the rows on each leaf, and split those whose bound is too weak, until a violation is found."""
        numbers = np.arange(len(self.proof.leaf_box))
        level: Boxes = (self.proof.leaf_lower, self.proof.leaf_upper, self.proof.leaf_box, numbers)
        for left in range(depth, -1, -1):
            halves: list[Boxes] = []
            for start in range(0, len(level[2]), self.batch):
                part: Any = tuple(side[start : start + self.batch] for side in level)
                late = time.process_time() > limit
                weak, slopes = (part, None) if late else self.weak(*part)
                if self.point is not None:
                    return
                late = late or time.process_time() > limit
                if len(weak[2]) and (late or not left):
                    self.open.append(weak)
                elif len(weak[2]):
                    self.splits += len(weak[2])
                    halves += self.halves(weak, slopes, limit)
                if progress is not None:
                    progress(min(start + self.batch, len(level[2])), len(level[2]))
            if not halves:
                return
            level = tuple(np.concatenate(side) for side in zip(*halves, strict=True))  # type: ignore[assignment]

    def weak(self, lower: Array, upper: Array, box: Any, leaf: Any) -> tuple[Boxes, Array]:
        """The boxes on which the rows are not proved, and the slopes of their bounds; the network is run on them."""
        values, slopes = self.bounds(lower, upper, box, leaf)
        weak = ~(values > 0)
        self.least = min(self.least, float(values[~weak].min(initial=np.inf)))
        found = (lower[weak], upper[weak], box[weak], leaf[weak])
        self.look_near(*found[:3], slopes[weak])
        return found, slopes[weak]

    def bounds(self, lower: Array, upper: Array, box: Any, leaf: Any) -> tuple[Array, Array]:
        """Lower bounds ``(B,)`` of how far the rows hold on boxes, and of the worst group the slopes ``(B, d)``."""
        hulls = self.proof.hulls(lower, upper, box)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows proves nothing
            hints = None if self.proof.leaf_slopes is None else self.proof.leaf_slopes[leaf] / 255.0
            found = RunningBounds(self.network, lower, upper, self.proof.execution, hulls, hints)
            low, slopes = found.below(self.matrix[box], self.offset[box])
        if hulls is not None:
            low = np.where(hulls.are_empty()[:, None], np.inf, low)
        member = self.member[box]
        by_group = np.where(member, low[:, None], -np.inf)
        best = np.where(member.any(2), by_group.max(2), np.inf)
        worst = best.argmin(1)
        rows = np.arange(len(box))
        return best[rows, worst], slopes[rows, by_group[rows, worst].argmax(1)]

    def look_near(self, lower: Array, upper: Array, box: Array, slopes: Array) -> None:
        """Run the network where the bounds are lowest, and in the middle."""
        hulls = self.proof.hulls(lower, upper, box)
        if hulls is None:
            corner, middle = np.where(slopes > 0, lower, upper), lower / 2 + upper / 2
        else:
            corner, middle = hulls.corners(slopes), hulls.middles()
        for number in np.unique(box):
            if self.point is None:
                own = box == number
                self.look_at(np.concatenate([corner[own], middle[own]]), int(number))

    def halves(self, boxes: Boxes, slopes: Any, limit: float) -> list[Boxes]:
        """Both halves of each box, split where the bounds of both are best among those in time (strong branching)."""
        lower, upper, box, leaf = boxes
        rows = np.arange(len(lower))
        hulls = self.proof.hulls(lower, upper, box)
        least, most = (lower, upper) if hulls is None else hulls.ranges()
        middle = least / 2 + most / 2
        if hulls is not None:  # the sum of weights is fixed, so that a common part of slopes does nothing
            slopes = slopes - np.where(hulls.hull, slopes.mean(1), 0.0)[:, None]
        score = (np.abs(slopes) + 1e-9) * (most - least)
        tried = np.argsort(-score, axis=1)[:, :TRIED]
        best, chosen = np.full(len(lower), -np.inf), tried[:, 0].copy()
        for dimension in tried.T if tried.shape[1] > 1 else ():
            if time.process_time() > limit:
                break
            parts = _split(lower, upper, dimension, middle)
            gains = [np.minimum(self.bounds(*part, box, leaf)[0], 0) for part in parts]
            gain = np.where(most[rows, dimension] > least[rows, dimension], gains[0] + gains[1], -np.inf)
            chosen, best = np.where(gain > best, dimension, chosen), np.maximum(gain, best)
        return [(*part, box, leaf) for part in _split(lower, upper, chosen, middle)]

    def verdict(self, seconds: float) -> ProofVerdict:
        """The conclusion."""
        width = self.proof.lower.shape[1]
        none = np.zeros(0, dtype=np.int64)
        parts: list[Boxes] = self.open or [(np.zeros((0, width)), np.zeros((0, width)), none, none)]
        lower, upper, box, _ = (np.concatenate(part) for part in zip(*parts, strict=True))
        status = ProofStatus.PROVED if not len(lower) else ProofStatus.UNDECIDED
        share = 1.0
        if status is not ProofStatus.PROVED:
            share = float(np.clip(1 - self.left(lower, upper, box), 0, 1 - 2.0**-53))
        if self.point is not None:
            status, share = ProofStatus.REFUTED, 0.0
        return ProofVerdict(
            status,
            share,
            lower,
            upper,
            self.point,
            self.outputs,
            self.least,
            len(self.proof.leaf_lower),
            self.splits,
            self.samples,
            self.sampled_least,
            self.proof.execution,
            seconds,
            box,
            self.point_box,
        )

    def left(self, lower: Array, upper: Array, box: Any) -> float:
        """Share of the volume that boxes take, the mean over the regions; of hulls by points."""
        share = _volume(self.proof.lower[box], self.proof.upper[box], lower, upper)
        hulls = [] if self.proof.hull is None else np.flatnonzero(self.proof.hull).tolist()
        total = share[~np.isin(box, hulls)].sum()
        for number in hulls:
            points, taken = self.drawn(number, VOLUME), np.zeros(VOLUME, dtype=bool)
            for low, high in zip(lower[box == number], upper[box == number], strict=True):
                taken |= ((points >= low) & (points <= high)).all(1)
            total += taken.mean()
        return float(total / len(self.proof.lower))


def _split(
    lower: Array, upper: Array, dimension: Any, middle: Array
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    rows = np.arange(len(lower))
    left, right = upper.copy(), lower.copy()
    left[rows, dimension] = right[rows, dimension] = middle[rows, dimension]
    return (lower, left), (right, upper)


def _volume(lower: Array, upper: Array, inner_lower: Array, inner_upper: Array) -> Array:
    """Share of each box ``(N, d)`` that an inner box takes, over the dimensions in which the box is not flat."""
    width = upper - lower
    share = np.where(width > 0, (inner_upper - inner_lower) / np.where(width > 0, width, 1.0), 1.0)
    return share.prod(1)
