"""RegionRepair: input regions on which rows hold afterwards for every input, proved, with a small change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.localize import NewWeights
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.network import (
    Evidence,
    LastLayer,
    Leaves,
    NetworkSteps,
    RegionSearch,
    attack_regions,
    digest_of,
    evidence_of,
    limited,
    network_of,
    own_last_layer,
)
from repairopt.program import Status
from repairopt.specify import KeepRegions, UnprovedRegions

from .all_layers import ENOUGH, Descent, descend
from .deployed_proof import CheckedProof, as_checked, can_check, check_repaired
from .descend_leaves import LeafDescent, LeafTraining, go_back
from .keep_points import keep_inputs, keep_rows, keeper, spread_of
from .last_layer import RegionSearchState
from .least_change import LeastChange
from .margins import bounded, shrink_margin
from .reduce import Proved, objective_of, reduce_change

DEPTHS = 2.0  # first margin, in depths of the violation that an attack finds
LEAST_SPREAD = 0.3  # first margin at least, in deviations of the outputs
LAYERS = ("auto", "last", "all")
MANY, DEEPEST = 16, 40  # dimensions in which boxes are not split any more; splits of a box
MOST = 3.0  # last margin, in first ones
CUT_AT, ROOM = 3500, 1.1  # boxes at which a margin that grows is given up, for the first one and cuts; boxes then
LEAST_CHECK = 30.0  # processor seconds of a check at least; else as many as the search took
RESERVE = 0.1  # of the time, for the judgement of what was found
DEAR, MUCH = 0.05, 4.0  # change of the outputs, in deviations, and its square over the least, for all layers
COSTLY = 0.2  # the same change from which cuts follow smaller margins
PATIENT = 60.0  # processor seconds that this may take, beside those of the last layer
BETTER, LOST = 0.9, 1e-3  # change of all layers at most, in those of the last one; share of wishes they may break more
FINAL = 5e-3  # margin of the reduced repair, in deviations of the outputs


@dataclass(frozen=True, kw_only=True)
class RegionRepair:
    """Repair of whole input regions, proved by bounds on boxes that they are divided into.

    The last layer changes by as little as a proof allows, in mean squared outputs on keep points: those of data and
    constraints, or points drawn around the regions where none are given. First a margin makes a proof easy, then the
    change is reduced while everything stays proved; a limit of time ends with the best proof so far. What is proved are
    the weights after rounding to the network's precision.

    Attributes:
        layers: ``"last"``, ``"all"`` (gradient steps on the bounds first), or ``"auto"``: all where regions are balls
            in many dimensions, which no splitting proves, or where the last layer alone finds no proof, or one with a
            change that is large because of the margin that the proof needs.
        descent: How the weights of all layers are moved where regions are not divided.
        leaf_descent: How they are where regions are divided into boxes.
        leaves: Boxes at most that regions are divided into for a first proof.
        refinements: How much is done to reduce the change: a few hundred boxes for each.
        grow_at: Boxes at which a larger margin is tried.
        alpha_steps: Gradient steps on the lower lines of activations (alpha-CROWN) of each box that is not proved,
            before it is split; 0 for none. Fewer boxes, each of them dearer.

    References:
        Zhang, Weng, Chen, Hsieh, Daniel, Efficient Neural Network Robustness Certification with General Activation
        Functions, NeurIPS 2018 (the bounds).

    Example:
        >>> RegionRepair(refinements=0).leaves
        60000
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights", "solver", "regions"})
    default_weights: ClassVar[str] = "all"
    proves: ClassVar[bool] = True  # it has something to do where the goal is met: the proof

    layers: str = "auto"
    leaves: int = 60_000
    refinements: int = 8
    grow_at: int = 1500
    alpha_steps: int = 0
    descent: Descent = Descent()
    leaf_descent: LeafDescent = LeafDescent()

    def __post_init__(self) -> None:
        check_settings(self, {"leaves": Expected(low=1, whole=True), "refinements": Expected(whole=True)})
        if not is_one_of(self.layers, LAYERS):
            raise SpecificationError(f"RegionRepair: layers={self.layers!r}; choose from {', '.join(LAYERS)}.")
        check_settings(self, {"grow_at": Expected(low=1, whole=True), "alpha_steps": Expected(whole=True)})

    def run(self, task: Task) -> Outcome:
        """Prove the regions with a changed last layer, then make the change small.

        Args:
            task: The repair; its goal or a constraint speaks of regions.

        Returns:
            New weights of the last layer; where nothing is proved, those that come nearest, which the judge marks so.

        Raises:
            SpecificationError: Neither the goal nor a constraint has regions, or the last layer may not change.
        """
        with torch.no_grad():
            return _Run(self, task).go()


