"""The one place where a user's data become tensors: arrays, pandas frames, datasets, loaders.

Whatever takes ``(inputs, labels)`` takes these as well, with no labels beside them: a ``TensorDataset`` or any dataset
of pairs, a ``DataLoader`` (read once, whole). Inputs alone may be a frame, whose columns must be numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from repairopt.errors import SpecificationError, public

from .inference_tensors import usable

BATCH = 256  # samples of a dataset that are read at a time


def is_dataset(value: Any) -> bool:
    """Whether inputs and labels come together."""
    return isinstance(value, DataLoader | Dataset)


def is_frame(value: Any) -> bool:
    """Whether a value has named columns, as the frames of pandas and polars."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def column_names(value: Any) -> tuple[str, ...]:
    """Names of the columns of a frame; none for anything else."""
    return tuple(str(name) for name in value.columns) if is_frame(value) else ()


@public
def to_tensors(inputs: Any, labels: Any = None, *, owner: str = "data") -> tuple[Tensor, Tensor | None]:
    """Inputs ``(N, ...)`` and class indices ``(N,)`` or None as tensors, not checked any further.

    Data that several properties and constraints share are best converted once, so that the network runs over them once.
    ``owner`` says who asks, for messages. A SpecificationError where columns or labels are no numbers, samples no
    pairs, or labels come twice.
    """
    if is_dataset(inputs):
        if labels is not None:
            raise SpecificationError(
                f"{owner}: labels were given beside a {type(inputs).__name__}, which has its own. Pass one of them."
            )
        return _from_dataset(owner, inputs)
    return as_tensor(owner, inputs), None if labels is None else as_tensor(f"{owner}, labels", labels)


def as_tensor(owner: str, value: Any) -> Tensor:
    """An array, list, frame or series as a tensor of the numbers' own type, sharing memory where it can.

    A SpecificationError where it is not made of numbers; the message names the columns of a frame.
    """
    if isinstance(value, Tensor):
        return value
    if is_frame(value):
        return _from_frame(owner, value)
    if isinstance(value, Mapping):
        raise SpecificationError(
            f"{owner}: inputs are a {type(value).__name__} of {', '.join(map(repr, value))}; expected one tensor, so "
            f"that samples can be chosen from it. PackedInputs of repairopt.interfaces packs token inputs."
        )
    array = np.array(value) if hasattr(value, "to_numpy") else value  # a series: its memory may be read-only
    try:
        return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecificationError(
            f"{owner}: {type(value).__name__} is not an array of numbers ({error}). Names of classes become indices by "
            f"pandas.factorize(labels, sort=True)[0]."
        ) from error


def column_position(owner: str, inputs: Any, column: int | str) -> int:
    """Position of a column given by position or, for frames, by name; a SpecificationError for unknown names."""
    if not isinstance(column, str):
        return column
    names = column_names(inputs)
    if column not in names:
        known = f"; its columns: {', '.join(names[:20])}" if names else ", which has no names of columns"
        raise SpecificationError(
            f"'{owner}': no column {column!r} in the {type(inputs).__name__}{known}. Pass a name of a frame's column, "
            f"or a position."
        )
    return names.index(column)


def _from_frame(owner: str, frame: Any) -> Tensor:
    columns, bad = [], []
    for name in frame.columns:
        array = np.asarray(frame[name])
        if array.dtype.kind == "O" and not any(isinstance(value, str) for value in array):
            with suppress(TypeError, ValueError):
                array = array.astype(np.float64)  # nullable numbers; a missing one becomes NaN
        if array.dtype.kind not in "biuf":
            bad.append(str(name))
        columns.append(array)
    if bad:
        raise SpecificationError(
            f"{owner}: columns {', '.join(map(repr, bad[:10]))} are not numbers. Encode them the way the model was "
            f"trained, for example by pandas.get_dummies or scikit-learn's OneHotEncoder."
        )
    if not columns:
        raise SpecificationError(f"{owner}: the {type(frame).__name__} has no columns; expected one for each feature.")
    return torch.from_numpy(np.column_stack(columns))


