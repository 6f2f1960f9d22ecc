"""Training on augmented rows: Cutout, Mixup, CutMix and AugMix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .fit import Pair, Training, fit_weights, joined, shuffled
from .image_operations import box_mask, mix_chains
from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class Augmented(Training):
    """What methods that train on augmented rows have in common.

    Attributes:
        epochs: At most so many.
        batch: Rows of a step, at most.
        rate: Learning rate of SGD without momentum; it falls to 0 by a cosine.
        decay: Weight decay.
        patience: Epochs without a smaller validation loss after which training ends.
        include_failures: Whether failing rows are learned beside the training rows.
        validation: Inputs and labels that choose the epoch; None for a tenth of the training rows.
    """

    epochs: int = 500
    rate: float = 0.1
    decay: float = 5e-4
    patience: int = 10
    include_failures: bool = True

    needs_images: ClassVar[bool] = True

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {"decay": Expected(), "patience": Expected(low=1, whole=True)}

    def run(self, task: Task) -> Outcome:
        """Train; the epoch with the least validation loss is taken."""
        rows = self.material(task)
        net = Trainee(task, rows.failing[0])
        if self.needs_images and (rows.training[0].ndim != 4 or not rows.training[0].is_floating_point()):
            raise self.wrong(
                f"augments images, but the rows have shape {tuple(rows.training[0].shape[1:])}. Pass images of numbers "
                f"(N, C, H, W), or choose mixup."
            )
        learned = joined(rows.training, rows.failing) if self.include_failures else rows.training
        draw = torch.Generator().manual_seed(task.seed + 1)
        recipe = self.recipe(task, net, learned, rows.failing, draw)
        optimizer = torch.optim.SGD(list(net.own.values()), lr=self.rate, weight_decay=self.decay)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.epochs))

        def loss(chosen: Tensor) -> Tensor:
            return recipe.loss(learned[0][chosen], learned[1][chosen])

        best: list[tuple[float, dict[str, Tensor]]] = []

        def score(trained: Trainee) -> tuple[float, ...]:
            found = validation_loss(trained, rows.validation)
            if not best or found < best[-1][0]:
                best[:] = [(found, trained.state())]
            return (found,)

        first = net.state()
        try:
            fit_weights(
                net,
                loss,
                len(learned[0]),
                self,
                optimizer=optimizer,
                batches=lambda order: guarded(net, shuffled(len(learned[0]), self.batch, order)),
                score=score,
                patience=self.patience,
                begin=lambda epoch: falling.step() if epoch else None,
            )
        except Diverged:
            net.load(best[-1][1] if best else first)
            task.log.note(f"{type(self).__name__}: training diverged at a learning rate of {self.rate:g}.")
        return net.outcome()

    def recipe(self, task: Task, net: Trainee, learned: Pair, failing: Pair, draw: torch.Generator) -> Recipe:
        """How the loss of a batch is made."""
        raise NotImplementedError(f"{type(self).__name__} has no recipe(...)")


class Diverged(ArithmeticError):
    """Weights are no longer finite."""


def guarded(net: Trainee, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The batches, until weights are no longer finite, which raises :class:`Diverged`."""
    for rows in batches:
        yield rows
        if not all(bool(one.isfinite().all()) for one in net.own.values()):
            raise Diverged


@dataclass(eq=False)
class Recipe:
    """The loss of a batch of rows ``(N, ...)`` with labels ``(N,)``; the plain one is the cross-entropy."""

    net: Trainee
    draw: torch.Generator

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.net(inputs), labels)


@dataclass(frozen=True, kw_only=True)
class Cutout(Augmented):
    """Training with a square of each image set to 0, at a random place.

    Attributes:
        side: Side of the square, as a share of that of the image.

    References:
        DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017: 16 of 32 pixels.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Cutout": {}}

    side: float = 0.5

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {**super().expected(), "side": Expected(above=True, high=1)}

    def recipe(self, task: Task, net: Trainee, learned: Pair, failing: Pair, draw: torch.Generator) -> Recipe:
        """Zeros in a square."""
        side = self.side

        class Cut(Recipe):
            def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
                height, width = int(inputs.shape[2]), int(inputs.shape[3])
                mask = box_mask(len(inputs), (height, width), (side * height, side * width), self.draw)
                return super().loss(inputs * (1 - mask).to(inputs), labels)

        return Cut(net, draw)


@dataclass(frozen=True, kw_only=True)
class Mixup(Augmented):
    """Training on mixtures of pairs of rows and of their labels.

    Attributes:
        alpha: The weight of the first row is drawn from ``Beta(alpha, alpha)``, once for each batch.

    References:
        Zhang, Cisse, Dauphin and Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Mixup": {}}
    needs_images: ClassVar[bool] = False

    alpha: float = 1.0

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {**super().expected(), "alpha": Expected(above=True)}

    def recipe(self, task: Task, net: Trainee, learned: Pair, failing: Pair, draw: torch.Generator) -> Recipe:
        """Mixtures of pairs."""
        if not learned[0].is_floating_point():
            raise self.wrong("the inputs are whole numbers, which cannot be mixed. Choose another method.")
        beta = beta_of(self.alpha, task.seed)

        class Mixed(Recipe):
            def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
                share, other = float(beta(1)[0]), torch.randperm(len(inputs), generator=self.draw).to(labels.device)
                outputs = self.net(share * inputs + (1 - share) * inputs[other])
                return share * F.cross_entropy(outputs, labels) + (1 - share) * F.cross_entropy(outputs, labels[other])

        return Mixed(net, draw)


