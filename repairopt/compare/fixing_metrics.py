"""What a repair did to a network, on test rows: accuracy, failures fixed, right answers lost, robustness, fairness."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from repairopt.errors import ModelError, SpecificationError
from repairopt.network import Engine, Remembering, Search, attack, split_model
from repairopt.specify import make_specification
from repairopt.verify import verify

from .subject import Subject

ATTACKED = 500  # test rows that are attacked, of those that both networks label right
PROTOCOL = Search(steps=40, restarts=1, step=1 / 30, random_start=True)
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """One column of a comparison.

    Attributes:
        name: Its key in the results.
        title: What tables call it.
        meaning: One sentence.
        better: 1 where larger is better, -1 where smaller is.
        relative: Whether methods are compared by its difference from the original network.
        geometric: Whether methods are compared by ratios: means are geometric.
        measure: The measure of the goal language that states it as a goal or a bound, or empty.
    """

    name: str
    title: str
    meaning: str
    better: int
    relative: bool = False
    measure: str = ""
    geometric: bool = False


METRICS = (
    Metric("accuracy", "ACC", "Share of the test rows with their label.", 1, True, "accuracy"),
    Metric("repair_rate", "RR", "Share of the originally wrong test rows that are right now.", 1, False, "repair_rate"),
    Metric(
        "negative_flips", "NFR", "Share of all test rows that were right and are wrong now.", -1, False, "flip_rate"
    ),
    Metric(
        "attack_success",
        "ASR",
        "Share of up to 500 test rows, right under both networks, that a PGD attack of 40 steps makes wrong.",
        -1,
        True,
        "attack_success",
    ),
    Metric(
        "average_odds",
        "AAOD",
        "Mean absolute difference between groups of true and false positive rates, one class against the rest.",
        -1,
        True,
        "average_abs_odds_difference",
    ),
    Metric(
        "parity",
        "SPD",
        "Largest difference between groups of the favorable rate.",
        -1,
        True,
        "demographic_parity_difference",
    ),
    Metric(
        "opportunity",
        "EOD",
        "Largest difference between groups of the true positive rate.",
        -1,
        True,
        "equal_opportunity_difference",
    ),
    Metric("goal", "goal", "Value of the stated goal on the test rows.", -1),
    Metric("met", "met", "Share of the runs whose network meets goal and bounds on the rows of the repair.", 1),
    Metric("cpu_seconds", "CPU s", "Processor time of the method; geometric mean.", -1, geometric=True),
    Metric("change", "change", "Euclidean norm of the change of all weights over that of the weights.", -1),
)


def fixing_rates(before: Labels, after: Labels, labels: Labels) -> dict[str, float]:
    """Accuracy before and after, repair rate and negative flip rate of answers ``(N,)`` to labelled rows.

    The repair rate counts among the originally wrong rows, the negative flip rate among all, so that
    ``accuracy = before + repair_rate * (1 - before) - negative_flips`` holds exactly up to rounding; this is checked.

    References:
        A Comprehensive Study of Deep Learning Model Fixing Approaches, section 4, with the denominators of its tables.
    """
    was, now = before == labels, after == labels
    count, wrong = len(labels), int((~was).sum())
    fixed, lost = int((~was & now).sum()), int((was & ~now).sum())
    found = {
        "accuracy_before": (count - wrong) / count,
        "accuracy": int(now.sum()) / count,
        "repair_rate": fixed / wrong if wrong else float("nan"),
        "negative_flips": lost / count,
    }
    gained = found["repair_rate"] * (1 - found["accuracy_before"]) if wrong else 0.0
    assert abs(found["accuracy_before"] + gained - found["negative_flips"] - found["accuracy"]) < 1e-9
    return found


def group_rates(
    answers: Labels, labels: Labels, groups: npt.NDArray[np.generic], favorable: int | None
) -> dict[str, float]:
    """Differences between groups: average absolute odds, parity, equal opportunity; NaN where a rate is not defined.

    Of several classes without a favorable one, each class in turn is the favorable one, and the mean over classes is
    taken, as the scripts of the study do. Of more than two groups the largest difference counts.
    """
    kinds = [int(kind) for kind in np.unique(labels)] if favorable is None else [favorable]
    members = [groups == one for one in np.unique(groups)]
    odds, parity, opportunity = [], [], []
    for kind in kinds:
        said, true = answers == kind, labels == kind
        hits = [_rate(said, own & true) for own in members]
        alarms = [_rate(said, own & ~true) for own in members]
        odds.append((_spread(hits) + _spread(alarms)) / 2)
        parity.append(_spread([_rate(said, own) for own in members]))
        opportunity.append(_spread(hits))
    return {
        name: float(np.mean(of))
        for name, of in zip(("average_odds", "parity", "opportunity"), (odds, parity, opportunity), strict=True)
    }


def _rate(said: npt.NDArray[np.bool_], own: npt.NDArray[np.bool_]) -> float:
    return float(said[own].mean()) if own.any() else float("nan")


def _spread(rates: Sequence[float]) -> float:
    return float(np.max(rates) - np.min(rates))


def measure_fixing(subject: Subject, original: nn.Module, fixed: nn.Module, seed: int = 0) -> dict[str, float]:
    """All metrics of a fixed network on the test rows of a subject, and those of the original.

    Args:
        subject: The subject.
        original: Its network.
        fixed: The fixed network.
        seed: Draws the rows that are attacked.

    Raises:
        ModelError: The fixed network gives outputs that are not finite.
    """
    x, y = subject.test
    labels = y.cpu().numpy()
    outputs = [subject.outputs(network, x).cpu() for network in (original, fixed)]
    if not bool(torch.isfinite(outputs[1]).all()):
        raise ModelError("the fixed network gives outputs that are not finite on the test rows.")
    before, after = (one.argmax(1).numpy() for one in outputs)
    found = fixing_rates(before, after, labels)
    if subject.groups is not None:
        found |= group_rates(after, labels, subject.groups, subject.favorable)
        old = group_rates(before, labels, subject.groups, subject.favorable)
        found |= {f"{name}_before": value for name, value in old.items()}
    if subject.radius is not None:
        both = np.flatnonzero((before == labels) & (after == labels))
        rows = torch.as_tensor(np.random.default_rng(seed).permutation(both)[:ATTACKED])
        if len(rows):
            shares = [_attacked(subject, network, rows, seed) for network in (original, fixed)]
            found |= {"attack_success_before": shares[0], "attack_success": shares[1]}
    old_state, new_state = original.state_dict(), fixed.state_dict()
    if subject.goal is not None:
        found |= _stated(subject, original, fixed)
    found["change"] = float("nan")
    if old_state.keys() == new_state.keys():
        pairs = [(old.double(), new_state[name].double()) for name, old in old_state.items() if old.is_floating_point()]
        size = sum(float((old**2).sum()) for old, _ in pairs) ** 0.5
        found["change"] = sum(float(((new - old) ** 2).sum()) for old, new in pairs) ** 0.5 / (size or 1.0)
    return found


def _stated(subject: Subject, original: nn.Module, fixed: nn.Module) -> dict[str, float]:
    """The stated goal on the test rows before and after, and whether goal and bounds hold on the rows of the repair."""
    forward_fn = split_model(subject.model)[1]
    spec = make_specification(subject.goal, subject.constraints, (), subject.data)
    with contextlib.suppress(SpecificationError):  # what has no twin on other rows is measured on its own alone
        spec = make_specification(subject.goal, subject.constraints, subject.test, subject.data)
    found = verify(
        original, fixed, spec.anchored(Remembering(Engine(original, {}, forward_fn=forward_fn))), forward_fn=forward_fn
    )
    goal, checks = found.measures[0], [one for one in found.checks if not one.soft and not one.held_out]
    met = goal.target is not None and goal.after <= goal.target and all(one.holds for one in checks)
    told = {"met": float(met)}
    for one in found.measures[1:]:
        if one.held_out and one.name == goal.name:
            told |= {"goal_before": one.before, "goal": one.after}
    return told


def _attacked(subject: Subject, network: nn.Module, rows: torch.Tensor, seed: int) -> float:
    """Share of rows for which the attack of the protocol finds a wrong point; inputs stay in the range of the rows."""
    x, y = (part[rows.to(part.device)] for part in subject.test)
    search = Search(PROTOCOL.steps, PROTOCOL.restarts, seed, PROTOCOL.step, PROTOCOL.random_start)
    found = attack(network, x, y, subject.radius, lower=float(x.min()), upper=float(x.max()), search=search)
    return float((found[1] <= 0).double().mean())
