"""The graph of an ONNX file: what depends on its input, what is constant, and where it can be cut.

A cut is a tensor through which everything passes: what comes before it can be run by ONNX Runtime, whatever its
operators, and what follows becomes a torch network that can be repaired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import ModelError

from .onnx_parts import array_of, check_number, kinds, part_of, reads

ROWS = 3  # on which a file is compared with ONNX Runtime
REMEMBERED = 2**28  # bytes of what rows gave
DRAWS = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A file: its path, for messages, its model, the output that is looked at, and numbers that fill other inputs.

    Where branches were taken out of the model, ``homes`` says for each node where it stands in the file, None for one
    that does not, and ``sizes`` the sizes of the rows for which these branches are taken. With ``whole`` a tensor has
    no axis of inputs, and all that one input gives counts, ``(N, ...)`` for ``N`` inputs.
    """

    path: Path
    model: Any
    output: str
    fixed: Mapping[str, float] = field(default_factory=dict)
    homes: Sequence[tuple[tuple[tuple[int, str], ...], int] | None] | None = None
    sizes: tuple[int, ...] | None = None
    whole: bool = False

    @cached_property
    def initializers(self) -> dict[str, Any]:
        """The arrays of the file by name."""
        from onnx import numpy_helper

        return {item.name: numpy_helper.to_array(item) for item in self.model.graph.initializer}

    @cached_property
    def input(self) -> Any:
        """The one input."""
        every = {item.name: item for item in self.model.graph.input if item.name not in self.initializers}
        if unknown := [name for name in self.fixed if name not in every]:
            raise ModelError(f"'{self.path}': has no input '{unknown[0]}'; inputs: {', '.join(every)}.")
        if every and len(self.fixed) == len(every):
            raise ModelError(f"'{self.path}': numbers fill all of its inputs ({', '.join(every)}); leave one.")
        for name, value in self.fixed.items():
            check_number(f"'{self.path}': input '{name}'", value, every[name])
        inputs = [item for name, item in every.items() if name not in self.fixed]
        if len(inputs) != 1:
            raise ModelError(
                f"'{self.path}': has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); expected one tensor "
                f"with the batch first. Fill others with a number each, fixed: {{name: 0}} (init: --fixed name=0)."
            )
        return inputs[0]

    @cached_property
    def nodes(self) -> list[int]:
        """Places of the nodes that the output needs and that depend on the input, in order."""
        needed, names = [], {self.output}
        for place, node in reversed([*enumerate(self.model.graph.node)]):
            if names & set(node.output):
                needed.append(place)
                names |= {name for name in reads(node) if name}
                if drawn := next((kind for kind in kinds(node) if kind in DRAWS), None):
                    raise ModelError(
                        f"'{self.path}': operator {drawn} draws numbers, so that '{self.output}' differs from run to "
                        f"run; expected a file that gives a row the same scores, such as one exported for inference."
                    )
        moving = {self.input.name, *self.fixed}
        found = []
        for place in reversed(needed):
            node = self.model.graph.node[place]
            if moving & set(reads(node)):
                moving |= set(node.output)
                found.append(place)
        if self.output not in moving:
            raise ModelError(f"'{self.path}': its output '{self.output}' does not depend on its input.")
        return found

    @property
    def hint(self) -> str:
        """What a user of a quantized file, or of one in half precision, can do; empty for others."""
        kinds = {node.op_type for node in self.model.graph.node}
        quantized = ("QLinear", "DynamicQuantize", "DequantizeLinear")
        if any(kind.startswith(quantized) or kind.endswith("Integer") for kind in kinds):
            return " Its weights are integers (quantized): repair the file before quantization, then quantize it anew."
        if any(value.dtype == np.float16 for value in self.initializers.values()):
            return " Its weights are float16: repair the file in float32, then convert it anew."
        return ""

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Initializers, and what nodes compute from these alone, by name."""
        nodes = {place: self.model.graph.node[place] for place in self.nodes}
        inner = {name for node in nodes.values() for name in node.output}
        wanted = {name for node in nodes.values() for name in reads(node) if name}
        missing = sorted(wanted - inner - {self.input.name, *self.fixed} - set(self.initializers))
        known = {**self.initializers}
        simple = {node.output[0]: node.attribute[0] for node in self.model.graph.node if node.op_type == "Constant"}
        computed = []
        for name in missing:
            if name in simple and simple[name].name == "value":
                known[name] = array_of(simple[name].t)
            else:
                computed.append(name)
        if computed:
            made_once = run_part(part_of(self.model, [], computed), computed)
            made = zip(computed, made_once, strict=True)
            known |= {name: value for name, value in made if isinstance(value, np.ndarray)}  # no lists of tensors
        return known

    def cuts(self) -> list[str]:
        """Tensors through which everything passes from the input to the output, the output first."""
        graph, last = self.model.graph, {}
        for step, place in enumerate(self.nodes):
            for name in reads(graph.node[place]):
                last[name] = step
        alive, found = {self.input.name, *self.fixed}, [self.input.name]
        for step, place in enumerate(self.nodes):
            alive |= set(graph.node[place].output)
            alive = {name for name in alive if last.get(name, -1) > step or name == self.output}
            if len(alive) == 1:
                found.append(next(iter(alive)))
        return [name for name in dict.fromkeys(reversed(found)) if name != self.input.name]

    def after(self, start: str) -> list[int]:
        """Places of the nodes that follow a cut."""
        moving, found = {start}, []
        for place in self.nodes:
            node = self.model.graph.node[place]
            if moving & set(reads(node)):
                moving |= set(node.output)
                found.append(place)
        return found

    def session(self, output: str) -> OnnxPrefix:
        """ONNX Runtime from the input to a tensor of the graph, as a module."""
        inputs = [item for item in self.model.graph.input if item.name in (self.input.name, *self.fixed)]
        content = part_of(self.model, inputs, [output])
        return OnnxPrefix(content, output, self.input.name, self.fixed, self.sizes, self.whole)

    def values(self, names: Sequence[str], few: Tensor) -> list[Any]:
        """Tensors of the graph on a few rows, run one by one; None for one that has no row for each."""
        inputs = [item for item in self.model.graph.input if item.name in (self.input.name, *self.fixed)]
        session, runner = _session(part_of(self.model, inputs, names)), self.session(self.output)
        rows: Any = few.numpy().astype(DTYPES[runner.entry.type])
        size = runner.batch
        found = []
        for i in range(len(rows)):
            feed = {item.name: runner.filled(item, size) for item in session.get_inputs()}
            feed |= {self.input.name: rows[i : i + 1].repeat(size, 0)} if self.input.name in feed else {}
            found.append(_answers(session, names, feed))
        if self.whole:
            return [_stacked([one[k] for one in found]) for k in range(len(names))]
        fits = [all(getattr(one[k], "shape", ())[:1] == (size,) for one in found) for k in range(len(names))]
        return [np.concatenate([one[k][:1] for one in found]) if ok else None for k, ok in enumerate(fits)]

    def example(self, rows: Tensor | None) -> Tensor:
        """A few rows as the file reads them: those given, else random ones, whose sizes the file must say."""
        entry = self.session(self.output).entry
        if entry.type not in DTYPES:
            raise ModelError(f"'{self.path}': reads {entry.type}; expected one of {', '.join(DTYPES)}.")
        first = entry.shape[0] if entry.shape else None
        count = first if isinstance(first, int) and first > 0 else ROWS
        if rows is not None:
            _check_sizes(self.path, entry, rows)
            return rows[torch.arange(count) % len(rows)]
        if unknown := [size for size in entry.shape[1:] if not isinstance(size, int) or size < 1]:
            raise ModelError(
                f"'{self.path}': its input has shape {entry.shape}; expected all sizes but the batch as numbers, or "
                f"rows that show {unknown[0]} (of doctor: --shape)."
            )
        return self.drawn(count, entry.shape[1:])

    def drawn(self, count: int, sizes: Sequence[int]) -> Tensor:
        """Random rows ``(count, *sizes)`` of the type that the file reads, between 0 and 1."""
        inputs = torch.rand(count, *sizes, generator=torch.Generator().manual_seed(0))
        dtype = np.dtype(DTYPES[self.session(self.output).entry.type])
        return (
            inputs.to(torch.float64) if dtype == np.float64 else inputs if dtype.kind == "f" else inputs.round().long()
        )


def _check_sizes(path: Path, entry: Any, rows: Tensor) -> None:
    """A ModelError where rows have other sizes than those that the file names for its input, after the batch."""
    wanted, came = list(entry.shape or ()), list(rows.shape)
    same = len(wanted) == len(came) and all(
        not isinstance(size, int) or size < 1 or size == own for size, own in zip(wanted[1:], came[1:], strict=True)
    )
    if wanted and not same:
        reads = ", ".join("N" if k == 0 else str(size) for k, size in enumerate(wanted))
        raise ModelError(
            f"'{path}': reads '{entry.name}' of shape ({reads}); got rows of shape {tuple(came[1:])}. Look at the "
            f"columns or the array that are its inputs."
        )


class OnnxPrefix(nn.Module):
    """The first part of an ONNX file, run by ONNX Runtime as a whole; it has no weights that could change.

    Rows are run one by one, since the kernels of ONNX Runtime add in another order for another batch size, which some
    networks amplify; what a row gives is remembered, up to some memory. The bytes of the part are hashed in a buffer,
    so that a fingerprint of the network knows the file.
    """

    opaque = True

    def __init__(
        self,
        content: bytes,
        output: str,
        name: str,
        fixed: Mapping[str, float],
        sizes: tuple[int, ...] | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.content, self.output, self.name, self.fixed = content, output, name, dict(fixed)
        self.sizes, self.whole = sizes, whole
        digest = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8).copy()
        self.register_buffer("sha256", torch.from_numpy(digest))
        self._session: Any = None
        self._known: dict[bytes, Any] = {}
        self._free = REMEMBERED

    @property
    def session(self) -> Any:
        """The session, made at the first use."""
        if self._session is None:
            self._session = _session(self.content)
        return self._session

    @property
    def entry(self) -> Any:
        """What ONNX Runtime says of the input: name, type, shape."""
        return next(item for item in self.session.get_inputs() if item.name == self.name)

    @property
    def batch(self) -> int:
        """The size of a batch that the file fixes, or 1."""
        size = self.entry.shape[0] if self.entry.shape else None
        return size if isinstance(size, int) and size > 0 else 1

    def forward(self, inputs: Tensor) -> Tensor:
        """The tensor ``(N, ...)`` at the cut, from rows ``(N, ...)``, without a gradient."""
        if self.sizes is not None and tuple(inputs.shape[1:]) != self.sizes:
            raise ModelError(
                f"rows of shape {tuple(inputs.shape[1:])}: the file takes other branches for other sizes and was read "
                f"for {self.sizes}; read it anew for rows of this size."
            )
        given: Any = inputs.detach().cpu().numpy().astype(DTYPES[self.entry.type])
        rows = [self._row(given[i : i + 1]) for i in range(len(given))]
        if len({row.shape for row in rows}) > 1:
            raise ModelError(f"'{self.output}' has another shape for each input; expected inputs that give one.")
        found = np.concatenate(rows) if rows else self._row(np.zeros((1, *given.shape[1:]), given.dtype))[:0]
        return torch.from_numpy(found).to(inputs.device)

    def together(self, inputs: Tensor) -> Tensor | None:
        """As ``forward``, but all rows in one batch; None where the file runs single rows only."""
        given: Any = inputs.detach().cpu().numpy().astype(DTYPES[self.entry.type])
        try:
            return torch.from_numpy(self._run(given))
        except ModelError:
            return None

    def _row(self, row: Any) -> Any:
        key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        found = self._known.get(key)
        if found is None:
            found = self._run(row.repeat(self.batch, 0))
            if not self.whole and len(found) != self.batch:
                raise ModelError(f"'{self.output}' has {len(found)} rows for {self.batch}; expected a row for each.")
            found = found[None] if self.whole else found[:1]
            if self._free >= found.nbytes:
                self._free -= found.nbytes
                self._known[key] = found
        return found

    def _run(self, given: Any) -> Any:
        feed = {item.name: self.filled(item, len(given)) for item in self.session.get_inputs()}
        found = np.array(_answers(self.session, [self.output], feed | {self.name: given})[0])
        if not found.ndim:
            raise ModelError(f"'{self.output}' is one number for all rows; expected a row for each.")
        return found

    def filled(self, item: Any, count: int) -> Any:
        """An input filled with its fixed number; sizes that the file leaves open are the batch."""
        shape = [size if isinstance(size, int) and size > 0 else count for size in item.shape]
        return np.full(shape, self.fixed.get(item.name, 0), dtype=DTYPES[item.type])

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxPrefix:
        copied = OnnxPrefix(self.content, self.output, self.name, self.fixed, self.sizes, self.whole)
        copied._session, copied._known = self._session, self._known  # what a row gives never changes
        return copied.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_session": None, "_known": {}}


def _stacked(values: list[Any]) -> Any:
    """Arrays of one shape as one; None where their shapes differ or they are no arrays."""
    shapes = {getattr(value, "shape", None) for value in values}
    return np.stack(values) if len(shapes) == 1 and None not in shapes else None


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised; their text is not printed too
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class
        text = str(error).splitlines()[0]
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot read the file ({text}). Export it with operators and a "
            f"version that this ONNX Runtime has, or install a newer one."
        ) from error


def run_part(content: bytes, outputs: Sequence[str], filled: Callable[[Any], Any] | None = None) -> list[Any]:
    """Outputs of a part of a model, its inputs filled one by one."""
    session = _session(content)
    feed = {} if filled is None else {item.name: filled(item) for item in session.get_inputs()}
    return _answers(session, outputs, feed)


def _answers(session: Any, names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
    """What ONNX Runtime gives; a ModelError with the shapes that it was given where it cannot."""
    try:
        return list(session.run(list(names), dict(feed)))
    except Exception as error:
        given = ", ".join(f"{name} {np.shape(value)}" for name, value in feed.items()) or "its constants"
        text = str(error).splitlines()[0]
        raise ModelError(f"ONNX Runtime cannot run the file on {given} ({text}).") from error
