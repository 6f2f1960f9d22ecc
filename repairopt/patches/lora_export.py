"""Export a patch of linear layers as a LoRA adapter that ``peft`` loads.

LoRA adds the product of two matrices to a layer's weight when the layer is run, or when the adapter is merged. The sum
is rounded differently from the patch: outputs agree within floating-point tolerance, not to the bit, and nothing
refuses a wrong base. Where exactness counts, ship the patch.

A bias that changed becomes the bias of LoRA's second matrix (``lora_bias=True``), which peft adds to the output and
knows how to merge. peft's ``bias="lora_only"`` and ``"all"`` are not used: they overwrite the base model's bias, so
that disabling the adapter does not bring it back.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repairopt.errors import ExportError

from .factorize import find_factors
from .patch import Patch
from .safe_files import whole_file, write_tensors
from .weights import listed, state_of


def export_lora(
    patch: Patch,
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    max_rank: int | None = None,
    base_model: str | None = None,
) -> dict[str, int]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    ``peft.PeftModel.from_pretrained(model, folder)`` loads them. LoRA's arithmetic is not exact to the bit. The rank is
    the number of singular values of the difference that are more than rounding of the weight itself.

    Args:
        patch: Changes weights and biases of ``nn.Linear`` layers and nothing else.
        model: With the weights of the patch's base; not modified.
        folder: For the two files; made where it does not exist.
        max_rank: Largest rank of a layer. A difference of rank ``r`` takes ``r (in + out)`` numbers, which may be more
            than the layer itself; a last layer's rank is at most the number of classes.
        base_model: Name or path of the base model for the configuration.

    Returns:
        For each layer its rank.

    Raises:
        ExportError: The patch changes something else, a bias of one layer and a layer without a bias, a tied weight,
            or a rank is larger than ``max_rank``.
        WrongBaseError: The model has other weights than the base.

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
    """
    old = state_of(model)
    new = patch.apply_to_state_dict(old)
    layers = _layers(patch, model)
    with_bias = any(f"{layer}.bias" in change.names for layer in layers for change in patch.changes)
    if with_bias:
        _check_biases(layers, old)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for layer in layers:
        left, right = _factors(layer, old[f"{layer}.weight"], new[f"{layer}.weight"], max_rank)
        ranks[layer] = len(right)
        start = f"base_model.model.{layer}.lora_"
        tensors |= {f"{start}A.weight": right, f"{start}B.weight": left}
        if with_bias:
            change = _values(new[f"{layer}.bias"]) - _values(old[f"{layer}.bias"])
            tensors[f"{start}B.bias"] = torch.from_numpy(change).to(left.dtype)
    os.makedirs(folder, exist_ok=True)
    texts = {"format": "pt", "repairopt_patch_sha256": patch.content_hash}
    write_tensors(Path(folder) / "adapter_model.safetensors", tensors, texts)
    with whole_file(Path(folder) / "adapter_config.json") as path:
        path.write_text(json.dumps(_config(ranks, with_bias, base_model), indent=2) + "\n", encoding="utf-8")
    return ranks


def _layers(patch: Patch, model: nn.Module) -> list[str]:
    """Names of the linear layers that the patch changes, each once.

    Raises:
        ExportError: It changes something else, or nothing.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[str, None] = {}
    for change in patch.changes:
        name = change.names[0]
        layer, _, kind = name.rpartition(".")
        if len(change.names) > 1:
            raise ExportError(
                f"{listed(change.names)} are one tied weight; an adapter would change it under one name alone. Ship "
                f"the patch or the merged weights."
            )
        # Exactly nn.Linear: attention uses the weight of its subclass without calling it, and LoRA would be ignored.
        if not layer or type(modules.get(layer)) is not nn.Linear or kind not in ("weight", "bias"):
            raise ExportError(
                f"the patch changes '{name}', which is no weight or bias of an nn.Linear inside of the model; LoRA "
                f"here covers linear layers alone. Ship the patch or the merged weights, or repair linear layers."
            )
        layers[layer] = None
    if not layers:
        raise ExportError("the patch changes nothing, so there is no adapter to write. Use the model as it is.")
    return list(layers)


def _check_biases(layers: list[str], state: dict[str, Tensor]) -> None:
    without = [layer for layer in layers if f"{layer}.bias" not in state]
    if without:
        raise ExportError(
            f"the patch changes a bias, and {listed(without)} have none. peft gives all layers of an adapter a bias or "
            f"none, and cannot merge one into a layer without. Ship the patch, or repair weights without biases."
        )


def _values(tensor: Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _factors(layer: str, old: Tensor, new: Tensor, max_rank: int | None) -> tuple[Tensor, Tensor]:
    """``(out, r)`` and ``(r, in)`` whose product is the difference up to rounding of the weight; ``r`` at least 1."""
    before, after = _values(old), _values(new)
    if not np.isfinite(after - before).all():
        raise ExportError(f"layer '{layer}': the difference is not finite. Ship the patch or the merged weights.")
    found = find_factors(before, after, new.dtype, max_rank)
    if found is None:
        raise ExportError(
            f"layer '{layer}': the difference has a rank above max_rank={max_rank}. Allow more, repair fewer weights, "
            f"or ship the patch."
        )
    left, right = found
    if not len(right):
        left, right = np.zeros((len(before), 1)), np.zeros((1, before.shape[1]))
    dtype = torch.float64 if new.dtype == torch.float64 else torch.float32
    return torch.from_numpy(left).to(dtype).contiguous(), torch.from_numpy(right).to(dtype).contiguous()


def _config(ranks: dict[str, int], with_bias: bool, base_model: str | None) -> dict[str, Any]:
    """The fields of peft's LoraConfig that matter; it fills in the others. The scale ``alpha / r`` is 1 everywhere."""
    most = max(ranks.values())
    fewer = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "target_modules": "|".join(re.escape(layer) for layer in ranks),
        "r": most,
        "lora_alpha": most,
        "rank_pattern": fewer,
        "alpha_pattern": fewer,
        "lora_bias": with_bias,
        "lora_dropout": 0.0,
        "bias": "none",
    }
