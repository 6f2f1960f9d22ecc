"""What ``frontier.py`` runs of the library itself: SQP with weights chosen in several ways."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from frontier_cases import Case, Part, Predictor

from repairopt import SQP, Settings, solve_repair

NAN = float("nan")
REPEATS = 3  # of calls whose seconds are judged; the least is taken, because what else a machine does only adds


@dataclass(frozen=True, eq=False)
class Run:
    """What a method returned for one bound.

    Attributes:
        typed: The bound; NaN where the method knows none.
        predict: Rows to outputs.
        seconds: CPU seconds of the call; of a sweep, all of it and the choice.
        setting: Where the run is one of a sweep, which; else empty.
        extra: Anything more for the CSV file.
    """

    typed: float
    predict: Predictor
    seconds: float
    setting: str = ""
    extra: dict[str, float] = field(default_factory=dict)


Method = Callable[[Case, int, Part], Iterator[Run]]  # of a case, split and repair half


def sqp(
    weights: str,
    confidence: float | None = None,
    rate: float | None = None,
    *,
    typed_odds: bool = False,
    share: float | None = None,
    **settings: float,
) -> Method:
    """The library's method: one call for each bound.

    With a confidence it is told on how many rows the bounds will be measured, by way of the held-out data. With a rate
    the favorable rate, mean over the groups of the gap, is bounded too.

    Args:
        weights: ``"chosen"``, ``"far"`` (with the columns in which drawn inputs lie far from the data), ``"farthest"``
            (the farthest of these columns alone), ``"offsets"``, ``"auto"``, or ``"auto with offsets"``.
        confidence: Of the method.
        rate: Largest favorable rate, or None.
        typed_odds: Whether the bound on the odds difference is the original's on all rows.
        share: Of the bound on the gap, that its buffer takes; None for what the confidence asks for.
        **settings: Of the method.
    """

    def run(case: Case, split: int, part: Part) -> Iterator[Run]:
        other = case.halves(split)[1]
        network = part.with_offsets if "offsets" in weights else case.task.network
        by_name = {"chosen": case.weights, "far": part.far_weights, "farthest": part.farthest_weights}
        chosen = "offsets" if weights == "offsets" else by_name.get(weights, "auto")
        for typed in case.targets:
            bounds = part.bounds(typed=typed_odds)
            buffer = None if share is None else {"gap": share * part.target(typed)}
            held_out = [] if confidence is None else [other.goal(typed), *other.bounds(typed=typed_odds)]
            seconds = math.inf
            for _ in range(REPEATS if case.timed and chosen != "auto" else 1):
                started = time.process_time()
                repair = solve_repair(
                    network,
                    part.goal(typed),
                    bounds if rate is None else [*bounds, part.favorable(rate)],
                    data=(part.rows, part.labels),
                    held_out=held_out,
                    weights=chosen,
                    method=SQP(confidence=confidence, buffer=buffer, **settings),
                    settings=Settings(seed=split),
                )
                seconds = min(seconds, time.process_time() - started)
            extra = {"weights": repair.report.location.size, "rounds": len(repair.report.rounds)}
            claims = [claim for claim in repair.report.claims if claim.source == "cross-validation"]
            if claims:  # those from the held-out half would hold there by being made there
                extra["claimed"] = float(all(claim.met for claim in claims))
            yield Run(typed, repair.model, seconds, extra=extra)

    return run


def in_sight(share: float) -> Method:
    """No repair but a limit of any: fitted on both halves, with a share of each bound as its buffer."""

    def run(case: Case, split: int, part: Part) -> Iterator[Run]:
        for typed in case.targets:
            yield Run(typed, *informed(case, typed, share))

    return run


@lru_cache(maxsize=64)
def informed(case: Case, typed: float, share: float) -> tuple[torch.nn.Module, float]:
    """The network that is fitted on everything, the same for all divisions, and the CPU seconds that it took."""
    whole = case.everything
    goal = whole.goal(typed)
    buffer = {"gap": share * goal.target} | ({"odds": share * whole.before["odds"]} if case.odds else {})
    started = time.process_time()
    repair = solve_repair(
        case.task.network,
        goal,
        whole.bounds(),
        data=(whole.rows, whole.labels),
        weights=case.weights,
        method=SQP(confidence=None, buffer=buffer),
    )
    return repair.model, time.process_time() - started
