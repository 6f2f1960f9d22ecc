"""Operations on feature maps that a repaired block may consist of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]  # channels, height, width
ORIGINAL = "original"
OPERATIONS = ("none", "skip", "average_pool", "max_pool", "separable", "dilated")


class Nothing(nn.Module):
    """Zeros of the shape of the next node."""

    def __init__(self, out: Shape) -> None:
        super().__init__()
        self.out = out

    def forward(self, inputs: Tensor) -> Tensor:
        """Zeros ``(N, C, H, W)``, which depend on the inputs."""
        return self._fit(inputs).mean(1, keepdim=True).expand(-1, self.out[0], -1, -1) * 0.0

    def _fit(self, inputs: Tensor) -> Tensor:
        return resize(inputs, self.out)


class Skip(nn.Module):
    """The identity; where the number of channels differs, a 1x1 convolution that begins as one, cut or padded."""

    def __init__(self, given: Shape, out: Shape) -> None:
        super().__init__()
        self.out, self.map = out, None
        if given[0] != out[0]:
            self.map = nn.Conv2d(given[0], out[0], 1, bias=False)
            with torch.no_grad():
                self.map.weight.copy_(torch.eye(out[0], given[0])[:, :, None, None])

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps of the shape of the next node."""
        found = resize(inputs, self.out)
        return found if self.map is None else self.map(found)


class Pool(nn.Module):
    """A 3x3 pool, then as :class:`Skip`."""

    def __init__(self, given: Shape, out: Shape, kind: str) -> None:
        super().__init__()
        self.kind, self.skip = kind, Skip(given, out)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps of the shape of the next node."""
        if self.kind == "max_pool":
            return self.skip(F.max_pool2d(inputs, 3, stride=1, padding=1))
        return self.skip(F.avg_pool2d(inputs, 3, stride=1, padding=1, count_include_pad=False))


class Separable(nn.Module):
    """ReLU, depthwise 3x3 and pointwise convolution, batch normalization, as often as there are steps."""

    def __init__(self, given: Shape, out: Shape, steps: int, dilation: int) -> None:
        super().__init__()
        self.out, parts = out, []
        stride = max(1, given[1] // max(1, out[1]))
        width = given[0]
        for k in range(steps):
            last = k == steps - 1
            parts += [
                nn.ReLU(),
                nn.Conv2d(
                    width,
                    width,
                    3,
                    stride=stride if k == 0 else 1,
                    padding=dilation,
                    dilation=dilation,
                    groups=width,
                    bias=False,
                ),
                nn.Conv2d(width, out[0] if last else width, 1, bias=False),
                nn.BatchNorm2d(out[0] if last else width),
            ]
        self.parts = nn.Sequential(*parts)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps of the shape of the next node."""
        return resize(self.parts(inputs), self.out)


def make_operation(name: str, given: Shape, out: Shape) -> nn.Module:
    """An operation from feature maps of one shape to those of another; a ValueError for an unknown name."""
    if name == "none":
        return Nothing(out)
    if name == "skip":
        return Skip(given, out)
    if name in ("average_pool", "max_pool"):
        return Pool(given, out, name)
    if name == "separable":
        return Separable(given, out, 2, 1)
    if name == "dilated":
        return Separable(given, out, 1, 2)
    raise ValueError(f"operation {name!r} is not known; expected {ORIGINAL} or one of {', '.join(OPERATIONS)}")


def resize(inputs: Tensor, out: Shape) -> Tensor:
    """The mean over the places of each new one, where height or width differ."""
    same = tuple(inputs.shape[2:]) == out[1:]
    return inputs if same else F.adaptive_avg_pool2d(inputs, out[1:])
