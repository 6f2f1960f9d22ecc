"""Localize: which weights may change."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import inf, nan
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, SpecificationError, public
from repairopt.network import Engine, ForwardFunction
from repairopt.specify import Specification

from .attribution import care_neurons, gradient_weights
from .follow_units import hidden_layers, incoming, input_columns, outgoing, weights_reading
from .localizers import available_localizers, localizer_class
from .question import NeuronLocalizer, Question, WeightLocalizer
from .trace_layers import LayerGraph, first_inputs, unknown
from .weight_selectors import CARE, Gradient, Inputs, Layers, LowRank, Neurons

LARGE = 250_000  # weights of a network above which "auto" starts and ends with the last layer


@dataclass(frozen=True, eq=False)
class Location:
    """The ``n`` weights that may change.

    Attributes:
        indices: For each parameter name its flat positions, sorted int64.
        scores: A score for each position, same keys and sizes, larger is more responsible; NaN where one part of a
            union has none; or None.
        method: How they were found, in words for the report.
        sizes: How many numbers each parameter holds, as far as known.
    """

    indices: dict[str, Tensor]
    scores: dict[str, Tensor] | None = None
    method: str = "given"
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of weights, ``n``."""
        return sum(len(positions) for positions in self.indices.values())

    def describe(self) -> list[str]:
        """One line for each parameter, such as ``"fc4.weight: 24 of 128"``."""
        of = {name: f" of {self.sizes[name]}" if name in self.sizes else "" for name in self.indices}
        return [f"{name}: {len(ix)}{of[name]}" for name, ix in self.indices.items() if len(ix)]

    @classmethod
    def from_masks(cls, masks: Mapping[str, Any], method: str = "given masks") -> Location:
        """The weights where boolean masks, each of its parameter's shape, are true."""
        tensors = {name: torch.as_tensor(mask).detach().cpu() for name, mask in masks.items()}
        for name, mask in tensors.items():
            if mask.dtype != torch.bool:
                raise SpecificationError(f"mask of '{name}': has type {mask.dtype}; expected torch.bool. Use mask > 0.")
        found = {name: mask.flatten().nonzero().flatten() for name, mask in tensors.items()}
        sizes = {name: mask.numel() for name, mask in tensors.items() if len(found[name])}
        return cls({name: found[name] for name in sizes}, None, method, sizes)


