"""An ONNX file as a torch network that can be traced and repaired, checked against ONNX Runtime, and written back.

Where all operators are covered the whole file becomes torch modules. Else the file is cut: ONNX Runtime runs the first
part as it is, and what follows the cut becomes torch modules; the cut lies as early as the operators after it allow. A
softmax or sigmoid at the end, in whatever operators it is written, is left out, because the library works on logits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repairopt.errors import ExportError, ModelError, path_of, public
from repairopt.patches import TOLERANCES, whole_file

from .onnx_branches import graph_at, replace_array, without_branches
from .onnx_ending import as_outputs, as_rows, find_logits
from .onnx_graph import OnnxGraph
from .onnx_operators import LAYERS, OPERATIONS, Call
from .onnx_parts import read_model, some_rows

SOURCE = "repairopt_onnx"  # under this name a network knows its file
TRIES = 12  # cuts, from the earliest on
APART = 0.02  # of the largest score: what rows run together may differ from rows run one by one
CLOSE = TOLERANCES[torch.float32]


@public
def load_onnx(
    path: Path | str, rows: Any = None, *, output: str | None = None, fixed: Mapping[str, float] | None = None
) -> nn.Module:
    """Read an ONNX file with one input, the batch first, as a network of logits ``(N, k)``.

    Args:
        path: The file; not changed.
        rows: A few rows as the network reads them, on which it is compared with ONNX Runtime; random ones by default,
            where the file says their shape.
        output: Name of the output with logits, probabilities or scores; by default the first with fractions and a row
            for each row of the input.
        fixed: Numbers that fill other inputs, by name, such as states and sampling rates.

    Returns:
        The network, in evaluation mode. The parameters of its layers are weights of the file.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        ModelError: The file is not valid, has several inputs, gives no scores ``(N, k)``, or ends in operators that are
            not covered.
    """
    path = path_of(path, "ONNX file")
    model = read_model(path)
    rows = None if rows is None else some_rows("rows", rows)
    whole = OnnxGraph(path, model, model.graph.output[0].name, fixed or {})
    graph, few, expected = _with_output(without_branches(whole, rows), rows, output, model)
    end, ending = find_logits(graph, few, expected)
    flat = graph.session(end)(few).ndim == 1
    problem: ModelError | None = None
    for start in starts_of(replace(graph, output=end)):
        try:
            network = Builder(replace(graph, output=end), start, ending, flat=flat).build()
            origin = {"path": path, "output": graph.output, "fixed": graph.fixed, "ending": ending}
            network.meta[SOURCE] = origin | network.meta[SOURCE]
            _compare(graph, network, few)
            return network
        except ModelError as error:
            problem = problem or error
    raise problem or ModelError(f"'{path}': has no layer with weights that could be repaired.")


@public
def write_onnx(network: nn.Module, target: Path | str, rows: Any) -> float:
    """Write a repaired network as a copy of the ONNX file that it was read from, with the weights that changed.

    Names, operators, metadata and other outputs stay as they are.

    Args:
        network: With other weights than the file's.
        target: File to write; replaced where it exists.
        rows: Rows on which the file is compared with the network, as the file reads them.

    Returns:
        The largest difference of an output between ONNX Runtime and the network.

    Raises:
        ModelError: The network is not from an ONNX file.
        ExportError: What was written computes something else.
    """
    import onnx

    source = source_of(network)
    if source is None:
        raise ModelError(
            f"model {type(network).__name__}: was not read from an ONNX file; export_onnx writes any model."
        )
    target, rows = path_of(target, "write_onnx", written=True), some_rows("rows", rows)
    model = read_model(source["path"])
    state = dict(network.named_parameters())
    for name, (branches, place, position, form) in source["weights"].items():
        value = state[name].detach().cpu().numpy()
        try:
            replace_array(graph_at(model.graph, branches), place, position, form, value)
        except (IndexError, StopIteration) as error:
            raise ExportError(
                f"'{source['path']}': is another file now than the one that the network was read from; put it back."
            ) from error
    with whole_file(target) as part:
        onnx.save(model, str(part))
        graph = OnnxGraph(part, onnx.load(str(part)), model.graph.output[0].name, source["fixed"])
        graph = replace(without_branches(graph, rows), output=source["output"])
        at = source.get("positions")
        graph = graph if at is None else replace(graph, whole=at[2])
        found = graph.session(source["output"])(rows)
        if at is None:
            found, expected = as_rows(found), as_outputs(run(network, rows), source["ending"])
        else:
            found, before = by_position(found, at[1]), graph.session(at[0])(rows)
            expected = run(network, by_position(before, at[1]))
        apart = float((found.double() - expected.double()).abs().max())
        if not torch.allclose(found.double(), expected.double(), *CLOSE):
            raise ExportError(
                f"'{target}': would differ from the repaired network by {apart:.3g}; nothing was written."
            )
    return apart


def source_of(network: nn.Module) -> dict[str, Any] | None:
    """Where a network was read from, its output, ending and weights; None where it is not from an ONNX file."""
    return network.meta.get(SOURCE) if isinstance(network, fx.GraphModule) else None


def random_rows(network: nn.Module, count: int, sizes: Sequence[int] | None = None) -> Tensor | None:
    """Random rows ``(count, ...)`` as an ONNX file reads them; None of a network from elsewhere.

    Args:
        network: From :func:`load_onnx`.
        count: Number of rows.
        sizes: Of one row; None for those that the file names.

    Raises:
        ModelError: The file does not name them all.
    """
    source = source_of(network)
    if source is None:
        return None
    graph = OnnxGraph(source["path"], read_model(source["path"]), source["output"], source["fixed"])
    return graph.drawn(count, graph.example(None).shape[1:] if sizes is None else sizes)


def output_names(path: Path | str) -> list[str]:
    """Names of the outputs of an ONNX file."""
    return [item.name for item in read_model(Path(path)).graph.output]


def _with_output(
    graph: OnnxGraph, rows: Tensor | None, wanted: str | None, given: Any
) -> tuple[OnnxGraph, Tensor, Tensor]:
    """The graph with the output of scores, the rows that were run, and their scores; ``given`` is the file's model."""
    names = [item.name for item in graph.model.graph.output]
    if wanted is not None and wanted not in names:
        raise ModelError(f"'{graph.path}': has no output '{wanted}'; outputs: {', '.join(names)}.")
    makers = {name: node for node in graph.model.graph.node for name in node.output}
    seen, fitting = [], []
    for name in names if wanted is None else [wanted]:
        maker = makers.get(name)
        name = maker.input[0] if maker is not None and maker.op_type == "ZipMap" else name  # scikit-learn's dicts
        own = replace(graph, output=name)
        if not own.nodes:
            continue
        few = own.example(rows)
        try:
            found = own.session(name)(few)
        except (ModelError, TypeError) as error:
            seen.append(f"{name}: {error}")
            continue
        seen.append(f"{name} {tuple(found.shape)}")
        if found.is_floating_point() and found.ndim in (1, 2) and len(found) == len(few) and found.numel():
            fitting.append((own, few, found))
    if fitting:
        own, few, found = _with_one_meaning(graph.path, fitting)
        _check_rows_apart(replace(own, model=given), few, found)
        return own, few, as_rows(found)
    raise ModelError(
        f"'{graph.path}': has no output of scores, (N, k) for N rows; outputs: {'; '.join(seen)}. What scores the "
        f"positions of a text or an image one by one is repaired in Python: load_positions(path, rows) of "
        f"repairopt.interfaces.specfile.onnx_positions."
    )


