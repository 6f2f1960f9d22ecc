"""Some of the weights of a repair, searched among by many candidates at once; and the rows that they are judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.localize import CARE, Neuron, Question, care_neurons
from repairopt.methods.material import Material
from repairopt.methods.task import Task
from repairopt.network import Array, Engine, Predict
from repairopt.specify import Divided, SampleShare, labels_of, measured

Pair = tuple[Tensor, Tensor]
LEAST = 100  # individuals, however many values a protected feature has


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the weights that may change.

    Attributes:
        task: The repair.
        engine: Runs the network under changes of these ``m`` weights; what comes before them is run once.
        places: Where they are among the ``n`` weights of the task, ``(m,)``.
    """

    task: Task
    engine: Engine
    places: npt.NDArray[np.int64]

    @classmethod
    def of(cls, task: Task, indices: Mapping[str, Tensor], why: str) -> Part:
        """Those of some weights that may change.

        Args:
            task: The repair.
            indices: Flat positions by parameter.
            why: Who chose them, for the message.

        Raises:
            SpecificationError: None of them may change.
        """
        kept, places, start = {}, [], 0
        for name, own in task.engine.indices.items():
            own = own.cpu()
            chosen = indices[name].cpu() if name in indices else own[:0]
            inside = torch.isin(own, chosen).nonzero().flatten()
            if len(inside):
                kept[name] = own[inside]
                places.append(start + inside.numpy())
            start += len(own)
        if not places:
            raise SpecificationError(
                f"{why}: none of the weights that it chooses may change. Pass weights='all', or weights that hold some."
            )
        old = task.engine
        engine = Engine(old.model, kept, forward_fn=old.forward_fn, memory_limit=old.memory_limit)
        return cls(task, engine, np.concatenate(places))

    @property
    def initial(self) -> Array:
        """The weights as they are, ``(m,)``."""
        return self.engine.initial.double().cpu().numpy()

    def widen(self, change: Array) -> Array:
        """A change ``(m,)`` of these weights as one of all that may change, ``(n,)``."""
        found = np.zeros(self.task.engine.n)
        found[self.places] = change
        return found

    def rate(self, function: Any, changes: Array) -> Array:
        """A scalar ``function(predict)`` at changes ``(K, m)``: ``(K,)``, infinite where it is NaN."""
        self.task.judge.check_time()
        found = self.engine.values(function, torch.as_tensor(changes)).cpu().numpy()
        return np.where(np.isnan(found), np.inf, found)

    def box(self) -> tuple[Array, Array]:
        """The user's limits on the change of these weights, where they are bounds."""
        lower, upper = self.task.box(np.zeros(self.task.engine.n), 1e9)
        return lower[self.places], upper[self.places]


@dataclass(frozen=True, eq=False)
class Multipliers:
    """One multiplier ``1 + w`` for the value of each of some neurons, written as a change of its outgoing weights.

    Attributes:
        part: The outgoing weights.
        matrix: Change of each weight for each unit of ``w``, ``(r, m)``.
    """

    part: Part
    matrix: Array

    @classmethod
    def of(cls, task: Task, question: Question, neurons: Sequence[Neuron], why: str) -> Multipliers:
        """Multipliers of neurons; those that no weight that may change reads are left out."""
        around = [question.around("outgoing", layer, unit) for layer, unit, _ in neurons]
        union: dict[str, Tensor] = {}
        for one in around:
            for name, positions in one.items():
                union[name] = torch.cat([union[name], positions]).unique() if name in union else positions
        part = Part.of(task, union, why)
        rows = []
        for one in around:
            inside = [
                torch.isin(own.cpu(), one[name].cpu()) if name in one else torch.zeros(len(own), dtype=torch.bool)
                for name, own in part.engine.indices.items()
            ]
            rows.append(torch.cat(inside).numpy() * part.initial)
        return cls(part, np.stack([row for row in rows if row.any()] or [np.zeros(len(part.places))]))

    def rate(self, function: Any, places: Array) -> Array:
        """A scalar function of the network at multipliers ``(K, r)``: ``(K,)``."""
        return self.part.rate(function, places @ self.matrix)

    def change(self, place: Array) -> Array:
        """The change ``(n,)`` at multipliers ``(r,)``."""
        return self.part.widen(place @ self.matrix)


