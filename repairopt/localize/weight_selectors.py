"""Ways to say which weights may change, for :func:`repairopt.localize.localize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from repairopt.errors import SpecificationError
from repairopt.specify import is_sequence


@dataclass(frozen=True, init=False)
class Layers:
    """All weights of some modules, for example ``Layers("fc4", "fc6", bias=False)``.

    Attributes:
        names: Names of modules, or patterns such as ``"fc[46]"``.
        bias: Whether their biases belong to it.
    """

    names: tuple[str, ...]
    bias: bool

    def __init__(self, *names: str, bias: bool = True) -> None:
        if other := [name for name in names if not isinstance(name, str)]:
            raise SpecificationError(f"Layers: {other[0]!r} is no name; expected texts, as in Layers('fc4', 'fc6').")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "bias", bias)


@dataclass(frozen=True, init=False)
class LowRank:
    """Factors of low rank beside some layers, in place of their weights (LoRA; needs the library ``peft``).

    The weights of a layer change by the product of two factors. What is repaired is the network with its change merged;
    :func:`repairopt.patches.export_lora` writes it as an adapter for ``peft``. Other choices can stand beside it, as in
    ``weights=[LowRank(rank=4, layers=["*.query", "*.value"]), "classifier"]``.

    Attributes:
        rank: Rank of the change of each layer, at most; a layer with fewer outputs or inputs has fewer.
        layers: Names of linear layers and of convolutions without groups, or patterns; without any all of them, but for
            frozen ones where others are not.
    """

    rank: int
    layers: tuple[str, ...]

    def __init__(self, rank: int = 8, layers: str | Sequence[str] = ()) -> None:
        if isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1:
            raise SpecificationError(f"LowRank: rank={rank!r}; expected a whole number, 1 or more.")
        names = tuple(layers) if is_sequence(layers) else (layers,)
        if other := [name for name in names if not isinstance(name, str)]:
            raise SpecificationError(f"LowRank: {other[0]!r} is no name; expected texts, as in layers=['fc4', 'fc6'].")
        object.__setattr__(self, "rank", int(rank))
        object.__setattr__(self, "layers", names)


@dataclass(frozen=True)
class Neurons:
    """The weights that leave or enter some neurons.

    Attributes:
        layer: Name of the layer that makes them; ``"lstm.l1"`` for level 1 of stacked recurrent layers.
        units: Their numbers from 0: outputs of a linear layer, channels of a convolution, gate rows of an LSTM.
        weights: ``"outgoing"``, the columns of the next layers that read them, or ``"incoming"``, the rows that make
            them.
        bias: Whether the biases of incoming rows belong to it.
    """

    layer: str
    units: Sequence[int]
    weights: str = "outgoing"
    bias: bool = False


@dataclass(frozen=True)
class Inputs:
    """The columns of the first layer that reads some input features, for example a protected one.

    Attributes:
        units: Numbers of the features from 0; of channels where the first layer is a convolution.
        layer: The layer, or None for the first that reads them.
    """

    units: Sequence[int]
    layer: str | None = None


@dataclass(frozen=True)
class CARE:
    """The neurons with the greatest average causal effect on the undesired behavior (Sun et al., ICSE 2022).

    Undesired behavior is the goal's ``undesired(predict)``, or its ``soft_value``, or its ``value``: the first it has.

    Attributes:
        count: At most so many neurons.
        layer: The hidden layer to choose from; None for all linear ones, or all where none is linear.
        samples: At most so many samples, where the goal has ``subsample(count, seed)``, or ``inputs``, ``labels`` and
            ``on(inputs, labels)``; else all of the goal's.
        values: Interventions for each neuron.
        score: ``"forced"``, as published: mean undesired behavior while the neuron is forced, which blames neurons that
            set it off; or ``"removed"``: how much of it vanishes then, which blames neurons that carry it (a gap
            between groups passes through a neuron only while that neuron is free to differ).
        weights: ``"outgoing"`` or ``"incoming"``, as for :class:`Neurons`.
    """

    count: int = 3
    layer: str | None = None
    samples: int = 1000
    values: int = 16
    score: str = "forced"
    weights: str = "outgoing"


@dataclass(frozen=True)
class Gradient:
    """The weights, or neurons with all incoming weights, with the largest derivative times size of the weight.

    Attributes:
        count: At most so many.
        of: ``"goal"``: its soft value, or, where its value is the error rate of its ``inputs`` and ``labels``, the mean
            absolute derivative of the loss over misclassified samples; ``"constraints"``: how close their margins are
            to violation.
        granularity: ``"weight"`` or ``"neuron"``.
        within: A selector of the weights to choose among.
        samples: At most so many misclassified samples.
    """

    count: int = 100
    of: str = "goal"
    granularity: str = "weight"
    within: Any = "all"
    samples: int = 100
