"""Branches of an ONNX file that are always the same: an ``If`` whose condition no row changes.

Exporters leave conditions on the number of axes, on the size of a batch and on settings such as a sampling rate, and
put whole networks into the branches. What stands in a branch can be neither cut nor repaired. So, in a copy, the branch
that is taken is put in the place of its ``If``; each node remembers where it stands in the file, and its weights are
written back there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import ModelError

from .onnx_graph import DTYPES, OnnxGraph, run_part
from .onnx_parts import part_of, reads

Home = tuple[tuple[tuple[int, str], ...], int]  # the branches that lead to a node, and its place in the last one


def without_branches(graph: OnnxGraph, rows: Tensor | None) -> OnnxGraph:
    """The graph with the branch that is taken in place of each ``If`` whose condition depends on no value of a row.

    A condition on the number of rows in a batch stays: both of its branches are in use.

    Args:
        graph: With any output; its model is not changed.
        rows: As for ``OnnxGraph.example``; conditions on sizes hold for rows of this size.

    Raises:
        ModelError: The file has an ``If`` and its rows cannot be made, or it has no one input.
    """
    if not any(node.op_type == "If" for node in graph.model.graph.node):
        return graph
    few = graph.example(rows)
    model = type(graph.model)()
    model.CopyFrom(graph.model)
    homes: list[Home | None] = [((), place) for place in range(len(model.graph.node))]
    by_batch: set[str] = set()
    while conditions := _fixed_conditions(graph, model, by_batch):
        names = sorted({model.graph.node[place].input[0] for place in conditions})
        taken = _taken(graph, model, names, few)
        by_batch |= set(names) - set(taken)
        for place in reversed(conditions):
            if (name := model.graph.node[place].input[0]) in taken:
                _take(model.graph, homes, place, taken[name])
    return replace(graph, model=model, homes=homes, sizes=tuple(few.shape[1:]))


def graph_at(graph: Any, branches: tuple[tuple[int, str], ...]) -> list[Any]:
    """The graphs that lead to a node of a file: the file's own, then one branch after the other."""
    found = [graph]
    for place, name in branches:
        found.append(next(item.g for item in found[-1].node[place].attribute if item.name == name))
    return found


def replace_array(graphs: list[Any], place: int, position: int, form: str, value: Any) -> None:
    """Put an array where a node of the last graph reads it, as a tensor of its own where others read the old one too.

    Args:
        graphs: What ``graph_at`` gives: the file's graph, then the branches that lead to the node.
        place: The node's place in the last graph.
        position: Which of its inputs the array is.
        form: How it stands in the file: ``plain`` or ``columns`` (turned), and the factor that it is multiplied by.
        value: The array as the network has it.
    """
    from onnx import numpy_helper

    inner = graphs[-1]
    node = inner.node[place]
    name = node.input[position]
    way, _, factor = form.partition(" ")
    value = value / np.asarray(float(factor or 1.0), value.dtype)
    value = value.T if way == "columns" else value
    home = next((graph for graph in reversed(graphs) if name in _made(graph)), inner)
    maker = next((item for item in home.node if name in item.output), None)
    old = next((item for item in home.initializer if item.name == name), _constant(maker))
    if old is not None:
        before = numpy_helper.to_array(old)
        value = (value.reshape(before.shape) if value.size == before.size else value).astype(before.dtype)
        if before.shape == value.shape and np.array_equal(before, value):
            return
    readers = sum(reads(item).count(name) for item in home.node) + sum(item.name == name for item in home.output)
    if readers > 1:
        name = _free(f"{name}_repaired", graphs)
        node.input[position] = name
        inner.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    elif old is not None:
        old.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), old.name))
    else:
        if maker is not None:  # other nodes keep their places in the list
            maker.output[[*maker.output].index(name)] = _free(f"{name}_before", graphs)
        home.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))


def _constant(maker: Any) -> Any:
    """The tensor of a constant's node, as Paddle's exporter writes weights; None of other nodes."""
    if maker is None or maker.op_type != "Constant":
        return None
    return next((item.t for item in maker.attribute if item.name == "value"), None)


def _free(name: str, graphs: list[Any]) -> str:
    """The name, or the first with a number, that no graph has."""
    taken = {own for graph in graphs for own in (*_made(graph), *(item.name for item in graph.input))}
    return next(own for own in _names(name) if own not in taken)


