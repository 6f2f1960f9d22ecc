"""AdversarialTraining: tuning on points that an attack makes, with their true labels, mixed with clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .attacks import RADIUS, attacked, find_attack
from .fit import Pair, Training, by_error, cross_entropy, fit_weights, joined
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Training):
    """Adversarial training: the network is tuned on the points of one attack, with their true labels.

    The attack makes a point near each row of the training data, against the original network, or against the network
    as it is before each epoch (``renewed``). The network learns these and the clean rows. The best epoch on clean and
    attacked validation rows is taken.

    Attributes:
        attack: ``"fgsm"``, ``"bim"``, ``"pgd"``, ``"cw"``, ``"cw_linf"``, ``"jsma"``, or an attack of your own.
        radius: Of the maximum-norm balls of attacks that have one, in units of the inputs.
        clean: Whether clean rows are learned too.
        renewed: Whether the points are made anew before each epoch.

    References:
        The baselines of A Post-Training Framework for Improving the Performance of Deep Learning Models via Model
        Transformation, TOSEM 2024, which attacks the original network once. It gives no strength; 0.1 is usual for
        inputs in [0, 1] of one color. Madry and others, ICLR 2018 (points made anew).

    Example:
        >>> AdversarialTraining(attack="fgsm", radius=0.05).renewed
        False
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "C&W adversarial training": {"attack": "cw"},
        "FGSM adversarial training": {"attack": "fgsm"},
        "JSMA adversarial training": {"attack": "jsma"},
        "PGD adversarial training": {"attack": "pgd"},
        "BIM adversarial training": {"attack": "bim"},
    }

    attack: Any = "pgd"
    radius: float = RADIUS
    clean: bool = True
    renewed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        find_attack(self.attack)

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"radius": Expected()}

    def run(self, task: Task) -> Outcome:
        """Attack, then train."""
        rows = self.material(task, failing=False)
        net = Trainee(task, rows.training[0])
        with task.timed("attack"):
            inputs, labels = self._points(net, rows.training, task.seed)
            test = joined(rows.validation, self._points(net, rows.validation, task.seed))
        both = joined(rows.training, (inputs, labels)) if self.clean else (inputs, labels)

        def begin(epoch: int) -> None:
            if self.renewed and epoch:
                both[0][-len(inputs) :] = self._points(net, rows.training, task.seed + epoch)[0]

        learned = cross_entropy(net, both)
        fit_weights(net, learned, len(both[0]), self, score=by_error(test), begin=begin)
        return net.outcome()

    def _points(self, net: Trainee, rows: Pair, seed: int) -> Pair:
        x, y = net.convert(rows[0]), rows[1]
        return attacked(find_attack(self.attack, self.radius), net.network, x, y, seed), y
