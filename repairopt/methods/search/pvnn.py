"""PVNN: a Markov chain estimates unfairness with a guarantee; sensitive neurons are scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.localize import Question, best_neurons
from repairopt.methods.material import material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Predict

from .care import swarm_of_multipliers
from .markov import Chain, Traces, learn_chain, traces_of
from .part import Multipliers, question_of, wrong_share

ERRORS = 0.1  # price of errors in the swarm


@dataclass(frozen=True, kw_only=True)
class PVNN:
    """A Markov chain from protected values to labels is learned until it is accurate; a swarm scales sensitive neurons.

    Inputs are drawn uniformly in the ranges of the features, 50 at a time, until the estimated transition probabilities
    are within ``error / 2`` of the true ones with confidence ``1 - risk``. The network is unfair where the probability
    of the favorable label differs by more than ``criterion`` between protected values. The sensitivity of a neuron,
    whose values form two clusters, is by how much the probability of its clusters differs between protected values
    times how probable the label is after them. The most sensitive neurons get multipliers from CARE's swarm, whose cost
    is the difference of probabilities plus a tenth of the error rate.

    Attributes:
        protected: Columns of the inputs that tell the group; empty for those in which the groups of the goal differ.
        criterion: Difference above which the network is called unfair, in the report.
        error: Twice the error of a transition probability.
        risk: Probability that the estimate is worse.
        neurons: At most so many.
        particles: Size of the swarm.
        iterations: At most so many moves.
        searched: At most so many traces, the first ones, in the cost of the swarm.
        most: Traces at which the estimate ends in any case, which the report says.

    References:
        Sun, Sun, Dai and Zhang, Probabilistic Verification of Neural Networks Against Group Fairness, FM 2021; the stop
        rule is of Chen, Wang et al. for learned chains. Constants are those of its implementation in SOCRATES;
        ``error`` and ``risk``, which the sources at hand do not give, are a choice. The swarm uses the traces of the
        estimate. Columns in which all given inputs are whole numbers are rounded.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"PVNN": {}}

    protected: tuple[int, ...] = ()
    criterion: float = 0.1
    error: float = 0.05
    risk: float = 0.05
    neurons: int = 13
    particles: int = 20
    iterations: int = 100
    searched: int = 10_000
    most: int = 100_000

    def __post_init__(self) -> None:
        between = Expected(high=1, above=True, below=True)
        counts = dict.fromkeys(("neurons", "iterations", "searched", "most"), Expected(low=1, whole=True))
        shares = {"error": between, "risk": between, "criterion": Expected(high=1)}
        check_settings(self, {**counts, **shares, "particles": Expected(low=2, whole=True)})

    def run(self, task: Task) -> Outcome:
        """Estimate, rank the neurons, move the swarm."""
        rows = material_of(task, failing=False)
        traces = traces_of(task.goal, self.protected, task.seed, "method PVNN")
        with task.timed("estimate"):
            chain = self.estimate(task, traces)
        unfair = chain.difference > self.criterion
        task.log.note(
            f"PVNN estimates from {len(chain.inputs)} traces that the favorable label's probability differs by "
            f"{chain.difference:.4f} between protected values: "
            f"{'unfair' if unfair else 'fair'} by the criterion {self.criterion:g}"
            f"{'' if chain.settled else '; the traces end before the stop rule is met'}."
        )
        question = question_of(task)
        with task.timed("localize"):
            scores = sensitivities(question, chain)
        found = best_neurons(scores, self.neurons)
        scaled = Multipliers.of(task, question, found, "method PVNN")

        some = chain.first(self.searched)

        def cost(predict: Predict) -> Tensor:
            return some.difference_of(predict) + ERRORS * wrong_share(predict, rows.training)

        return swarm_of_multipliers(task, scaled, cost, (self.particles, self.iterations), "PVNN")

    def estimate(self, task: Task, traces: Traces) -> Chain:
        """The chain from protected values to labels of the original network."""
        rule = (self.error / 2, self.risk, self.most)
        return learn_chain(task.engine.predict(), traces, rule, task.judge.check_time)


def sensitivities(question: Question, chain: Chain) -> dict[str, Tensor]:
    """For each neuron ``sum over clusters h of P(h) (max_s P(h|s) - min_s P(h|s)) P(favorable | h)``, by layer."""
    found = {}
    values = question.activations(chain.inputs, question.hidden)
    for name, layer in values.items():
        upper = two_clusters(layer.double())  # (N, units)
        total = torch.zeros(layer.shape[1], dtype=torch.float64)
        favorable = chain.favorable_labels.double()[:, None]
        for inside in (upper, 1 - upper):
            given = torch.stack([inside[chain.member == s].mean(0) for s in range(chain.groups)])
            label = (inside * favorable).sum(0) / inside.sum(0).clamp(min=1.0)
            total += (inside.mean(0) * (given.amax(0) - given.amin(0)) * label).cpu()
        found[name] = total
    return found


def two_clusters(values: Tensor, rounds: int = 20) -> Tensor:
    """Membership of the upper of two clusters of each column, by k-means, ``(N, units)`` of 0 and 1."""
    low, high = values.amin(0), values.amax(0)
    for _ in range(rounds):
        upper = (values > (low + high) / 2).double()
        count = upper.sum(0)
        new_high = torch.where(count > 0, (values * upper).sum(0) / count.clamp(min=1), high)
        rest = len(values) - count
        new_low = torch.where(rest > 0, (values * (1 - upper)).sum(0) / rest.clamp(min=1), low)
        if torch.equal(new_low, low) and torch.equal(new_high, high):
            break
        low, high = new_low, new_high
    return (values > (low + high) / 2).double()
