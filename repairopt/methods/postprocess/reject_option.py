"""RejectOption: rows near the threshold get the favorable label where their group is unprivileged, else the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from repairopt.program import Status
from repairopt.specify import Grouped, measured

from .group_columns import with_offsets
from .group_offsets import GroupOffsets

METRICS = ("statistical parity", "average odds", "equal opportunity")
STEP = 1e-3  # logit by which a row near the threshold is on the side of its group, at least


class RejectOptionModule(nn.Module):
    """A network of two classes with a threshold, and a region around it in which the group decides.

    Attributes:
        network: The original.
        groups: Which group each row is in; its offsets are 1 for unprivileged groups, -1 for privileged ones.
        favorable: The favorable class, 0 or 1.
        threshold: Probability above which a row gets it.
        margin: Of the region on both sides.
    """

    def __init__(
        self, network: nn.Module, groups: GroupOffsets, favorable: int, threshold: float, margin: float
    ) -> None:
        super().__init__()
        if favorable not in (0, 1) or not 0 < threshold < 1 or not 0 <= margin <= 1:
            raise ValueError(f"favorable={favorable!r}, threshold={threshold!r}, margin={margin!r}")
        self.network, self.groups, self.training = network, groups, network.training
        self.favorable, self.threshold, self.margin = favorable, threshold, margin

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, 2)``."""
        group = self.groups.membership(inputs)  # first: the network may write into its inputs
        outputs = self.network(inputs)
        lead = outputs[:, self.favorable] - outputs[:, 1 - self.favorable]
        score = lead - math.log(self.threshold / (1 - self.threshold))
        side = (group.to(score.dtype) @ self.groups.offsets.to(score.dtype))[:, 0]
        near = (torch.sigmoid(lead) - self.threshold).abs() <= self.margin
        decided = torch.where(near & (side != 0), side * (score.abs() + STEP), score)
        zero = torch.zeros_like(decided)
        return torch.stack([decided, zero] if self.favorable == 0 else [zero, decided], 1)

    @classmethod
    def from_parts(
        cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> RejectOptionModule:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`."""
        groups = GroupOffsets.from_parts(nn.Identity(), settings, tensors)
        return cls(network, groups, settings["favorable"], settings["threshold"], settings["margin"])


@dataclass(frozen=True, kw_only=True)
class RejectOption:
    """In a region around a threshold unprivileged rows get the favorable label and privileged ones the other (ROC).

    Thresholds and margins are tried on a grid; of those whose fairness metric lies within the bound the one with the
    largest balanced accuracy on the labelled data is taken, else the one with the smallest metric. For two classes and
    a gap between two groups; the group with the lower favorable rate on the data is unprivileged.

    Attributes:
        metric: ``"statistical parity"``, ``"average odds"`` or ``"equal opportunity"`` difference.
        bound: Largest size of the metric.
        thresholds: How many, from 0.01 to 0.99.
        margins: How many for each threshold, from 0 to its distance from the nearer end.
        column: Input column that tells the group, by position, or several one-hot ones; None to find those of the
            groups that the goal compares.
        values: As for :class:`GroupOffsets`.
        cuts: As there.

    References:
        Kamiran, Karim and Zhang, Decision Theory for Discrimination-Aware Classification, ICDM 2012; constants are
        those of its implementation in AIF360.
    """

    uses: ClassVar[frozenset[str]] = frozenset()
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ROC reject option classification": {}}

    metric: str = "statistical parity"
    bound: float = 0.05
    thresholds: int = 100
    margins: int = 50
    column: int | Sequence[int] | None = None
    values: Sequence[Any] | None = None
    cuts: Sequence[float] | None = None

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("thresholds", "margins"), Expected(low=1, whole=True))
        check_settings(self, {**counts, "bound": Expected(high=1)})
        if not is_one_of(self.metric, METRICS):
            raise SpecificationError(f"method RejectOption: metric={self.metric!r}; choose {', '.join(METRICS)}.")

    def run(self, task: Task) -> Outcome:
        """Try the grid on the labelled data."""
        goal = measured(task.goal)
        favorable = goal.favorable if isinstance(goal, Grouped) else None
        if favorable not in (0, 1):
            raise SpecificationError(
                f"method RejectOption: the goal '{task.goal.name}' has no favorable one of two classes; expected a gap "
                f"between groups."
            )
        x, y = material_of(task, failing=False).training
        module, read = with_offsets(task, self)
        outputs = task.engine.predict()(x).double().cpu()
        member = module.membership(x.to(module.offsets)).cpu()
        if outputs.shape[1] != 2 or member.shape[1] != 2:
            raise SpecificationError(
                f"method RejectOption: {outputs.shape[1]} classes and {member.shape[1]} groups; expected 2 of each."
            )
        known = member.sum(1) > 0
        chance = torch.softmax(outputs, 1)[known, favorable].numpy()
        group, wanted = member[known].argmax(1).numpy(), (y.cpu()[known] == favorable).numpy()
        rates = [float((chance[group == a] > 0.5).mean()) for a in (0, 1)]
        unprivileged = int(rates[1] < rates[0])
        threshold, margin, met = self._best(task, chance, group == unprivileged, wanted)
        if not met:
            task.log.note(f"RejectOption: no threshold and margin bring the {self.metric} within {self.bound:g}.")
        with torch.no_grad():
            module.offsets.zero_()
            module.offsets[:, 0] = torch.tensor([1.0 if a == unprivileged else -1.0 for a in (0, 1)])
        settings, tensors = module.parts()
        settings |= {**read, "favorable": int(favorable), "threshold": threshold, "margin": margin}
        candidate = Wrapped("reject_option", settings, {name: one.clone() for name, one in tensors.items()})
        task.log.last = (0, 2, None)
        task.record(f"threshold {threshold:.3g}, margin {margin:.3g}", task.judge.keep(candidate))
        return Outcome(candidate, Status.FEASIBLE, on_target=True, indivisible=True)

    def _best(self, task: Task, chance: Any, poor: Any, wanted: Any) -> tuple[float, float, bool]:
        """Threshold, margin, and whether the metric is within the bound."""
        best: tuple[float, float] = (-np.inf, -np.inf)
        found = (0.5, 0.0, False)
        for threshold in np.linspace(0.01, 0.99, self.thresholds):
            task.judge.check_time()
            margins = np.linspace(0.0, min(threshold, 1 - threshold), self.margins)
            near = np.abs(chance - threshold) <= margins[:, None]
            given = np.where(near, poor, chance > threshold)
            size = np.abs(self._difference(given, poor, wanted))
            balanced = (given[:, wanted].mean(1) + (~given[:, ~wanted]).mean(1)) / 2
            for k in range(len(margins)):
                met = bool(size[k] <= self.bound)
                rank = (1.0, float(balanced[k])) if met else (0.0, -float(size[k]))
                if rank > best:
                    best, found = rank, (float(threshold), float(margins[k]), met)
        return found

    def _difference(self, given: Any, poor: Any, wanted: Any) -> Any:
        """The metric, unprivileged minus privileged, for each row of decisions ``(M, N)``."""

        def gap(rows: Any) -> Any:
            return given[:, rows & poor].mean(1) - given[:, rows & ~poor].mean(1)

        if self.metric == "statistical parity":
            return gap(np.ones_like(wanted))
        return gap(wanted) if self.metric == "equal opportunity" else (gap(wanted) + gap(~wanted)) / 2
