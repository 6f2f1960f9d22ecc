"""Cells: a block as a graph of operations, relaxed while it is searched, then with one operation on each edge."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError

from .operations import OPERATIONS, ORIGINAL, Shape, make_operation

START = 8.0  # strength of the operation that an edge begins with: e^8 / (e^8 + 6) = 0.998
PART = 4  # one of so many channels goes through the mixture of an edge


class Edge(nn.Module):
    """A mixture of operations between two nodes; a quarter of the channels goes through it, the rest as at the start.

    Attributes:
        names: Of the operations.
        alpha: Strength of each.
        start: The operation that the edge begins with.
    """

    mask: Tensor

    def __init__(self, shapes: tuple[Shape, Shape], segment: nn.Module | None, strength: float, seed: int) -> None:
        super().__init__()
        self.start = "none" if segment is None else ORIGINAL
        made = {name: make_operation(name, *shapes) for name in OPERATIONS}
        self.operations = nn.ModuleDict(made if segment is None else {ORIGINAL: segment, **made})
        self.names = tuple(self.operations)
        alpha = torch.zeros(len(self.names))
        alpha[self.names.index(self.start)] = strength
        self.alpha = nn.Parameter(alpha)
        channels = shapes[1][0]
        chosen = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))[: max(1, channels // PART)]
        mask = torch.zeros(1, channels, 1, 1)
        mask[:, chosen] = 1.0
        self.register_buffer("mask", mask)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps of the next node."""
        share = torch.softmax(self.alpha, 0).to(inputs.dtype)
        values = [operation(inputs) for operation in self.operations.values()]
        mixed = torch.stack([part * value for part, value in zip(share, values, strict=True)]).sum(0)
        begun = values[self.names.index(self.start)]
        return begun + self.mask.to(inputs.dtype) * (mixed - begun)

    @property
    def chosen(self) -> str:
        """The strongest operation."""
        return self.names[int(self.alpha.argmax())]


class RelaxedCell(nn.Module):
    """A block as a graph: every node takes a mixture of operations of every earlier one.

    The first node is the input of the block, the last one its output. Between consecutive nodes one of the operations
    is the segment of the original block, with which the edge begins; other edges begin with nothing. So the relaxed
    cell computes nearly what the block does.

    Attributes:
        shapes: Of the nodes.
        segments: Of the original block.
    """

    def __init__(
        self, segments: Sequence[nn.Module], shapes: Sequence[Shape], start: float = START, seed: int = 0
    ) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.edges = nn.ModuleDict()
        self.betas = nn.ParameterList()
        for j in range(1, len(shapes)):
            for i in range(j):
                own = segments[i] if i == j - 1 else None
                pair = (self.shapes[i], self.shapes[j])
                self.edges[f"{i}_{j}"] = Edge(pair, own, start, seed + len(self.edges))
            beta = torch.zeros(j)
            beta[-1] = start
            self.betas.append(nn.Parameter(beta))

    def forward(self, inputs: Tensor) -> Tensor:
        """The output of the block."""
        nodes = [inputs]
        for j in range(1, len(self.shapes)):
            share = torch.softmax(self.betas[j - 1], 0).to(inputs.dtype)
            values = [share[i] * self.edges[f"{i}_{j}"](nodes[i]) for i in range(j)]
            nodes.append(torch.stack(values).sum(0))
        return nodes[-1]

    def architecture(self) -> list[Tensor]:
        """What says which operations are taken."""
        return [*self.betas, *(edge.alpha for edge in self._every())]

    def weights(self) -> list[Tensor]:
        """The weights of all operations."""
        architecture = {id(one) for one in self.architecture()}
        return [one for one in self.parameters() if id(one) not in architecture]

    def genotype(self) -> list[dict[str, Any]]:
        """The strongest operation of each edge, ``none`` left out, with the weight of the edge; at least one a node."""
        found: list[dict[str, Any]] = []
        for j in range(1, len(self.shapes)):
            share = torch.softmax(self.betas[j - 1].detach(), 0).tolist()
            edges = {i: self._edge(i, j) for i in range(j)}
            kept = {i: edge.chosen for i, edge in edges.items() if edge.chosen != "none"}
            if not kept:
                best = max(edges, key=lambda i: share[i])
                alpha = edges[best].alpha.detach().clone()
                alpha[edges[best].names.index("none")] = -torch.inf
                kept = {best: edges[best].names[int(alpha.argmax())]}
            total = sum(share[i] for i in kept)
            found += [{"from": i, "to": j, "operation": name, "weight": share[i] / total} for i, name in kept.items()]
        return found

    def fixed(self) -> FixedCell:
        """The cell with the chosen operations alone, their weights shared."""
        genotype = self.genotype()
        chosen = [self._edge(one["from"], one["to"]).operations[one["operation"]] for one in genotype]
        return FixedCell(genotype, len(self.shapes), chosen)

    def _edge(self, i: int, j: int) -> Edge:
        found = self.edges[f"{i}_{j}"]
        assert isinstance(found, Edge)
        return found

    def _every(self) -> list[Edge]:
        return [edge for edge in self.edges.values() if isinstance(edge, Edge)]


