"""What confidence costs beyond a repair that aims at the typed bounds: accuracy, and every rate of real rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.methods.task import Task
from repairopt.program import Array
from repairopt.specify import Divided, GroupRates, labelled_data, of_real_rows

from .label_chances import chances_of_labels
from .limits import Limit

FAIR, MOST_FAIR = 0.001, 0.002  # shares of accuracy, or of a rate, that it may cost to show a bound rather than to meet
# it probably: with the buffers that are tried first, and with those that validation asks for
UNSURE = 0.1  # error that chances of labels have in common
MOST_COLUMNS = 200  # of a table, on which labels are looked at
MOST_COST = 0.02  # share of accuracy, or of a rate, that confidence may cost in all


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network answers on the labelled rows.

    Attributes:
        accuracy: By count; NaN where there are no labelled rows.
        rates: Of each class there, and of each group.
        labels: Of each labelled set, ``(N,)``.
    """

    accuracy: float
    rates: Array
    labels: tuple[Array, ...]

    def cost(self, reference: Answers) -> tuple[float, float]:
        """By how much accuracy is lower than a reference's, and the most by which a rate differs."""
        lost = 0.0 if np.isnan(self.accuracy) else reference.accuracy - self.accuracy
        return lost, float(np.abs(self.rates - reference.rates).max(initial=0.0))


class PriceOfConfidence:
    """Compares what networks answer on real rows; drawn inputs, which stand for nobody, are left out.

    Args:
        task: The repair.
        limits: Its bounds.
        most: Largest cost, as a share: of accuracy, and of a rate beyond the buffers, which move rates themselves. None
            for 2 points, of which showing bounds may cost a tenth of one beyond a repair that meets them probably.
    """

    def __init__(self, task: Task, limits: Sequence[Limit], most: float | None) -> None:
        self.task, self.most = task, MOST_COST if most is None else most
        self.labelled: list[tuple[Tensor, Tensor]] = list(task.data) or labelled_data([*task.constraints, task.goal])
        gaps = [limit.property for limit in limits if isinstance(limit.property, GroupRates)]
        self.gaps = [gap for gap in gaps if of_real_rows(gap)]

    def answers(self, delta: Array) -> Answers:
        """What the network with a weight change answers."""
        predict, right, total, rates = self.task.engine.predict(delta), 0, 0, []
        answered = []
        with torch.no_grad():
            for inputs, labels in self.labelled:
                outputs = predict(inputs)
                found = outputs.argmax(-1).cpu()
                right, total = right + int((found == labels.cpu()).sum()), total + len(labels)
                answered.append(found.numpy())
                rates.append(torch.bincount(found, minlength=outputs.shape[-1]).double() / max(1, len(found)))
            rates += [gap.compared(predict)[0].double().cpu().flatten() for gap in self.gaps]
        every: Array = torch.cat(rates).numpy() if rates else np.zeros(0)
        return Answers(right / total if total else float("nan"), every, tuple(answered))

    def expected_cost(self, found: Answers, reference: Answers) -> float:
        """By how much accuracy would be lower than a reference's, were labels drawn anew for the same rows.

        The more answers differ, the more the labels that were drawn count beside their chances.

        Measured on Adult, 16 repairs of a gap on 2,600 rows, whose two networks differ in 19 to 40 answers: what was
        lost on 35,000 other rows, 0.21 points on average, is told with a root mean square error of 0.12 points, by a
        count of labels with one of 0.24.
        """
        lost, differing, rows = 0.0, 0, max(1, sum(map(len, found.labels)))
        for chances, now, before in zip(self._chances, found.labels, reference.labels, strict=True):
            each = np.arange(len(chances))
            lost += float((chances[each, before] - chances[each, now]).sum())
            differing += int((now != before).sum())
        counted = UNSURE**2 * differing / (UNSURE**2 * differing + 1)  # inverse variances of both: a count's is 1 a row
        return (1 - counted) * lost / rows + counted * found.cost(reference)[0]

    @cached_property
    def _chances(self) -> list[Array]:
        """How likely each label is at the rows of each labelled set, ``(N, k)``, by their groups and columns."""
        predict, found = self.task.engine.predict(), []
        for inputs, labels in self.labelled:
            with torch.no_grad():
                logits = torch.log_softmax(predict(inputs).double(), -1).cpu().numpy()
            found.append(chances_of_labels(logits, labels.cpu().numpy(), self._features(inputs)))
        return found

    def _features(self, inputs: Tensor) -> Array:
        """What labels may depend on beyond the network's outputs, ``(N, f)``: groups, and the columns of a table."""
        parts: list[Array] = [np.zeros((len(inputs), 0))]
        for gap in self.gaps:
            known: Any = gap.samples if isinstance(gap, Divided) else None
            if known is not None and known.inputs.shape == inputs.shape and torch.equal(known.inputs, inputs):
                parts.append(np.eye(known.q)[known.member.cpu().numpy()])
        if inputs.ndim == 2 and inputs.is_floating_point() and inputs.shape[1] <= MOST_COLUMNS:
            columns = inputs.double().cpu().numpy()
            spread = columns.std(0)
            parts.append((columns - columns.mean(0))[:, spread > 0] / spread[spread > 0])
        return np.hstack(parts)

    def affordable(self, found: Answers, reference: Answers, buffers: dict[str, float], share: float = 1.0) -> bool:
        """Whether a network costs no more than is allowed beyond a reference, or a share of it."""
        lost, moved = found.cost(reference)
        return lost <= share * self.most and moved <= share * self.most + max(buffers.values(), default=0.0)

    def is_fair(self, found: Answers, reference: Answers, buffers: dict[str, float], most: float = FAIR) -> bool:
        """Whether a network that shows bounds costs little more than one that meets them probably."""
        lost, moved = self.expected_cost(found, reference), found.cost(reference)[1]
        return lost <= most if self.labelled else moved <= most + max(buffers.values(), default=0.0)

    def text_of_unfair(self, found: Answers, reference: Answers, share: float, confidence: float) -> str:
        """What it would cost to show the bounds, for the report."""
        lost, moved = max(0.0, self.expected_cost(found, reference)), found.cost(reference)[1]
        what = f"{100 * lost:.1f} points of accuracy" if self.labelled else f"up to {100 * moved:.1f} points of a rate"
        return (
            f"The repair aims to meet the bounds with {100 * share:.4g} % confidence. To show them with "
            f"{100 * confidence:.4g} % would cost about {what} more; SQP(most_cost={MOST_COST}) pays up to "
            f"{100 * MOST_COST:.4g} points."
        )

    def text(self, dear: Answers, reference: Answers, confidence: float, buffers: dict[str, float]) -> str:
        """What more confidence would cost, for the report."""
        lost, moved = dear.cost(reference)
        needed = max(lost, moved - max(buffers.values(), default=0.0)) + 1e-3
        points = "" if np.isnan(dear.accuracy) else f"{100 * lost:.1f} points of accuracy and "
        return (
            f"To show all bounds with {100 * confidence:.4g} % confidence would cost {points}up to {100 * moved:.1f} "
            f"points of a rate beyond the repair that meets them on average. That is more than the "
            f"{100 * self.most:.4g} points that confidence may cost, so less was taken off the bounds; "
            f"SQP(most_cost={needed:.3f}) pays it."
        )
