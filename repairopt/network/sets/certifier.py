"""The certifier behind :mod:`repairopt.network.sets.zonotope`: batches, bisection of radii, reuse of what stays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError, UnsupportedError
from repairopt.network.deadline import check_time
from repairopt.network.inputs import check_inputs, check_labels

from .propagate_zonotope import Environment, Slope, TracedNetwork
from .zonotope_layers import Zonotope, box

ROUNDING = 64.0  # units of machine precision, times the size of what the last sums add up
MEMORY_LIMIT = 2**27
LEVELS, SMALL = 3, 200_000  # halvings that are looked at in one pass, and numbers of generators that may take

Bound = float | Tensor


class Certifier:
    """Certified margins of one set of inputs, again and again under changing weights.

    What lies before the first parameter in ``changed`` is computed once for each radius and kept, within the memory
    limit; with no names there, nothing is kept and everything differentiated.

    Args:
        network: One tensor in, logits out.
        inputs: Centers of the balls, ``(N, ...)``.
        labels: Class indices ``(N,)``; None where only :meth:`ball` is used.
        lower: Smallest allowed input, a number or a tensor that broadcasts; ``-inf`` for none.
        upper: Largest allowed input; ``inf`` for none.
        slope: Slope of the ReLU relaxation between 0 and 1: None for least area, a number or tensor, or a dict from
            layer (module name, or name of the traced node) to a tensor. Every choice is sound.
        changed: Names of the parameters that will be replaced.
        memory_limit: Bytes that generators of one batch may take, and bytes that may be kept.

    Raises:
        SpecificationError: Inputs or labels malformed, or inputs outside of the bounds.
        UnsupportedError: The network cannot be traced or has a layer without a transformer.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Any,
        labels: Any,
        *,
        lower: Bound = 0.0,
        upper: Bound = 1.0,
        slope: Slope = None,
        changed: Collection[str] = (),
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self.traced = TracedNetwork(network)
        self.inputs, self.labels = check_inputs("certified margin", inputs, labels)
        first = next((p for p in self.traced.original.values() if p.is_floating_point()), self.inputs)
        self.inputs = self.inputs.to(first)
        self.labels = None if labels is None else self.labels.to(first.device)
        like: Any = {"dtype": first.dtype, "device": first.device}
        self.lower, self.upper = (torch.as_tensor(side, **like) for side in (lower, upper))
        self.slope, self.memory_limit, self.changed = slope, memory_limit, frozenset(changed)
        if bool(((self.inputs < self.lower) | (self.inputs > self.upper)).any()):
            raise SpecificationError(
                f"certified margin: inputs from {float(self.inputs.min()):.4g} to {float(self.inputs.max()):.4g} are "
                f"not within the bounds {lower} to {upper}. Pass lower=... and upper=..., infinite where there is none."
            )
        self.late = self.traced.late(changed) if changed else self.traced.nodes
        self.early = [node for node in self.traced.nodes if node not in set(self.late)]
        self._kept: OrderedDict[Any, tuple[int, Environment]] = OrderedDict()
        self._kept_bytes = 0
        self._batch = self._probe()

    def as_radii(self, radius: Any) -> Tensor:
        """One radius for each input, from a number or a tensor."""
        radii = torch.as_tensor(radius, dtype=self.inputs.dtype, device=self.inputs.device).detach()
        if radii.ndim > 1 or bool((radii < 0).any()) or not bool(torch.isfinite(radii).all()):
            raise SpecificationError(
                f"certified margin: radius {radius} is not usable; expected a number from 0, or one for each input."
            )
        return radii.expand(len(self.inputs))

    def ball(self, radii: Tensor, x: Tensor) -> Zonotope:
        """The balls of some radii ``(k,)`` around points ``(k, ...)``, cut off at the bounds."""
        r = radii.reshape(-1, *[1] * (x.ndim - 1))
        return box(torch.maximum(x - r, self.lower), torch.minimum(x + r, self.upper))

    def margins(self, radius: Any, parameters: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Certified margins of all inputs or of ``rows``, for one radius or ``(N,)``; parameters replaced by name."""
        if self.changed and not self.changed.issuperset(parameters):
            raise SpecificationError(
                f"certified margin: {set(parameters) - self.changed} not in changed={self.changed}."
            )
        radii = self.as_radii(radius)
        rows = torch.arange(len(radii), device=radii.device) if rows is None else rows
        return self._margins(radii[rows], rows, parameters)

    def _margins(self, radii: Tensor, rows: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Certified margins of inputs ``rows (k,)``, which may repeat, for one radius each, ``(k,)``."""
        parts = []
        for part, own in zip(rows.split(self._batch), radii.split(self._batch), strict=True):
            check_time()
            values = self.traced.run(self.late, self._before(own, part), parameters, self.slope)
            parts.append(_smallest_gap(values[self.traced.nodes[-1]], self.labels[part]))
        return torch.cat(parts)

    def radii(
        self, parameters: Mapping[str, Tensor], *, tol: float = 1e-3, start: float = 0.2, max_radius: float = 1.0
    ) -> Tensor:
        """Largest certified radius of each input by bisection, 0 where none is; see certified_radius.

        Of few small inputs the radii of several halvings are looked at in one pass, for it is the calls that cost then.
        """
        if not (tol > 0 and start > 0 and max_radius > 0):
            raise SpecificationError(
                f"certified radius: tol {tol}, start {start}, max_radius {max_radius}; expected > 0."
            )

        def holds(radii: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad():
                return self._margins(radii, rows, parameters) > 0

        few = 2**LEVELS * len(self.inputs) * self._size <= SMALL
        most = min(max_radius, torch.finfo(self.inputs.dtype).max / 4)
        low, high = self._grown(holds, min(start, most), most, 2**LEVELS if few else 1)
        while len(rows := torch.nonzero(high - low > tol)[:, 0]):
            halvings = _Halvings(low[rows], high[rows], LEVELS if few else 1)
            low[rows], high[rows] = halvings.walk(holds(halvings.radii.flatten(), halvings.repeated(rows)), tol)
        return low

    def _grown(
        self, holds: Callable[[Tensor, Tensor], Tensor], start: float, most: float, at_once: int
    ) -> tuple[Tensor, Tensor]:
        """The last radius that holds and the first that does not, of 0, ``start`` and its doubles up to ``most``.

        Of each input, ``(N,)``; both are 0 where 0 does not hold, ``most`` where that does. ``at_once`` is how many
        radii are looked at in one pass.
        """
        low, high = (self.inputs.new_zeros(len(self.inputs)) for _ in range(2))
        growing, before, tried = torch.arange(len(low), device=low.device), 0.0, [0.0]
        while len(growing):
            while len(tried) < at_once and tried[-1] < most:
                tried.append(_next(tried[-1], start, most))
            good = holds(low.new_tensor(tried).repeat(len(growing)), growing.repeat_interleave(len(tried)))
            count = good.reshape(-1, len(tried)).int().cumprod(1).sum(1)
            low[growing] = low.new_tensor([before, *tried])[count]
            high[growing] = low.new_tensor([*tried, tried[-1]])[count]
            growing = growing[(count == len(tried)) & (tried[-1] < most)]
            before, tried = tried[-1], [_next(tried[-1], start, most)]
        return low, high

    def _before(self, radii: Tensor, rows: Tensor) -> Environment:
        """Everything that the late nodes need, for some of the inputs and a radius each."""
        if not self.changed:
            return {self.traced.input: self.ball(radii, self.inputs[rows])}
        key = tuple(rows.tolist()), tuple(radii.tolist())
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        with torch.no_grad():
            balls = self.ball(radii, self.inputs[rows])
            found = self.traced.run(self.early, {self.traced.input: balls}, {}, self.slope)
        sets = [value.generators for value in found.values() if isinstance(value, Zonotope)]
        self._kept[key] = sum(g.numel() * g.element_size() for g in sets), found
        self._kept_bytes += self._kept[key][0]
        while self._kept_bytes > self.memory_limit:
            self._kept_bytes -= self._kept.popitem(last=False)[1][0]
        return found

    def _probe(self) -> int:
        """Compare a run on points with the plain network; return how many inputs fit into a batch."""
        few = self.inputs[:3]
        values: Environment = {self.traced.input: Zonotope(few, torch.zeros_like(few)[:, None])}
        columns, most = few[0].numel(), few[0].numel() ** 2
        with torch.no_grad():
            try:
                plain = self.traced.network(few.clone())
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise UnsupportedError(
                    f"{self.traced.what}: cannot be run on {few.dtype} inputs of shape {tuple(few.shape)} ({error}). "
                    f"Certified bounds are for balls around inputs with fractions."
                ) from error
            for node in self.traced.nodes:
                values = self.traced.run([node], values, {}, self.slope)
                if isinstance(values[node], Zonotope):
                    width = values[node].center[0].numel()
                    columns += width if self.traced.widens(node) else 0
                    most = max(most, columns * width)
        found = values[self.traced.nodes[-1]]
        if not isinstance(found, Zonotope) or found.center.ndim != 2 or found.center.shape[1] < 2:
            raise UnsupportedError(f"{self.traced.what}: expected logits (N, k) with k at least 2 as its only output.")
        if not torch.allclose(found.center, plain, rtol=1e-3, atol=1e-4):
            raise UnsupportedError(
                f"{self.traced.what}: its traced form gives other logits than a plain run, by up to "
                f"{float((found.center - plain).abs().max()):.3g}. Look for operations that write into their input."
            )
        if self.labels is not None:
            check_labels("certified margin", self.labels, plain.shape[1])
        self._size = most
        return max(1, self.memory_limit // (most * few.element_size()))


def _next(radius: float, start: float, most: float) -> float:
    return min(2 * radius, most) if radius else start


class _Halvings:
    """All radii that some halvings of intervals may come to.

    Attributes:
        radii: Middles, ``(k, 2^levels - 1)``: of the intervals, of their two halves, of the four quarters, and so on.
    """

    def __init__(self, low: Tensor, high: Tensor, levels: int) -> None:
        self.low, self.high, middles = low, high, []
        lows, highs = low[:, None], high[:, None]
        for _ in range(levels):
            middles.append(middle := (lows + highs) / 2)
            lows, highs = (torch.stack(pair, 2).flatten(1) for pair in ((lows, middle), (middle, highs)))
        self.radii = torch.cat(middles, 1)

    def repeated(self, rows: Tensor) -> Tensor:
        """A row of each radius, flattened, from those of the intervals ``(k,)``."""
        return rows.repeat_interleave(self.radii.shape[1])

    def walk(self, holds: Tensor, tol: float) -> tuple[Tensor, Tensor]:
        """Ends of the intervals, ``(k,)`` each, halved down to ``tol`` or as often as is known, by what holds."""
        low, high, holds = self.low, self.high, holds.reshape(self.radii.shape)
        place = torch.zeros_like(low, dtype=torch.int64)[:, None]
        while int(place.max()) < self.radii.shape[1]:
            middle, good, wide = self.radii.gather(1, place)[:, 0], holds.gather(1, place)[:, 0], high - low > tol
            low, high = torch.where(wide & good, middle, low), torch.where(wide & ~good, middle, high)
            place = 2 * place + 1 + good[:, None]
        return low, high


def _smallest_gap(logits: Zonotope, labels: Tensor) -> Tensor:
    own = labels[:, None]
    gap = logits.center.gather(1, own) - logits.center
    columns = logits.generators
    apart = (columns.gather(2, own[:, None].expand(-1, columns.shape[1], 1)) - columns).abs().sum(1)
    size = (logits.center.abs() + logits.spread).detach()
    rounding = ROUNDING * torch.finfo(size.dtype).eps * (size + size.gather(1, own))
    is_own = torch.nn.functional.one_hot(labels, gap.shape[1]).bool()
    return (gap - apart - rounding).masked_fill(is_own, float("inf")).min(1).values
