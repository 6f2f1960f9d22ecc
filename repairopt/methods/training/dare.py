"""DARE: hidden neurons learn what they did in the earlier epoch that was most confident of the right label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.localize import Slice, Slicer, by_unit
from repairopt.methods.material import Material
from repairopt.methods.task import Task

from .reference_tuning import References, ReferenceTuning
from .trainee import Place, Trainee


@dataclass(frozen=True, kw_only=True)
class DARE(ReferenceTuning):
    """DARE: post-training for robustness on references from the history of training.

    For each row of the training data the later half of the history is searched for the network that gives the right
    label with the greatest probability, greater than that of the network as it is (0 where that is wrong). The outputs
    of the last hidden layer there are the reference, and the layers up to that one are tuned to give them: mean squared
    difference over the key neurons of the row's class, and only key synapses of that class move (:class:`Slicer`).
    Layers behind keep their weights.

    For each learning rate the best epoch is chosen by that loss on a fifth of the references, among those that lose at
    most ``tolerance`` of the accuracy on the validation rows; then the best rate.

    Attributes:
        epochs: Passes over the references.
        batch: Rows of a step, all of one class.
        history: State dicts of earlier epochs of the training, oldest first; the network as it is need not be there.
        keep: Share of the synapses of each layer that are key.
        slicing: Whether only key synapses move and only key neurons count.
        loss: ``"reference"``, or ``"label"`` for the cross-entropy of the labels of the same rows.
        layer: ``"penultimate"``, or ``"last"`` for the probability of the label in place of hidden outputs.
        search: ``"best"``, or ``"random"`` for as many random rows, each with a random network of the history.
        rates: Learning rates of Adam that are tried.
        tolerance: Share of the accuracy that may be lost.

    References:
        A Post-Training Framework for Improving the Performance of Deep Learning Models via Model Transformation, TOSEM
        2024: keep 95 %, 20 epochs, 128 rows, rates of 1e-3 to 1e-6, 10 % of the accuracy, and the four ablations.
        It names no optimizer. Its references come from half of the training set that is kept apart; here they come
        from the training data, and validation rows only choose. Slices rank by layer and over samples.

    Example:
        >>> DARE(history=()).systems["DARE_-s"]
        {'slicing': False}
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "DARE": {},
        "DARE_-s": {"slicing": False},
        "DARE_-sl": {"slicing": False, "loss": "label"},
        "DARE_last": {"layer": "last"},
        "DARE_rand": {"search": "random"},
    }

    history: Sequence[Mapping[str, Tensor]] = field(default=(), repr=False)
    rates: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6)
    search: str = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chosen("search", ("best", "random"))

    def references(self, task: Task, net: Trainee, rows: Material, node: Place, axis: int) -> References:
        """Algorithm 1 of the paper."""
        if not len(self.history):
            raise self.wrong("needs earlier epochs of the training; pass history=[state dicts, oldest first].")
        inputs, labels = rows.training
        right = torch.arange(len(labels), device=labels.device)
        now = torch.softmax(net.predict(inputs), dim=1)
        most = torch.where(now.argmax(1) == labels, now[right, labels], 0.0)
        first, every = most.clone(), []
        best = torch.full_like(labels, -1)
        for number, state in enumerate(self.history[len(self.history) // 2 :]):
            task.judge.check_time()
            outputs, (value,) = net.activations(inputs, [node], net.at(state))
            chances = torch.softmax(outputs, dim=1)
            every.append((by_unit(value, axis), chances[right, labels]))
            better = (chances.argmax(1) == labels) & (chances[right, labels] > most)
            most, best = torch.where(better, chances[right, labels], most), torch.where(better, number, best)
        used = (most > first).nonzero().flatten()
        if self.search == "random":
            draw = torch.Generator().manual_seed(task.seed)
            used = torch.randperm(len(labels), generator=draw)[: len(used)].to(labels.device)
            best[used] = torch.randint(len(every), (len(used),), generator=draw).to(labels)
        if not len(used):
            raise self.wrong("no earlier epoch is more confident of a right label than the network as it is.")
        values, chances = (torch.stack(parts)[best[used], used] for parts in zip(*every, strict=True))
        return References(inputs[used], labels[used], values, chances, labels[used])

    def slices(self, slicer: Slicer, rows: Material) -> list[Slice]:
        """One for each class: its rows, its output."""
        inputs, labels = rows.training
        found = []
        for label in range(int(labels.max()) + 1):
            own = inputs[labels == label]
            found.append(slicer.slice(own if len(own) else inputs, [label]))
        return found
