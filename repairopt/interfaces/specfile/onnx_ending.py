"""The logits of an ONNX file, and how its output follows from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .onnx_graph import OnnxGraph

ROUNDED = 2e-6  # relative, by which logits that are the same differ in single precision
LAST = 40  # tensors at the end that may be the logits
SQUASHING = {"Softmax", "Sigmoid", "Exp", "Tanh"}  # operators of which softmax and sigmoid are made


def find_logits(graph: OnnxGraph, few: Tensor, expected: Tensor) -> tuple[str, str]:
    """The first tensor of logits, and how the output follows from it: softmax, sigmoid, pair or same.

    Where answers are sure, values alone do not tell: an operator that softmax or sigmoid is made of has to follow.
    """
    rows = expected.double()
    sums = bool((rows.sum(1) - 1).abs().max() < 1e-3) and bool((rows >= 0).all())
    shares = rows.shape[1] == 1 and bool(((rows >= 0) & (rows <= 1)).all())
    nodes = [graph.model.graph.node[place] for place in graph.nodes[-LAST:]]
    names = [name for node in nodes for name in node.output if name and name != graph.output]
    if not names or not (sums or shares):
        return graph.output, "same"
    fitting: list[tuple[str, str, Tensor]] = []
    for name, value in zip(names, graph.values(names, few), strict=True):
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or len(value) != len(few):
            continue
        if not SQUASHING & {graph.model.graph.node[place].op_type for place in graph.after(name)}:
            continue
        found = as_rows(torch.tensor(value)).flatten(1)
        for ending in ("softmax", "pair", "sigmoid"):
            own = found if found.shape[1] > 1 else nn.functional.pad(found, (1, 0))
            fits = (found.shape[1] > 1) == (ending == "softmax")
            made = as_outputs(own, ending) if fits else own[:, :0]
            if made.shape == expected.shape and torch.allclose(made, expected, 1e-4, 1e-6):
                fitting.append((name, ending, found))
                break
    for name, ending, found in fitting:
        if ending == fitting[-1][1] and _is_shifted(found, fitting[-1][2]):
            return name, ending
    return graph.output, "same"


def _is_shifted(first: Tensor, last: Tensor) -> bool:
    """Whether two tensors of logits differ by one number in each row alone, which softmax does not see.

    Where answers are sure, softmax does not see a bias of the last layer either: that values give the same answers says
    nothing of other rows.
    """
    if first.shape != last.shape:
        return False
    apart = (first - last).double()
    apart = apart - apart.mean(1, keepdim=True) if apart.shape[1] > 1 else apart
    size = 1 + torch.stack([first.abs(), last.abs()]).amax((0, 2)).double()
    return bool((apart.abs().amax(1) <= ROUNDED * size).all())


def as_outputs(logits: Tensor, ending: str) -> Tensor:
    """What the file gives where the network gives logits."""
    if ending == "same":
        return logits
    shares = torch.softmax(logits, 1)
    return shares[:, 1:] if ending == "sigmoid" else shares


def as_rows(scores: Tensor) -> Tensor:
    """Scores ``(N, k)``; one score a row may come as ``(N,)``."""
    return scores[:, None] if scores.ndim == 1 else scores