@public
def localize(
    model: nn.Module,
    how: Any = "last",
    *,
    goal: Any = None,
    constraints: Sequence[Any] = (),
    count: int | None = None,
    forward_fn: ForwardFunction | None = None,
    inputs: Any = None,
    seed: int = 0,
    memory_limit: int = 2**30,
) -> Location:
    """Choose the weights that may change.

    Args:
        model: The network; not modified.
        how: One of

            * ``"last"`` (weight and bias of the last affine layer in execution order), ``"all"``, ``"care"``,
              ``"gradient"``, or ``"auto"``: the last layer of networks with more than 250,000 weights, where choosing
              among all costs more than the repair; else Gradient where the goal is differentiable (measured: better
              and quicker than CARE on the census network); else CARE where the network can be traced and has hidden
              layers; else last;
            * the name of a parameter or module, or a pattern such as ``"fc[45].*"``;
            * :class:`Layers`, :class:`Neurons`, :class:`Inputs`, :class:`CARE`, :class:`Gradient`, :class:`Location`;
              in :func:`repairopt.solve_repair` also :class:`LowRank`, alone or in a sequence;
            * another localizer, such as :class:`repairopt.localize.DeepFault`, or its name, such as ``"deepfault"``;
            * a mapping from parameter names to boolean masks or flat positions;
            * a sequence of these: their union.
        goal: The property to repair; CARE and Gradient need it. A whole specification brings its constraints, and its
            protected columns, whose weights are left out of all choices but those that name them: by
            :class:`Inputs`, a mask, positions or a :class:`Location`.
        constraints: What must stay true; for ``Gradient(of="constraints")``.
        count: Overrides the count of CARE or Gradient; of any other choice keeps so many weights, by gradient.
        forward_fn: ``(model, inputs) -> logits`` for models with other inputs or outputs.
        inputs: A few inputs, where shapes are needed and there is no goal.
        seed: Chooses samples.
        memory_limit: Bytes that activations may take.

    Where some parameters are frozen (``requires_grad=False``) and others are not, the frozen ones change only where
    they are named: by a name, a pattern, ``Layers``, ``Neurons``, ``Inputs``, positions or a ``Location``.

    Raises:
        SpecificationError: The choice is malformed or empty, or needs a goal. An unknown layer or parameter, or a
            network that does not allow this choice, is a ``ModelError``.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise SpecificationError(f"count={count!r}: expected a whole number, 1 or more.")
    protected: tuple[Any, ...] = ()
    if isinstance(goal, Specification):
        goal, constraints, protected = goal.goal, goal.on_outputs, goal.protected
    elif goal is not None:
        goal = Specification(goal).goal
    example = first_inputs(goal, constraints) if inputs is None else torch.as_tensor(inputs)
    options: Any = {"seed": seed, "limit": memory_limit, "protected": protected}
    search = _Search(LayerGraph(model, forward_fn, example), goal, constraints, **options)
    name = how if isinstance(how, str) else ""
    how = {"care": CARE(), "gradient": Gradient()}.get(name, how)
    if count is not None and name != "auto":
        how = replace(how, count=count) if isinstance(how, CARE | Gradient) else Gradient(count, within=how)
    found = search.auto(count) if name == "auto" else search.merge([search.select(how)])
    if not found.size:
        left = " beside those of protected columns, which only Inputs(...) or a mask selects" if protected else ""
        raise SpecificationError(
            f"localize: {how!r} selects no weights{left}; expected at least one. Widen the selection."
        )
    return replace(found, method=found.method + search.sharing(found))


def locate(how: Any, question: Question) -> Location:
    """The weights that a localizer other than those of this file chooses, with their scores."""
    graph = question.graph
    if isinstance(how, NeuronLocalizer):
        ranked = how.neurons(question)
        parts = []
        for layer, unit, score in ranked:
            around = question.around(how.weights, layer, unit)
            parts.append(Location(around, {name: torch.full(p.shape, score) for name, p in around.items()}))
        neurons = ", ".join(f"{layer}[{unit}]" for layer, unit, _ in ranked[:8]) + (", ..." if ranked[8:] else "")
        merged = _Search(graph, question.goal, question.constraints, seed=question.seed, limit=2**30).merge(parts)
        return replace(merged, method=f"{type(how).__name__}: {how.weights} weights of {neurons or 'no neurons'}")
    indices, scores = {}, {}
    for name, score in how.scores(question).items():
        kept = (score > 0).flatten().nonzero().flatten()
        if len(kept):
            indices[name], scores[name] = kept, score.flatten()[kept]
    sizes = {name: graph.parameters[name].numel() for name in indices}
    count = sum(len(kept) for kept in indices.values())
    return Location(indices, scores, f"{type(how).__name__}: {count} weights", sizes)


def frozen_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that training would leave as they are; none where that is true of all of them."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return frozenset(frozen) if len(frozen) < len(list(model.parameters())) else frozenset()


class _Search:
    """One call of :func:`localize`: turns selectors into locations."""

    def __init__(
        self,
        graph: LayerGraph,
        goal: Any,
        constraints: Sequence[Any],
        *,
        seed: int,
        limit: int,
        protected: Sequence[Any] = (),
    ) -> None:
        self.graph, self.goal, self.constraints, self.seed, self.limit = graph, goal, constraints, seed, limit
        self.protected = protected
        self.modules = [name for name, module in graph.model.named_modules() if name and [*module.parameters()]]

    def select(self, how: Any) -> Location:
        if isinstance(how, LowRank):
            raise SpecificationError(
                f"localize: {how!r} puts factors beside layers, which are no weights of the model; pass it to "
                f"solve_repair(..., weights=...)."
            )
        by_type: dict[Any, Callable[[Any], Location]] = {
            Location: self._checked,
            str: self._named,
            Layers: self._layers,
            Neurons: lambda h: Location(self._around(h.weights, h.layer, h.units, h.bias), None, str(h)),
            Inputs: self._columns,
            CARE: self._care,
            Gradient: self._gradient,
            Mapping: lambda h: Location({self._name(n): self._positions(n, p) for n, p in h.items()}),
            Sequence: lambda parts: self.merge([self.select(part) for part in parts]),
        }
        for kind, locate in by_type.items():
            if isinstance(how, kind):
                found = locate(how)
                found = self._trainable(how, found) if kind is CARE else found
                named = isinstance(how, Location | Inputs | Mapping | Gradient) or kind is Sequence
                return found if named else self._unprotected(found)
        if isinstance(how, NeuronLocalizer | WeightLocalizer) and not isinstance(how, type):
            return self._unprotected(self._trainable(how, self._by_localizer(how)))
        shown = " ".join(reprlib.repr(how).split())
        raise SpecificationError(
            f"localize: how={shown} is a {type(how).__name__}; expected 'last', 'all', 'care', 'gradient', 'auto', a "
            f"name or pattern, Layers, Neurons, Inputs, CARE, Gradient, another localizer, a Location, a mapping, or a "
            f"list of these."
        )

    def _unprotected(self, found: Location) -> Location:
        """The same without weights of protected columns, which nobody asked to change."""
        try:
            taken = weights_reading(self.graph, self.protected) if self.protected else {}
        except ModelError:  # not traceable, or no layer whose columns are features
            return replace(found, method=f"{found.method}; weights of protected columns cannot be told from others")
        keep = {name: ~torch.isin(own.cpu(), taken[name]) for name, own in found.indices.items() if name in taken}
        if all(bool(kept.all()) for kept in keep.values()):
            return found

        def left(parts: dict[str, Tensor]) -> dict[str, Tensor]:
            own = {name: part[keep[name].to(part.device)] if name in keep else part for name, part in parts.items()}
            return {name: part for name, part in own.items() if len(part)}

        scores = None if found.scores is None else left(found.scores)
        return replace(found, indices=left(found.indices), scores=scores)

    def auto(self, count: int | None) -> Location:
        """The last layer of large networks; else Gradient where the goal is differentiable, else CARE, else that."""
        counted: Any = {} if count is None else {"count": count}
        size = sum(parameter.numel() for parameter in self.graph.parameters.values())
        last = "last" if self.graph.affine else "all"  # parameters that are in no layer
        if size > LARGE:
            found = self.select(Gradient(within=last, **counted) if counted else last)
            return replace(found, method=f"{found.method}, the first choice for a network of {size:,} weights")
        if self.goal is None:
            return self.select(Gradient(within=last, **counted) if counted else last)
        try:
            return self.select(Gradient(**counted))
        except SpecificationError:  # the goal has no derivative
            if self.graph.is_traceable and hidden_layers(self.graph):
                with contextlib.suppress(SpecificationError):  # it reads the network, not outputs
                    return self.select(CARE(**counted))
            if counted:
                raise
            return self.select(last)

    def _trainable(self, how: Any, found: Location) -> Location:
        """What a choice that names no parameters may change."""
        left = [name for name in found.indices if name not in frozen_parameters(self.graph.model)]
        if len(left) == len(found.indices):
            return found
        if not left:
            raise SpecificationError(
                f"localize: {how!r} means {', '.join(found.indices)}, which {self.graph.what} has frozen "
                f"(requires_grad=False). Name these parameters to change them all the same, or others."
            )
        indices = {name: found.indices[name] for name in left}
        scores = None if found.scores is None else {name: found.scores[name] for name in left}
        return Location(indices, scores, f"{found.method}, without frozen parameters", found.sizes)

    def merge(self, parts: Sequence[Location]) -> Location:
        """The union, in the order of the model's parameters; of two scores of a position the larger."""
        indices, scores, scored = {}, {}, any(part.scores for part in parts)
        for name in self.graph.parameters:
            own = [part for part in parts if len(part.indices.get(name, ()))]
            if not own:
                continue
            indices[name], where = torch.cat([part.indices[name].cpu() for part in own]).unique(return_inverse=True)
            given = [part.scores[name] if part.scores else torch.full((len(part.indices[name]),), nan) for part in own]
            score = torch.cat([part.cpu().double() for part in given])
            score = score.masked_fill(score.isnan(), -inf)
            best = torch.full(indices[name].shape, -inf, dtype=torch.float64).scatter_reduce(0, where, score, "amax")
            scores[name] = best.masked_fill(best == -inf, nan)
        sizes = {name: self.graph.parameters[name].numel() for name in indices}
        return Location(indices, scores if scored else None, " + ".join(part.method for part in parts), sizes)

    def sharing(self, found: Location) -> str:
        """What to say of parameters that the model uses under two names."""
        pairs = [(first, other) for other, first in self.graph.names.items() if other != first]
        return "".join(f"; {first} is shared as {other}" for first, other in pairs if first in found.indices)

    def _name(self, name: str) -> str:
        """The first name of a floating-point parameter."""
        if name not in self.graph.names:
            raise ModelError(unknown(f"{self.graph.what}: no parameter is called", name, list(self.graph.names)))
        parameter = self.graph.parameters[self.graph.names[name]]
        if not parameter.is_floating_point():
            raise ModelError(f"parameter '{name}': is {parameter.dtype}; only floating-point weights can be repaired.")
        return self.graph.names[name]

    def _whole(self, names: Iterable[str], method: str) -> Location:
        sizes = {name: self.graph.parameters[name].numel() for name in map(self._name, names)}
        return Location({name: torch.arange(size) for name, size in sizes.items()}, None, method)

    def _named(self, how: str) -> Location:
        names = list(self.graph.names)
        if how == "last":
            return self._last()
        if how == "auto":
            return self.auto(None)
        if how in ("care", "gradient"):
            return self.select(CARE() if how == "care" else Gradient())
        if how in available_localizers() and how not in names and how not in self.modules:
            return self.select(localizer_class(how)())
        if how == "all":
            parameters = self.graph.parameters
            whole = self._whole([n for n in names if parameters[self.graph.names[n]].is_floating_point()], "all")
            return self._trainable(how, whole)
        if how in names:
            return self._whole([how], how)
        found = [n for n in names if fnmatchcase(n, how) or n.startswith(how + ".")]
        if not found:
            return self._layers(Layers(how), [*names, *self.modules])
        return self._whole(found, how)

    def _last(self) -> Location:
        if not self.graph.affine:
            if sum(parameter.ndim > 1 for parameter in self.graph.parameters.values()) == 1:
                return self._named("all")  # parameters of one layer that is no module
            raise ModelError(
                f"{self.graph.what}: has no linear or convolutional layer for 'last'. Name the weights instead."
            )
        last = self.graph.affine[-1]
        return self._trainable("last", self._whole(last.parameters, f"last layer ({last.name or last.weights[0]})"))

    def _layers(self, how: Layers, known: list[str] | None = None) -> Location:
        if not how.names:
            raise SpecificationError("Layers(): names no layer; expected at least one, such as Layers('fc1').")
        found: list[str] = []
        for pattern in how.names:
            modules = [m for m in self.modules if m == pattern or fnmatchcase(m, pattern)]
            own = [n for n in self.graph.names if any(n.startswith(m + ".") for m in modules)]
            if not own:
                raise ModelError(
                    unknown(f"{self.graph.what}: no layer or parameter is called", pattern, known or self.modules)
                )
            found += [n for n in own if how.bias or not n.rpartition(".")[2].startswith("bias")]
        return self._whole(found, f"layers {', '.join(how.names)}")

    def _positions(self, name: str, given: Any) -> Tensor:
        """A mask or flat positions as positions."""
        parameter, positions = self.graph.parameters[self._name(name)], torch.as_tensor(given).detach().cpu()
        if positions.dtype == torch.bool:
            if positions.shape != parameter.shape:
                raise SpecificationError(
                    f"mask of '{name}': has shape {tuple(positions.shape)}; expected the parameter's shape "
                    f"{tuple(parameter.shape)}. Flat positions: pass mask.flatten().nonzero().flatten()."
                )
            return positions.flatten().nonzero().flatten()
        bad = positions.is_floating_point() or positions.ndim != 1
        if bad or bool(((positions < 0) | (positions >= parameter.numel())).any()):
            raise SpecificationError(
                f"positions in '{name}': got {positions.dtype} of shape {tuple(positions.shape)}; expected a mask of "
                f"booleans of shape {tuple(parameter.shape)}, or a vector of whole numbers below {parameter.numel()}."
            )
        return positions.long()

    def _checked(self, how: Location) -> Location:
        indices = {self._name(name): self._positions(name, given) for name, given in how.indices.items()}
        for name, given in indices.items():
            if how.scores is not None and (name not in how.scores or len(how.scores[name]) != len(given)):
                raise SpecificationError(f"location: expected {len(given)} scores for '{name}', one for each position.")
        return Location(indices, how.scores, how.method)

    def _around(self, weights: str, layer: str, units: Sequence[int], bias: bool = False) -> dict[str, Tensor]:
        if weights not in ("outgoing", "incoming"):
            raise SpecificationError(f"layer '{layer}': weights={weights!r}; expected 'outgoing' or 'incoming'.")
        return outgoing(self.graph, layer, units) if weights == "outgoing" else incoming(self.graph, layer, units, bias)

    def _columns(self, how: Inputs) -> Location:
        name, columns = input_columns(self.graph, how.units, how.layer)
        return Location(columns, None, f"columns of {name} that read inputs {list(how.units)}")

    def _care(self, how: CARE) -> Location:
        ranked = care_neurons(self.graph, self.goal, how, self.seed)
        parts = []
        for layer, unit, score in ranked:
            around = self._around(how.weights, layer, [unit])
            parts.append(Location(around, {name: torch.full(p.shape, score) for name, p in around.items()}))
        neurons = ", ".join(f"{layer}[{unit}]" for layer, unit, _ in ranked)
        return replace(self.merge(parts), method=f"CARE: {how.weights} weights of {neurons}")

    def _by_localizer(self, how: NeuronLocalizer | WeightLocalizer) -> Location:
        found = locate(how, Question(self.graph, self.goal, self.constraints, self.seed))
        return self.merge([replace(found, method=found.method)]) if found.size else found

    def _gradient(self, how: Gradient) -> Location:
        within = self.merge([self.select(how.within)])
        engine = Engine(self.graph.model, within.indices, forward_fn=self.graph.forward_fn, memory_limit=self.limit)
        scores, text = gradient_weights(engine, how, self.goal, self.constraints, self.seed)
        kept = {name: (score > 0).nonzero().flatten() for name, score in scores.items()}
        chosen = {name: within.indices[name][rows] for name, rows in kept.items()}
        return Location(chosen, {name: scores[name][rows] for name, rows in kept.items()}, text)
