"""Shifted digits: an MNIST network, the test set, the same images rotated and noisy; and generated last layers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from real_networks import halves, load  # noqa: E402

DEGREES, NOISE = 45.0, 0.2  # largest rotation; standard deviation of what is added to pixels from 0 to 1
MEAN, DEVIATION = 0.1307, 0.3081  # of the pixels, which the network was trained with
LAST = "11"  # name of its last layer


class Normalize(nn.Module):
    """From pixels to what the network was trained on."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 1, 28, 28)`` to the same."""
        return (x - MEAN) / DEVIATION


@dataclass(frozen=True, eq=False)
class Digits:
    """Some of the images.

    Attributes:
        clean: ``(N, 1, 28, 28)``, pixels from 0 to 1.
        shifted: The same images rotated and noisy.
        labels: ``(N,)``.
    """

    clean: Tensor
    shifted: Tensor
    labels: Tensor

    def part(self, index: Tensor) -> Digits:
        """Those of some positions."""
        return Digits(self.clean[index], self.shifted[index], self.labels[index])


def network() -> nn.Sequential:
    """``conv4``: two convolutions, two hidden layers of 100, ten outputs."""
    weights = load("mnist_nets.npz")
    model = nn.Sequential(
        Normalize(),
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    own = {k.split("/layers.")[1]: torch.from_numpy(v) for k, v in weights.items() if k.startswith("conv4/")}
    model.load_state_dict(own)
    return model.eval()


@lru_cache(maxsize=1)
def digits() -> Digits:
    """All 10,000, shifted once."""
    bundle = load("mnist_t10k.npz")
    clean = torch.tensor(bundle["images"])[:, None].float() / 255
    return Digits(clean, shifted(clean), torch.tensor(bundle["labels"]).long())


def shifted(images: Tensor, seed: int = 0) -> Tensor:
    """Each image turned by up to ``DEGREES`` either way, with noise, cut to 0 to 1."""
    draw = torch.Generator().manual_seed(seed)
    angle = (2 * torch.rand(len(images), generator=draw) - 1) * torch.pi * DEGREES / 180
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = nn.functional.affine_grid(turn, list(images.shape), align_corners=False)
    turned = nn.functional.grid_sample(images, grid, align_corners=False)
    return (turned + NOISE * torch.randn(images.shape, generator=draw)).clamp(0, 1)


def split_digits(split: int, share: float = 1.0) -> tuple[Digits, Digits]:
    """Repair half and held-out half, or a share of each."""
    everything = digits()
    here, there = halves(split, len(everything.labels))
    return tuple(everything.part(index[: int(share * len(index))]) for index in (here, there))  # type: ignore[return-value]


def generated(count: int, features: int = 100, classes: int = 10, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """A last layer without bias, features ``(N, features)`` and labels of a noisy teacher that has moved on."""
    draw = torch.Generator().manual_seed(seed)
    teacher = torch.randn(classes, features, generator=draw) / features**0.5
    moved = teacher + 0.5 * torch.randn(classes, features, generator=draw) / features**0.5
    inputs = torch.relu(torch.randn(count, features, generator=draw))
    labels = (inputs @ moved.T + 0.1 * torch.randn(count, classes, generator=draw)).argmax(1)
    layer = nn.Linear(features, classes, bias=False)
    with torch.no_grad():
        layer.weight.copy_(4.0 * teacher)
    return layer, inputs, labels