def _from_dataset(owner: str, data: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(data, TensorDataset):
        return _pair(owner, data, data.tensors)
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=BATCH)
    if isinstance(loader.dataset, IterableDataset) and not hasattr(loader.dataset, "__len__"):
        raise SpecificationError(
            f"{owner}: a {type(loader.dataset).__name__} without a length may never end. Collect what you want of it "
            f"in a TensorDataset."
        )
    parts: list[Any] = list(loader)
    if not parts:
        raise SpecificationError(f"{owner}: the {type(data).__name__} holds no samples.")
    if not all(isinstance(part, Tensor | list | tuple) for part in parts):
        return _pair(owner, data, parts[0])
    if isinstance(parts[0], Tensor):
        return torch.cat(parts), None
    if any(not isinstance(one, Tensor) for part in parts for one in part):
        return _pair(owner, data, None)
    return _pair(owner, data, [torch.cat(one) for one in zip(*parts, strict=True)])


def _pair(owner: str, data: Any, tensors: Any) -> tuple[Tensor, Tensor | None]:
    """One or two tensors, or an error that says what came."""
    together = isinstance(tensors, list | tuple)
    if together and len(tensors) in (1, 2):
        return tensors[0], tensors[1] if len(tensors) == 2 else None
    got = f"{len(tensors)} parts" if together else type(tensors).__name__
    if isinstance(tensors, Mapping):
        got = f"dicts of {', '.join(map(repr, tensors))}"
    raise SpecificationError(
        f"{owner}: the samples of the {type(data).__name__} are {got}; expected pairs (inputs, label) of numbers. Give "
        f"a TensorDataset(inputs, labels); repairopt.interfaces.huggingface.PackedInputs packs token inputs."
    )


@public
def check_inputs(
    owner: str, inputs: Any, labels: Any = None, classes: int | None = None, *, integers: bool = False
) -> tuple[Tensor, Any]:
    """Data that a user passed to a property or constraint as finite tensors, labels as int64 ``(N,)`` or None.

    Whole numbers become float32 unless ``integers``, for networks with embeddings. A SpecificationError where the data
    are empty, hold NaN, differ in size, or labels are not whole numbers below ``classes``.
    """
    x, labels = usable(to_tensors(inputs, labels, owner=owner))
    if x.ndim == 0 or x.shape[0] == 0:
        raise SpecificationError(f"{owner}: no inputs, shape {tuple(x.shape)}; expected (N, ...) with N at least 1.")
    if not x.is_floating_point() and not integers:
        x = x.to(torch.float32)
    if not bool(torch.isfinite(x.detach().sum())):  # one pass; the sum of large numbers may be infinite as well
        bad = ~torch.isfinite(x.detach()).reshape(len(x), -1).all(1)
        if bool(bad.any()):
            raise SpecificationError(
                f"{owner}: {int(bad.sum())} of {len(x)} inputs hold NaN or infinite numbers, the first is row "
                f"{int(bad.nonzero()[0])}. Drop or impute them."
            )
    if labels is None:
        return x, None
    y = torch.as_tensor(labels)
    if y.shape != (x.shape[0],):
        raise SpecificationError(
            f"{owner}: labels have shape {tuple(y.shape)}, expected ({x.shape[0]},), one class index for each input. "
            f"One-hot labels: pass labels.argmax(1)."
        )
    if y.is_floating_point() and not bool((y == y.round()).all()):
        raise SpecificationError(f"{owner}: labels are not whole numbers; expected class indices 0, 1, ...")
    y = y.to(torch.int64)
    check_labels(owner, y, classes)
    return x, y


def check_labelled(owner: str, inputs: Any, labels: Any, *, integers: bool = False) -> tuple[Tensor, Tensor]:
    """Like :func:`check_inputs` for what cannot do without labels."""
    x, y = check_inputs(owner, inputs, labels, integers=integers)
    if y is None:
        raise SpecificationError(
            f"{owner}: no labels; expected inputs and labels (N,), or a dataset or loader of pairs in place of both."
        )
    return x, y


def check_labels(owner: str, labels: Tensor, classes: int | None) -> None:
    """Refuse class indices that are negative or not below ``classes``, where that is known."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        bad = low if low < 0 else high
        limit = "0 or more" if classes is None else f"0 to {classes - 1}, for a model with {classes} outputs"
        raise SpecificationError(
            f"{owner}: label {bad} at row {int((labels == bad).nonzero()[0])} is out of range; expected {limit}."
        )
