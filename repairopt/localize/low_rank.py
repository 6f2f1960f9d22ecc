"""Factors of low rank as the weights that change, put beside layers by ``peft``, and merged into them in the end.

A layer's weight ``W`` becomes ``W + B A`` with ``B`` of ``r`` columns, 0 at first, and ``A`` of ``r`` rows, drawn at
random. The network with factors is what a method changes; what a repair ends with is the user's network with ``B A``
added to its weights, so that verdict, report, patch and exports are those of any change of weights.

References:
    Hu and others, LoRA: Low-rank adaptation of large language models, ICLR 2022.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, SpecificationError
from repairopt.network import Engine, ForwardFunction, ModuleCandidate, shadow, telling_rows
from repairopt.patches import Patch

from .location import Location, frozen_parameters, localize
from .trace_layers import first_inputs, unknown
from .weight_selectors import LowRank

ADAPTER = "default"
MARKS = (".lora_A.", ".lora_B.")  # in the names of factors, as peft gives them
KINDS = (nn.Linear, nn.Conv2d)
SIZE = 0.1  # of the factors with which it is tried whether they have the effect of the merged change
CLOSE = 1e-3  # of the largest effect
INSTALL = "weights=LowRank(...) needs the library peft; install it with pip install 'repairopt[peft]'."


@dataclass(frozen=True, eq=False)
class LowRankChange(ModuleCandidate):
    """A change of low rank of the user's weights: products of factors, which are merged into the weights.

    Attributes:
        factors: For each layer ``B (o, r)`` and ``A (r, f)``, float64; of a convolution with its kernel in ``f``.
        beside: What else changes: new minus old values by parameter, of its shape.
        numbers: Numbers of the factors, and of the weights that may change beside them.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    beside: Mapping[str, Tensor]
    numbers: int

    def describe(self) -> str:
        """Ranks, layers and how many numbers make them."""
        most = max(len(first) for _, first in self.factors.values())
        return f"change of rank {most} at most in {len(self.factors)} layers, of {self.numbers} numbers"

    def size(self) -> int:
        """Numbers of the factors."""
        return self.numbers

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the change added to its weights."""
        changed = copy.deepcopy(model)
        parameters = dict(changed.named_parameters())
        with torch.no_grad():
            for layer, (second, first) in self.factors.items():
                weight = parameters[f"{layer}.weight"]
                weight.copy_(weight.double() + (second @ first).view(weight.shape))  # rounded once
            for name, change in self.beside.items():
                parameters[name].add_(change)
        return changed

    def as_patch(self, model: nn.Module, **info: Any) -> Patch:
        """The change as a patch of the model."""
        return Patch.between(model, self.apply(model), **info)


@dataclass(frozen=True, eq=False)
class Factored:
    """A network with factors beside some of its layers.

    Attributes:
        model: The network with factors, which computes what the original does; it shares the original's parameters.
        location: The factors, and what else may change, in that network.
        own: The same as weights of the original network, for reports.
        layers: Names of the layers that have factors.
    """

    model: nn.Module
    location: Location
    own: Location
    layers: tuple[str, ...]

    def merged(self, changed: nn.Module) -> LowRankChange:
        """What a network with other numbers in its factors makes of the original's weights."""
        before, after = dict(self.model.named_parameters()), dict(changed.named_parameters())
        beside = {
            _without_base(name): (after[name] - before[name]).detach()
            for name in self.location.indices
            if not is_factor(name)
        }
        return LowRankChange({layer: _factors(changed, layer) for layer in self.layers}, beside, self.location.size)


