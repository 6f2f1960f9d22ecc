"""Sensei: a genetic search finds the natural variant of each image on which the network is worst, and trains on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Training, by_error, cross_entropy, fit_weights
from .image_variants import Box, warp
from .trainee import ROWS, Trainee

# Rotation (radians), shift x, shift y (shares of the image), shear x, shear y, zoom - 1, brightness, contrast - 1:
RANGES = (math.radians(30), 0.1, 0.1, 0.1, 0.1, 0.1, 32 / 255, 0.2)


@dataclass(frozen=True, kw_only=True)
class Sensei(Training):
    """SENSEI: training on the worst natural variant of each image, found by a genetic search over the epochs.

    A variant is a vector of eight genes: rotation, shifts, shears, zoom, brightness and contrast, each in its range.
    Each image has a population of them. In each epoch there is one generation: parents are variants with large loss,
    children take each gene from one of two parents, and one of their genes is drawn anew; the worst variant stays. The
    network is trained on the worst variant of each image. An image whose worst loss is next to nothing is robust: it
    is trained on as it is, and not searched, for some epochs. The best epoch on the validation rows is taken.

    Attributes:
        population: Variants of each image.
        robust: Loss below which an image is robust.
        rest: Epochs for which a robust image is not searched.
        changed: Chance with which a child has a gene drawn anew.

    References:
        Gao, Saha, Prasad and Roychoudhury, Fuzz testing based data augmentation to improve robustness of deep neural
        networks, ICSE 2020: population 10, robust below 1e-3, the ranges. Its number of epochs of rest and the chance
        of a mutation are not stated where we read it; those here are ours.

    Example:
        >>> Sensei().population
        10
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"SENSEI": {}}

    population: int = 10
    robust: float = 1e-3
    rest: int = 3
    changed: float = 0.5

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        counts = {"population": Expected(low=2, whole=True), "rest": Expected(whole=True)}
        return {**counts, "robust": Expected(), "changed": Expected(high=1)}

    def run(self, task: Task) -> Outcome:
        """Search and train, epoch by epoch."""
        rows = self.material(task, failing=False)
        box = Box.of(self, rows.training[0])
        net = Trainee(task, rows.training[0])
        search = VariantSearch(net, rows.training, box, self)
        learned = (rows.training[0].clone(), rows.training[1])

        def begin(_: int) -> None:
            learned[0][:] = search.next()

        loss = cross_entropy(net, learned)
        fit_weights(net, loss, len(learned[0]), self, begin=begin, score=by_error(rows.validation))
        return net.outcome()


class VariantSearch:
    """Populations of variants of images, one generation after the other.

    Attributes:
        genes: ``(N, population, 8)``.
        worst: Largest loss of each image found in the last generation in which it was searched, ``(N,)``.
        resting: For how many further epochs each image is not searched, ``(N,)``.
        searched: Which images were searched in the last generation, ``(N,)``.
    """

    def __init__(self, net: Trainee, rows: Pair, box: Box, settings: Sensei) -> None:
        self._net, self._rows, self._box, self._settings = net, rows, box, settings
        self._draw = torch.Generator().manual_seed(net.task.seed)
        self._ranges = torch.tensor(RANGES, dtype=rows[0].dtype)
        self.genes = self._drawn(len(rows[0]), settings.population)
        self.genes[:, 0] = 0.0  # the image itself
        self.worst = torch.zeros(len(rows[0]), dtype=rows[0].dtype)
        self.resting = torch.zeros(len(rows[0]), dtype=torch.long)
        self.searched = torch.zeros(len(rows[0]), dtype=torch.bool)

    def next(self) -> Tensor:
        """The images to train on: the worst variants, or the images themselves where they rest."""
        images = self._rows[0].clone()
        self.searched = self.resting == 0
        chosen = self.searched.nonzero().flatten()
        self.resting = (self.resting - 1).clamp(min=0)
        if not len(chosen):
            return images
        losses = self.losses(chosen)
        worst, place = losses.max(1)
        self.worst[chosen] = worst
        at = chosen.to(images.device)
        images[at] = self.variants(at, self.genes[chosen, place])
        self.resting[chosen[worst < self._settings.robust]] = self._settings.rest
        self.genes[chosen] = self._children(self.genes[chosen], losses)
        return images

    def losses(self, chosen: Tensor) -> Tensor:
        """Loss of each variant of some images, ``(n, population)``."""
        inputs, labels = self._rows
        found = []
        for part in chosen.split(max(1, ROWS // self._settings.population)):
            self._net.task.judge.check_time()
            at = part.repeat_interleave(self._settings.population).to(inputs.device)
            outputs = self._net.predict(self.variants(at, self.genes[part].flatten(0, 1)))
            found.append(F.cross_entropy(outputs, labels[at], reduction="none").view(len(part), -1).cpu())
        return torch.cat(found)

    def variants(self, rows: Tensor, genes: Tensor) -> Tensor:
        """Some images under genes ``(n, 8)``."""
        unit = self._box.unit(self._rows[0][rows])
        g = genes.to(unit)
        moved = warp(unit, rotation=g[:, 0], shift=(g[:, 1], g[:, 2]), shear=(g[:, 3], g[:, 4]), zoom=1 + g[:, 5])
        bright, contrast = (g[:, i][:, None, None, None] for i in (6, 7))
        middle = moved.mean((1, 2, 3), keepdim=True)
        return self._box.back((moved - middle) * (1 + contrast) + middle + bright)

    def _drawn(self, *shape: int) -> Tensor:
        return (2 * torch.rand(*shape, len(RANGES), generator=self._draw, dtype=torch.float64) - 1).to(
            self._ranges
        ) * self._ranges

    def _children(self, genes: Tensor, losses: Tensor) -> Tensor:
        """The next generation: the worst variant, and children of parents from the better half."""
        count, population = losses.shape
        order = losses.argsort(dim=1, descending=True, stable=True)
        ranked = genes.gather(1, order[:, :, None].expand_as(genes))
        half = max(1, population // 2)
        parents = torch.randint(half, (2, count, population), generator=self._draw)
        one, two = (ranked.gather(1, own[:, :, None].expand_as(genes)) for own in parents)
        mixed = torch.where(torch.rand(genes.shape, generator=self._draw) < 0.5, one, two)
        gene = torch.randint(len(RANGES), (count, population), generator=self._draw)
        mutates = torch.rand(count, population, generator=self._draw) < self._settings.changed
        where = F.one_hot(gene, len(RANGES)).bool() & mutates[:, :, None]
        children = torch.where(where, self._drawn(count, population), mixed)
        children[:, 0] = ranked[:, 0]
        return children
