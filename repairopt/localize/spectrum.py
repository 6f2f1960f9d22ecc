"""Spectrum analysis: which neurons are active on rows that fail, and not on rows that are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repairopt.errors import ModelError, SpecificationError
from repairopt.specify import is_one_of

from .question import Neuron, Question, best_neurons, check_count
from .trace_layers import Layer

MEASURES = ("tarantula", "ochiai", "dstar")
MOST_PASSING = 10_000  # rows that are right in a spectrum that goes over a whole training set


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How often units are active and not, ``(units,)`` each, in float64.

    Attributes:
        active_failing: Rows that fail on which the unit is active.
        idle_failing: Rows that fail on which it is not.
        active_passing: Rows that are right on which it is active.
        idle_passing: Rows that are right on which it is not.
    """

    active_failing: Tensor
    idle_failing: Tensor
    active_passing: Tensor
    idle_passing: Tensor

    @property
    def tarantula(self) -> Tensor:
        """Share of activity on failing rows over the sum of the shares on failing and passing rows; 0/0 is 0."""
        failing = _ratio(self.active_failing, self.active_failing + self.idle_failing)
        return _ratio(failing, failing + _ratio(self.active_passing, self.active_passing + self.idle_passing))

    @property
    def ochiai(self) -> Tensor:
        """``a_f / sqrt((a_f + n_f)(a_f + a_s))``."""
        failing = self.active_failing + self.idle_failing
        return _ratio(self.active_failing, (failing * (self.active_failing + self.active_passing)).sqrt())

    def dstar(self, star: int) -> Tensor:
        """``a_f ** star / (a_s + n_f)``; infinite for units that are active on all failing rows and on no other."""
        power, others = self.active_failing**star, self.active_passing + self.idle_failing
        return torch.where((others == 0) & (power > 0), torch.inf, _ratio(power, others))


@dataclass(frozen=True)
class DeepFault:
    """The neurons with the largest suspiciousness of spectrum analysis (DeepFault).

    A neuron is active on a row where its value after the activation function, of a channel the mean, is above 0; where
    values of a layer are never 0, above their mean over all rows.

    Attributes:
        count: At most so many neurons.
        measure: ``"tarantula"``, ``"ochiai"`` or ``"dstar"``.
        layer: The hidden layer to choose from; None for all.
        label: Only rows of this class count, as the paper analyses one class at a time; None for all rows.
        star: Exponent of D*.
        weights: ``"outgoing"`` or ``"incoming"``.

    References:
        Eniser, Gerasimou and Sen, DeepFault: Fault Localization for Deep Neural Networks, FASE 2019. The default counts
        all classes together and D* gets the usual exponent of 3.
    """

    count: int = 10
    measure: str = "tarantula"
    layer: str | None = None
    label: int | None = None
    star: int = 3
    weights: str = "outgoing"

    def __post_init__(self) -> None:
        check_count(self, count=self.count, star=self.star)
        if not is_one_of(self.measure, MEASURES):
            raise SpecificationError(f"DeepFault: measure={self.measure!r}; choose from {', '.join(MEASURES)}.")

    def neurons(self, question: Question) -> list[Neuron]:
        """The most suspicious neurons, best first."""
        failing, passing = question.failing, question.passing
        if self.label is not None:
            failing, passing = ((x[y == self.label], y[y == self.label]) for x, y in (failing, passing))
        if not len(failing[0]):
            raise SpecificationError(f"DeepFault: no row of class {self.label} fails. Leave label=None.")
        spectra = spectrum_of(question, failing[0], passing[0], question.layers(self.layer))
        scores = {
            name: one.dstar(self.star) if self.measure == "dstar" else getattr(one, self.measure)
            for name, one in spectra.items()
        }
        return best_neurons(scores, self.count)


