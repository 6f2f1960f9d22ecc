"""Votes of the original network and a repaired one, which mitigate what a repair breaks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError
from repairopt.localize import Wrapped
from repairopt.methods.material import material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.network import network_of
from repairopt.program import Status

from .pair_votes import OWN, is_dropout
from .two_networks import TwoNetworks

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class DecidedByRow(TwoNetworks, ABC):
    """Repair by another method, then decide between the original network and the repaired one row by row."""

    def run(self, task: Task) -> Outcome:
        """Run the method, then put the vote around both networks."""
        outcome, settings, tensors = self.repaired(task)
        if not tensors:
            return outcome
        kind, own, added = self.parts(task, outcome)
        named = {OWN + name: one for name, one in added.items()}
        candidate = Wrapped(kind, {**own, **settings}, {**tensors, **named})
        task.log.last = (0, 1, None)
        task.record(f"vote, {kind}", task.judge.keep(candidate))
        return Outcome(candidate, Status.FEASIBLE, on_target=True, indivisible=True)

    @abstractmethod
    def parts(self, task: Task, outcome: Outcome) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        """Kind, settings and tensors of the vote."""


@dataclass(frozen=True, kw_only=True)
class HardVoting(DecidedByRow):
    """The majority label of the original network and a repaired one; where both differ, that of the more confident.

    Attributes:
        of: The method that repairs, by name or as an instance.

    References:
        A Comprehensive Study of Deep Learning Model Fixing Approaches, section on mitigating side effects (HV).
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Hard voting (HV)": {}}

    def parts(self, task: Task, outcome: Outcome) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        """Nothing beside the other network."""
        return "hard_vote", {}, {}


