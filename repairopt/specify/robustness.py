"""Ready-made robustness properties: certified radius, error under attack.

Both need the network itself, not only its outputs: ``predict`` must carry ``network`` (one tensor in, logits out) and
``parameters`` (changed parameters by name), as the library's own does; a plain ``torch.nn.Module`` will do as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from repairopt.errors import RepairError, SpecificationError
from repairopt.network import Bound, Certifier, Predict, Search, Slope, attack, attacked_radius, check_labelled, shadow
from repairopt.patches import fingerprint

from .contracts import Unstated
from .expected import Expected, is_one_of
from .measures import BOX, DATA, DOWN, FIRST, WHERE, Argument, Given, Measure


def _make_radius(kind: Any, given: Given) -> Any:
    rows, options = given.rows(), given.options()
    options["aggregate"] = {"mean": "mean", "least": "max"}[options["aggregate"]]
    return kind(rows.inputs, rows.labels, target=given.limit(10.0), name=given.name, **options)


class FoundOf:
    """What was found of the last networks: a judge, a step and a report ask for the same, and an attack is dear.

    Networks are told apart by their numbers, so that one that was changed in place is another.
    """

    KEPT = 4

    def __init__(self) -> None:
        self._known: list[tuple[Any, Any]] = []

    def of(
        self, network: nn.Module, parameters: Mapping[str, Tensor], rows: Sequence[Tensor], find: Callable[[], Any]
    ) -> Any:
        """What ``find()`` gives for a network with some parameters replaced, on some rows."""
        key = self._key(network, parameters, rows)
        for known, found in self._known:
            if key is not None and known[0] is network and known[1:] == key[1:]:
                return found
        found = find()
        if key is not None:
            self._known = [(key, found), *self._known[: self.KEPT - 1]]
        return found

    @staticmethod
    def _key(network: nn.Module, parameters: Mapping[str, Tensor], rows: Sequence[Tensor]) -> tuple[Any, ...] | None:
        """None where the numbers cannot be read, as inside of torch.func."""
        try:
            numbers = (
                version_of(network),
                fingerprint(parameters).total,
                fingerprint({str(k): x for k, x in enumerate(rows)}).total,
            )
        except (RuntimeError, RepairError):
            return None
        return network, numbers


class _Points:
    """Labelled points of floating numbers, checked, that can be replaced."""

    inputs: Any
    labels: Any
    name: str

    def __post_init__(self) -> None:
        x, y = check_labelled(f"'{self.name}'", self.inputs, self.labels)
        object.__setattr__(self, "inputs", x)
        object.__setattr__(self, "labels", y)

    def on(self, inputs: Any, labels: Any) -> Any:
        """The same property on other points."""
        return replace(self, inputs=inputs, labels=labels)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class CertifiedRadius(_Points):
    """One over the radius around given inputs within which the label is certified not to change.

    The radius is a sound lower bound found with zonotopes (DeepZ) and bisection, in the maximum norm. The target is one
    over the radius wanted: ``target=1 / 0.12`` asks for a radius of 0.12.

    Attributes:
        inputs: Points ``(N, ...)``.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        target: Bound on one over the radius.
        aggregate: ``"mean"`` or ``"max"`` (the least robust input) of one over the radius.
        tol: Width of the interval at which the bisection ends; a hundredth of the radius or less, for fitting.
        lower: Smallest allowed input, a number or a tensor that broadcasts; ``-inf`` for none.
        upper: Largest allowed input; ``inf`` for none.
        start: First radius tried; doubled while certified.
        max_radius: Where doubling ends.
        min_radius: Smaller radii count as this one, also those of wrongly classified inputs.
        reference: Radius at which :meth:`soft_value` takes margins; None for ``1 / target``.
        slope: Slope of the ReLU relaxation, see :func:`repairopt.network.sets.zonotope.certified_margin`.
        search: How hard :meth:`details` looks for counterexamples.
        name: What the report calls it.

    References:
        Singh, Gehr, Mirman, Pueschel, Vechev, Fast and Effective Robustness Certification, NeurIPS 2018.
    """

    inputs: Any
    labels: Any = None
    target: float = math.nan
    aggregate: str = "mean"
    tol: float = 1e-3
    lower: Bound = 0.0
    upper: Bound = 1.0
    start: float = 0.2
    max_radius: float = 1.0
    min_radius: float = 1e-3
    reference: float | None = None
    slope: Slope = None
    search: Search = Search()
    name: str = "inverse certified radius"
    _last: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _found: FoundOf = field(default_factory=FoundOf, init=False, repr=False)

    measures = (
        Measure(
            "certified_radius",
            "Radius around the rows, maximum norm, within which the class is proved not to change (zonotopes): 1 / "
            "mean(1 / radius), or the least.",
            "certified_radius(guard, first=20) >= 0.1",
            "units of the inputs",
            DOWN,
            (DATA, Argument("aggregate", "choice", "over the rows", "mean", ("mean", "least")), *BOX, FIRST, WHERE),
            _make_radius,
            way="1 / ",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_one_of(self.aggregate, ("mean", "max")):
            raise SpecificationError(f"'{self.name}': aggregate {self.aggregate!r} is unknown; choose mean or max.")
        if not self.target > 0:
            raise SpecificationError(
                f"'{self.name}': target is {self.target}, a bound on one over the radius; expected a number above 0. "
                f"For a radius of 0.1 pass target=1 / 0.1."
            )
        for what in ("tol", "start", "max_radius", "min_radius"):
            if not (expected := Expected(above=True)).fits(getattr(self, what)):
                raise SpecificationError(f"'{self.name}': {what} is {getattr(self, what)!r}; expected {expected}.")

    def radii(self, predict: Predict) -> Tensor:
        """Certified radius of each input, ``(N,)``; 0 where none is certified."""
        certifier, parameters = self._certifier(predict)

        def find() -> Tensor:
            return certifier.radii(parameters, tol=self.tol, start=self.start, max_radius=self.max_radius)

        return self._found.of(network_of(predict, self.name)[0], parameters, (self.inputs, self.labels), find)

    def value(self, predict: Predict) -> Tensor:
        """Mean or largest of one over the certified radius."""
        inverse = 1 / self.radii(predict).clamp(min=self.min_radius)
        return inverse.mean() if self.aggregate == "mean" else inverse.max()

    def soft_value(self, predict: Predict) -> Tensor:
        """Target minus the certified margin at the reference radius, in logits; differentiable in the parameters.

        The margin is the mean or the smallest over the inputs, as ``aggregate`` says. At the default reference radius
        ``1 / target`` and with ``"max"``, this is below the target exactly where every input is certified at that
        radius; with ``"mean"`` it is a stand-in only. Convex in the weights of the last linear layer. It has the sign
        of ``value - target``, not its unit.
        """
        certifier, parameters = self._certifier(predict)
        margins = certifier.margins(1 / self.target if self.reference is None else self.reference, parameters)
        return self.target - (margins.mean() if self.aggregate == "mean" else margins.min())

    def details(self, predict: Predict) -> dict[str, float]:
        """Certified radii, and the distance of the nearest counterexamples found, an upper bound."""
        network, parameters = network_of(predict, self.name)
        low = self.radii(predict)
        same = {key: getattr(self, key) for key in ("lower", "upper", "tol", "start", "max_radius", "search")}
        high = attacked_radius(network, self.inputs, self.labels, parameters=parameters, **same)
        found: dict[str, float] = {}
        for name, radii in (("certified radius", low), ("attacked radius (upper bound)", high)):
            found |= {f"mean {name}": float(radii.mean()), f"least {name}": float(radii.min())}
        return found | {"inputs certified at the target": float((low >= 1 / self.target).sum())}

    def _certifier(self, predict: Predict) -> tuple[Certifier, Mapping[str, Tensor]]:
        """A certifier that keeps what lies before the changed parameters, as long as the network is the same."""
        network, parameters = network_of(predict, self.name)
        state = frozenset(parameters), version_of(network)
        if self._last.get("network") is not network or self._last.get("state") != state:
            options: Any = {key: getattr(self, key) for key in ("lower", "upper", "slope")}
            certifier = Certifier(network, self.inputs, self.labels, changed=tuple(parameters), **options)
            self._last.update(network=network, state=state, certifier=certifier)
        return self._last["certifier"], parameters


@dataclass(frozen=True, eq=False)
class AdversarialError(_Points):
    """Share of points that are wrong somewhere in a maximum-norm ball, as far as projected gradient steps find.

    A lower bound of the true share: an attack that finds nothing proves nothing. A tie counts as wrong.

    Attributes:
        inputs: Points ``(N, ...)``.
        labels: Their classes ``(N,)``; None where ``inputs`` is a dataset or loader of pairs.
        radius: Radius of the balls.
        target: The share to reach.
        lower: Smallest allowed input, a number or a tensor that broadcasts; ``-inf`` for none.
        upper: Largest allowed input; ``inf`` for none.
        search: How hard to look; the same for every network.
        name: What the report calls it.
    """

    inputs: Any
    labels: Any = None
    radius: float = math.nan
    target: float = Unstated(0.0)
    lower: Bound = 0.0
    upper: Bound = 1.0
    search: Search = Search()
    name: str = "error under attack"
    _found: FoundOf = field(default_factory=FoundOf, init=False, repr=False)

    measures = (
        Measure(
            "attack_error",
            "Share of the rows for which gradient steps find a wrong point within a radius, maximum norm; a lower "
            "bound.",
            "attack_error(guard, radius=0.05) <= 0.1",
            arguments=(DATA, Argument("radius", "number", "of the balls, units of the inputs"), *BOX, FIRST, WHERE),
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Expected().fits(self.radius):
            raise SpecificationError(f"'{self.name}': radius is {self.radius!r}; expected a number from 0.")

    def attacked(self, predict: Predict) -> tuple[Tensor, Tensor]:
        """The worst points found and their margins, see :func:`repairopt.network.attack`."""
        network, parameters = network_of(predict, self.name)
        options: Any = {key: getattr(self, key) for key in ("lower", "upper", "search")}

        def find() -> tuple[Tensor, Tensor]:
            return attack(network, self.inputs, self.labels, self.radius, parameters=parameters, **options)

        return self._found.of(network, parameters, (self.inputs, self.labels), find)

    def value(self, predict: Predict) -> Tensor:
        """Share of points with a counterexample."""
        return (self.attacked(predict)[1] <= 0).float().mean()

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the label at the worst points found, which are held fixed."""
        return self._soft(predict, slice(None))

    def _soft(self, predict: Predict, rows: Any) -> Tensor:
        """The same of some of the points, by their numbers or a mask."""
        network, parameters = network_of(predict, self.name)
        points = self.attacked(predict)[0]
        own = self.labels.to(points.device)[rows]
        probabilities = torch.softmax(functional_call(shadow(network), dict(parameters), (points[rows],)), dim=-1)
        return 1 - probabilities.gather(1, own[:, None]).mean()

    def around(self, predict: Predict) -> _AttackedPoints:
        """The same for networks near this one, where the worst points for it are held: it costs no attack."""
        points, margins = self.attacked(predict)
        counted = torch.ones(len(margins), dtype=torch.bool, device=margins.device)
        return _AttackedPoints(self.name, float(self.target), self.inputs, points, self.labels, counted)

    def details(self, predict: Predict) -> dict[str, float]:
        """Number of points with a counterexample, and of points wrong as they are."""
        margins, clean = self.attacked(predict)[1], replace(self, radius=0.0).attacked(predict)[1]
        return {"attacked points": float((margins <= 0).sum()), "wrong points": float((clean <= 0).sum())}


