"""The one place where a user's data become tensors: arrays, pandas frames, datasets, loaders.

Whatever takes ``(inputs, labels)`` takes these as well, with no labels beside them: a ``TensorDataset`` or any dataset
of pairs, a ``DataLoader``, whose dataset is read once and in its own order; what is larger than memory goes to a file.
Inputs alone may be a frame, whose columns must be numbers.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from repairopt.errors import SpecificationError, public

from .inference_tensors import usable
from .row_files import Spool, as_type
from .row_values import check_same_index, refuse_missing, samples_in

INDICES = "Names of classes become indices by pandas.factorize(labels, sort=True)[0]."
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
    if labels is None:
        return as_tensor(owner, inputs), None
    check_same_index(owner, inputs=inputs, labels=labels)
    try:
        return as_tensor(owner, inputs), as_tensor(f"{owner}, labels", labels)
    except SpecificationError:
        if _is_flat(labels) and not isinstance(labels, Tensor):
            refuse_missing(owner, "label", labels)
        raise


def _is_flat(values: Any) -> bool:
    """Whether values have one dimension; lists of lists of several lengths have none."""
    with suppress(ValueError, TypeError):
        return bool(np.ndim(values) == 1)
    return False


def check_beside(owner: str, inputs: Any, **parts: Any) -> None:
    """Refuse what is given by row beside inputs whose order it cannot have: another index, or a shuffling loader.

    Raises:
        SpecificationError: An index of pandas differs, or a loader does not give every sample of its dataset in order.
    """
    check_same_index(owner, inputs=inputs, **parts)
    given = [name for name, value in parts.items() if value is not None]
    if isinstance(inputs, DataLoader) and given and not _gives_all_in_order(inputs):
        raise SpecificationError(
            f"{owner}: {' and '.join(given)} beside a DataLoader that shuffles, or leaves samples out, cannot be in "
            f"the order of its rows. Pass its dataset, or a loader with shuffle=False and drop_last=False."
        )


def as_tensor(owner: str, value: Any) -> Tensor:
    """An array, list, frame or series as a tensor of the numbers' own type, sharing memory where it can.

    A SpecificationError where it is not made of numbers; the message names the columns of a frame.
    """
    if isinstance(value, Tensor):
        return _plain_tensor(owner, value)
    if is_frame(value):
        return _from_frame(owner, value)
    if isinstance(value, Mapping):
        raise SpecificationError(
            f"{owner}: inputs are a {type(value).__name__} of {', '.join(map(repr, value))}; expected one tensor, so "
            f"that samples can be chosen from it. PackedInputs of repairopt.interfaces packs token inputs."
        )
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(one, Tensor) for one in value):
            return _plain_tensor(owner, torch.stack(list(value)))
        return _plain_tensor(owner, torch.as_tensor(_plain_array(value)))
    except (TypeError, ValueError, RuntimeError) as error:
        advice = INDICES if owner.endswith("labels") else "Expected a tensor, array, list or frame of numbers (N, ...)."
        raise SpecificationError(
            f"{owner}: {type(value).__name__} is not an array of numbers ({error}). {advice}"
        ) from error


def _plain_tensor(owner: str, value: Tensor) -> Tensor:
    """A dense tensor of real numbers that are in memory, or a SpecificationError that says what it is instead."""
    kinds = {"without data, on the meta device": value.is_meta, "complex": value.is_complex()}
    kinds |= {"nested": value.is_nested, "quantized": value.is_quantized}
    if found := [kind for kind, is_it in kinds.items() if is_it]:
        raise SpecificationError(
            f"{owner}: got a tensor that is {found[0]}; expected real numbers (N, ...), such as float32."
        )
    value = value.detach() if value.requires_grad else value  # a repair must not write into the user's .grad
    return value if value.layout is torch.strided else value.to_dense()


def _plain_array(value: Any) -> Any:
    """An array of a kind that torch takes, also of a sparse matrix of SciPy; masked numbers become NaN."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        value = np.ma.filled(value.astype(np.float64), np.nan)
    value = value.toarray() if hasattr(value, "tocsr") else value
    if not isinstance(value, np.ndarray) and not hasattr(value, "to_numpy"):
        return value
    array = np.asarray(value)
    numbers = array.dtype.kind == "O" and not any(isinstance(one, str | bytes) for one in array.flat)
    if numbers or array.dtype == np.longdouble:
        return array.astype(np.float64)
    foreign = not array.flags.writeable or min(array.strides, default=0) < 0 or not array.dtype.isnative
    return array.astype(array.dtype.newbyteorder("="), order="C") if foreign else array


