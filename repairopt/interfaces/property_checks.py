"""check_property(): tries every member that a property offers, and names those that it lacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt import specify
from repairopt.errors import SpecificationError
from repairopt.network import Predict

VALUE_TOL = 1e-5  # between a value and what is said of it elsewhere
Expect = Callable[[bool, str, object], None]


def check_property(prop: specify.Property, predict_example: Predict) -> list[str]:
    """Check that a property does what the library relies on, in every member that it has.

    Checked: name and target; that ``value`` is a finite scalar and the same each time; and each protocol of
    :mod:`repairopt.specify.contracts` that the class offers. A failed check raises AssertionError; its message names
    the property, what was expected and what came.

    Args:
        prop: The property.
        predict_example: A function from inputs to outputs, for example a small model; called with the inputs that the
            property holds. Properties that need the network itself need a module here.

    Returns:
        The checks that ran, then for each protocol that the class lacks its members and what they would bring.
    """
    expect = expectation("check_property", str(getattr(prop, "name", "") or type(prop).__name__))
    whole = isinstance(prop, specify.Property)
    expect(whole, "name, target and value(predict)", f"a {type(prop).__name__} without one of them")
    expect(isinstance(prop.name, str) and prop.name != "", "a name that is a non-empty text", repr(prop.name))
    expect(isinstance(prop.target, Real) and bool(np.isfinite(prop.target)), "a finite target", prop.target)
    ran, gains = ["declaration"], []
    known: Any = prop
    if isinstance(prop, specify.Anchored):
        with torch.no_grad():
            known = _same_kind(expect, "anchor", prop, prop.anchor(predict_example))
        ran.append("anchor: the same property")
    first, second = (_scalar(expect, "value", known.value(predict_example)) for _ in range(2))
    expect(first == second, "the same value from the same predict", f"{first!r}, then {second!r}")
    ran += ["value: scalar and finite", "value: deterministic"]
    for protocol, (members, check) in OFFERS.items():
        if isinstance(known, protocol):
            ran += [] if check is None else [check(expect, known, predict_example, first)]
        else:
            missing = [name for name in members if not hasattr(known, name)]
            gain = str(protocol.__doc__).splitlines()[0].replace("``", "")
            gains.append(f"lacks {', '.join(missing)}: {gain}")
    return ran + gains


def expectation(check: str, subject: str, problem: str = "") -> Expect:
    """What raises AssertionError, with the names of a check and its subject, where an expectation fails."""
    where = f"{check}('{subject}')" + (f" on '{problem}'" if problem else "")

    def expect(holds: bool, expected: str, got: object) -> None:
        if not holds:
            raise AssertionError(f"{where}: expected {expected}; got {got}.")

    return expect


def _scalar(expect: Expect, name: str, value: Any) -> float:
    tensor = torch.as_tensor(value).detach()
    expect(tensor.ndim == 0, f"{name} to be a scalar, shape ()", f"shape {tuple(tensor.shape)}")
    expect(bool(torch.isfinite(tensor)), f"{name} to be finite", tensor.item())
    return float(tensor)


def _finite(expect: Expect, name: str, method: Any, predict: Predict) -> str:
    _scalar(expect, name, method(predict))
    return f"{name}: scalar and finite"


def _near(first: float, second: float) -> bool:
    return abs(first - second) <= VALUE_TOL * (1 + abs(second))


def _same_kind(expect: Expect, method: str, prop: Any, found: Any) -> Any:
    expect(isinstance(found, specify.Property), f"{method} to return a property", repr(found))
    same = (found.name, found.target) == (prop.name, prop.target)
    expect(same, f"{method} to keep name and target", f"{found.name!r} with target {found.target}")
    return found


def _differentiable(expect: Expect, name: str, method: Any, predict: Predict, rank: int) -> str:
    if isinstance(predict, torch.nn.Module):
        weights = [p.detach().clone().requires_grad_() for p in predict.parameters()]
        names = [name for name, _ in predict.named_parameters()]
        known: dict[str, Any] = {"network": predict, "parameters": dict(zip(names, weights, strict=True))}
        varied: Any = partial(torch.func.functional_call, predict, known["parameters"])
        varied.__dict__ |= known  # as the library's own predict
        result = method(varied)
    else:
        weights = [torch.zeros((), requires_grad=True)]
        result = method(lambda inputs: predict(inputs).detach() * (1 + weights[0]))
    expect(isinstance(result, Tensor) and result.ndim == rank, f"{name} with {rank} dimensions", np.shape(result))
    expect(bool(torch.isfinite(result).all()), f"{name} to be finite", result.detach())
    expect(result.requires_grad, f"{name} to be differentiable", "a result that no gradient flows through")
    slopes = [one for one in torch.autograd.grad(result.sum(), weights, allow_unused=True) if one is not None]
    expect(bool(slopes), f"{name} to depend on what predict returns", "no dependence")
    expect(all(bool(torch.isfinite(one).all()) for one in slopes), f"{name} with a finite gradient", slopes[0])
    return f"{name}: finite and differentiable"


def _signed(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    with torch.no_grad():
        soft, hard = prop.residuals(predict), torch.as_tensor(prop.signed_hard(predict))
    expect(soft.shape == hard.shape, f"signed_hard of shape {tuple(soft.shape)}, as residuals", tuple(hard.shape))
    if not specify.has_signed_parts(prop):
        return "signed_hard: as many as residuals"
    size = float(hard.abs().mean() if prop.combine == "mean" else hard.abs().amax())
    expect(_near(size, value), f"the {prop.combine} size of signed_hard to be the value, {value:.6g}", f"{size:.6g}")
    return "signed_hard: makes the value"


def _share(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    count = len(prop.inputs)
    counted = torch.arange(count) if prop.counted is None else prop.counted.cpu()
    whole = counted.ndim == 1 and counted.dtype == torch.int64 and bool(((counted >= 0) & (counted < count)).all())
    expect(whole, f"counted to be None or indices (C,) below {count}", counted)
    with torch.no_grad():
        outputs = predict(prop.inputs)
        margins = prop.margins_of(outputs[counted.to(outputs.device)], counted)
        expect(margins.ndim == 2 and len(margins) == len(counted), f"margins_of ({len(counted)}, p)", margins.shape)
        half = counted[::2]
        again = prop.margins_of(outputs[half.to(outputs.device)], half)
    expect(torch.equal(margins[::2], again), "margins_of to look at each sample alone", "others beside others")
    least = float(margins.amin()) if margins.numel() else 1.0
    agrees = least == 0 or (value > 0) == (least < 0)
    expect(agrees, "a value above 0 exactly where a margin is negative", f"{value:.6g}, least margin {least:.6g}")
    return "margins_of: negative where the value counts"


def _interval(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    with torch.no_grad():
        found = prop.interval(predict, 0.9)
    expect(_near(found.value, value), f"an interval of the value, {value:.6g}", f"{found.value:.6g}")
    around = found.low <= found.value + VALUE_TOL and found.value <= found.high + VALUE_TOL
    expect(around, "an interval around the value", f"{found.low:.6g} to {found.high:.6g}")
    fits = found.confidence == 0.9 and found.count >= 1
    expect(fits, "the confidence asked for and a count from 1", f"{found.confidence}, {found.count}")
    return "interval: around the value"


def _where(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    every = prop.where(lambda inputs: torch.ones(len(inputs), dtype=torch.bool, device=inputs.device))
    same = _scalar(expect, "value of where(all)", _same_kind(expect, "where", prop, every).value(predict))
    expect(_near(same, value), f"all samples to give the value, {value:.6g}", f"{same:.6g}")
    try:
        part = prop.where(lambda inputs: torch.arange(len(inputs), device=inputs.device) % 3 > 0)
    except SpecificationError:  # no sample of some group or class among so few
        return "where: the same on all samples"
    _scalar(expect, "value of where(some)", part.value(predict))
    return "where: the same on all samples, finite on a part"


def _on(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    own, inputs = specify.labels_of(prop), specify.inputs_of(prop)
    if inputs is None:
        return "on: not tried, its inputs are not known"
    try:
        moved = prop.on(*(own if own is not None else (inputs, None)))
    except SpecificationError:
        return "on: refuses its own data"
    moved = specify.anchor(_same_kind(expect, "on", prop, moved), predict)
    _scalar(expect, "value of on(inputs, labels)", moved.value(predict))
    return "on: the same property"


def _details(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    figures = prop.details(predict)
    pairs = figures.items() if isinstance(figures, dict) else [(figures, figures)]
    good = all(isinstance(key, str) and isinstance(number, Real) for key, number in pairs)
    expect(good, "details that are a dict from text to number", repr(figures))
    return "details: text to number"


def _labels(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    if prop.labels is None:
        return "labels: none"
    own = specify.labels_of(prop)
    fits = own is not None and len(own[0]) == len(own[1])
    expect(fits, "inputs and labels that are tensors of the same length", f"{np.shape(prop.labels)} labels")
    return "labels: one for each input"


def _rates(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    for soft in (False, True):
        rates, counts = prop.compared(predict, soft)
        fits = rates.ndim == 2 and rates.shape == counts.shape and bool((counts > 0).all())
        expect(fits, "compared to return rates and counts (c, q)", f"{tuple(rates.shape)}, {tuple(counts.shape)}")
        inside = bool(((rates > -VALUE_TOL) & (rates < 1 + VALUE_TOL)).all())
        expect(inside, "compared to return rates, 0 to 1", rates)
    return "compared: rates and counts"


def _groups(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    samples = prop.samples
    fits = len(samples.inputs) == len(samples.member) and int(samples.member.max()) < len(samples.names)
    expect(fits, "samples with a member for each input and a name for each group", repr(samples)[:200])
    return "samples: a group for each"


def _radii(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    found = prop.radii(predict)
    expect(found.ndim == 1 and bool((found >= 0).all()), "radii (N,) from 0", found)
    return "radii: one for each input"


def _attacked(expect: Expect, prop: Any, predict: Predict, value: float) -> str:
    points, margins = prop.attacked(predict)
    fits = margins.ndim == 1 and len(points) == len(margins)
    expect(fits, "attacked to return points (N, ...) and margins (N,)", f"{np.shape(points)}, {np.shape(margins)}")
    return "attacked: a point and a margin for each input"


Check = Callable[[Expect, Any, Predict, float], str]
OFFERS: dict[Any, tuple[tuple[str, ...], Check | None]] = {
    specify.Differentiable: (("soft_value",), lambda e, p, f, v: _differentiable(e, "soft_value", p.soft_value, f, 0)),
    specify.Residuals: (("residuals",), lambda e, p, f, v: _differentiable(e, "residuals", p.residuals, f, 1)),
    specify.SignedParts: (("residuals", "signed_hard"), _signed),
    specify.SampleShare: (("inputs", "counted", "margins_of"), _share),
    specify.Statistical: (("interval",), _interval),
    specify.Restrictable: (("where",), _where),
    specify.Transferable: (("on",), _on),
    specify.Anchored: (("anchor",), None),
    specify.Detailed: (("details",), _details),
    specify.Labelled: (("inputs", "labels"), _labels),
    specify.GroupRates: (("combine", "compared", "interval"), _rates),
    specify.Divided: (("samples",), _groups),
    specify.Grouped: (("samples", "favorable"), None),
    specify.Subsampled: (("subsample",), lambda e, p, f, v: _finite(e, "subsample", p.subsample(5).value, f)),
    specify.Undesired: (("undesired",), lambda e, p, f, v: _finite(e, "undesired", p.undesired, f)),
    specify.Certified: (("radii",), _radii),
    specify.Attacked: (("attacked",), _attacked),
}
