"""What an ONNX file holds, as it stands in the file: nodes, what they read, arrays, parts of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from repairopt.errors import ModelError, SpecificationError, require_extra
from repairopt.network import as_tensor


def read_model(path: Path) -> Any:
    """The model of a file, checked; a ModelError where it is no valid one."""
    require_extra("onnx", f"reading '{path.name}'", "onnx", "onnxruntime")
    import onnx

    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"'{path}': is no valid ONNX file ({text}).") from error
    if not model.graph.output:
        raise ModelError(f"'{path}': has no output; expected one with scores, (N, k) for N rows.")
    if sparse := [item.values.name for item in model.graph.sparse_initializer]:
        raise ModelError(f"'{path}': its array '{sparse[0]}' is sparse; expected dense arrays (initializer).")
    return model


def reads(node: Any) -> list[str]:
    """What a node reads, inside its branches too."""
    names = list(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
            own = {name for inner in graph.node for name in inner.output}
            own |= {item.name for item in (*graph.initializer, *graph.input)}
            inside = [name for inner in graph.node for name in reads(inner)] + [item.name for item in graph.output]
            names += [name for name in inside if name not in own]
    return names


def kinds(node: Any) -> Iterator[str]:
    """The operators of a node and of those inside its branches and loops."""
    yield node.op_type
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
            for inner in graph.node:
                yield from kinds(inner)


def array_of(tensor: Any) -> Any:
    """A tensor of the file as an array."""
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def part_of(model: Any, inputs: Sequence[Any], outputs: Sequence[str]) -> bytes:
    """The part of a model that makes some tensors from some inputs, as bytes."""
    import onnx

    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph, names = part.graph, set(outputs)
    needed = []
    for node in reversed([*graph.node]):
        if names & set(node.output):
            needed.append(node)
            names |= set(reads(node))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(needed)]
    arrays = [onnx.TensorProto.FromString(a.SerializeToString()) for a in graph.initializer if a.name in names]
    types = {item.name: item for item in [*model.graph.output, *model.graph.value_info]}
    for part_name, items in (
        ("node", kept),
        ("initializer", arrays),
        ("input", [item for item in inputs if item.name in names]),
        ("output", [types.get(name, onnx.ValueInfoProto(name=name)) for name in outputs]),
    ):
        graph.ClearField(part_name)
        getattr(graph, part_name).extend(items)
    return part.SerializeToString()


def check_number(what: str, value: Any, item: Any) -> None:
    """A ModelError unless a number can fill an input of its type as it is."""
    from onnx import helper

    number = np.asarray(value)
    dtype = helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
    if number.dtype.kind not in "biuf" or number.size != 1 or (dtype.kind != "f" and number != np.rint(number)):
        raise ModelError(f"{what}: is filled with {value!r}; expected one number that {dtype} holds.")
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype) if dtype.kind in "iu" else None
    if limits is not None and not limits.min <= float(number.reshape(())) <= limits.max:
        raise ModelError(f"{what}: is filled with {value!r}; expected one number that {dtype} holds.")


def some_rows(owner: str, value: Any) -> Tensor:
    """Rows as a tensor; a SpecificationError where there is none."""
    rows = as_tensor(owner, value)
    if not rows.ndim or not len(rows):
        raise SpecificationError(f"{owner}: have shape {tuple(rows.shape)}; expected rows (N, ...), N at least 1.")
    return rows
