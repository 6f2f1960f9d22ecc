"""Apply or revert a patch: the network of a spec, repaired or as it was, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from repairopt.errors import ResultError, WrongBaseError
from repairopt.interfaces.commandline.bars import Bars
from repairopt.interfaces.specfile.load_rows import load_data
from repairopt.interfaces.specfile.onnx_model import source_of, write_onnx
from repairopt.interfaces.specfile.opened import fill_weights, load_model
from repairopt.interfaces.specfile.reader import SpecFile, read_spec
from repairopt.interfaces.specfile.stated_regions import points_around
from repairopt.patches import WrappedPatch, export_lora, export_onnx, fingerprint, load_patch, save_weights, whole_file

from .results import MoveResult

ENDINGS = {".safetensors": "safetensors", ".onnx": "onnx", ".pt": "state dict", ".pth": "state dict"}
ADAPTER = "adapter"  # of a folder
EXAMPLES = 64  # rows on which an ONNX file is compared with torch


def move_patch(
    source: str | Path,
    patch: str | Path,
    out: str | Path,
    *,
    back: bool = False,
    weights: str | Path | None = None,
    overwrite: bool = False,
    progress: Bars | None = None,
) -> MoveResult:
    """Write the repaired network, or the one from before, as ``.safetensors``, ``.pt`` (a state dict) or ``.onnx``.

    A repair of layers is written as an adapter for ``peft`` where ``out`` is a folder, a name without an ending.
    ``weights`` are used in place of the spec's; for reverting, they are the repaired ones.
    """
    target = Path(out)
    if target.suffix not in ENDINGS and (target.suffix or back):
        expected = ", ".join(ENDINGS) + (
            "" if back else ", or a folder for an adapter of peft, a name without an ending"
        )
        raise ResultError(f"'{target}': unknown kind of file '{target.suffix}'; expected {expected}.")
    if target.exists() and not overwrite:
        raise ResultError(f"'{target}' exists. Use --overwrite, or another --out.")
    if not target.parent.is_dir():
        raise ResultError(f"'{target}': there is no folder '{target.parent}'. Make it before.")
    file, found = read_spec(source), load_patch(patch)
    bars = progress or Bars(quiet=True)
    with bars.stage("reading model and data"):
        rows = load_data(file).sets["repair"].inputs if file.spec.model.onnx and file.spec.data else None
        model = load_model(file, rows)
    if weights is not None:
        model = found.around_weights(model) if back and isinstance(found, WrappedPatch) else model
        fill_weights(file, model, Path(weights))
    try:
        moved = found.revert(model) if back else found.apply(model)
    except WrongBaseError as error:
        hint = " Give the repaired weights by --weights." if back and weights is None else ""
        raise type(error)(f"{error}{hint}") from error
    kind: Any = ENDINGS.get(target.suffix, ADAPTER)
    written: Any = {"out": str(target), "weights": fingerprint(moved).total}
    with bars.stage("writing"):
        if kind == ADAPTER:
            _write_adapter(found, model, target)
        difference = None if kind == ADAPTER else _write(file, moved, target, kind)
    command: Literal["apply", "revert"] = "revert" if back else "apply"
    return MoveResult(exit_code=0, command=command, kind=kind, largest_difference=difference, **written)


def _write_adapter(patch: Any, model: nn.Module, target: Path) -> None:
    if isinstance(patch, WrappedPatch):
        raise ResultError(f"'{target}': the patch wraps the network, which an adapter of peft cannot; name a file.")
    export_lora(patch, model, target)


def _write(file: SpecFile, model: nn.Module, target: Path, kind: str) -> float | None:
    if kind == "onnx":
        known = load_data(file).sets["repair"] if file.spec.data else points_around(file, model)
        rows = known.inputs[:EXAMPLES]
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        rows = rows.to(dtype) if rows.is_floating_point() else rows
        if source_of(model) is not None:
            return write_onnx(model, target, rows)
        return export_onnx(model, torch.cat([rows, rows]) if len(rows) < 2 else rows, target).largest_difference
    if kind == "safetensors":
        save_weights(model, target)
        return None
    with whole_file(target) as unfinished:
        torch.save({name: value.detach().cpu().clone() for name, value in model.state_dict().items()}, unfinished)
    return None
