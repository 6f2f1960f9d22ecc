"""Learning rates of parameters in proportion to their size."""

from __future__ import annotations

from typing import Any

MOST_RATE = 1e-2  # of Adam
SECOND, FACTORS = ".lora_B.", ("lora_B", "lora_A")  # in the names that peft gives


def natural_rate(name: str, model: Any, rate: float) -> float:
    """The learning rate of a parameter: a share of its natural size, at most ``MOST_RATE``.

    The second factor of a change of low rank, which is 0 at first, has a rate at which the product of both moves as the
    layer's weight would.
    """
    weight, first = model.get_parameter(name).detach(), 1.0
    if SECOND in f".{name}" and not weight.any():
        layer: Any = model.get_submodule(name.partition(SECOND)[0])
        beside, adapter = model.get_parameter(name.replace(*FACTORS)).detach(), name.partition(SECOND)[2].split(".")[0]
        first = layer.scaling[adapter] * float(beside.square().mean().sqrt()) * len(beside) ** 0.5
        weight = layer.base_layer.weight.detach()
    size = float(weight.square().mean().sqrt())
    return (min(MOST_RATE, rate * size) if size else MOST_RATE) / (first or 1.0)
