"""Lower bounds of linear functions of a network's values over boxes, with a bound of every rounding error.

Bounds are passed backward through linear lower and upper lines of each activation. Next to each bound runs a bound of
what rounding can have added to it, which is subtracted at the end: what remains is true for real numbers. The same
terms, with the unit of the deployed precision, cover a run of the network itself, whatever the order in which its sums
are added up, with fused multiplications or without, denormals flushed or not; not covered are fast convolutions
(Winograd, FFT), and modes that round the factors of products, such as TF32.

With ``z_k = w_k f + b_k`` computed in a precision of unit ``v``, the computed value is off by at most
``gamma(n + 2) (|w_k| |f| + |b_k|)``, ``gamma(n) = n v / (1 - n v)``. Bounds of ``f`` are of computed values, so errors
do not add up from layer to layer: each enters once, times its coefficient in the bound.

References:
    Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, SIAM 2002, chapter 3.
    Zhang, Weng, Chen, Hsieh, Daniel, Efficient neural network robustness certification with general activation
    functions, NeurIPS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from repairopt.errors import ProofError
from repairopt.program.program import Array

from .hulls import Hulls
from .layered_network import AffineLayer, Layer, LayeredNetwork, RectifierLayer, SmoothLayer, SumLayer
from .smooth_functions import FUNCTIONS, band, slopes_of

U = 2.0**-53
UNITS = {"exact": 0.0, "float64": 2.0**-53, "float32": 2.0**-24}  # of the run that a bound covers
LARGEST = {"exact": 2.0**900, "float64": 2.0**900, "float32": 2.0**120}  # values of a run, far from overflow
SMALLEST = {"exact": 0.0, "float64": 2.0**-1000, "float32": 2.0**-125}  # error where a product is flushed to 0
INFLATED = 1 + 1e-9  # covers rounding in the error terms themselves: their sums have far fewer than 1e6 terms
TINY = 1e-280  # covers underflow in the bounds themselves
MOST_ROUNDED = 0.01  # relative error of one sum; beyond, nothing is bounded
SLOPES = ("adaptive", "parallel", "zero")


def gamma(terms: int, unit: float = U) -> float:
    """Relative error of a sum of products, whatever its order; a ProofError where there are too many to bound it."""
    if terms * unit > MOST_ROUNDED:
        raise ProofError(f"check of a proof: a layer adds up {terms:,} terms, too many for runs in this precision.")
    return terms * unit / (1 - terms * unit) * (1 + 8 * U)


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines about ``f``: ``low x + under <= f(x) <= high x + shift`` between the bounds of ``x``; ``(B, n)`` each.

    Below a rectifier they run through 0: ``under`` is None. What a run of the network adds to ``f`` is within them for
    smooth functions, and counted apart for rectifiers.
    """

    low: Array
    high: Array
    shift: Array
    under: Array | None = None


def rectifier_lines(lower: Array, upper: Array, leak: float, slope: str) -> Lines:
    """Lines about ``max(x, leak x)`` for ``x`` between bounds: those of a kind of ``SLOPES`` where the sign is open."""
    open_ = (lower < 0) & (upper > 0)
    width = np.where(open_, upper - lower, 1.0)
    chord = np.nextafter((np.where(open_, upper, 0.0) - leak * np.where(open_, lower, 0.0)) / width, 2.0)
    settled = np.where(lower >= 0, 1.0, leak)
    high = np.where(open_, np.minimum(chord, 1.0), settled)
    at_ends = np.maximum((leak - high) * lower, (1 - high) * upper)
    shift = np.where(open_, np.maximum(at_ends, 0) * (1 + 16 * U) + TINY, 0.0)
    choice = {"adaptive": np.where(upper > -lower, 1.0, leak), "parallel": high, "zero": np.full_like(high, leak)}
    return Lines(np.where(open_, choice[slope], settled), high, shift)