@dataclass(frozen=True, kw_only=True)
class CutMix(Augmented):
    """Training on images with a box of another image in them, and labels mixed by the areas of both.

    Attributes:
        alpha: The area that stays is drawn from ``Beta(alpha, alpha)``, once for each batch.

    References:
        Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"CutMix": {}}

    alpha: float = 1.0

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        return {**super().expected(), "alpha": Expected(above=True)}

    def recipe(self, task: Task, net: Trainee, learned: Pair, failing: Pair, draw: torch.Generator) -> Recipe:
        """A box of another image."""
        beta = beta_of(self.alpha, task.seed)

        class Pasted(Recipe):
            def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
                height, width = int(inputs.shape[2]), int(inputs.shape[3])
                side = float(np.sqrt(1 - beta(1)[0]))
                mask = box_mask(1, (height, width), (side * height, side * width), self.draw).to(inputs)
                other = torch.randperm(len(inputs), generator=self.draw).to(labels.device)
                share = 1 - float(mask.mean())
                outputs = self.net((1 - mask) * inputs + mask * inputs[other])
                return share * F.cross_entropy(outputs, labels) + (1 - share) * F.cross_entropy(outputs, labels[other])

        return Pasted(net, draw)


@dataclass(frozen=True, kw_only=True)
class AugMix(Augmented):
    """Training with two mixtures of chains of operations for each image, on which the predictions are to agree.

    The loss is the cross-entropy on the image plus ``consistency`` times the Jensen-Shannon divergence of the
    predictions for the image and for two mixtures of it.

    Attributes:
        width: Chains in a mixture.
        severity: Largest level of an operation, of 10.
        alpha: Weights of chains are drawn from ``Dirichlet(alpha, ...)``, that of the mixture from
            ``Beta(alpha, alpha)``.
        consistency: Price of the divergence.

    References:
        Hendrycks et al., AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty, ICLR 2020.
        Images are taken to lie between the least and the greatest value of the training images.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"AugMix": {}}

    width: int = 3
    severity: float = 3.0
    alpha: float = 1.0
    consistency: float = 12.0

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        more = {"severity": Expected(low=0.1, high=10), "alpha": Expected(above=True), "consistency": Expected()}
        return {**super().expected(), **more, "width": Expected(low=1, whole=True)}

    def recipe(self, task: Task, net: Trainee, learned: Pair, failing: Pair, draw: torch.Generator) -> Recipe:
        """Mixtures by a Dirichlet distribution."""
        numbers = np.random.default_rng(task.seed)

        def weights(count: int) -> Tensor:
            return torch.from_numpy(numbers.dirichlet([self.alpha] * self.width, count))

        def mixed(images: Tensor) -> Tensor:
            keep = torch.from_numpy(numbers.beta(self.alpha, self.alpha, len(images)))
            return mix_chains(images, weights(len(images)), keep, self.severity, draw)

        return Consistent(net, draw, value_range(learned[0]), mixed, self.consistency)


@dataclass(eq=False)
class Consistent(Recipe):
    """Cross-entropy on images, and the divergence of the predictions for them and for two mixtures of each.

    Attributes:
        span: Least and greatest value of images.
        mixed: A mixture of each image, from 0 to 1.
        price: Of the divergence.
    """

    span: tuple[float, float]
    mixed: Any
    price: float

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        low, high = self.span
        plain = (inputs - low) / (high - low)
        pair = [low + (high - low) * self.mixed(plain) for _ in range(2)]
        outputs = self.net(torch.cat([inputs, *pair])).chunk(3)
        return F.cross_entropy(outputs[0], labels) + self.price * divergence(outputs)


def divergence(outputs: tuple[Tensor, ...]) -> Tensor:
    """Jensen-Shannon divergence of the predictions of some logits ``(N, k)``, mean over rows, in nats."""
    chances = torch.stack([torch.softmax(one, 1) for one in outputs]).clamp(min=1e-12)  # 0 has no slope
    middle = chances.mean(0).clamp(1e-7, 1).log()
    return torch.stack([F.kl_div(middle, one, reduction="batchmean") for one in chances]).mean()


def value_range(images: Tensor) -> tuple[float, float]:
    """Least and greatest value of images; the latter is above the former."""
    low, high = float(images.amin()), float(images.amax())
    return low, high if high > low else low + 1.0


def validation_loss(net: Trainee, rows: Pair) -> float:
    """Mean cross-entropy of rows."""
    return float(F.cross_entropy(net.predict(rows[0]), rows[1]))


def beta_of(alpha: float, seed: int) -> Any:
    """Draws from ``Beta(alpha, alpha)``, a function of their number."""
    draw = np.random.default_rng(seed)
    return lambda count: draw.beta(alpha, alpha, count)