def _with_one_meaning(path: Path, fitting: list[tuple[OnnxGraph, Tensor, Tensor]]) -> tuple[OnnxGraph, Tensor, Tensor]:
    """The first output of probabilities, else of scores; a ModelError where others choose other classes."""
    shares = [one for one in fitting if one[2].ndim == 2 and bool(((one[2].sum(1) - 1).abs() < 1e-3).all())]
    fitting = [one for one in shares if bool((one[2] >= 0).all())] or fitting
    _, _, first = fitting[0]
    classes = as_rows(first).argmax(1)
    for own, _, found in fitting[1:]:
        if found.shape != first.shape or not torch.equal(as_rows(found).argmax(1), classes):
            listed = ", ".join(f"'{one.output}' {tuple(scores.shape)}" for one, _, scores in fitting)
            raise ModelError(
                f"'{path}': has several outputs that can be scores: {listed}. Name the one that classes are chosen by, "
                f"model: {{onnx: {path.name}, output: {own.output}}}."
            )
    return fitting[0]


def _check_rows_apart(graph: OnnxGraph, few: Tensor, found: Tensor) -> None:
    """A ModelError where rows that are run together give other scores than one by one, as steps of a sequence do."""
    together = graph.session(graph.output).together(few)
    if together is None or together.shape != found.shape:
        return
    if float((together - found).abs().max()) > APART * float(found.abs().max()):
        raise ModelError(
            f"'{graph.path}': '{graph.output}' of a row depends on the other rows: its first axis is a sequence, not a "
            f"batch, or a condition looks at it; expected a file that scores each row by itself."
        )


