"""FSGMix: mixtures of augmented images with weights that follow the distribution of failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.errors import require_extra
from repairopt.methods.settings import Expected
from repairopt.methods.task import Task

from .augment import AugMix, Consistent, Recipe, value_range
from .fit import Pair
from .image_operations import OPERATIONS, chain, mix_chains
from .trainee import Trainee

BANDS = 4  # of spatial frequencies
LEAST = 1e-3  # weight of a chain, so that log ratios are finite


@dataclass(frozen=True, kw_only=True)
class FSGMix(AugMix):
    """Few-Shot guided mix: training as AugMix does it, with weights of chains drawn from a model of the failures.

    For each failing image the statistics of its channels and frequencies are written as a mixture of those of chains
    applied to a training image of its class. The weights of these mixtures, of failures drawn by their loss, are
    modelled by a Gaussian mixture of their log ratios, with as many components as its information criterion wants;
    weights of chains are draws from it.

    Attributes:
        components: At most so many.
        shots: Failing images that are described.

    References:
        Ren et al., Few-Shot Guided Mix for DNN Repairing, ICSME 2020. How weights follow from failures is a completion
        of its description in DeepRepair and ArchRepair.
    """

    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Few-Shot guided mix (FSGMix, FM)": {}}

    width: int = 3
    components: int = 5
    shots: int = 1000

    def expected(self) -> dict[str, Expected]:
        """What the settings may be."""
        counts = dict.fromkeys(("components", "shots"), Expected(low=1, whole=True))
        return {**super().expected(), **counts, "width": Expected(low=2, whole=True)}

    def recipe(self, task: Task, net: Trainee, learned: Pair, failing: Pair, draw: torch.Generator) -> Recipe:
        """Mixtures by the model of the failures."""
        require_extra("sklearn", "method FSGMix", "sklearn")
        span = value_range(torch.cat([learned[0], failing[0]]))
        weights = self.weights(task, net, learned, failing, span, draw)
        numbers = np.random.default_rng(task.seed)

        def mixed(plain: Tensor) -> Tensor:
            keep = torch.from_numpy(numbers.beta(self.alpha, self.alpha, len(plain)))
            return mix_chains(plain, weights(len(plain)), keep, self.severity, draw)

        return Consistent(net, draw, span, mixed, self.consistency)

    def weights(
        self,
        task: Task,
        net: Trainee,
        learned: Pair,
        failing: Pair,
        span: tuple[float, float],
        draw: torch.Generator,
    ) -> Callable[[int], Tensor]:
        """Draws weights of chains, a function of their number to ``(count, width)``."""
        x, y = (part[: self.shots] for part in failing)
        sources = self._of_class(learned, y, draw)
        shown = [((one - span[0]) / (span[1] - span[0])).clamp(0, 1) for one in (x, learned[0][sources])]
        responses = [
            statistics(chain(shown[1], OPERATIONS, OPERATIONS, self.severity, draw)) for _ in range(self.width)
        ]
        shares = mixtures(statistics(shown[0]).numpy(), torch.stack(responses, 1).numpy())
        loss = F.cross_entropy(net.predict(x), y, reduction="none").double().cpu().numpy()
        model = fitted(shares, loss, self.components, task.seed)

        def drawn(count: int) -> Tensor:
            logs = np.concatenate([model.sample(count)[0], np.zeros((count, 1))], 1)
            return torch.softmax(torch.from_numpy(logs), 1)

        return drawn

    def _of_class(self, learned: Pair, labels: Tensor, draw: torch.Generator) -> Tensor:
        """A training image of each label, or any where its class has none."""
        found = []
        for label in labels.tolist():
            own = (learned[1] == label).nonzero().flatten()
            own = own if len(own) else torch.arange(len(learned[1]))
            found.append(int(own[int(torch.randint(len(own), (1,), generator=draw))]))
        return torch.tensor(found, device=learned[0].device)


def statistics(images: Tensor) -> Tensor:
    """Mean and deviation of each channel, and the logarithm of the power in bands of frequencies, ``(N, s)``."""
    flat = images.double().cpu().flatten(2)
    power = torch.fft.rfft2(images.double().cpu()).abs().square().mean(1)
    height, width = images.shape[2:]
    radius = torch.sqrt(torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width)[None].square())
    edges = torch.linspace(0, float(radius.max()) + 1e-9, BANDS + 1)
    bands = [power[:, (radius >= low) & (radius < high)].mean(1) for low, high in zip(edges, edges[1:], strict=False)]
    logs = torch.log(torch.stack(bands, 1).nan_to_num() + 1e-9)
    return torch.cat([flat.mean(2), flat.std(2, correction=0), logs / 10], 1)


def mixtures(wanted: Any, given: Any) -> Any:
    """Weights on the simplex, ``(N, M)``, with which responses ``(N, M, s)`` come closest to ``(N, s)``."""
    from scipy.optimize import nnls

    found = np.stack([nnls(own.T, one)[0] for one, own in zip(wanted, given, strict=True)]) + LEAST
    return found / found.sum(1, keepdims=True)


def fitted(shares: Any, loss: Any, components: int, seed: int) -> Any:
    """The Gaussian mixture of log ratios, rows drawn by their loss, with the least Bayesian information criterion."""
    from sklearn.mixture import GaussianMixture

    logs = np.log(shares[:, :-1] / shares[:, -1:])
    chance = loss + 1e-12
    rows = np.random.default_rng(seed).choice(len(logs), len(logs), p=chance / chance.sum())
    most = min(components, max(1, len(np.unique(logs[rows], axis=0)) // 2))
    sample = logs[rows] if len(rows) > 1 else np.repeat(logs[rows], 2, axis=0)
    models = [GaussianMixture(k, random_state=seed, reg_covar=1e-3).fit(sample) for k in range(1, most + 1)]
    return min(models, key=lambda one: one.bic(sample))
