"""Classifier: a model together with what its call takes and what its outputs mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from repairopt.errors import ModelError

from .changed_network import ForwardFunction
from .model_checks import check_is_module

UNORDERED = ("regression", "several logits", "several probabilities")  # where the largest output says nothing
MEANINGS = ("auto", "logits", "one logit", "probabilities", "one probability", *UNORDERED)


@dataclass(frozen=True)
class Reading:
    """How the outputs of a model are read: ``(model, inputs) -> logits (N, k)``, or numbers for regression.

    Attributes:
        forward_fn: ``(model, inputs) -> outputs``, or None for a plain call.
        outputs: What they mean; see :class:`Classifier`.
    """

    forward_fn: ForwardFunction | None
    outputs: str

    def __call__(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Run the model and convert what it returns."""
        found: Any = model(inputs) if self.forward_fn is None else self.forward_fn(model, inputs)
        if self.outputs in UNORDERED[:2]:  # what bounds of regions read step by step
            return _as_rows(found)
        if self.outputs == "one logit":
            return second_of_two(found)
        return _converted(found, self.outputs) if self.outputs in _CONVERSIONS else found


def _is_traced(outputs: Any) -> bool:
    return isinstance(outputs, fx.Proxy)


def _converted(outputs: Tensor, meaning: str) -> Tensor:
    """Outputs as logits ``(N, k)``; one step of a trace, as it asks for shapes, which proxies do not have."""
    return _CONVERSIONS[meaning](outputs)


def second_of_two(outputs: Tensor) -> Tensor:
    """Logits ``(N, 2)`` of one logit ``(N,)`` or ``(N, 1)``, of the second class; a linear step of a trace."""
    return nn.functional.pad(_one_column(outputs), (1, 0))


fx.wrap("_converted")
fx.wrap("second_of_two")


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model whose inputs or outputs are not those of a plain classifier.

    Attributes:
        model: The module.
        forward_fn: ``(model, inputs) -> outputs`` where inputs are packed or outputs come in a structure; None for a
            plain call.
        outputs: What the outputs ``(N, k)`` mean: ``"logits"``, also where they are log-probabilities; ``"one logit"``
            of the second of two classes, ``(N,)`` or ``(N, 1)``; ``"probabilities"``, which become logarithms; ``"one
            probability"`` of the second of two classes; ``"regression"``, numbers ``(N, k)`` or ``(N,)`` that stay as
            they are; ``"several logits"`` or ``"several probabilities"`` of labels that may hold at once, for
            :class:`repairopt.specify.LabelSetErrors`; ``"auto"``: seen from the outputs, told in the report, refused
            where it is not clear.

    Raises:
        ModelError: ``outputs`` is another word, or the model is no module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> adapted = Classifier(nn.Linear(3, 1), outputs="one logit")
        >>> adapted.run(adapted.model, torch.zeros(2, 3)).shape
        torch.Size([2, 2])
    """

    model: nn.Module
    forward_fn: ForwardFunction | None = None
    outputs: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.outputs, str) or self.outputs not in MEANINGS:
            raise ModelError(f"Classifier: outputs={self.outputs!r}; choose from {', '.join(map(repr, MEANINGS))}.")
        if not isinstance(self.model, nn.Module):
            raise ModelError(f"Classifier: model is a {type(self.model).__name__}; expected a torch.nn.Module.")

    @property
    def run(self) -> ForwardFunction:
        """``(model, inputs) -> logits (N, k)``, or plain outputs for regression."""
        return Reading(self.forward_fn, self.outputs)


def _one_column(outputs: Tensor) -> Tensor:
    if outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[1] != 1):
        raise ModelError(
            f"model: gave outputs of shape {tuple(outputs.shape)}, stated to be one number for each row; expected (N,) "
            f"or (N, 1). Choose one with Classifier(model, lambda model, x: model(x)[:, j], outputs=...)."
        )
    return outputs.reshape(len(outputs), 1)


def _log(chances: Tensor) -> Tensor:
    """Logarithms; what is no longer above 0, as of a network without a softmax, goes on in its own order."""
    least = torch.finfo(chances.dtype).tiny
    return chances.clamp(min=least).log() + (chances - least).clamp(max=0)


def _as_rows(outputs: Tensor) -> Tensor:
    if _is_traced(outputs):  # in a trace, where the number of dimensions is not known
        return outputs.unsqueeze(1).flatten(1)
    return outputs.reshape(len(outputs), 1) if outputs.ndim == 1 else outputs


_CONVERSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "probabilities": _log,
    "one probability": lambda outputs: _log(torch.cat([1 - _one_column(outputs), _one_column(outputs)], dim=1)),
    "several probabilities": lambda outputs: _log(_as_rows(outputs)) - _log(1 - _as_rows(outputs)),
}


def split_model(model: Any) -> tuple[nn.Module, ForwardFunction | None]:
    """The module and the function that runs it, of a module or a :class:`Classifier`.

    A ModelError where the module is compiled or scripted, so that its layers are not at hand.
    """
    if isinstance(model, Classifier):
        plain = model.forward_fn is None and model.outputs == "auto"
        return _with_layers(model.model), None if plain else model.run
    return _with_layers(model), None


def _with_layers(model: Any) -> Any:
    """The module itself, where its layers can be seen."""
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ModelError(
            "model: is compiled by torch.compile, which hides its layers. Pass model._orig_mod, the module that was "
            "compiled, and compile the repaired copy."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"model {type(model).__name__}: is scripted or traced by torch.jit, which hides its layers. Pass the "
            f"module that it was made from, and script the repaired copy."
        )
    check_is_module(model)
    return model


def meaning_of(forward_fn: ForwardFunction | None) -> str:
    """What outputs were stated to mean, ``"auto"`` where nothing was."""
    return forward_fn.outputs if isinstance(forward_fn, Reading) else "auto"
