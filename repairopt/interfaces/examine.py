"""Examine a network before any long run: which parts of the library work on it, and what repairs of it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import RepairError, forgiven, public
from repairopt.localize import LayerGraph, localize
from repairopt.network import Certifier, Classifier, Engine, pull_back, split_model

from .trial_repairs import Trial, try_repairs, warm_up

ROWS = 200  # on which the parts of the library are tried; trial repairs take more
LISTED, MOST_FREQUENT = 12, 3  # classes whose answers are all counted, and of more those that are named
CHOICES = ("last", "gradient", "all")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: The part of the library.
        ok: Whether it works on this network; None where nothing depends on it.
        detail: What was found and, where it does not work, what to do.
    """

    what: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Examination:
    """What of the library works on a network, and what trial repairs of it cost.

    Attributes:
        model: Class of the network, with the number of its parameters.
        findings: In the order in which a repair meets them.
        trials: One for each choice of weights.
    """

    model: str
    findings: tuple[Finding, ...]
    trials: tuple[Trial, ...]

    @property
    def usable(self) -> bool:
        """Whether the network can be repaired at all."""
        return bool(self.trials) and all(one.ok is not False for one in self.findings if one.what == "outputs")


@public
def examine_model(
    model: nn.Module | Classifier,
    inputs: Tensor,
    *,
    rows: int | None = None,
    time_limit: float = 10.0,
    weights: Sequence[str] = CHOICES,
    tell: Callable[[str], None] = lambda text: None,
) -> Examination:
    """Try every part of the library on a network and a few rows; the network is not modified.

    Args:
        model: As for :func:`repairopt.solve_repair`.
        inputs: Rows as the network reads them, ``(N, ...)``; the more there are, the better costs are known.
        rows: How many rows the repair will have; the number of ``inputs`` by default.
        time_limit: Seconds for each trial repair; with more rows than the last one of them had in time, none is tried.
        weights: Which choices of weights are tried.
        tell: Called with a few words before each part.

    Returns:
        What works, and what trial repairs cost. A part that does not work is a finding, not an exception.
    """
    network, forward_fn = split_model(model)
    tell = forgiven("tell", tell)
    few, total = inputs[:ROWS], len(inputs) if rows is None else rows
    size = sum(parameter.numel() for parameter in network.parameters())
    name = f"{type(network).__name__}, {size:,} parameters"
    tell("outputs")
    engine, outputs, found = _outputs(network, forward_fn, few)
    if engine is None or outputs is None:
        return Examination(name, tuple(found), ())
    tell("layers")
    graph = LayerGraph(network, forward_fn, few)
    found += [_layers(network, graph), _derivatives(network, forward_fn, graph, few), _bounds(engine, few, outputs)]
    trials = []
    if weights:
        warm_up(model, few, outputs)
        outputs = engine.predict()(inputs[:total])
    for choice in weights:
        tell(f"weights '{choice}'")
        try:
            trials.append(try_repairs(model, choice, inputs[:total], outputs, total, time_limit))
        except RepairError as error:
            found.append(Finding(f"weights '{choice}'", None, f"cannot be chosen: {error}"))
    return Examination(name, tuple(found), tuple(trials))


def _counted(counts: Tensor) -> str:
    """How often each class is given; of many classes how many are, and the most frequent ones."""
    if len(counts) <= LISTED:
        return ", ".join(f"{count}" for count in counts.tolist())
    given = counts.argsort(descending=True)[: int((counts > 0).sum())]
    most = ", ".join(f"class {k} {int(counts[k])} times" for k in given[:MOST_FREQUENT].tolist())
    return f"{len(given)} of {len(counts)} classes are given, {most}"


def _outputs(network: nn.Module, forward_fn: Any, few: Tensor) -> tuple[Engine | None, Tensor | None, list[Finding]]:
    try:
        engine = Engine(network, forward_fn=forward_fn)
        outputs = engine.predict()(few)
    except RepairError as error:
        return None, None, [Finding("outputs", False, str(error))]
    counts = torch.bincount(outputs.argmax(1), minlength=outputs.shape[1])
    constant = int(counts.max()) == len(few) and len(few) > 1
    detail = f"({len(few)}, {outputs.shape[1]}), {str(outputs.dtype).removeprefix('torch.')}"
    detail += f"; answers by class: {_counted(counts)}"
    detail += " (one and the same for all rows: are the inputs scaled as in training?)" if constant else ""
    found = [Finding("outputs", True, detail)]
    sums = outputs.double().sum(1)
    if bool((outputs >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all()):
        found.append(
            Finding(
                "meaning of outputs",
                None,
                "rows are positive and sum to 1: these are probabilities. Say Classifier(model, "
                "outputs='probabilities'), or repair the network before its softmax.",
            )
        )
    return engine, outputs, found


def _layers(network: nn.Module, graph: LayerGraph) -> Finding:
    kinds = Counter(layer.kind for layer in graph.layers)
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none with weights"
    ends = _other_layers(network, graph)
    if graph.affine:
        first, last = graph.affine[0].name, graph.affine[-1].name
        ends = f"; first '{first}', last '{last}'{ends}"
    if graph.is_traceable:
        return Finding("layers", True, f"{named}{ends}")
    return Finding(
        "layers",
        None,
        f"{named}{ends}; torch.fx cannot trace the forward function, so activations before the changed layer are not "
        f"kept, and CARE and certified bounds are not available. Control flow that depends on data prevents tracing.",
    )


def _other_layers(network: nn.Module, graph: LayerGraph) -> str:
    """What of the parameters is in layers of other kinds, which ``weights="all"`` and names of parameters reach."""
    known = {name for layer in graph.layers for name in layer.parameters}
    whole = tuple(f"{layer.name}." for layer in graph.layers if layer.kind == "recurrent")
    others = {name: value.numel() for name, value in network.named_parameters() if name not in known}
    others = {name: size for name, size in others.items() if not name.startswith(whole)}
    if not others:
        return ""
    kinds = Counter(type(network.get_submodule(name.rpartition(".")[0])).__name__ for name in others)
    return f"; {sum(others.values()):,} parameters in other layers ({', '.join(kinds)})"


def _derivatives(network: nn.Module, forward_fn: Any, graph: LayerGraph, few: Tensor) -> Finding:
    """Whether the derivatives of many samples are had in one pass."""
    try:
        where = localize(network, "last" if graph.affine else "all", forward_fn=forward_fn, inputs=few)
        engine = Engine(network, where.indices, forward_fn=forward_fn)
        classes = engine.predict()(few).shape[1]
        pull_back(engine, few, torch.ones(len(few), classes, dtype=engine.dtype, device=engine.device))
        beyond = "batched, by automatic differentiation"
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            beyond += ", recurrent layers step by step"
        if engine.exact:
            said = "of the last layer exact: it is affine in its weights, nothing is linearized"
            return Finding("derivatives", True, f"{said}; of others {beyond}")
        return Finding("derivatives", True, beyond)
    except (RepairError, RuntimeError, TypeError) as error:
        return Finding("derivatives", False, f"{type(error).__name__}: {error}")


def _bounds(engine: Engine, few: Tensor, outputs: Tensor) -> Finding:
    try:
        options: Any = {"lower": -torch.inf, "upper": torch.inf}
        certifier = Certifier(engine.caller, few[:2], outputs[:2].argmax(1), **options)
        certifier.margins(1e-3, {})
    except RepairError as error:
        return Finding("certified bounds", None, f"not available: {error}")
    return Finding("certified bounds", True, "available: CertifiedRadius and balls around inputs")
