"""VeRe: bounds of a verifier say which neurons are worth repairing and where their values should go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import ModelError
from repairopt.localize import NewWeights, Question, Significance
from repairopt.methods.material import material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Array, Engine, network_of
from repairopt.program import Status

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class VeRe:
    """Verification-guided repair: the most significant neurons get values by which failing rows become right.

    A linear relaxation bounds the margin of each failing row as a function of the value of one neuron, which may lie
    where it lies on passing rows. The neurons whose freedom raises the bound most are repaired, one after the other:
    the end of the interval that raises the bound is the target on failing rows, the value that it has the target on
    passing rows, and the incoming weights that come closest to both are found by least squares. This is repeated until
    no row fails or the number of failing rows no longer falls.

    Attributes:
        neurons: Repaired at most in each round.
        rounds: At most so many.
        keep: Price of a squared deviation on a passing row, for each unit of that on a failing one.
        layer: The hidden layer to choose from; None for all fully connected ones.
        widen: By how much of its length the interval of each neuron is enlarged on both sides.
        step: Share of the way to the target.

    References:
        Ma et al., VeRe: Verification Guided Synthesis for Repairing Deep Neural Networks, ICSE 2024. Formulas are a
        completion of its abstract and of its description in A Comprehensive Study of Deep Learning Model Fixing
        Approaches. Targets are for values before the activation function, where least squares are exact; of the first
        step and three halvings of it the one with the fewest wrong rows, passing rows counted, is taken.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})
    default_weights: ClassVar[str] = "all"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"VeRe (VERE)": {}}

    neurons: int = 3
    rounds: int = 10
    keep: float = 1.0
    layer: str | None = None
    widen: float = 0.0
    step: float = 1.0

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("neurons", "rounds"), Expected(low=1, whole=True))
        check_settings(self, {**counts, "keep": Expected(above=True), "step": Expected(above=True, high=1)})
        Significance(layer=self.layer, widen=self.widen)

    def run(self, task: Task) -> Outcome:
        """Repair neurons until no row fails or nothing is gained."""
        rows = material_of(task)
        every = (torch.cat([rows.failing[0], rows.passing[0]]), torch.cat([rows.failing[1], rows.passing[1]]))
        delta, wrong = np.zeros(task.engine.n), len(rows.failing[0])
        for number in range(self.rounds):
            task.judge.check_time()
            moved, failing = self._round(task, delta, every)
            task.log.last = (0, task.engine.n, None)
            better = failing < wrong
            task.record(
                f"VeRe, round {number + 1}", task.judge.keep(moved), accepted=better, note=f"{failing} rows fail"
            )
            if not better:
                break
            delta, wrong = moved, failing
            if not wrong:
                break
        return Outcome(delta, Status.FEASIBLE, on_target=True, indivisible=True)

    def _round(self, task: Task, delta: Array, every: Pair) -> tuple[Array, int]:
        """Repair the most significant neurons of the network at a change; the new change, and how many rows fail."""
        engine = task.engine
        weights = {name: value.detach() for name, value in engine.weights(engine.as_delta(delta)).items()}
        predicted = network_of(engine, delta)(every[0]).argmax(1)
        fails = predicted != every[1]
        changed = _with(task, weights)
        question = Question.of(changed, (every[0][fails], every[1][fails]), (every[0][~fails], every[1][~fails]))
        with task.timed("localize"):
            how = Significance(count=self.neurons, layer=self.layer, widen=self.widen)
            gains = how.gains(question)
        scores = [
            (float(gain.mean(0)[unit]), name, unit)
            for name, (gain, _) in gains.items()
            for unit in range(gain.shape[1])
        ]
        best, least = delta, int(fails.sum())
        for significance, name, unit in sorted(scores, reverse=True)[: self.neurons]:
            if significance <= 0:
                break
            change = self._neuron(task, question, name, unit, gains[name][1][:, unit])
            for share in (self.step, self.step / 2, self.step / 4, self.step / 8):
                tried = best + share * change
                failing = int((network_of(engine, tried)(every[0]).argmax(1) != every[1]).sum())
                if failing < least:
                    best, least = tried, failing
                    break
        return best, least

    def _neuron(self, task: Task, question: Question, name: str, unit: int, target: Tensor) -> Array:
        """The change ``(n,)`` of a neuron's incoming weights that comes closest to its targets."""
        rows = question.failing[0][: len(target)]
        sources = [_read_by(question, name, part) for part in (rows, question.passing[0])]
        layer = question.hidden[name]
        weight = question.graph.parameters[layer.weights[0]].detach().double().cpu()
        bias = None if layer.bias is None else question.graph.parameters[layer.bias].detach().double().cpu()
        positions = [
            (layer.weights[0], unit * weight.shape[1] + np.arange(weight.shape[1])),
            *([(layer.bias, np.array([unit]))] if layer.bias is not None else []),
        ]
        now = [one @ weight[unit] + (0.0 if bias is None else bias[unit]) for one in sources]
        full = [one if bias is None else torch.cat([one, torch.ones(len(one), 1).double()], 1) for one in sources]
        share = self.keep**0.5
        matrix = torch.cat([full[0], share * full[1]]).numpy()
        wanted = torch.cat([target - now[0], torch.zeros(len(sources[1])).double()]).numpy()
        found, start, starts = np.zeros(task.engine.n), 0, {}
        for parameter, index in task.engine.indices.items():
            starts[parameter] = (start, index.cpu().numpy())
            start += len(index)
        places, columns, at = [], [], 0
        for parameter, own in positions:
            if parameter in starts:
                begin, known = starts[parameter]
                inside = np.isin(own, known)
                places.append(begin + np.searchsorted(known, own[inside]))
                columns.append(at + np.flatnonzero(inside))
            at += len(own)
        if columns:
            free = np.concatenate(columns)
            solution = np.linalg.lstsq(matrix[:, free], wanted, rcond=None)[0]
            found[np.concatenate(places)] = solution
        return found


def _with(task: Task, weights: Mapping[str, Tensor]) -> Engine:
    """An engine of the network with other weights."""
    engine = task.engine
    model = NewWeights(weights).apply(engine.model)
    return Engine(model, forward_fn=engine.forward_fn, memory_limit=engine.memory_limit)


def _read_by(question: Question, name: str, inputs: Tensor) -> Tensor:
    """What a fully connected layer reads, ``(N, columns)`` in float64."""
    module = question.graph.engine.caller.model.get_submodule(name)
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        with torch.no_grad():
            question.graph.engine.caller(question.graph.convert(inputs))
    finally:
        handle.remove()
    found = torch.cat(seen)
    if found.ndim != 2:
        raise ModelError(
            f"method VeRe: layer '{name}' reads values of shape {tuple(found.shape)}; expected (N, columns)."
        )
    return found.double().cpu()
