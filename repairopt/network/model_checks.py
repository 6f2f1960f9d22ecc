"""Checks of the user's model, each with a message that says what to do; and the copy that the engine runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, RepairError

from .inference_tensors import usable

FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AssertionError)  # of a forward that cannot run on rows
SPREAD = 8  # rows on which two ways to run a network are compared, besides the most extreme ones


def check_is_module(model: Any) -> None:
    """A ModelError that says what to pass in place of a model that is no module."""
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        got, way = f"the class {model.__name__}", "Pass an instance of it, with the trained weights."
    elif isinstance(model, Mapping):
        got, way = "weights alone", "Load them into their module by its load_state_dict, and pass that."
    elif isinstance(model, str | Path):
        got, way = f"'{model}'", "Load the file, as by torch.load(path, weights_only=False), and pass the module."
    elif isinstance(getattr(model, "module_", None), nn.Module):
        got, way = f"a {type(model).__name__}", "Pass its module_."
    elif isinstance(model, torch.export.ExportedProgram):
        got, way = "an ExportedProgram", "Pass its module(), exported with a dynamic first dimension."
    elif hasattr(model, "predict"):
        got, way = f"a {type(model).__name__}", "Of an estimator of another library, pass the torch module inside."
    else:
        got, way = f"a {type(model).__name__}", "Wrap a plain function in a module."
    raise ModelError(f"model: expected a torch.nn.Module, got {got}. {way}")


def shadow(model: nn.Module) -> nn.Module:
    """A copy of the module structure, in evaluation mode, that shares the parameters with the user's model.

    Buffers are copied: forward may write into them.
    """
    check_is_module(model)
    if empty := [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]:
        raise ModelError(
            f"model {type(model).__name__}: parameter '{empty[0]}' is uninitialized, of a lazy layer. Load the "
            f"weights, or run the model once on a few rows."
        )
    try:
        shared: dict[int, Any] = {id(t): usable(t) for t in model.parameters()}
        for module in model.modules():  # an embedding with max_norm writes into its weight
            if getattr(module, "max_norm", None) is not None:
                shared |= {
                    id(p): nn.Parameter(usable(p).detach().clone(), p.requires_grad) for p in module.parameters()
                }
        shared |= {id(t): t.detach().clone() for t in model.buffers()}
        return copy.deepcopy(model, shared).eval()
    except Exception as error:
        raise ModelError(
            f"model {type(model).__name__}: its modules cannot be copied ({type(error).__name__}: {error}). Remove "
            f"attributes that cannot be copied (open files, locks, tensors with a gradient history). Where "
            f"layers are pruned, or normalized by torch.nn.utils, run the model once inside torch.no_grad() before."
        ) from error


def check_model(model: nn.Module, parameters: Mapping[str, Tensor]) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of the first floating-point parameter; a ModelError unless all are finite float32 or float64."""
    floating = {name: p for name, p in parameters.items() if p.is_floating_point()}
    if not floating:
        raise ModelError(f"model {type(model).__name__}: has no floating-point parameters, so nothing to repair.")
    for name, parameter in floating.items():
        if parameter.is_meta:
            raise ModelError(
                f"model {type(model).__name__}: parameter '{name}' is on the meta device; load its numbers."
            )
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ModelError(
                f"model {type(model).__name__}: parameter '{name}' is {parameter.dtype}; repair needs float32 or "
                f"float64. Pass model.float(), and cast the repaired model back."
            )
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise ModelError(f"model {type(model).__name__}: parameter '{name}' holds NaN or infinite numbers.")
    first = next(iter(floating.values()))
    return first.dtype, first.device