def by_position(values: Tensor, channels_last: bool) -> Tensor:
    """Values ``(N, ..., C)``, or ``(N, C, ...)``, as one row for each position of each input, ``(P, C)``."""
    return values.movedim(-1 if channels_last else 1, -1).flatten(0, -2)


def starts_of(graph: OnnxGraph) -> list[str]:
    """The input and the cuts from which all operators are covered, the earliest first."""
    found = []
    for name in [*graph.cuts()[1:], graph.input.name]:
        nodes = [graph.model.graph.node[place] for place in graph.after(name)]
        if any(node.op_type not in LAYERS and node.op_type not in OPERATIONS for node in nodes):
            break
        found.append(name)
    if not found:
        last = graph.model.graph.node[graph.nodes[-1]].op_type
        known = ", ".join(sorted({*LAYERS, *OPERATIONS}))
        raise ModelError(
            f"'{graph.path}': operator {last} makes its scores and is not covered; covered: {known}. Give the network "
            f"by factory: and weights: in place of onnx:.{graph.hint}"
        )
    return found[::-1][:TRIES]


class Builder:
    """The part of a graph from ``start`` on as torch nodes, and for each parameter its place in the file.

    With ``spread`` the network reads what stands at the cut for single positions, ``(P, C)``, with an axis of size 1
    for each of its entries. With ``flat`` the file gives one score a row, ``(N,)``.
    """

    def __init__(
        self, graph: OnnxGraph, start: str, ending: str, spread: tuple[int, ...] | None = None, flat: bool = False
    ) -> None:
        self.graph, self.what, self.ending, self.flat = graph, str(graph.path), ending, flat
        self.constants = graph.constants
        self.module = fx.GraphModule(nn.Module(), fx.Graph())
        self.torch = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self.start, self.steps, self.spread = start, graph.after(start), spread
        nodes = [graph.model.graph.node[place] for place in self.steps]
        self.uses = Counter(name for node in nodes for name in node.input)
        self.weights: dict[str, tuple[tuple[tuple[int, str], ...], int, int, str]] = {}

    def build(self) -> fx.GraphModule:
        """The network."""
        inputs = self.torch.placeholder("inputs")
        for axis in self.spread or ():
            inputs = self.torch.call_function(torch.unsqueeze, (inputs, axis))
        if self.start != self.graph.input.name and self.spread is None:
            self.module.add_submodule("onnx_prefix", self.graph.session(self.start))
            inputs = self.torch.call_module("onnx_prefix", (inputs,))
        self.nodes[self.start] = inputs
        for place in self.steps:
            self._add(place, self.graph.model.graph.node[place])
        made = self.nodes[self.graph.output]
        if self.flat:
            made = self.torch.call_function(torch.unsqueeze, (made, 1))
        made = self.torch.call_function(torch.flatten, (made, 1))
        if self.ending in ("pair", "sigmoid"):
            made = self.torch.call_function(nn.functional.pad, (made, (1, 0)))
        self.torch.output(made)
        self.module.graph = self.torch
        self.module.recompile()
        if not self.weights:
            raise ModelError(f"'{self.what}': has no layer with weights after the operators that are not covered.")
        self.module.meta[SOURCE] = {"weights": self.weights}
        return self.module.eval()

    def _add(self, place: int, node: Any) -> None:
        kind, name = node.op_type, node.output[0]
        if kind == "Add" and self._as_bias(place, node):
            return
        call = Call(self.what, node, _attributes(node), self.constants)
        if kind in LAYERS and call.is_layer:
            layer = LAYERS[kind](call)
            target = self._place(call, layer)
            self.nodes[name] = self.torch.call_module(target, (self.nodes[node.input[0]],))
            for position, own in ((1, "weight"), (2, "bias")):
                if own in dict(layer.named_parameters(recurse=False)):
                    form = "plain" if own == "bias" or not isinstance(layer, nn.Linear) else _turned(call)
                    self._remember(f"{target}.{own}", place, position, form if own == "weight" else _scaled(call))
        elif kind in OPERATIONS:
            function, arguments, options = OPERATIONS[kind](call)
            values = [self._value(item) if isinstance(item, str) else item for item in arguments]
            args = (values,) if kind == "Concat" else tuple(values)
            self.nodes[name] = self.torch.call_function(function, args, options)
        else:
            raise ModelError(f"'{self.what}': operator {kind} is not covered where it reads no constant.")

    def _remember(self, weight: str, place: int, position: int, form: str) -> None:
        """Note where the file has a weight: the branches that lead to a node, its place, and which of its inputs."""
        home = ((), place) if self.graph.homes is None else self.graph.homes[place]
        assert home is not None  # what has weights stands in the file
        self.weights[weight] = (*home, position, form)

    def _place(self, call: Call, layer: nn.Module) -> str:
        """The name of a layer: that of its weight in the file, else by its kind and number."""
        weight = call.node.input[1] if len(call.node.input) > 1 else ""
        name = weight.removesuffix(".weight") if weight.endswith(".weight") else ""
        if not name or not all(part.isidentifier() or part.isdigit() for part in name.split(".")):
            name = f"{call.node.op_type.lower()}{len(self.nodes)}"
        taken = dict(self.module.named_modules())
        name = f"{name}_{len(self.nodes)}" if name in taken else name
        self.module.add_submodule(name, layer)
        return name

    def _as_bias(self, place: int, node: Any) -> bool:
        """Whether a sum is the bias of the product before it, which then gets it."""
        for position, (first, second) in enumerate((tuple(node.input)[::-1], node.input)):
            if second in self.constants and first in self.nodes and self.uses[first] == 1:
                made, bias = self.nodes[first], self.constants[second]
                layer = self.module.get_submodule(str(made.target)) if made.op == "call_module" else None
                if isinstance(layer, nn.Linear) and layer.bias is None and bias.shape[-1:] == (layer.out_features,):
                    if bias.size != layer.out_features:
                        continue
                    layer.bias = nn.Parameter(torch.tensor(bias.reshape(-1)))
                    self.nodes[node.output[0]] = made
                    self._remember(f"{made.target}.bias", place, position, "plain")
                    return True
        return False

    def _value(self, name: str) -> Any:
        if name in self.nodes:
            return self.nodes[name]
        if name not in self.constants:
            raise ModelError(f"'{self.what}': an operator reads '{name}', which comes from before the cut.")
        buffer = f"constant{sum(1 for _ in self.module.buffers())}"
        self.module.register_buffer(buffer, torch.tensor(np.array(self.constants[name])))
        return self.torch.get_attr(buffer)