def check_lines(lines: Lines, lower: Array, upper: Array, leak: float) -> None:
    """A ProofError where lines do not lie about the rectifier: a fault of this file, which must not become a proof."""
    open_ = (lower < 0) & (upper > 0)
    wrong = (lines.low < leak) | (lines.low > 1)
    wrong |= ~open_ & ((lines.low != np.where(lower >= 0, 1.0, leak)) | (lines.low != lines.high) | (lines.shift != 0))
    for end, value in ((lower, leak * lower), (upper, upper)):
        size = np.abs(lines.high * end) + lines.shift + np.abs(value)
        wrong |= open_ & (lines.high * end + lines.shift < value - 4 * U * size)
    if (wrong & np.isfinite(lower) & np.isfinite(upper)).any():
        raise ProofError("check of a proof: lines about an activation do not hold; report this fault of the checker.")


class RunningBounds:
    """Bounds of all values of a network over a batch of boxes.

    Args:
        network: The network.
        lower: Smallest inputs ``(B, d)``.
        upper: Largest inputs ``(B, d)``.
        execution: The runs that are covered: ``"exact"`` for real numbers, ``"float64"``, or ``"float32"``, where
            inputs may also be rounded to it.
        hulls: Where boxes are of parameters, what they stand for, whose inputs may be rounded in every run; ``lower``
            and ``upper`` are then not used.
        hints: Lower slopes of rectifiers that are tried beside the usual ones, ``(B, n)`` of all in their order; what
            is not between leak and 1 is moved there.

    Attributes:
        covered: Whether no value comes near overflow in the covered runs, ``(B,)``.
    """

    def __init__(
        self,
        network: LayeredNetwork,
        lower: Array,
        upper: Array,
        execution: str,
        hulls: Hulls | None = None,
        hints: Any = None,
    ) -> None:
        self.network, self.unit, self.execution, self.hulls = network, UNITS[execution], execution, hulls
        if hulls is not None:
            lower, upper = hulls.box()
        spread = np.zeros_like(lower)
        if execution == "float32" or (hulls is not None and self.unit):
            spread = self.unit * np.maximum(np.abs(lower), np.abs(upper)) * (1 + 2.0**-20) + SMALLEST[execution]
        self.spread = spread
        self.input_lower, self.input_upper = lower - spread, upper + spread
        self.low: list[Array] = [self.input_lower]
        self.high: list[Array] = [self.input_upper]
        self.size: list[Array] = [np.maximum(np.abs(self.input_lower), np.abs(self.input_upper))]
        self.lost: dict[int, Array] = {}  # by layer: what rounding adds to each entry, for a coefficient of 1
        self.lines: dict[int, dict[str, Lines]] = {}
        self.covered = np.ones(len(lower), dtype=bool)
        read = {layer.inputs[0]: layer for layer in network.layers if isinstance(layer, RectifierLayer | SmoothLayer)}
        for index, layer in enumerate(network.layers, 1):
            low, high = self._forward(index, layer)
            self._append(low, high)
            if index in read and (hulls is not None or not _is_first(network, index)):
                self._tighten(index, isinstance(read[index], SmoothLayer))
        self.kinds = SLOPES if hints is None else (*SLOPES, "hinted")
        start = 0
        for index, layer in enumerate(network.layers, 1) if hints is not None else ():
            if isinstance(layer, RectifierLayer):
                own = hints[:, start : start + layer.size]
                start += layer.size
                self.lines[index]["hinted"] = self._hinted(self.lines[index]["adaptive"], layer, own)
            elif isinstance(layer, SmoothLayer):
                self.lines[index]["hinted"] = self.lines[index]["adaptive"]

    def below(self, coefficients: Array, offset: Array) -> tuple[Array, Array]:
        """Lower bounds ``(B, R)`` of ``coefficients @ y - offset`` over each box, and their slopes ``(B, R, d)``.

        Slopes are of the parameters where boxes are of these.

        Args:
            coefficients: Of the outputs ``y``, ``(B, R, k)``.
            offset: ``(B, R)``.
        """
        width = self.network.inputs if self.hulls is None else self.hulls.lower.shape[1]
        best, slopes = np.full(offset.shape, -np.inf), np.zeros((*offset.shape, width))
        for slope in self.kinds if self.lines else SLOPES[:1]:
            bound, at_input = self._pull(len(self.network.layers), coefficients, -offset, slope)
            better = bound > best
            best, slopes = np.where(better, bound, best), np.where(better[..., None], at_input, slopes)
        return np.where(self.covered[:, None], best, -np.inf), slopes

    def _hinted(self, usual: Lines, layer: RectifierLayer, slopes: Array) -> Lines:
        """The usual lines with other lower slopes where the sign is open, checked as all are."""
        (parent,) = layer.inputs
        low, high = self.low[parent], self.high[parent]
        open_ = (low < 0) & (high > 0)
        lines = Lines(np.where(open_, np.clip(slopes, layer.leak, 1.0), usual.low), usual.high, usual.shift)
        check_lines(lines, low, high, layer.leak)
        return lines

    def _append(self, low: Array, high: Array) -> None:
        size = np.maximum(np.abs(low), np.abs(high))
        self.covered &= (size < LARGEST[self.execution]).all(1)  # False for NaN
        self.low.append(low)
        self.high.append(high)
        self.size.append(size)

    def _forward(self, index: int, layer: Layer) -> tuple[Array, Array]:
        """Bounds of a layer's values from those of what it reads."""
        low, high = ([side[parent] for parent in layer.inputs] for side in (self.low, self.high))
        if isinstance(layer, RectifierLayer):
            self.lines[index] = {name: rectifier_lines(low[0], high[0], layer.leak, name) for name in SLOPES}
            for lines in self.lines[index].values():
                check_lines(lines, low[0], high[0], layer.leak)
            error = (2 * U + self.unit) * layer.leak * np.maximum(np.abs(low[0]), np.abs(high[0])) * INFLATED
            return layer.run(low) - error, layer.run(high) + error
        if isinstance(layer, SmoothLayer):
            function, flat = FUNCTIONS[layer.name], np.zeros_like(low[0])
            chosen = slopes_of(function, low[0], high[0])
            bands = {name: (s, *band(function, low[0], high[0], s, self.unit)) for name, s in chosen.items()}
            self.lines[index] = {name: Lines(s, s, above, below) for name, (s, below, above) in bands.items()}
            return band(function, low[0], high[0], flat, self.unit)
        if isinstance(layer, SumLayer):
            count, size = len(layer.inputs), np.sum([self.size[parent] for parent in layer.inputs], axis=0)
            self.lost[index] = self._of_run(count, size, count) * INFLATED
            error = gamma(count) * size * INFLATED + self.lost[index]
            return layer.run(low) - error, layer.run(high) + error
        (parent,) = layer.inputs
        terms = layer.apply(layer.absolute, self.size[parent]) + layer.bias_size
        terms = terms * INFLATED + TINY
        self.covered &= (terms < LARGEST[self.execution]).all(1)
        of_run = self._of_run(layer.terms, terms, layer.terms + layer.row_size)
        across, along = (gamma(_inner(layer, axis) + layer.terms + 3) * terms for axis in (0, 1))
        self.lost[index], error = (across + of_run) * INFLATED, (along + of_run) * INFLATED + TINY
        above, under = layer.signed
        least = layer.apply(above, low[0]) + layer.apply(under, high[0]) + layer.bias
        most = layer.apply(above, high[0]) + layer.apply(under, low[0]) + layer.bias
        return least - error, most + error

    def _of_run(self, terms: int, size: Array, small: Any) -> Array:
        """What rounding in the covered run adds to sums of ``terms`` terms of these sizes.

        ``small`` is how many times the smallest number an entry is off where terms or factors of them are flushed to 0.
        """
        if not self.unit or not terms:
            return np.zeros_like(size)
        return gamma(terms, self.unit) * size + SMALLEST[self.execution] * small

    def _tighten(self, index: int, every: bool) -> None:
        """Bounds of entries by passing them back, of those whose sign is open unless ``every`` one is wanted.

        The kinds of lines are tried one after another, on what is still open.
        """
        for slope in SLOPES if self.lines else SLOPES[:1]:
            low, high = self.low[index], self.high[index]
            open_ = low < high if every else (low < 0) & (high > 0)
            count = int(open_.sum(1).max(initial=0))
            if not count:
                return
            chosen = np.argsort(~open_, axis=1, kind="stable")[:, :count]
            rows = np.arange(len(chosen))[:, None]
            start = np.zeros((len(chosen), 2 * count, low.shape[1]))
            start[rows, np.arange(count), chosen] = 1.0
            start[rows, count + np.arange(count), chosen] = -1.0
            found, _ = self._pull(index, start, np.zeros((1, 2 * count)), slope)
            low[rows, chosen] = np.fmax(low[rows, chosen], found[:, :count])  # a bound that overflowed is NaN
            high[rows, chosen] = np.fmin(high[rows, chosen], -found[:, count:])
            self.size[index] = np.maximum(np.abs(low), np.abs(high))

    def _pull(self, start: int, coefficients: Array, constant: Array, slope: str) -> tuple[Array, Array]:
        """Lower bounds ``(B, S)`` of ``coefficients . value + constant``, and the coefficients of the input."""
        waiting = {start: coefficients}
        constant = np.broadcast_to(constant, (len(self.covered), coefficients.shape[1]))
        error = U * np.abs(constant)
        for index in range(start, 0, -1):
            own = waiting.pop(index, None)
            if own is None:
                continue
            layer = self.network.layers[index - 1]
            if isinstance(layer, AffineLayer):
                constant = constant + own @ layer.bias
                error = error + _dot(np.abs(own), self.lost[index])
                back = layer.pull_back(own)
            elif isinstance(layer, RectifierLayer | SmoothLayer):
                back, shifted, lost = self._through_lines(own, self.lines[index][slope], layer)
                constant, error = constant + shifted, error + lost
            else:
                back = own
                error = error + _dot(np.abs(own), self.lost[index])
            error = error + U * np.abs(constant)
            for parent in layer.inputs:
                if parent in waiting:
                    waiting[parent] = waiting[parent] + back
                    error = error + U * _dot(np.abs(waiting[parent]), self.size[parent])
                else:
                    waiting[parent] = back
        at_input = np.broadcast_to(waiting[0], (len(self.covered), *waiting[0].shape[1:]))
        if self.hulls is None:
            lowest = np.where(at_input > 0, self.input_lower[:, None], self.input_upper[:, None])
            value = np.einsum("bsd,bsd->bs", at_input, lowest)
            error = error + gamma(at_input.shape[2] + 2) * _dot(np.abs(at_input), self.size[0])
        else:
            rounded = _dot(np.abs(at_input), self.spread) * (1 + gamma(at_input.shape[2] + 2))
            value, lost, at_input = self.hulls.lowest(at_input)
            error = error + lost + rounded
        total = value + constant
        return total - (error + U * np.abs(total)) * INFLATED - TINY, at_input

    def _through_lines(
        self, own: Array, lines: Lines, layer: RectifierLayer | SmoothLayer
    ) -> tuple[Array, Array, Array]:
        """Coefficients of what an activation reads, what is added to the constant, and the error of both."""
        back = own * np.where(own > 0, lines.low[:, None], lines.high[:, None])
        (parent,) = layer.inputs
        shifted = _dot(np.minimum(own, 0), lines.shift)
        if lines.under is None:
            shifts, size = -shifted, self.size[parent]  # slopes of rectifiers are between 0 and 1
        else:
            shifted = shifted + _dot(np.maximum(own, 0), lines.under)
            shifts = _dot(np.abs(own), np.maximum(np.abs(lines.shift), np.abs(lines.under)))
            size = np.maximum(1, np.abs(lines.low)) * self.size[parent]
        leak = layer.leak if isinstance(layer, RectifierLayer) else 0.0
        lost = gamma(own.shape[2] + 4) * shifts * INFLATED
        return back, shifted, lost + (3 * U + self.unit * leak) * _dot(np.abs(own), size)


def _dot(coefficients: Array, values: Array) -> Array:
    """``(B, S, n)`` times ``(B, n)``."""
    return np.matmul(coefficients, values[:, :, None])[..., 0]


def _inner(layer: AffineLayer, axis: int) -> int:
    """Terms that are added up for one entry, of the result (axis 1) or of pulled back coefficients (axis 0)."""
    return 1 if layer.is_diagonal else int(layer.weight.shape[axis])


def _is_first(network: LayeredNetwork, index: int) -> bool:
    """Whether a value is an affine map of the input alone, whose bounds from forward are as good as any."""
    layer: Any = network.layers[index - 1]
    return isinstance(layer, AffineLayer) and layer.inputs == (0,)
