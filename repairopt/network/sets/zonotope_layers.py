"""What each layer does to a zonotope: the abstract transformers of DeepZ.

References:
    Singh, Gehr, Mirman, Pueschel, Vechev, Fast and Effective Robustness Certification, NeurIPS 2018.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

AFFINE = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
RESHAPES = (nn.Flatten, nn.Unflatten)

FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), "relu"),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.unsqueeze, torch.squeeze), "reshape"),
    **dict.fromkeys(("flatten", "reshape", "view", "unsqueeze", "squeeze", "contiguous"), "reshape"),
    **dict.fromkeys((F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d), "weighted"),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), "linear"),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), "linear"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add"), "add"),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub"), "sub"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul"), "mul"),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div"), "div"),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), "neg"),
    F.dropout: "dropout",
}


@dataclass(frozen=True, eq=False)
class Zonotope:
    """The sets ``{center + sum_p e_p generators_p : |e_p| <= 1}``, one for each of ``N`` inputs.

    Attributes:
        center: ``(N, ...)``.
        generators: ``(N, P, ...)``.
    """

    center: Tensor
    generators: Tensor

    @property
    def spread(self) -> Tensor:
        """Half-width of the smallest box around each set, shaped as the center."""
        return self.generators.abs().sum(1)

    def lowest(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest value of linear functions over the sets, and where it is attained.

        Args:
            directions: ``(N, m, h)`` for a center ``(N, h)``.

        Returns:
            Values ``(N, m)`` and points of the sets ``(N, m, h)`` with ``direction . point == value``.
        """
        along = torch.einsum("nph,nmh->nmp", self.generators, directions)
        points = self.center[:, None] - torch.einsum("nmp,nph->nmh", along.sign(), self.generators)
        return torch.einsum("nh,nmh->nm", self.center, directions) - along.abs().sum(2), points


def box(low: Tensor, high: Tensor) -> Zonotope:
    """The boxes between ``low`` and ``high``, both ``(N, ...)``; one generator for each input that varies."""
    half = ((high - low) / 2).flatten(1)
    varies = (half != 0).any(0).nonzero()[:, 0]
    if len(varies) == 0:
        varies = torch.zeros(1, dtype=torch.int64, device=half.device)
    generators = half.new_zeros(len(half), len(varies), half.shape[1])
    generators[:, torch.arange(len(varies), device=half.device), varies] = half[:, varies]
    return Zonotope((low + high) / 2, generators.unflatten(2, low.shape[1:]))


def _each(function: Any, generators: Tensor) -> Tensor:
    """Apply a function of a batch to every generator."""
    return function(generators.flatten(0, 1)).unflatten(0, generators.shape[:2])


