"""The input regions of a spec: those of VNN-LIB files, and balls around rows of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from repairopt.errors import RepairError, SpecFileError
from repairopt.interfaces.specfile.language.row_sets import Data, RowSet
from repairopt.interfaces.specfile.language.statements import did_you_mean
from repairopt.network import input_shape
from repairopt.specify import Region

from .reader import SpecFile

if TYPE_CHECKING:
    from .models import RegionSpec

POINTS = 2000  # drawn where the spec names no data
WIDER = 1.0  # by how many of its widths the box that they are drawn from grows on each side


def files_of(file: SpecFile) -> list[Region]:
    """The regions of all VNN-LIB files of a spec."""
    return [one for place, entry in enumerate(file.spec.regions) for one in _of_file(file, place, entry)]


def load_regions(file: SpecFile, data: Data, model: nn.Module) -> tuple[Region, ...]:
    """All regions of a spec, in its order, with the shape of the network's inputs."""
    found: list[Region] = []
    for place, entry in enumerate(file.spec.regions):
        if entry.vnnlib is not None:
            found += [_shaped(file, place, one, model) for one in _of_file(file, place, entry)]
        else:
            found.append(_ball(file, place, entry, data, model))
    return tuple(found)


def points_around(file: SpecFile, model: nn.Module) -> RowSet:
    """Points ``(N, ...)`` drawn from a box around the regions of the spec's files, for a spec without data."""
    regions = files_of(file)
    low, high = (torch.stack([getattr(one, side) for one in regions]) for side in ("lower", "upper"))
    low, high = low.amin(0), high.amax(0)
    low, high = low - WIDER * (high - low), high + WIDER * (high - low)
    draw = torch.Generator().manual_seed(file.spec.seed)
    points = low + (high - low) * torch.rand(POINTS, len(low), generator=draw, dtype=torch.float64)
    shape = _shaped(file, 0, regions[0], model).shape
    return RowSet(points.float().unflatten(1, shape))


def _of_file(file: SpecFile, place: int, entry: RegionSpec) -> list[Region]:
    if entry.vnnlib is None:
        return []
    try:
        return Region.from_vnnlib(file.existing(("regions", place, "vnnlib"), entry.vnnlib))
    except RepairError as error:
        if isinstance(error, SpecFileError) and str(error).startswith(str(file.path)):
            raise
        raise file.fail(("regions", place, "vnnlib"), str(error)) from error


def _shaped(file: SpecFile, place: int, region: Region, model: nn.Module) -> Region:
    try:
        shape = input_shape(model, None, region.lower.numel())
    except RepairError as error:
        raise file.fail(("regions", place), str(error)) from error
    return Region(region.lower, region.upper, *region.rows, region.name, shape)


def _ball(file: SpecFile, place: int, entry: RegionSpec, data: Data, model: nn.Module) -> Region:
    where = ("regions", place)
    if entry.data not in data.sets:
        reason = f"there is no set of rows '{entry.data}'; {did_you_mean(entry.data, list(data.sets))}"
        raise file.fail((*where, "data"), reason)
    rows = data.sets[entry.data]
    assert entry.around is not None
    assert entry.eps is not None
    if entry.around >= len(rows):
        raise file.fail((*where, "around"), f"row {entry.around} of '{entry.data}', which has {len(rows)} rows")
    x = rows.inputs[entry.around]
    with torch.no_grad():
        outputs: Any = model(x[None])
    names = [str(name) for name in data.classes]
    label = names.index(str(entry.label)) if str(entry.label) in names else entry.label
    if not isinstance(label, int) or not 0 <= label < outputs.shape[1]:
        known = did_you_mean(str(entry.label), names) if names else f"expected 0 to {outputs.shape[1] - 1}"
        raise file.fail((*where, "label"), f"there is no class {entry.label!r}; {known}")
    name = f"class {entry.label} around row {entry.around} of {entry.data}"
    ends = {side: -torch.inf if value is None else value for side, value in (("lower", entry.lower),)}
    ends["upper"] = torch.inf if entry.upper is None else entry.upper
    try:
        return Region.label(x, entry.eps, label, outputs.shape[1], name=name, **ends)
    except RepairError as error:
        raise file.fail(where, str(error)) from error
