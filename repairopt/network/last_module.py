"""Split a network that cannot be traced: where one module makes the outputs, what it reads is captured by a hook.

Most networks whose forward depends on the data (those of Hugging Face among them) end in a call of one module, such as
the classifier. Where all changed weights are in that module, everything before it is run once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from .model_checks import agree
from .tracing import as_module


class _Captured(Exception):
    """Ends a run of the network once the module's input is known."""


class BeforeModule(nn.Module):
    """The network up to the call of one of its modules: what that module reads, one row for each sample."""

    def __init__(self, network: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self._parts = (network, module)  # in a tuple, so that they do not become submodules

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The input of the module, in a tuple."""
        network, module = self._parts
        seen: list[Tensor] = []

        def capture(_: nn.Module, given: tuple[Any, ...]) -> None:
            seen.append(given[0])
            raise _Captured

        handle = module.register_forward_pre_hook(capture)
        try:
            network(inputs)
        except _Captured:
            pass
        finally:
            handle.remove()
        return (seen[0],)


def find_last_module(network: nn.Module, changed: set[str], rows: Tensor) -> tuple[BeforeModule, fx.GraphModule] | None:
    """What comes before the module that holds the named parameters, and that module as a graph with its own name.

    None where several modules hold them, the module is not called once with one tensor, or the network does more with
    its output than to return it. That is seen from runs on the rows, with the weights as they are and with others.
    """
    own = dict(network.named_parameters(remove_duplicate=False))
    ids = {id(own[name]) for name in changed if name in own}
    names = [name for name, parameter in own.items() if id(parameter) in ids]
    holders = [name for name, _ in network.named_modules() if name and all(n.startswith(f"{name}.") for n in names)]
    for target in sorted(holders, key=len, reverse=True)[:3]:
        module = network.get_submodule(target)
        calls: list[Any] = []
        handle = module.register_forward_hook(lambda _, given, made, calls=calls: calls.append((given, made)))
        try:
            with torch.no_grad():
                whole = network(rows.clone())
        finally:
            handle.remove()
        if len(calls) != 1 or len(calls[0][0]) != 1 or not isinstance(calls[0][0][0], Tensor):
            continue
        features, made = calls[0][0][0], calls[0][1]
        if not isinstance(made, Tensor) or made.shape != whole.shape or not torch.equal(made, whole):
            continue
        if features.shape[:1] != whole.shape[:1] or not features.is_floating_point() or features.equal(rows):
            continue
        moved = {name: 1.01 * own[name].detach() + 0.01 * own[name].detach().abs().mean() for name in names}
        inside = {name.removeprefix(f"{target}."): value for name, value in moved.items()}
        with torch.no_grad():
            expected = functional_call(network, moved, (rows.clone(),))
            try:
                alone = functional_call(module, inside, (features,))
            except RuntimeError:  # runs only as forward calls it, as inside torch.autocast
                continue
        if agree(alone, expected):
            return BeforeModule(network, module), _as_graph(network, target)
    return None


def _as_graph(network: nn.Module, target: str) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_module(target, (graph.placeholder("features"),)))
    return as_module(network, graph)
