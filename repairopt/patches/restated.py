"""Wrappers around networks whose outputs are no logits: they read logits, and give outputs of the same meaning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FORMS = ("one logit", "probabilities", "one probability")
"""Meanings of outputs that logits are made of and can be turned into again; see ``repairopt.Classifier``."""


def _check(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"outputs={form!r}; expected one of {', '.join(FORMS)}")


class AsLogits(nn.Module):
    """A network whose outputs become logits ``(N, k)``.

    Attributes:
        network: Gives one number for each row, ``(N,)`` or ``(N, 1)``, or probabilities ``(N, k)``.
        form: What its outputs are, of :data:`FORMS`.
    """

    def __init__(self, network: nn.Module, form: str) -> None:
        super().__init__()
        _check(form)
        self.network, self.form, self.training = network, form, network.training

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, k)``."""
        outputs: Tensor = self.network(inputs)
        if self.form == "probabilities":
            return _log(outputs)
        column = outputs.reshape(-1, 1)
        if self.form == "one logit":
            return torch.cat([torch.zeros_like(column), column], 1)
        return _log(torch.cat([1 - column, column], 1))


def parameters_inside(network: nn.Module) -> dict[str, tuple[str, nn.Parameter]]:
    """Parameters by the names that they have in the user's network, with those that they have in ``network``.

    The two differ where ``network`` is an :class:`AsLogits` around the user's.
    """
    inside = isinstance(network, AsLogits)
    own: Any = network.network if inside else network
    return {name: (f"network.{name}" if inside else name, p) for name, p in own.named_parameters()}


class AsStated(nn.Module):
    """A wrapper that reads logits, with outputs as those of the network inside of it.

    Attributes:
        wrapper: From inputs to logits ``(N, k)``; its attribute ``network`` is an :class:`AsLogits`.
        flat: Whether the network gives one number for each row as ``(N,)``.
    """

    def __init__(self, wrapper: nn.Module, form: str, flat: bool) -> None:
        super().__init__()
        _check(form)
        self.wrapper, self.form, self.flat, self.training = wrapper, form, flat, wrapper.training

    @property
    def network(self) -> Any:
        """The network inside of the wrapper, as it was given."""
        return self.wrapper.network.network  # type: ignore[union-attr]

    def forward(self, inputs: Tensor) -> Tensor:
        """One number for each row, or probabilities ``(N, k)``."""
        logits: Tensor = self.wrapper(inputs)
        if self.form == "probabilities":
            return torch.softmax(logits, 1)
        column = logits[:, 1:] - logits[:, :1] if self.form == "one logit" else torch.softmax(logits, 1)[:, 1:]
        return column.reshape(-1) if self.flat else column


def _log(chances: Tensor) -> Tensor:
    return chances.clamp(min=torch.finfo(chances.dtype).tiny).log()
