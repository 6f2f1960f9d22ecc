"""Bands of further activations: between two lines of the chord's slope, for zonotopes and for backward bounds.

With ``g(x) = f(x) - slope x`` the band has to hold the range of ``g`` between the ends. For piecewise linear functions
this is taken at the ends and at the kinks. For smooth ones ``g`` is looked at on a grid; between two points at a
distance ``h`` it differs from its chord by at most ``h^2 / 8`` times the largest second derivative, which is known.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .zonotope_layers import Call, Zonotope, relaxation

POINTS = 32  # parts of the grid
ROUNDING = 16.0  # units of machine precision, times the size of what is added up, by which a band is wider


def _band(call: Call, at: Tensor, curvature: float) -> Zonotope:
    """The band of the chord's slope; ``at (P, N, ...)`` are the points, the ends first and last."""
    low, high = at[0], at[-1]
    values = torch.stack([call.run(x, *call.args[1:], **call.kwargs) for x in at])
    width = high - low
    flat = width <= 1e-12 * (1 + low.abs() + high.abs())
    slope = torch.where(flat, 0.0, (values[-1] - values[0]) / torch.where(flat, 1.0, width))
    gaps = values - slope * at
    spare = curvature * (width / POINTS) ** 2 / 8
    size = values.abs().amax(0) + (slope * at).abs().amax(0)
    spare = spare + ROUNDING * torch.finfo(low.dtype).eps * size + torch.where(flat, width, 0.0)
    least, most = gaps.amin(0) - spare, gaps.amax(0) + spare
    return call.band(slope, (least + most) / 2, (most - least) / 2)


def _ends(call: Call) -> tuple[Tensor, Tensor]:
    return call.z.center - call.z.spread, call.z.center + call.z.spread


def _smooth(call: Call, curvature: float) -> Zonotope:
    low, high = _ends(call)
    shares = torch.linspace(0, 1, POINTS + 1, dtype=low.dtype, device=low.device)
    at = torch.stack([low + share * (high - low) for share in shares[:-1]] + [high])
    return _band(call, at, curvature)


def _kinked(call: Call, kinks: tuple[float, ...]) -> Zonotope:
    low, high = _ends(call)
    inside = [torch.maximum(torch.minimum(torch.full_like(low, kink), high), low) for kink in kinks]
    return _band(call, torch.stack([low, *inside, high]), 0.0)


@relaxation(nn.Tanh, torch.tanh, F.tanh, "tanh", widens=True)
def _tanh(call: Call) -> Zonotope | None:
    return _smooth(call, 4 / (3 * math.sqrt(3)))


@relaxation(nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", widens=True)
def _sigmoid(call: Call) -> Zonotope | None:
    return _smooth(call, 1 / (6 * math.sqrt(3)))


@relaxation(nn.GELU, F.gelu, widens=True)
def _gelu(call: Call) -> Zonotope | None:
    """Its second derivative is at most ``2 / sqrt(2 pi)``; that of the approximation by tanh is a little larger."""
    return _smooth(call, 1.0)


@relaxation(nn.SiLU, F.silu, widens=True)
def _silu(call: Call) -> Zonotope | None:
    return _smooth(call, 0.5)


@relaxation(nn.Softplus, F.softplus, widens=True)
def _softplus(call: Call) -> Zonotope | None:
    """Of ``softplus(b x) / b`` it is at most ``b / 4``; torch switches to ``x`` where that is exact to rounding."""
    beta = call.module.beta if isinstance(call.module, nn.Softplus) else _option(call, 1, "beta", 1.0)
    threshold = call.module.threshold if isinstance(call.module, nn.Softplus) else _option(call, 2, "threshold", 20.0)
    return _smooth(call, beta / 4) if beta > 0 and threshold >= 20 else None


@relaxation(nn.ELU, F.elu, widens=True)
def _elu(call: Call) -> Zonotope | None:
    """With ``alpha = 1`` the derivative is continuous, and the second one at most 1."""
    alpha = call.module.alpha if isinstance(call.module, nn.ELU) else _option(call, 1, "alpha", 1.0)
    return _smooth(call, 1.0) if alpha == 1 else None


@relaxation(nn.LeakyReLU, F.leaky_relu, widens=True)
def _leaky(call: Call) -> Zonotope | None:
    return _kinked(call, (0.0,))


@relaxation(nn.ReLU6, F.relu6, widens=True)
def _relu6(call: Call) -> Zonotope | None:
    return _kinked(call, (0.0, 6.0))


@relaxation(nn.Hardtanh, F.hardtanh, widens=True)
def _hardtanh(call: Call) -> Zonotope | None:
    if isinstance(call.module, nn.Hardtanh):
        return _kinked(call, (float(call.module.min_val), float(call.module.max_val)))
    return _kinked(call, (_option(call, 1, "min_val", -1.0), _option(call, 2, "max_val", 1.0)))


def _option(call: Call, place: int, name: str, default: float) -> float:
    return float(call.args[place] if len(call.args) > place else call.kwargs.get(name, default))