def _turned(call: Call) -> str:
    """How the weight of a linear layer stands in the file: as columns, unless Gemm turns it; with a factor of Gemm."""
    turned = call.node.op_type == "MatMul" or not call.get("transB", 0)
    return f"{'columns' if turned else 'plain'} {float(call.get('alpha', 1.0)) if call.node.op_type == 'Gemm' else 1.0}"


def _scaled(call: Call) -> str:
    return f"plain {float(call.get('beta', 1.0)) if call.node.op_type == 'Gemm' else 1.0}"


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import TensorProto, helper, numpy_helper

    found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {key: numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for key, v in found.items()}


def run(network: nn.Module, rows: Tensor) -> Tensor:
    """Outputs for rows in the precision of the network."""
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        return network(rows.to(dtype) if rows.is_floating_point() else rows)


def _compare(graph: OnnxGraph, network: nn.Module, few: Tensor) -> None:
    """A ModelError where a network does not give what ONNX Runtime gives: for these rows, for one, for all twice."""
    source = source_of(network)
    assert source is not None
    batches, plain = (few, few[:1], torch.cat([few, few])), graph.session(graph.output)
    try:
        found = [as_outputs(run(network, rows), source["ending"]) for rows in batches]
    except (RuntimeError, TypeError, IndexError) as error:
        raise ModelError(f"'{graph.path}': cannot be run as a torch network ({error}).") from error
    for part, wanted in zip(found, map(as_rows, map(plain, batches)), strict=True):
        if part.shape != wanted.shape:
            raise ModelError(f"'{graph.path}': gives outputs of shape {tuple(part.shape)}, not {tuple(wanted.shape)}.")
        if not torch.allclose(part.double(), wanted.double(), *CLOSE):
            apart = float((part.double() - wanted.double()).abs().max())
            raise ModelError(
                f"'{graph.path}': the torch network differs from ONNX Runtime by {apart:.3g}; it cannot be repaired."
                f"{graph.hint}"
            )
