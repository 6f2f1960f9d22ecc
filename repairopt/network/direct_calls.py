"""What a function, a network or a classifier gives for rows, where a property is measured by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from repairopt.errors import ModelError, RepairError

from .classifier import Classifier
from .inference_tensors import usable
from .model_checks import FAILURES, described


def outputs_of(predict: Any, inputs: Tensor) -> Tensor:
    """Outputs ``(N, k)`` of rows ``(N, ...)``.

    A module or a :class:`Classifier` reads a copy of the rows in its own precision, on its own device, as a repair
    does; what is no module, such as the engine, is called as it is.

    Raises:
        ModelError: The module cannot run on these rows.
    """
    if isinstance(predict, Classifier):
        return _of_module(predict.model, partial(predict.run, predict.model), inputs)
    return _of_module(predict, predict, inputs) if isinstance(predict, nn.Module) else predict(inputs)


def _of_module(model: nn.Module, run: Any, inputs: Tensor) -> Tensor:
    own = next((p for p in model.parameters() if p.is_floating_point()), None)
    rows = usable(inputs).detach()
    dtypes = [rows.dtype] if own is None else [own.dtype]
    if not rows.is_floating_point():
        dtypes = [rows.dtype, *dtypes]  # as they are to networks that read indices
    for dtype in dtypes:
        copied = rows.to(device=rows.device if own is None else own.device, dtype=dtype, copy=True)
        try:
            found = run(copied)
        except RepairError:
            raise
        except FAILURES as error:
            if dtype != dtypes[-1]:
                continue
            raise ModelError(
                f"model {type(model).__name__}: cannot run on inputs of shape {tuple(inputs.shape)} "
                f"({type(error).__name__}: {error}). Check the shape of the data, or pass Classifier(model, ...)."
            ) from error
        if isinstance(found, Tensor) and found.ndim == 2 and len(found) == len(inputs):
            return found
        got, way = described(found, len(inputs))
        raise ModelError(
            f"model {type(model).__name__}: its call returned {got} for {len(inputs)} inputs; expected logits "
            f"({len(inputs)}, k). {way}."
        )
    raise AssertionError
