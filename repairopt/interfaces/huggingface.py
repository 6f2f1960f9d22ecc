"""Models whose call takes named inputs and returns an object with ``logits``, as those of Hugging Face.

:class:`PackedInputs` stacks the named inputs into one tensor and is the ``forward_fn`` that takes them apart again::

    packed = PackedInputs(tokenizer(texts, padding=True, return_tensors="pt"))
    solve_repair(model, ErrorRate(packed.inputs, labels), forward_fn=packed, weights="classifier.weight")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, SpecificationError, public
from repairopt.network import as_tensor


@public
@dataclass(eq=False)
class PackedInputs:
    """Named inputs of one shape as one tensor, and the way back.

    Attributes:
        named: Tensors ``(N, L)`` of whole numbers, or ``(N, ...)`` of floating numbers, by the names that the model's
            call knows, such as ``input_ids``, ``attention_mask``, ``token_type_ids``.
        inputs: All of them stacked, ``(N, names, L)``.
        names: Names in the order of the stack.

    Raises:
        SpecificationError: Shapes or kinds of numbers differ, or nothing was given.

    Example:
        >>> packed = PackedInputs({"input_ids": [[5, 7, 0]], "attention_mask": [[1, 1, 0]]})
        >>> packed.inputs.shape, packed.names
        (torch.Size([1, 2, 3]), ('input_ids', 'attention_mask'))
    """

    named: Mapping[str, Any]
    inputs: Tensor = field(init=False, repr=False)
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.named, Mapping) or not self.named:
            raise SpecificationError(
                f"PackedInputs: got {type(self.named).__name__}; expected tensors by name, at least one."
            )
        tensors = {str(name): as_tensor(f"PackedInputs, '{name}'", value) for name, value in self.named.items()}
        kinds = {(tuple(tensor.shape), tensor.is_floating_point()) for tensor in tensors.values()}
        if len(kinds) > 1 or not all(shape for shape, _ in kinds):
            shapes = ", ".join(f"'{name}' {tuple(t.shape)} {t.dtype}" for name, t in tensors.items())
            raise SpecificationError(
                f"PackedInputs: {shapes}; expected one shape of rows, all whole numbers or all floating. Leave out "
                f"what the model has a default for, labels among them."
            )
        self.names, self.inputs = tuple(tensors), torch.stack(list(tensors.values()), dim=1)
        self.named = {}  # the stack holds them now

    def __call__(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Logits ``(N, k)`` of stacked inputs ``(N, names, L)``.

        Raises:
            ModelError: The model's answer has no logits.
        """
        answer = model(**{name: inputs[:, k] for k, name in enumerate(self.names)})
        logits = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"model {type(model).__name__}: its call returned a {type(answer).__name__} without logits. Use a "
                f"model for classification, or pass a forward_fn of your own."
            )
        return logits
