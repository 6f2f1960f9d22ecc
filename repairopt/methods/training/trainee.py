"""Trainee: a copy of the network in which the chosen weights, and no others, can train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from repairopt.errors import ModelError, SpecificationError
from repairopt.localize import LayerGraph, NewWeights
from repairopt.methods.adam import Adam
from repairopt.methods.outcome import Outcome
from repairopt.methods.task import Task
from repairopt.network import Caller, shadow, writes_into
from repairopt.program import Status

ROWS = 1000  # of a run without gradients
Edit = Callable[[fx.Node, Tensor], Tensor]
Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """What a module is given, or what it returns, in networks that cannot be traced too."""

    module: str
    returned: bool = False


Place = fx.Node | Seen


@dataclass(frozen=True, eq=False)
class Hidden:
    """Hidden units.

    Attributes:
        name: Of their layer.
        node: Where their activations are, after the activation function.
        axis: Axis of the units in these.
        parameters: Weights and biases that make the units, one row for each; none where they are made in another way.
    """

    name: str
    node: Place
    axis: int
    parameters: tuple[str, ...] = ()


class Trainee:
    """A copy of a repair's network; its weights are those of the original until it is trained.

    The copy runs in evaluation mode: running statistics of batch normalization are fixed, dropout is off.

    Attributes:
        task: The repair.
        graph: The copy as layers, for methods that look at hidden units.
        network: The copy as a module from one tensor to logits.
        own: Parameters that hold chosen weights, by name.
        free: For each of these which of its entries may change, booleans of its shape.
    """

    def __init__(self, task: Task, example: Tensor) -> None:
        self.task = task
        model = copy.deepcopy(shadow(task.engine.model)).eval().requires_grad_(False)
        self.graph = LayerGraph(model, task.engine.forward_fn, example[:3])
        copies = task.engine.caller.copies or writes_into(task.engine.caller, self.graph.convert(example[:3]))
        self.network = Caller(
            model, task.engine.forward_fn, copies
        )  # the graph's own network shares memory, not gradients
        for module in model.modules():
            if getattr(module, "inplace", False) is True:  # values that are kept must not be overwritten
                module.inplace = False  # type: ignore[assignment]
            if isinstance(module, nn.RNNBase):  # cuDNN has no backward pass in evaluation mode
                module.train(not module.dropout)
        everything = dict(model.named_parameters())
        self.own = {name: everything[name] for name in task.engine.indices}
        self.free = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in self.own.items()}
        for name, positions in task.engine.indices.items():
            self.free[name].view(-1)[positions] = True
            self.own[name].requires_grad_(True)
        self._first = self.state()

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.task.engine.classes

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)``, differentiable in weights and inputs."""
        return self.network(self.convert(inputs))

    def convert(self, inputs: Tensor) -> Tensor:
        """Inputs as the network takes them, with their history of gradients."""
        inputs = inputs.to(self.task.engine.device)
        if inputs.is_floating_point():
            return inputs.to(self.task.engine.dtype)
        return self.graph.convert(inputs)

    def predict(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` without gradients, some rows at a time."""
        with torch.no_grad():
            return torch.cat([self(part) for part in inputs.split(ROWS)])

    def at(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A further copy, from one tensor to logits, with a state dict of the model; for earlier epochs.

        Raises:
            SpecificationError: Names or shapes are not those of the model.
        """
        model = copy.deepcopy(self.network.model)
        try:
            model.load_state_dict(dict(state))
        except (RuntimeError, TypeError, ValueError) as error:
            raise SpecificationError(f"history: a state dict does not fit {self.graph.what}: {error}.") from error
        return Caller(model.requires_grad_(False), self.network.forward_fn, self.network.copies)

    def run(
        self,
        inputs: Tensor,
        wanted: Sequence[Place],
        edit: Edit | None = None,
        network: nn.Module | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs and the values of some nodes of the graph, differentiable.

        Args:
            inputs: Rows.
            wanted: Nodes of ``graph.graph``, or all of them places at modules.
            edit: Replaces the value of a wanted node by another.
            network: Another copy, of :meth:`at`.

        Raises:
            ModelError: Nodes are wanted, and the network cannot be traced.
        """
        places = [place for place in wanted if isinstance(place, Seen)]
        if places:
            return _watch(network or self.network, self.convert(inputs), places)
        assert self.graph.values  # raises where there is no trace
        kept: dict[fx.Node, Tensor] = {}
        chosen = set(wanted)

        class Keeper(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n in chosen:
                    value = value if edit is None else edit(n, value)
                    kept[n] = value
                return value

        traced: Any = self.graph.graph
        outputs = Keeper(network or self.network, graph=traced.graph).run(self.convert(inputs))
        return outputs, [kept[node] for node in wanted if isinstance(node, fx.Node)]

    def activations(
        self, inputs: Tensor, wanted: Sequence[Place], network: nn.Module | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`run` without gradients, some rows at a time."""
        with torch.no_grad():
            parts = [self.run(part, wanted, None, network) for part in inputs.split(ROWS)]
        values = [torch.cat(own) for own in zip(*(found for _, found in parts), strict=True)]
        return torch.cat([outputs for outputs, _ in parts]), values

    def hidden(self) -> list[Hidden]:
        """The affine layers before the last one, in execution order; without any, what the last one reads.

        Raises:
            SpecificationError: There is no hidden layer at all.
        """
        if not self.graph.is_traceable and self.graph.affine:
            last = self.graph.affine[-1]
            return [Hidden(f"before {last.name}", Seen(last.name), last.axis)]
        assert self.graph.values
        layers = [layer for layer in self.graph.affine if layer.node is not None]
        found = [
            Hidden(layer.name, self.graph.activation(layer), layer.axis, layer.parameters) for layer in layers[:-1]
        ]
        if not found and layers and layers[-1].node is not None:
            read = layers[-1].node.all_input_nodes[0]
            if read.op != "placeholder" and isinstance(self.graph.values[read], Tensor):
                return [Hidden(f"before {layers[-1].name}", read, layers[-1].axis)]
        if not found:
            raise SpecificationError(f"{self.graph.what}: has no hidden layer; the method looks at hidden units.")
        return found

    @staticmethod
    def twice() -> AbstractContextManager[None]:
        """Where derivatives are differentiated again: fused attention has no second derivatives."""
        return sdpa_kernel(SDPBackend.MATH)

    def state(self) -> dict[str, Tensor]:
        """Copies of the parameters that train."""
        return {name: parameter.detach().clone() for name, parameter in self.own.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Write parameters; entries that may not change stay."""
        with torch.no_grad():
            for name, parameter in self.own.items():
                parameter.copy_(torch.where(self.free[name], state[name], parameter))

    def vector(self) -> Tensor:
        """The parameters that train as one vector."""
        return torch.cat([parameter.detach().flatten() for parameter in self.own.values()])

    def load_vector(self, vector: Tensor) -> None:
        """Write parameters from one vector; entries that may not change stay."""
        parts = vector.split([parameter.numel() for parameter in self.own.values()])
        self.load({name: part.view(p.shape) for (name, p), part in zip(self.own.items(), parts, strict=True)})

    def reset(self) -> None:
        """Back to the weights of the original."""
        self.load(self._first)

    def draw(self, seed: int) -> None:
        """Initialize the weights anew, as the modules that hold them do.

        Raises:
            ModelError: A parameter is held by a module that cannot initialize itself.
        """
        fresh: nn.Module = copy.deepcopy(self.graph.model)
        done: set[int] = set()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for module in fresh.modules():
                reset: Any = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if reset is not None:
                    reset()
                    done |= {id(parameter) for parameter in module.parameters(recurse=True)}
        drawn = dict(fresh.named_parameters())
        for name in self.own:
            if id(drawn[name]) not in done:
                raise ModelError(
                    f"parameter '{name}': its module has no reset_parameters(), so training cannot begin anew. Leave "
                    f"it out of weights=, or choose a method that tunes."
                )
        self.load({name: drawn[name].detach() for name in self.own})

    def step(self, optimizer: torch.optim.Optimizer | Adam, loss: Tensor, masks: Masks | None = None) -> None:
        """One step on a loss; only entries that are free, and where masks are given only those of the masks, move."""
        optimizer.zero_grad()
        grads = torch.autograd.grad(loss, list(self.own.values()), allow_unused=True)
        self.move(optimizer, dict(zip(self.own, grads, strict=True)), masks)

    def move(
        self, optimizer: torch.optim.Optimizer | Adam, grads: Mapping[str, Tensor | None], masks: Masks | None = None
    ) -> None:
        """One step of an optimizer on given gradients, as :meth:`step`."""
        held: list[tuple[Tensor, Tensor, Tensor]] = []
        for name, parameter in self.own.items():
            allowed = self.free[name] if masks is None else self.free[name] & masks[name]
            given = grads[name]
            grad = torch.zeros_like(parameter) if given is None else given
            whole = bool(allowed.all())
            parameter.grad = grad if whole else torch.where(allowed, grad, 0.0)
            if not whole:
                held.append((parameter, allowed, parameter.detach().clone()))
        optimizer.step()
        with torch.no_grad():
            for moved, allowed, before in held:  # momentum and weight decay move entries without a gradient
                moved.copy_(torch.where(allowed, moved, before))

    def candidate(self) -> NewWeights:
        """The weights as they are now."""
        return NewWeights(self.state(), self.task.engine.n)

    def record(self, step: str) -> None:
        """Let the judge keep the weights as they are now, and log the round."""
        task, candidate = self.task, self.candidate()
        task.log.latest = candidate
        judged = task.judge.keep(candidate)
        task.log.last = (0, task.engine.n, None)
        task.record(step, judged, accepted=task.judge.best is judged)

    def outcome(self, step: str = "result") -> Outcome:
        """What a method returns: the weights as they are now."""
        self.record(step)
        return Outcome(self.candidate(), Status.FEASIBLE)


def _watch(network: nn.Module, inputs: Tensor, places: Sequence[Seen]) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and what passes by at some modules; of a tuple that is returned the first part."""
    kept: dict[Seen, Tensor] = {}
    handles = []
    for place in places:
        module = network.get_submodule(f"model.{place.module}".rstrip("."))

        def keep(_: nn.Module, given: Any, made: Any, place: Seen = place) -> None:
            value = made if place.returned else given
            kept[place] = value[0] if isinstance(value, tuple) else value

        handles.append(module.register_forward_hook(keep))
    try:
        outputs: Tensor = network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, [kept[place] for place in places]
