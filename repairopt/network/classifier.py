"""Classifier: a model together with what its call takes and what its outputs mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError

from .changed_network import ForwardFunction

MEANINGS = ("logits", "one logit", "probabilities", "regression")


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model whose inputs or outputs are not those of a plain classifier.

    Attributes:
        model: The module.
        forward_fn: ``(model, inputs) -> outputs`` where inputs are packed or outputs come in a structure; None for a
            plain call.
        outputs: What the outputs ``(N, k)`` mean: ``"logits"``; ``"one logit"`` of the second of two classes, ``(N,)``
            or ``(N, 1)``; ``"probabilities"``, which become logarithms; ``"regression"``, which stay as they are.

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
    outputs: str = "logits"

    def __post_init__(self) -> None:
        if self.outputs not in MEANINGS:
            raise ModelError(f"Classifier: outputs={self.outputs!r}; choose from {', '.join(map(repr, MEANINGS))}.")
        if not isinstance(self.model, nn.Module):
            raise ModelError(f"Classifier: model is a {type(self.model).__name__}; expected a torch.nn.Module.")

    @property
    def run(self) -> ForwardFunction:
        """``(model, inputs) -> logits (N, k)``, or plain outputs for regression."""
        forward, convert = self.forward_fn, _CONVERSIONS.get(self.outputs)

        def run(model: nn.Module, inputs: Tensor) -> Tensor:
            found: Any = model(inputs) if forward is None else forward(model, inputs)
            return found if convert is None else convert(found)

        return run


_CONVERSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "one logit": lambda outputs: nn.functional.pad(outputs.reshape(len(outputs), 1), (1, 0)),
    "probabilities": lambda outputs: outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log(),
}


def split_model(model: Any) -> tuple[nn.Module, ForwardFunction | None]:
    """The module and the function that runs it, of a module or a :class:`Classifier`."""
    if isinstance(model, Classifier):
        plain = model.forward_fn is None and model.outputs not in _CONVERSIONS
        return model.model, None if plain else model.run
    return model, None
