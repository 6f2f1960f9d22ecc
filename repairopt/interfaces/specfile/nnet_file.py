"""Networks of ``.nnet`` files, the text format of the ACAS Xu and HCAS networks.

Such a file holds fully connected layers with ReLU between them, ranges of the inputs, and the means and ranges by which
inputs and outputs are normalized: the network reads raw inputs, computes on ``(x - mean) / range``, and its scores are
multiplied by the last range and shifted by the last mean. Inputs outside of their range are not clipped here.

References:
    K. Julian, NNet, the format's description and reader in Python, C++ and Julia, 2018.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import SpecFileError, path_of

from .networks import mlp, nnet

Array = Any


@dataclass(frozen=True, eq=False)
class NnetFile:
    """What a file says.

    Attributes:
        sizes: Inputs, hidden layers, outputs.
        layers: Weights ``(m, n)`` and biases ``(m,)`` of each layer, float64.
        lower: Smallest raw inputs ``(n,)``. upper: Largest.
        mean: Of the inputs ``(n,)``. scale: Their range, ``(n,)``.
        output_mean: Added to the scores. output_scale: Multiplied with them before.
    """

    sizes: list[int]
    layers: list[tuple[Array, Array]]
    lower: Array
    upper: Array
    mean: Array
    scale: Array
    output_mean: float
    output_scale: float

    def state(self) -> dict[str, Tensor]:
        """The state dict of ``networks:nnet``, which reads raw inputs; float32."""
        arrays = {"0.mean": self.mean, "0.scale": self.scale}
        for place, (weight, bias) in enumerate(self.layers):
            is_last = place == len(self.layers) - 1
            factor, shift = (self.output_scale, self.output_mean) if is_last else (1.0, 0.0)
            arrays |= {f"{2 * place + 1}.weight": factor * weight, f"{2 * place + 1}.bias": factor * bias + shift}
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in arrays.items()}


def load_nnet(path: str | os.PathLike[str], *, raw: bool = True) -> nn.Sequential:
    """The network of a ``.nnet`` file, in evaluation mode.

    Args:
        path: The file.
        raw: Whether it reads raw inputs and gives scaled scores; else it reads normalized inputs and gives the scores
            as they are, as the ONNX and VNN-LIB files of the ACAS Xu networks have them.

    Raises:
        SpecFileError: The file cannot be read or is malformed; the message names the line.
    """
    file = read_nnet(path)
    network = nnet(file.sizes) if raw else mlp(file.sizes)
    if raw:
        network.load_state_dict(file.state())
    else:
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        for layer, (weight, bias) in zip(layers, file.layers, strict=True):
            layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return network.eval()


def read_nnet(path: str | os.PathLike[str]) -> NnetFile:
    """Read a ``.nnet`` file; a SpecFileError names file and line of what is malformed."""
    file = path_of(path, "network file")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecFileError(f"'{file}': cannot be read as text ({error}); expected a .nnet file.") from error
    rows = _Rows(file, text)
    count = int(rows.numbers("number of layers, inputs, outputs, largest layer", at_least=1, whole=True)[0])
    sizes = [int(size) for size in rows.numbers("sizes of layers", at_least=count + 1, whole=True)[: count + 1]]
    if count < 1 or min(sizes) < 1:
        raise rows.refusal(f"{count} layers of sizes {sizes}; expected numbers from 1 on")
    rows.numbers("a flag that is not used", at_least=0)
    lower, upper = (rows.numbers(f"{what} inputs", sizes[0])[: sizes[0]] for what in ("smallest", "largest"))
    mean, scale = (rows.numbers(f"{what} of inputs and outputs", sizes[0]) for what in ("means", "ranges"))
    if not (scale > 0).all():
        raise rows.refusal("a range is not above 0")
    layers = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        weight = np.stack([rows.numbers("weights", before, exact=True) for _ in range(after)])
        layers.append((weight, np.concatenate([rows.numbers("one bias", 1, exact=True) for _ in range(after)])))
    n = sizes[0]
    output = (float(mean[n]), float(scale[n])) if min(len(mean), len(scale)) > n else (0.0, 1.0)
    return NnetFile(sizes, layers, lower, upper, mean[:n], scale[:n], *output)


class _Rows:
    """Rows of numbers with commas between them, one after another."""

    def __init__(self, file: Path, text: str) -> None:
        self.file, self.line = file, 0
        rows = [(number, row.strip()) for number, row in enumerate(text.splitlines(), 1)]
        self._rows: Iterator[tuple[int, str]] = iter([one for one in rows if one[1] and not one[1].startswith("//")])

    def numbers(self, what: str, at_least: int, *, whole: bool = False, exact: bool = False) -> Array:
        """The next row, which has so many finite numbers; float64."""
        found = next(self._rows, None)
        if found is None:
            raise self.refusal(f"the file ends where {what} should follow")
        self.line, row = found
        try:
            values = np.array([float(word) for word in row.rstrip(",").split(",") if word.strip()])
        except ValueError as error:
            raise self.refusal(f"{error}; expected {what}") from None
        if len(values) < at_least or (exact and len(values) != at_least):
            raise self.refusal(f"{len(values)} numbers; expected {what}, {at_least} of them")
        if not np.isfinite(values).all() or (whole and (values % 1 != 0).any()):
            raise self.refusal(f"expected {what} as {'whole' if whole else 'finite'} numbers")
        return values

    def refusal(self, reason: str) -> SpecFileError:
        """An error that names the line read last."""
        return SpecFileError(f"'{self.file}', line {self.line}: {reason}.")
