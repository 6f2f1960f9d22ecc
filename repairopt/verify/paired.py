"""Sampling error of a change: of a property against its value for the original network on the same samples.

On other rows both values are others, and they move together as far as the networks agree. The jackknife measures the
error of their difference for any property that can be taken on a part of its samples.

References:
    Efron and Stein, The jackknife estimate of variance, 1981; with groups of samples: Shao and Tu, The jackknife and
    bootstrap, 1995, section 1.3.
"""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.errors import SpecificationError
from repairopt.network import Predict
from repairopt.specify import Grouped, Restrictable, inputs_of

GROUPS = 40  # of samples; each is left out once


def paired_error(prop: Any, predict: Predict, original: Predict, *, groups: int = GROUPS) -> float | None:
    """Standard error of ``prop.value(predict) - prop.value(original)``; None where it cannot be told."""
    given = _by_position(prop)
    if given is None or len(given[1]) < 2 * groups:
        return None
    own, inputs = given
    with torch.no_grad():
        both = predict(inputs), original(inputs)
        group = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)) % groups
        parts = []
        for left_out in range(groups):
            keep = group != left_out
            try:
                part: Any = own.where(lambda _, keep=keep: keep)
                parts.append([float(part.value(lambda rows, known=known: known[rows[:, 0]])) for known in both])
            except SpecificationError:  # a part without rows of some group or class
                return None
    now, before = np.asarray(parts).T
    if not np.ptp(before):  # a bound that does not move, such as that there are no flips
        return None
    changes = now - before
    return float(np.sqrt((groups - 1) / groups * np.sum((changes - changes.mean()) ** 2)))


def _by_position(prop: Any) -> tuple[Any, Tensor] | None:
    """The property with positions in place of its inputs, which may be large, and the inputs."""
    holder: Any = prop.samples if isinstance(prop, Grouped) else prop
    found = inputs_of(prop)
    if not isinstance(prop, Restrictable) or not is_dataclass(prop) or not is_dataclass(holder) or found is None:
        return None
    moved = replace(holder, inputs=torch.arange(len(found))[:, None])
    return (moved if holder is prop else replace(prop, samples=moved)), found
