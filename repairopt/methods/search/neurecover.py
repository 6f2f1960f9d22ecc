"""NeuRecover: an earlier state of the training tells which weights may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.localize import NewWeights, Question, affine_layer, forward_impact, gradient_loss
from repairopt.methods.material import material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.network import Array, network_of
from repairopt.program import Status

from .arachne import swarm_fitness
from .evolution import Siblings, swarm_of_values
from .part import Pair, Part, question_of

POSITIVES = 200


@dataclass(frozen=True, kw_only=True)
class NeuRecover:
    """An earlier epoch that had failing rows right tells which weights went wrong; a particle swarm searches for them.

    Of rows that the earlier network had right and the present one gets wrong (regressed), and of those the other way
    round (improved), each weight of the linear and convolutional layers has a gradient loss and a forward impact. Those
    are searched that are among the largest in both on regressed rows and in their change since then, but not in both on
    improved rows. How many are taken of a layer follows from its share of the change and from the share of the impact
    that is on regressed rows.

    Attributes:
        history: State dicts of earlier epochs, oldest first.
        past: ``"best"``: the epoch that had most of the failing rows right; ``"previous"``: the last one.
        rate: Share of the weights of a layer that are taken at most.
        alpha: Weight of passing rows in the fitness.
        particles: Size of the swarm.
        iterations: At most so many moves.
        positives: At most so many passing rows.

    References:
        Tokui et al., NeuRecover: Regression-Controlled Repair of Deep Neural Networks with Training History, SANER
        2022, and its toolkit eAI-Repair. The swarm is that of Arachne, version 1. The sources at hand give no ``rate``.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"NeuRecover (NR)": {}}

    history: Sequence[Mapping[str, Tensor]] = ()
    past: str = "best"
    rate: float = 0.1
    alpha: float = 1.0
    particles: int = 100
    iterations: int = 100
    positives: int = POSITIVES

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("iterations", "positives"), Expected(low=1, whole=True))
        numbers = {"rate": Expected(high=1, above=True), "alpha": Expected()}
        check_settings(self, {**counts, **numbers, "particles": Expected(low=2, whole=True)})
        if not is_one_of(self.past, ("best", "previous")):
            raise SpecificationError(f"method NeuRecover: past={self.past!r}; choose best or previous.")

    def run(self, task: Task) -> Outcome:
        """Compare with the earlier network, localize, search."""
        rows = material_of(task)
        question = question_of(task, rows)
        state, right = self._earlier(task, rows.failing)
        if not bool(right.any()):
            raise SpecificationError(
                "method NeuRecover: no state of history= had any of the failing rows right, so it teaches nothing. "
                "Pass states of other epochs."
            )
        regressed = (rows.failing[0][right], rows.failing[1][right])
        wrong_then = _labels(task, state, rows.passing[0]) != rows.passing[1]
        improved = (rows.passing[0][wrong_then], rows.passing[1][wrong_then])
        with task.timed("localize"):
            chosen = self._located(question, state, regressed, improved)
        part = Part.of(task, chosen, "method NeuRecover")
        initial = part.initial
        draw = torch.Generator().manual_seed(task.seed)
        some = torch.randperm(len(rows.passing[0]), generator=draw)[: self.positives].to(rows.passing[0].device)
        intact = (rows.passing[0][some], rows.passing[1][some])

        def cost(predict: Any) -> Tensor:
            kept = self.alpha * swarm_fitness(predict, intact, True) if len(intact[0]) else 0.0
            return -(swarm_fitness(predict, rows.failing, True) + kept)

        def found(step: int, values: Array, fitness: float) -> None:
            task.log.last = (0, len(initial), None)
            judged = task.judge.keep(part.widen(values - initial))
            task.record(f"NeuRecover, move {step}", judged, note=f"fitness {fitness:.4g}")

        best, _ = swarm_of_values(
            Siblings.of(part),
            lambda values: -part.rate(cost, values - initial),
            particles=self.particles,
            iterations=self.iterations,
            seed=task.seed,
            found=found,
        )
        return Outcome(part.widen(best - initial), Status.FEASIBLE, on_target=True, indivisible=True)

    def _earlier(self, task: Task, failing: Pair) -> tuple[Mapping[str, Tensor], Tensor]:
        """The chosen state, and which failing rows it had right."""
        if not self.history:
            raise SpecificationError(
                "method NeuRecover: needs the states of earlier epochs. Pass history=[state_dict, ...], oldest first."
            )
        states = list(self.history) if self.past == "best" else [self.history[-1]]
        rights = [_labels(task, state, failing[0]) == failing[1] for state in states]
        best = max(range(len(states)), key=lambda k: (int(rights[k].sum()), k))
        return states[best], rights[best]

    def _located(
        self, question: Question, state: Mapping[str, Tensor], regressed: Pair, improved: Pair
    ) -> dict[str, Tensor]:
        names = list(dict.fromkeys(layer.name for layer in question.graph.affine))
        layers = [affine_layer(question, name) for name in names]
        weights = [layer.weights[0] for layer in layers]
        moved = [
            (question.graph.parameters[name].detach().cpu() - state[name].detach().cpu()).double().abs()
            for name in weights
        ]
        total = max(float(sum(one.sum() for one in moved)), 1e-300)
        found = {}
        for layer, name, difference in zip(layers, weights, moved, strict=True):
            scores = [
                (gradient_loss(question, layer, rows), forward_impact(question, layer, rows))
                if len(rows[0])
                else (torch.zeros_like(difference), torch.zeros_like(difference))
                for rows in (regressed, improved)
            ]
            worse, better = (float(pair[1].sum()) for pair in scores)
            share = worse / max(worse + better, 1e-300) * float(difference.sum()) / total
            count = round(difference.numel() * share * self.rate)
            if not count:
                continue
            kept = _top(scores[0][0], count) & _top(scores[0][1], count) & _top(difference, count)
            if len(improved[0]):
                kept &= ~(_top(scores[1][0], count) & _top(scores[1][1], count))
            if len(places := kept.nonzero().flatten()):
                found[name] = places
        if not found:
            raise SpecificationError(
                f"method NeuRecover: no weight is among the largest in gradient, impact and change together at "
                f"rate={self.rate:g}. Pass a larger rate=, or other states."
            )
        return found


def _labels(task: Task, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    return network_of(task.engine, NewWeights(state))(inputs).argmax(1)


def _top(scores: Tensor, count: int) -> Tensor:
    """Which of the flat scores are among the ``count`` largest above 0."""
    flat = scores.flatten()
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[torch.as_tensor(np.argsort(-flat.numpy(), kind="stable")[:count].copy())] = True
    return kept & (flat > 0)
