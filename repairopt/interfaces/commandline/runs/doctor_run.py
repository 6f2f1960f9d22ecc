"""Say what of the library works on a network, before any long run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from repairopt.errors import SpecFileError
from repairopt.interfaces.examine import examine_model
from repairopt.interfaces.specfile.given_model import load_given
from repairopt.interfaces.specfile.onnx_model import random_rows
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.localize import LayerGraph

from .results import CheckLine, DoctorResult, TrialLine
from .solve_run import Progress

SHOWN = 5  # rows that show an ONNX file sizes that it leaves open
RANDOM_ROWS = 200  # at least
MOST_NUMBERS = 2**24  # of random rows


def examine_source(
    source: str,
    *,
    weights: str | Path | None = None,
    shape: str | None = None,
    rows: int | None = None,
    time_limit: float = 10.0,
    progress: Progress,
) -> DoctorResult:
    """Examine the network of a spec file on its rows, or a model on random ones; nothing is written.

    ``shape`` is that of one row, such as ``"3,224,224"``, where no spec says it and the first layer is not linear.
    ``rows`` is how many rows the repair will have; ``time_limit`` is for each trial repair, in seconds.
    """
    with progress.stage("reading model and data"):
        if Path(source).suffix in (".yaml", ".yml"):
            spec = open_spec(source)
            network, inputs, basis = spec.model, spec.data.sets["repair"].inputs, "rows of the spec"
        else:
            network = load_given(source, weights, _rows_of_onnx(source, shape))
            basis = "random rows; a spec file gives real ones"
            inputs = _random_rows(network, source, shape, 1)
            most = max(RANDOM_ROWS, MOST_NUMBERS // max(1, inputs[0].numel()))
            inputs = _random_rows(network, source, shape, min(most, max(RANDOM_ROWS, rows or 0)))
    with progress.stage("examining", 6) as step:
        found = examine_model(network, inputs, rows=rows, time_limit=time_limit, tell=step)
    return DoctorResult(
        exit_code=0 if found.usable else 1,
        source=source,
        model=found.model,
        basis=f"{len(inputs):,} {basis}",
        rows=len(inputs) if rows is None else rows,
        usable=found.usable,
        findings=[CheckLine(what=one.what, ok=one.ok, detail=one.detail) for one in found.findings],
        trials=[TrialLine(**vars(one)) for one in found.trials],
    )


def _first_table(network: nn.Module) -> nn.Embedding | None:
    """The table of embeddings that a network begins with, or None."""
    first = next((part for part in network.modules() if next(part.parameters(recurse=False), None) is not None), None)
    return first if isinstance(first, nn.Embedding) else None


def _drawn(network: nn.Module, sizes: list[int], count: int, draw: torch.Generator) -> Tensor:
    """Rows of a shape: as an ONNX file reads them; indices, where the first layer looks them up; else numbers."""
    if (known := random_rows(network, count, sizes)) is not None:
        return known
    table = _first_table(network)
    if table is not None:
        return torch.randint(table.num_embeddings, (count, *sizes), generator=draw)
    return torch.randn(count, *sizes, generator=draw)


def _rows_of_onnx(source: str, shape: str | None) -> Tensor | None:
    """A few rows that show an ONNX file the sizes that it leaves open; None of other models, and without a shape."""
    if shape is None or Path(source).suffix != ".onnx" or not Path(source).is_file():
        return None
    from repairopt.interfaces.specfile.onnx_graph import OnnxGraph
    from repairopt.interfaces.specfile.onnx_parts import read_model

    model = read_model(Path(source))
    return OnnxGraph(Path(source), model, model.graph.output[0].name, {}).drawn(SHOWN, _sizes(shape))


def _sizes(shape: str) -> list[int]:
    """The sizes of one row as ``--shape`` says them."""
    try:
        sizes = [int(part) for part in shape.replace("x", ",").split(",") if part.strip()]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise SpecFileError(f"--shape {shape}: expected whole numbers of one row's shape, such as 3,224,224.")
    return sizes


def _random_rows(network: nn.Module, source: str, shape: str | None, count: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    if shape is not None:
        return _drawn(network, _sizes(shape), count, draw)
    if (known := random_rows(network, count)) is not None:
        return known
    layers = LayerGraph(network).layers
    if not layers or layers[0].kind != "linear" or _first_table(network) is not None:
        raise SpecFileError(
            f"model '{source}': the shape of one row is not known. Give it, such as --shape 3,224,224, or a spec file."
        )
    width = dict(network.named_parameters())[layers[0].weights[0]].shape[1]
    return torch.randn(count, width, generator=draw)
