"""Derivatives of outputs and of functions of outputs with respect to the weight change, without a matrix.

Forward mode for directions, reverse mode for functions and for the rows of single samples; exact structure where the
changed weights are in the last linear layer. Everything runs in batches within the engine's memory limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from .errors import SpecificationError
from .evaluate import CACHE_BYTES, Engine
from .specify import Predict


def jacobian(engine: Engine, function: Callable[[Predict], Tensor], delta: Any = None) -> tuple[Tensor, Tensor]:
    """Value and derivative of a differentiable function of the outputs.

    The derivative with respect to the outputs is taken first, then pulled back through the network in batches, so memory
    does not grow with the number of samples.

    Args:
        engine: The network and the ``n`` weights.
        function: From ``predict`` to a scalar or a vector ``(q,)``.
        delta: Where, ``(n,)``; None for no change.

    Returns:
        ``(value (q,), jacobian (q, n))`` in float64.

    Raises:
        SpecificationError: The function's value does not depend on the outputs in a differentiable way.
    """
    change = engine.as_delta(delta)
    value, runs = _recorded(engine, function, change)
    rows = []
    for i in range(value.numel()):
        pulled = torch.zeros(engine.n, dtype=torch.float64, device=engine.device)
        grads = torch.autograd.grad(value[i], [output for _, output in runs], retain_graph=True, allow_unused=True)
        for (inputs, _), cotangent in zip(runs, grads, strict=True):
            if cotangent is not None:
                pulled += pull_back(engine, inputs, cotangent, change)
        rows.append(pulled)
    return value.detach().to(torch.float64), torch.stack(rows)


def hessian(engine: Engine, function: Callable[[Predict], Tensor], delta: Any = None) -> Tensor:
    """Second derivative of a scalar, twice differentiable function of the outputs.

    The sum of the function's curvature in the outputs, ``J' F J``, and the network's own curvature, which is zero where
    the outputs are piecewise linear in the changed weights.

    Args:
        engine: The network and the ``n`` weights.
        function: From ``predict`` to a scalar.
        delta: Where, ``(n,)``; None for no change.

    Returns:
        ``(n, n)`` in float64, symmetric.

    Raises:
        SpecificationError: The function's value does not depend on the outputs in a differentiable way.
    """
    change = engine.as_delta(delta)
    value, runs = _recorded(engine, function, change)
    outputs = [output for _, output in runs]
    first = torch.autograd.grad(value[0], outputs, create_graph=True, allow_unused=True)
    eye = torch.eye(engine.n, dtype=engine.dtype, device=engine.device)
    ways = [tangents(engine, inputs, change, eye) for inputs, _ in runs]  # (n, N, k) for each run
    result = torch.zeros(engine.n, engine.n, dtype=torch.float64, device=engine.device)
    curved = [i for i, g in enumerate(first) if g is not None and g.requires_grad]
    for j in range(engine.n if curved else 0):
        along = [ways[i][j] for i in curved]
        second = torch.autograd.grad([first[i] for i in curved], outputs, along, retain_graph=True, allow_unused=True)
        for way, column in zip(ways, second, strict=True):
            if column is not None:
                result[:, j] += (way.flatten(1) @ column.flatten()).double()
    for (inputs, _), weight in zip(runs, first, strict=True):
        if weight is not None:
            result += _network_curvature(engine, inputs, weight.detach(), change)
    return (result + result.T) / 2


def tangents(engine: Engine, inputs: Tensor, delta: Any, directions: Any, samples: Tensor | None = None) -> Tensor:
    """Derivatives of the outputs along directions of weight change, by forward mode.

    Args:
        engine: The network and the ``n`` weights.
        inputs: Samples ``(N, ...)``.
        delta: Where, ``(n,)``.
        directions: ``(D, n)``.
        samples: Indices of the samples wanted, or None for all.

    Returns:
        ``(D, N, k)`` in the model's dtype.
    """
    change, ways = engine.as_delta(delta), engine.as_delta(directions)
    out = []
    with torch.no_grad():
        for _, part in engine.batches(inputs, samples, 6 * engine.widest(inputs) * len(ways)):
            if engine.exact:
                out.append(torch.stack([_affine_tangent(engine, part[0], way) for way in ways]))
                continue

            def along(way: Tensor, part: tuple[Tensor, ...] = part) -> Tensor:
                return jvp(lambda d: engine.run(engine.weights(d), part), (change,), (way,))[1]  # type: ignore[no-any-return]

            out.append(along(ways[0])[None] if len(ways) == 1 else vmap(along)(ways))
    return torch.cat(out, dim=1)


def pull_back(engine: Engine, inputs: Tensor, cotangent: Tensor, delta: Any = None) -> Tensor:
    """Derivative of ``sum(cotangent * outputs)`` by reverse mode.

    Args:
        engine: The network and the ``n`` weights.
        inputs: Samples ``(N, ...)``.
        cotangent: ``(N, k)``.
        delta: Where, ``(n,)``.

    Returns:
        ``(n,)`` in float64.
    """
    change = engine.as_delta(delta)
    total = torch.zeros(engine.n, dtype=torch.float64, device=engine.device)
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
        total += torch.autograd.grad(output, moving, chosen)[0].double()
    return total


def sample_rows(engine: Engine, inputs: Tensor, samples: Tensor, cotangents: Tensor, delta: Any = None) -> Tensor:
    """Derivatives of ``cotangent . output`` for chosen samples, one row each.

    Args:
        engine: The network and the ``n`` weights.
        inputs: Samples ``(N, ...)``.
        samples: Indices ``(R,)``; may repeat.
        cotangents: ``(R, k)``.
        delta: Where, ``(n,)``.

    Returns:
        ``(R, n)`` in the model's dtype; the same for every ``delta`` where the weights are in the last linear layer.
    """
    change = engine.as_delta(delta)
    if not len(samples):
        return torch.zeros(0, engine.n, dtype=engine.dtype, device=engine.device)
    out = []
    for span, part in engine.batches(inputs, samples, 3 * engine.n_changed + 4 * engine.floats(inputs)):
        chosen = cotangents[span].to(engine.dtype)
        if engine.exact:
            out.append(_affine_rows(engine, part[0], chosen))
            continue

        def one(d: Tensor, cotangent: Tensor, *row: Tensor) -> Tensor:
            return (engine.run(engine.weights(d), tuple(r[None] for r in row))[0] * cotangent).sum()

        out.append(vmap(grad(one), in_dims=(None, 0) + (0,) * len(part))(change, chosen, *part))
    return torch.cat(out)


def _recorded(
    engine: Engine, function: Callable[[Predict], Tensor], change: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The function's value as a graph over its network outputs, which are leaves; and the runs it asked for."""
    runs: list[tuple[Tensor, Tensor]] = []

    def record(inputs: Tensor) -> Tensor:
        for known, output in runs:
            if known is inputs:
                return output
        output = engine.predict(change)(inputs).requires_grad_()
        runs.append((inputs, output))
        return output

    with torch.enable_grad():
        value = torch.as_tensor(function(record)).reshape(-1)
    if not value.requires_grad:
        raise SpecificationError(
            f"{getattr(function, '__qualname__', function)}: its value does not depend on the network's outputs in a "
            f"differentiable way. Use a sampled surrogate (surrogate='full'), or give the property a soft_value."
        )
    return value, runs


