"""HybridRepair: few labels where the network is not smooth are spread over clusters; smooth images teach themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.localize import by_unit
from repairopt.methods.adam import Adam
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Training, by_error, fit_weights, joined
from .image_variants import Box, augmix
from .pool import labelled_pool
from .trainee import Trainee

VERSIONS, SHARPNESS, PRICE, ALPHA, DECAY = 8, 0.5, 100.0, 0.75, 5e-4
NEAR, TYPICAL = 10, 1000  # neighbors of a density; images of typical density, whose unsmoothness is the threshold
WARMTH = 0.5  # temperature of the contrastive loss


@dataclass(frozen=True, kw_only=True)
class HybridRepair(Training):
    """HybridRepair: annotation of unsmooth images with propagation, and self-training on smooth ones.

    The pool counts as unlabelled: labels are read of annotated images alone. Its features are those of an encoder: one
    that is given, or the architecture up to its last hidden layer, trained from new random weights on pairs of AugMix
    versions by contrast.
    They are clustered by density peaks, of ten images on average. The unsmoothness of an image is the normalized
    entropy of the mean prediction over 8 AugMix versions. In rounds, the most unsmooth clusters are annotated at their
    center and at the image farthest from it; where both labels agree, the whole cluster takes them. Of the others,
    those with an unsmoothness below that of 1,000 images of typical density learn their own mean prediction, sharpened,
    with weight 1 minus unsmoothness and price 100. Training rows, annotated and propagated images are learned with
    their labels; both parts are mixed up. The best epoch on the validation rows is taken.

    Attributes:
        epochs: Passes in each round.
        pool: Images and labels that are selected from; None for the rows of goal and constraints.
        budget: Labels, as a share of the pool.
        turn: Labels of a round.
        encoder: From images ``(N, C, H, W)`` to features ``(N, d)``, trained elsewhere; None to train one.
        encoder_epochs: Passes in the training of the encoder.

    References:
        Li, Zhang, Wang, Ma and Xu, HybridRepair: towards annotation-efficient repair for deep learning models, ISSTA
        2022, with the constants of its code: 1 % in rounds of 100, 8 versions, sharpening 0.5, price 100, mixing
        Beta(0.75, 0.75), Adam at 1e-3 with decay 5e-4, 10 epochs. Its encoder comes trained from elsewhere; the
        one that is trained here (Chen and others, A simple framework for contrastive learning, ICML 2020) needs many
        images: of labels spread over 500 digits 79 to 87 % were right, with pixels as features 98 %.
        Clusters: Rodriguez and Laio, Clustering by fast search and find of density peaks, Science 2014. That a cluster
        is annotated twice is ours.

    Example:
        >>> HybridRepair().budget
        0.01
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"HybridRepair (HR)": {}}

    epochs: int = 10
    pool: tuple[Tensor, Tensor] | Tensor | None = field(default=None, repr=False)
    budget: float = 0.01
    turn: int = 100
    encoder: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    encoder_epochs: int = 20

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        counts = {"turn": Expected(low=1, whole=True), "encoder_epochs": Expected(whole=True)}
        return {**counts, "budget": Expected(high=1, above=True)}

    def run(self, task: Task) -> Outcome:
        """Annotate, propagate, train, round by round."""
        rows = self.material(task, failing=False)
        box = Box.of(self, rows.training[0])
        net = Trainee(task, rows.training[0])
        images, truth = labelled_pool(self, task, rows)
        draw = torch.Generator().manual_seed(task.seed)
        with task.timed("encoder"):
            features = self.features(net, torch.cat([rows.training[0], images]), box, draw)
        known, own = features[: len(rows.training[0])], features[len(rows.training[0]) :]
        clusters, density = density_peaks(own, max(1, len(own) // NEAR))
        near = torch.cdist(own, known).topk(min(NEAR, len(known)), largest=False).values.mean(1)
        typical = (near - near.mean()).abs().argsort(stable=True)[:TYPICAL]
        labels = torch.full_like(truth, -1)  # annotated or propagated
        left = max(1, round(self.budget * len(images)))
        asked: set[int] = set()
        while left > 0:
            smooth = unsmoothness(versions(net, images, box, draw))
            spent = self.annotate(clusters, own, density, smooth, truth, labels, asked, min(left, self.turn))
            if not spent:
                break
            left -= spent
            task.log.note(f"HybridRepair spread {spent} labels over {int((labels >= 0).sum())} images.")
            free = ((labels < 0) & (smooth < smooth[typical].mean())).nonzero().flatten()
            taught = (labels >= 0).nonzero().flatten()
            learned = joined(rows.training, (images[taught], labels[taught]))
            self._train(net, learned, images[free], 1 - smooth[free], rows.validation, box)
        return net.outcome()

    def features(self, net: Trainee, images: Tensor, box: Box, draw: torch.Generator) -> Tensor:
        """Normalized features ``(N, units)``: those of the encoder, or of one that is trained."""
        if self.encoder is not None:
            with torch.no_grad():
                return F.normalize(self.encoder(images).to(images).flatten(1), dim=1)
        before = net.state()
        net.draw(net.task.seed)
        layer = net.hidden()[-1]
        node = layer.node

        def loss(chosen: Tensor) -> Tensor:
            two = torch.cat([augmix(images[chosen], box, draw) for _ in range(2)])
            value = F.normalize(by_unit(net.run(two, [node])[1][0], layer.axis), dim=1)
            alike = (value @ value.T / WARMTH).fill_diagonal_(float("-inf"))
            partner = (torch.arange(len(two), device=two.device) + len(chosen)) % len(two)
            return F.cross_entropy(alike, partner)

        recipe = type(self)(epochs=self.encoder_epochs, batch=self.batch, rate=self.rate)
        fit_weights(net, loss, len(images), recipe, told=False)
        found = F.normalize(by_unit(net.activations(images, [node])[1][0], layer.axis), dim=1)
        net.load(before)
        return found

    def annotate(
        self,
        clusters: Tensor,
        features: Tensor,
        density: Tensor,
        smooth: Tensor,
        truth: Tensor,
        labels: Tensor,
        asked: set[int],
        most: int,
    ) -> int:
        """Ask for labels of the most unsmooth clusters and spread them; how many were asked for."""
        count, spent = int(clusters.max()) + 1, 0
        mean = torch.stack([smooth[clusters == cluster].mean() for cluster in range(count)])
        for cluster in mean.argsort(descending=True, stable=True).tolist():
            if spent >= most:
                break
            if cluster in asked:
                continue
            asked.add(cluster)
            own = (clusters == cluster).nonzero().flatten()
            center = int(own[density[own].argmax()])
            far = int(own[(features[own] - features[center]).norm(dim=1).argmax()])
            told = [center] if far == center or spent + 1 >= most else [center, far]
            spent += len(told)
            labels[told] = truth[told]
            if len({int(truth[one]) for one in told}) == 1:
                labels[own] = truth[center]
        return spent

    def _train(self, net: Trainee, learned: Pair, free: Tensor, weight: Tensor, validation: Pair, box: Box) -> None:
        draw = torch.Generator().manual_seed(net.task.seed)
        hard = F.one_hot(learned[1], net.classes).to(net.task.engine.dtype)
        aims: list[Tensor] = []

        def begin(_: int) -> None:
            mean = versions(net, free, box, draw) if len(free) else torch.zeros(0, net.classes).to(hard)
            sharp = mean ** (1 / SHARPNESS)
            aims[:] = [sharp / sharp.sum(1, keepdim=True)]

        def mixed(inputs: Tensor, targets: Tensor) -> Pair:
            order = torch.randperm(len(inputs), generator=draw).to(inputs.device)
            share = max(one := _beta(draw), 1 - one)
            return share * inputs + (1 - share) * inputs[order], share * targets + (1 - share) * targets[order]

        def loss(chosen: Tensor) -> Tensor:
            inputs, targets = mixed(learned[0][chosen], hard[chosen])
            found = F.cross_entropy(net(inputs), targets)
            if not len(free):
                return found
            some = torch.randint(len(free), (len(chosen),), generator=draw).to(chosen.device)
            inputs, targets = mixed(free[some], aims[0][some])
            apart = (torch.softmax(net(inputs), dim=1) - targets).square().mean(1)
            return found + PRICE * (weight[some] * apart).mean()

        made = Adam(list(net.own.values()), lr=self.rate, weight_decay=DECAY)
        score: Any = by_error(validation)
        fit_weights(net, loss, len(learned[0]), self, optimizer=made, begin=begin, score=score)


def versions(net: Trainee, images: Tensor, box: Box, draw: torch.Generator) -> Tensor:
    """Mean probabilities ``(N, k)`` over AugMix versions of the images."""
    every = [torch.softmax(net.predict(augmix(images, box, draw)), dim=1) for _ in range(VERSIONS)]
    return torch.stack(every).mean(0)


def unsmoothness(chances: Tensor) -> Tensor:
    """Entropy of probabilities ``(N, k)`` over that of the uniform distribution, ``(N,)``."""
    return -(chances * chances.clamp(min=1e-12).log()).sum(1) / math.log(chances.shape[1])


def density_peaks(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cluster ``(N,)`` and density ``(N,)`` of each row: each joins the nearest denser one, up to ``count`` peaks."""
    apart = torch.cdist(features, features)
    density = -apart.topk(min(NEAR + 1, len(features)), largest=False).values.mean(1)
    order = density.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    apart = apart.masked_fill(rank[:, None] <= rank[None, :], float("inf"))  # to denser ones alone
    distance, parent = apart.min(1)
    reach = (density - density.min() + 1e-12) * distance
    reach[order[0]] = float("inf")
    cluster = torch.full_like(order, -1)
    peaks = reach.argsort(descending=True, stable=True)[:count]
    cluster[peaks] = torch.arange(len(peaks), device=order.device)
    for row in order.tolist():
        if cluster[row] < 0:
            cluster[row] = cluster[parent[row]]
    return cluster, density


def _beta(draw: torch.Generator) -> float:
    """A number from Beta(alpha, alpha), alpha below 1, by the method of Johnk."""
    while True:
        u, v = (float(x) ** (1 / ALPHA) for x in torch.rand(2, generator=draw, dtype=torch.float64))
        if 0 < u + v <= 1:
            return u / (u + v)
