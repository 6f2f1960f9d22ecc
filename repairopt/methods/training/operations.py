"""Operations on images, in batches: affine warps, the nine operations of AugMix, and AugMix itself.

Images are ``(N, C, H, W)``; a :class:`Box` says between which numbers their entries lie.

References:
    Hendrycks, Mu, Cubuk, Zoph, Gilmer and Lakshminarayanan, AugMix: a simple data processing method to improve
    robustness and uncertainty, ICLR 2020; magnitudes are those of its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.errors import SpecificationError

BINS = 256
OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
DEGREES, SHEAR, SHIFT, BITS = 30.0, 0.3, 1 / 3, 4  # at level 10; shifts are shares of the image


@dataclass(frozen=True)
class Box:
    """Smallest and largest entry of images."""

    low: float
    high: float

    @classmethod
    def of(cls, method: object, images: Tensor) -> Box:
        """The box of some images; a SpecificationError where they are none."""
        if images.ndim != 4 or not images.is_floating_point():
            raise SpecificationError(
                f"method {type(method).__name__}: works on images (N, C, H, W); inputs are {images.dtype} of shape "
                f"{tuple(images.shape)}."
            )
        low, high = float(images.min()), float(images.max())
        return cls(low, high if high > low else low + 1.0)

    def unit(self, images: Tensor) -> Tensor:
        """Entries from 0 to 1."""
        return ((images - self.low) / (self.high - self.low)).clamp(0, 1)

    def back(self, images: Tensor) -> Tensor:
        """Entries from 0 to 1 as they were."""
        return self.low + images.clamp(0, 1) * (self.high - self.low)


def warp(
    images: Tensor,
    *,
    rotation: Tensor | float = 0.0,
    shift: tuple[Tensor | float, Tensor | float] = (0.0, 0.0),
    shear: tuple[Tensor | float, Tensor | float] = (0.0, 0.0),
    zoom: Tensor | float = 1.0,
) -> Tensor:
    """Rotated by radians, shifted by shares of the image (x, y), sheared (x, y) and zoomed; numbers or ``(N,)``."""
    like = torch.ones(len(images), dtype=images.dtype, device=images.device)
    angle, (dx, dy), (sx, sy), size = rotation * like, shift, shear, zoom * like
    ratio = images.shape[3] / images.shape[2]
    cos, sin = torch.cos(angle), torch.sin(angle)
    first = torch.stack([cos + sx * sin, (-sin + sx * cos) / ratio, -2 * dx * like], 1)
    second = torch.stack([(sin + sy * cos) * ratio, cos - sy * sin, -2 * dy * like], 1)
    theta = torch.stack([first, second], 1)
    theta = torch.cat([theta[:, :, :2] / size[:, None, None], theta[:, :, 2:]], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def operate(name: str, images: Tensor, level: float, sign: float) -> Tensor:
    """One of :data:`OPERATIONS` on images from 0 to 1, at a level from 0 to 10, with a sign of the direction."""
    size = level / 10
    if name == "rotate":
        return warp(images, rotation=sign * math.radians(DEGREES * size))
    if name in ("shear_x", "shear_y"):
        amount = sign * SHEAR * size
        return warp(images, shear=(amount, 0.0) if name == "shear_x" else (0.0, amount))
    if name in ("translate_x", "translate_y"):
        amount = sign * SHIFT * size
        return warp(images, shift=(amount, 0.0) if name == "translate_x" else (0.0, amount))
    if name == "posterize":
        steps = 2.0 ** (BITS - int(BITS * size))
        return torch.floor((images * (BINS - 1)) / (BINS / steps)) * (BINS / steps) / (BINS - 1)
    if name == "solarize":
        threshold = (BINS - int(BINS * size)) / BINS
        return torch.where(images < threshold, images, 1 - images)
    flat = images.flatten(2)
    if name == "autocontrast":
        low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
        spread = torch.where(high > low, (flat - low) / (high - low).clamp(min=1e-12), flat)
        return spread.view(images.shape)
    return _equalized(flat).view(images.shape)


def _equalized(flat: Tensor) -> Tensor:
    """Histograms made even, of each channel ``(N, C, pixels)``."""
    level = (flat * (BINS - 1)).round().long().clamp(0, BINS - 1)
    counts = torch.zeros(*flat.shape[:2], BINS, dtype=flat.dtype, device=flat.device)
    counts.scatter_add_(2, level, torch.ones_like(flat))
    below = counts.cumsum(2)
    first = below.masked_fill(counts == 0, float("inf")).amin(2, keepdim=True)
    even = (below - first) / (flat.shape[2] - first).clamp(min=1)
    constant = (counts > 0).sum(2, keepdim=True) <= 1
    return torch.where(constant, flat, even.gather(2, level).clamp(0, 1))


def augmix(
    images: Tensor, box: Box, draw: torch.Generator, *, severity: float = 3.0, width: int = 3, depth: int = 3
) -> Tensor:
    """An AugMix version of each image: chains of operations mixed by Dirichlet(1), and with the image by Beta(1, 1).

    Operations, their levels up to ``severity`` and directions are drawn for each chain of the batch, mixing weights for
    each image; ``width`` chains of 1 to ``depth`` operations.
    """
    unit = box.unit(images)
    mixed = torch.zeros_like(unit)
    weights = -torch.log(torch.rand(width, len(images), generator=draw).clamp(min=1e-12)).to(unit)
    weights = weights / weights.sum(0)
    for chain in range(width):
        one = unit
        for _ in range(int(torch.randint(1, depth + 1, (1,), generator=draw))):
            name = OPERATIONS[int(torch.randint(len(OPERATIONS), (1,), generator=draw))]
            level = 0.1 + float(torch.rand(1, generator=draw)) * (severity - 0.1)
            one = operate(name, one, level, 1.0 if float(torch.rand(1, generator=draw)) < 0.5 else -1.0)
        mixed = mixed + weights[chain][:, None, None, None] * one
    share = torch.rand(len(images), generator=draw).to(unit)[:, None, None, None]
    return box.back((1 - share) * unit + share * mixed)
