"""The peers: Adam with a fairness penalty on the same weights, fine-tuning without one, CARE's particle swarm."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from itertools import combinations, product

import torch
from protocol import FAVORABLE, Half, Task, measure
from real_networks import FeedForward
from torch import Tensor, nn

from repairopt.localize import localize

TEMPERATURE = 0.5  # of the softmax in the penalty
BATCH = 1024  # rows, and inputs of each group, in a step


@dataclass(frozen=True)
class Sweep:
    """Runs of Adam to choose from.

    Attributes:
        penalties: Prices of the squared soft gap.
        rates: Learning rates.
        steps: Steps of each run.
        whole: All weights of the network in place of the located ones.
    """

    penalties: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    rates: tuple[float, ...] = (0.003, 0.01)
    steps: int = 300
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Tuned:
    """The chosen run.

    Attributes:
        network: The tuned copy.
        seconds_run: CPU seconds of one run, mean.
        seconds_sweep: CPU seconds of all runs and the choice.
        choice: Penalty and rate.
        runs: Penalty, rate and network of every run.
    """

    network: nn.Module
    seconds_run: float
    seconds_sweep: float
    choice: tuple[float, float]
    runs: list[tuple[float, float, nn.Module]] = field(default_factory=list)


def tune(task: Task, indices: tuple[Tensor, Tensor], sweep: Sweep, seed: int) -> Tuned:
    """Adam on three quarters of the repair half; the run is chosen on the last quarter.

    The choice: of the runs at or below the target the most accurate, else the one with the smallest gap. Without a
    penalty in the sweep, the most accurate. Where the recall of the rare class is guarded, what it loses counts as gap.

    Args:
        task: What to repair.
        indices: Rows and drawn inputs of the repair half.
        sweep: The runs.
        seed: Of the division into training and validation part.

    Returns:
        The chosen network and the time that it took.
    """
    started = time.process_time()
    draw = torch.Generator().manual_seed(1000 + seed)
    mixed = [part[torch.randperm(len(part), generator=draw)] for part in indices]
    train = task.part(*(part[: 3 * len(part) // 4] for part in mixed))
    validation = task.part(*(part[3 * len(part) // 4 :] for part in mixed))
    runs, seconds = [], []
    for penalty, rate in product(sweep.penalties, sweep.rates):
        begun = time.process_time()
        runs.append((penalty, rate, _adam(task, train, penalty, rate, sweep)))
        seconds.append(time.process_time() - begun)

    recall = measure(task.network, validation)["recall of the rare class"] if task.guard else 0.0

    def rank(run: tuple[float, float, nn.Module]) -> tuple[float, float]:
        found = measure(run[2], validation)
        lack = max(0.0, found["gap"] - task.target) if max(sweep.penalties) > 0 else 0.0
        return (lack + max(0.0, recall - found["recall of the rare class"]), -found["accuracy"])

    best = min(runs, key=rank)
    return Tuned(best[2], sum(seconds) / len(seconds), time.process_time() - started, best[:2], runs)


def _adam(task: Task, train: Half, penalty: float, rate: float, sweep: Sweep) -> nn.Module:
    network = copy.deepcopy(task.network)
    assert isinstance(network, FeedForward)
    member = train.goal.samples.member
    groups = [train.goal.samples.inputs[member == a] for a in range(train.goal.samples.q)]
    parts = [train.rows, *groups]
    mask: Tensor | None = None
    if sweep.whole:
        chosen, run = list(network.parameters()), network
    else:
        position = localize(network, task.weights).indices["fc4.weight"]
        mask = torch.zeros_like(network.fc4.weight).flatten()
        mask[position] = 1.0
        mask = mask.view_as(network.fc4.weight)
        chosen = [network.fc4.weight]
        with torch.no_grad():  # layers before the changed one are run once
            parts = [before_fc4(network, part) for part in parts]
        run = nn.Sequential(network.fc4, nn.ReLU(), network.fc5, nn.ReLU(), network.fc6)
    optimizer = torch.optim.Adam(chosen, lr=rate)
    draw = torch.Generator().manual_seed(0)
    for _ in range(sweep.steps):
        picks = [torch.randint(len(part), (BATCH,), generator=draw) for part in parts]
        outputs = run(torch.cat([part[pick] for part, pick in zip(parts, picks, strict=True)])).split(BATCH)
        loss = nn.functional.cross_entropy(outputs[0], train.labels[picks[0]])
        if penalty:
            means = [torch.softmax(output / TEMPERATURE, dim=1)[:, FAVORABLE].mean() for output in outputs[1:]]
            pairs = list(combinations(means, 2))
            loss = loss + penalty * sum((a - b) ** 2 for a, b in pairs) / len(pairs)
        optimizer.zero_grad()
        loss.backward()
        if mask is not None:
            network.fc4.weight.grad *= mask
        optimizer.step()
    return network


def before_fc4(network: FeedForward, inputs: Tensor) -> Tensor:
    """Activations of the third layer, whose outgoing weights the paper changes."""
    return torch.relu(network.fc3(torch.relu(network.fc2(torch.relu(network.fc1(inputs))))))


def care_swarm(
    task: Task, half: Half, seed: int, *, iterations: int = 100, particles: int = 20, alpha: float = 0.3
) -> nn.Module:
    """CARE's repair: a particle swarm over one multiplier ``1 + w`` for each located neuron.

    Cost: ``(1 - alpha)`` times the share of rows whose label changes with the protected value, plus ``alpha`` times the
    error rate. Constants as published: inertia 0.8, both pulls 0.41, stop after 10 iterations that gain below 0.001.

    Args:
        task: What to repair.
        half: The repair half.
        seed: Of the swarm.
        iterations: At most so many.
        particles: Size of the swarm.
        alpha: Price of errors.

    Returns:
        A repaired copy.
    """
    network = copy.deepcopy(task.network)
    assert isinstance(network, FeedForward)
    draw = torch.Generator().manual_seed(seed)
    units = torch.tensor(list(task.weights.units))
    with torch.no_grad():
        inputs = torch.cat([half.rows, half.paired.flatten(0, 1)])
        hidden = before_fc4(network, inputs)
        base, each = network.fc4(hidden), hidden[:, units, None] * network.fc4.weight.T[units]  # (N, r, 8)
        cut = len(half.rows)

        def cost(w: Tensor) -> float:
            after = torch.relu(base + torch.einsum("nrj,r->nj", each, w))
            label = network.fc6(torch.relu(network.fc5(after))).argmax(1)
            pairs = label[cut:].view(len(task.values), -1)
            unfair = (pairs != pairs[0]).any(0).double().mean()
            wrong = (label[:cut] != half.labels).double().mean()
            return float((1 - alpha) * unfair + alpha * wrong)

        place, speed = torch.zeros(particles, len(units)), torch.zeros(particles, len(units))
        own, own_cost = place.clone(), torch.tensor([cost(place[0])] * particles)
        best, best_cost, still = place[0].clone(), float(own_cost[0]), 0
        for _ in range(iterations):
            pulls = torch.rand(2, particles, len(units), generator=draw)
            speed = 0.8 * speed + 0.41 * pulls[0] * (own - place) + 0.41 * pulls[1] * (best - place)
            speed = torch.where(speed.abs().amax(1, keepdim=True) == 0, 2 * pulls[0] - 1, speed)  # all start at 0
            place = (place + speed).clamp(-1.0, 1.0)
            costs = torch.tensor([cost(w) for w in place])
            better = costs < own_cost
            own[better], own_cost[better] = place[better], costs[better]
            gain = best_cost - float(own_cost.min())
            if gain > 0:
                best, best_cost = own[own_cost.argmin()].clone(), float(own_cost.min())
            still = 0 if gain >= 1e-3 else still + 1
            if still >= 10:
                break
        network.fc4.weight[:, units] *= 1 + best
    return network


def majority(task: Task) -> nn.Module:
    """The network that always gives the common answer."""
    network = copy.deepcopy(task.network)
    assert isinstance(network, FeedForward)
    with torch.no_grad():
        network.fc6.weight.zero_()
        network.fc6.bias.copy_(torch.nn.functional.one_hot(torch.tensor(1 - FAVORABLE), 2))
    return network
