"""Turns the records of ``autoric_tables.py`` into markdown tables: means over the splits with standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from protocol import Task
from published import MEASURED_AGAIN, TABLE_4, TABLE_6, TABLE_7, TABLE_8

Records = list[dict[str, Any]]
NONE = "–"


def table_4(records: Records, wanted: dict[str, Task], methods: Sequence[str]) -> str:
    """Repair with constraints: gap, accuracy, balanced accuracy, recall and rates."""
    head = [
        "task",
        "method",
        "gap before",
        "gap after",
        "accuracy before",
        "accuracy, points",
        "balanced accuracy, points",
    ]
    head += ["recall of the rare class", "favorable rates after", "gap on real rows", "constant", "target met", "CPU s"]
    body = []
    for name, task in wanted.items():
        body.append(_paper_row(name, task.paper, len(head)))
        body += _again_rows(name, task.paper, len(head))
        for method in methods:
            runs = _select(records, name, method)
            if not runs:
                continue
            groups = [key for key in runs[0] if key.startswith("rate ") and key.endswith("after")]
            row = [name, method, _mean(runs, "gap before"), _spread(runs, "gap after"), _mean(runs, "accuracy before")]
            row += [_change(runs, "accuracy"), _change(runs, "balanced accuracy")]
            row.append(
                f"{_mean(runs, 'recall of the rare class before')} → {_mean(runs, 'recall of the rare class after')}"
            )
            row.append(" / ".join(_mean(runs, key) for key in groups))
            row.append(f"{_mean(runs, 'observed gap before')} → {_mean(runs, 'observed gap after')}")
            row.append(f"{sum(r['constant after'] for r in runs):.0f} of {len(runs)}")
            row.append(f"{sum(r['gap after'] <= r['target'] for r in runs)} of {len(runs)}")
            body.append([*row, _seconds(runs)])
    return _markdown("Table 4: repair, held-out", head, body)


def table_6(records: Records, wanted: dict[str, Task], methods: Sequence[str]) -> str:
    """Fairness increase, accuracy decrease and time, next to the paper's for itself, retraining and CARE."""
    head = [
        "task",
        "method",
        "fairness increase, %",
        "accuracy decrease, %",
        "recall of the rare class, points",
        "CPU s",
    ]
    body = []
    for name, task in wanted.items():
        for method, (fairer, lost, seconds) in TABLE_6[task.paper].items():
            body.append([name, f"{method}, paper", f"{fairer:.2f}", f"{lost:.2f}", NONE, f"{seconds} (wall)"])
        for method in methods:
            runs = _select(records, name, method)
            if not runs:
                continue
            row = [name, method, _percent(runs, "gap"), _percent(runs, "accuracy")]
            body.append([*row, _change(runs, "recall of the rare class"), _seconds(runs)])
    return _markdown("Table 6: against fine-tuning and CARE, held-out", head, body)


def table_7(records: Records, wanted: dict[str, Task], methods: Sequence[str]) -> str:
    """Seconds by stage."""
    head = ["task", "method", "fitting s", "linearizing s", "optimizing s", "total s"]
    body = []
    for name, task in wanted.items():
        body.append([name, "AutoRIC, paper", *(f"{seconds:.2f}" for seconds in TABLE_7[task.paper])])
        for method in methods:
            runs = _select(records, name, method)
            if not runs:
                continue
            stages = (("surrogate",), ("linearize", "select"), ("solve",), ("total",))
            row = [np.mean([sum(run[f"seconds {part}"] for part in parts) for run in runs]) for parts in stages]
            body.append([name, method, *(f"{seconds:.4f}" for seconds in row)])
    return _markdown("Table 7: time, one thread", head, body)


def table_8(records: Records, wanted: dict[str, Task], methods: Sequence[str]) -> str:
    """QP against LP, with and without rows."""
    head = ["task", "method", "gap before", "gap after", "fairness increase, %", "accuracy decrease, %"]
    head += ["recall of the rare class, points", "constant", "CPU s"]
    body = []
    for name, task in wanted.items():
        for method, (fairer, lost, seconds) in TABLE_8.get(task.paper, {}).items():
            row = [name, f"{method}, paper", NONE, NONE, f"{fairer:.2f}", f"{lost:.2f}"]
            body.append([*row, NONE, NONE, f"{seconds} (wall)"])
        for method in methods:
            runs = _select(records, name, method)
            if not runs:
                continue
            row = [name, method, _mean(runs, "gap before"), _spread(runs, "gap after")]
            row += [_percent(runs, "gap"), _percent(runs, "accuracy"), _change(runs, "recall of the rare class")]
            body.append([*row, f"{sum(r['constant after'] for r in runs):.0f} of {len(runs)}", _seconds(runs)])
    return _markdown("Table 8: QP against LP, held-out", head, body)


def _paper_row(name: str, paper: str, width: int) -> list[str]:
    before, after, accuracy, accuracy_after = TABLE_4[paper]
    row = [name, "AutoRIC, paper", f"{before:.4f}", f"{after:.4f}", f"{accuracy:.4f}"]
    return _padded([*row, f"{100 * (accuracy_after - accuracy):+.2f}"], width)


def _again_rows(name: str, paper: str, width: int) -> list[list[str]]:
    rows = []
    for what, before, after, accuracy, accuracy_after, remark in MEASURED_AGAIN.get(paper, []):
        row = [name, what, f"{before:.4f}", f"{after:.4f}", f"{accuracy:.4f}"]
        row += [f"{100 * (accuracy_after - accuracy):+.2f}", remark or NONE]
        rows.append(_padded(row, width))
    return rows


def _padded(row: list[str], width: int) -> list[str]:
    return row + [NONE] * (width - len(row))


def _select(records: Records, task: str, method: str) -> Records:
    return [record for record in records if record["task"] == task and record["method"] == method]


def _mean(runs: Records, key: str) -> str:
    return f"{np.mean([run[key] for run in runs]):.4f}"


def _error(values: Sequence[float]) -> float:
    """Standard error of a mean; the two directions of a division count as one draw, since they share their rows."""
    pairs = [float(np.mean(values[i : i + 2])) for i in range(0, len(values), 2)]
    return float(np.std(pairs, ddof=1) / len(pairs) ** 0.5) if len(pairs) > 1 else 0.0


def _spread(runs: Records, key: str) -> str:
    values = [run[key] for run in runs]
    return f"{np.mean(values):.4f} ± {_error(values):.4f}"


def _change(runs: Records, key: str) -> str:
    """In percentage points."""
    values = [100 * (run[f"{key} after"] - run[f"{key} before"]) for run in runs]
    return f"{np.mean(values):+.2f} ± {_error(values):.2f}"


def _percent(runs: Records, key: str) -> str:
    """Relative decrease of the mean, as the paper gives it; for the gap that is the fairness increase."""
    before, after = (np.mean([run[f"{key} {when}"] for run in runs]) for when in ("before", "after"))
    return f"{100 * (before - after) / before:.2f}"


def _seconds(runs: Records) -> str:
    total = f"{np.mean([run['cpu seconds'] for run in runs]):.2f}"
    if "seconds of one run" in runs[0]:
        return f"{np.mean([run['seconds of one run'] for run in runs]):.2f} a run, {total} the sweep"
    return total


def _markdown(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])
