"""Derivatives of outputs and of functions of outputs with respect to the weight change, without a matrix.

Forward mode for directions, reverse mode for functions and for the rows of single samples; exact structure where the
changed weights are in the last linear layer. Everything runs in batches within the engine's memory limit.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import vmap

from repairopt.errors import ProgramError, SpecificationError, UnsupportedError

from .deadline import check_time
from .engine import Engine, Predict, Predictor
from .linear_tape import LinearTape
from .recurrent import in_steps
from .remembered import identity
from .tracing import ONE_AT_A_TIME

MANY_ROWS = 4  # of a function's values, from which on what spans their derivatives is looked for
MOST_NUMBERS = 10_000_000  # in all of those derivatives, up to which they are held at once
SPANNED = 1e-12  # share of the largest squared size, up to which a direction counts as none
FEW = 100_000  # derivatives of all outputs by all weights, up to which one matrix of them serves a whole point


def jacobian(engine: Engine, function: Callable[[Predict], Tensor], delta: Any = None) -> tuple[Tensor, Tensor]:
    """Value ``(q,)`` and derivative ``(q, n)``, in float64, of a function of ``predict`` to a scalar or a vector.

    The derivative with respect to the outputs is taken first, then pulled back through the network in batches, so
    memory does not grow with the number of samples. A SpecificationError where the value does not depend on the outputs
    in a differentiable way.
    """
    change = engine.as_delta(delta)
    value, recorder = _recorded(engine, function, change)
    leaves = [output for _, output in recorder.runs] + [recorder.moving]
    rows = torch.zeros(value.numel(), engine.n, dtype=torch.float64, device=engine.device)
    size = value.numel() * sum(output.numel() for _, output in recorder.runs)
    step = value.numel() if value.numel() >= MANY_ROWS and size <= MOST_NUMBERS else 1
    for start in range(0, value.numel(), step):
        block = rows[start : start + step]
        cotangents = []
        for i in range(len(block)):
            check_time()
            *grads, direct = torch.autograd.grad(value[start + i], leaves, retain_graph=True, allow_unused=True)
            if direct is not None:
                block[i] += direct.double()
            cotangents.append(grads)
        for (inputs, _), own in zip(recorder.runs, zip(*cotangents, strict=True), strict=True):
            known = [i for i, one in enumerate(own) if one is not None]
            if known:
                weights, basis = _few_that_span(torch.stack([own[i] for i in known]))
                pulled = []
                for one in basis:
                    check_time()
                    pulled.append(pull_back(engine, inputs, one, change))
                block[known] += weights @ torch.stack(pulled)
    return value.detach().to(torch.float64), rows


def _few_that_span(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``(q, r)``, float64, and ``r`` tensors whose sums with them are ``q``: differences of few rates."""
    flat = rows.flatten(1).double()
    if len(rows) >= MANY_ROWS:
        sizes, vectors = torch.linalg.eigh((flat @ flat.T).cpu())
        kept = sizes > SPANNED * sizes[-1].clamp(min=1e-300)
        if int(kept.sum()) < len(rows):
            weights = vectors[:, kept].to(rows.device)
            return weights, (weights.T @ flat).to(rows).reshape(-1, *rows.shape[1:])
    return torch.eye(len(rows), dtype=torch.float64, device=rows.device), rows


def hessian(engine: Engine, function: Callable[[Predict], Tensor], delta: Any = None) -> Tensor:
    """Second derivative ``(n, n)``, in float64, of a function of ``predict`` to a scalar.

    The sum of the function's curvature in the outputs, ``J' F J``, and the network's own curvature, which is zero where
    the outputs are piecewise linear in the changed weights.
    """
    change = engine.as_delta(delta)
    value, recorder = _recorded(engine, function, change)
    runs = recorder.runs
    if not runs:
        raise UnsupportedError(
            f"{getattr(function, '__qualname__', function)}: reads the network in place of its outputs, so its exact "
            f"Hessian is not at hand. Use surrogate='auto'."
        )
    outputs = [output for _, output in runs]
    first = torch.autograd.grad(value[0], outputs, create_graph=True, allow_unused=True)
    slopes = [_output_jacobian(engine, inputs, out.shape[1], change).to(out) for inputs, out in runs]  # (N k, n) each
    result = torch.zeros(engine.n, engine.n, dtype=torch.float64, device=engine.device)
    curved = [i for i, g in enumerate(first) if g is not None and g.requires_grad]
    for j in range(engine.n if curved else 0):
        check_time()
        summed = torch.stack([first[i].flatten() @ slopes[i][:, j] for i in curved]).sum()
        second = torch.autograd.grad(summed, outputs, retain_graph=True, allow_unused=True)
        for slope, column in zip(slopes, second, strict=True):
            if column is not None:
                result[:, j] += (column.flatten() @ slope).double()
    for (inputs, _), weight in zip(runs, first, strict=True):
        if weight is not None:
            result += _network_curvature(engine, inputs, weight.detach(), change)
    return (result + result.T) / 2


