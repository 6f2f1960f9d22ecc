"""Which neurons or weights are responsible for undesired behavior: causal attribution and gradients.

Scores only; :func:`repairopt.localize.localize` turns them into a choice of weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.errors import ModelError, SpecificationError
from repairopt.network import CACHE_BYTES, Engine, Predict, batched, check_time, jacobian, sample_rows
from repairopt.specify import Constraint, Subsampled, Transferable, Undesired, labels_of, soft_value

from .follow_units import Intervention, hidden_layers
from .trace_layers import Layer, LayerGraph
from .weight_selectors import CARE, Gradient


def care_scores(
    graph: LayerGraph,
    undesired: Callable[[Predict], Any],
    layers: Sequence[str] | None = None,
    *,
    values: int = 16,
    score: str = "forced",
) -> dict[str, Tensor]:
    """Scores ``(units,)`` of the neurons of each layer by their average causal effect on the undesired behavior.

    A neuron is forced, after its activation function and for all samples, to each of ``values`` evenly spaced numbers
    between the least and the greatest that it takes on the data. Its ``"forced"`` score, as published, is the mean
    undesired behavior over these interventions; ``"removed"`` subtracts that from the behavior of the unchanged
    network. NaN where a neuron is constant. A neuron of a convolution is a channel.

    The part of the network before the neuron runs once. Where a linear layer alone reads the neuron, an intervention
    changes that layer's outputs by a rank-one term, so only what follows runs for each intervention, in batches.

    References:
        Sun, Sun, Pham and Shi, Causality-Based Neural Network Repair, ICSE 2022.
    """
    known: dict[int, Tensor] = {}

    def watch(inputs: Tensor) -> Tensor:
        known[id(inputs)] = inputs
        return graph.engine.predict()(inputs)

    clean = float(undesired(watch))
    if not known or not math.isfinite(clean):
        raise SpecificationError(
            f"goal: its undesired behavior in {graph.what} is {clean}, {'' if known else 'without a call of predict'}; "
            f"expected a finite number that depends on predict. Check the goal's data."
        )
    hidden, data = hidden_layers(graph), list(known.values())
    means = {name: _mean_behavior(graph, hidden[name], undesired, data, values) for name in layers or hidden}
    return means if score == "forced" else {name: clean - mean for name, mean in means.items()}


def care_neurons(graph: LayerGraph, goal: Any, how: CARE, seed: int = 0) -> list[tuple[str, int, float]]:
    """The neurons ``(layer, unit, score)`` with the greatest :func:`care_scores` for a goal, best first.

    Undesired behavior is the first that the goal has of ``undesired``, ``soft_value`` and ``value``.

    Raises:
        ModelError: The network cannot be traced, or the layer does not exist or is read by no other.
        SpecificationError: There is no goal, its behavior is not finite, or no neuron varies on its data.
    """
    if goal is None:
        raise SpecificationError("CARE: measures the undesired behavior of a goal, but there is none. Pass goal=...")
    for word, number in (("count", how.count), ("samples", how.samples), ("values", how.values)):
        if number < 1:
            raise SpecificationError(f"CARE: {word}={number}; expected 1 or more.")
    if how.score not in ("forced", "removed"):
        raise SpecificationError(f"CARE: score={how.score!r}; expected 'forced' or 'removed'.")
    hidden = hidden_layers(graph) if graph.values else {}
    if how.layer is not None and how.layer not in hidden:
        graph.named(how.layer)
    if not hidden or (how.layer is not None and how.layer not in hidden):
        which = f"layer '{how.layer}' has no neurons" if how.layer else "it has no neurons"
        raise ModelError(
            f"{graph.what}: {which} that a later layer reads; CARE needs some. Use 'last', 'gradient', or one of: "
            f"{', '.join(hidden) or 'none'}."
        )
    fewer = _fewer(goal, how.samples, seed)
    behavior = fewer.undesired if isinstance(fewer, Undesired) else soft_value(fewer)
    linear = [name for name, layer in hidden.items() if layer.kind == "linear"]
    layers = [how.layer] if how.layer else linear or None
    scores = care_scores(graph, behavior, layers, values=how.values, score=how.score)
    found = [(name, i, float(s)) for name, layer in scores.items() for i, s in enumerate(layer) if not s.isnan()]
    if not found:
        raise SpecificationError(
            f"CARE: every neuron of {', '.join(scores)} is constant on the goal's data, so none can be blamed. Use "
            f"more varied data, or another layer."
        )
    return sorted(found, key=lambda item: -item[2])[: how.count]


def gradient_weights(
    engine: Engine, how: Gradient, goal: Any, constraints: Sequence[Any] = (), seed: int = 0
) -> tuple[dict[str, Tensor], str]:
    """Score the engine's weights by the size of a derivative times their own, and keep the best.

    Returns for each parameter the scores in float64, 0 where not chosen, and what was done, in words. A
    SpecificationError where there is nothing to differentiate, or the derivative is zero or not finite.
    """
    if how.count < 1 or how.of not in ("goal", "constraints") or how.granularity not in ("weight", "neuron"):
        raise SpecificationError(
            f"{how}: expected count 1 or more, of='goal' or 'constraints', granularity='weight' or 'neuron'."
        )
    slope, text = _slope(engine, how, goal, constraints, seed)
    if not bool(torch.isfinite(slope).all()) or not bool((slope > 0).any()):
        kind = "zero everywhere" if bool(torch.isfinite(slope).all()) else "NaN or infinite"
        raise SpecificationError(f"{text}: is {kind}, so it singles out no weight. Give the weights by layer instead.")
    score = (slope * engine.scale.to(slope.device)).cpu()
    neuron = _neurons(engine) if how.granularity == "neuron" else torch.arange(engine.n)
    total = torch.zeros(int(neuron.max()) + 1, dtype=torch.float64).index_add_(0, neuron, score)
    kept = torch.zeros_like(total, dtype=torch.bool)
    kept[total.argsort(descending=True, stable=True)[: how.count]] = True
    score = torch.where(kept, total, 0.0)[neuron]
    text = f"Gradient: {int((kept & (total > 0)).sum())} {how.granularity}s with the largest {text} times size"
    return dict(zip(engine.indices, score.split([len(ix) for ix in engine.indices.values()]), strict=True)), text


def _fewer(goal: Any, count: int, seed: int) -> Any:
    """The goal on at most ``count`` samples, where it can be had."""
    if isinstance(goal, Subsampled):
        return goal.subsample(count, seed)
    data = _labeled(goal)
    if data is None or len(data[0]) <= count or not isinstance(goal, Transferable):
        return goal
    rows = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))[:count]
    return goal.on(*(part[rows.to(part.device)] for part in data))


def _mean_behavior(
    graph: LayerGraph, layer: Layer, undesired: Callable[[Predict], Any], known: list[Tensor], values: int
) -> Tensor:
    cut = Intervention(graph, layer)
    with torch.no_grad():
        befores = {id(inputs): cut.before(inputs) for inputs in known}
        taken = [before[cut.units].flatten(1) for before in befores.values()]
        low = torch.stack([rows.amin(1) for rows in taken]).amin(0)
        high = torch.stack([rows.amax(1) for rows in taken]).amax(0)
        moving = (high > low).nonzero().flatten()
        scores = torch.full((len(low),), math.nan, dtype=torch.float64)
        if len(moving):
            steps = torch.linspace(0, 1, values, dtype=low.dtype, device=low.device)
            forced = low[moving, None] + (high - low)[moving, None] * steps
            size = sum(len(inputs) for inputs in known) * cut.widest * low.element_size()

            def one(unit: Tensor, value: Tensor) -> Tensor:
                check_time()  # once for each chunk

                def predict(inputs: Tensor) -> Tensor:
                    before = befores.get(id(inputs))  # the goal's own data, or new inputs such as flipped ones
                    return cut.force(cut.before(inputs) if before is None else before, unit, value)

                return torch.as_tensor(undesired(predict))

            units, chunk = moving.repeat_interleave(values), max(1, CACHE_BYTES // size)
            behavior = batched(one, units, forced.flatten(), chunk=chunk)
            scores[moving.cpu()] = behavior.view(-1, values).mean(1).cpu()
    return scores


def _slope(engine: Engine, how: Gradient, goal: Any, constraints: Sequence[Any], seed: int) -> tuple[Tensor, str]:
    """Size of the derivative for each weight, and of what, in words."""
    if how.of == "constraints":
        on_outputs = [c for c in constraints if isinstance(c, Constraint)]
        if not on_outputs:
            raise SpecificationError(
                "Gradient(of='constraints'): there are no constraints on outputs. Pass constraints=."
            )

        def near_violation(predict: Predict) -> Tensor:
            return torch.stack([F.softplus(-c.margins(predict)).mean() for c in on_outputs]).sum()

        return jacobian(engine, near_violation)[1][0].abs(), "|derivative of constraint violation|"
    if goal is None:
        raise SpecificationError("Gradient: follows the derivative of a goal, but there is none. Pass goal=...")
    failing = _failing(engine, goal)
    if len(failing):
        chosen = failing[torch.randperm(len(failing), generator=torch.Generator().manual_seed(seed))[: how.samples]]
        return _loss_slope(
            engine, goal, chosen
        ), f"mean |derivative of the loss| on {len(chosen)} misclassified samples"
    return jacobian(engine, soft_value(goal))[1].abs().sum(0), f"|derivative of '{goal.name}'|"


def _labeled(goal: Any) -> tuple[Tensor, Tensor] | None:
    """The goal's ``inputs`` and ``labels``, if it has them."""
    found = labels_of(goal)
    return found if found is not None and found[1].shape == found[0].shape[:1] else None


