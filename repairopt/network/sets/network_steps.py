"""A traced network as steps between vectors: affine maps and activations, for bounds that are passed backward.

Consecutive affine operations become one step, with a dense matrix where that is small; other ones are transposed by
reverse differentiation. So every layer that the registry of relaxations knows is covered: layers that widen sets are
activations, all others are affine.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repairopt.errors import UnsupportedError

from .propagate_zonotope import SUPPORTED, Environment, TracedNetwork, asks_shape
from .zonotope_layers import Call, Zonotope

MOST_DENSE = 2**23  # entries of a matrix that is formed
Parameters = Mapping[str, Tensor] | None


@dataclass(eq=False)
class AffineStep:
    """``sum over parents of matrix @ value + offset``; ``matrices`` has None where no matrix is formed.

    Attributes:
        parents: Indices of the steps that it reads.
        node: The operation that gives its result.
        nodes: All operations of the step, in order.
        size: Numbers in its result.
        layer: Name of the linear layer, where the step is the last one of these and nothing else.
        matrices: For each parent ``(size, size of the parent)``.
        offset: ``(size,)``.
    """

    parents: tuple[int, ...]
    node: fx.Node
    nodes: list[fx.Node]
    size: int
    layer: str = ""
    matrices: list[Tensor | None] = field(default_factory=list)
    offset: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True, eq=False)
class ActivationStep:
    """A function of each entry by itself; ``parents`` has one step."""

    parents: tuple[int, ...]
    node: fx.Node
    size: int


Step = AffineStep | ActivationStep


def _in_single(step: AffineStep) -> AffineStep:
    matrices = [None if matrix is None else matrix.detach().float() for matrix in step.matrices]
    return replace(step, matrices=matrices, offset=step.offset.detach().float())


class NetworkSteps:
    """A network from one tensor to outputs ``(N, k)`` as steps, in float64; the network is not modified.

    Args:
        network: One tensor in, outputs out.
        shape: Shape of one input.

    Raises:
        UnsupportedError: The network cannot be traced, or has an operation without a relaxation.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)
        self.traced = TracedNetwork(copy.deepcopy(network).double().cpu())
        self.probed = self._probe()
        self.steps: list[Step | None] = [None]  # the input
        self.shapes: list[tuple[int, ...]] = [self.shape]
        self._number = {self.traced.input: 0}
        self._last_layer = self._find_last_layer()
        for node in self.traced.nodes:
            if self._carries(node) and node is not self.traced.input and not self._is_inner(node):
                self._add(node)
        end: Any = self.traced.nodes[-1].args[0]
        self.output = self._number[end]
        self.refresh(None)

    @property
    def last(self) -> AffineStep | None:
        """The step of the last linear layer, or None where the network has none at its end."""
        found = self._number.get(self._last_layer) if self._last_layer is not None else None
        step = None if found is None else self.steps[found]
        return step if isinstance(step, AffineStep) else None

    @property
    def last_index(self) -> int:
        """Index of the last linear layer among the steps."""
        assert self._last_layer is not None
        return self._number[self._last_layer]

    @property
    def features_at(self) -> int:
        """Index of the step that the last linear layer reads; of the outputs where the network ends otherwise."""
        return self.output if self.last is None else self.last.parents[0]

    def refresh(self, parameters: Parameters) -> None:
        """Form matrices and offsets for new values of parameters by name; they keep the derivatives of these."""
        self._twin: NetworkSteps | None = None
        self._constants = self._known(parameters)
        self._parameters = dict(parameters or {})
        for step in self.steps:
            if isinstance(step, AffineStep):
                sizes = [self.size(parent) for parent in step.parents]
                zeros = [torch.zeros(1, size, dtype=torch.float64) for size in sizes]
                step.offset = self.affine(step, zeros)[0]
                step.matrices = [
                    self._matrix(step, place, sizes) if size * step.size <= MOST_DENSE else None
                    for place, size in enumerate(sizes)
                ]

    def in_single(self) -> NetworkSteps | None:
        """The same steps in single precision, without derivatives; None where they are not dense matrices and ReLU."""
        if self._twin is None and all(step is None or self._is_plain(step) for step in self.steps):
            self._twin = copy.copy(self)
            self._twin.steps = [_in_single(step) if isinstance(step, AffineStep) else step for step in self.steps]
        return self._twin

    def _is_plain(self, step: Step) -> bool:
        if isinstance(step, AffineStep):
            return all(matrix is not None for matrix in step.matrices)
        module = self.traced.module(step.node)
        return type(module) is nn.ReLU or step.node.target in (F.relu, torch.relu, "relu")

    def size(self, index: int) -> int:
        """Numbers in the result of a step."""
        return int(torch.Size(self.shapes[index]).numel())

    def affine(self, step: AffineStep, values: list[Tensor]) -> Tensor:
        """The step on values ``(M, size)`` of its parents: ``(M, size)``."""
        inside: Environment = dict(self._constants)
        for parent, value in zip(step.parents, values, strict=True):
            inside[self._node(parent)] = value.unflatten(1, self.shapes[parent])
        return self.traced.run(step.nodes, inside, self._parameters)[step.node].flatten(1)

    def forward(self, inputs: Tensor, until: int | None = None) -> Tensor:
        """Results ``(N, size)`` of a step, of the output by default, for inputs ``(N, d)``."""
        return self.onward(0, inputs, until)

    def onward(self, start: int, value: Tensor, until: int | None = None) -> Tensor:
        """The result of a step, from that of an earlier step that all which follows depends on alone."""
        values: dict[int, Tensor] = {start: value}
        end = self.output if until is None else until
        for index in range(start + 1, end + 1):
            step = self.steps[index]
            if isinstance(step, AffineStep):
                values[index] = self.through(step, values)
            elif step is not None:
                values[index] = self.activation(step, values[step.parents[0]])
        return values[end]

    def activation(self, step: ActivationStep, value: Tensor) -> Tensor:
        """The function itself, on values ``(M, size)``."""
        parent = self._node(step.parents[0])
        known = {**self._constants, parent: value.unflatten(1, self.shapes[step.parents[0]])}
        return self.traced.run([step.node], known, self._parameters)[step.node].flatten(1)

    def pull_back(self, step: AffineStep, place: int, coefficients: Tensor) -> Tensor:
        """Coefficients ``(B, S, size)`` of the step as coefficients of one of its parents."""
        matrix = step.matrices[place]
        if matrix is not None:
            return coefficients @ matrix
        flat = coefficients.flatten(0, 1)
        sizes = [self.size(parent) for parent in step.parents]
        others = [flat.new_zeros(len(flat), size) for size in sizes]

        def run(value: Tensor) -> Tensor:
            return self.affine(step, [*others[:place], value, *others[place + 1 :]])

        with torch.enable_grad():
            found: Any = torch.func.vjp(run, others[place])
        return torch.as_tensor(found[1](flat)[0]).unflatten(0, coefficients.shape[:2])

    def call(self, step: ActivationStep) -> Call:
        """The activation as a call on sets; the first argument is to be replaced by the set."""
        return self.traced.call_of(step.node, {**self._constants, self._node(step.parents[0]): None}, self._parameters)

    def through(self, step: AffineStep, values: dict[int, Tensor]) -> Tensor:
        """The step on values ``(M, size)`` by index of the step, with its matrices where it has them."""
        if all(matrix is not None for matrix in step.matrices):
            parts = [values[p] @ m.T for p, m in zip(step.parents, step.matrices, strict=True) if m is not None]
            return sum(parts[1:], parts[0]) + step.offset
        return self.affine(step, [values[parent] for parent in step.parents])

    def _matrix(self, step: AffineStep, place: int, sizes: list[int]) -> Tensor:
        module = self.traced.module(step.nodes[0]) if len(step.nodes) == 1 else None
        if type(module) is nn.Linear and len(self.shapes[step.parents[0]]) == 1:
            return self.traced.value_of(module.weight, self._parameters)
        eye = torch.eye(sizes[place], dtype=torch.float64)
        zeros = [torch.zeros(len(eye), size, dtype=torch.float64) for size in sizes]
        return (self.affine(step, [*zeros[:place], eye, *zeros[place + 1 :]]) - step.offset).T

    def _probe(self) -> Environment:
        """A run on points, which refuses what cannot be relaxed; all values are kept, constants among them."""
        few = torch.zeros(2, *self.shape, dtype=torch.float64)
        values: Environment = {self.traced.input: Zonotope(few, torch.zeros_like(few)[:, None])}
        found: Environment = dict(values)
        try:
            for node in self.traced.nodes:
                found[node] = self.traced.run([node], {**found}, {}).get(node)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UnsupportedError(
                f"{self.traced.what}: cannot be run on inputs of shape {self.shape} in double precision ({error})."
            ) from error
        end = found[self.traced.nodes[-1]]
        if not isinstance(end, Zonotope) or end.center.ndim != 2 or len(end.center) != 2:
            raise UnsupportedError(f"{self.traced.what}: expected outputs (N, k) as its only output. {SUPPORTED}")
        return found

    def _carries(self, node: fx.Node) -> bool:
        """Whether the value of a node is a set."""
        return node.op != "output" and isinstance(self.probed.get(node), Zonotope)

    def _parents(self, node: fx.Node) -> list[fx.Node]:
        return [parent for parent in node.all_input_nodes if self._carries(parent)]

    def _is_inner(self, node: fx.Node) -> bool:
        """Whether an affine operation is a part of the step that reads it."""
        users = [user for user in node.users if self._carries(user)]
        ends = any(user.op == "output" for user in node.users) or self._last_layer in (node, *users)
        return not ends and not self.traced.widens(node) and len(users) == 1 and not self.traced.widens(users[0])

    def _find_last_layer(self) -> Any:
        """The last linear layer, where nothing but affine operations follows it."""
        node: Any = self.traced.nodes[-1].args[0]
        while self._carries(node) and not self.traced.widens(node):
            if type(self.traced.module(node)) is nn.Linear:
                return node
            parents = self._parents(node)
            if len(parents) != 1:
                return None
            node = parents[0]
        return None

    def _add(self, node: fx.Node) -> None:
        shape = tuple(self.probed[node].center.shape[1:])
        size = int(torch.Size(shape).numel())
        if self.traced.widens(node):
            step: Step = ActivationStep((self._number[self._parents(node)[0]],), node, size)
        else:
            leaves, nodes = self._gather(node)
            layer = str(node.target) if node is self._last_layer else ""
            step = AffineStep(tuple(self._number[leaf] for leaf in leaves), node, nodes, size, layer)
        self._number[node] = len(self.steps)
        self.steps.append(step)
        self.shapes.append(shape)

    def _gather(self, node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
        """The steps that an affine step reads, and its operations in order, questions for shapes among them."""
        leaves: list[fx.Node] = []
        inside: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            one = waiting.pop()
            inside.add(one)
            for parent in one.all_input_nodes:
                if parent in self._number and parent not in leaves:
                    leaves.append(parent)
                elif parent not in self._number and parent not in inside and self._varies(parent):
                    waiting.append(parent)
        order = {one: place for place, one in enumerate(self.traced.nodes)}
        return sorted(leaves, key=order.__getitem__), sorted(inside, key=order.__getitem__)

    def _varies(self, node: fx.Node) -> bool:
        """Whether the value of a node depends on the input, as a set or through the shape of one."""
        return self._carries(node) or asks_shape(node) or any(self._varies(parent) for parent in node.all_input_nodes)

    def _known(self, parameters: Parameters) -> Environment:
        """Values of the nodes that do not depend on the input, for new values of parameters."""
        fixed = [n for n in self.traced.nodes if n.op not in ("placeholder", "output") and not self._varies(n)]
        found: Environment = {}
        for node in fixed:
            found[node] = self.traced.run([node], dict(found), parameters or {})[node]
        return found

    def _node(self, index: int) -> fx.Node:
        step = self.steps[index]
        return self.traced.input if step is None else step.node