@dataclass(frozen=True)
class AdversarialSpectrum:
    """The block, layer or neurons that spectrum analysis weighted by gradients finds most vulnerable (ArchRepair).

    Tarantula's score of a neuron is multiplied by how far its mean absolute gradient of the loss on failing rows is
    from the mean over blocks, relative to the furthest. The ``top`` neurons are vulnerable; the block, or layer, with
    most of them is chosen.

    Attributes:
        level: ``"block"``, ``"layer"`` or ``"neuron"``.
        top: Vulnerable neurons.
        blocks: Names of modules that are blocks, no neurons of others count then; empty for the network's own top
            modules with several layers or, where those are no blocks, each hidden layer.
        signed: Whether neurons whose gradient is below the mean get 0; the formula as printed raises them too.
        normalize: Whether the count of a block is divided by its neurons.
        weights: For neurons ``"outgoing"`` or ``"incoming"``.

    References:
        Qi et al., ArchRepair: Block-Level Architecture-Oriented Repairing for Deep Neural Networks, TOSEM 2023,
        formulas 5 and 6. What a gradient of a neuron is, the paper leaves open: here the mean absolute derivative of
        the cross-entropy by its output, averaged over positions. Of passing rows at most 10,000 count.
    """

    level: str = "block"
    top: int = 50
    blocks: Sequence[str] = ()
    signed: bool = False
    normalize: bool = False
    weights: str = "incoming"

    def __post_init__(self) -> None:
        check_count(self, top=self.top)
        if not is_one_of(self.level, ("block", "layer", "neuron")):
            raise SpecificationError(f"AdversarialSpectrum: level={self.level!r}; choose block, layer or neuron.")

    def neurons(self, question: Question) -> list[Neuron]:
        """The ``top`` vulnerable neurons, or all of the chosen block or layer, best first."""
        scores = self.neuron_scores(question)
        best = best_neurons(scores, self.top)
        if self.level == "neuron" or not best:
            return best
        name = self.chosen(question, scores)
        inside = self._groups(question)[name]
        return best_neurons(
            {layer: scores[layer].clamp(min=torch.finfo(torch.float64).tiny) for layer in inside}, 10**9
        )

    def chosen(self, question: Question, scores: Mapping[str, Tensor] | None = None) -> str:
        """Name of the block, or layer, with most vulnerable neurons."""
        scores = self.neuron_scores(question) if scores is None else scores
        groups = self._groups(question)
        of = {layer: name for name, layers in groups.items() for layer in layers}
        return self._by_count(groups, of, scores)[0]

    def ranked(self, question: Question) -> list[str]:
        """Names of all blocks, or layers, that with most vulnerable neurons first; those without any by their best."""
        scores, groups = self.neuron_scores(question), self._groups(question)
        of = {layer: name for name, layers in groups.items() for layer in layers}
        return self._by_count(groups, of, scores)

    def _by_count(
        self, groups: Mapping[str, list[str]], of: Mapping[str, str], scores: Mapping[str, Tensor]
    ) -> list[str]:
        counts = Counter(of[layer] for layer, _, _ in best_neurons(scores, self.top))
        if not counts:
            raise SpecificationError("AdversarialSpectrum: no neuron is active on rows that fail.")
        width = {name: sum(len(scores[layer]) for layer in layers) for name, layers in groups.items()}
        share = {name: counts[name] / (width[name] if self.normalize else 1) for name in groups}
        best = {name: max(float(scores[layer].max()) for layer in layers) for name, layers in groups.items()}
        return sorted(groups, key=lambda name: (-share[name], -best[name]))

    def neuron_scores(self, question: Question) -> dict[str, Tensor]:
        """Formula 6 for the neurons of each layer."""
        groups = self._groups(question)
        layers = {name: question.hidden[name] for inside in groups.values() for name in inside}
        passing = question.passing[0]
        draw = torch.Generator().manual_seed(question.seed)
        some = torch.randperm(len(passing), generator=draw)[:MOST_PASSING].to(passing.device)
        spectra = spectrum_of(question, question.failing[0], passing[some], layers)
        slopes = question.slopes(question.failing, layers, _cross_entropy)
        means = {name: slope.double().mean(0).cpu() for name, slope in slopes.items()}
        over = torch.stack([torch.cat([means[layer] for layer in inside]).mean() for inside in groups.values()]).mean()
        return weighted({name: one.tarantula for name, one in spectra.items()}, means, over, self.signed)

    def _groups(self, question: Question) -> dict[str, list[str]]:
        if self.level != "block":
            return {name: [name] for name in question.hidden}
        return group_layers(question, self.blocks)


def weighted(
    scores: Mapping[str, Tensor], slopes: Mapping[str, Tensor], mean: Tensor, signed: bool = False
) -> dict[str, Tensor]:
    """Formula 6 of ArchRepair: ``|g - mean| / max |g - mean| * s`` for the neurons of each layer."""
    far = {name: slope - mean for name, slope in slopes.items()}
    far = {name: one.clamp(min=0) if signed else one.abs() for name, one in far.items()}
    most = max(float(one.max()) for one in far.values())
    return {name: far[name] / most * score if most > 0 else 0 * score for name, score in scores.items()}


def group_layers(question: Question, blocks: Sequence[str] = ()) -> dict[str, list[str]]:
    """The hidden layers of each block, by the name of its module.

    Without ``blocks`` the outermost modules that hold more than one hidden layer but not all of them, then each layer
    that is in none. A ModelError where a name fits no module with hidden layers.
    """
    names, found = list(question.hidden), dict[str, list[str]]()
    modules = [name for name, _ in question.graph.model.named_modules() if name]
    wanted = list(blocks) or modules
    for block in wanted:
        inside = [name for name in names if name == block or name.startswith(block + ".")]
        if blocks and not inside:
            raise ModelError(f"block '{block}': holds no layer that a later one reads. Known: {', '.join(modules)}.")
        taken = any(layer in known for known in found.values() for layer in inside)
        if inside and not taken and (blocks or 1 < len(inside) < len(names)):
            found[block] = inside
    rest = [name for name in names if not any(name in known for known in found.values())]
    return found | {name: [name] for name in rest} if not blocks else found


def spectrum_of(
    question: Question, failing: Tensor, passing: Tensor, layers: Mapping[str, Layer]
) -> dict[str, Spectrum]:
    """Counts of activity of the units of each layer on rows ``(N, ...)`` that fail and that are right."""
    bad = question.activations(failing, layers)
    good = question.activations(passing, layers) if len(passing) else {name: one[:0] for name, one in bad.items()}
    found = {}
    for name in layers:
        both = torch.cat([bad[name], good[name]])
        threshold = both.mean(0) if bool((both != 0).all()) else torch.zeros_like(both[0])
        counts = [(part > threshold).double().sum(0).cpu() for part in (bad[name], good[name])]
        found[name] = Spectrum(counts[0], len(failing) - counts[0], counts[1], len(passing) - counts[1])
    return found


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    return torch.where(under > 0, over / under.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(outputs, labels.to(outputs.device), reduction="none")
