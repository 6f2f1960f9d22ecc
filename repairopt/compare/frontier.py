"""The trade-off: a bound swept from loose to tight, each repair begun at the one before; thresholds by group beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError, public, shown, visible
from repairopt.localize import wants_factors
from repairopt.methods import SQP, ThresholdPoint, threshold_frontier
from repairopt.network import Classifier, Engine, Stop, check_inputs, is_dataset, split_model
from repairopt.patches import whole_file
from repairopt.pipeline import DEFAULTS, INTERRUPTED, Settings, solve_repair, unless_interrupted, without_former
from repairopt.report import Repair, Verdict, load_matplotlib, render_frontier
from repairopt.specify import (
    Expected,
    LabelledPair,
    Specification,
    are_numbers,
    goal_value,
    make_specification,
    row_weights,
    sum_by_weight,
    weight_of,
)

from .shared_limit import SharedLimit

STEPS = 8  # bounds in a sweep, where the user does not say
MOST_STEPS = 1000


@dataclass(frozen=True, eq=False)
class FrontierPoint:
    """One repair of a sweep.

    Attributes:
        target: The bound.
        value: Value of the property on the repair data.
        accuracy: Share right of the labelled repair data; NaN without labels.
        held_out_value: Value of the property on held-out data, or NaN.
        held_out_accuracy: There, or NaN.
        met: Whether bound and constraints hold on the repair data.
        repair: The repaired copy and its report; None for the original network.
    """

    target: float
    value: float
    accuracy: float
    held_out_value: float
    held_out_accuracy: float
    met: bool
    repair: Repair | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Frontier:
    """The curve of a property against accuracy.

    Attributes:
        name: Name of the property.
        original: The network as it was.
        points: From the loosest bound to the tightest.
        thresholds: For a gap between groups of two-class decisions: the best that a threshold of its own for each group
            does with the original scores, which needs the group at every decision; empty for other properties.
        stopped: ``"interrupted"`` where Ctrl-C ended the sweep; the points are those that were found until then.
            ``"time limit"`` where a repair ended at its share of the time, or a bound was not tried any more.
    """

    name: str
    original: FrontierPoint
    points: tuple[FrontierPoint, ...]
    thresholds: tuple[ThresholdPoint, ...] = ()
    stopped: str = ""

    def best(self, limit: float) -> FrontierPoint:
        """The most accurate point whose property, on repair data, is at most a limit.

        Raises:
            SpecificationError: No point is that low.
        """
        low = [point for point in (self.original, *self.points) if point.value <= limit and point.met]
        if not low:
            least = min(point.value for point in self.points)
            raise SpecificationError(f"frontier of '{self.name}': no point reaches {limit}; the lowest is {least:.4f}.")
        return max(low, key=lambda point: point.accuracy)

    def __str__(self) -> str:
        head = f"{'bound':>8} {'value':>8} {'accuracy':>9}   {'held out':>8} {'accuracy':>9}"
        lines = [f"frontier of '{self.name}'", head]
        for point in (self.original, *self.points):
            name = "original" if point.repair is None else f"{point.target:8.4f}"
            lines.append(_cells(name, point) + ("" if point.met else "   missed"))
        if self.thresholds:
            lines.append("thresholds by group, on the original scores")
            lines += [_cells(f"{point.target:8.4f}", point) for point in self.thresholds]
        if self.stopped:
            lines.append(f"Stopped early ({self.stopped}); bounds that are missed or missing may be met in more time.")
        return visible("\n".join(lines))

    @public
    def to_html(self, *, title: str = "Frontier of repairs", **options: Any) -> str:
        """One HTML page that needs no network, in which a slider chooses among the repairs.

        Args:
            title: Heading of the page.
            **options: ``features``, names of the input columns; ``claims``, ``words`` and ``patches``, which
                ``repairopt frontier`` passes for spec files.

        Raises:
            SpecificationError: A point has no repair.
        """
        if not self.points or any(point.repair is None for point in self.points):
            raise SpecificationError(
                f"frontier of '{self.name}': its page shows repairs, and a point has none. Pass what trace_frontier "
                f"returned."
            )
        return render_frontier(self, title=title, **options)

    @public
    def save_html(self, path: str | Path, **options: Any) -> Path:
        """Write the page of :meth:`to_html` to a file, whole or not at all."""
        page = self.to_html(**options)
        with whole_file(path) as file:
            file.write_text(page, encoding="utf-8")
        return Path(path)

    def plot(self, axes: Any = None, *, held_out: bool | None = None) -> Any:
        """Draw the curve.

        Args:
            axes: Axes of matplotlib; None for new ones.
            held_out: Whether to show held-out data; None to show them where there are some.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        load_matplotlib("Frontier.plot")
        import matplotlib.pyplot as plt

        if held_out is None:
            held_out = bool(np.isfinite(self.original.held_out_value))
        axes = plt.subplots(figsize=(6, 4), layout="constrained")[1] if axes is None else axes

        def curve(points: Sequence[Any]) -> tuple[list[float], list[float]]:
            names = ("held_out_value", "held_out_accuracy") if held_out else ("value", "accuracy")
            return tuple([getattr(p, name) for p in points] for name in names)  # type: ignore[return-value]

        axes.plot(*curve(self.points), marker="o", color="#0072B2", label="repairs")
        if self.thresholds:
            axes.plot(*curve(self.thresholds), "--", marker="s", color="#E69F00", label="a threshold for each group")
        axes.plot(*curve([self.original]), marker="*", markersize=14, linestyle="", color="black", label="original")
        axes.set_xlabel(f"{self.name}, {'held-out' if held_out else 'repair'} data")
        axes.set_ylabel("accuracy")
        axes.grid(alpha=0.3)
        axes.legend()
        return axes


