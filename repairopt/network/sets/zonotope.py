"""Certified margins and radii of networks by zonotopes (DeepZ), batched and differentiable in the weights.

A margin is a lower bound, over all inputs of a ball, of how far the label's logit lies above every other one. Positive
means: no input of the ball is given another label. The bound is sound in exact arithmetic. In floating point, a
multiple of the rounding error of the last sums is subtracted (:data:`repairopt.network.sets.certifier.ROUNDING`); this
is no proof about rounding in earlier layers, so use float64 where that matters.

References:
    Singh, Gehr, Mirman, Pueschel, Vechev, Fast and Effective Robustness Certification, NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from repairopt.errors import UnsupportedError

from .certifier import Certifier
from .zonotope_layers import Zonotope


@dataclass(frozen=True, eq=False)
class LastLayer(Zonotope):
    """What the last linear layer, ``name``, sees: the margin is an explicit concave function of its weights.

    With weights ``w_j``, biases ``b_j``, label ``y`` and the zonotope ``(c, g_p)``, the margin over class ``j`` is::

        (w_y - w_j) . c  +  b_y - b_j  -  sum_p |(w_y - w_j) . g_p|

    For fixed weights, :meth:`lowest` gives the point ``x`` of the zonotope where ``(w_y - w_j) . x`` is smallest. The
    row ``(w_y - w_j) . x + b_y - b_j >= t`` is a cut: valid for all weights, tight at these.
    """

    name: str = ""


Parameters = Mapping[str, Tensor] | None


def certified_margin(
    network: nn.Module, inputs: Any, labels: Any, radius: Any, *, parameters: Parameters = None, **options: Any
) -> Tensor:
    """Lower bound ``(N,)`` of ``min_j logit[label] - logit[j]`` over the part of a maximum-norm ball within bounds.

    ``radius`` is one number, or one for each input; ``parameters`` replace those of the network by name; inputs, labels
    and options are those of :class:`Certifier`. Differentiable in the network's parameters and in ``parameters``. Not
    monotone in the radius: the relaxation of a larger ball can be a little tighter.
    """
    return Certifier(network, inputs, labels, **options).margins(radius, parameters or {})


def certified_radius(
    network: nn.Module,
    inputs: Any,
    labels: Any,
    *,
    parameters: Parameters = None,
    tol: float = 1e-3,
    start: float = 0.2,
    max_radius: float = 1.0,
    **options: Any,
) -> Tensor:
    """Largest radius found by bisection at which each input is itself certified, ``(N,)``; 0 where none is.

    The first radius is ``start``, doubled while certified up to ``max_radius``; ``tol`` is the width at which the
    bisection ends; other arguments as for :func:`certified_margin`.

    Example:
        >>> import torch
        >>> network = nn.Linear(2, 2, bias=False)
        >>> network.load_state_dict({"weight": torch.eye(2)})
        <All keys matched successfully>
        >>> radius = certified_radius(network, [[0.8, 0.2]], [0], tol=0.01)  # the true radius is 0.3
        >>> bool(0.29 <= radius[0] < 0.3)
        True
    """
    certifier = Certifier(network, inputs, labels, **options)
    return certifier.radii(parameters or {}, tol=tol, start=start, max_radius=max_radius)


def last_layer_zonotope(
    network: nn.Module, inputs: Any, radius: Any, *, parameters: Parameters = None, **options: Any
) -> LastLayer:
    """Center and generators before the last linear layer, in one batch, to state margins as a convex program.

    Arguments as for :func:`certified_margin`; an UnsupportedError where the last step is no ``Linear`` module.
    """
    certifier = Certifier(network, inputs, None, **options)
    balls = certifier.ball(certifier.as_radii(radius), certifier.inputs)
    traced, known = certifier.traced, {certifier.traced.input: balls}
    last: Any = traced.nodes[-1].args[0]
    is_linear = last.op == "call_module" and isinstance(traced.network.get_submodule(str(last.target)), nn.Linear)
    if not is_linear:
        raise UnsupportedError(
            f"{traced.what}: its last step is '{last.target}', expected a Linear module. Take the margins of the whole "
            f"network with certified_margin instead."
        )
    before = traced.nodes[: traced.nodes.index(last)]
    found = traced.run(before, known, parameters or {}, certifier.slope)[last.args[0]]
    return LastLayer(found.center, found.generators, str(last.target))
