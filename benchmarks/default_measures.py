"""What is measured of answers in ``default_calls.py``, of the library and of peers alike."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from default_tables import Rows
from torch import nn

YES = 1  # more than 50K, the favorable answer


def gap_of(job: Any, rows: Rows, yes: np.ndarray) -> float:
    """The gap that the job speaks of, computed here anew."""
    groups, labels = job.groups(rows), rows.y.numpy()
    within = [labels == k for k in (0, 1)] if job.kind == "odds" else [np.ones(len(labels), dtype=bool)]
    sizes = []
    for part in within:
        rates = [yes[part & (groups == name)].mean() for name in np.unique(groups)]
        sizes += [abs(a - b) for a, b in combinations(rates, 2)]
    return float(np.mean(sizes) if job.score == "difference" else np.max(sizes))


def measured(job: Any, rows: Rows, yes: np.ndarray) -> dict[str, float]:
    """Gap, accuracy, recall of the rare class, and the extreme rates."""
    labels, groups = rows.y.numpy() == 1, job.groups(rows)
    rates = [yes[groups == name].mean() for name in np.unique(groups)]
    found = {"gap": gap_of(job, rows, yes), "accuracy": float((yes == labels).mean())}
    found |= {"recall": float(yes[labels].mean()), "lowest rate": min(rates), "highest rate": max(rates)}
    return found


def answers(network: nn.Module, rows: Rows) -> np.ndarray:
    """Whether each row gets the favorable answer."""
    with torch.no_grad():
        return np.asarray(network(rows.x).argmax(1).numpy() == YES)
