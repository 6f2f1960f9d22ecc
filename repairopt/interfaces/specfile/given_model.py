"""What the command line takes for a model, as the ``model`` of a spec file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repairopt.errors import SpecFileError

from .nnet_file import read_nnet
from .opened import load_model, read_state
from .reader import SpecFile, check_spec

EXPECTED = (
    "expected an .onnx or .nnet file; package.module:function, with --weights; or a file of weights (.safetensors, "
    ".pt) of linear layers with ReLU between them"
)


def model_entry(given: str, weights: str | Path | None, folder: Path) -> dict[str, Any]:
    """The ``model`` of a spec file in ``folder``; a SpecFileError where ``given`` is no model."""
    if re.fullmatch(r"[\w.]+:[\w.]+", given) and not Path(given).exists():
        return {"factory": given} | ({} if weights is None else {"weights": relative(weights, folder)})
    if weights is not None:
        raise SpecFileError(f"model '{given}': --weights goes with package.module:function; {EXPECTED}.")
    if not Path(given).is_file():
        raise SpecFileError(f"model '{given}': there is no such file; {EXPECTED}.")
    if Path(given).suffix == ".onnx":
        return {"onnx": relative(given, folder)}
    is_nnet = Path(given).suffix == ".nnet"
    sizes = read_nnet(given).sizes if is_nnet else _sizes(given)
    factory = f"repairopt.interfaces.specfile.networks:{'nnet' if is_nnet else 'mlp'}"
    entry = {"factory": factory, "arguments": {"sizes": sizes}}
    return entry | {"weights": relative(given, folder)}


def relative(path: str | Path, folder: Path) -> str:
    """A path as a spec file in ``folder`` names it."""
    return Path(os.path.relpath(path, folder)).as_posix()


def bare_spec(entry: dict[str, Any], path: Path, **parts: Any) -> SpecFile:
    """A spec with a model and what ``parts`` say; the rest is there so that it is one."""
    rest: dict[str, Any] = {"data": {"repair": "none.csv"}, "inputs": ["x"], "bounds": ["max_change <= 1"]}
    return check_spec(path, {"model": entry, **rest, **parts})


def load_given(given: str, weights: str | Path | None, rows: Tensor | None = None) -> nn.Module:
    """The network that the command line names, evaluating; ``rows`` show an ONNX file sizes that it leaves open."""
    return load_model(bare_spec(model_entry(given, weights, Path()), Path("model")), rows)


def _sizes(given: str) -> list[int]:
    """Inputs, hidden layers and classes of a state dict of linear layers, as ``networks:mlp`` makes them."""
    file = bare_spec({"factory": "repairopt.interfaces.specfile.networks:mlp"}, Path("model"))
    state = read_state(file, Path(given))
    count = sum(value.ndim == 2 for value in state.values())
    matrices: list[Tensor] = [state[f"{2 * i}.weight"] for i in range(count) if f"{2 * i}.weight" in state]
    sizes = [int(value.shape[1]) for value in matrices] + [int(value.shape[0]) for value in matrices[-1:]]
    expected = {f"{2 * i}.{part}" for i in range(len(matrices)) for part in ("weight", "bias")}
    chain = all(int(value.shape[0]) == after for value, after in zip(matrices, sizes[1:], strict=True))
    if not matrices or set(state) != expected or not chain:
        names = ", ".join(list(state)[:4])
        raise SpecFileError(
            f"model '{given}': holds weights ({names}, ...) but not the network that they belong to. Name the function "
            f"that builds it: package.module:function --weights {given}."
        )
    return sizes
