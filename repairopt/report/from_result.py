"""What pictures can show where only the figures of a report are at hand: rates by group, recalls, progress."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from repairopt.report.pictures.evidence import RATE, Evidence, Progress, Rates

from .plain_words import Plain


def evidence_from_dict(plain: Plain) -> Evidence:
    """The part of the evidence that the figures of a report hold.

    Args:
        plain: A report as a dict, from :meth:`repairopt.Report.to_dict`.

    Returns:
        Evidence without samples, weights and inputs.
    """
    rates = [_rates(measure["name"], measure["held_out"], measure["details"]) for measure in plain["measures"]]
    recalls = [_recalls(counts) for counts in plain["labels"]]
    return Evidence(rates=tuple(one for one in (*rates, *recalls) if one is not None), progress=_progress(plain))


def _rates(name: str, held_out: bool, details: dict[str, Any]) -> Rates | None:
    pairs = {key.removeprefix(RATE): pair for key, pair in details.items() if key.startswith(RATE)}
    return _made(name, held_out, "favorable rate", pairs) if pairs else None


def _recalls(counts: Plain) -> Rates | None:
    pairs = {f"class {label}": pair for label, pair in counts["recall"].items()}
    return _made(counts["name"], counts["held_out"], "recall", pairs) if 1 < len(pairs) <= 20 else None


def _made(name: str, held_out: bool, quantity: str, pairs: dict[str, Any]) -> Rates:
    before, after = (np.array([pair[k] for pair in pairs.values()], dtype=np.float64) for k in (0, 1))
    none = np.full(len(pairs), math.nan)
    return Rates(name, held_out, quantity, tuple(pairs), before, after, none, none)


def _progress(plain: Plain) -> Progress | None:
    goal, rounds = plain["measures"][0], plain["rounds"]
    if not rounds:
        return None
    values = [goal["before"], *(math.nan if r["goal"] is None else r["goal"] for r in rounds)]
    target = math.nan if goal["target"] is None else goal["target"]
    return Progress(
        np.array(values, dtype=np.float64),
        np.array([-1, *(r["broken"] for r in rounds)]),
        np.array([True, *(r["accepted"] for r in rounds)]),
        target,
        goal["name"],
    )
