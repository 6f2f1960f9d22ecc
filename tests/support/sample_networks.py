"""Small networks of every shape that the engine has to take, and the parameters that tests change in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Functional(nn.Module):
    """Layers as functions of parameters, defined in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5) / 2)
        self.bias = nn.Parameter(torch.randn(6) / 2)
        self.out = nn.Linear(6, 3)
        self.first = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.out(F.relu(F.linear(x, self.weight, self.bias)))


class Residual(nn.Module):
    """Two branches that meet; the input enters once more before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        h = h + torch.sigmoid(self.inner(h))
        return self.head(torch.cat([h, x], dim=1))


class Convolutional(nn.Module):
    """Convolution, batch normalization with running statistics, dropout, in-place ReLU, pooling, view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4 * 2 * 2, 3)
        self.bn.running_mean += torch.randn(4) / 3
        self.bn.running_var += torch.rand(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(x)), inplace=True)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(self.drop(x.view(x.size(0), -1)))


class Recurrent(nn.Module):
    """An LSTM that returns a tuple; logits come from a ``forward_fn``."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 5, num_layers=2, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        hidden, state = self.lstm(x)
        return self.out(hidden[:, -1]), state


class Words(nn.Module):
    """Embedding of integer inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(10, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(x).mean(1)))


class Untraceable(nn.Module):
    """A decision on a shape, which torch.fx cannot trace; everything else works as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 4:
            raise ValueError("four features wanted")
        return self.out(torch.tanh(self.second(torch.relu(self.first(x)))))


class ReadsData(nn.Module):
    """Control flow that reads the data themselves: runs neither under torch.fx nor under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if bool((hidden.abs() > 1e6).any()):
            raise ValueError("activations out of range")
        return self.out(torch.relu(hidden))


class Steps(nn.Module):
    """A step as activation: by ``sign``, whose derivative is 0, ``heaviside``, which has none, or a comparison."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.step, self.first, self.out = step, nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.step == "sign":
            return self.out(torch.sign(x))
        if self.step == "heaviside":
            return self.out(torch.heaviside(x, torch.ones_like(x)))
        return self.out((x > 0).to(x.dtype))


class Tied(nn.Module):
    """One matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


@dataclass(frozen=True)
class Case:
    """A network, how to feed it, and parameters in its middle and at its end."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    early: tuple[str, ...]
    last: str
    forward_fn: Callable[[nn.Module, Tensor], Tensor] | None = None
    integers: bool = False

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(3)
        return self.build().to(dtype).eval()

    def inputs(self, count: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
        draw = torch.Generator().manual_seed(4)
        if self.integers:
            return torch.randint(10, (count, *self.shape), generator=draw)
        return torch.randn(count, *self.shape, generator=draw, dtype=torch.float64).to(dtype)

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs) if self.forward_fn is None else self.forward_fn(model, inputs)


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


CASES = [
    Case("sequential", chain, (4,), ("2.weight", "2.bias"), "4.weight"),
    Case("functional", Functional, (4,), ("weight", "bias"), "out.weight"),
    Case("residual", Residual, (4,), ("inner.weight",), "head.weight"),
    Case("convolutional", Convolutional, (1, 6, 6), ("conv2.weight", "bn.weight"), "fc.weight"),
    Case("recurrent", Recurrent, (5, 4), ("lstm.weight_hh_l1",), "out.weight", lambda m, x: m(x)[0]),
    Case("words", Words, (3,), ("embed.weight",), "out.weight", integers=True),
    Case("untraceable", Untraceable, (4,), ("second.weight",), "out.weight"),
    Case("reads data", ReadsData, (4,), ("first.weight",), "out.weight"),
    Case("sign", lambda: Steps("sign"), (4,), ("first.weight",), "out.weight"),
    Case("heaviside", lambda: Steps("heaviside"), (4,), ("first.weight",), "out.weight"),
    Case("comparison", lambda: Steps("comparison"), (4,), ("first.weight",), "out.weight"),
    Case("tied", Tied, (4,), ("first.weight",), "out.weight"),
]
