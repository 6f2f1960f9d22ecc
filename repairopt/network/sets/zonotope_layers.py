"""What each layer does to a zonotope: the abstract transformers of DeepZ, in a registry that anyone may add to.

A relaxation is a function from a :class:`Call`, one operation of a network on sets, to the set of its results, or to
None where it cannot take the operation as it is used. ``@relaxation(nn.Tanh, torch.tanh)`` registers it for modules,
functions and names of methods; certified radii, margins and all bounds of sets then go through such layers.

References:
    Singh, Gehr, Mirman, Pueschel, Vechev, Fast and Effective Robustness Certification, NeurIPS 2018.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from repairopt.errors import SpecificationError
from repairopt.network.classifier import second_of_two


@dataclass(frozen=True, eq=False)
class Zonotope:
    """The sets ``{center + sum_p e_p generators_p : |e_p| <= 1}``: center ``(N, ...)``, generators ``(N, P, ...)``."""

    center: Tensor
    generators: Tensor

    @property
    def spread(self) -> Tensor:
        """Half-width of the smallest box around each set, shaped as the center."""
        return self.generators.abs().sum(1)

    def lowest(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest values ``(N, m)`` of linear functions ``(N, m, h)`` over the sets, and where: ``(N, m, h)``."""
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


@dataclass(frozen=True, eq=False)
class Call:
    """One operation on sets.

    Attributes:
        args: Its arguments; sets are zonotopes, all else is as the network has it.
        kwargs: Its named arguments.
        target: The function or name of a method, or the layer's name.
        module: The layer, or None for a function or method.
        given: New values of parameters by the identity of the old ones.
        run: The operation itself, on tensors: ``run(center)`` is what it makes of centers.
        slope: Wished slope of the band of a relaxation that has a choice, such as that of ReLU; None for its own.
        columns: Number of noise symbols in use.
        prune: Whether generators that are 0 for all inputs may be dropped.
        compact: Whether new symbols may share columns between inputs, so that their number depends on values.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any
    module: nn.Module | None
    given: Mapping[int, Tensor]
    run: Callable[..., Any]
    slope: float | Tensor | None = None
    columns: int = 0
    prune: bool = False
    compact: bool = False

    @property
    def z(self) -> Zonotope:
        """The set that the operation is applied to, its first argument."""
        found: Zonotope = self.args[0]
        return found

    def band(self, slope: Tensor, shift: Tensor, radius: Tensor) -> Zonotope:
        """The set between ``slope x + shift - radius`` and ``slope x + shift + radius``; a new symbol for each radius.

        Args:
            slope: Slope of each entry, shaped as the center.
            shift: Middle of the band at 0.
            radius: Its half-height, 0 or more; 0 where the operation is linear over the set.
        """
        z, columns = self.z, self.columns
        generators = slope[:, None] * z.generators
        if self.prune:
            used = (generators != 0).flatten(2).any(2).any(0)
            generators = generators[:, used] if bool(used.any()) else generators[:, :1]
            columns = generators.shape[1]
        flat = radius.flatten(1)
        if self.compact:
            rows, features = flat.nonzero(as_tuple=True)
            place = (flat != 0).cumsum(1)[rows, features] - 1
            new = flat.new_zeros(len(flat), int(place.max()) + 1 if len(place) else 0, flat.shape[1])
            new = new.index_put((rows, place, features), flat[rows, features])
        else:
            new = torch.diag_embed(flat)
        parts = [_widen(generators, columns), new.unflatten(2, radius.shape[1:])]
        return Zonotope(slope * z.center + shift, torch.cat(parts, dim=1))


@dataclass(frozen=True)
class Relaxation:
    """A registered relaxation, whether it adds noise symbols, and whether it needs a set as the first argument."""

    function: Callable[[Call], Zonotope | None]
    widens: bool
    first: bool


RELAXATIONS: dict[Any, Relaxation] = {}
Function = Callable[[Call], Zonotope | None]


def relaxation(*targets: Any, widens: bool = False, first: bool = True) -> Callable[[Function], Function]:
    """Register a function as the relaxation of modules, functions and methods; a later one takes the place of a former.

    Args:
        *targets: Types of modules, functions, names of methods.
        widens: Whether it adds noise symbols, as :meth:`Call.band` does.
        first: Whether its first argument has to be a set.

    Returns:
        A decorator.

    Raises:
        SpecificationError: A target is none of these.
    """
    for target in targets:
        if not callable(target) and not isinstance(target, str):
            raise SpecificationError(
                f"relaxation: {target!r} is a {type(target).__name__}; expected a module type, a function, or the name "
                f"of a method of tensors."
            )

    def register(function: Function) -> Function:
        RELAXATIONS.update(dict.fromkeys(targets, Relaxation(function, widens, first)))
        return function

    return register


def relaxation_of(target: Any, module: nn.Module | None) -> Relaxation | None:
    """The relaxation of a module, by its type or the nearest of its bases, or of a function or method; or None."""
    kinds = (target,) if module is None else type(module).__mro__
    return next((RELAXATIONS[kind] for kind in kinds if kind in RELAXATIONS), None)


def _each(function: Any, generators: Tensor) -> Tensor:
    """Apply a function of a batch to every generator."""
    return function(generators.flatten(0, 1)).unflatten(0, generators.shape[:2])


def replaced(module: nn.Module, given: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The new values of a layer's parameters, by name; ``given`` has them by the identity of the old ones."""
    return {name: given[id(value)] for name, value in module.named_parameters() if id(value) in given}