class _Run:
    """One repair: its regions, the network as steps, and what was proved."""

    def __init__(self, settings: RegionRepair, task: Task) -> None:
        self.settings, self.task = settings, task
        holders = [task.goal, *task.constraints]
        self.holders: list[Any] = [one for one in holders if isinstance(one, UnprovedRegions | KeepRegions)]
        if not self.holders:
            raise SpecificationError(
                f"method regions: goal '{task.goal.name}' has no regions; expected UnprovedRegions, or KeepRegions "
                f"among the constraints."
            )
        first = self.holders[0]
        self.regions = UnprovedRegions([one for holder in self.holders for one in holder.regions], search=first.search)
        self.network: NetworkSteps = self.regions.steps(task.engine.caller)
        step = self.network.last
        if step is None:
            raise SpecificationError(
                f"method regions: {self.network.traced.what} does not end in a linear layer; the last layer is what "
                f"this method changes."
            )
        self.layer = step.layer.removeprefix("model.")
        own = dict(task.engine.model.named_parameters())
        whole = {name for name, at in task.location.indices.items() if len(at) == own[name].numel()}
        self.allowed = {name: value for name, value in own.items() if name in whole}
        missing = {f"{self.layer}.weight"} - whole
        if missing:
            raise SpecificationError(
                f"method regions: weights= leaves out '{missing.pop()}', or a part of it, which this method changes."
            )
        self.original, self.matrix, self.offset = own_last_layer(self.network)
        self.lower, self.upper = self.regions.boxes
        self.frame = self.regions.frame
        self.started = time.process_time()
        self.wide = int((self.upper > self.lower).any(0).sum()) > MANY
        self.base: dict[str, Tensor] = {}
        left = task.judge.time_left()
        self.kept: list[tuple[NewWeights, Evidence]] = []
        self.reserve = 0.0 if left is None else RESERVE * left  # for the judgement of what was found

    def late(self) -> bool:
        """Whether the time is over."""
        left = self.task.judge.time_left()
        return left is not None and left <= self.reserve

    def go(self) -> Outcome:
        """The original where it is proved; else the last layer, all layers, or both."""
        judge, layers = self.task.judge, self.settings.layers
        if judge.original.met and judge.original.feasible:
            self.task.log.note("The goal is met by the original network already; nothing was changed.")
            predict = network_of(self.task.engine, judge.original.candidate)
            self.kept.append((NewWeights({}, 0), Evidence.joined([one.evidence(predict) for one in self.holders])))
            return self._checked(Status.OPTIMAL)
        several = any(name.rpartition(".")[0] != self.layer for name in self.allowed)
        if self.wide and (layers == "all" or (layers == "auto" and several)):
            self._all_layers()
        deep = several and not self.wide and layers != "last"
        best = None if deep and layers == "all" else self._last_layer()
        proved = best is not None
        if deep and self._is_dear(best, DEAR):
            proved = self._on_leaves(best) or proved
        if deep and not proved and not self.late():
            self._all_layers()
            proved = self._last_layer() is not None
        return self._checked(Status.FEASIBLE if proved else Status.NO_POINT)

    def _all_layers(self) -> None:
        """Move the weights of all layers; what follows starts from there."""
        self.network.refresh(None)
        own = {f"model.{name}": value.detach().cpu() for name, value in self.allowed.items()}
        regions = (self.lower, self.upper, self.regions.rows, self.frame)
        inputs, _ = keep_inputs(self.task, *self.regions.around, self.network.size(0))
        features = self.network.forward(inputs, self.network.features_at)
        spread = spread_of(self.original(features))
        with self.task.timed("all layers"):
            found = descend(
                self.network, own, regions, inputs, spread, self.settings.descent, self.late, self.task.seed
            )
        self._begin(found.weights)
        self.task.record(f"all layers, {found.steps} steps", note="bounds hold" if found.proved else "bounds open")

    def _begin(self, weights: Mapping[str, Tensor]) -> RegionSearchState:
        """Start from other weights of all layers: the search from there."""
        dtype = self.task.engine.dtype
        self.base = {name.removeprefix("model."): value.to(dtype) for name, value in weights.items()}
        self.network.refresh({f"model.{name}": value.double().cpu() for name, value in self.base.items()})
        self.original, self.matrix, self.offset = own_last_layer(self.network)
        return self._state()

    def _is_dear(self, best: Proved | None, dear: float) -> bool:
        """Whether there is no proof, or one whose margin costs a change that is large, in deviations."""
        if best is None:
            return not self.late() or not self.kept
        large = best.objective > (dear * self.spread) ** 2 and best.objective > MUCH * best.least_at_all
        return large and not self.late() and self.settings.refinements > 0

    def _on_leaves(self, best: Proved | None) -> bool:
        """All layers until boxes prove them, then back as far as the last one can finish; whether that is kept."""
        task, root = self.task, self._state().leaves
        spread, end = self.spread, 2 * time.process_time() - self.started + PATIENT
        own = {f"model.{name}": value.detach().cpu().double() for name, value in self.allowed.items()}
        keep, _ = keep_inputs(task, *self.regions.around, self.network.size(0))
        wishes = keep_rows(task, self.network, self.original, self.matrix, self.offset)
        given = (self.network, own, root, self.regions.rows, keep, wishes, spread, self.settings.leaf_descent)
        training = LeafTraining(*given, lambda: self.late() or time.process_time() > end, task.seed)
        lost = 1.0 if best is None else training.broken(best.last) + LOST
        with task.timed("all layers"):
            proved = training.run()
            task.record(f"all layers, {training.steps} steps", note="bounds hold" if proved else "bounds open")
            found = go_back(training, proved, self._begin)
        if found is None:
            if not self.kept:
                self._keep(self.original, self._begin(training.between(1.0)).leaves, "not proved")
            return False
        self._begin(found[0])
        _, last, leaves = found
        features = self.network.forward(training.keep, self.network.features_at)
        change = training.change(last(features) @ self.matrix.T + self.offset)
        if best is not None and (change > BETTER * best.objective**0.5 / spread or training.broken(last) > lost):
            return False
        self._keep(last, leaves, f"all layers, then the last one, {len(leaves)} boxes")
        task.log.note(
            f"All layers change outputs on keep points by {change:.3g} of their deviation, in the root mean square; "
            f"how little would do is not known."
        )
        return True

    def _last_layer(self) -> Proved | None:
        """Algorithm of the last layer; its proof, or None."""
        state, many = self._state(), CUT_AT + len(self.lower)
        state.give_up_at = many
        proved = self._first(state)
        if proved is None and state.given_up and not self.late():
            state = replace(self._state(), leaves=state.leaves)  # the boxes at the first margin, and cuts for the rest
            state.grow_at, state.most = inf, min(int(ROOM * len(state.leaves)), self.settings.leaves)
            proved = self._first(state)
        if proved is None:
            last, _ = state.propose()
            self._keep(last, state.leaves, "not proved")
            return None
        self._keep(proved.last, proved.leaves, "first proof")
        if self.settings.refinements and not self.base:
            return self._reduced(state, proved)
        return proved

    def _reduced(self, state: RegionSearchState, proved: Proved) -> Proved:
        """A smaller change: by smaller margins where boxes can be split, else by cuts."""
        floor, rounds = FINAL * self.spread, self.settings.refinements

        def report(better: Proved) -> None:
            self._keep(better.last, better.leaves, f"reduced, {len(better.leaves)} boxes")

        best = shrink_margin(state, proved, floor, rounds, report) if state.deepest else proved
        best = bounded(state, best, floor)
        if best.last is proved.last or self._is_dear(best, COSTLY):
            best = bounded(state, reduce_change(state, best, floor, rounds, report), floor)
        if self.late():
            return best
        gap, whole = (best.objective / least - 1 if least > 0 else inf for least in (best.least, best.least_at_all))
        step = f"reduced, {len(best.leaves)} boxes, gap {gap:.1%}, {whole:.1%} at no margin"
        self._keep(best.last, best.leaves, step)
        size, least, any_ = (one**0.5 / self.spread for one in (best.objective, best.least, best.least_at_all))
        self.task.log.note(
            f"Outputs on keep points change by {size:.3g} of their deviation, in the root mean square, with what "
            f"wishes cost. With the rows that hold in it no last layer that keeps its distance to the limit of the "
            f"regions, {best.margin / self.spread:.3g} deviations, at true points changes them by less than "
            f"{least:.3g}, and none that keeps hardly any by less than {any_:.3g}."
        )
        return best

    def _checked(self, status: Status) -> Outcome:
        """The last candidate whose proof is checked, whatever the time; of those not proved the last one, marked so."""
        if self.late():
            self.task.log.note("The time limit ended the search; this is the best that was found until then.")
        self.task.judge.deadline = None
        order = list(reversed(self.kept))
        tried = order[:1] if len(order) == 1 else [order[0], order[len(order) // 2], order[-1]]
        found: list[tuple[NewWeights, CheckedProof]] = []
        with limited(None), self.task.timed("check the proof"):
            for candidate, evidence in order[:1] if status is Status.NO_POINT else tried:
                found.append((candidate, self._check(candidate, evidence, status is not Status.NO_POINT)))
                if found[-1][1].proved or found[-1][1].verdict is None:
                    break
        candidate, checked = found[-1] if found[-1][1].proved else found[0]
        status = Status.FEASIBLE if checked.proved and status is Status.NO_POINT else status
        if checked.verdict is None:
            self.task.log.note(f"The proof was made by the search's own bounds alone, {checked.describe()}")
        return Outcome(candidate, status, on_target=True, proof=checked.proof, proof_verdict=checked.verdict)

    def _check(self, candidate: NewWeights, evidence: Evidence, proved: bool) -> CheckedProof:
        """The proof of a candidate, checked; goal and constraints are told what was found."""
        model, regions = candidate.apply(self.task.engine.model), self.regions.regions
        free = proved or not self.reserve  # what the search did not prove gets what is left of a time limit
        seconds = max(LEAST_CHECK, time.process_time() - self.started) if free else self.reserve
        checked = check_repaired(model, regions, evidence, self.network.shape, time_limit=seconds, seed=self.task.seed)
        self._remember(candidate, as_checked(evidence, checked, regions))
        self.task.record(f"checked: {checked.describe()}", self.task.judge(candidate), accepted=checked.proved)
        return checked

    def _state(self) -> RegionSearchState:
        task, network = self.task, self.network
        inputs, given = keep_inputs(task, *self.regions.around, network.size(0))
        if not given:
            task.log.note(
                f"No data were given: outputs are kept on {len(inputs):,} points drawn from a box around the "
                f"regions, three times as wide."
            )
        features = network.forward(inputs, network.features_at)
        full = torch.cat([features, features.new_ones(len(features), 1)], 1)
        self.spread = spread_of(self.original(features))
        rows = self.regions.rows.through(self.matrix, self.offset)
        which = torch.arange(len(self.lower))
        single = can_check(task.engine.model, network.shape)  # the check covers rounding
        program = LeastChange.on(full, len(self.original.bias), task.solver)
        state = RegionSearchState(
            network=network,
            lower=self.lower,
            upper=self.upper,
            search=RegionSearch(seed=task.seed),
            frame=self.frame,
            leaves=Leaves.of(network, self.lower, self.upper, rows, which, self.frame, single),
            original=self.original,
            program=program,
            largest=0.0,
            rounded=self._rounded,
            late=self.late,
            keep=keeper(keep_rows(task, network, self.original, self.matrix, self.offset), program),
            most=self.settings.leaves,
            deepest=0 if self.wide else DEEPEST,
            grow_at=self.settings.grow_at,
            alpha_steps=self.settings.alpha_steps,
        )
        return state

    def _first(self, state: RegionSearchState) -> Proved | None:
        points, region = state.attack(self.original)
        state.program.margin = max(-DEPTHS * state.worst, LEAST_SPREAD * self.spread)
        if self.base:  # gradient steps left a margin already
            state.program.margin = ENOUGH * self.settings.descent.margin * self.spread
        state.largest = MOST * state.program.margin
        if len(points):
            state.add_points(state.features(points), region, self.original)
        found = state.first_proof()
        if found is None:
            return None
        return Proved(found[0], state.leaves, objective_of(state, found[0]))

    def _rounded(self, last: LastLayer) -> LastLayer:
        dtype = self.task.engine.dtype
        return LastLayer(last.weight.to(dtype).double(), last.bias.to(dtype).double())

    def _keep(self, last: LastLayer, leaves: Leaves, step: str) -> None:
        """Tell goal and constraints what is proved of a candidate, and the judge to keep it if it is the best."""
        task, module = self.task, self.task.engine.model.get_submodule(self.layer)
        weights = {**self.base, f"{self.layer}.weight": last.weight}
        if getattr(module, "bias", None) is not None:
            weights[f"{self.layer}.bias"] = last.bias
        new = {name: value.to(task.engine.dtype).to(task.engine.device) for name, value in weights.items()}
        own = dict(task.engine.model.named_parameters())
        candidate = NewWeights(new, sum(int((own[name] != value).sum()) for name, value in new.items()))
        least = attack_regions(
            self.network, self.lower, self.upper, leaves.rows, RegionSearch(seed=task.seed + 1), last, self.frame
        )[2]
        evidence = evidence_of(leaves, last, least)
        self._remember(candidate, evidence)
        self.kept.append((candidate, evidence))
        if not self.late():
            self.task.record(step, self.task.judge.keep(candidate))

    def _remember(self, candidate: NewWeights, evidence: Evidence) -> None:
        """Tell goal and constraints what is known of a candidate."""
        key, start = digest_of(candidate.predict(self.task.engine).network), 0
        for holder in self.holders:
            end = start + len(holder.regions)
            holder.remember(key, evidence.part(slice(start, end)))
            start = end