def tangent(engine: Engine, inputs: Tensor, delta: Any, direction: Any, samples: Tensor | None = None) -> Tensor:
    """Derivative ``(N, k)`` of the outputs along one ``direction (n,)``, without a matrix, of all samples or some."""
    change, way = engine.as_delta(delta), engine.as_delta(direction)
    known = _few_derivatives(engine, inputs, change) if samples is None else None
    if known is not None:
        return known @ way
    count = inputs.shape[0] if samples is None else len(samples)
    # Forward mode is twice as fast, but its first use imports torch's compiler, most of a second:
    pays = count * engine.floats(inputs) > 50_000_000 or "torch._decomp.decompositions_for_jvp" in sys.modules
    product = _forward_product if pays else _double_product
    out = []
    for _, part in engine.batches(inputs, samples, 6 * engine.floats(inputs)):
        out.append(_affine_tangent(engine, part[0], way) if engine.exact else product(engine, part, change, way))
    return torch.cat(out)


def pull_back(engine: Engine, inputs: Tensor, cotangent: Tensor, delta: Any = None) -> Tensor:
    """Derivative ``(n,)``, in float64, of ``sum(cotangent * outputs)`` for a cotangent ``(N, k)``, by reverse mode."""
    change = engine.as_delta(delta)
    total = torch.zeros(engine.n, dtype=torch.float64, device=engine.device)
    tapes = None if engine.exact else engine.tapes(inputs, change)
    if tapes is not None:
        for span, tape in tapes:
            total += tape.pull_back(cotangent[span].to(tape.outputs)).double()
        return total
    for span, part in engine.batches(inputs, None, 3 * engine.floats(inputs)):
        chosen = cotangent[span].to(engine.dtype)
        if engine.exact:
            weight = (chosen.T @ part[0]).flatten()
            parts = [chosen.sum(0)[ix] if bias else weight[ix] for bias, ix, _ in _affine_parts(engine, change)]
            total += torch.cat(parts).double()
            continue
        moving = change.clone().requires_grad_()
        with torch.enable_grad():
            output = engine.run(engine.weights(moving), part)
            summed = (output * chosen).sum()  # a scalar: grad_outputs would import a symbolic algebra system
        total += _derivative(summed, moving).double()
    return total