class FixedCell(nn.Module):
    """A block as a graph with one operation on each edge that is left; a node is the weighted sum of its edges."""

    def __init__(self, genotype: Sequence[Mapping[str, Any]], nodes: int, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.plan = [(int(one["from"]), int(one["to"]), float(one["weight"])) for one in genotype]
        self.nodes, self.operations = nodes, nn.ModuleList(operations)

    def forward(self, inputs: Tensor) -> Tensor:
        """The output of the block."""
        values: list[Any] = [inputs, *(None for _ in range(self.nodes - 1))]
        for (start, end, weight), operation in zip(self.plan, self.operations, strict=True):
            made = operation(values[start])
            made = made if weight == 1.0 else weight * made
            values[end] = made if values[end] is None else values[end] + made
        return values[-1]

    @classmethod
    def build(
        cls, block: nn.Module, genotype: Sequence[Mapping[str, Any]], shapes: Sequence[Sequence[int]]
    ) -> FixedCell:
        """The cell of a genotype for a copy of the original block, its weights not set yet.

        Raises:
            ValueError: An operation is not known, or a node does not exist.
        """
        segments = segments_of(copy.deepcopy(block))
        known: list[Shape] = [(int(c), int(h), int(w)) for c, h, w in shapes]
        made = []
        for one in genotype:
            start, end, name = int(one["from"]), int(one["to"]), str(one["operation"])
            if not 0 <= start < end < len(known):
                raise ValueError(f"edge from node {start} to node {end}; expected nodes below {len(known)}, in order")
            own = name == ORIGINAL and end == start + 1
            made.append(segments[start] if own else make_operation(name, known[start], known[end]))
        return cls(genotype, len(known), made)


def segments_of(block: nn.Module) -> list[nn.Module]:
    """The operation layers of a block: children of a Sequential that hold weights, with those without that follow.

    A block of another kind is one operation layer.
    """
    if not isinstance(block, nn.Sequential):
        return [block]
    parts: list[list[nn.Module]] = []
    for child in block:
        if parts and (not any(True for _ in child.parameters()) or not _has_weights(parts[-1])):
            parts[-1].append(child)
        else:
            parts.append([child])
    return [part[0] if len(part) == 1 else nn.Sequential(*part) for part in parts]


def node_shapes(segments: Sequence[nn.Module], inputs: Tensor) -> list[Shape]:
    """Shapes of a block's input and of what each segment makes of it.

    Raises:
        ModelError: One is no feature map ``(N, C, H, W)``.
    """
    found, value = [], inputs
    with torch.no_grad():
        for segment in (None, *segments):
            value = value if segment is None else segment(value)
            if not isinstance(value, Tensor) or value.ndim != 4:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ModelError(f"a block makes {what}; ArchRepair's operations are of feature maps (N, C, H, W).")
            found.append((int(value.shape[1]), int(value.shape[2]), int(value.shape[3])))
    return found


def _has_weights(modules: Sequence[nn.Module]) -> bool:
    return any(True for module in modules for _ in module.parameters())
