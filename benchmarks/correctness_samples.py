"""Time of the soft repair of a generated last layer against the matrix products that no method can do without."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from benchmark_files import Record
from correctness_data import generated
from torch import Tensor, nn

from repairopt import SQP, ErrorRate, solve_repair

SIZES = (10_000, 100_000, 1_000_000)
QUICK = (500, 2_000)
REPEATS = {10_000: 3}
TYPED = 0.12  # error rate that is asked for; 30 iterations of L-BFGS on the cross-entropy end at 0.11


def measure_samples(*, quick: bool) -> list[Record]:
    """For each number of samples: the repair, torch's L-BFGS on the same loss, one forward and one backward product."""
    records = []
    for count in QUICK if quick else SIZES:
        layer, inputs, labels = generated(count)
        repeats = REPEATS.get(count, 1)
        floor = statistics.median(floor_seconds(layer.weight.detach(), inputs, labels) for _ in range(5))
        for name, run in RUNS.items():
            seconds, tuned = timed(partial(run, layer, inputs, labels), repeats)
            record = {"samples": count, "method": name, "cpu seconds": seconds, "floor": floor}
            record |= {"accuracy before": accuracy(layer, inputs, labels), "accuracy": accuracy(tuned, inputs, labels)}
            records.append(record | {"loss": loss_of(tuned, inputs, labels)})
        print(f"{time.strftime('%H:%M:%S')} {count} samples done", file=sys.stderr, flush=True)
    return records


def repaired(layer: nn.Linear, inputs: Tensor, labels: Tensor, target: float = TYPED) -> nn.Module:
    """The library, asked for an error rate."""
    goal = ErrorRate(inputs, labels, target=target)
    method = SQP(confidence=None)
    return solve_repair(layer, goal, data=(inputs, labels), weights="last", method=method).model


def fine_tuned(layer: nn.Linear, inputs: Tensor, labels: Tensor, iterations: int = 30) -> nn.Module:
    """L-BFGS on the cross-entropy."""
    tuned = nn.Linear(layer.in_features, layer.out_features, bias=False)
    tuned.load_state_dict(layer.state_dict())
    options = {"history_size": 10, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(tuned.parameters(), max_iter=iterations, **options)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(tuned(inputs), labels)
        value.backward()
        return value

    optimizer.step(loss)
    return tuned


RUNS: dict[str, Callable[[nn.Linear, Tensor, Tensor], nn.Module]] = {
    "SQP, typed error rate": repaired,
    "SQP, all errors": lambda layer, inputs, labels: repaired(layer, inputs, labels, 0.0),
    "L-BFGS": fine_tuned,
}


def floor_seconds(weight: Tensor, inputs: Tensor, labels: Tensor) -> float:
    """One evaluation of loss and gradient: two matrix products and a softmax between."""
    started = time.process_time()
    chance = torch.softmax(inputs @ weight.T, 1)
    chance[torch.arange(len(labels)), labels] -= 1.0
    chance.T @ inputs
    return time.process_time() - started


def timed(run: Callable[[], nn.Module], repeats: int) -> tuple[float, nn.Module]:
    """Median of the CPU seconds, and what came of it."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        found = run()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), found


def accuracy(layer: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return float((layer(inputs).argmax(1) == labels).double().mean())


def loss_of(layer: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Cross-entropy."""
    with torch.no_grad():
        return float(nn.functional.cross_entropy(layer(inputs), labels))