@dataclass(frozen=True, kw_only=True)
class PerturbationAlignment(DecidedByRow):
    """Each network predicts noisy copies of an input; the one whose mean prediction has less entropy decides.

    Attributes:
        of: The method that repairs, by name or as an instance.
        copies: Noisy copies of each input.
        sigma: Standard deviation of the noise, over the range of the inputs: of each column of rows ``(N, d)``, of all
            values of other inputs.
        soft: Whether both predictions are mixed with weights ``1 / (entropy + 1e-6)``.

    References:
        A Comprehensive Study of Deep Learning Model Fixing Approaches, section on mitigating side effects (UP), which
        leaves the numbers open. Here the noise is drawn once and is the same for every row.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Uncertainty alignment by perturbation (UP)": {}}

    copies: int = 10
    sigma: float = 0.02
    soft: bool = False

    def __post_init__(self) -> None:
        check_settings(self, {"copies": Expected(low=1, whole=True), "sigma": Expected(above=True)})

    def parts(self, task: Task, outcome: Outcome) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        """The noise."""
        x = material_of(task, failing=False).training[0]
        if not x.is_floating_point():
            raise SpecificationError(
                "method PerturbationAlignment: the inputs are whole numbers, which no noise can be added to. Choose "
                "DropoutAlignment."
            )
        width = x.amax(0) - x.amin(0) if x.ndim == 2 else x.amax() - x.amin()
        draw = torch.Generator().manual_seed(task.seed)
        noise = torch.randn((self.copies, *x.shape[1:]), generator=draw, dtype=torch.float64).to(x.device)
        return "perturbation_vote", {"soft": self.soft}, {"noise": (self.sigma * width * noise).to(x.dtype)}


@dataclass(frozen=True, kw_only=True)
class DropoutAlignment(DecidedByRow):
    """Each network predicts with parts left out by dropout; the one whose mean prediction has less entropy decides.

    Attributes:
        of: The method that repairs, by name or as an instance.
        copies: Masks of each place.
        rate: Share that is left out where the network has no dropout layer: of the inputs of each layer but the first.
        soft: Whether both predictions are mixed with weights ``1 / (entropy + 1e-6)``.

    References:
        A Comprehensive Study of Deep Learning Model Fixing Approaches, section on mitigating side effects (UD), which
        leaves the numbers open. Here the masks are drawn once and are the same for every row.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Uncertainty alignment by dropout (UD)": {}}

    copies: int = 10
    rate: float = 0.1
    soft: bool = False

    def __post_init__(self) -> None:
        between = Expected(high=1, above=True, below=True)
        check_settings(self, {"copies": Expected(low=1, whole=True), "rate": between})

    def parts(self, task: Task, outcome: Outcome) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        """The masks of each place."""
        x = material_of(task, failing=False).training[0]
        draw = torch.Generator().manual_seed(task.seed)
        masks = {}
        for name, (shape, rate) in self._places(task, x[:2]).items():
            kept = (torch.rand((self.copies, *shape), generator=draw) >= rate).float() / (1 - rate)
            masks[f"mask.{name}"] = kept.to(x.device)
        return "dropout_vote", {"soft": self.soft, "places": [name.removeprefix("mask.") for name in masks]}, masks

    def _places(self, task: Task, few: Tensor) -> dict[str, tuple[torch.Size, float]]:
        """Names of the modules whose inputs are masked, with the shape of these for one row and the rate."""
        network: nn.Module = task.engine.caller.model
        modules = dict(network.named_modules())
        seen: dict[str, torch.Size] = {}
        handles = []
        for name, module in modules.items():
            if name and (is_dropout(module) or isinstance(module, LAYERS)):
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _, given, name=name: seen.setdefault(name, given[0].shape[1:]) and None
                    )
                )
        try:
            task.engine.predict()(few)
        finally:
            for handle in handles:
                handle.remove()
        own = {name: (shape, float(modules[name].p)) for name, shape in seen.items() if is_dropout(modules[name])}
        layers = [name for name in seen if isinstance(modules[name], LAYERS)]
        found = {name: one for name, one in own.items() if one[1] > 0}
        found = found or {name: (seen[name], self.rate) for name in layers[1:]}
        if not found:
            raise SpecificationError(
                "method DropoutAlignment: the network has neither a dropout layer nor a second layer with inputs to "
                "leave out. Choose PerturbationAlignment."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class TemperatureAlignment(DecidedByRow):
    """Each network is calibrated by a temperature on validation rows; then their probabilities are averaged.

    Attributes:
        of: The method that repairs, by name or as an instance.
        combine: ``"mean"`` of the calibrated probabilities, or ``"confident"``: the label of the more confident
            network.
        validation: Inputs and labels for the temperatures; None for a tenth of the data.

    References:
        A Comprehensive Study of Deep Learning Model Fixing Approaches, section on mitigating side effects (US). Guo,
        Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Temperature-scaling alignment (US)": {}}

    combine: str = "mean"
    validation: Pair | None = None

    def __post_init__(self) -> None:
        if not is_one_of(self.combine, ("mean", "confident")):
            raise SpecificationError(
                f"method TemperatureAlignment: combine={self.combine!r}; choose mean or confident."
            )

    def parts(self, task: Task, outcome: Outcome) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        """Both temperatures."""
        x, y = material_of(task, validation=self.validation, failing=False).validation
        networks = (np.zeros(task.engine.n), outcome.candidate)
        found = [temperature_of(network_of(task.engine, one)(x), y) for one in networks]
        return "temperature_vote", {"temperatures": found, "combine": self.combine}, {}


def temperature_of(outputs: Tensor, labels: Tensor) -> float:
    """The temperature above 0 for which the cross-entropy of labels ``(N,)`` is least.

    Args:
        outputs: Logits ``(N, k)``.
        labels: True classes.

    Returns:
        From 1/100 to 100: where all labels are right, the best one would be 0.
    """
    from scipy.optimize import minimize_scalar

    logits, own = outputs.detach().double(), labels.to(outputs.device)

    def loss(power: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / 10**power, own))

    return float(10 ** minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x)