def check_one_precision(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """A ModelError where parameters are of float32 and of float64: a change has one precision, that of the verdict."""
    found = {parameter.dtype: name for name, parameter in parameters.items() if parameter.is_floating_point()}
    if len(found) > 1:
        parts = ", ".join(f"'{name}' is {str(dtype).removeprefix('torch.')}" for dtype, name in found.items())
        raise ModelError(
            f"model {type(model).__name__}: its parameters mix float32 and float64 ({parts}); expected one precision. "
            f"Pass model.double() or model.float(), without casts in forward."
        )


def telling_rows(inputs: Tensor) -> Tensor:
    """A few of the inputs on which two ways to run a network may differ: evenly spread ones, and the most extreme."""
    flat = inputs.detach().reshape(len(inputs), -1)
    found = {int(i) for i in torch.linspace(0, len(inputs) - 1, SPREAD)}
    if flat.shape[1]:
        found |= {int(flat.amax(1).argmax()), int(flat.amin(1).argmin())}
    return inputs[torch.tensor(sorted(found), device=inputs.device)].detach()


def agree(found: Tensor, expected: Tensor, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
    """Whether two ways to run a network give the same outputs, in the same type.

    The types differ where forward turns on torch.autocast, which a trace does not record.
    """
    alike = found.shape == expected.shape and found.dtype == expected.dtype
    return alike and (torch.equal(found, expected) or torch.allclose(found, expected, rtol=rtol, atol=atol))


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
            _left_alone(caller, inputs)
    except RepairError:
        raise
    except FAILURES:
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
        except FAILURES as error:
            fixed = "Guard failed" in str(error)  # of torch.export
            way = "Export it with a dynamic first dimension" if fixed else "Check the shape of the data"
            raise ModelError(
                f"{what}: cannot run on inputs of shape {tuple(inputs.shape)} ({type(error).__name__}: {error}). "
                f"{way}, or pass Classifier(model, lambda model, x: ...)."
            ) from error
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != len(few):
            got, way = described(output, len(few))
            raise ModelError(f"{what}: its call returned {got} for 5 inputs; expected logits (5, k). {way}.")
        if output.layout is not torch.strided:
            raise ModelError(f"{what}: its outputs are sparse; expected a plain tensor, as of outputs.to_dense().")
        if not output.is_floating_point():
            raise ModelError(f"{what}: its outputs are {output.dtype}, as classes are; expected floating-point scores.")
        if not bool(torch.isfinite(output).all()):
            own = few.is_floating_point() and not bool(torch.isfinite(few).all())
            why = " So do the inputs that it was called with; clean them." if own else ""
            raise ModelError(f"{what}: its outputs hold NaN or infinite numbers.{why}")
        again = caller(few.clone())
        if not torch.allclose(output, again, rtol=1e-5, atol=1e-6):
            raise ModelError(
                f"{what}: two passes over the same 5 inputs disagree by {float((output - again).abs().max()):.3g}, in "
                f"evaluation mode. Look for dropout called without its training flag, or other randomness in forward."
            )
        try:
            each = [caller(few[i : i + 1].clone()) for i in range(len(few))]
        except FAILURES as error:
            raise ModelError(
                f"{what}: runs on 5 inputs, but not on one alone ({type(error).__name__}: {error}). Look for batch "
                f"statistics in forward, or a fixed size of the batch."
            ) from error
        if each[0].shape != output[:1].shape:
            raise ModelError(
                f"{what}: its output for one input alone has shape {tuple(each[0].shape)}; expected "
                f"{tuple(output[:1].shape)}, one row. Look for .squeeze() in forward, and name its dimension."
            )
        alone = torch.cat(each)
        if not torch.allclose(output, alone, rtol=1e-3, atol=1e-4):
            raise ModelError(
                f"{what}: the output of an input depends on the others in its batch (difference "
                f"{float((output - alone).abs().max()):.3g}). Look for batch statistics in forward."
            )
    return int(output.shape[1])


def writes_into(run: Callable[[Tensor], Any], rows: Tensor) -> bool:
    """Whether a function, such as a network, writes into the rows that it is given; it is given a copy."""
    given = rows.detach().clone()
    before = given._version
    with torch.no_grad():
        run(given)
    return given._version != before or not torch.equal(given, rows)


def check_derivative(model: nn.Module, outputs: Tensor) -> None:
    """A ModelError where outputs that weights with gradients made have none."""
    if torch.is_grad_enabled() and not outputs.requires_grad:
        raise ModelError(
            f"model {type(model).__name__}: its outputs have no derivative in the chosen weights. Look for "
            f"torch.no_grad, .detach() or NumPy in forward; method='swarm' needs no derivatives."
        )


def _left_alone(caller: nn.Module, few: Tensor) -> Any:
    """What a network returns; a ModelError where it writes into its parameters, which are the user's, and put back."""
    own = dict(caller.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in own.items()}
    try:
        return caller(few.clone())
    finally:
        written = [name for name, before in kept.items() if not torch.equal(own[name].detach(), before)]
        for name in written:
            own[name].data.copy_(kept[name])
        if written:
            name = written[0].removeprefix("model.")
            raise ModelError(
                f"model {type(caller.model).__name__}: its forward writes into its parameter '{name}', so there is no "
                f"one network to repair. Write into a copy in forward, or limit the parameter after training."
            )


def described(output: Any, rows: int) -> tuple[str, str]:
    """What a call returned instead of logits, and how they are had from it."""
    if isinstance(output, Tensor):
        one = output.ndim == 1 and len(output) == rows
        if one and not output.is_floating_point():
            return "whole numbers, as of classes,", "Return the scores that they are chosen by, before argmax"
        way = 'outputs="one logit"), or "one probability", or "regression"' if one else "lambda model, x: ...)"
        return f"shape {tuple(output.shape)}", f"Say how to read it with Classifier(model, {way}"
    listed: Any = enumerate(output) if isinstance(output, tuple | list) else ()
    parts = output.items() if isinstance(output, Mapping) else listed
    tensors = {key: tuple(part.shape) for key, part in parts if isinstance(part, Tensor)}
    own = (
        {}
        if tensors
        else {k: tuple(v.shape) for k, v in getattr(output, "__dict__", {}).items() if isinstance(v, Tensor)}
    )
    known = tensors or own
    key = "logits" if "logits" in known else next((k for k, shape in known.items() if len(shape) == 2), "...")
    found = type(output).__name__ + (f" of shapes {known}" if known else "")
    choice = f".{key}" if own else f"[{key!r}]"
    return found, f"Choose with Classifier(model, lambda model, x: model(x){choice})"
