"""Hand the progress and the figures of a repair to an experiment tracker, whichever it is.

MLflow's ``mlflow.log_metrics`` can be passed as it is; for others a function of two arguments is enough, see
examples/track_repair.py. Nothing here depends on a tracker.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import count

from repairopt.errors import public
from repairopt.report import Report
from repairopt.verify import Round

Log = Callable[[dict[str, float], int], object]


@public
def track_rounds(log: Log, prefix: str = "repair") -> Callable[[Round], None]:
    """What to pass as ``progress=`` of :func:`repairopt.solve_repair`.

    Args:
        log: Called after each round with metrics by name and the number of the round, from 1.
        prefix: Text in front of each name, before a slash.

    Returns:
        A function of a round. Metrics that a round does not have are left out.

    Example:
        >>> seen = []
        >>> progress = track_rounds(lambda metrics, step: seen.append((step, metrics["repair/goal"])))
        >>> progress(Round("step 1", "optimal", goal=0.25))
        >>> seen
        [(1, 0.25)]
    """
    steps = count(1)

    def progress(entry: Round) -> None:
        figures = {
            "goal": entry.goal,
            "failing beyond allowance": math.nan if entry.broken < 0 else float(entry.broken),
            "accepted": float(entry.accepted),
            "rows": float(entry.rows),
            "solve seconds": entry.seconds,
            "violation": entry.violation,
        }
        log({f"{prefix}/{name}": value for name, value in figures.items() if math.isfinite(value)}, next(steps))

    return progress


@public
def report_metrics(report: Report, prefix: str = "repair") -> dict[str, float]:
    """The figures of a report by name, for a tracker or a table.

    Args:
        report: Report of a repair.
        prefix: Text in front of each name, before a slash.

    Returns:
        Measures, failing samples and accuracies, before and after, repair data and held-out data; sizes and times. The
        names hold letters, digits, spaces and ``_-./`` only, as trackers want it.
    """
    found = {"repaired": float(report.verdict == "repaired"), "weights changed": float(report.changed)}
    for measure in report.verification.measures:
        name = f"{measure.name}/{_split(measure.held_out)}"
        found |= {f"{name}/before": measure.before, f"{name}/after": measure.after}
    for check in report.verification.checks:
        found[f"{check.constraint}/{_split(check.held_out)}/failing"] = float(check.failed)
    for counts in report.verification.labels:
        name = f"accuracy of {counts.name}/{_split(counts.held_out)}"
        found |= {f"{name}/before": counts.accuracy[0], f"{name}/after": counts.accuracy[1]}
    found |= {"processor seconds": report.cpu_seconds, "seconds": report.seconds.get("total", math.nan)}
    plain = {re.sub(r"[^A-Za-z0-9_\-./ ]+", "", name): value for name, value in found.items()}
    return {f"{prefix}/{name}": value for name, value in plain.items() if math.isfinite(value)}


def _split(held_out: bool) -> str:
    return "held-out" if held_out else "repair"
