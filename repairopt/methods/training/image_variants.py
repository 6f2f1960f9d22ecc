"""Variants of images: affine warps, and AugMix versions within the box of the data.

Images are ``(N, C, H, W)``; a :class:`Box` says between which numbers their entries lie.

References:
    Hendrycks, Mu, Cubuk, Zoph, Gilmer and Lakshminarayanan, AugMix: a simple data processing method to improve
    robustness and uncertainty, ICLR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from repairopt.errors import SpecificationError

from .image_operations import mix_chains


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


def augmix(images: Tensor, box: Box, draw: torch.Generator, *, severity: float = 3.0, width: int = 3) -> Tensor:
    """An AugMix version of each image: chains mixed by Dirichlet(1) weights, and with the image by Beta(1, 1)."""
    weights = -torch.log(torch.rand(len(images), width, generator=draw).clamp(min=1e-12))
    keep = torch.rand(len(images), generator=draw)
    return box.back(mix_chains(box.unit(images), weights / weights.sum(1, keepdim=True), keep, severity, draw))
