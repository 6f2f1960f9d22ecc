"""Counterexample-guided repair: find inputs that break a region's rows, remove them, verify, again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.localize import NewWeights
from repairopt.methods.adam import Adam
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings
from repairopt.methods.task import Task
from repairopt.network import Evidence, RegionSearch, attack_regions, digest_of
from repairopt.patches import fingerprint
from repairopt.program import Array, OutputRows, ProofStatus, ProofVerdict, RegionProof, Status, check_proof
from repairopt.specify import KeepRegions, SampleConstraint, UnprovedRegions
from repairopt.surrogate import LinearizedRows, linearize
from repairopt.verify import execution_of, layered_copy, runner_of

from .least_norm import LeastNorm, solve_least
from .region_vertices import new_weights

STEPS = 8  # linearizations in which counterexamples are removed
BATCH = 200  # counterexamples of one attack that become rows
DEPTHS, GROWTH = 0.2, 1.7  # first margin, in depths of the violation; its growth where nothing is found or proved
SPLITS = 60  # of one box, in the verification
WIDE = 1e6  # limit on weights that is none
ADAM, RISE, RISES = 300, 5.0, 14  # steps of one penalty, its growth, how often it grows
SETTLED = 0.98  # of the cost, above which a further descent gains too little
DATA = 2000  # rows on which outputs are to stay, at most


@dataclass(frozen=True, kw_only=True)
class CounterexampleGuided(LeastNorm):
    """Repair of input regions by counterexamples, until a verifier finds none.

    An attack looks for inputs of the regions that break their rows. For all that were found so far, the least change
    of the weights is computed that makes them hold with a margin: one convex program for the last layer, a sequence of
    linearized ones for others. Where the attack finds nothing, the check of proofs verifies the whole regions; what it
    refutes is a further counterexample, what it leaves undecided asks for a larger margin. Ends with a proof, or with
    the best candidate at the limit, which the judge marks as not proved. Termination is not guaranteed.

    Attributes:
        limit: Largest change of any weight; the source has none, and networks that read raw units need large ones.
        buffer: Smallest lead of a counterexample at first; it grows where nothing is proved.
        rounds: Rounds at most.
        verify_seconds: Processor time of one verification.

    References:
        Boetius, Leue, Sutter, A Robust Optimisation Perspective on Counterexample-Guided Repair of Neural Networks,
        ICML 2023 (the loop and its termination). The attack and the verifier are the library's own.

    Example:
        >>> CounterexampleGuided(rounds=5).norm
        'l2'
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "solver", "tolerance", "regions"})
    default_weights: ClassVar[str] = "last"
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Counterexample-guided repair": {}}
    proves: ClassVar[bool] = True  # it has something to do where the goal is met: the proof

    norm: str = "l2"
    limit: float = WIDE
    buffer: float = 0.0
    rounds: int = 30
    verify_seconds: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, {"rounds": Expected(low=1, whole=True), "verify_seconds": Expected(above=True)})

    def run(self, task: Task) -> Outcome:
        """Attack, remove, verify, again."""
        return _Loop(self, task).run()

    def remove(self, task: Task, found: Counterexamples, delta: Array) -> Array | None:
        """The least change under which all counterexamples and the user's rows hold; None where there is none."""
        held = [c for c in task.constraints if isinstance(c, SampleConstraint)]
        required = [least for c, least in zip(task.constraints, task.required, strict=True) if c in held]
        for _ in range(1 if task.engine.exact else STEPS):
            least = np.full(len(found.inputs), found.margin)
            linearization = linearize(task.engine, [found, *held], delta, required=[least, *required])
            rows = _Shifted(LinearizedRows(linearization, tuple(range(1 + len(held)))), delta)
            solution = solve_least(task, rows, self)
            if solution.delta is None:
                return None
            delta = solution.delta
            if float(found.margins(task.engine.predict(delta)).min()) > found.margin / 2:
                break
        return delta


