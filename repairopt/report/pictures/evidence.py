"""What the pictures of a report show, as plain arrays: small, free of the model and the data, kept in one file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.errors import PatchError, SpecificationError, path_of
from repairopt.patches import read_arrays, whole_file

Array = npt.NDArray[Any]
FILE = "evidence.npz"
RATE = "favorable rate, "


@dataclass(frozen=True, eq=False)
class Rates:
    """A rate in each group before and after, ``(q,)``, with its 95 % interval after; NaN where it is not known."""

    name: str
    held_out: bool
    quantity: str
    groups: tuple[str, ...]
    before: Array
    after: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Margins:
    """One number for each sample, before and after, ``(N,)``; -1 may fail where there is no limit to that."""

    name: str
    held_out: bool
    quantity: str
    before: Array
    after: Array
    threshold: float = 0.0
    allowed: int = -1

    @property
    def crossed(self) -> tuple[int, int]:
        """Samples that fell below the threshold, and samples that rose to it."""
        failed = self.before < self.threshold, self.after < self.threshold
        return int((~failed[0] & failed[1]).sum()), int((failed[0] & ~failed[1]).sum())


@dataclass(frozen=True, eq=False)
class LayerChange:
    """The change of one parameter; ``relative`` is its norm over that of the parameter.

    ``cells`` is the change over the rms of the parameter, outputs by inputs, at most 64 x 64; one that stands for
    several weights shows the largest of their changes.
    """

    name: str
    shape: tuple[int, ...]
    changed: int
    relative: float
    cells: Array


@dataclass(frozen=True, eq=False)
class AffectedInputs:
    """The ``K`` inputs of a set whose answers changed most, most affected first; a label is -1 where it is not known.

    ``shift`` is half the sum of the changes of all probabilities: 0 none, 1 all. ``features`` are names of columns and
    ``cells`` their values as texts, a tuple for each input, where they are known in the units of the data. ``places``
    say where in their file they stand, where that is known; ``rows`` are positions in the set.
    """

    name: str
    held_out: bool
    rows: Array
    inputs: Array
    labels: Array
    before: Array
    after: Array
    shift: Array
    features: tuple[str, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ()
    places: tuple[str, ...] = ()

    @property
    def are_images(self) -> bool:
        """Whether the inputs have the shape of images: ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)``, 4 pixels or more."""
        shape = self.inputs.shape[1:]
        return len(shape) in (2, 3) and min(shape[-2:]) >= 4 and (len(shape) == 2 or shape[0] in (1, 3))


@dataclass(frozen=True, eq=False)
class GroupTable:
    """fairlearn's metrics in each group, before and after, ``(q, p)``; for each disparity its two values."""

    name: str
    held_out: bool
    favorable: int
    groups: tuple[str, ...]
    metrics: tuple[str, ...]
    before: Array
    after: Array
    gaps: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RegionMap:
    """A slice of a region: answers and failures on a grid ``(G, G)``, rows along the second axis.

    ``leaves`` and ``open`` are rectangles ``(L, 4)``, both lower ends and both upper ends: what the proof consists of,
    and what its check left open. ``status`` and ``share`` are those of the check.
    """

    name: str
    axes: tuple[str, str]
    lower: Array
    upper: Array
    before: Array
    after: Array
    broken_before: Array
    broken_after: Array
    leaves: Array
    open: Array
    status: str
    share: float


@dataclass(frozen=True, eq=False)
class Progress:
    """What each round came to, the original network first, ``(R,)``; NaN or -1 where it is not known."""

    goal: Array
    broken: Array
    accepted: Array
    target: float
    name: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that the pictures show.

    ``bounded``: name, held out or not, value before and after, limit; ``classes`` their names, or empty.
    """

    rates: tuple[Rates, ...] = ()
    margins: tuple[Margins, ...] = ()
    slacks: tuple[Margins, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    affected: tuple[AffectedInputs, ...] = ()
    tables: tuple[GroupTable, ...] = ()
    progress: Progress | None = None
    bounded: tuple[tuple[str, bool, float, float, float], ...] = ()
    classes: tuple[str, ...] = ()
    regions: tuple[RegionMap, ...] = ()

    def label(self, number: int) -> str:
        """The name of a class, or its number."""
        return self.classes[number] if 0 <= number < len(self.classes) else str(int(number))


def save_evidence(evidence: Evidence, folder: str | Path) -> Path:
    """Write the evidence to ``evidence.npz`` in a folder, for a page that is made later without model and data."""
    arrays: dict[str, Array] = {}
    tree = json.dumps(_pack(evidence, arrays))
    path = path_of(folder, "folder of evidence", written=True) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, tree=np.array(tree), **arrays)
    return path


def load_evidence(folder: str | Path) -> Evidence:
    """Read ``evidence.npz`` of a folder that :func:`save_evidence` wrote to; else a SpecificationError."""
    path = path_of(folder, "folder of evidence") / FILE
    try:
        arrays = read_arrays(path)
        found = _unpack(json.loads(str(arrays.pop("tree"))), arrays)
    except (PatchError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SpecificationError(
            f"'{path}': is not the evidence of a repair ({type(error).__name__}: {error}). Write it with "
            f"save_evidence(repair.report.evidence, folder)."
        ) from error
    if not isinstance(found, Evidence):
        raise SpecificationError(f"'{path}': holds a {type(found).__name__}; expected the evidence of a repair.")
    return found


CLASSES: dict[str, Any] = {
    one.__name__: one
    for one in (Rates, Margins, LayerChange, AffectedInputs, GroupTable, Progress, RegionMap, Evidence)
}


def _pack(value: Any, arrays: dict[str, Array]) -> Any:
    """As JSON; arrays are put aside under names."""
    if isinstance(value, np.ndarray):
        arrays[f"array{len(arrays)}"] = value
        return {"array": f"array{len(arrays) - 1}"}
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **{f.name: _pack(getattr(value, f.name), arrays) for f in fields(value)}}
    if isinstance(value, dict):
        return {"dict": {key: _pack(item, arrays) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [_pack(item, arrays) for item in value]
    return value


def _unpack(value: Any, arrays: dict[str, Array]) -> Any:
    if isinstance(value, list):
        return tuple(_unpack(item, arrays) for item in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "dict" in value:
        return {key: _unpack(item, arrays) for key, item in value["dict"].items()}
    return CLASSES[value["class"]](**{k: _unpack(v, arrays) for k, v in value.items() if k != "class"})
