"""Backward linear bounds (CROWN) of networks on boxes: batched, in float64, differentiable in the weights.

The bound of a linear function of the last layer's inputs is the smallest value of that function on a fixed polytope:
that of all features which the lines of each activation allow. So it is concave in the last layer's weights, and
:meth:`Boxes.lowest` gives, beside the value, the point of the polytope where it is taken: a cut that is valid for all
weights of the last layer.

References:
    Zhang, Weng, Chen, Hsieh, Daniel, Efficient Neural Network Robustness Certification with General Activation
    Functions, NeurIPS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repairopt.errors import UnsupportedError

from .activation_lines import Lines, LowerLines, lines_of, usual_share
from .frames import Frame
from .network_steps import ActivationStep, AffineStep, NetworkSteps

COARSE = 1e-4  # width of a box, of its largest number, from which on single precision will do
CHUNK = 128  # boxes at a time, so that intermediate results stay in the cache
Intervals = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of inputs and what is known of the values before each activation on them.

    Attributes:
        network: The network.
        lower: ``(B, d)``.
        upper: ``(B, d)``.
        intervals: For the index of each activation's step bounds of its argument, two of ``(B, size)``.
        frame: What the boxes stand for where they are of parameters, ``(B, p)``; None where they are the inputs.
        shares: For each activation which mean of its lower lines is taken, ``(B, size)``; None for the usual lines.
        single: Whether intervals of boxes that these are split into may be found in single precision.
    """

    network: NetworkSteps
    lower: Tensor
    upper: Tensor
    intervals: Intervals
    frame: Frame | None = None
    shares: dict[int, Tensor] | None = None
    single: bool = False

    def __len__(self) -> int:
        return len(self.lower)

    def __getitem__(self, rows: Any) -> Boxes:
        """Some of the boxes."""
        own = {index: (low[rows], high[rows]) for index, (low, high) in self.intervals.items()}
        frame = None if self.frame is None else self.frame[rows]
        shares = None if self.shares is None else {index: share[rows] for index, share in self.shares.items()}
        return Boxes(self.network, self.lower[rows], self.upper[rows], own, frame, shares, self.single)

    def join(self, other: Boxes) -> Boxes:
        """These boxes, then the others."""
        pairs = {
            index: (torch.cat([low, other.intervals[index][0]]), torch.cat([high, other.intervals[index][1]]))
            for index, (low, high) in self.intervals.items()
        }
        lower, upper = torch.cat([self.lower, other.lower]), torch.cat([self.upper, other.upper])
        frame = self.frame.join([other.frame]) if self.frame is not None and other.frame is not None else None
        shares = None
        if self.shares is not None or other.shares is not None:
            both = self.used_shares(), other.used_shares()
            shares = {index: torch.cat([one[index] for one in both]) for index in both[0]}
        return Boxes(self.network, lower, upper, pairs, frame, shares, self.single)

    def used_shares(self) -> dict[int, Tensor]:
        """Which mean of its lower lines is taken for each activation, ``(B, size)``."""
        return self.shares or {index: usual_share(self.alternatives(index)) for index in self.intervals}

    def alternatives(self, index: int) -> list[Lines]:
        """The lines of an activation, ``(B, size)`` each, the usual ones first."""
        return _lines(self.network, index, *self.intervals[index])

    def centers(self) -> Tensor:
        """Inputs in the middle of the boxes, ``(B, d)``."""
        return (self.lower + self.upper) / 2 if self.frame is None else self.frame.centers(self.lower, self.upper)

    def widths(self) -> Tensor:
        """How far each input, or parameter, varies on each box, ``(B, d)``."""
        low, high = (self.lower, self.upper) if self.frame is None else self.frame.tight(self.lower, self.upper)
        return high - low

    def middles(self) -> Tensor:
        """The middle of what each input, or parameter, takes on each box, ``(B, d)``: where boxes are split."""
        low, high = (self.lower, self.upper) if self.frame is None else self.frame.tight(self.lower, self.upper)
        return low / 2 + high / 2

    def lowest(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest values of linear functions of what the last linear layer reads, and the features where they are.

        Each value is the function's own at these features. Where the intervals come from the same lines, the features
        are points of one polytope, so that the value of every other function is at most its own there: a cut that is
        valid for all weights. Where alternatives or larger boxes made intervals smaller, this holds nearly.

        Args:
            directions: ``(B, m, h)``, or ``(m, h)`` for all boxes.

        Returns:
            ``(B, m)`` and ``(B, m, h)``.
        """
        step = self.network.last
        assert step is not None
        values, _, points, _ = self.below(directions, step.parents[0], points=True)
        return values, points

    def below(
        self, directions: Tensor, index: int, points: bool = False, lines: dict[int, Lines] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Lower bounds of linear functions ``(B, m, size)`` of a step's result.

        Returns:
            Bounds ``(B, m)``, coefficients of the inputs, or parameters, ``(B, m, d)``, and where ``points`` is set the
            result of the step ``(B, m, size)`` and the inputs ``(B, m, d)`` at which the bound is taken; else empty
            ones.
        """
        if directions.ndim == 2:
            directions = directions.expand(len(self), *directions.shape)
        lines = self.lines() if lines is None else lines
        constant, slope, signs = _pass_back(self.network, directions, index, lines, points)
        if self.frame is not None:
            slope = self.frame.pull(slope)
            value, corner = self.frame.lowest(slope, self.lower, self.upper)
            low, corner = constant + value, self.frame.inputs(corner) if points else corner
        else:
            middle, half = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
            low = constant + (slope @ middle[:, :, None])[..., 0] - (slope.abs() @ half[:, :, None])[..., 0]
            corner = middle[:, None] - slope.sign() * half[:, None] if points else low
        if not points:
            return low, slope, low.new_zeros(0), low.new_zeros(0)
        return low, slope, _pass_on(self.network, corner, index, lines, signs), corner

    def lines(self, kind: int = 0) -> dict[int, Lines]:
        """The lines of each activation; of alternatives the one of a number."""
        if self.shares is not None:
            return {index: LowerLines.of(self.alternatives(index)).at(share) for index, share in self.shares.items()}
        return {index: self.alternatives(index)[kind] for index in self.intervals}


def relax(
    network: NetworkSteps,
    lower: Tensor,
    upper: Tensor,
    parents: Intervals | None = None,
    alternatives: int = 3,
    frame: Frame | None = None,
) -> Boxes:
    """Bounds of the argument of each activation on boxes.

    First by linear forms in the input that are passed on, where inputs are few; then, for the entries whose lines are
    not exact yet, by backward passes with each of the alternatives of lines, of which the best bounds are taken.

    Args:
        network: The network.
        lower: ``(B, d)``.
        upper: ``(B, d)``.
        parents: Bounds that hold already, as those of larger boxes around these.
        alternatives: Most alternatives of lines that are tried.
        frame: What the boxes stand for, where they are not the inputs themselves.
    """
    found = Boxes(network, lower, upper, {}, frame)
    for index, step in enumerate(network.steps):
        if not isinstance(step, ActivationStep):
            continue
        before = step.parents[0]
        low, high = _interval(found, before, None if parents is None else parents[index], index, alternatives)
        found.intervals[index] = (low, torch.maximum(low, high))
    return found


def relax_in_parts(
    network: NetworkSteps,
    lower: Tensor,
    upper: Tensor,
    parents: Intervals | None = None,
    alternatives: int = 3,
    frame: Frame | None = None,
    single: bool = False,
) -> Boxes:
    """As :func:`relax`, some boxes at a time.

    Args:
        network: The network.
        lower: ``(B, d)``.
        upper: ``(B, d)``.
        parents: As there.
        alternatives: As there.
        frame: As there.
        single: Whether single precision will do, in half of the time: its rounding is not covered, so that this is for
            a search whose proof is checked. Taken where the network is dense matrices and ReLU, the boxes inputs and
            not too small.
    """
    twin, parts = network.in_single() if single and frame is None else None, []
    for rows in torch.arange(len(lower)).split(CHUNK):
        own = None if parents is None else {index: (low[rows], high[rows]) for index, (low, high) in parents.items()}
        framed = None if frame is None else frame[rows]
        if twin is not None and _are_coarse(lower[rows], upper[rows]):
            own = None if own is None else {index: (low.float(), high.float()) for index, (low, high) in own.items()}
            made = relax(twin, lower[rows].float(), upper[rows].float(), own, alternatives).intervals
            parts.append({index: (low.double(), high.double()) for index, (low, high) in made.items()})
        else:
            parts.append(relax(network, lower[rows], upper[rows], own, alternatives, framed).intervals)
    pairs = {index: tuple(torch.cat([part[index][side] for part in parts]) for side in (0, 1)) for index in parts[0]}
    return Boxes(network, lower, upper, pairs, frame, single=single)  # type: ignore[arg-type]


def _are_coarse(lower: Tensor, upper: Tensor) -> bool:
    """Whether single precision resolves boxes well."""
    width, size = upper - lower, torch.maximum(lower.abs(), upper.abs())
    return bool(((width > COARSE * size) | (width == 0)).all())


def _interval(
    boxes: Boxes, index: int, known: tuple[Tensor, Tensor] | None, activation: int, alternatives: int
) -> tuple[Tensor, Tensor]:
    """Bounds of all entries of a step's result, the argument of an activation."""
    network, size = boxes.network, boxes.network.size(index)
    first = not boxes.intervals
    step = network.steps[index]
    plain = first and boxes.frame is None
    if plain and isinstance(step, AffineStep) and step.parents == (0,) and step.matrices[0] is not None:
        matrix, middle, half = step.matrices[0], (boxes.lower + boxes.upper) / 2, (boxes.upper - boxes.lower) / 2
        center, radius = middle @ matrix.T + step.offset, half @ matrix.abs().T
        return center - radius, center + radius
    if first or known is None:
        low, high = _both_sides(boxes, index, None, size, alternatives)
        if known is not None:
            low, high = torch.maximum(low, known[0]), torch.minimum(high, known[1])
        return low, high
    low, high = known
    lines = _lines(network, activation, low, high)[0]
    loose = (lines.lower_slope != lines.upper_slope) | (lines.lower_shift != lines.upper_shift)
    most = int(loose.sum(1).max()) if len(loose) else 0
    if not most:
        return low, high
    entries = torch.argsort(loose.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
    found_low, found_high = _both_sides(boxes, index, entries, size, alternatives)
    low = low.scatter(1, entries, torch.maximum(low.gather(1, entries), found_low))
    return low, high.scatter(1, entries, torch.minimum(high.gather(1, entries), found_high))


def _both_sides(
    boxes: Boxes, index: int, entries: Tensor | None, size: int, alternatives: int
) -> tuple[Tensor, Tensor]:
    """Bounds of some entries ``(B, K)``, or of all, from both sides, by backward passes."""
    step = boxes.network.steps[index]
    if isinstance(step, AffineStep) and len(step.parents) == 1 and step.matrices[0] is not None:
        index, matrix, offset = step.parents[0], step.matrices[0], step.offset
    else:
        matrix, offset = torch.eye(size, dtype=boxes.lower.dtype), boxes.lower.new_zeros(size)
    chosen = matrix.expand(len(boxes), *matrix.shape) if entries is None else matrix[entries]
    shift = offset if entries is None else offset[entries]
    both = torch.cat([chosen, -chosen], 1)
    low = boxes.below(both, index, lines=boxes.lines(0))[0]
    for kind in range(1, alternatives):
        others = {at: _lines(boxes.network, at, *pair) for at, pair in boxes.intervals.items()}
        if all(len(made) <= kind for made in others.values()):
            break
        lines = {at: made[min(kind, len(made) - 1)] for at, made in others.items()}
        low = torch.maximum(low, boxes.below(both, index, lines=lines)[0])
    return low[:, : chosen.shape[1]] + shift, shift - low[:, chosen.shape[1] :]


def _lines(network: NetworkSteps, index: int, low: Tensor, high: Tensor) -> list[Lines]:
    step = network.steps[index]
    assert isinstance(step, ActivationStep)
    made = lines_of(network.call(step), *(side.unflatten(1, network.shapes[index]) for side in (low, high)))
    if made is None:
        raise UnsupportedError(
            f"{network.traced.what}: layer '{step.node.target}' does not act on each entry by itself with a band, as "
            f"backward bounds need."
        )
    return [Lines(*(part.flatten(1) for part in vars(one).values())) for one in made]


def _pass_back(
    network: NetworkSteps, directions: Tensor, index: int, lines: dict[int, Lines], keep_signs: bool
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Constants ``(B, m)``, coefficients of the inputs ``(B, m, d)``, and for activations who took the lower line."""
    waiting = {index: directions}
    constant = directions.new_zeros(directions.shape[:2])
    signs: dict[int, Tensor] = {}
    for at in range(index, 0, -1):
        given = waiting.pop(at, None)
        if given is None:
            continue
        step = network.steps[at]
        if isinstance(step, AffineStep):
            constant = constant + given @ step.offset
            back = [network.pull_back(step, place, given) for place in range(len(step.parents))]
        else:
            assert step is not None
            own = lines[at]
            up = given.clamp_min(0)
            if keep_signs:
                signs[at] = given > 0
            constant = constant + _times(given, own.upper_shift) + _times(up, own.lower_shift - own.upper_shift)
            back = [torch.addcmul(given * own.upper_slope[:, None], up, (own.lower_slope - own.upper_slope)[:, None])]
        for parent, part in zip(step.parents, back, strict=True):
            waiting[parent] = waiting[parent] + part if parent in waiting else part
    slope = waiting.get(0)
    return constant, directions.new_zeros(*directions.shape[:2], network.size(0)) if slope is None else slope, signs


def _times(rows: Tensor, vector: Tensor) -> Tensor:
    """Rows ``(B, m, n)`` times a vector for each box ``(B, n)``; from the left, which is four times as fast."""
    return (vector[:, None] @ rows.transpose(1, 2))[:, 0]


def _pass_on(
    network: NetworkSteps, corner: Tensor, index: int, lines: dict[int, Lines], signs: dict[int, Tensor]
) -> Tensor:
    """The point ``(B, m, size)`` of the relaxed network that a backward pass ended at, from the corner of the box."""
    values = {0: corner}
    for at in range(1, index + 1):
        step = network.steps[at]
        if isinstance(step, AffineStep):
            flat = network.through(step, {parent: values[parent].flatten(0, 1) for parent in step.parents})
            values[at] = flat.unflatten(0, corner.shape[:2])
        else:
            assert step is not None
            own, z = lines[at], values[step.parents[0]]
            low = own.lower_slope[:, None] * z + own.lower_shift[:, None]
            high = own.upper_slope[:, None] * z + own.upper_shift[:, None]
            values[at] = torch.where(signs[at], low, high) if at in signs else low
    return values[index]