def _network_curvature(engine: Engine, inputs: Tensor, cotangent: Tensor, change: Tensor) -> Tensor:
    """Second derivative of ``cotangent . outputs``; skipped where a probe finds the outputs piecewise linear."""
    total = torch.zeros(engine.n, engine.n, dtype=torch.float64, device=engine.device)
    if engine.exact:
        return total
    eye = torch.eye(engine.n, dtype=engine.dtype, device=engine.device)
    probe = torch.linspace(0.5, 1.5, engine.n, dtype=engine.dtype, device=engine.device)
    for span, part in engine.batches(inputs, None, 8 * engine.floats(inputs)):

        def scalar(d: Tensor, span: slice = span, part: tuple[Tensor, ...] = part) -> Tensor:
            return (engine.run(engine.weights(d), part) * cotangent[span]).sum()

        def product(way: Tensor, scalar: Callable[[Tensor], Tensor] = scalar) -> Tensor:
            return jvp(grad(scalar), (change,), (way,))[1]  # type: ignore[no-any-return]

        if not bool((product(probe) == 0).all()):
            step = max(1, CACHE_BYTES // (4 * part[0].shape[0] * engine.floats(inputs)))
            total += vmap(product, chunk_size=step)(eye).double()
    return total


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


def _affine_rows(engine: Engine, features: Tensor, cotangents: Tensor) -> Tensor:
    width = features.shape[1]
    parts = []
    for bias, ix, _ in _affine_parts(engine, torch.zeros(engine.n, device=engine.device)):
        parts.append(cotangents[:, ix] if bias else cotangents[:, ix // width] * features[:, ix % width])
    return torch.cat(parts, dim=1)