def _made(graph: Any) -> set[str]:
    """Names of the tensors that a graph makes or holds."""
    return {item.name for item in graph.initializer} | {name for node in graph.node for name in node.output}


def _fixed_conditions(graph: OnnxGraph, model: Any, but: set[str]) -> list[int]:
    """Places of the ``If`` nodes whose condition depends on a row by its sizes at most, ``but`` for some conditions."""
    moving, found = {graph.input.name}, []
    for place, node in enumerate(model.graph.node):
        if node.op_type == "If" and node.input[0] not in moving | but:
            found.append(place)
        if node.op_type not in ("Shape", "Size") and moving & set(reads(node)):
            moving |= set(node.output)
    return found


def _taken(graph: OnnxGraph, model: Any, names: list[str], few: Tensor) -> dict[str, bool]:
    """Conditions by name, without those that are others for several rows than for one."""
    batch = graph.session(graph.output).batch
    one = _values(graph, model, names, few[torch.zeros(batch, dtype=torch.long)])
    try:
        several = one if batch > 1 else _values(graph, model, names, few)
    except ModelError:  # the file takes one row at a time
        several = one
    found = [tuple(bool(np.asarray(value).reshape(-1)[0]) for value in pair) for pair in zip(one, several, strict=True)]
    return {name: first for name, (first, second) in zip(names, found, strict=True) if first == second}


def _values(graph: OnnxGraph, model: Any, names: list[str], few: Tensor) -> list[Any]:
    """Tensors of a model for some rows."""
    inputs = [item for item in model.graph.input if item.name in (graph.input.name, *graph.fixed)]
    runner = graph.session(graph.output)
    row: Any = few.numpy().astype(DTYPES[runner.entry.type])
    content = part_of(model, inputs, names)
    return run_part(
        content, names, lambda item: row if item.name == graph.input.name else runner.filled(item, len(row))
    )


def _take(graph: Any, homes: list[Home | None], place: int, condition: bool) -> None:
    """Put the nodes and arrays of a branch in the place of its ``If``; names that are taken are changed."""
    from onnx import NodeProto, TensorProto, helper

    chosen = graph.node[place]
    name = "then_branch" if condition else "else_branch"
    branch = next(item.g for item in chosen.attribute if item.name == name)
    used = {name for node in graph.node for name in (*node.output, *node.input)}
    used |= {item.name for item in (*graph.initializer, *graph.input, *graph.output)}
    own = [item.name for item in branch.initializer] + [name for node in branch.node for name in node.output if name]
    others: dict[str, str] = {}
    for old in own:
        others[old] = next(new for new in _names(old) if new not in used)
        used.add(others[old])
    above = homes[place]
    nodes, places = [], []
    for inner, node in enumerate(branch.node):
        copied = NodeProto.FromString(node.SerializeToString())
        _rename(copied, others)
        nodes.append(copied)
        places.append(None if above is None else ((*above[0], (above[1], name)), inner))
    for made, wanted in zip(branch.output, chosen.output, strict=True):
        if wanted:
            nodes.append(helper.make_node("Identity", [others.get(made.name, made.name)], [wanted]))
            places.append(None)
    for item in branch.initializer:
        copied = TensorProto.FromString(item.SerializeToString())
        copied.name = others[item.name]
        graph.initializer.append(copied)
    every = [*graph.node][:place] + nodes + [*graph.node][place + 1 :]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in every]
    graph.ClearField("node")
    graph.node.extend(kept)
    homes[place : place + 1] = places


def _rename(node: Any, others: dict[str, str]) -> None:
    """Give the tensors of a node, and those that its own branches read, other names."""
    for names in (node.input, node.output):
        for i, name in enumerate(names):
            names[i] = others.get(name, name)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
            shadowed = {item.name for item in (*graph.initializer, *graph.input)}
            shadowed |= {name for inner in graph.node for name in inner.output}
            rest = {old: new for old, new in others.items() if old not in shadowed}
            for inner in graph.node:
                _rename(inner, rest)
            for item in graph.output:
                item.name = rest.get(item.name, item.name)


def _names(name: str) -> Iterator[str]:
    """The name, then the name with a number."""
    yield name
    number = 0
    while True:
        number += 1
        yield f"{name}_{number}"
