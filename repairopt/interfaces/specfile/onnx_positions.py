"""ONNX files that score positions: the letters of a line, the cells of an image. What scores them is repaired.

The file is cut where everything that follows looks at each position alone. ONNX Runtime runs the first part; what it
gives for a position is a row, on which the last layers are a network of logits ``(P, k)`` like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, path_of, public
from repairopt.network import as_tensor

from .onnx_branches import without_branches
from .onnx_ending import LAST
from .onnx_graph import OnnxGraph, OnnxPrefix
from .onnx_model import CLOSE, SOURCE, Builder, by_position, run, starts_of
from .onnx_parts import read_model, some_rows


@dataclass(frozen=True, eq=False)
class OnnxPositions:
    """The last layers of a file as a network, and what they read.

    Attributes:
        network: From rows ``(P, C)``, one for each position, to logits ``(P, k)``.
        count: Positions of an input of the size that was given; position ``t`` of input ``i`` is row ``i count + t``.
        before: The part of the file before them.
        channels_last: Whether the scores of a position stand on the last axis, ``(N, ..., k)``, else ``(N, k, ...)``.
    """

    network: nn.Module
    count: int
    before: OnnxPrefix
    channels_last: bool

    @public
    def rows(self, inputs: Any) -> Tensor:
        """What the last layers read at each position ``(P, C)`` of inputs ``(N, ...)``, all of one size."""
        with torch.no_grad():
            return by_position(self.before(as_tensor("inputs", inputs)), self.channels_last)


@public
def load_positions(
    path: Path | str, inputs: Any, *, output: str | None = None, fixed: Mapping[str, float] | None = None
) -> OnnxPositions:
    """Read the last layers of an ONNX file that gives scores for each position, such as ``(N, T, k)``.

    ``write_onnx(repaired, target, inputs)`` of ``onnx_model`` writes them back into a copy of the file.

    Args:
        path: The file; not changed.
        inputs: A few inputs ``(N, ...)`` as the file reads them, on which both are compared.
        output: Name of the output with the scores, or of a tensor inside the file; by default the first output with
            three or four axes. A softmax over the scores of a position is left out.
        fixed: Numbers that fill other inputs, by name.

    Returns:
        The network, and what makes its rows. Positions of one input are not independent: intervals and claims about
        new data, which take rows as drawn one by one, are too narrow for these.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        ModelError: The file is not valid, has no such scores, or no layer looks at each position alone.
    """
    path, inputs = path_of(path, "ONNX file"), some_rows("inputs", inputs)
    model = read_model(path)
    whole = OnnxGraph(path, model, model.graph.output[0].name, fixed or {})
    graph, few, found = _scores(without_branches(whole, inputs), inputs, output)
    for name, values, channels_last in _before_softmax(graph, few, found):
        own = replace(graph, output=name)
        wanted = by_position(values, channels_last)
        for start in _starts(own):
            (value,) = own.values([start], few)
            before = None if value is None else torch.tensor(value)
            if before is None or before.ndim < 2 + own.whole:
                continue
            rows = by_position(before, channels_last)
            axes = before.ndim - own.whole - 2
            spread = (1,) * axes if channels_last else (2,) * axes
            try:
                network = Builder(own, start, "same", spread).build()
                made = run(network, rows)
            except (ModelError, RuntimeError, TypeError, IndexError):
                continue
            if made.shape == wanted.shape and torch.allclose(made.double(), wanted.double(), *CLOSE):
                origin = {"path": path, "output": name, "fixed": own.fixed, "ending": "same"}
                network.meta[SOURCE] |= origin | {"positions": (start, channels_last, own.whole)}
                return OnnxPositions(network, len(rows) // len(few), graph.session(start), channels_last)
    ways = ", ".join(_candidates(graph)) or "there is none"
    raise ModelError(
        f"'{path}': no layer with weights before '{graph.output}' looks at each position alone, in operators that are "
        f"covered. Name a tensor inside the file whose scores are to be repaired, output=: {ways}.{graph.hint}"
    )


def _scores(graph: OnnxGraph, rows: Tensor, wanted: str | None) -> tuple[OnnxGraph, Tensor, Tensor]:
    """The graph with the output of scores, the inputs that were run, and their scores."""
    made = [name for node in graph.model.graph.node for name in node.output]
    names = [item.name for item in graph.model.graph.output]
    if wanted is not None and wanted not in made:
        raise ModelError(f"'{graph.path}': makes no tensor '{wanted}'; outputs: {', '.join(names)}.")
    seen = []
    for name in names if wanted is None else [wanted]:
        own = replace(graph, output=name)
        if not own.nodes:
            continue
        few = own.example(rows)
        for read in (own, replace(own, whole=True)):  # (N, T, k), or all that an input gives, as (T, 1, k)
            try:
                found = read.session(name)(few)
            except (ModelError, TypeError) as error:
                seen.append(f"{name}: {error}")
                continue
            seen.append(f"{name} {tuple(found.shape)}")
            if found.is_floating_point() and found.ndim in (3, 4) and found.numel():
                return read, few, found
            break
    raise ModelError(
        f"'{graph.path}': has no scores for positions, (N, T, k), (N, k, T) or (N, k, H, W) for N inputs: "
        f"{'; '.join(seen)}. load_onnx reads files with one row of scores for each input."
    )


def _before_softmax(graph: OnnxGraph, few: Tensor, found: Tensor) -> Iterator[tuple[str, Tensor, bool]]:
    """Tensors of logits with their values and whether scores stand on the last axis.

    What is before a softmax comes first, then the scores, then what only has another shape than these.
    """
    axes = [-1] if graph.whole else [*dict.fromkeys((*((-1,) if found.ndim == 3 else (1,)), 1, -1))]
    nodes = [graph.model.graph.node[place] for place in graph.nodes[-LAST:]]
    names = [name for node in nodes for name in node.output if name and name != graph.output]
    values = dict(zip(names, graph.values(names, few), strict=True))
    near = {
        name: torch.tensor(value)
        for name, value in values.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 1 and value.size == found.numel()
    }
    for axis in axes:
        if bool((found >= 0).all()) and bool((found.sum(axis) - 1).abs().max() < 1e-3):
            for name, own in near.items():
                if own.shape == found.shape and torch.allclose(own.softmax(axis), found, 1e-4, 1e-6):
                    yield name, own, axis == -1
    for axis in axes:
        yield graph.output, found, axis == -1
    for name, own in near.items():
        rows = by_position(own, True)
        if rows.shape[1] == found.shape[-1] and torch.equal(rows, by_position(found, True)):
            yield name, own, True


def _starts(graph: OnnxGraph) -> list[str]:
    """Cuts from which all operators are covered, the earliest first; none where the last one is not covered."""
    try:
        return starts_of(graph)
    except ModelError:
        return []


def _candidates(graph: OnnxGraph) -> list[str]:
    """What the last dense and convolutional layers give, the last ones first."""
    nodes = [graph.model.graph.node[place] for place in graph.nodes]
    return [node.output[0] for node in reversed(nodes) if node.op_type in ("Conv", "MatMul", "Gemm")][:8]