@dataclass(frozen=True, kw_only=True)
class SpecRepair(CounterexampleGuided):
    """The same loop, with counterexamples removed by gradient steps on a penalty: SpecRepair.

    ``J + price sum max(0, margin - value)`` is minimized, where ``J`` is the mean squared change of the outputs on the
    labelled data, without data of the weights over their natural size; the price rises until all counterexamples hold.

    Attributes:
        rate: Learning rate of Adam, in natural sizes of the weights.

    References:
        Bauer-Marquart, Boetius, Leue, Schilling, SpecRepair: Counter-Example Guided Safety Repair of Deep Neural
        Networks, SPIN 2022.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "regions"})
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {"SpecRepair": {}}

    rate: float = 0.003

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, {"rate": Expected(above=True)})

    def remove(self, task: Task, found: Counterexamples, delta: Array) -> Array | None:
        """Adam with an exact penalty, whose price rises; once all hold, for as long as that gains."""
        descent = _PenaltyDescent(task, found, self.rate)
        change, price = descent.start(delta), 1.0 / len(found.inputs)
        for _ in range(RISES):
            change = descent.run(change, price)
            if descent.all_hold(change):
                break
            price *= RISE
        else:
            return None
        while True:  # the price is high enough: what is left is to minimize
            further = descent.run(change, price)
            if not (descent.all_hold(further) and descent.cost(further) < SETTLED * descent.cost(change)):
                return descent.delta(change)
            change = further


class _PenaltyDescent:
    """Steps of Adam on the change of the outputs on data plus a price on violations; weights in natural sizes."""

    def __init__(self, task: Task, found: Counterexamples, rate: float) -> None:
        self.engine, self.check_time, self.found, self.rate = task.engine, task.judge.check_time, found, rate
        self.scale = self.engine.scale.double()
        self.data = torch.cat([x for x, _ in task.data])[:DATA] if task.data else None
        with torch.no_grad():
            none = self.engine.as_delta(None)
            self.before = None if self.data is None else self.engine.outputs(self.data, none)

    def start(self, delta: Array) -> Tensor:
        """A change of the weights in natural sizes."""
        return torch.as_tensor(delta, dtype=torch.float64) / self.scale

    def delta(self, change: Tensor) -> Array:
        """A change in natural sizes as one of the weights."""
        found: Array = (change * self.scale).detach().numpy()
        return found

    def all_hold(self, change: Tensor) -> bool:
        """Whether all counterexamples hold by half of the margin."""
        return float(self.found.margins(self.engine.predict(self.delta(change))).min()) > self.found.margin / 2

    def cost(self, change: Tensor) -> Tensor:
        """Mean squared change of the outputs on the data, without data of the weights."""
        if self.data is None or self.before is None:
            return change.square().mean()
        outputs = self.engine.outputs(self.data, (change * self.scale).to(self.engine.dtype))
        return (outputs - self.before).square().mean().double()

    def run(self, change: Tensor, price: float) -> Tensor:
        """Some steps at one price."""
        change = change.detach().requires_grad_()
        optimizer = Adam([change], lr=self.rate)
        for _ in range(ADAM):
            self.check_time()
            optimizer.zero_grad()
            with torch.enable_grad():
                moved = (change * self.scale).to(self.engine.dtype)
                lacks = self.found.margin - self.found.margins(lambda x, at=moved: self.engine.outputs(x, at))
                (self.cost(change) + price * lacks.clamp(min=0).double().sum()).backward()
            optimizer.step()
        return change.detach()


class Counterexamples:
    """Inputs that broke a region, each with the row that is to hold for it: a constraint by sample."""

    name = "counterexamples"

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.inputs = torch.zeros(0, *shape, dtype=dtype)
        self.matrix, self.offset = torch.zeros(0, 0), torch.zeros(0)
        self.margin = 0.0

    def add(self, points: Tensor, matrix: Tensor, offset: Tensor) -> None:
        """Points ``(P, d)`` with rows ``matrix (P, k)`` and ``offset (P,)``."""
        own = points.to(self.inputs).unflatten(1, self.inputs.shape[1:])
        self.matrix = torch.cat([self.matrix.reshape(-1, matrix.shape[1]).to(matrix), matrix])
        self.offset = torch.cat([self.offset.to(offset), offset])
        self.inputs = torch.cat([self.inputs, own])

    def margins_of(self, outputs: Tensor, samples: Tensor) -> Tensor:
        """Rows minus offsets, ``(B, 1)``."""
        rows = self.matrix[samples].to(outputs)
        return ((rows * outputs).sum(1) - self.offset[samples].to(outputs))[:, None]

    def margins(self, predict: Any) -> Tensor:
        """Of all, ``(N,)``."""
        return self.margins_of(predict(self.inputs), torch.arange(len(self.inputs)))[:, 0]


class _Shifted:
    """Rows on a step from a change as rows on the change itself."""

    def __init__(self, rows: LinearizedRows, delta: Array) -> None:
        self.rows_of, self.delta, self.m = rows, delta, rows.m

    def violations(self, delta: Array) -> Array:
        return self.rows_of.violations(delta - self.delta)

    def rows(self, index: Any) -> tuple[Array, Array, Array]:
        matrix, lower, upper = self.rows_of.rows(index)
        shift = matrix @ self.delta
        return matrix, lower + shift, upper + shift


class _Loop:
    """One repair: its regions, the counterexamples so far."""

    def __init__(self, method: CounterexampleGuided, task: Task) -> None:
        self.method, self.task = method, task
        holders = [one for one in (task.goal, *task.constraints) if isinstance(one, UnprovedRegions | KeepRegions)]
        if not holders:
            raise SpecificationError(
                f"method {type(method).__name__}: neither goal nor constraints have regions. Give a Region, or "
                f"UnprovedRegions, as the goal."
            )
        self.holders: list[Any] = holders
        self.regions = UnprovedRegions([one for holder in holders for one in holder.regions])
        self.lower, self.upper = self.regions.boxes
        self.rows = self.regions.rows
        self.shape = self.regions.steps(task.engine.caller).shape
        self.found = Counterexamples(self.shape, task.engine.dtype)

    def run(self) -> Outcome:
        """Until a proof, or the rounds are over."""
        delta, last = np.zeros(self.task.engine.n), self.method.rounds - 1
        for index in range(self.method.rounds):
            candidate = new_weights(self.task, delta)
            new = self._attack(candidate, index)
            verdict = None
            if not new:
                verdict, proof = self._verify(candidate)
                if verdict.status is ProofStatus.PROVED:
                    return self._proved(candidate, verdict, proof)
            self._record(index, candidate, new, verdict)
            if index == last:
                break
            moved = self.method.remove(self.task, self.found, delta) if len(self.found.inputs) else None
            if moved is None:
                limit = f", of at most limit={self.method.limit:g} each," if self.method.limit < WIDE else ""
                self.task.log.note(
                    f"No change of the chosen weights{limit} was found that removes all counterexamples."
                )
                break
            delta = moved
        return Outcome(self.task.judge.best.candidate, Status.NO_POINT, on_target=True)

    def _attack(self, candidate: NewWeights, index: int) -> int:
        """Counterexamples of an attack, the worst of which become rows; how many."""
        steps = self.regions.steps(candidate.predict(self.task.engine).network)
        search = RegionSearch(seed=self.task.seed + index)
        with self.task.timed("attack"), torch.no_grad():
            points, region, least = attack_regions(
                steps, self.lower, self.upper, self.rows, search, frame=self.regions.frame
            )
            if not len(points):
                return 0
            value = self.rows.least(self.rows.values(steps.forward(points), region), region)
            worst = value.argsort()[: BATCH // 2]
            others = torch.linspace(0, len(points) - 1, min(BATCH // 2, len(points))).long()
            chosen = torch.cat([worst, others]).unique()
            self._add(steps, points[chosen], region[chosen])
        if not self.found.margin:
            self.found.margin = max(self.method.buffer, -DEPTHS * float(least.min()), 1e-6)
        return len(points)

    def _add(self, steps: Any, points: Tensor, region: Tensor) -> None:
        """Points with the row of the worst group that is nearest to hold."""
        values = self.rows.values(steps.forward(points), region)
        best, which = self.rows.best(values, region)
        row = which.gather(1, best.argmin(1, keepdim=True))[:, 0]
        self.found.add(points, self.rows.matrix[region, row], self.rows.offset[region, row])

    def _verify(self, candidate: NewWeights) -> tuple[ProofVerdict, RegionProof]:
        """The check of proofs, which divides the regions itself; what it refutes becomes a counterexample."""
        model = candidate.apply(self.task.engine.model)
        rows = [OutputRows(*(part.numpy() for part in one.rows)) for one in self.regions.regions]
        boxes = self.lower.numpy(), self.upper.numpy()
        frame = self.regions.frame
        facts: Any = {"fingerprint": fingerprint(model).total, "execution": execution_of(model), "shape": self.shape}
        if frame is not None:
            facts |= {"vertices": frame.vertices.numpy(), "hull": frame.hull.numpy()}
        proof = RegionProof.of_boxes(*boxes, rows, **facts)
        left = self.task.judge.time_left()
        seconds = self.method.verify_seconds if left is None else min(left, self.method.verify_seconds)
        with self.task.timed("verify"):
            run = runner_of(model, self.shape)
            found = check_proof(
                layered_copy(model, self.shape), proof, run=run, depth=SPLITS, time_limit=seconds, seed=self.task.seed
            )
        if found.point is not None:
            point = torch.from_numpy(found.point)[None]
            steps = self.regions.steps(candidate.predict(self.task.engine).network)
            self._add(steps, point, torch.tensor([found.point_box]))
        else:
            self.found.margin *= GROWTH
        return found, proof

    def _record(self, index: int, candidate: NewWeights, new: int, verdict: ProofVerdict | None) -> None:
        text = f"{new} counterexamples" if verdict is None else f"verifier: {verdict.status.value}"
        self.task.record(f"round {index + 1}, {text}", self.task.judge.keep(candidate), accepted=False)

    def _proved(self, candidate: NewWeights, verdict: ProofVerdict, proof: RegionProof) -> Outcome:
        """What the verifier found, told to goal and constraints; the proof's leaves are its boxes."""
        count = len(self.lower)
        both = torch.stack([self.lower, self.upper], 1)[:, None]
        bound, full = torch.full((count,), verdict.least, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
        evidence = Evidence(bound.clamp(min=verdict.sampled_least), bound, full, tuple(both))
        key, start = digest_of(candidate.predict(self.task.engine).network), 0
        for holder in self.holders:
            end = start + len(holder.regions)
            holder.remember(key, evidence.part(slice(start, end)))
            start = end
        self.task.record(f"proved, {verdict.splits} splits", self.task.judge.keep(candidate))
        return Outcome(candidate, Status.FEASIBLE, on_target=True, proof=proof, proof_verdict=replace(verdict))
