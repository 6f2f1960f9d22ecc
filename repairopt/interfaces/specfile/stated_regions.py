"""The input regions of a spec: those of VNN-LIB files, balls around rows of the data, and polytopes."""

from __future__ import annotations

from dataclasses import replace
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


def load_regions(file: SpecFile, data: Data, model: nn.Module) -> tuple[Region, ...]:
    """All regions of a spec, in its order, with the shape of the network's inputs."""
    found: list[Region] = []
    for place, entry in enumerate(file.spec.regions):
        if entry.vnnlib is not None:
            found += [_shaped(file, place, one, model) for one in _of_file(file, place, entry)]
        else:
            found.append((_ball if entry.vertices is None else _polytope)(file, place, entry, data, model))
    return tuple(found)


def points_around(file: SpecFile, model: nn.Module) -> RowSet:
    """Points ``(N, ...)`` drawn from a box around the regions of a spec without data."""
    regions = list(load_regions(file, Data({}), model))
    low, high = (torch.stack([getattr(one, side) for one in regions]) for side in ("lower", "upper"))
    low, high = low.amin(0), high.amax(0)
    low, high = low - WIDER * (high - low), high + WIDER * (high - low)
    draw = torch.Generator().manual_seed(file.spec.seed)
    points = low + (high - low) * torch.rand(POINTS, len(low), generator=draw, dtype=torch.float64)
    shape = _shaped(file, 0, regions[0], model).shape
    assert shape is not None
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
    return replace(region, shape=shape)


def _ball(file: SpecFile, place: int, entry: RegionSpec, data: Data, model: nn.Module) -> Region:
    where = ("regions", place)
    assert entry.around is not None
    assert entry.eps is not None
    (x,) = _rows(file, where, "around", entry.data, [entry.around], data)
    label, classes = _label(file, where, entry, data, model, x)
    name = f"class {entry.label} around row {entry.around} of {entry.data}"
    ends = {side: -torch.inf if value is None else value for side, value in (("lower", entry.lower),)}
    ends["upper"] = torch.inf if entry.upper is None else entry.upper
    try:
        return Region.label(x, entry.eps, label, classes, name=name, **ends)
    except RepairError as error:
        raise file.fail(where, str(error)) from error


def _polytope(file: SpecFile, place: int, entry: RegionSpec, data: Data, model: nn.Module) -> Region:
    where, given = ("regions", place), entry.vertices
    assert given is not None
    numbers = [one for one in given if isinstance(one, int)]
    if numbers:
        vertices = torch.stack(_rows(file, where, "vertices", entry.data, numbers, data)).double()
        name = f"class {entry.label} between rows {', '.join(map(str, numbers))} of {entry.data}"
    else:
        vertices = torch.tensor(given, dtype=torch.float64)
        name = f"class {entry.label} on polytope {place + 1}"
        try:
            vertices = vertices.unflatten(1, input_shape(model, None, vertices.shape[1]))
        except RepairError as error:
            raise file.fail((*where, "vertices"), str(error)) from error
    own = next(model.parameters(), vertices)
    label, classes = _label(file, where, entry, data, model, vertices[0].to(own))
    try:
        return Region.polytope(vertices, y=label, classes=classes, name=name)
    except RepairError as error:
        raise file.fail(where, str(error)) from error


def _rows(file: SpecFile, where: Any, key: str, name: str, numbers: list[int], data: Data) -> list[Any]:
    """Rows of a set by their numbers."""
    if name not in data.sets:
        reason = f"there is no set of rows '{name}'; {did_you_mean(name, list(data.sets))}"
        raise file.fail((*where, "data"), reason)
    rows = data.sets[name]
    for number in numbers:
        if not 0 <= number < len(rows):
            raise file.fail((*where, key), f"row {number} of '{name}', which has {len(rows)} rows")
    return [rows.inputs[number] for number in numbers]


def _label(file: SpecFile, where: Any, entry: RegionSpec, data: Data, model: nn.Module, x: Any) -> tuple[int, int]:
    """The class that an entry names, and how many there are."""
    with torch.no_grad():
        outputs: Any = model(x[None])
    names = [str(name) for name in data.classes]
    label = names.index(str(entry.label)) if str(entry.label) in names else entry.label
    if not isinstance(label, int) or not 0 <= label < outputs.shape[1]:
        known = did_you_mean(str(entry.label), names) if names else f"expected 0 to {outputs.shape[1] - 1}"
        raise file.fail((*where, "label"), f"there is no class {entry.label!r}; {known}")
    return label, outputs.shape[1]
