"""Push zonotopes through a traced network, layer by layer: the abstract transformers of DeepZ.

The network is traced with ``torch.fx``; parameters may be replaced by name, so one trace serves all weight changes and
derivatives with respect to them. Column ``p`` of the generators means the same noise symbol in every layer, so branches
that meet again (residual connections) are added symbol by symbol.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from .check_model import shadow
from .errors import ModelError, UnsupportedError

Slope = float | Tensor | Mapping[str, Tensor] | None
Environment = dict[fx.Node, Any]

SUPPORTED = (
    "Supported: Linear, Conv1d/2d/3d, BatchNorm, average pooling, ReLU, Dropout, Flatten, view, reshape, the sum of two "
    "branches, and +, -, *, / with constants."
)

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
    generators[:, torch.arange(len(varies)), varies] = half[:, varies]
    return Zonotope((low + high) / 2, generators.unflatten(2, low.shape[1:]))


class TracedNetwork:
    """A network as a list of steps that zonotopes can take.

    Args:
        network: One tensor in, logits out; run in evaluation mode, not modified.

    Raises:
        UnsupportedError: The network cannot be traced, or takes more than one input.
    """

    def __init__(self, network: nn.Module) -> None:
        self.what = f"network {type(network).__name__}"
        self.network = shadow(network)
        try:
            self.nodes = list(fx.Tracer().trace(self.network).nodes)
        except Exception as error:  # tracing runs the user's forward on proxies: whatever it raises means "cannot"
            raise UnsupportedError(
                f"{self.what}: cannot be traced with torch.fx ({type(error).__name__}: {error}), as certified bounds "
                f"need. Remove control flow that depends on data from forward. {SUPPORTED}"
            ) from error
        self.input, *others = [node for node in self.nodes if node.op == "placeholder"]
        self.defaults = {node: node.args[0] for node in others if node.args}
        if len(self.defaults) < len(others):
            raise UnsupportedError(f"{self.what}: takes {1 + len(others)} inputs; certified bounds are for one tensor.")
        self.original = dict(self.network.named_parameters(remove_duplicate=False))
        self.chain = self._is_chain()

    def late(self, changed: Iterable[str]) -> list[fx.Node]:
        """The nodes whose value depends on one of the named parameters, in order."""
        identities = set(self._replacements(dict.fromkeys(changed, torch.empty(0))))
        found: set[fx.Node] = set()
        for node in self.nodes:
            if any(parent in found for parent in node.all_input_nodes) or identities & self._reads(node):
                found.add(node)
        return [node for node in self.nodes if node in found]

    def run(
        self,
        nodes: list[fx.Node],
        known: Environment,
        parameters: Mapping[str, Tensor],
        slope: Slope = None,
        prune: bool = True,
    ) -> Environment:
        """Evaluate ``nodes`` in order.

        Args:
            nodes: Nodes whose inputs are in ``known`` or earlier in the list.
            known: Values so far; not modified.
            parameters: Replaced parameters by name.
            slope: Of the ReLU relaxation, see :func:`repairopt.zonotope.certified_margin`.
            prune: Drop generators that are 0 for all inputs. False keeps all shapes independent of values.

        Returns:
            The values that nodes outside of ``nodes`` still need, and the last one.
        """
        step = _Step(self, self._replacements(parameters), slope, prune)
        values, done = {**self.defaults, **known}, set(self.defaults)
        for node in nodes:
            if node not in values:
                values[node] = step(node, values)
            done.add(node)
            for parent in node.all_input_nodes:
                if parent.users.keys() <= done:
                    values.pop(parent, None)
        return values

    def _replacements(self, parameters: Mapping[str, Tensor]) -> dict[int, Tensor]:
        unknown = sorted(set(parameters) - set(self.original))
        if unknown:
            known = ", ".join(list(self.original)[:12])
            raise ModelError(f"{self.what}: has no parameter '{unknown[0]}'. Its parameters: {known}.")
        return {id(self.original[name]): value for name, value in parameters.items()}

    def _reads(self, node: fx.Node) -> set[int]:
        if node.op == "get_attr":
            return {id(operator.attrgetter(str(node.target))(self.network))}
        if node.op == "call_module":
            return {id(value) for value in self.network.get_submodule(str(node.target)).parameters()}
        return set()

    def _is_chain(self) -> bool:
        """Whether no two branches meet, so that generators need not keep their column."""
        data = {self.input}
        for node in self.nodes:
            parents = data.intersection(node.all_input_nodes)
            if len(parents) > 1:
                return False
            if parents and node.target not in ("size", "dim", getattr):
                data.add(node)
        return True


@dataclass(frozen=True)
class _Step:
    """Evaluates one node: the transformer of its layer where it sees a zonotope, the operation itself elsewhere."""

    traced: TracedNetwork
    given: Mapping[int, Tensor]
    slope: Slope
    prune: bool

    def __call__(self, node: fx.Node, values: Environment) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda parent: values[parent])
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.traced.network)
            return self.given.get(id(value), value)
        sets = [value for value in (*args, *kwargs.values()) if isinstance(value, Zonotope)]
        if node.op == "call_module":
            kind = self._module(node, self.traced.network.get_submodule(str(node.target)), args, sets)
        elif node.target in ("size", "dim") or node.target is getattr or not sets:
            plain = [value.center if isinstance(value, Zonotope) else value for value in args]
            function: Any = node.target
            return (getattr(plain[0], function)(*plain[1:], **kwargs)) if node.op == "call_method" else (
                function(*plain, **kwargs)
            )
        else:
            kind = FUNCTIONS.get(node.target, "")
        if isinstance(kind, Zonotope):
            return kind
        return self._function(kind, node, args, kwargs, values)

    def _module(self, node: fx.Node, module: nn.Module, args: Any, sets: list[Zonotope]) -> Zonotope | str:
        hooked = module._forward_hooks or module._forward_pre_hooks
        if len(args) != 1 or len(sets) != 1 or hooked:
            return ""
        if isinstance(module, nn.ReLU):
            return "relu"
        if isinstance(module, SAME):
            return sets[0]
        if isinstance(module, RESHAPES):
            return "reshape"
        without_statistics = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if isinstance(module, AFFINE) and not without_statistics:
            return _affine(module, sets[0], self.given)
        return ""

    def _function(self, kind: str, node: fx.Node, args: Any, kwargs: Any, values: Environment) -> Zonotope:
        result = None
        if kind == "relu":
            live = (value.generators.shape[1] for value in values.values() if isinstance(value, Zonotope))
            slope = self.slope
            if isinstance(slope, Mapping):
                slope = slope.get(str(node.target) if node.op == "call_module" else node.name)
            result = _relu(args[0], slope, max(live), self.prune and self.traced.chain, self.prune)
        elif kind == "reshape":
            result = _reshape(args[0], self._plain(node, args[0].center, args[1:], kwargs))
        elif kind in ("linear", "weighted") and isinstance(args[0], Zonotope):
            result = _linear(node.target, kind == "weighted", args, kwargs)
        elif kind == "dropout" and not kwargs.get("training", True):
            result = args[0]
        elif kind == "neg":
            result = Zonotope(-args[0].center, -args[0].generators)
        elif kind in ("add", "sub", "mul", "div") and len(args) == 2 and not kwargs:
            result = _arithmetic(kind, args[0], args[1])
        if result is None:
            raise UnsupportedError(self._refusal(node))
        return result

    def _plain(self, node: fx.Node, tensor: Tensor, rest: Any, kwargs: Any) -> Tensor:
        target: Any = node.target
        if node.op == "call_module":
            return self.traced.network.get_submodule(target)(tensor)  # type: ignore[no-any-return]
        call = getattr(tensor, target) if node.op == "call_method" else lambda *a, **k: target(tensor, *a, **k)
        return call(*rest, **kwargs)  # type: ignore[no-any-return]

    def _refusal(self, node: fx.Node) -> str:
        name = str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        if node.op == "call_module":
            what = f"layer '{name}' ({type(self.traced.network.get_submodule(name)).__name__})"
        else:
            what = f"operation '{name}' (node '{node.name}')"
        return f"{self.traced.what}: {what}, as it is used here, has no zonotope transformer. {SUPPORTED}"


def _each(function: Any, generators: Tensor) -> Tensor:
    """Apply a function of a batch to every generator."""
    return function(generators.flatten(0, 1)).unflatten(0, generators.shape[:2])  # type: ignore[no-any-return]


def _affine(module: nn.Module, z: Zonotope, given: Mapping[int, Tensor]) -> Zonotope:
    own = {name: given[id(value)] for name, value in module.named_parameters() if id(value) in given}
    offsets = {name: getattr(module, name, None) for name in ("bias", "running_mean")}
    without = {**own, **{name: torch.zeros_like(value) for name, value in offsets.items() if value is not None}}
    generators = _each(lambda rows: functional_call(module, without, (rows,)), z.generators)
    return Zonotope(functional_call(module, own, (z.center,)), generators)


def _linear(function: Any, weighted: bool, args: Any, kwargs: Any) -> Zonotope | None:
    z, *rest = args
    if any(isinstance(value, Zonotope) for value in (*rest, *kwargs.values())):
        return None
    center = function(z.center, *rest, **kwargs)
    if weighted:  # function(inputs, weight, bias, ...): generators see no bias
        kwargs = {name: value for name, value in kwargs.items() if name != "bias"}
        rest = [*rest[:1], None, *rest[2:]] if len(rest) > 1 else rest
    return Zonotope(center, _each(lambda rows: function(rows, *rest, **kwargs), z.generators))


def _reshape(z: Zonotope, center: Tensor) -> Zonotope | None:
    """Row-major reshapes keep samples apart exactly if they keep the first size."""
    if center.ndim < 2 or center.shape[0] != z.center.shape[0]:
        return None
    return Zonotope(center, z.generators.reshape(*z.generators.shape[:2], *center.shape[1:]))


def _arithmetic(kind: str, a: Any, b: Any) -> Zonotope | None:
    function = getattr(operator, "truediv" if kind == "div" else kind)
    if isinstance(a, Zonotope) and isinstance(b, Zonotope):
        if kind not in ("add", "sub") or a.center.shape != b.center.shape:
            return None
        size = max(a.generators.shape[1], b.generators.shape[1])
        left, right = _widen(a.generators, size), _widen(b.generators, size)
        return Zonotope(function(a.center, b.center), function(left, right))
    z, constant = (a, b) if isinstance(a, Zonotope) else (b, a)
    if isinstance(constant, Tensor) and constant.ndim >= z.center.ndim:
        if constant.ndim > z.center.ndim or constant.shape[0] != 1:
            return None
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


def _relu(z: Zonotope, slope: float | Tensor | None, columns: int, prune: bool, compact: bool) -> Zonotope:
    """Where the sign is open, the band of the given slope that covers ReLU; its half-height is a new symbol."""
    spread = z.spread
    low, high = z.center - spread, z.center + spread
    open_ = (low < 0) & (high > 0)
    one, zero = torch.ones_like(low), torch.zeros_like(low)
    least_area = torch.where(open_, high / torch.where(open_, high - low, one), (low >= 0).to(low.dtype))
    steepness = least_area if slope is None else torch.where(open_, torch.as_tensor(slope).to(low), least_area)
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
