"""Trace a network with ``torch.fx`` so that other threads do not notice.

While it traces, ``torch.fx`` patches ``nn.Module`` for the whole process: another thread that runs any module gets into
the trace, and two traces at once put back each other's patches. Here one thread traces at a time, modules that other
threads run pass the tracer by, and a fork waits until nothing is patched.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from torch import fx, nn

ONE_AT_A_TIME = threading.RLock()  # for what belongs to the whole process: patches of torch, filters of warnings
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=ONE_AT_A_TIME.acquire,
        after_in_parent=ONE_AT_A_TIME.release,
        after_in_child=ONE_AT_A_TIME.release,
    )
_PLAIN_CALL = nn.Module.__call__  # as it is while nothing is traced


class Tracer(fx.Tracer):
    """A tracer of ``torch.fx`` that leaves other threads alone."""

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """The graph of a module; waits until no other thread traces. What forward keeps in the module is put back."""
        with ONE_AT_A_TIME:
            self._thread = threading.get_ident()
            held = [(part, dict(part)) for module in root.modules() for part in (vars(module), module._buffers)]
            try:
                return super().trace(root, concrete_args)
            finally:
                for part, before in held:
                    _without_proxies(part, before)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is run as a whole: torch's own, and those that say ``opaque = True``."""
        return getattr(m, "opaque", False) is True or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a call, unless another thread makes it."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Record a read parameter, unless another thread reads it."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _without_proxies(part: dict[str, Any], before: dict[str, Any]) -> None:
    """Put back what stood in place of the proxies that a trace left among attributes."""
    for name in [name for name, value in part.items() if isinstance(value, fx.Proxy)]:
        del part[name]
        if name in before:
            part[name] = before[name]


def network_name(network: nn.Module) -> str:
    """Class of the user's network, for messages: also of a module of ours that runs it."""
    return str(getattr(network, "user_class", type(network).__name__))


def trace_network(network: nn.Module) -> fx.GraphModule:
    """A network as a graph. Whatever the network's forward raises on proxies is raised: it cannot be traced then."""
    return as_module(network, Tracer().trace(network))


def as_module(owner: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph as a module, with the submodules and parameters of ``owner`` that it names, in evaluation mode."""
    module = fx.GraphModule(owner, graph)
    module.user_class = network_name(owner)  # type: ignore[assignment]
    # fx would print every exception to stderr, also those that the engine answers:
    type(module).__call__ = _PLAIN_CALL  # type: ignore[method-assign]
    return module.eval()


def writes_in_place(node: fx.Node) -> bool:
    """Whether a node writes into what it is given, by the conventions of torch: ``add_``, ``+=``, ``inplace=True``."""
    name = getattr(node.target, "__name__", str(node.target)).rpartition(".")[2]
    if node.op not in ("call_function", "call_method"):
        return False
    in_place = name.endswith("_") and not name.endswith("__")
    operator = getattr(node.target, "__module__", "") == "_operator" and name in OPERATORS
    return in_place or operator or node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None


OPERATORS = frozenset(
    {f"i{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")}
    | {"setitem"}
)
