"""Export a patch of linear and convolutional layers as a LoRA adapter that ``peft`` loads.

LoRA adds the product of two matrices to a layer's weight: outputs agree within floating-point tolerance, not to the
bit, and nothing refuses a wrong base. A bias that changed becomes the bias of LoRA's second matrix
(``lora_bias=True``), which peft knows how to merge; its ``bias="lora_only"`` and ``"all"`` overwrite the base model's
bias, so that disabling the adapter does not bring it back.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import ExportError, path_of, public

from .patch import Patch
from .safe_files import whole_file, write_tensors
from .tensor_bits import Values, spacing
from .weights import listed, state_of


@public
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
        patch: Changes weights and biases of ``nn.Linear`` and ``nn.Conv2d`` layers (without groups) and nothing else;
            or, of a model that ``peft`` made, what belongs to its adapter, which is written with the patch applied.
        model: With the weights of the patch's base; not modified.
        folder: For the two files; made where it does not exist.
        max_rank: Largest rank of a layer. A difference of rank ``r`` takes ``r (in + out)`` numbers, which may be more
            than the layer itself; a last layer's rank is at most the number of classes.
        base_model: Name or path of the base model for the configuration.

    Returns:
        For each layer its rank.

    Raises:
        ExportError: The patch changes something else, a bias of one layer and a layer without a bias, a tied weight,
            or a rank is larger than ``max_rank``; or the model holds more than one adapter.
        WrongBaseError: The model has other weights than the base.

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
    """
    folder = path_of(folder, "folder of the adapter", written=True)
    if hasattr(model, "peft_config"):
        return _adapter_of(patch, model, folder, max_rank)
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
        shape = old[f"{layer}.weight"].shape[2:]  # of a convolution
        right, left = right.view(*right.shape[:1], -1, *shape), left.view(*left.shape, *[1] * len(shape))
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


def _adapter_of(patch: Patch, model: nn.Module, folder: str | os.PathLike[str], max_rank: int | None) -> dict[str, int]:
    """Write the adapter of a model that ``peft`` made, with the patch applied; the rank of each layer that changes."""
    known: Any = model
    if len(known.peft_config) != 1 or not hasattr(model, "save_pretrained"):
        raise ExportError(
            f"model {type(model).__name__}: holds {len(known.peft_config)} adapters of peft; expected a PeftModel with "
            f"one. Keep one by model.delete_adapter(name), or ship the patch."
        )
    adapter = next(iter(known.peft_config))
    own = (f".{adapter}.", f".modules_to_save.{adapter}.")
    ranks: dict[str, int] = {}
    for change in patch.changes:
        name = change.names[0]
        if own[1] not in name and not (".lora_" in name and own[0] in f"{name}."):
            raise ExportError(
                f"the patch changes '{name}', which is no part of the adapter '{adapter}'; its base would be another. "
                f"Ship the patch, or repair the adapter's weights alone: weights='all' where the base is frozen."
            )
        layer = name.partition(".lora_")[0].removeprefix("base_model.model.")
        if ".lora_A." in name or ".lora_B." in name:
            ranks[layer] = len(model.get_parameter(name.replace(".lora_B.", ".lora_A.")))
    if max_rank is not None and max(ranks.values(), default=0) > max_rank:
        raise ExportError(f"the adapter has a rank above max_rank={max_rank}. Allow more, or wrap the model with less.")
    changed: Any = patch.apply(model)
    changed.save_pretrained(os.fspath(folder), save_embedding_layers=False)  # does not look for the base on a hub
    return ranks


def _layers(patch: Patch, model: nn.Module) -> list[str]:
    """Names of the layers that the patch changes, each once; an ExportError where it changes something else."""
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
        # Exactly these: attention uses the weight of a subclass without calling it, and LoRA would be ignored.
        module = modules.get(layer)
        fits = type(module) in (nn.Linear, nn.Conv2d) and getattr(module, "groups", 1) == 1
        if not layer or not fits or kind not in ("weight", "bias"):
            raise ExportError(
                f"the patch changes '{name}', which is no weight or bias of an nn.Linear inside of the model, nor of "
                f"an nn.Conv2d without groups; LoRA here covers these alone. Ship the patch or the merged weights, or "
                f"repair such layers."
            )
        layers[layer] = None
    if not layers:
        raise ExportError("the patch changes nothing, so there is no adapter to write. Use the model as it is.")
    return list(layers)


def _check_biases(layers: list[str], state: dict[str, Tensor]) -> None:
    if without := [layer for layer in layers if f"{layer}.bias" not in state]:
        raise ExportError(
            f"the patch changes a bias, and {listed(without)} have none. peft gives all layers of an adapter a bias or "
            f"none, and cannot merge one into a layer without. Ship the patch, or repair weights without biases."
        )


def _values(tensor: Tensor) -> Values:
    return tensor.detach().cpu().double().numpy()


def _factors(layer: str, old: Tensor, new: Tensor, max_rank: int | None) -> tuple[Tensor, Tensor]:
    """``(out, r)`` and ``(r, in)`` whose product is the difference up to rounding of the weight; ``r`` at least 1.

    Singular values that rounding alone explains are dropped: the norm of a matrix of independent entries is about that
    of its largest row plus that of its largest column (Bandeira and van Handel, Annals of Probability 2016).
    """
    before, after = (_values(one).reshape(len(one), -1) for one in (old, new))
    difference = after - before
    if not np.isfinite(difference).all():
        raise ExportError(f"layer '{layer}': the difference is not finite. Ship the patch or the merged weights.")
    variance = np.square(spacing(after, new.dtype)) / 12
    noise = float(np.sqrt(variance.sum(0).max()) + np.sqrt(variance.sum(1).max()))
    left, sizes, right = _leading(difference, noise, max_rank)
    rank = int((sizes > noise).sum())
    if max_rank is not None and rank > max_rank:
        raise ExportError(
            f"layer '{layer}': the difference has a rank above max_rank={max_rank}. Allow more, repair fewer weights, "
            f"or ship the patch."
        )
    kept = slice(max(rank, 1))
    roots = np.sqrt(sizes[kept] if rank else np.zeros(1))
    dtype = torch.float64 if new.dtype == torch.float64 else torch.float32
    made = (left[:, kept] * roots, roots[:, None] * right[kept])
    return tuple(torch.from_numpy(one).to(dtype).contiguous() for one in made)  # type: ignore[return-value]


def _leading(difference: Values, noise: float, max_rank: int | None) -> tuple[Values, Values, Values]:
    """Singular vectors and values, those above the noise at least; of a large matrix by random projection.

    The number of columns grows until the rest is noise (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.1).
    """
    draw, columns = np.random.default_rng(0), 16
    while columns < min(difference.shape) // 2:
        basis = np.linalg.qr(difference @ draw.standard_normal((difference.shape[1], columns)))[0]
        inner, sizes, right = np.linalg.svd(basis.T @ difference, full_matrices=False)
        if sizes[-1] <= noise or (max_rank is not None and columns > max_rank):
            return basis @ inner, sizes, right
        columns *= 4
    return np.linalg.svd(difference, full_matrices=False)


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
