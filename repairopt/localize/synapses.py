"""Scores of single weights from rows that fail and rows that are right: gradient loss, forward impact, influence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repairopt.errors import ModelError
from repairopt.network import check_time

from .question import BATCH, Pair, Question, check_count, module_of
from .spectrum import Spectrum
from .trace_layers import Layer

TINY = 1e-8  # of I-REPAIR's ratio


@dataclass(frozen=True)
class OneLayer:
    """Fields of the localizers that rank the weights of one layer.

    Attributes:
        count: At most so many weights.
        layer: The layer to choose from; None for the last.
    """

    count: int = 100
    layer: str | None = None

    def __post_init__(self) -> None:
        check_count(self, count=self.count)


@dataclass(frozen=True)
class GradientLoss(OneLayer):
    """The weights whose gradient of the loss is large on rows that fail and small on rows that are right (Arachne).

    Attributes:
        count: At most so many weights.
        layer: The layer to choose from; None for the last.

    References:
        Sohn, Kang and Yoo, Arachne: Search-Based Repair of Deep Neural Networks, TOSEM 2023.
    """

    def scores(self, question: Question) -> Mapping[str, Tensor]:
        """``GL- / (1 + GL+)`` of the best weights, 0 elsewhere."""
        layer = affine_layer(question, self.layer)
        return _largest(layer, relative(question, layer, gradient_loss), self.count)


@dataclass(frozen=True)
class ForwardImpact(OneLayer):
    """The weights with a large share in the outputs for rows that fail and a small one for rows that are right.

    Attributes:
        count: At most so many weights.
        layer: The layer to choose from; None for the last.

    References:
        Sohn, Kang and Yoo, Arachne: Search-Based Repair of Deep Neural Networks, TOSEM 2023.
    """

    def scores(self, question: Question) -> Mapping[str, Tensor]:
        """``FI- / (1 + FI+)`` of the best weights, 0 elsewhere."""
        layer = affine_layer(question, self.layer)
        return _largest(layer, relative(question, layer, forward_impact), self.count)


@dataclass(frozen=True)
class Bidirectional:
    """The Pareto front of gradient loss and forward impact: weights that no other weight surpasses in both (Arachne).

    Both scores are those on rows that fail, divided by one plus those on as many rows that are right, drawn by class.

    Attributes:
        layer: The layer to choose from; None for the last.
        candidates: The front is taken of so many weights with the largest gradient loss on rows that fail, for each
            such row (version 1 of Arachne takes 20); None for the front of all weights, in both scores (version 2).

    References:
        Sohn, Kang and Yoo, Arachne: Search-Based Repair of Deep Neural Networks, TOSEM 2023; version 1 is of 2019.
    """

    layer: str | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        if self.candidates is not None:
            check_count(self, candidates=self.candidates)

    def scores(self, question: Question) -> Mapping[str, Tensor]:
        """The gradient loss of the weights of the front, 0 elsewhere."""
        layer = affine_layer(question, self.layer)
        if self.candidates is None:
            loss, impact = (relative(question, layer, how) for how in (gradient_loss, forward_impact))
        else:
            loss = gradient_loss(question, layer, question.failing)
            impact = first_impact(question, layer, question.failing)
            some = loss.flatten().argsort(descending=True, stable=True)[self.candidates * len(question.failing[0]) :]
            loss = loss.flatten().index_fill(0, some, -1.0).view(loss.shape)
        kept = pareto_front(loss.flatten(), impact.flatten()).view(loss.shape) & (loss >= 0)
        return {layer.weights[0]: torch.where(kept, loss.clamp(min=torch.finfo(torch.float64).tiny), 0.0)}


@dataclass(frozen=True)
class InfluenceRatio:
    """The weights whose influence on rows that fail is many times that on other rows (I-REPAIR).

    The influence on rows that fail is the absolute derivative of their mean cross-entropy; the general one that of the
    mean over rows that are right of the sum of absolute logits.

    Attributes:
        ratio: How many times.
        count: At most so many weights; None for all that reach the ratio.

    References:
        Henriksen, Leofante and Lomuscio, Repairing Misclassifications in Neural Networks Using Limited Data, SAC 2022.
    """

    ratio: float = 10.0
    count: int | None = None

    def scores(self, question: Question) -> Mapping[str, Tensor]:
        """``(special + 1e-8) / (general + 1e-8 / ratio)`` where it reaches the ratio, 0 elsewhere."""
        special = parameter_slopes(question, question.failing, lambda out, y: F.cross_entropy(out, y))
        general = parameter_slopes(question, question.passing, lambda out, y: out.abs().sum(1).mean())
        found = {}
        for name, one in special.items():
            times = (one + TINY) / (self.ratio * general[name] + TINY)
            found[name] = torch.where(times >= 1, times * self.ratio, 0.0)
        if self.count is not None and (every := torch.cat([one.flatten() for one in found.values()])).numel():
            least = every.topk(min(self.count, len(every))).values[-1]
            found = {name: torch.where(one >= least, one, 0.0) for name, one in found.items()}
        return found


def affine_layer(question: Question, name: str | None) -> Layer:
    """The named linear or convolutional layer, or the last one."""
    affine = question.graph.affine
    if name is None and affine:
        return affine[-1]
    named = [layer for layer in (question.graph.named(name) if name else ()) if layer.kind != "recurrent"]
    if not named:
        raise ModelError(f"{question.graph.what}: {name or 'it'} is no linear or convolutional layer. Name one.")
    return named[-1]


def relative(question: Question, layer: Layer, how: object) -> Tensor:
    """A score on failing rows over one plus that on as many passing rows, drawn by class, of the weight's shape."""
    assert callable(how)
    on_failing = how(question, layer, question.failing)
    passing = by_class(question.passing, len(question.failing[0]), question.seed)
    return on_failing / (1 + how(question, layer, passing)) if len(passing[0]) else on_failing


