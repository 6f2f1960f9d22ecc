"""Style of images: transfer by wavelets, without weights, and the choice of references by clusters."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-5  # added to variances


def wavelet_transfer(content: Tensor, style: Tensor) -> Tensor:
    """Images with the content of some and the style of others, by one level of Haar wavelets.

    The low band is whitened over its colors and gets the colors' mean and covariance of the reference; each high band
    is scaled to the reference's deviation, which carries blur and noise.

    Args:
        content: ``(N, C, H, W)``.
        style: References, the same shape.

    Returns:
        ``(N, C, H, W)``.

    References:
        Yoo et al., Photorealistic Style Transfer via Wavelet Transforms, ICCV 2019 (WCT2), whose transform is applied
        to features of a trained network; here it is applied to the images themselves.
    """
    height, width = content.shape[2:]
    own, other = (haar(F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")) for x in (content, style))
    low = color_transfer(own[0], other[0])
    high = []
    for band, wanted in zip(own[1:], other[1:], strict=True):
        spread = [x.flatten(2).std(2, correction=0)[..., None, None] for x in (band, wanted)]
        high.append(torch.where(spread[0] > TINY, band * spread[1] / spread[0].clamp(min=TINY), band))
    return inverse_haar([low, *high])[:, :, :height, :width]


def color_transfer(content: Tensor, style: Tensor) -> Tensor:
    """Whitening and coloring: the values of all places get the mean and covariance over channels of the reference."""
    own, other = content.flatten(2), style.flatten(2)
    mean, wanted = own.mean(2, keepdim=True), other.mean(2, keepdim=True)
    white = _root(_covariance(own - mean), -0.5) @ (own - mean)
    return (_root(_covariance(other - wanted), 0.5) @ white + wanted).view(content.shape)


def haar(images: Tensor) -> list[Tensor]:
    """The four bands ``(N, C, H / 2, W / 2)`` of one level, the low one first."""
    a, b, c, d = images[..., ::2, ::2], images[..., ::2, 1::2], images[..., 1::2, ::2], images[..., 1::2, 1::2]
    return [(a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]


def inverse_haar(bands: list[Tensor]) -> Tensor:
    """The images of four bands."""
    low, x, y, z = bands
    found = low.new_empty(*low.shape[:2], 2 * low.shape[2], 2 * low.shape[3])
    found[..., ::2, ::2], found[..., ::2, 1::2] = (low + x + y + z) / 2, (low - x + y - z) / 2
    found[..., 1::2, ::2], found[..., 1::2, 1::2] = (low + x - y - z) / 2, (low - x - y + z) / 2
    return found


def cluster_chances(images: Tensor, count: int, seed: int, weight: str = "printed") -> list[tuple[Tensor, Tensor]]:
    """Clusters of images by k-means on their pixels: for each the positions of its images and their chances.

    Args:
        images: ``(N, C, H, W)``.
        count: Clusters, at most as many as images; 0 for one with equal chances.
        seed: Of the first centers.
        weight: ``"printed"``: ``(1 - d_j / sum d) / (n - 1)`` by the distance ``d`` from the center, normalized as the
            printed formula is not; ``"softmax"``: ``exp(-d_j / mean d)``.
    """
    flat = images.detach().double().cpu().flatten(1).numpy()
    if count == 0:
        return [(torch.arange(len(flat)), torch.full((len(flat),), 1 / len(flat), dtype=torch.float64))]
    from scipy.cluster.vq import kmeans2

    count = min(count, len(np.unique(flat, axis=0)))
    centers, label = (
        kmeans2(flat, count, minit="++", seed=seed, missing="warn")
        if count > 1
        else (
            flat.mean(0, keepdims=True),
            np.zeros(len(flat), dtype=np.int64),
        )
    )
    found = []
    for k in np.unique(label):
        own = np.flatnonzero(label == k)
        far = np.linalg.norm(flat[own] - centers[k], axis=1)
        if len(own) == 1 or far.sum() == 0:
            chance = np.full(len(own), 1 / len(own))
        elif weight == "softmax":
            chance = np.exp(-far / far.mean())
        else:
            chance = (1 - far / far.sum()) / (len(own) - 1)
        found.append((torch.from_numpy(own), torch.from_numpy(chance / chance.sum())))
    return found


def _covariance(centered: Tensor) -> Tensor:
    found = centered @ centered.transpose(1, 2) / centered.shape[2]
    return found + TINY * torch.eye(found.shape[1]).to(found)


def _root(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag_embed(values.clamp(min=TINY) ** power) @ vectors.transpose(1, 2)
