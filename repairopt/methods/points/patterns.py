"""What every ReLU of a network reads, as a function of the weight change, and its signs as rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, vmap

from repairopt.errors import UnsupportedError
from repairopt.network import Engine, trace_network
from repairopt.program import Array, Index, RectifierLayer

from .output_rows import linear_copy

RELUS = (F.relu, torch.relu, "relu")
ENTRIES = 2**24  # of derivatives that are computed at a time


class ReluInputs(nn.Module):
    """Outputs ``(N, k)`` of a network, and what its ReLUs read, ``(N, h)``, one after another.

    An UnsupportedError where the network is not piecewise linear, or has other activations than ReLU.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], method: object) -> None:
        super().__init__()
        layers = linear_copy(network, shape, method).layers  # says what is wrong with networks that cannot be traced
        self.network = trace_network(network)
        nodes = [node for node in self.network.graph.nodes if self._is_relu(node)]
        rectifiers = [one for one in layers if isinstance(one, RectifierLayer)]
        if len(nodes) != len(rectifiers) or any(one.leak for one in rectifiers):
            raise UnsupportedError(
                f"method {type(method).__name__}: the network has other activations than ReLU, and keeps no pattern."
            )
        self._nodes = set(nodes)

    def forward(self, inputs: Tensor, pattern: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs and inputs of ReLUs, which pass on what a pattern ``(N, h)`` says where one is given."""
        read: list[Tensor] = []
        relus = self._nodes

        class Reading(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                if n not in relus:
                    return super().run_node(n)
                z = self.fetch_args_kwargs_from_env(n)[0][0]
                start = sum(one.shape[1] for one in read)
                read.append(z.flatten(1))
                if pattern is None:
                    return super().run_node(n)
                return (read[-1] * pattern[:, start : start + read[-1].shape[1]]).unflatten(1, z.shape[1:])

        outputs = Reading(self.network).run(inputs)
        return outputs, torch.cat(read, 1) if read else outputs[:, :0]

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.network.get_submodule(str(node.target))) is nn.ReLU
        return node.op in ("call_function", "call_method") and node.target in RELUS


class PatternRows:
    """Every ReLU reads the sign that a pattern says at some inputs, and outputs hold there: rows on the weight change.

    With a fixed pattern what ReLUs read and the outputs are affine in a change of one layer and of later biases, so the
    rows are exact; an oracle for :func:`repairopt.program.solve_working_set`.

    Args:
        engine: The network and the weights that may change.
        reads: Of its network.
        inputs: Points ``(N, ...)``.
        room: How far from 0 what is read stays; where it has the right sign already, no farther than it is.
        pattern: Which ReLUs pass on what they read, ``(N, h)``; by default as under the original weights.
        answers: Rows of the outputs ``(N, R, k)``, and how large they are at least, ``(N, R)``; None for none.
    """

    def __init__(
        self,
        engine: Engine,
        reads: ReluInputs,
        inputs: Tensor,
        room: float = 0.0,
        pattern: Tensor | None = None,
        answers: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.engine, self.reads, self.inputs = engine, reads, inputs.to(engine.device, engine.dtype)
        self.zero = engine.as_delta(None)
        with torch.no_grad():
            outputs, own = reads(self.inputs)
            self.pattern = own > 0 if pattern is None else pattern
            matrix = answers[0] if answers is not None else outputs.new_zeros(len(outputs), 0, outputs.shape[1])
            self.matrix = matrix.to(outputs)
            self.read = self._read(self.zero, self.inputs, self.pattern, self.matrix)
        width = self.pattern.shape[1]
        self.sign = torch.ones_like(self.read)
        self.sign[:, :width] = torch.where(self.pattern, 1.0, -1.0)
        signed = (self.sign * self.read)[:, :width]
        self.least = torch.where(signed > 0, signed.clamp(max=room), torch.full_like(signed, room))
        if answers is not None:
            self.least = torch.cat([self.least, answers[1].to(self.least)], 1)
        self.m = self.read.numel()

    def violations(self, delta: Array) -> Array:
        """How far the affine forms are on the wrong side, ``(m,)``."""
        moved = self._along(self.engine.as_delta(delta))
        return (self.least - self.sign * (self.read + moved)).flatten().double().cpu().numpy()

    def rows(self, index: Index) -> tuple[Array, Array, Array]:
        """Derivatives ``(k, n)`` of what some ReLUs read, times their sign, and lower sides."""
        width = self.read.shape[1]
        sample, place = torch.as_tensor(index // width), torch.as_tensor(index % width)

        def one(row: Tensor, pattern: Tensor, matrix: Tensor, which: Tensor) -> Tensor:
            found: Tensor = grad(lambda delta: self._read(delta, row[None], pattern[None], matrix[None])[0][which])(
                self.zero
            )
            return found

        size = max(1, ENTRIES // max(1, self.engine.n))
        given = (self.inputs[sample], self.pattern[sample], self.matrix[sample], place)
        parts = zip(*(part.split(size) for part in given), strict=True)
        slopes = torch.cat([vmap(one)(*part) for part in parts])
        sign, read, least = (part[sample, place] for part in (self.sign, self.read, self.least))
        lower = (least - sign * read).double().cpu().numpy()
        return (sign[:, None] * slopes.detach()).double().cpu().numpy(), lower, np.full(len(index), np.inf)

    def _read(self, delta: Tensor, inputs: Tensor, pattern: Tensor, matrix: Tensor) -> Tensor:
        """What ReLUs read, then the rows of the outputs, ``(N, h + R)``."""
        weights = {f"network.{name}": value for name, value in self.engine.weights(delta).items()}
        outputs, read = functional_call(self.reads, weights, (inputs, pattern))
        return torch.cat([read, torch.einsum("nrk,nk->nr", matrix, outputs)], 1)

    def _along(self, delta: Tensor) -> Tensor:
        """Derivative of what is read in the direction of a change, by reverse mode twice."""
        moving = self.zero.clone().requires_grad_()
        with torch.enable_grad():
            read = self._read(moving, self.inputs, self.pattern, self.matrix)
            weight = torch.zeros_like(read, requires_grad=True)
            summed = (read * weight).sum()  # a scalar: grad_outputs would import a symbolic algebra system
            (pulled,) = torch.autograd.grad(summed, moving, create_graph=True, allow_unused=True)
            if pulled is None:  # nothing that is read comes after the weights
                return torch.zeros_like(read)
            (found,) = torch.autograd.grad((pulled * delta).sum(), weight)
        return found.detach()


class JoinedRows:
    """Several oracles as one, one after another."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.start = np.cumsum([0] + [part.m for part in parts])
        self.m = int(self.start[-1])

    def violations(self, delta: Array) -> Array:
        """Of all rows."""
        return np.concatenate([part.violations(delta) for part in self.parts])

    def rows(self, index: Index) -> tuple[Array, Array, Array]:
        """Some rows, in the order of ``index``."""
        owner = np.searchsorted(self.start, index, side="right") - 1
        order = np.argsort(owner, kind="stable")
        asked = [(part, index[owner == k] - self.start[k]) for k, part in enumerate(self.parts)]
        found = [part.rows(own) for part, own in asked if len(own)]
        matrix, lower, upper = (np.concatenate(side) for side in zip(*found, strict=True))
        back = np.argsort(order, kind="stable")
        return matrix[back], lower[back], upper[back]
