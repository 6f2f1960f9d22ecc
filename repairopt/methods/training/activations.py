"""Passes of training: what they keep in memory, blocks that are run again for less of it, and lower precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from repairopt.errors import SpecificationError

ROWS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Kept:
    """Bytes for each row that are alive when a backward pass begins: as it is, and with its blocks run again."""

    plain: float
    again: float


def kept_by(network: nn.Module, inputs: Tensor) -> Kept:
    """Measure a pass over a few inputs ``(N, ...)``; parameters, which are there anyway, do not count.

    Run again, a block keeps what it is given; while it is run, what it keeps itself is there in addition.
    """
    blocks = {id(block): k for k, block in enumerate(blocks_of(network))}
    own = {parameter.untyped_storage().data_ptr() for parameter in (*network.parameters(), *network.buffers())}
    inside: list[dict[int, int]] = [{} for _ in blocks]
    outside: dict[int, int] = {}
    where: list[dict[int, int]] = [outside]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            where[-1][storage.data_ptr()] = storage.nbytes()
        return tensor

    def enter(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        for one in (*given, *named.values()):
            if isinstance(one, Tensor):
                outside[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        where.append(inside[blocks[id(module)]])

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        where.pop()

    hooks = []
    for module in network.modules():
        if id(module) in blocks:
            hooks += [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]
    try:
        with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = network(inputs)  # alive while bytes are counted, so that no memory is used twice
    finally:
        for hook in hooks:
            hook.remove()
    apart = sum(outside.values())
    in_blocks = [sum(size for place, size in part.items() if place not in outside) for part in inside]
    del outputs
    return Kept((apart + sum(in_blocks)) / len(inputs), (apart + max(in_blocks, default=0)) / len(inputs))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The outermost modules of several layers that stand in a row: blocks of a ResNet, layers of a Transformer."""
    found: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, ROWS) and _is_block(child):
                found.append(child)
            else:
                search(child)

    search(network)
    return list({id(block): block for block in found}.values())


def _is_block(module: nn.Module) -> bool:
    """Whether a module has layers and weights; one that is itself a row has no further blocks in it."""
    if isinstance(module, nn.ModuleList) or not [*module.children()] or not [*module.parameters()]:
        return False
    return not isinstance(module, nn.Sequential) or not any([*child.children()] for child in module.children())


def run_blocks_again(blocks: Sequence[nn.Module]) -> None:
    """Let blocks keep nothing but what they are given, and run again in the backward pass.

    References:
        Chen, Xu, Zhang and Guestrin, Training deep nets with sublinear memory cost, 2016 (gradient checkpointing).
    """
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def lay_by_pixel(network: nn.Module, inputs: Tensor) -> None:
    """Let weights of convolutions lie in memory pixel by pixel, and with them activations, where the network runs so.

    Processors pass such layers sooner, forward and backward together by 5 to 20 % (``channels_last`` of torch).

    Args:
        network: From one tensor to outputs; its parameters keep their values and their gradients' names.
        inputs: A few rows on which it is tried, ``(N, ...)``.
    """
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            network(inputs)
    except RuntimeError:  # it views activations, which lie one channel after the other otherwise
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def quick_forward(network: nn.Module, precision: str, channels_last: bool) -> Callable[[Tensor], Tensor]:
    """The network as a function whose passes are quicker on some devices; its weights stay as they are.

    Args:
        network: From one tensor to outputs; float32.
        precision: ``"own"``, or ``"bfloat16"`` for the operations that ``torch.autocast`` lowers.
        channels_last: Whether images ``(N, C, H, W)`` and weights of convolutions lie in memory pixel by pixel.

    Returns:
        From inputs to outputs of the precision of the weights.
    """
    if precision == "own" and not channels_last:
        return network
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first = next(parameter for parameter in network.parameters() if parameter.is_floating_point())
    if precision != "own" and first.dtype != torch.float32:
        raise SpecificationError(
            f"precision='{precision}': the network is {first.dtype}; expected float32. Leave precision out, or pass "
            f"model.float()."
        )

    def forward(inputs: Tensor) -> Tensor:
        if channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(first.device.type, torch.bfloat16, enabled=precision != "own"):
            outputs: Tensor = network(inputs)
        return outputs.to(first.dtype)

    return forward