@dataclass(frozen=True, eq=False)
class _AttackedPoints:
    """What an attack says of networks near the one it was made for, whose worst points are held.

    Attributes:
        name: Of the property.
        target: Of the property.
        inputs: The points ``(N, ...)`` themselves.
        points: The worst points found around them.
        labels: Classes ``(N,)``.
        counted: Which points count, ``(N,)``; of the others none is broken.
    """

    name: str
    target: float
    inputs: Tensor
    points: Tensor
    labels: Tensor
    counted: Tensor

    def value(self, predict: Predict) -> Tensor:
        """Share of points that are wrong, or whose worst point is."""
        least = torch.minimum(self._leads(predict, self.inputs), self._leads(predict, self.points))
        return ((least <= 0) & self.counted).double().sum() / self.counted.sum().clamp(min=1)

    def soft_value(self, predict: Predict) -> Tensor:
        """One minus the mean probability of the label at the worst points."""
        chances = torch.softmax(predict(self.points), dim=-1)
        own = chances.gather(1, self.labels.to(chances.device)[:, None])[:, 0]
        return ((1 - own) * self.counted).sum() / self.counted.sum().clamp(min=1)

    def _leads(self, predict: Predict, inputs: Tensor) -> Tensor:
        outputs = predict(inputs)
        labels = self.labels.to(outputs.device)[:, None]
        others = outputs.scatter(1, labels, -torch.inf).amax(1)
        return outputs.gather(1, labels)[:, 0] - others


def version_of(network: nn.Module) -> str:
    """A text that is another one once a number of the network is, however that was changed.

    Inside of torch.func, where numbers cannot be read, by the versions that torch counts.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    try:
        return fingerprint(tensors).total
    except RuntimeError:
        return str([(id(tensor), tensor._version) for tensor in tensors.values()])


def network_of(predict: Predict, name: str) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """The module behind ``predict`` and its replaced parameters by name; ``name`` is that of the property that asks."""
    if isinstance(predict, nn.Module):
        return predict, {}
    network: Any = getattr(predict, "network", None)
    if not isinstance(network, nn.Module):
        raise SpecificationError(
            f"property '{name}': needs the network itself, not only its outputs; got a predict of type "
            f"{type(predict).__name__} without .network. Pass a torch module, or what Engine.predict returns."
        )
    return network, getattr(predict, "parameters", None) or {}
