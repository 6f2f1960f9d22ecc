"""Split a network where the first changed weight enters, so that what comes before is computed once.

The network is traced with ``torch.fx``. Every node that depends on a changed parameter belongs to the suffix; what
the suffix needs from the rest is the frontier. This covers chains, residual connections and shared inputs alike.
Networks that cannot be traced (data-dependent control flow) are split before the module that makes their outputs, where
it holds all changed weights; else they run whole, and nothing else changes for them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .last_module import find_last_module
from .model_checks import agree
from .tracing import as_module, trace_network


@dataclass(frozen=True, eq=False)
class Split:
    """A network in two parts: ``output = suffix(*prefix(inputs))``.

    Attributes:
        prefix: To the frontier, tensors with one row for each sample; None where the frontier is the input.
        suffix: From the frontier to the output; holds every changed parameter, under its own name.
        floats: Numbers that all layers of the suffix make for each sample; for memory estimates.
        widest: The most numbers that one of them makes.
        last_linear: Name of the linear module that is the whole suffix, or None.
        writes: Whether prefix and suffix write into what they are given, which must be copies then.
        graph: The trace of the whole network, which another split of a network of the same structure may start from.
    """

    prefix: nn.Module | None
    suffix: nn.Module
    floats: int
    widest: int
    last_linear: str | None = None
    writes: tuple[bool, bool] = (False, False)
    graph: fx.Graph | None = None


def split_at(network: nn.Module, changed: set[str], rows: Tensor, graph: fx.Graph | None = None) -> Split | None:
    """Split a network in evaluation mode at the parameters of these names; ``rows`` are at least 5 inputs.

    ``graph`` is its trace where there is one already.

    None where the network cannot be traced, or the trace or the two parts disagree with a plain run on the rows, as
    where forward writes into a value that the other part reads.
    """
    try:
        traced = trace_network(network) if graph is None else as_module(network, graph)
        three, five = (run_and_keep(traced, rows[:size].clone())[1] for size in (3, 5))
        with torch.no_grad():
            output = traced(rows.clone())
    except Exception:  # tracing runs the user's forward on proxies: whatever it raises means "cannot be traced"
        return _at_last_module(network, changed, rows)
    with torch.no_grad():
        whole = network(rows.clone())
    if not agree(output, whole, atol=1e-8):
        return None
    split = _cut(traced, changed, [three, five])
    if split is None:
        return None
    with torch.no_grad():
        given = rows.clone()
        frontier = (given,) if split.prefix is None else split.prefix(given)
        before = [(part._version, part.clone()) for part in frontier]
        again = split.suffix(*frontier)
    if not agree(again, whole):
        return None
    writes = (_is_written(given, (0, rows)), any(map(_is_written, frontier, before)))
    return replace(split, writes=writes, graph=traced.graph)


def _at_last_module(network: nn.Module, changed: set[str], rows: Tensor) -> Split | None:
    """The split before the one module that holds the changed parameters and makes the outputs, or None."""
    found = find_last_module(network, changed, rows)
    if found is None:
        return None
    prefix, suffix = found
    target = str(next(node.target for node in suffix.graph.nodes if node.op == "call_module"))
    sizes: list[int] = []
    module = suffix.get_submodule(target)
    leaves = [one for one in module.modules() if not [*one.children()]]
    handles = [
        one.register_forward_hook(lambda _, given, made: sizes.append(made.numel() if isinstance(made, Tensor) else 0))
        for one in leaves
    ]
    with torch.no_grad():
        suffix(*prefix(rows.clone()))
    for handle in handles:
        handle.remove()
    each = [size // len(rows) for size in sizes]
    last = target if type(module) is nn.Linear else None
    return Split(prefix, suffix, sum(each), max(each, default=1), last, (True, True))


def _is_written(tensor: Tensor, before: tuple[int, Tensor]) -> bool:
    """Whether a tensor was written into, even if with what was there."""
    return tensor._version != before[0] or not torch.equal(tensor, before[1])


def run_and_keep(
    graph: fx.GraphModule, inputs: Tensor, wanted: set[fx.Node] | None = None
) -> tuple[Any, dict[fx.Node, Any]]:
    """Run a graph on inputs, without gradients; its output, and the values of the wanted nodes or of all."""
    kept: dict[fx.Node, Any] = {}

    class Keeper(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if wanted is None or n in wanted:
                kept[n] = value
            return value

    with torch.no_grad():
        return Keeper(graph).run(inputs), kept


def _cut(traced: fx.GraphModule, changed: set[str], seen: list[dict[fx.Node, Any]]) -> Split | None:
    own = dict(traced.named_parameters(remove_duplicate=False))
    identities = {id(own[name]) for name in changed if name in own}
    nodes = list(traced.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    if len(inputs) != 1 or not changed:
        return None

    late: set[fx.Node] = set()
    for node in nodes:
        if identities & parameters_read(traced, node) or any(parent in late for parent in node.all_input_nodes):
            late.add(node)
    per_sample = {node for node in nodes if _is_per_sample(seen, node)}
    pull = True  # a value without a row for each sample (a size, a weight) is made again inside the suffix
    while pull:
        needed = {parent for node in late for parent in node.all_input_nodes} - late
        pulled = {node for node in needed if node not in per_sample}
        late |= pulled
        pull = bool(pulled)
    if inputs[0] in late:
        return None
    frontier = [node for node in nodes if node in needed]
    if nodes[-1] not in late:
        return None
    suffix = _subgraph(traced, [node for node in nodes if node in late], frontier)
    statements = {node for node in nodes if not node.users and node not in late and node not in inputs}
    before = set(frontier) | statements  # statements write into values: they have an effect, but no reader
    for node in reversed(nodes):
        before |= set(node.all_input_nodes if node in before else ())
    early = [node for node in nodes if node in before]
    prefix = None if frontier == inputs and not statements else _subgraph(traced, early, [], frontier)
    sizes = [seen[0][node].numel() // 3 for node in late if node in per_sample and node.op != "output"]
    steps = [str(node.target) if node.op == "call_module" else "" for node in nodes if node in late][:-1]
    last = steps[0] if len(steps) == 1 and steps[0] and type(traced.get_submodule(steps[0])) is nn.Linear else None
    return Split(prefix, suffix, sum(sizes), max(sizes, default=1), last)


def parameters_read(network: nn.Module, node: fx.Node) -> set[int]:
    """Identities of the parameters that a node of a traced network reads."""
    if node.op == "get_attr":
        return {id(operator.attrgetter(str(node.target))(network))}
    if node.op == "call_module":
        return {id(parameter) for parameter in network.get_submodule(str(node.target)).parameters()}
    return set()


def _is_per_sample(seen: list[dict[fx.Node, Any]], node: fx.Node) -> bool:
    values = [(record.get(node), size) for record, size in zip(seen, (3, 5), strict=True)]
    return all(isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size for value, size in values)


def _subgraph(
    traced: fx.GraphModule, nodes: list[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node] | None = None
) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {node: graph.placeholder(node.name) for node in inputs}
    copy: Callable[[fx.Node], fx.Node] = lambda node: made[node]  # noqa: E731
    for node in nodes:
        if node.op != "output":
            made[node] = graph.node_copy(node, copy)
        elif outputs is None:
            graph.output(fx.map_arg(node.args[0], copy))
    if outputs is not None:
        graph.output(tuple(made[node] for node in outputs))
    return as_module(traced, graph)
