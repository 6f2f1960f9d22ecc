"""The inputs whose answer a repair changed most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repairopt.network import Remembering, identity
from repairopt.specify import inputs_of, labelled_data, measured

from .evidence import AffectedInputs

MOST = 12  # inputs of a set
SETS = 4
LEAST = 1e-6  # shift of the probabilities that counts as one


def most_affected(
    items: Sequence[tuple[Any, bool]], both: tuple[Remembering, Remembering]
) -> tuple[AffectedInputs, ...]:
    """For each set of inputs those whose probabilities moved most, changed answers first.

    Args:
        items: Anchored properties and constraints, and whether each is held out.
        both: The networks before and after.

    Returns:
        At most four sets; labelled ones, or where there are none those of the goal.
    """
    found: list[AffectedInputs] = []
    seen: set[Any] = set()
    for name, held_out, inputs, labels in _sets(items):
        if identity(inputs) in seen or len(found) == SETS:
            continue
        seen.add(identity(inputs))
        before, after = (torch.softmax(predict(inputs).double(), dim=1).cpu() for predict in both)
        shift = (after - before).abs().sum(1) / 2
        answers = before.argmax(1), after.argmax(1)
        rank = shift + 2.0 * (answers[0] != answers[1])
        rows = rank.argsort(descending=True, stable=True)[:MOST]
        rows = rows[shift[rows] > LEAST]
        if len(rows):
            chosen = inputs[rows.to(inputs.device)].detach().cpu().numpy()
            key = (held_out, rows.numpy().tobytes(), chosen.tobytes())
            if key in seen:
                continue
            seen.add(key)
            known = np.full(len(rows), -1) if labels is None else labels.cpu()[rows].numpy()
            old, new = (answer[rows].numpy() for answer in answers)
            found.append(AffectedInputs(name, held_out, rows.numpy(), chosen, known, old, new, shift[rows].numpy()))
    return tuple(found)


def _sets(items: Sequence[tuple[Any, bool]]) -> list[tuple[str, bool, Tensor, Tensor | None]]:
    labelled: list[tuple[str, bool, Tensor, Tensor | None]] = [
        (item.name, held_out, inputs, labels)
        for item, held_out in items
        for inputs, labels in labelled_data([measured(item)])
    ]
    if labelled:
        return labelled
    plain = [(item.name, held_out, inputs_of(item)) for item, held_out in items]
    return [(name, held_out, inputs, None) for name, held_out, inputs in plain if inputs is not None]