def _cells(name: str, p: Any) -> str:
    figures = f"{p.value:8.4f} {p.accuracy:9.4f}   {p.held_out_value:8.4f} {p.held_out_accuracy:9.4f}"
    return f"{name:>8} {figures}".replace("nan", "  -")


@public
def trace_frontier(
    model: nn.Module | Classifier,
    goal: Any,
    constraints: Any = (),
    *,
    targets: Sequence[float] | int = STEPS,
    data: Any = None,
    held_out: Any = None,
    held_out_goal: Any = None,
    weights: Any = "auto",
    method: SQP | None = None,
    settings: Settings = DEFAULTS,
    **options: Any,
) -> Frontier:
    """Sweep the bound on a property; what it costs in accuracy, with the repaired networks.

    Args:
        model: As for :func:`repairopt.solve_repair`.
        goal: As there; its target is not read.
        constraints: As there.
        targets: The bounds, or how many between the original value and a tenth of it.
        data: Labelled samples ``(inputs, labels)``, or a dataset or loader of pairs; accuracy and loss are theirs.
        held_out: Samples that only the report sees.
        held_out_goal: The property on held-out data, or a list of it and of the twins of the constraints; None to make
            them from ``held_out``, where they can be made.
        weights: As there; ``"auto"`` is settled once, in the middle of the sweep.
        method: Settings of the method; by default without buffers for new data, because the curve shows those.
        settings: As there; the time limit is that of the whole sweep, whose repairs share what is left evenly.
        **options: Former keywords.

    Returns:
        The frontier, one point for each bound, loosest first.

    Raises:
        SpecificationError: A target is not a number, or there are none.
    """
    given = (model, goal, constraints, method or SQP(confidence=None), settings)
    model, goal, constraints, chosen, settings, rest = without_former(*given, options)
    if rest:
        raise TypeError(f"trace_frontier() got an unexpected keyword argument '{min(rest)}'")
    module, forward_fn = split_model(model)
    goal = Specification(goal).goal
    data, held_out = _labelled("data", data), _labelled("held_out", held_out)
    engine = Engine(module, forward_fn=forward_fn)
    value = goal_value(goal, engine.predict())
    bounds = _bounds(targets, value)
    twins: tuple[Any, ...] = ()
    if held_out_goal is not None:
        twins = tuple(held_out_goal) if isinstance(held_out_goal, list | tuple) else (held_out_goal,)
        twins = Specification(goal, held_out=twins).held_out  # which refuses what is neither property nor constraint
    elif held_out is not None:
        own = held_out if held_out.weight is None else (*held_out, held_out.weight)
        twins = make_specification(goal, constraints, own).held_out
    other = twins[0] if twins and (held_out_goal is not None or twins[0].name == goal.name) else None

    def point(target: float, network: nn.Module, repair: Repair | None, met: bool) -> FrontierPoint:
        predict = Engine(network, forward_fn=forward_fn).predict()
        new = float("nan") if other is None else goal_value(other, predict)
        accuracies = accuracy(predict, data), accuracy(predict, held_out)
        return FrontierPoint(target, goal_value(goal, predict), accuracies[0], new, accuracies[1], met, repair)

    shared = SharedLimit(settings)
    options = {"data": () if data is None else data, "method": chosen, "weights": weights}
    if isinstance(weights, str) and weights == "auto":
        options |= {
            "weights": _settled(model, replace(goal, target=bounds[len(bounds) // 2]), constraints, shared, options)
        }

    def repaired(bound: float, start: Repair | None, settings: Settings) -> Repair:
        begun = replace(settings, start=None if start is None or wants_factors(options["weights"]) else start.delta)
        unseen = [replace(twin, target=bound) if twin.name == goal.name else twin for twin in twins]
        aim = replace(goal, target=bound)
        return solve_repair(model, aim, constraints, held_out=unseen, settings=begun, **options)

    found, stopped = _sweep(repaired, [float(bound) for bound in bounds], shared)
    points = tuple(point(bound, repair.model, repair, _is_met(repair)) for bound, repair in found)
    thresholds = threshold_frontier(engine.predict(), goal, list(bounds), data, held_out, other)
    return Frontier(goal.name, point(value, module, None, True), points, thresholds, stopped)


def _settled(model: Any, goal: Any, constraints: Any, shared: SharedLimit, options: dict[str, Any]) -> Any:
    """The weights that ``"auto"`` chooses for a goal, in half of the time at most."""

    def repaired(settings: Settings) -> Repair:
        return solve_repair(model, goal, constraints, settings=_telling(settings, "weights"), **options)

    return unless_interrupted(shared.run(repaired, 2, needed=True)).report.location


def _sweep(
    repaired: Callable[[float, Repair | None, Settings], Repair], bounds: Sequence[float], shared: SharedLimit
) -> tuple[list[tuple[float, Repair]], str]:
    """A repair for each bound, begun at the last one that met its own, until time is up; why they ended early."""
    found: list[tuple[float, Repair]] = []
    before: Repair | None = None
    for k, bound in enumerate(bounds):
        part = f"bound {k + 1} of {len(bounds)}"

        def one(settings: Settings, bound: float = bound, before: Any = before, part: str = part) -> Repair:
            return repaired(bound, before, _telling(settings, part))

        try:
            repair = shared.run(one, len(bounds) - k, needed=not found)
        except Stop:
            break
        interrupted = repair.report.stopped == INTERRUPTED
        if interrupted and found and not _is_met(repair):
            return found, INTERRUPTED
        found.append((bound, repair))
        if interrupted:
            return found, INTERRUPTED
        before = repair if _is_met(repair) else before
    return found, shared.stopped


def _is_met(repair: Repair) -> bool:
    return repair.report.verdict is Verdict.REPAIRED


def _telling(settings: Settings, part: str) -> Settings:
    """Settings whose progress says in each step of which part of the sweep it is."""
    tell = settings.progress
    if tell is None:
        return settings
    return replace(settings, progress=lambda entry: tell(replace(entry, step=f"{part}, {entry.step}")))


def accuracy(predict: Any, data: tuple[Tensor, Tensor] | None) -> float:
    """Share right, or NaN without labels."""
    if data is None:
        return float("nan")
    with torch.no_grad():
        right = predict(data[0]).argmax(-1).cpu() == torch.as_tensor(data[1]).cpu()
    return sum_by_weight(right, data) / len(right)


def _labelled(owner: str, given: Any) -> Any:
    """Inputs and labels, with the weight of each row, checked; None where nothing was given."""
    if given is None:
        return None
    if not is_dataset(given) and not (isinstance(given, tuple | list) and len(given) in (2, 3)):
        raise SpecificationError(f"{owner}: got {shown(given)}; expected (inputs, labels), a dataset or a loader.")
    inputs, labels, weights = (given, None, None) if is_dataset(given) else (*given, weight_of(given))[:3]
    x, y = check_inputs(owner, inputs, labels, integers=True)
    return LabelledPair(x, y, row_weights(owner, weights, inputs, len(x)))


def _bounds(targets: Sequence[float] | int, value: float) -> npt.NDArray[np.float64]:
    if isinstance(targets, int):
        if not 1 <= targets <= MOST_STEPS:
            raise SpecificationError(f"targets={shown(targets)}; expected 1 to {MOST_STEPS} bounds, or a list of them.")
        return np.linspace(0.9, 0.1, targets) * value
    if not are_numbers(targets, Expected(low=-np.inf)):
        raise SpecificationError(f"targets={targets!r}: expected at least one finite number.")
    return np.sort(np.asarray([float(one) for one in targets]))[::-1]
