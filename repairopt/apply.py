"""Apply: the change written into a copy of the model."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .errors import ModelError
from .localize import Location


def apply(model: nn.Module, location: Location, delta: npt.NDArray[np.float64]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Write a weight change into a copy of the model.

    Args:
        model: Not modified.
        location: The ``n`` weights that change.
        delta: New minus old weights, ``(n,)``.

    Returns:
        The copy, in the mode (training or evaluation) and dtype of the model, and the change of each parameter as a
        tensor of the parameter's shape.

    Raises:
        ModelError: ``delta`` has another size than the location, or is not finite.
    """
    if delta.shape != (location.size,) or not np.all(np.isfinite(delta)):
        raise ModelError(f"delta has shape {delta.shape}; expected ({location.size},) finite numbers, one a weight.")
    repaired = copy.deepcopy(model)
    parameters = dict(repaired.named_parameters())
    changes, start = {}, 0
    with torch.no_grad():
        for name, positions in location.indices.items():
            parameter = parameters[name]
            ix = positions.to(parameter.device)
            piece = torch.as_tensor(delta[start : start + len(ix)]).to(parameter)
            start += len(ix)
            flat = parameter.detach().reshape(-1).clone()
            before = flat.clone()
            flat[ix] = before[ix] + piece
            parameter.copy_(flat.view(parameter.shape))
            changes[name] = (flat - before).view(parameter.shape)
    return repaired, changes
