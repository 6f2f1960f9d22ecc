"""Rebuilt: the network with one block of another architecture, as a module that a patch can be made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .cell import FixedCell

BLOCK, REST = "block.", "rest."  # begin the names of tensors of the block, and of other weights that were trained


class Rebuilt(nn.Module):
    """A network in which one block is replaced; the original stays inside, so that it can be had back.

    Attributes:
        network: The original, which is not run.
        rebuilt: A copy with the new block; weights that are the same are shared.
        name: Of the block.
    """

    def __init__(self, network: nn.Module, name: str, cell: nn.Module) -> None:
        super().__init__()
        self.network, self.name, self.training = network, name, network.training
        known: dict[int, Any] = {id(one): one for one in (*network.parameters(), *network.buffers())}
        self.rebuilt = copy.deepcopy(network, known)
        replace_block(self.rebuilt, name, cell)

    def forward(self, inputs: Any) -> Any:
        """What the rebuilt network computes."""
        return self.rebuilt(inputs)

    @classmethod
    def from_parts(cls, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Rebuilt:
        """The module of a wrapped patch, see :func:`repairopt.patches.wrap`.

        Args:
            network: The original.
            settings: ``name`` of the block, its ``genotype`` and the ``shapes`` of its nodes.
            tensors: Weights of the block, and other weights that were trained.

        Raises:
            ValueError: There is no such block, or a tensor is missing or does not fit.
        """
        name = str(settings["name"])
        inside = dict(network.named_modules())
        if name not in inside:
            raise ValueError(f"the network has no block '{name}'")
        cell = FixedCell.build(inside[name], settings["genotype"], settings["shapes"])
        like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(1))
        cell.to(device=like.device, dtype=like.dtype)
        cell.load_state_dict({key.removeprefix(BLOCK): one for key, one in tensors.items() if key.startswith(BLOCK)})
        made = cls(network, name, cell.eval())
        others = {key.removeprefix(REST): one for key, one in tensors.items() if key.startswith(REST)}
        for key, tensor in others.items():
            put_tensor(made.rebuilt, key, tensor.to(like.device))
        return made


def replace_block(network: nn.Module, name: str, block: nn.Module) -> None:
    """Put another module in the place of a module of a network."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, block)


def put_tensor(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Put another tensor in the place of a parameter or buffer of a network; a ValueError where the shape differs."""
    parent, _, leaf = name.rpartition(".")
    module = network.get_submodule(parent)
    old = getattr(module, leaf)
    if old.shape != tensor.shape:
        raise ValueError(f"'{name}' has shape {tuple(tensor.shape)}, the network's {tuple(old.shape)}")
    if isinstance(old, nn.Parameter):
        setattr(module, leaf, nn.Parameter(tensor.detach().clone(), requires_grad=old.requires_grad))
    else:
        module.register_buffer(leaf, tensor.detach().clone())