def blamed_by_care(task: Task, how: CARE, columns: Sequence[int] = ()) -> tuple[Question, list[Neuron]]:
    """The neurons that CARE's causal attribution blames for the goal, best first."""
    question = question_of(task)
    individuals = Individuals.of(measured(task.goal), columns, how.samples, task.seed) if columns else None
    goal: Any = task.goal if individuals is None else Undesirable(individuals)
    return question, care_neurons(question.graph, goal, how, task.seed)


def question_of(task: Task, material: Material | None = None) -> Question:
    """The question to localizers, with the rows of the material."""
    if material is None:
        return Question.about(task.engine, task.goal, task.constraints, task.seed)
    return Question.of(task.engine, material.failing, material.passing, goal=task.goal, seed=task.seed)


@dataclass(frozen=True, eq=False)
class Individuals:
    """Inputs that differ in the protected feature alone: ``(q N, ...)``, those of one value after those of another."""

    inputs: Tensor
    q: int

    def undesired(self, predict: Predict) -> Tensor:
        """Mean over individuals of the largest change of a probability with the protected feature."""
        chance = torch.softmax(predict(self.inputs), 1).unflatten(0, (self.q, -1))
        return torch.stack([(chance - chance.roll(k, 0)).abs() for k in range(1, self.q)]).amax((0, 1, 3)).mean()

    def flips(self, predict: Predict) -> Tensor:
        """Share of individuals whose label changes with the protected feature, in float64."""
        labels = predict(self.inputs).argmax(1).view(self.q, -1)
        return (labels != labels[:1]).any(0).double().mean()

    @classmethod
    def of(cls, goal: Any, columns: Sequence[int], most: int | None = None, seed: int = 0) -> Individuals | None:
        """Those of a goal between groups: its own where they are paired, else its rows with each protected value.

        Args:
            goal: What must become true.
            columns: Protected columns of the inputs; empty where the goal's inputs are paired.
            most: At most so many individuals, drawn by the seed, for two values; fewer for more values.
            seed: For that.
        """
        if not isinstance(goal, Divided) or not (goal.samples.paired or columns):
            return None
        samples = goal.samples
        if columns:
            own, chosen = samples.inputs, list(columns)
            values = own[:, chosen].unique(dim=0)
            made = own.expand(len(values), *own.shape).clone()
            made[:, :, chosen] = values[:, None].to(own)
        else:
            made = samples.inputs.unflatten(0, (samples.q, -1))
        most = made.shape[1] if most is None else max(LEAST, 2 * most // max(2, len(made)))
        if made.shape[1] > most:
            rows = torch.randperm(made.shape[1], generator=torch.Generator().manual_seed(seed))[:most]
            made = made[:, rows.sort().values.to(made.device)]
        return cls(made.flatten(0, 1), len(made)) if len(made) > 1 else None


@dataclass(frozen=True, eq=False)
class Undesirable:
    """A goal as CARE's attribution sees it."""

    individuals: Individuals

    def undesired(self, predict: Predict) -> Tensor:
        """The behavior that neurons are blamed for."""
        return self.individuals.undesired(predict)

    def value(self, predict: Predict) -> Tensor:
        """The same by count."""
        return self.individuals.flips(predict)


def misbehavior(task: Task, failing: Pair | None, columns: Sequence[int] = (), most: int | None = None) -> Any:
    """What CARE lowers, a function of ``predict`` to a share.

    Of a gap between groups the share of individuals whose label changes with the protected feature, where that is
    known; of an error rate that of the failing rows; of any other goal its value. At most
    ``most`` individuals count.
    """
    goal: Any = measured(task.goal)
    individuals = Individuals.of(goal, columns, most, task.seed)
    if individuals is not None:
        return individuals.flips
    of_errors = isinstance(goal, SampleShare) and goal.counted is None and labels_of(goal) is not None
    if of_errors and failing is not None and len(failing[0]):
        return lambda predict: wrong_share(predict, failing)
    return lambda predict: torch.as_tensor(task.goal.value(predict)).double()


def wrong_share(predict: Predict, rows: Pair) -> Tensor:
    """Share of rows that are labelled wrong, in float64."""
    outputs = predict(rows[0])
    return (outputs.argmax(1) != rows[1].to(outputs.device)).double().mean()


def losses(predict: Predict, rows: Pair) -> tuple[Tensor, Tensor]:
    """Which rows are right, ``(N,)`` of 0 and 1, and their cross-entropies ``(N,)``, both in float64."""
    outputs = predict(rows[0])
    labels = rows[1].to(outputs.device)
    loss = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
    return (outputs.argmax(1) == labels).double(), loss.double()