def by_class(rows: Pair, count: int, seed: int) -> Pair:
    """So many rows at most, each class with its share, in order; drawn by the seed."""
    if len(rows[0]) <= count:
        return rows
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows[0]), generator=draw).to(rows[1].device)
    labels = rows[1][order]
    place = torch.zeros(len(labels), dtype=torch.float64)
    for label in labels.unique():
        own = (labels == label).nonzero().flatten().cpu()
        place[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    chosen = order[place.argsort(stable=True)[:count].to(order.device)].sort().values
    return rows[0][chosen], rows[1][chosen]


def parameter_slopes(question: Question, rows: Pair, of: object) -> dict[str, Tensor]:
    """Absolute derivatives of a scalar ``of(outputs, labels)`` by every floating parameter, in float64."""
    assert callable(of)
    engine, parameters = question.graph.engine, question.graph.parameters
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items() if p.is_floating_point()}
    for inputs, labels in zip(rows[0].split(BATCH), rows[1].split(BATCH), strict=True) if len(rows[0]) else ():
        check_time()
        weights = {f"model.{name}": parameters[name].detach().requires_grad_() for name in total}
        with torch.enable_grad():
            outputs = torch.func.functional_call(engine.caller, weights, (question.graph.convert(inputs),))
            value = of(outputs, labels.to(outputs.device)) * (len(inputs) / len(rows[0]))
            slopes = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        for name, slope in zip(total, slopes, strict=True):
            if slope is not None:
                total[name] += slope.double().cpu()
    return {name: slope.abs() for name, slope in total.items()}


def gradient_loss(question: Question, layer: Layer, rows: Pair) -> Tensor:
    """``|sum over rows of d loss / d w|`` for each weight of a layer."""
    slopes = parameter_slopes(question, rows, lambda out, y: F.cross_entropy(out, y))
    return slopes[layer.weights[0]] * len(rows[0])


def forward_impact(question: Question, layer: Layer, rows: Pair) -> Tensor:
    """Mean share of each weight in its unit, times the mean share of the unit in the slope of the outputs.

    ``mean(|o_i w_ij| / sum_i' |o_i' w_i'j|) * mean(|d out / d o_j| / sum_j' |d out / d o_j'|)``, where ``out`` is the
    sum of all outputs; of a convolution each position counts as a row.
    """
    weight = question.graph.parameters[layer.weights[0]].detach().double().cpu().abs().flatten(1)
    share, slope = torch.zeros_like(weight), torch.zeros(len(weight), dtype=torch.float64)
    count = 0
    for _, before, after in _layer_values(question, layer, rows):
        before = before.abs()
        under = before @ weight.T
        share += (_inverse(under).T @ before) * weight
        units = after.abs().movedim(layer.axis, 1).flatten(2).sum(2) if after.ndim > 2 else after.abs()
        slope += (units * _inverse(units.sum(1, keepdim=True))).sum(0)
        count += len(before)
    found = (share / max(1, count)) * (slope / max(1, len(rows[0])))[:, None]
    return found.view(question.graph.parameters[layer.weights[0]].shape)