def replaced(module: nn.Module, given: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The new values of a layer's parameters, by name; ``given`` has them by the identity of the old ones."""
    return {name: given[id(value)] for name, value in module.named_parameters() if id(value) in given}


def affine(module: nn.Module, z: Zonotope, given: Mapping[int, Tensor]) -> Zonotope:
    """A layer ``W x + b``: generators see no ``b``. Batch normalization is one, with its mean as a second offset."""
    own = replaced(module, given)
    offsets = {name: getattr(module, name, None) for name in ("bias", "running_mean")}
    without = {**own, **{name: torch.zeros_like(value) for name, value in offsets.items() if value is not None}}
    generators = _each(lambda rows: functional_call(module, without, (rows,)), z.generators)
    return Zonotope(functional_call(module, own, (z.center,)), generators)


def linear(function: Any, weighted: bool, args: Any, kwargs: Any) -> Zonotope | None:
    """A linear function of its first argument; where ``weighted``, called as ``function(x, weight, bias, ...)``."""
    z, *rest = args
    if any(isinstance(value, Zonotope) for value in (*rest, *kwargs.values())):
        return None
    center = function(z.center, *rest, **kwargs)
    if weighted:
        kwargs = {name: value for name, value in kwargs.items() if name != "bias"}
        rest = [*rest[:1], None, *rest[2:]] if len(rest) > 1 else rest
    return Zonotope(center, _each(lambda rows: function(rows, *rest, **kwargs), z.generators))


def reshape(z: Zonotope, center: Tensor) -> Zonotope | None:
    """Row-major reshapes keep samples apart exactly if they keep the first size."""
    if center.ndim < 2 or center.shape[0] != z.center.shape[0]:
        return None
    return Zonotope(center, z.generators.reshape(*z.generators.shape[:2], *center.shape[1:]))


def arithmetic(kind: str, a: Any, b: Any) -> Zonotope | None:
    """``add``, ``sub``, ``mul`` or ``div`` of a zonotope and a constant; or ``add``, ``sub`` of two zonotopes."""
    function = getattr(operator, "truediv" if kind == "div" else kind)
    if isinstance(a, Zonotope) and isinstance(b, Zonotope):
        if kind not in ("add", "sub") or a.center.shape != b.center.shape:
            return None
        size = max(a.generators.shape[1], b.generators.shape[1])
        left, right = _widen(a.generators, size), _widen(b.generators, size)
        return Zonotope(function(a.center, b.center), function(left, right))
    z, constant = (a, b) if isinstance(a, Zonotope) else (b, a)
    if isinstance(constant, Tensor) and (
        constant.ndim > z.center.ndim or (constant.ndim == z.center.ndim and constant.shape[0] != 1)
    ):
        return None  # differs from sample to sample
    center = function(a.center, b) if z is a else function(a, b.center)
    if kind in ("add", "sub"):
        same = center.shape == z.center.shape
        return Zonotope(center, -z.generators if kind == "sub" and z is b else z.generators) if same else None
    if kind == "div" and z is b:
        return None
    return Zonotope(center, _each(lambda rows: function(rows, constant), z.generators))


def _widen(generators: Tensor, columns: int) -> Tensor:
    """Add columns of zeros: symbols that this set does not depend on."""
    missing = columns - generators.shape[1]
    zeros = generators.new_zeros(generators.shape[0], max(missing, 0), *generators.shape[2:])
    return torch.cat([generators, zeros], dim=1) if missing > 0 else generators


def relu(z: Zonotope, slope: float | Tensor | None, columns: int, prune: bool, compact: bool) -> Zonotope:
    """Where the sign is open, the band of the given slope that covers ReLU; its half-height is a new symbol."""
    spread = z.spread
    low, high = z.center - spread, z.center + spread
    open_ = (low < 0) & (high > 0)
    one, zero = torch.ones_like(low), torch.zeros_like(low)
    least_area = torch.where(open_, high / torch.where(open_, high - low, one), (low >= 0).to(low.dtype))
    steepness = (
        least_area
        if slope is None
        else torch.where(open_, torch.as_tensor(slope, dtype=low.dtype, device=low.device), least_area)
    )
    height = torch.where(steepness >= least_area, -steepness * low, (1 - steepness) * high) / 2
    shift = torch.where(open_, height, zero)
    generators = steepness[:, None] * z.generators
    if prune:
        used = (generators != 0).flatten(2).any(2).any(0)
        generators = generators[:, used] if bool(used.any()) else generators[:, :1]
        columns = generators.shape[1]
    flat = shift.flatten(1)
    if compact:
        rows, features = open_.flatten(1).nonzero(as_tuple=True)
        place = open_.flatten(1).cumsum(1)[rows, features] - 1
        new = flat.new_zeros(len(flat), int(place.max()) + 1 if len(place) else 0, flat.shape[1])
        new = new.index_put((rows, place, features), flat[rows, features])
    else:
        new = torch.diag_embed(flat)
    parts = [_widen(generators, columns), new.unflatten(2, low.shape[1:])]
    return Zonotope(steepness * z.center + shift, torch.cat(parts, dim=1))
