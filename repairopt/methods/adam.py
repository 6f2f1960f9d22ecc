"""Adam over the kernels of torch. The class of torch loads its compiler at the first use, which takes a second."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

BETAS, EPSILON = (0.9, 0.999), 1e-8


class Adam:
    """What ``torch.optim.Adam`` computes, to the last bit.

    Args:
        params: Leaves, or groups of them as torch has them: mappings with ``params`` and ``lr``.
        lr: Learning rate of leaves that are in no group.
        weight_decay: Weight of the squared parameters.
        fused: Whether one kernel does a step, which is quicker and rounds otherwise.

    Attributes:
        param_groups: The groups, whose ``lr`` may be set between steps.

    References:
        Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, *, weight_decay: float = 0.0, fused: bool | None = None
    ) -> None:
        given = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        self.param_groups: list[dict[str, Any]] = [{"lr": lr, **group} for group in groups]
        self._fused = fused
        self._options = {"weight_decay": weight_decay, "amsgrad": False, "maximize": False}
        self._state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            gradients = [parameter.grad for parameter in moved]
            means, squares, steps = (list(part) for part in zip(*map(self._moments, moved), strict=True))
            if self._fused and len(moved) == 1:  # at once, as to sort tensors by their kind takes longer than the step
                steps[0].add_(1)
                torch._fused_adam_(
                    moved, gradients, means, squares, [], steps, grad_scale=None, found_inf=None, **self._sizes(group)
                )
            else:
                adam(moved, gradients, means, squares, [], steps, fused=self._fused, **self._sizes(group))

    def _sizes(self, group: dict[str, Any]) -> dict[str, Any]:
        betas = {"beta1": BETAS[0], "beta2": BETAS[1]}
        return {**betas, "lr": group["lr"], "eps": EPSILON, **self._options}

    def _moments(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Running means of the gradient and of its square, and the number of steps."""
        if parameter not in self._state:
            device = parameter.device if self._fused else torch.device("cpu")
            double = torch.get_default_dtype() is torch.float64
            steps = torch.zeros((), dtype=torch.float64 if double else torch.float32, device=device)
            self._state[parameter] = (torch.zeros_like(parameter), torch.zeros_like(parameter), steps)
        return self._state[parameter]
