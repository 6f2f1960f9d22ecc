"""See what a model's outputs mean where nobody said so; handle it and say it, or refuse where it is not clear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError
from repairopt.localize import first_inputs
from repairopt.network import UNORDERED, Engine, ForwardFunction, Reading, meaning_of, telling_rows
from repairopt.specify import Specification

TOLERANCE = 1e-4  # by which the probabilities of a row may miss the sum 1, in single precision
ADAPTER = "repairopt.Classifier(model, outputs={})"


def reading_of(
    model: nn.Module, forward_fn: ForwardFunction | None, spec: Specification, *, convertible: bool
) -> tuple[ForwardFunction | None, str]:
    """How the outputs of a model are read, and a note for the report.

    Args:
        model: The module; not modified.
        forward_fn: How it is run; what it states is taken as it is.
        spec: What is stated of the network.
        convertible: Whether the method can take a model with a reading.

    Returns:
        The way to run the model, and a note; empty where outputs are logits, or are stated.

    Raises:
        ModelError: There is one output, or regression is stated, and a goal or bound speaks of classes.
    """
    of_classes = spec.of_classes
    stated = meaning_of(forward_fn)
    if stated == "regression" and of_classes:
        raise ModelError(
            f"model {type(model).__name__}: its outputs are stated to be numbers (regression), and "
            f"'{of_classes[0]}' speaks of classes. Leave outputs='regression' out, or state what numbers must do: "
            f"OutputBounds, KeepOutputs, or a function of predict."
        )
    if stated in UNORDERED and of_classes:
        raise ModelError(
            f"model {type(model).__name__}: its outputs are stated to be {stated} of labels that may hold at once, and "
            f"'{of_classes[0]}' speaks of one class for each row. State LabelSetErrors and KeepLabelSets."
        )
    inputs = first_inputs(spec.goal, spec.on_outputs)
    if meaning_of(forward_fn) != "auto" or inputs is None or not len(inputs):
        return forward_fn, ""
    rows = telling_rows(inputs)
    if not bool(torch.isfinite(rows).all()):
        return forward_fn, ""  # the statement that holds them is refused by name
    predict = Engine(model, forward_fn=forward_fn).predict()
    outputs = predict(rows).double()
    if outputs.shape[1] == 1:
        return _numbers(model, forward_fn, of_classes, outputs)
    chances = bool(((outputs >= 0) & (outputs <= 1)).all())
    certain = bool(((outputs == 0) | (outputs == 1)).all())  # logarithms of 0 and 1 have no slope here
    sums_to_one = chances and bool(((outputs.sum(1) - 1).abs() < TOLERANCE).all())
    if sums_to_one and certain and any(isinstance(module, nn.Softmax) for module in model.modules()):
        return forward_fn, (
            "The outputs are 0 or 1 in every row: the softmax of the network is so sure that no weight moves them. "
            "Give the network without it."
        )
    if sums_to_one and not certain:
        if convertible and not spec.of_sizes:
            return Reading(forward_fn, "probabilities"), (
                "The network gives probabilities, as after a softmax. Their logarithms are repaired, which order the "
                "classes in the same way."
            )
        way = ADAPTER.format('"probabilities"')
        return forward_fn, (
            "The network gives probabilities, as after a softmax, and "
            + (
                f"'{spec.of_sizes[0]}' reads their size"
                if spec.of_sizes
                else "the method works on the network as it is"
            )
            + f": they are taken as they are, so their slopes are flat where the network is sure. {way} repairs their "
            "logarithms."
        )
    if not of_classes:
        return _numbers(model, forward_fn, of_classes, predict(inputs))
    if bool((outputs <= 0).all()) and bool((outputs.logsumexp(1).abs() < TOLERANCE).all()):
        return forward_fn, "The network gives log-probabilities, as after a log-softmax; these are logits."
    if chances and len(outputs.unique()) > 2:
        way = ADAPTER.format("'several probabilities'")
        return forward_fn, (
            f"The outputs lie between 0 and 1 and do not sum to 1, as after a sigmoid for each label. The largest "
            f"counts as the one answer; {way} with LabelSetErrors and KeepLabelSets repairs labels that hold at once."
        )
    return forward_fn, ""


def _numbers(
    model: nn.Module, forward_fn: ForwardFunction | None, of_classes: tuple[str, ...], outputs: Tensor
) -> tuple[ForwardFunction | None, str]:
    """Outputs that are no scores of classes: one alone, or several whose largest is always the same."""
    if outputs.shape[1] == 1 and of_classes:
        ways = ", ".join(ADAPTER.format(repr(word)) for word in ("one logit", "one probability", "regression"))
        raise ModelError(
            f"model {type(model).__name__}: gives one output for each row, and '{of_classes[0]}' speaks of "
            f"classes. Say what the output means: {ways}; in a spec file model: {{outputs: one logit}}."
        )
    if len(outputs) < 2 or len(torch.unique(outputs.argmax(1))) > 1:
        return forward_fn, ""
    if outputs.shape[1] == 1:
        return Reading(forward_fn, "regression"), "The network has one output, which is read as a number (regression)."
    way = ADAPTER.format('"logits"')
    return Reading(forward_fn, "regression"), (
        f"The largest output is the same one in every row and nothing speaks of classes: outputs are read as numbers "
        f"(regression). {way} reads them as scores of classes."
    )
