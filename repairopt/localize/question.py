"""What a localizer is asked: which network, which goal, which rows fail and which are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from repairopt.errors import ModelError, SpecificationError
from repairopt.network import Engine, check_time
from repairopt.specify import labels_of

from .follow_units import hidden_layers, incoming, outgoing
from .trace_layers import Layer, LayerGraph, first_inputs

Pair = tuple[Tensor, Tensor]
Neuron = tuple[str, int, float]  # layer, unit, score
BATCH = 512  # rows in one pass that keeps the values of all layers


@runtime_checkable
class WeightLocalizer(Protocol):
    """A way to choose weights: its settings are its fields, a frozen dataclass is the usual form.

    Names are entry points of the group ``repairopt.localizers``.
    """

    def scores(self, question: Question) -> Mapping[str, Tensor]:
        """For each parameter by name scores of its shape, in float64; NaN or 0 where a weight is not chosen."""
        ...


@runtime_checkable
class NeuronLocalizer(Protocol):
    """A way to choose neurons, whose outgoing or incoming weights may then change.

    Attributes:
        weights: ``"outgoing"`` or ``"incoming"``.
    """

    weights: str

    def neurons(self, question: Question) -> list[Neuron]:
        """The neurons ``(layer, unit, score)``, best first."""
        ...


@dataclass(frozen=True, eq=False)
class Question:
    """One network and what is wrong with it.

    Attributes:
        graph: The network as layers.
        goal: What must become true, or None.
        constraints: What must stay true.
        seed: For what draws.
        rows: Failing and passing rows, where they are known; else those of goal and constraints are divided.
    """

    graph: LayerGraph
    goal: Any = None
    constraints: Sequence[Any] = ()
    seed: int = 0
    rows: tuple[Pair, Pair] | None = None

    @classmethod
    def of(cls, engine: Engine, failing: Pair, passing: Pair, *, goal: Any = None, seed: int = 0) -> Question:
        """The question of rows ``(N, ...)`` that fail and that are right, each with labels ``(N,)``."""
        graph = LayerGraph(engine.model, engine.forward_fn, failing[0] if len(failing[0]) else passing[0])
        return cls(graph, goal, (), seed, (failing, passing))

    @classmethod
    def about(cls, engine: Engine, goal: Any, constraints: Sequence[Any] = (), seed: int = 0) -> Question:
        """The question of a goal and constraints; failing and passing rows are those of both."""
        return cls(
            LayerGraph(engine.model, engine.forward_fn, first_inputs(goal, constraints)), goal, constraints, seed
        )

    @property
    def failing(self) -> Pair:
        """Rows and labels that the network gets wrong; a SpecificationError where there are none."""
        if not len(self._divided[0][0]):
            raise SpecificationError(
                "localize: the localizer needs rows that fail, but the network labels all labelled rows of goal and "
                "constraints right, or these have none. State the rows that fail, as in ErrorRate(inputs, labels)."
            )
        return self._divided[0]

    @property
    def passing(self) -> Pair:
        """Rows and labels that the network gets right; may be none."""
        return self._divided[1]

    @cached_property
    def _divided(self) -> tuple[Pair, Pair]:
        if self.rows is not None:
            return self.rows
        known = [found for one in (self.goal, *self.constraints) if (found := labels_of(one)) is not None]
        pairs = [pair for pair in known if pair[1].shape == pair[0].shape[:1]]
        unique = [p for k, p in enumerate(pairs) if not any(_same(p[0], other[0]) for other in pairs[:k])]
        if not unique:
            return (torch.zeros(0), torch.zeros(0, dtype=torch.int64)), (torch.zeros(0), torch.zeros(0).long())
        device = self.graph.engine.device
        x = torch.cat([inputs.to(device) for inputs, _ in unique])
        y = torch.cat([labels.to(device) for _, labels in unique])
        wrong = self.graph.engine.predict()(x).argmax(1) != y
        return (x[wrong], y[wrong]), (x[~wrong], y[~wrong])

    @cached_property
    def hidden(self) -> dict[str, Layer]:
        """The affine layers whose units a later layer reads; a ModelError where there are none or none is known."""
        found = hidden_layers(self.graph) if self.graph.values else {}
        if not found:
            raise ModelError(
                f"{self.graph.what}: it has no neurons that a later layer reads, so there are none to choose. Use "
                f"'last' or 'gradient'."
            )
        return found

    def layers(self, name: str | None) -> dict[str, Layer]:
        """The hidden layers, or the named one alone."""
        if name is None:
            return self.hidden
        self.graph.named(name)
        if name not in self.hidden:
            raise ModelError(f"layer '{name}': no later layer reads its units. Choose from {', '.join(self.hidden)}.")
        return {name: self.hidden[name]}

    def activations(self, inputs: Tensor, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """Values ``(N, units)`` after the activation function, of a convolution the mean over positions."""
        nodes = {name: self.graph.activation(layer) for name, layer in layers.items()}
        parts = [
            {name: _by_unit(kept[nodes[name]], layers[name].axis) for name in layers}
            for part in inputs.split(BATCH)
            for kept in [_passed(self.graph, part, set(nodes.values()))[1]]
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in layers}

    def slopes(
        self, rows: Pair, layers: Mapping[str, Layer], of: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """For each row the mean absolute derivative of ``of(outputs, labels) (N,)`` by each unit, ``(N, units)``."""
        nodes = {name: self.graph.activation(layer) for name, layer in layers.items()}
        found: dict[str, list[Tensor]] = {name: [] for name in layers}
        for inputs, labels in zip(rows[0].split(BATCH), rows[1].split(BATCH), strict=True):
            with torch.enable_grad():
                outputs, kept = _passed(self.graph, inputs, set(nodes.values()), grad=True)
                slopes = torch.autograd.grad(of(outputs, labels).sum(), [kept[node] for node in nodes.values()])
            for name, slope in zip(layers, slopes, strict=True):
                found[name].append(_by_unit(slope.abs(), layers[name].axis))
        return {name: torch.cat(parts) for name, parts in found.items()}

    def around(self, weights: str, layer: str, unit: int) -> dict[str, Tensor]:
        """Flat positions, by parameter, of the weights that leave or enter a unit."""
        if weights not in ("outgoing", "incoming"):
            raise SpecificationError(f"localize: weights={weights!r}; expected 'outgoing' or 'incoming'.")
        return (
            outgoing(self.graph, layer, [unit]) if weights == "outgoing" else incoming(self.graph, layer, [unit], True)
        )


def check_count(localizer: object, **counts: Any) -> None:
    """Refuse counts below 1 or that are no whole numbers."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecificationError(
                f"{type(localizer).__name__}: {name}={value!r}; expected a whole number, 1 or more."
            )


