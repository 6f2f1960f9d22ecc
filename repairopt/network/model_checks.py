"""Checks of the user's model, each with a message that says what to do; and the copy that the engine runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, RepairError

SPREAD = 8  # rows on which two ways to run a network are compared, besides the most extreme ones


def shadow(model: nn.Module) -> nn.Module:
    """A copy of the module structure, in evaluation mode, that shares the parameters with the user's model.

    Buffers are copied: forward may write into them.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}. Wrap a plain function in a module."
        )
    try:
        shared: dict[int, Any] = {id(t): usable(t) for t in model.parameters()}
        shared |= {id(t): t.detach().clone() for t in model.buffers()}
        return copy.deepcopy(model, shared).eval()
    except Exception as error:
        raise ModelError(
            f"model {type(model).__name__}: its modules cannot be copied ({type(error).__name__}: {error}). Remove "
            f"attributes that cannot be copied (open files, locks, tensors with a gradient history)."
        ) from error


def usable(tensor: Any) -> Any:
    """The tensor or parameter itself, or an equal one where it was made in inference mode: these have no derivatives."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        found = tensor.detach().clone()
    return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found


def check_model(model: nn.Module, parameters: Mapping[str, Tensor]) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of the first floating-point parameter; a ModelError unless all are finite float32 or float64."""
    floating = {name: p for name, p in parameters.items() if p.is_floating_point()}
    if not floating:
        raise ModelError(f"model {type(model).__name__}: has no floating-point parameters, so nothing to repair.")
    for name, parameter in floating.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ModelError(
                f"model {type(model).__name__}: parameter '{name}' is {parameter.dtype}; repair needs float32 or "
                f"float64. Pass model.float(), and cast the repaired model back."
            )
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise ModelError(f"model {type(model).__name__}: parameter '{name}' holds NaN or infinite numbers.")
    first = next(iter(floating.values()))
    return first.dtype, first.device


def telling_rows(inputs: Tensor) -> Tensor:
    """A few of the inputs on which two ways to run a network may differ: evenly spread ones, and the most extreme."""
    flat = inputs.detach().reshape(len(inputs), -1)
    found = {int(i) for i in torch.linspace(0, len(inputs) - 1, SPREAD)}
    if flat.shape[1]:
        found |= {int(flat.amax(1).argmax()), int(flat.amin(1).argmin())}
    return inputs[torch.tensor(sorted(found), device=inputs.device)].detach()


def check_positions(name: str, positions: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Flat positions in a parameter as int64; a ModelError where one is out of range or given twice."""
    if name not in parameters:
        known = ", ".join(list(parameters)[:12])
        raise ModelError(f"weights: the model has no parameter '{name}'. Its parameters: {known}.")
    size = parameters[name].numel()
    ix = torch.as_tensor(positions, dtype=torch.int64, device=parameters[name].device)
    if ix.ndim != 1 or (len(ix) and (int(ix.min()) < 0 or int(ix.max()) >= size)):
        raise ModelError(f"weights: positions in '{name}' must be a vector of numbers 0 to {size - 1}.")
    if len(torch.unique(ix)) != len(ix):
        raise ModelError(f"weights: a position in '{name}' is given twice.")
    return ix


def accepts(caller: nn.Module, inputs: Tensor) -> bool:
    """Whether a network runs on inputs of this type as they are."""
    try:
        with torch.no_grad():
            caller(inputs.clone())
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return True


def check_outputs(caller: nn.Module, few: Tensor, inputs: Tensor) -> int:
    """Number of classes of a network that gives finite logits, twice the same, each from its own input alone.

    ``few`` are five of the inputs. A ModelError where the network is not like that, or cannot run.
    """
    what = f"model {type(caller.model).__name__}"
    with torch.no_grad():
        try:
            output = _left_alone(caller, few)
        except RepairError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"{what}: cannot run on inputs of shape {tuple(inputs.shape)} ({type(error).__name__}: {error}). "
                f"Check the shape of the data, or pass forward_fn=lambda model, x: ..."
            ) from error
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != len(few):
            got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(
                f"{what}: its call returned {got} for 5 inputs; expected logits (5, k). "
                f"Pass forward_fn=lambda model, x: ... that returns them."
            )
        if not bool(torch.isfinite(output).all()):
            raise ModelError(f"{what}: its outputs hold NaN or infinite numbers.")
        again = caller(few.clone())
        if not torch.allclose(output, again, rtol=1e-5, atol=1e-6):
            raise ModelError(
                f"{what}: two passes over the same 5 inputs disagree by {float((output - again).abs().max()):.3g}, in "
                f"evaluation mode. Look for dropout called without its training flag, or other randomness in forward."
            )
        alone = torch.cat([caller(few[i : i + 1].clone()) for i in range(len(few))])
        if not torch.allclose(output, alone, rtol=1e-3, atol=1e-4):
            raise ModelError(
                f"{what}: the output of an input depends on the others in its batch (difference "
                f"{float((output - alone).abs().max()):.3g}). Look for batch statistics in forward."
            )
    return int(output.shape[1])


def _left_alone(caller: nn.Module, few: Tensor) -> Any:
    """What a network returns; a ModelError where it writes into its parameters, which are the user's, and put back."""
    kept = {name: parameter.detach().clone() for name, parameter in caller.model.named_parameters()}
    try:
        return caller(few.clone())
    finally:
        own = dict(caller.model.named_parameters())
        written = [name for name, before in kept.items() if not torch.equal(own[name].detach(), before)]
        for name in written:
            own[name].data.copy_(kept[name])
        if written:
            raise ModelError(
                f"model {type(caller.model).__name__}: its forward writes into its parameter '{written[0]}', so there "
                f"is no one network to repair. Write into a copy in forward, or limit the parameter after training."
            )
