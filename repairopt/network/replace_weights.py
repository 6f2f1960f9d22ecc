"""Run a module with some of its parameters replaced.

What ``torch.func.functional_call`` does, for a module whose parameters are known beforehand: ties are looked up once,
not at every call. The module is the engine's own copy of the structure, never the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class Replaceable:
    """A module whose parameters get no gradients, but for those in ``changed`` that a run is given.

    Its parameters are replaced by ones that share their memory; ties stay ties. Modules that keep account of their
    parameters in a way of their own (recurrent layers, scripted ones) are left to ``functional_call``.
    """

    def __init__(self, module: nn.Module, changed: Mapping[str, Tensor]) -> None:
        self.module = module
        self._names = {id(parameter): name for name, parameter in changed.items()}
        self._places: dict[str, list[tuple[dict[str, Any], str]]] | None = None
        own = {name: p for name, p in module.named_parameters() if id(p) in self._names}
        self._called = {self._names[id(p)]: name for name, p in own.items()}
        sources = (module.named_parameters, module.named_buffers)
        self._constants = {name: t.detach() for source in sources for name, t in source() if name not in own}
        if all(type(part).__setattr__ is nn.Module.__setattr__ for part in module.modules()):
            self._places = {name: [] for name in changed}
            self._freeze(self._places)

    def run(self, given: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """Output with the given parameters replaced; they are put back whatever happens."""
        if self._places is None:  # a parameter under a second name is left to the tie
            renamed = {self._called[name]: tensor for name, tensor in given.items()}
            found: Tensor = functional_call(self.module, {**self._constants, **renamed}, inputs)
            return found
        before = [(store, key, store[key]) for name in given for store, key in self._places[name]]
        try:
            for name, tensor in given.items():
                for store, key in self._places[name]:
                    store[key] = tensor
            output: Tensor = self.module(*inputs)
            return output
        finally:
            for store, key, parameter in before:
                store[key] = parameter

    def _freeze(self, places: dict[str, list[tuple[dict[str, Any], str]]]) -> None:
        frozen: dict[int, nn.Parameter] = {}
        for part in self.module.modules():
            for key, parameter in part._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) in self._names:
                    places[self._names[id(parameter)]].append((part._parameters, key))
                if id(parameter) not in frozen:
                    frozen[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
                part._parameters[key] = frozen[id(parameter)]