def weight_spectrum(question: Question, layer: Layer) -> Spectrum:
    """How often each weight of a layer is active, ``o_i w_ij > 0``, on rows that fail and that are right.

    Of a convolution the share of the positions of a row counts.
    """
    weight = question.graph.parameters[layer.weights[0]].detach().double().cpu()
    counts = []
    for rows in (question.failing, question.passing):
        above, below = (torch.zeros(weight[0].numel(), dtype=torch.float64) for _ in range(2))
        for inputs, before, _ in _layer_values(question, layer, rows):
            share = len(inputs) / len(before)
            above += share * (before > 0).sum(0)
            below += share * (before < 0).sum(0)
        signs = weight.flatten(1)
        counts.append(torch.where(signs > 0, above, torch.where(signs < 0, below, 0.0)).view(weight.shape))
    failing, passing = (len(rows[0]) for rows in (question.failing, question.passing))
    return Spectrum(counts[0], failing - counts[0], counts[1], passing - counts[1])


def first_impact(question: Question, layer: Layer, rows: Pair) -> Tensor:
    """Forward impact of version 1 of Arachne: the mean of ``|o_i w_ij|``."""
    weight = question.graph.parameters[layer.weights[0]].detach().double().cpu().abs()
    total, count = torch.zeros(weight.flatten(1).shape[1], dtype=torch.float64), 0
    for _, before, _ in _layer_values(question, layer, rows):
        total += before.abs().sum(0)
        count += len(before)
    return (weight.flatten(1) * total / max(1, count)).view(weight.shape)


def pareto_front(first: Tensor, second: Tensor) -> Tensor:
    """Which points ``(n,)`` no other point surpasses in one coordinate without falling behind in the other."""
    order = sorted(range(len(first)), key=lambda k: (-float(first[k]), -float(second[k])))
    kept, best, level = torch.zeros(len(first), dtype=torch.bool), -torch.inf, None
    for k in order:
        point = (float(first[k]), float(second[k]))
        if point[1] > best or point == level:
            kept[k], best, level = True, point[1], point
    return kept


def _layer_values(question: Question, layer: Layer, rows: Pair) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For batches of rows: the rows, what a layer reads ``(M, columns)``, the slope of all outputs by its outputs."""
    module = question.graph.engine.caller.model.get_submodule(layer.name) if module_of(question, layer) else None
    assert module is not None
    found = []
    for inputs in rows[0].split(BATCH):
        check_time()
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(
            _: nn.Module, given: tuple[Tensor, ...], made: Tensor, seen: list[tuple[Tensor, Tensor]] = seen
        ) -> Tensor:
            made = made.detach().requires_grad_()
            seen.append((given[0].detach(), made))
            return made

        handle = module.register_forward_hook(keep)
        try:
            with torch.enable_grad():
                outputs = question.graph.engine.caller(question.graph.convert(inputs))
                slope = torch.autograd.grad(outputs.sum(), seen[-1][1])[0]
        finally:
            handle.remove()
        found.append((inputs, _read(module, seen[-1][0]).double().cpu(), slope.double().cpu()))
    return found


def _read(module: nn.Module, given: Tensor) -> Tensor:
    """What each row, or position, of a layer's input gives to its weights: ``(M, columns)``."""
    if isinstance(module, nn.Linear):
        return given.reshape(-1, given.shape[-1])
    if isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
        patches = F.unfold(given, module.kernel_size, module.dilation, module.padding, module.stride)
        return patches.movedim(1, 2).flatten(0, 1)
    raise ModelError(
        f"layer {type(module).__name__}: forward impact is defined here for linear layers and for two-dimensional "
        f"convolutions with numbers as padding and one group. Choose another layer."
    )


def _inverse(under: Tensor) -> Tensor:
    return torch.where(under > 0, 1 / under.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def _largest(layer: Layer, scores: Tensor, count: int) -> dict[str, Tensor]:
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
    return {layer.weights[0]: torch.where(kept.view(scores.shape), scores, 0.0)}
