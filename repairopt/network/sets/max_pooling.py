"""Max pooling for bounds of sets: the largest entry of a window as sums and rectifiers.

``max(a, b) = a + relu(b - a)``, entry by entry of a window in rounds of pairs, so that whatever bounds linear maps and
rectifiers bounds pools too, from both sides, with the bounds of differences of entries. Where the network pads, a place
outside of the input is taken for the nearest one inside, which is in the window as well.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .zonotope_layers import linear_function, relaxation, relaxation_of

MODULES: Mapping[type[nn.Module], int] = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}
FUNCTIONS: Mapping[Any, int] = {
    **{getattr(F, f"max_pool{n}d"): n for n in (1, 2, 3)},
    **{getattr(torch, f"max_pool{n}d"): n for n in (1, 2, 3)},
}
NAMES = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
DEFAULTS = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}


def entry_of_windows(x: Tensor, places: tuple[tuple[int, int, int, int, int, bool], ...]) -> Tensor:
    """One entry of each window of ``(N, C, ...)``: for each axis its place; size, stride, padding, dilation, ceil."""
    for axis, (place, kernel, stride, padding, dilation, ceil) in enumerate(places, x.ndim - len(places)):
        size, reach = x.shape[axis], dilation * (kernel - 1) + 1
        count = (size + 2 * padding - reach + (stride - 1 if ceil else 0)) // stride + 1
        if ceil and (count - 1) * stride >= size + padding:
            count -= 1  # no window starts behind the input
        starts = stride * torch.arange(count, device=x.device) - padding
        x = x.index_select(axis, (starts + dilation * place).clamp(0, size - 1))
    return x


relaxation(entry_of_windows)(linear_function)


def without_max_pooling(network: nn.Module, graph: fx.Graph) -> None:
    """Replace nodes that pool maxima; those that return places, or pad windows with gaps, stay as they are."""
    for node in list(graph.nodes):
        settings = _settings(network, node)
        if settings is None:
            continue
        axes = _by_axis(settings)
        if axes is None:
            continue
        with graph.inserting_before(node):
            made = _largest(graph, node.args[0], axes)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def _settings(network: nn.Module, node: fx.Node) -> dict[str, Any] | None:
    """Settings of a pool, ``n`` among them; None for other nodes."""
    if node.op == "call_module":
        module: Any = network.get_submodule(str(node.target))
        hooked = bool(module._forward_hooks or module._forward_pre_hooks)
        if type(module) not in MODULES or relaxation_of(None, module) or hooked or len(node.args) != 1:
            return None
        return {"n": MODULES[type(module)], **{name: getattr(module, name) for name in NAMES}}
    if node.op != "call_function" or node.target not in FUNCTIONS or relaxation_of(node.target, None):
        return None
    given = {**DEFAULTS, **dict(zip(NAMES, node.args[1:], strict=False)), **node.kwargs}
    return {"n": FUNCTIONS[node.target], **given} if "kernel_size" in given and node.args else None


def _by_axis(settings: Mapping[str, Any]) -> list[tuple[int, int, int, int, bool]] | None:
    """For each axis size, stride, padding, dilation and ceil; None where places outside cannot be taken for others."""
    n, kernel = settings["n"], settings["kernel_size"]
    stride = settings["stride"] if settings["stride"] not in (None, []) else kernel
    parts = [kernel, stride, settings["padding"], settings["dilation"]]
    wide = [part if isinstance(part, tuple | list) else (part,) for part in parts]
    sizes = [tuple(part) * (n if len(part) == 1 else 1) for part in wide]
    ceil = bool(settings["ceil_mode"])
    if settings["return_indices"] or any(len(one) != n or not all(isinstance(k, int) for k in one) for one in sizes):
        return None
    axes = [(k, s, p, d, ceil) for k, s, p, d in zip(*sizes, strict=True)]
    return None if any(d > 1 and (p > 0 or ceil) for _, _, p, d, ceil in axes) else axes


def _largest(graph: fx.Graph, x: Any, axes: list[tuple[int, int, int, int, bool]]) -> fx.Node:
    waiting = []
    for places in product(*(range(axis[0]) for axis in axes)):
        named = tuple((place, *axis) for place, axis in zip(places, axes, strict=True))
        waiting.append(graph.call_function(entry_of_windows, (x, named)))
    while len(waiting) > 1:
        first, second, *rest = waiting
        gap = graph.call_function(F.relu, (graph.call_function(operator.sub, (second, first)),))
        waiting = [*rest, graph.call_function(operator.add, (first, gap))]
    return waiting[0]