def _factors(network: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
    """``B`` and ``A`` of a layer, as matrices, float64."""
    own: Any = network.get_submodule(layer)
    second, first = (part[ADAPTER].weight.detach().double().flatten(1) for part in (own.lora_B, own.lora_A))
    return second, first


def is_factor(name: str) -> bool:
    """Whether a parameter is a factor of low rank, as ``peft`` names them."""
    return any(mark in f".{name}" for mark in MARKS)


def wants_factors(weights: Any) -> bool:
    """Whether a choice of weights has a part that is of low rank."""
    return any(isinstance(part, LowRank) for part in _parts(weights))


def add_factors(
    model: nn.Module, weights: Any, *, goal: Any, forward_fn: ForwardFunction | None = None, seed: int = 0
) -> Factored:
    """The network with the factors that a choice of weights asks for.

    Args:
        model: The user's network; not modified.
        weights: A :class:`LowRank`, or a list of one and of other choices, which are changed as they are.
        goal: The specification; its first inputs show what the network computes.
        forward_fn: As for :func:`localize`.
        seed: Of the factors' first numbers.

    Raises:
        SpecificationError: There are two choices of low rank, or ``peft`` is not installed.
        ModelError: A layer is not there, is none that factors go beside, or is not called; or there are factors.
    """
    parts = _parts(weights)
    chosen = [part for part in parts if isinstance(part, LowRank)]
    others = [part for part in parts if not isinstance(part, LowRank)]
    if len(chosen) > 1:
        raise SpecificationError("weights: has more than one LowRank; expected one, with a rank for all its layers.")
    inputs = first_inputs(goal.goal, goal.on_outputs)
    beside = localize(model, others, goal=goal, forward_fn=forward_fn, seed=seed) if others else Location({})
    whole = {name.rpartition(".")[0] for name in beside.indices if name.endswith(".weight")}
    layers = layers_for_factors(model, chosen[0], whole)
    made = _with_factors(model, chosen[0], layers, seed)
    ignored = [] if inputs is None else _ignored(model, made, layers, forward_fn, telling_rows(inputs))
    if ignored and chosen[0].layers:
        raise ModelError(
            f"model {type(model).__name__}: layer '{ignored[0]}' is not called; its weight is read by another module, "
            f"which would ignore factors beside it. Name other layers, or repair it as a whole."
        )
    if ignored:
        layers = [layer for layer in layers if layer not in ignored]
        if not layers:
            raise ModelError(f"model {type(model).__name__}: calls no linear or convolutional layer by itself.")
        made = _with_factors(model, chosen[0], layers, seed)
    return _located(model, made, layers, chosen[0].rank, beside)


def _parts(weights: Any) -> list[Any]:
    return list(weights) if isinstance(weights, list | tuple) else [weights]


def layers_for_factors(model: nn.Module, chosen: LowRank, whole: AbstractSet[str] = frozenset()) -> list[str]:
    """Names of the layers that a choice of low rank puts factors beside.

    Args:
        model: The network.
        chosen: The choice.
        whole: Layers that are chosen as a whole too.

    Raises:
        SpecificationError: A layer is chosen in both ways.
        ModelError: A layer is not there, or is none that factors go beside; or there are factors already.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if any(is_factor(name) for name, _ in model.named_parameters()):
        raise ModelError(
            f"model {type(model).__name__}: has factors of low rank already. Choose them as they are, as in "
            f"weights='*lora_*', or weights='all' where nothing else is trainable."
        )
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    able = [name for name, module in modules.items() if _fits(module) and uses[id(module.weight)] == 1]
    what = f"model {type(model).__name__}"
    if not chosen.layers:
        frozen = frozen_parameters(model)
        found = [name for name in able if name not in whole and f"{name}.weight" not in frozen]
        if not found:
            free = " that is not frozen" if frozen else ""
            raise ModelError(f"{what}: has no linear or convolutional layer for factors{free}. Name weights instead.")
        return found
    found = []
    for pattern in chosen.layers:
        own = [name for name in modules if name == pattern or fnmatchcase(name, pattern)]
        if not own:
            raise ModelError(unknown(f"{what}: no layer is called", pattern, able))
        if not any(name in able for name in own):
            raise ModelError(
                f"{what}: '{own[0]}' is a {type(modules[own[0]]).__name__}; factors go beside linear layers and "
                f"convolutions without groups whose weights are not tied. Name the layer itself, or others."
            )
        found += [name for name in own if name in able and name not in found]
    if twice := [name for name in found if name in whole]:
        raise SpecificationError(f"weights: layer '{twice[0]}' is chosen as a whole and by LowRank; leave one out.")
    return found


def _fits(module: nn.Module) -> bool:
    return type(module) in KINDS and getattr(module, "groups", 1) == 1


def _with_factors(model: nn.Module, chosen: LowRank, layers: Sequence[str], seed: int) -> nn.Module:
    """A copy of the network's structure with factors; it shares the parameters' memory."""
    try:
        with warnings.catch_warnings():  # peft and what it imports warn of their own matters
            warnings.simplefilter("ignore")
            import peft
    except ImportError as error:
        raise SpecificationError(INSTALL) from error
    made, shared = shadow(model), dict[int, nn.Parameter]()
    for module in made.modules():  # peft freezes parameters: these are not the user's
        for key, own in list(module.named_parameters(recurse=False)):
            if id(own) not in shared:
                shared[id(own)] = nn.Parameter(own.detach(), requires_grad=own.requires_grad)
            setattr(module, key, shared[id(own)])
    config = peft.LoraConfig(
        r=chosen.rank, lora_alpha=chosen.rank, target_modules="|".join(map(re.escape, layers)), bias="none"
    )
    config.rank_pattern = {f"^{re.escape(layer)}": _rank(made.get_submodule(layer), chosen.rank) for layer in layers}
    config.alpha_pattern = dict(config.rank_pattern)  # B A is taken as it is
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        found: nn.Module = peft.inject_adapter_in_model(config, made, adapter_name=ADAPTER)
    return found.eval()


def _rank(module: nn.Module, rank: int) -> int:
    """A rank that a layer's weight can have."""
    weight: Any = module.weight
    return min(rank, len(weight), weight[0].numel())


def _ignored(
    model: nn.Module, made: nn.Module, layers: Sequence[str], forward_fn: ForwardFunction | None, few: Tensor
) -> list[str]:
    """Layers whose factors do not do what the merged change does: modules that read weights without a call."""

    def run(network: nn.Module) -> Tensor:
        return Engine(network, forward_fn=forward_fn).predict()(few)

    def differs(some: Sequence[str]) -> bool:
        tried = _drawn(made, some)
        change = LowRankChange({layer: _factors(tried, layer) for layer in some}, {}, 0)
        plain, merged = run(model), run(change.apply(model))
        most = float((merged - plain).abs().max())
        return float((run(tried) - merged).abs().max()) > CLOSE * most

    return [layer for layer in layers if differs([layer])] if differs(layers) else []


def _drawn(made: nn.Module, layers: Sequence[str]) -> nn.Module:
    """A copy whose second factors in some layers are not 0."""
    tried, draw = copy.deepcopy(made), torch.Generator().manual_seed(0)
    for layer in layers:
        beside: Any = tried.get_submodule(layer)
        second = beside.lora_B[ADAPTER].weight
        second.data = SIZE * torch.randn(second.shape, generator=draw).to(second)
    return tried


def _located(model: nn.Module, made: nn.Module, layers: Sequence[str], rank: int, beside: Location) -> Factored:
    """The network with the positions of its factors, and of what else may change."""
    places = {_with_base(name, layers): positions for name, positions in beside.indices.items()}
    sizes = {name: own.numel() for name, own in made.named_parameters() if is_factor(name) or name in places}
    indices = {name: places[name] if name in places else torch.arange(size) for name, size in sizes.items()}
    named = ", ".join(layers[:8]) + (f" and {len(layers) - 8} more" if len(layers) > 8 else "")
    count = sum(map(len, indices.values()))
    method = f"{count} numbers in factors of rank {rank} beside {named}" + (
        f" + {beside.method}" if beside.indices else ""
    )
    parameters = {name: own.numel() for name, own in model.named_parameters()}
    own = {f"{layer}.weight": torch.arange(parameters[f"{layer}.weight"]) for layer in layers} | beside.indices
    ordered = {name: own[name] for name in parameters if name in own}
    whole = Location(ordered, None, method, {name: parameters[name] for name in ordered})
    return Factored(made, Location(indices, None, method, sizes), whole, tuple(layers))


def _with_base(name: str, layers: Sequence[str]) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{layer}.base_layer.{kind}" if layer in layers else name


def _without_base(name: str) -> str:
    return name.replace(".base_layer.", ".")
