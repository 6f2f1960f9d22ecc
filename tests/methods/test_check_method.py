"""check_method: registered methods pass, and each kind of mistake is named."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from biased_task import task

from repairopt import OneShot, SpecificationError, solve_repair
from repairopt.interfaces.testing import check_method
from repairopt.localize import NewWeights
from repairopt.methods import Outcome, find_method
from repairopt.program import Status
from repairopt.verify import Stop


class Steps:
    """A method that is right: random steps, kept where they are better."""

    uses = frozenset({"weights"})

    def run(self, task):
        draw, best = np.random.default_rng(task.seed), task.judge.original
        for step in range(200):
            change = task.engine.scale.cpu().numpy() * draw.normal(size=task.engine.n) * draw.random() ** 3
            judged = task.judge(best.delta + change)
            if judged.better_than(best):
                best = task.judge.keep(judged.candidate)
                task.record(f"step {step}", best)
        return self.outcome(task, best)

    def outcome(self, task, best):
        return Outcome(best.candidate, Status.FEASIBLE)


class NoOutcome(Steps):
    def outcome(self, task, best):
        return best.candidate


class OtherSize(Steps):
    def outcome(self, task, best):
        if task.location.size and task.solver is not None:
            return Outcome(np.zeros(1), Status.FEASIBLE)
        return super().outcome(task, best)


class Unkept(Steps):
    def run(self, task):
        found = super().run(replace(task, judge=_copy(task)))
        task.record("all", task.judge(found.candidate))
        return found


def _copy(task):
    from repairopt.verify import Judge

    return Judge(task.engine, task.spec, task.judge.deadline)


class Unlogged(Steps):
    def run(self, task):
        found = super().run(task)
        task.log.rounds.clear()
        return found


class Unseeded(Steps):
    def run(self, task):
        return super().run(replace(task, seed=int(torch.randint(10**6, ()))))


class Writes(Steps):
    def outcome(self, task, best):
        with torch.no_grad():
            next(task.engine.model.parameters()).add_(1e-3)
        return super().outcome(task, best)


class Breaks(Steps):
    """Gives every input one label."""

    def outcome(self, task, best):
        return Outcome(NewWeights({"2.bias": torch.tensor([100.0, 0.0], dtype=torch.float64)}), Status.FEASIBLE)


class Nothing(Steps):
    def run(self, task):
        return Outcome(task.judge.original.candidate, Status.FEASIBLE)


class Sleeps(Steps):
    def run(self, task):
        import time

        deadline, task.judge.deadline = task.judge.deadline, None
        found = super().run(task)
        if deadline is not None:
            time.sleep(2.5)
        return found


@dataclass(frozen=True, kw_only=True)
class Denies(OneShot):
    """Solves programs, though it says that it uses no solver."""

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})


class Claims(Steps):
    uses = frozenset({"weights", "solver"})


class StartsAnew(Steps):
    uses = frozenset({"weights", "start"})

    def run(self, task):
        if task.start is None:
            return super().run(task)
        raise Stop("the start is of no use")


class Misspelled(Steps):
    uses = frozenset({"weight"})


class Refuses(Steps):
    def run(self, task):
        raise SpecificationError("nothing is good enough")


def test_a_method_that_is_right_passes():
    assert {"gap: better", "gap: uses", "points: patch", "out of reach: nothing is claimed"} <= set(
        check_method(Steps())
    )


@pytest.mark.parametrize("name", ["sqp", "one_shot", "incremental", "bisection", "sequential"])
def test_methods_that_solve_programs_pass(name):
    assert {"gap: better", "gap: uses", "points: better"} <= set(check_method(find_method(name)))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (NoOutcome, "an Outcome; got ndarray"),
        (OtherSize, r"a change of \d finite numbers; got \(1,\)"),
        (Unkept, "known to task.judge.keep"),
        (Unlogged, "rounds in the log"),
        (Unseeded, "the same seed to agree"),
        (Writes, "model and data as they were"),
        (Nothing, "a better network"),
        (Sleeps, "an end within 2 s of a time limit"),
        (Denies, r"no solve, since 'solver' is not in uses; got \d+ solve"),
        (Claims, "since 'solver' is in uses; got none"),
        (StartsAnew, "starts at an answer to end there"),
        (Misspelled, r"names among .*; got \['weight'\]"),
        (Refuses, "a repair that it takes"),
    ],
)
def test_mistakes_are_named(method, message):
    with pytest.raises(AssertionError, match=rf"check_method\('{method.__name__}'\).*{message}"):
        check_method(method())


def test_a_candidate_that_breaks_a_constraint_gives_way_to_the_best_that_was_kept():
    given = task()
    found = solve_repair(given.model, given.gap(0.1), [given.keep(0.2)], weights="last", method=Breaks())
    right = solve_repair(given.model, given.gap(0.1), [given.keep(0.2)], weights="last", method=Steps())
    assert found.report.verdict == right.report.verdict == "repaired"
    assert torch.equal(found.model(given.inputs).argmax(1), right.model(given.inputs).argmax(1))


def test_what_is_returned_in_place_of_an_outcome_is_named():
    given = task()
    with pytest.raises(SpecificationError, match="method NoOutcome returned a ndarray; expected an Outcome"):
        solve_repair(given.model, given.gap(), weights="last", method=NoOutcome())


def test_what_is_no_method_is_refused():
    with pytest.raises(AssertionError, match="an instance with run"):
        check_method(Steps)
    with pytest.raises(AssertionError, match="an instance with run"):
        check_method(task())
