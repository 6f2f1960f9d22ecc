"""A ResNet-20, a Transformer and an LSTM for digits of 14 x 14 pixels, trained here; divisions of the other digits."""

from __future__ import annotations

from functools import cache
from typing import Any

import environment  # noqa: F401 (before numpy and torch)
import torch
from correctness_data import Digits, Normalize, digits
from torch import Tensor, nn
from torch.nn import functional as F

BASE = 3_000  # images that the networks are trained on; divisions are of the others
HERE, THERE = 2_000, 5_000  # images of the repair and held-out ones


class Block(nn.Module):
    """Two convolutions of 3 x 3 with batch normalization, and a shortcut that is padded with zeros."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        """``(N, before, H, W)`` to ``(N, width, H / stride, W / stride)``."""
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + short)


def resnet20(width: int = 8) -> nn.Module:
    """Nine blocks in three stages of doubled width, as He and others have for small images (16 in place of 8)."""
    layers: list[nn.Module] = [Normalize(), nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
    layers.append(nn.ReLU())
    before = width
    for stage in range(3):
        for place in range(3):
            layers.append(Block(before, width << stage, 2 if stage and not place else 1))
            before = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, width)`` to the same."""
        parts = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        found: Tensor = self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return found


class Transformer(nn.Module):
    """Rows of pixels as tokens; two blocks with normalization before each part; the mean of the tokens decides."""

    def __init__(self, width: int = 32, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.scale, self.embed = Normalize(), nn.Linear(14, width)
        self.place = nn.Parameter(0.02 * torch.randn(14, width))
        self.attend = nn.ModuleList([Attention(width, heads) for _ in range(blocks)])
        sizes = [(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(blocks)]
        self.think = nn.ModuleList([nn.Sequential(*layers) for layers in sizes])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * blocks + 1)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 1, 14, 14)`` to ``(N, 10)``."""
        x = self.embed(self.scale(x).squeeze(1)) + self.place
        for k, (attend, think) in enumerate(zip(self.attend, self.think, strict=True)):
            x = x + attend(self.norms[2 * k](x))
            x = x + think(self.norms[2 * k + 1](x))
        found: Tensor = self.head(self.norms[-1](x).mean(1))
        return found


class Recurrent(nn.Module):
    """An LSTM that reads the rows of pixels from the top; its last state decides."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.scale, self.lstm, self.head = Normalize(), nn.LSTM(14, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 1, 14, 14)`` to ``(N, 10)``."""
        found: Tensor = self.head(self.lstm(self.scale(x).squeeze(1))[0][:, -1])
        return found


NETWORKS = {  # epochs and rate of training
    "resnet20": (resnet20, 10, 3e-3),
    "transformer": (Transformer, 30, 3e-3),
    "lstm": (Recurrent, 15, 5e-3),
}


@cache
def small_digits() -> Digits:
    """All 10,000 digits and their shifted versions at half the resolution, in an order of their own."""
    found = digits()
    order = torch.randperm(len(found.labels), generator=torch.Generator().manual_seed(20))
    return Digits(F.avg_pool2d(found.clean, 2)[order], F.avg_pool2d(found.shifted, 2)[order], found.labels[order])


@cache
def trained(name: str) -> nn.Module:
    """A network trained on clean digits that no division has."""
    build, epochs, rate = NETWORKS[name]
    data = small_digits().part(torch.arange(BASE))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
        steps = epochs * -(-BASE // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(BASE).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(data.clean[rows]), data.labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval().requires_grad_(False)


def division(split: int, share: float = 1.0) -> tuple[Digits, Digits]:
    """Repair part and held-out part, or a share of each."""
    everything = small_digits()
    order = BASE + torch.randperm(len(everything.labels) - BASE, generator=torch.Generator().manual_seed(split))
    here, there = order[:HERE], order[HERE : HERE + THERE]
    return tuple(everything.part(index[: int(share * len(index))]) for index in (here, there))  # type: ignore[return-value]


def train_on_both(
    made: nn.Module, optimizer: Any, data: Digits, epochs: int, rate: float, keep: float, seed: int, batch: int = 128
) -> None:
    """Cross-entropy on shifted digits, and on clean ones times ``keep``; the rate falls linearly to 0.

    Few rows of both kinds are taken in one pass, which costs less than two.
    """
    draw, steps, step = torch.Generator().manual_seed(seed), epochs * -(-len(data.labels) // batch), 0
    for _ in range(epochs):
        orders = [torch.randperm(len(data.labels), generator=draw).split(batch) for _ in range(2)]
        for one, other in zip(*orders, strict=True):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            shifted, clean = data.shifted[one], data.clean[other]
            together = (
                made(torch.cat([shifted, clean])).split(len(one)) if batch < 128 else (made(shifted), made(clean))
            )
            loss = F.cross_entropy(together[0], data.labels[one])
            loss = loss + keep * F.cross_entropy(together[1], data.labels[other])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
