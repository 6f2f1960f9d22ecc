"""Adam as a practitioner would use it, a row of the comparative study that no paper of it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch

from repairopt.methods import Outcome, Task
from repairopt.methods.training.fit import Training, by_error, cross_entropy, fit_weights, joined
from repairopt.methods.training.trainee import Trainee

RATES, COPIES = (1e-3, 3e-4, 3e-3), (1, 5)  # likeliest first: a run may be stopped early


@dataclass(frozen=True, kw_only=True)
class TunedAdam(Training):
    """Adam on all layers, on the training rows and the failing rows, tuned on the validation rows.

    Learning rate, how often the failing rows occur beside the training rows, and epoch are those with the fewest errors
    on the validation rows, of equally many with the least cross-entropy. A run ends after ``patience`` epochs that do
    not better it; where the time ends first, the best network so far counts.

    Attributes:
        epochs: Passes over the rows in each run, at most.
        patience: Epochs without a better score after which a run ends.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tuned Adam": {}}

    epochs: int = 8
    patience: int = 2

    def run(self, task: Task) -> Outcome:
        """Train once for each choice; the best epoch of all runs stays."""
        rows = self.material(task)
        net = Trainee(task, rows.training[0])
        score = by_error(rows.validation)
        best: tuple[tuple[float, ...], dict[str, torch.Tensor]] = score(net), net.state()

        def told(trained: Trainee) -> tuple[float, ...]:
            nonlocal best
            now = score(trained)
            if now < best[0]:
                best = now, trained.state()
                trained.record(f"rate {rate:g}, failing rows {copies} times")
            return now

        for rate, copies in product(RATES, COPIES):
            net.reset()
            both = joined(rows.training, *[rows.failing] * copies)
            optimizer = torch.optim.Adam(list(net.own.values()), lr=rate)
            ends: Any = {"score": told, "patience": self.patience, "told": False}
            fit_weights(net, cross_entropy(net, both), len(both[0]), self, optimizer=optimizer, **ends)
        net.load(best[1])
        return net.outcome()
