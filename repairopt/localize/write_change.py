"""Apply: the change written into a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, SpecificationError, public

from .location import Location


@public
def apply(model: nn.Module, location: Location, delta: npt.NDArray[np.float64]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Write a weight change ``(n,)`` into a copy of the model, in its mode and dtype.

    Returns the copy and the change of each parameter, of its shape. A ModelError where ``delta`` has another size than
    the location, or is not finite.
    """
    if delta.shape != (location.size,) or not np.all(np.isfinite(delta)):
        raise ModelError(f"delta has shape {delta.shape}; expected ({location.size},) finite numbers, one a weight.")
    repaired = copy.deepcopy(model)
    parameters = dict(repaired.named_parameters())
    if missing := [name for name in location.indices if name not in parameters]:
        raise ModelError(f"model {type(model).__name__}: has no parameter '{missing[0]}', which is to change.")
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


def changed_parameters(model: nn.Module, repaired: nn.Module, location: Location) -> dict[str, Tensor]:
    """New minus old values of the parameters that could change or did; empty for a network that is wrapped."""
    before, after = dict(model.named_parameters()), dict(repaired.named_parameters())
    if set(before) != set(after):
        return {}
    pairs = {name: (after[name].detach() - value.detach()) for name, value in before.items()}
    return {name: change for name, change in pairs.items() if name in location.indices or bool(change.any())}


def gather_moved(location: Location, changes: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    """Changes by parameter as a vector ``(n,)`` over the weights of a location; 0 for parameters that are missing."""
    pieces = [
        changes[name].reshape(-1).double().cpu()[ix.cpu()] if name in changes else torch.zeros(len(ix)).double()
        for name, ix in location.indices.items()
    ]
    return (torch.cat(pieces) if pieces else torch.zeros(0).double()).numpy()


def by_parameter(model: nn.Module, location: Location, delta: npt.NDArray[np.float64]) -> dict[str, Tensor]:
    """A weight change ``(n,)`` as a float64 tensor of its shape for each parameter that may change."""
    parameters, found, start = dict(model.named_parameters()), {}, 0
    for name, positions in location.indices.items():
        flat = torch.zeros(parameters[name].numel(), dtype=torch.float64)
        flat[positions.cpu()] = torch.as_tensor(delta[start : start + len(positions)])
        found[name], start = flat.view(parameters[name].shape), start + len(positions)
    return found


def gather_change(model: nn.Module, location: Location, start: Any) -> npt.NDArray[np.float64]:
    """A change to begin with as a vector ``(n,)`` over the weights that may change.

    ``start`` has for parameters by name the change, of the parameter's shape; or is a repair or a patch of this model.
    A SpecificationError where a name or a shape does not fit, or a weight is changed that may not change.
    """
    parameters = dict(model.named_parameters())
    if hasattr(start, "apply") and not isinstance(start, nn.Module):
        patched = dict(start.apply(model).named_parameters())
        start = {name: (patched[name] - own).detach() for name, own in parameters.items()}
    start = getattr(start, "delta", start)
    if not isinstance(start, Mapping):
        raise SpecificationError(
            f"start: expected a mapping from names of parameters to changes, a Repair or a Patch; got "
            f"{type(start).__name__}."
        )
    for name, change in start.items():
        shape = tuple(parameters[name].shape) if name in parameters else None
        if shape is None or tuple(getattr(change, "shape", ())) != shape:
            came = tuple(getattr(change, "shape", ()))
            want = f"shape {shape}" if shape is not None else f"a parameter among {', '.join(map(repr, parameters))}"
            raise SpecificationError(f"start['{name}'] has shape {came}; expected {want}.")
        if not bool(torch.isfinite(torch.as_tensor(change)).all()):
            raise SpecificationError(f"start['{name}'] holds NaN or infinite numbers; expected finite changes.")
        allowed = location.indices.get(name, torch.zeros(0, dtype=torch.int64)).cpu()
        fixed = torch.as_tensor(change).reshape(-1).detach().double().cpu().clone()
        fixed[allowed] = 0.0
        if bool((fixed != 0).any()):
            raise SpecificationError(
                f"start['{name}'] changes {int((fixed != 0).sum())} weights that weights= does not let change; pass "
                f"the weights= of the repair that made it."
            )
    return gather_moved(location, {name: torch.as_tensor(change).detach() for name, change in start.items()})
