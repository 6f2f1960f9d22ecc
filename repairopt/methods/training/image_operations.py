"""Operations on batches of images that keep what is on them: those of AugMix, and masks of boxes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # images (N, C, H, W) from 0 to 1, levels (N,)
LEVELS = 10.0  # of a magnitude
LEAST = 0.1  # level that is drawn


def autocontrast(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """Each channel is stretched to the whole range; a constant one stays."""
    flat = images.flatten(2)
    low, high = flat.amin(2)[..., None, None], flat.amax(2)[..., None, None]
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-12), images)


def equalize(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """The histogram of each channel becomes flat, in 256 steps."""
    flat = (images.clamp(0, 1) * 255).round().long().flatten(2)
    counts = torch.zeros(*flat.shape[:2], 256, device=images.device).scatter_add_(
        2, flat, torch.ones_like(flat, dtype=torch.float32)
    )
    total = counts.cumsum(2)
    first = torch.where(counts > 0, total, torch.inf).amin(2, keepdim=True)
    size = float(flat.shape[2])
    table = ((total - first) / (size - first).clamp(min=1.0)).clamp(0, 1)
    found = table.gather(2, flat).view(images.shape).to(images.dtype)
    return torch.where((first < size)[..., None], found, images)


def posterize(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """The ``4 - int(4 level / 10)`` highest of 8 bits are kept."""
    bits = 4 - (4 * level / LEVELS).floor()
    step = (2 ** (8 - bits))[:, None, None, None]
    return ((images.clamp(0, 1) * 255).round() / step).floor() * step / 255


def solarize(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """Values from ``256 - int(256 level / 10)`` on, of 256, are inverted."""
    least = ((256 - (256 * level / LEVELS).floor()) / 255)[:, None, None, None]
    return torch.where(images >= least, 1 - images, images)


def rotate(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """By up to ``30 level / 10`` degrees, in either direction."""
    angle = _signed(30 * level / LEVELS, draw) * math.pi / 180
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _moved(images, torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1))


def shear_x(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """Rows are shifted by up to ``0.3 level / 10`` of their height."""
    return _moved(images, _affine(len(images), level, (0, 1), _signed(0.3 * level / LEVELS, draw)))


def shear_y(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """Columns are shifted by up to ``0.3 level / 10`` of their place."""
    return _moved(images, _affine(len(images), level, (1, 0), _signed(0.3 * level / LEVELS, draw)))


def translate_x(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """By up to ``level / 10`` of a third of the width, in either direction."""
    return _moved(images, _affine(len(images), level, (0, 2), _signed(2 / 3 * level / LEVELS, draw)))


def translate_y(images: Tensor, level: Tensor, draw: torch.Generator) -> Tensor:
    """By up to ``level / 10`` of a third of the height, in either direction."""
    return _moved(images, _affine(len(images), level, (1, 2), _signed(2 / 3 * level / LEVELS, draw)))


OPERATIONS: tuple[Operation, ...] = (
    autocontrast,
    equalize,
    posterize,
    rotate,
    solarize,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)


def chain(
    images: Tensor, first: tuple[Operation, ...], later: tuple[Operation, ...], severity: float, draw: torch.Generator
) -> Tensor:
    """Each image after one to three operations, drawn for it.

    Args:
        images: ``(N, C, H, W)`` from 0 to 1.
        first: What the first operation is drawn from.
        later: What the others are drawn from.
        severity: Levels are drawn from 0.1 to it, of 10.
        draw: Draws.

    Returns:
        ``(N, C, H, W)`` from 0 to 1.
    """
    depth = torch.randint(1, 4, (len(images),), generator=draw)
    found = images
    for step in range(3):
        known = first if step == 0 else later
        which = torch.randint(len(known), (len(images),), generator=draw)
        level = LEAST + (severity - LEAST) * torch.rand(len(images), generator=draw)
        which = torch.where(depth > step, which, -1)
        made = found.clone()
        for k in which.unique().tolist():
            own = (which == k).nonzero().flatten()
            if k >= 0:
                rows = own.to(images.device)
                made[rows] = known[k](found[rows], level[own].to(images), draw).clamp(0, 1)
        found = made
    return found


def mix_chains(
    images: Tensor,
    weights: Tensor,
    keep: Tensor,
    severity: float,
    draw: torch.Generator,
    first: tuple[Operation, ...] = OPERATIONS,
) -> Tensor:
    """Several chains of each image, mixed with each other and with the image.

    Args:
        images: ``(N, C, H, W)`` from 0 to 1.
        weights: Of the chains, ``(N, M)``, each row with the sum 1.
        keep: Weight of the mixed chains against the image, ``(N,)``.
        severity: As for :func:`chain`.
        draw: Draws.
        first: What the first operation of a chain is drawn from.
    """
    total = torch.zeros_like(images)
    for one in weights.T:
        total += one[:, None, None, None].to(images) * chain(images, first, OPERATIONS, severity, draw)
    share = keep[:, None, None, None].to(images)
    return share * total + (1 - share) * images


def box_mask(count: int, size: tuple[int, int], box: tuple[float, float], draw: torch.Generator) -> Tensor:
    """Where a box around a random place of each image is, ``(count, 1, H, W)`` of 0 and 1; cut at the border."""
    masks = []
    for length, side in zip(size, box, strict=True):
        center = torch.randint(length, (count, 1), generator=draw)
        low = (center - math.floor(side / 2)).clamp(0, length)
        high = (center - math.floor(side / 2) + round(side)).clamp(0, length)
        place = torch.arange(length)
        masks.append((place >= low) & (place < high))
    return (masks[0][:, None, :, None] & masks[1][:, None, None, :]).float()


def _signed(size: Tensor, draw: torch.Generator) -> Tensor:
    flip = torch.rand(len(size), generator=draw).to(size)
    return torch.where(flip < 0.5, -size, size)


def _affine(count: int, like: Tensor, place: tuple[int, int], value: Tensor) -> Tensor:
    found = torch.eye(2, 3).to(like).repeat(count, 1, 1)
    found[:, place[0], place[1]] = value
    return found


def _moved(images: Tensor, matrix: Tensor) -> Tensor:
    grid = F.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