def best_neurons(scores: Mapping[str, Tensor], count: int) -> list[Neuron]:
    """The neurons with the largest finite scores above 0, best first; of equal ones the first."""
    found = [
        (name, unit, float(score))
        for name, layer in scores.items()
        for unit, score in enumerate(layer.tolist())
        if score > 0
    ]
    return sorted(found, key=lambda item: -item[2])[:count]


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def _by_unit(value: Tensor, axis: int) -> Tensor:
    moved = value.movedim(axis, 1) if value.ndim > 1 else value[:, None]
    return moved.flatten(2).mean(2) if moved.ndim > 2 else moved


def _passed(
    graph: LayerGraph, inputs: Tensor, nodes: set[fx.Node], grad: bool = False
) -> tuple[Tensor, dict[fx.Node, Tensor]]:
    """Outputs and the values of some nodes, which derivatives can be taken by."""
    assert graph.graph is not None
    kept: dict[fx.Node, Tensor] = {}
    check_time()

    class Keeper(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in nodes:
                value = value if not grad or value.requires_grad else value.requires_grad_()
                kept[n] = value
            return value

    with torch.set_grad_enabled(grad):
        return Keeper(graph.graph).run(graph.convert(inputs)), kept


def module_of(question: Question, layer: Layer) -> nn.Module:
    """The module of a layer; a ModelError where the layer is a function of parameters."""
    try:
        return question.graph.model.get_submodule(layer.name)
    except AttributeError as error:
        raise ModelError(
            f"layer '{layer.name}': is a function of parameters and no module; the localizer needs a module."
        ) from error