@relaxation(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
def _same(call: Call) -> Zonotope | None:
    return call.z


@relaxation(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
@relaxation(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
@relaxation(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
def _affine(call: Call) -> Zonotope | None:
    """A layer ``W x + b``: generators see no ``b``. Batch normalization is one, with its mean as a second offset."""
    module, z = call.module, call.z
    assert module is not None
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return None  # without statistics it is no function of single samples
    own = replaced(module, call.given)
    offsets = {name: getattr(module, name, None) for name in ("bias", "running_mean")}
    without = {**own, **{name: torch.zeros_like(value) for name, value in offsets.items() if value is not None}}
    generators = _each(lambda rows: functional_call(module, without, (rows,)), z.generators)
    return Zonotope(functional_call(module, own, (z.center,)), generators)


def linear_function(call: Call, weighted: bool = False) -> Zonotope | None:
    """A linear function of its first argument; where ``weighted``, called as ``function(x, weight, bias, ...)``."""
    (z, *rest), kwargs, function = call.args, dict(call.kwargs), call.target
    if any(isinstance(value, Zonotope) for value in (*rest, *kwargs.values())):
        return None
    center = function(z.center, *rest, **kwargs)
    if weighted:
        kwargs.pop("bias", None)
        rest = [*rest[:1], None, *rest[2:]] if len(rest) > 1 else rest
    return Zonotope(center, _each(lambda rows: function(rows, *rest, **kwargs), z.generators))


relaxation(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)(linear_function)
relaxation(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)(linear_function)
relaxation(second_of_two)(linear_function)
relaxation(F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d)(
    partial(linear_function, weighted=True)
)


@relaxation(nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.unsqueeze, torch.squeeze)
@relaxation("flatten", "reshape", "view", "unsqueeze", "squeeze", "contiguous", "clone")
def _reshape(call: Call) -> Zonotope | None:
    """Row-major reshapes keep samples apart exactly if they keep the first size."""
    z, center = call.z, call.run(call.z.center, *call.args[1:], **call.kwargs)
    if not center.ndim or center.shape[0] != z.center.shape[0]:
        return None
    return Zonotope(center, z.generators.reshape(*z.generators.shape[:2], *center.shape[1:]))


@relaxation(F.dropout)
def _dropout(call: Call) -> Zonotope | None:
    return None if call.kwargs.get("training", True) else call.z


@relaxation(operator.neg, torch.neg, "neg")
def _negated(call: Call) -> Zonotope | None:
    return Zonotope(-call.z.center, -call.z.generators)


def _arithmetic(call: Call, kind: str) -> Zonotope | None:
    """``add``, ``sub``, ``mul`` or ``div`` of a zonotope and a constant; or ``add``, ``sub`` of two zonotopes."""
    if len(call.args) != 2 or call.kwargs:
        return None
    a, b = call.args
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


for _kind, _targets in {
    "add": (operator.add, operator.iadd, torch.add, "add"),
    "sub": (operator.sub, operator.isub, torch.sub, "sub"),
    "mul": (operator.mul, operator.imul, torch.mul, "mul"),
    "div": (operator.truediv, operator.itruediv, torch.div, "div"),
}.items():
    relaxation(*_targets, first=False)(partial(_arithmetic, kind=_kind))


def _widen(generators: Tensor, columns: int) -> Tensor:
    """Add columns of zeros: symbols that this set does not depend on."""
    missing = columns - generators.shape[1]
    zeros = generators.new_zeros(generators.shape[0], max(missing, 0), *generators.shape[2:])
    return torch.cat([generators, zeros], dim=1) if missing > 0 else generators


@relaxation(nn.ReLU, F.relu, torch.relu, "relu", widens=True)
def _relu(call: Call) -> Zonotope | None:
    """Where the sign is open, the band of the given slope that covers ReLU; its half-height is a new symbol."""
    z, slope = call.z, call.slope
    low, high = z.center - z.spread, z.center + z.spread
    open_ = (low < 0) & (high > 0)
    one, zero = torch.ones_like(low), torch.zeros_like(low)
    least_area = torch.where(open_, high / torch.where(open_, high - low, one), (low >= 0).to(low.dtype))
    steepness = (
        least_area
        if slope is None
        else torch.where(open_, torch.as_tensor(slope, dtype=low.dtype, device=low.device), least_area)
    )
    height = torch.where(steepness >= least_area, -steepness * low, (1 - steepness) * high) / 2
    radius = torch.where(open_, height, zero)
    return call.band(steepness, radius, radius)