def sample_rows(engine: Engine, inputs: Tensor, samples: Tensor, cotangents: Tensor, delta: Any = None) -> Tensor:
    """Derivatives ``(R, n)`` of ``cotangent . output`` for samples ``(R,)`` and cotangents ``(R, k)``."""
    change = engine.as_delta(delta)
    if not len(samples):
        return torch.zeros(0, engine.n, dtype=engine.dtype, device=engine.device)
    known = _few_derivatives(engine, inputs, change)
    if known is not None:
        where = samples.to(engine.device)
        return torch.bmm(cotangents.to(known)[:, None], known[where])[:, 0]
    if not engine.exact and engine.layers(inputs) is not None:
        fast = _rows_from_tapes(engine, inputs, samples.to(engine.device), cotangents, change)
        if fast is not None:
            return fast
    out = []
    for span, part in engine.batches(inputs, samples, 3 * engine.n_changed + 4 * engine.floats(inputs)):
        chosen = cotangents[span].to(engine.dtype)
        if engine.exact:
            features, width = part[0], part[0].shape[1]
            pieces = [
                chosen[:, ix] if bias else chosen[:, ix // width] * features[:, ix % width]
                for bias, ix, _ in _affine_parts(engine, change)
            ]
            out.append(torch.cat(pieces, dim=1))
            continue

        def one(d: Tensor, *row: Tensor) -> Tensor:
            return engine.run(engine.weights(d), tuple(r[None] for r in row))[0]

        with torch.enable_grad():  # each row gets its own copy of delta, so one backward pass gives all rows
            copies = change.expand(len(chosen), -1).clone().requires_grad_()
            try:
                with in_steps(engine.suffix):
                    outputs = vmap(one)(copies, *part)
            except (RuntimeError, ValueError):  # vmap knows no decisions on the data: one sample after the other
                outputs = torch.stack([one(*row) for row in zip(copies, *part, strict=True)])
            summed = (outputs * chosen).sum()
        out.append(_derivative(summed, copies))
    return torch.cat(out)


def _few_derivatives(engine: Engine, inputs: Tensor, change: Tensor) -> Tensor | None:
    """Derivatives ``(N, k, n)`` of all outputs, remembered for the last weight changes; None where they are many.

    Where networks and samples are small, calls cost more than numbers: one matrix serves all products around a point.
    """
    layers, count = engine.layers(inputs), inputs.shape[0] * engine.classes
    if engine.exact or layers is None or not 0 < count * engine.n <= FEW:
        return None

    def make() -> Tensor | None:
        samples, units = _every_output(engine, inputs, engine.classes)
        rows = _rows_from_tapes(engine, inputs, samples, units, change)
        return None if rows is None else rows.view(inputs.shape[0], engine.classes, engine.n)

    return engine.remembered("derivatives", inputs, change, make)


def _every_output(engine: Engine, inputs: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Samples and cotangents of all outputs one by one, ``(N k,)`` and ``(N k, k)``."""
    every = torch.arange(len(inputs), device=engine.device).repeat_interleave(classes)
    return every, torch.eye(classes, dtype=engine.dtype, device=engine.device).repeat(len(inputs), 1)


def _rows_from_tapes(
    engine: Engine, inputs: Tensor, samples: Tensor, cotangents: Tensor, change: Tensor
) -> Tensor | None:
    """The rows where the changed weights are those of linear layers that see one vector for each sample."""
    layers = engine.layers(inputs)
    assert layers is not None
    still = engine.still(inputs)
    every = inputs.shape[0] if still is None else len(still.moved)
    if len(torch.unique(samples)) * 2 >= every:  # nearly all samples: from a pass that others use too
        tapes = engine.tapes(inputs, change)
        if tapes is not None and len(tapes) == 1:
            return tapes[0][1].rows(samples, cotangents) if tapes[0][1].flat else None
    out = []
    for span, part in engine.batches(inputs, samples, engine.n + 4 * engine.floats(inputs)):
        tape = LinearTape(engine, layers, part, change)
        if not tape.flat:
            return None
        rows = torch.arange(tape.outputs.shape[0], device=engine.device)
        out.append(tape.rows(rows, cotangents[span].to(engine.dtype)))
    return torch.cat(out)


def _forward_product(engine: Engine, part: tuple[Tensor, ...], change: Tensor, way: Tensor) -> Tensor:
    try:
        with torch.no_grad(), ONE_AT_A_TIME, warnings.catch_warnings(), forward_ad.dual_level():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, on the first use of forward mode
            output = engine.run(engine.weights(forward_ad.make_dual(change, way)), part)
            found = forward_ad.unpack_dual(output).tangent
            return torch.zeros_like(output) if found is None else found
    except NotImplementedError:  # some operation has no forward mode
        return _double_product(engine, part, change, way)


def _double_product(engine: Engine, part: tuple[Tensor, ...], change: Tensor, way: Tensor) -> Tensor:
    """The same product by differentiating the reverse-mode product with respect to its cotangent."""
    moving = change.clone().requires_grad_()
    with torch.enable_grad():
        output = engine.run(engine.weights(moving), part)
        cotangent = torch.zeros_like(output, requires_grad=True)
        pulled = _derivative((output * cotangent).sum(), moving, create_graph=True)
        return _derivative((pulled * way).sum(), cotangent)


def _output_jacobian(engine: Engine, inputs: Tensor, classes: int, change: Tensor) -> Tensor:
    """Derivatives of all outputs, ``(N k, n)``; refused where it would not fit."""
    count = len(inputs) * classes
    need = count * engine.n * torch.finfo(engine.dtype).bits // 8
    if need > engine.memory_limit:
        raise ProgramError(
            f"The exact Hessian over {len(inputs):,} samples and {engine.n:,} weights needs {need / 2**30:.1f} GiB. "
            f"Pass a smaller Location, fewer samples, surrogate='gauss_newton', or raise memory_limit."
        )
    return sample_rows(engine, inputs, *_every_output(engine, inputs, classes), change)


class _Recorder(Predictor):
    """Remembers each run and gives its outputs as leaves; parameters that are read directly depend on ``moving``."""

    def __init__(self, engine: Engine, change: Tensor) -> None:
        self.moving = change.clone().requires_grad_()
        super().__init__(engine, self.moving)
        self.runs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        for known, output in self.runs:
            if identity(known) == identity(inputs):
                return output
        output = self._engine.predict(self.moving.detach())(inputs).detach().requires_grad_()
        self.runs.append((inputs, output))
        return output


def _recorded(engine: Engine, function: Callable[[Predict], Tensor], change: Tensor) -> tuple[Tensor, _Recorder]:
    """The function's value ``(q,)`` as a graph over the network outputs, which are leaves; and its runs."""
    recorder = _Recorder(engine, change)
    with torch.enable_grad():
        value = torch.as_tensor(function(recorder)).reshape(-1)
    if not value.requires_grad:
        raise SpecificationError(
            f"{getattr(function, '__qualname__', function)}: its value does not depend on the network's outputs in a "
            f"differentiable way. Use a sampled surrogate (surrogate='full'), or give the property a soft_value."
        )
    return value, recorder


def _network_curvature(engine: Engine, inputs: Tensor, cotangent: Tensor, change: Tensor) -> Tensor:
    """Second derivative of ``cotangent . outputs``; skipped where a probe finds the outputs piecewise linear."""
    total = torch.zeros(engine.n, engine.n, dtype=torch.float64, device=engine.device)
    if engine.exact:
        return total
    probe = torch.linspace(0.5, 1.5, engine.n, dtype=engine.dtype, device=engine.device)
    for span, part in engine.batches(inputs, None, 8 * engine.floats(inputs)):
        moving = change.clone().requires_grad_()
        with torch.enable_grad():
            scalar = (engine.run(engine.weights(moving), part) * cotangent[span]).sum()
            slope = _derivative(scalar, moving, create_graph=True)
        if not slope.requires_grad or not bool(_derivative(slope @ probe, moving, retain_graph=True).any()):
            continue
        for k, entry in enumerate(slope):
            check_time()
            total[k] += _derivative(entry, moving, retain_graph=True).double()
    return total


def _derivative(scalar: Tensor, moving: Tensor, *, create_graph: bool = False, retain_graph: bool = False) -> Tensor:
    """Derivative of a scalar; zeros where there is none, as for step activations."""
    if not scalar.requires_grad:
        return torch.zeros_like(moving)
    try:
        keep = create_graph or retain_graph
        found = torch.autograd.grad(scalar, moving, None, keep, create_graph, allow_unused=True)[0]
    except RuntimeError as error:
        if "is not implemented" not in str(error):  # torch's words for an operation without a derivative
            raise
        found = None
    return torch.zeros_like(moving) if found is None else found


def _affine_parts(engine: Engine, delta: Tensor) -> Iterator[tuple[bool, Tensor, Tensor]]:
    """For each changed parameter of the last linear layer: whether it is the bias, positions, its piece of delta."""
    start = 0
    for name, ix in engine.indices.items():
        yield name.endswith("bias"), ix, delta[start : start + len(ix)]
        start += len(ix)


def _affine_tangent(engine: Engine, features: Tensor, way: Tensor) -> Tensor:
    out = torch.zeros(features.shape[0], engine.classes, dtype=engine.dtype, device=engine.device)
    for bias, ix, piece in _affine_parts(engine, way):
        if bias:
            out[:, ix] += piece
        else:
            matrix = torch.zeros(engine.classes * features.shape[1], dtype=engine.dtype, device=engine.device)
            matrix[ix] = piece
            out += features @ matrix.view(engine.classes, -1).T
    return out
