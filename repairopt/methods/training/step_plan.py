"""How many steps a training on two sides takes, and of how many rows each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

FEW_STEPS, MANY_STEPS = 12, 50  # at least in an epoch, the more the cheaper a step is
WORK = 2e11  # floating-point operations that a run may take for the sake of these
PARTS = (4, 2)  # of a batch that steps may be of, the smallest first
LEAST_BATCH, LEAST_PASS = 32, 1e8  # rows of a side, and operations of a step, below which nothing is divided
OF_WEIGHT, OF_TENSOR = 350.0, 3e6  # operations that take as long as a step's update of a weight and of a parameter
MOST_UPDATE, LEAST_PASSED = 0.3, 0.6  # of the operations of a pass, and of the rows of undivided batches


@dataclass(frozen=True)
class StepPlan:
    """Steps of the first stage of a training.

    Attributes:
        count: Number of steps.
        batch: Rows of each side in a step.
        work: Floating-point operations of a step, about.
    """

    count: int
    batch: int
    work: float


def plan_steps(
    rows: Sequence[int], settings: Any, cost: Callable[[int], float], *, sizes: Sequence[int], divisible: bool
) -> StepPlan:
    """Steps of the first stage: small ones where the update of the weights is cheap beside the passes of few rows.

    That is so of convolutions, of Transformers and of recurrent layers, whose weights are read at many positions. As
    many more steps are taken as about the same time allows. (Measured on other divisions than those of
    ``benchmarks/results``, batches of 32 in place of 128: rotated digits by a CNN of 358,186 weights .962 after .957,
    by a ResNet, a third slower, .911 after .890, by an LSTM .898 after .885 and by a small Transformer .886 after .880,
    clean digits no worse, of the last two better by .005.)

    Args:
        rows: Numbers of rows of the sides.
        settings: Has ``epochs`` and ``batch``.
        cost: From rows of each side in a step to its floating-point operations, about; 0 where there are no rows.
        sizes: Numbers of weights of the parameters.
        divisible: Whether batches may be divided.

    References:
        Keskar and others, On large-batch training for deep learning, ICLR 2017 (small batches generalize better).
    """
    work = cost(settings.batch)
    affordable = WORK / max(1, work * settings.epochs) if work else MANY_STEPS
    least = int(min(MANY_STEPS, max(FEW_STEPS, affordable)))
    count = int(settings.epochs * max(least, -(-max(rows) // settings.batch)))
    update, beside = OF_WEIGHT * sum(sizes), OF_WEIGHT * sum(sizes) + OF_TENSOR * len(sizes)
    for parts in PARTS if divisible else ():
        small = settings.batch // parts
        if small < LEAST_BATCH or min(rows) < settings.batch:
            continue
        own = cost(small)
        more = (work + beside) / (own + beside)
        if own >= LEAST_PASS and update <= MOST_UPDATE * own and more >= LEAST_PASSED * parts:
            return StepPlan(round(more * count), small, own)
    return StepPlan(count, settings.batch, work)