def _failing(engine: Engine, goal: Any) -> Tensor:
    """The misclassified samples of a goal whose value is an error rate; none for other goals."""
    data = _labeled(goal)
    if data is None:
        return torch.zeros(0, dtype=torch.int64)
    wrong = engine.predict()(data[0]).argmax(1).cpu() != data[1].cpu()
    is_rate = abs(float(goal.value(engine.predict())) - float(wrong.double().mean())) < 1e-6
    return (wrong & is_rate).nonzero().flatten()


def _loss_slope(engine: Engine, goal: Any, samples: Tensor) -> Tensor:
    """Mean absolute derivative of the cross-entropy over samples."""
    outputs = engine.predict()(goal.inputs[samples.to(goal.inputs.device)])
    labels = goal.labels.to(engine.device)[samples.to(engine.device)]
    cotangents = outputs.softmax(1) - F.one_hot(labels, outputs.shape[1])
    total = torch.zeros(engine.n, dtype=torch.float64, device=engine.device)
    step = max(1, engine.memory_limit // 4 // (engine.n * 8))
    for rows, part in zip(samples.split(step), cotangents.split(step), strict=True):
        total += sample_rows(engine, goal.inputs, rows, part).abs().sum(0).double()
    return total / len(samples)


def _neurons(engine: Engine) -> Tensor:
    """A number for the neuron that each weight belongs to: the row of its layer's weights, or its bias."""
    start: dict[str, int] = {}
    parts, used = [], 0
    for name, base in engine.weights(engine.as_delta(None)).items():
        count = base.shape[0] if base.ndim else 1
        key = re.sub(r"(weight|bias)(_ih|_hh)?", "", name) + f":{count}"
        if key not in start:
            start[key], used = used, used + count
        parts.append(start[key] + engine.indices[name].cpu() * count // base.numel())
    return torch.cat(parts)