def column_position(owner: str, inputs: Any, column: int | str) -> int:
    """Position of a column given by position or, for frames, by name; a SpecificationError for unknown names."""
    names = column_names(inputs)
    if not isinstance(column, str):
        if isinstance(column, bool) or not isinstance(column, int | np.integer):
            shown = repr(column) if isinstance(column, float | bool) else f"a {type(column).__name__}"
            raise SpecificationError(
                f"'{owner}': column={shown}; expected the position of a column, or a text that names it. Groups of "
                f"rows are passed as sensitive_features."
            )
        labels = list(inputs.columns) if is_frame(inputs) else []
        if column in labels and labels.index(column) != column:
            raise SpecificationError(
                f"'{owner}': column {column}: the frame has a column of that name at position {labels.index(column)}; "
                f"it is not clear which is meant. Name the columns by texts, or pass inputs.to_numpy()."
            )
        return int(column)
    _check_distinct(owner, names)
    if column not in names:
        known = f"; its columns: {', '.join(names[:20])}" if names else ", which has no names of columns"
        raise SpecificationError(
            f"'{owner}': no column {column!r} in the {type(inputs).__name__}{known}. Pass a name of a frame's column, "
            f"or a position."
        )
    return names.index(column)


def _check_distinct(owner: str, names: tuple[str, ...]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecificationError(
            f"{owner}: {len(names)} columns, of which several are called {', '.join(map(repr, twice[:10]))}. Give each "
            f"column a name of its own."
        )


def _from_frame(owner: str, frame: Any) -> Tensor:
    _check_distinct(owner, column_names(frame))
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
    loader = _in_order(owner, data)
    if isinstance(loader.dataset, IterableDataset) and samples_in(loader.dataset) is None:
        raise SpecificationError(
            f"{owner}: a {type(loader.dataset).__name__} without a length may never end. Collect what you want of it "
            f"in a TensorDataset."
        )
    columns, first, rows = _read(owner, loader)
    if not columns:
        if first is None:
            raise SpecificationError(f"{owner}: the {type(data).__name__} holds no samples.")
        return _pair(owner, data, first)
    _check_reading(owner, loader, first, rows)
    return _pair(owner, data, columns)


def _read(owner: str, loader: DataLoader[Any]) -> tuple[list[Tensor], Any, int]:
    """All rows by column, where batches have columns; the first batch; and how many rows there are.

    What is larger than memory goes to a file. A SpecificationError where samples cannot be put into one batch.
    """
    columns: list[Spool] = []
    first: Any = None
    rows, most = 0, samples_in(loader.dataset) if isinstance(loader.dataset, IterableDataset) else None
    try:
        for part in loader:
            if not isinstance(part, Tensor | list | tuple):
                return [], part, 0
            batch = [part] if isinstance(part, Tensor) else list(part)
            if other := {type(one).__name__ for one in batch if not isinstance(one, Tensor)}:
                raise SpecificationError(
                    f"{owner}: the {type(loader.dataset).__name__} gives parts that are {', '.join(sorted(other))}; "
                    f"expected batches of pairs (inputs, label) of numbers. {INDICES}"
                )
            if any(not one.ndim for one in batch):
                raise SpecificationError(
                    f"{owner}: the loader gives single samples, without a batch_size. Give it one."
                )
            first = batch if first is None else first
            columns = columns or [Spool() for _ in batch]
            rows += len(batch[0])
            for column, one in zip(columns, batch, strict=True):
                column.add(one)
            if most is not None and rows > most:  # it may never end
                break
        return [column.tensor() for column in columns], first, rows
    except (TypeError, RuntimeError) as error:
        if "collate" not in str(error) + traceback.extract_tb(error.__traceback__)[-1].filename:
            raise  # of the user's dataset; that of a worker process is in the text
        text = str(error).strip().splitlines()[-1]
        raise SpecificationError(
            f"{owner}: the samples of the {type(loader.dataset).__name__} cannot be put into one batch ({text}). Give "
            f"each the same shape, and a label that is a number; variable lengths are padded by a collate_fn."
        ) from error


def _sampling(loader: DataLoader[Any]) -> tuple[Any, int | None, bool]:
    """Sampler, batch size and whether the last batch is dropped; the batches of another kind are the sampler."""
    batches: Any = loader.batch_sampler
    if batches is None:
        return loader.sampler, None, False
    known = type(batches) is BatchSampler
    return (batches.sampler, batches.batch_size, batches.drop_last) if known else (batches, None, True)


def _gives_all_in_order(loader: DataLoader[Any]) -> bool:
    sampler, _, drop_last = _sampling(loader)
    return not drop_last and (type(sampler) is SequentialSampler or isinstance(loader.dataset, IterableDataset))


def _in_order(owner: str, data: Any) -> DataLoader[Any]:
    """A loader of every sample of a dataset, or of the dataset of a loader, in the dataset's own order."""
    if not isinstance(data, DataLoader):
        return DataLoader(data, batch_size=BATCH, generator=torch.Generator())
    if _gives_all_in_order(data):
        return data
    sampler: Any = _sampling(data)[0]
    all_rows = type(sampler) is SequentialSampler or isinstance(data.dataset, IterableDataset)
    if type(sampler) is RandomSampler:
        all_rows = not sampler.replacement and len(sampler) == len(sampler.data_source)
    if not all_rows or type(data).__iter__ is not DataLoader.__iter__:
        raise SpecificationError(
            f"{owner}: a {type(data).__name__} whose {type(sampler).__name__} chooses or orders samples may give "
            f"others each time. Pass its dataset, or torch.utils.data.Subset(dataset, rows) for some of it."
        )
    return _whole(data, data.num_workers)


def _whole(loader: DataLoader[Any], workers: int = 0) -> DataLoader[Any]:
    """The same batches in order, none left out; nothing is drawn from torch's own generator."""
    options: Any = {"multiprocessing_context": loader.multiprocessing_context} if workers else {}
    options |= {"batch_size": _sampling(loader)[1], "collate_fn": loader.collate_fn, "generator": torch.Generator()}
    return DataLoader(loader.dataset, num_workers=workers, worker_init_fn=loader.worker_init_fn, **options)


def _check_reading(owner: str, loader: DataLoader[Any], before: list[Tensor], rows: int) -> None:
    """Every sample became one row, and is the same when it is read again."""
    dataset: Any = loader.dataset
    if _sampling(loader)[1] is not None and rows != len(dataset):
        raise SpecificationError(
            f"{owner}: {len(dataset)} samples of the {type(dataset).__name__} became {rows} rows; expected one for "
            f"each. Look at its length and at collate_fn; leave samples out before, by torch.utils.data.Subset."
        )
    first = iter(_whole(loader) if type(loader).__iter__ is DataLoader.__iter__ else loader)
    again: Any = next(first, None)
    pairs = [] if again is None else zip(before, [again] if isinstance(again, Tensor) else again, strict=True)
    if any(one.shape != two.shape or not torch.equal(one.nan_to_num(), two.nan_to_num()) for one, two in pairs):
        raise SpecificationError(
            f"{owner}: the {type(dataset).__name__} gives other samples, or another order, each time it is read. Turn "
            f"random transforms off, or collect one reading in a TensorDataset."
        )


def _pair(owner: str, data: Any, tensors: Any) -> tuple[Tensor, Tensor | None]:
    """One or two tensors, or an error that says what came."""
    together = isinstance(tensors, list | tuple)
    if together and len(tensors) in (1, 2):
        inputs, *labels = (_plain_tensor(owner, part) for part in tensors)
        return inputs, labels[0] if labels else None
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
        x = as_type(x, torch.float32)
    if not bool(torch.isfinite(x.detach().sum())):  # one pass; the sum of large numbers may be infinite as well
        bad = ~torch.isfinite(x.detach()).reshape(len(x), -1).all(1)
        if bool(bad.any()):
            raise SpecificationError(
                f"{owner}: {int(bad.sum())} of {len(x)} inputs hold NaN or infinite numbers, the first is row "
                f"{int(bad.nonzero()[0])}. Drop or impute them."
            )
    if labels is None:
        return x, None
    y = labels if isinstance(labels, Tensor) else as_tensor(f"{owner}, labels", labels)
    if y.shape != (x.shape[0],):
        one_hot = y.ndim == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all())
        advice = " One-hot labels: pass labels.argmax(1)." if one_hot else ""
        advice = " One column of class indices: pass its values, labels[:, 0]." if y.shape[1:] == (1,) else advice
        raise SpecificationError(
            f"{owner}: labels have shape {tuple(y.shape)}, expected ({x.shape[0]},), one class index for each input."
            f"{advice}"
        )
    if y.is_floating_point() and bool(y.isnan().any()):
        refuse_missing(owner, "label", y)
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
