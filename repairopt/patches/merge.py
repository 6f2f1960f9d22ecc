"""Weights with a patch merged into them, and files of weights: safetensors, never pickles."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from repairopt.errors import PatchError

from .fingerprints import fingerprint
from .patch import Patch
from .patch_header import HEADER
from .safe_files import read_tensors, write_tensors
from .weights import Weights, state_of


def merged_state_dict(weights: Weights, patch: Patch) -> dict[str, Tensor]:
    """The weights of the base with a patch applied: contiguous, on the CPU, sharing no memory, ties included."""
    state = dict(weights) if isinstance(weights, Mapping) else state_of(weights)
    return _standalone(patch.apply_to_state_dict(state))


def _standalone(weights: Weights) -> dict[str, Tensor]:
    state = state_of(weights, "weights")
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def save_weights(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write or replace a safetensors file of weights, whole or not at all; tied weights under each name."""
    state = _standalone(weights)
    write_tensors(path, state, {"format": "pt", "repairopt_weights_sha256": fingerprint(state).total})


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a safetensors file, on the CPU; a PatchError for a pickle, a patch, or changed weights."""
    tensors, texts = read_tensors(path)
    if HEADER in texts:
        raise PatchError(f"'{os.fspath(path)}': is a patch, not weights. Patch.load reads it.")
    expected = texts.get("repairopt_weights_sha256")
    if expected is not None and fingerprint(tensors).total != expected:
        raise PatchError(f"'{os.fspath(path)}': its weights do not match their hash; they were changed. Get it again.")
    return tensors
