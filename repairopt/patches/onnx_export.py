"""Export a model as ONNX, and check with ONNX Runtime that it computes what torch computes."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import ExportError, PatchError, public, require_extra

from .safe_files import place_of, sync_folder
from .weights import copy_model, fingerprint, state_of

TOLERANCES = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-4, 1e-5), torch.float16: (1e-2, 1e-3)}
_ONE_FILE = 2**31 - 2**24  # bytes of weights up to which they fit into the protobuf message itself


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that was checked; weights of more than 2 GiB lie beside it.

    The inputs' first dimension is the batch, of any size. ``largest_difference`` is that between the outputs of ONNX
    Runtime and of torch over all example batches, ``rtol`` and ``atol`` the tolerances.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    largest_difference: float
    rtol: float
    atol: float


@public
def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> OnnxExport:
    """Export a model, in evaluation mode, for batches of any size.

    The file is run by ONNX Runtime on the examples, on the first alone and on the examples twice over. It appears at
    ``path`` only where all outputs agree, ``|onnx - torch| <= atol + rtol |torch|``. The SHA-256 of the weights is in
    its metadata.

    Args:
        model: On any device, float16, float32 or float64; not modified. A patched one: ``patch.apply(model)``.
        example_inputs: What the model is called with: tensors with the batch first, at least two rows.
        path: File to write; replaced where it exists.
        rtol: Relative tolerance, by default 1e-4 for float32, 1e-9 for float64, 1e-2 for float16.
        atol: Absolute tolerance, by default 1e-5 for float32, 1e-9 for float64, 1e-3 for float16.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed: ``pip install repairopt[onnx]``.
        ExportError: torch or ONNX Runtime cannot take the model, or the outputs differ.
    """
    require_extra("onnx", "export_onnx", "onnx", "onnxscript", "onnxruntime")
    inputs = _checked_inputs(example_inputs)
    portable = copy_model(model).cpu().eval()
    dtype = next((p.dtype for p in portable.parameters() if p.is_floating_point()), torch.float32)
    if dtype not in TOLERANCES:
        raise ExportError(f"model of type {dtype}: ONNX Runtime runs float16, float32 and float64. Cast it before.")
    pairs = zip((rtol, atol), TOLERANCES[dtype], strict=True)
    rtol, atol = (usual if given is None else given for given, usual in pairs)
    try:
        target = place_of(path)
    except PatchError as error:
        raise ExportError(str(error)) from None
    program = _exported(portable, tuple(x.clone() for x in inputs))  # the model may write into them
    state = state_of(portable)
    program.model.metadata_props["repairopt_weights_sha256"] = fingerprint(state).total
    size = sum(value.numel() * value.element_size() for value in state.values())
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=target.parent) as folder:
        unchecked = Path(folder) / target.name
        program.save(unchecked, external_data=size > _ONE_FILE)
        batches = [inputs, tuple(x[:1] for x in inputs), tuple(torch.cat([x, x]) for x in inputs)]
        names, difference = _compare(unchecked, portable, batches, (rtol, atol))
        for file in sorted(unchecked.parent.iterdir(), key=lambda file: file.name == target.name):
            os.replace(file, target.parent / file.name)
    sync_folder(target.parent)
    return OnnxExport(target, *names, difference, rtol, atol)


def _checked_inputs(example_inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ExportError("example_inputs: expected a tensor or a sequence of tensors, as the model is called with.")
    shapes = [tuple(x.shape) for x in inputs]
    if any(not shape or shape[0] < 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ExportError(
            f"example_inputs: have shapes {', '.join(map(str, shapes))}; expected one batch size, of at least 2, as "
            f"the first dimension of each. A batch of one would fix the size in the file."
        )
    return tuple(x.detach().cpu() for x in inputs)


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    batch = torch.export.Dim("batch")
    try:
        with _quiet():
            return torch.onnx.export(
                model, inputs, dynamo=True, dynamic_shapes=tuple({0: batch} for _ in inputs), verbose=False
            )
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"model {type(model).__name__}: torch cannot export it to ONNX ({reason[0]}). Look for control flow that "
            f"depends on the data or on the batch size, and for operators that ONNX lacks."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself; what matters is checked afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _compare(
    path: Path, model: nn.Module, batches: Sequence[tuple[Tensor, ...]], tolerance: tuple[float, float]
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], float]:
    """Names of inputs and outputs, and the largest difference; an ExportError where it is above the tolerance."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = tuple(i.name for i in session.get_inputs()), tuple(o.name for o in session.get_outputs())
        found = [session.run(None, dict(zip(names[0], (x.numpy() for x in xs), strict=True))) for xs in batches]
    except Exception as error:
        raise ExportError(
            f"model {type(model).__name__}: ONNX Runtime cannot run the exported file ({error}). It lacks some "
            f"operators in float64: try model.float(). Nothing was written."
        ) from error
    for xs, outputs in zip(batches, found, strict=True):
        with torch.no_grad():
            wanted = _leaves(model(*(x.clone() for x in xs)))  # it may write into them
        largest = max(largest, *_differences(outputs, wanted, *tolerance))
    return names, largest


def _differences(found: Sequence[Any], wanted: Sequence[Tensor], rtol: float, atol: float) -> list[float]:
    if len(found) != len(wanted):
        raise ExportError(f"the file has {len(found)} outputs, the model {len(wanted)}. Nothing was written.")
    differences = [0.0]
    for number, (output, tensor) in enumerate(zip(found, wanted, strict=True)):
        got, want = (np.asarray(a, dtype=np.float64) for a in (output, tensor.numpy()))
        if got.shape != want.shape:
            raise ExportError(f"output {number}: has shape {got.shape}, torch's {want.shape}. Nothing was written.")
        with np.errstate(invalid="ignore"):
            gap = np.abs(got - want)
        differences.append(float(np.nanmax(gap, initial=0.0)))
        if not np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
            raise ExportError(
                f"output {number}: differs from torch's by up to {differences[-1]:.3g}, more than atol {atol:g} + "
                f"rtol {rtol:g} |output|. Nothing was written. Give a larger tolerance if that is acceptable."
            )
    return differences


def _leaves(output: Any) -> list[Tensor]:
    """The tensors in a model's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output
    if isinstance(parts, str) or not hasattr(parts, "__iter__"):
        raise ExportError(f"the model returns {type(output).__name__}; expected tensors, in tuples, lists or dicts.")
    return [leaf for part in parts for leaf in _leaves(part)]
