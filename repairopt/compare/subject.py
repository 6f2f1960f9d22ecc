"""Subjects of a comparison: a network, and rows that are divided into parts which share no row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repairopt.errors import RepairError, SpecificationError, public, shown
from repairopt.network import UNORDERED, Classifier, Engine, check_labelled, check_labels, split_model
from repairopt.specify import ErrorRate, KeepLabels, Specification, make_specification

from .stated import hash_stated

Pair = tuple[Tensor, Tensor]
PARTS = ("train", "validation", "repair", "test")
OPTIONAL = ("train", "validation")
SHARES = (0.5, 0.1, 0.2, 0.2)  # of the rows, where all come from one set
FAILING, RIGHT = "failing rows of the repair set", "right answers of the repair set"


def _as_groups(name: str, groups: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(groups)
    except (TypeError, ValueError) as error:
        raise SpecificationError(f"subject '{name}': groups are no array ({error}); expected one a row.") from error


@public
@dataclass(frozen=True, eq=False)
class Subject:
    """A network on which repairers are compared, with its rows.

    Each part is a pair of inputs ``(N, ...)`` and labels ``(N,)``. No input of a part may occur in another: what is
    measured on the test part must be new to every method.

    Attributes:
        name: What tables call it.
        model: A module that gives logits, or a :class:`repairopt.Classifier`.
        train: Rows that methods learn from; those the network was trained on where they are at hand. None for those of
            the repair part.
        validation: Rows that methods choose among networks by; None to let each set some of its rows aside.
        repair: Rows whose failures are reported, and whose right answers are to be kept.
        test: Rows on which the outcome is measured, once.
        goal: What must become true; None for no wrong answer on the failing rows of the repair part.
        constraints: What must stay true, with a goal; without one, the right answers of the repair part.
        weights: Which weights may change, see :func:`repairopt.localize.localize`; ``"auto"`` for those of each method.
        groups: Group of each test row, ``(N,)``, for measures of fairness; None for none.
        favorable: Favorable class of decisions; None to take each class in turn and the mean over classes.
        protected: Input columns that hold the protected attribute, for methods that use them.
        history: State dicts of earlier epochs of the training, oldest first, for methods that need them.
        radius: Radius of attacks in the maximum norm, in units of the inputs; None for no attacks.

    Raises:
        SpecificationError: A part is empty or malformed, two parts share inputs, or groups do not fit.
    """

    name: str
    model: nn.Module | Classifier
    train: Any
    validation: Any
    repair: Any
    test: Any
    goal: Any = None
    constraints: Any = ()
    weights: Any = "auto"
    groups: Any = None
    favorable: int | None = None
    protected: tuple[int, ...] = ()
    history: tuple[Mapping[str, Tensor], ...] = ()
    radius: float | None = None

    def __post_init__(self) -> None:
        known: dict[bytes, str] = {}
        self._check_network()
        for part in PARTS:
            given = getattr(self, part)
            if given is None and part in OPTIONAL:
                continue
            if not isinstance(given, tuple | list) or len(given) != 2:
                what = f"{len(given)} values" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
                raise SpecificationError(
                    f"subject '{self.name}': {part} is {what}; expected a pair of inputs (N, ...) and labels (N,)."
                )
            x, y = check_labelled(f"subject '{self.name}': {part}", *given, integers=True)
            if not len(x):
                raise SpecificationError(f"subject '{self.name}': {part} has no rows; expected at least one.")
            object.__setattr__(self, part, (x, y))
            own = set(row_keys(x))
            if shared := [known[key] for key in own if key in known]:
                raise SpecificationError(
                    f"subject '{self.name}': {len(shared)} inputs of {part} occur in {shared[0]} too, so that what is "
                    "measured would not be new. Drop them, or divide one set by Subject.divide, which keeps equal "
                    "inputs together."
                )
            known |= dict.fromkeys(own, part)
        if self.groups is not None:
            groups = _as_groups(self.name, self.groups)
            if groups.shape != (len(self.test[1]),):
                raise SpecificationError(
                    f"subject '{self.name}': groups have shape {groups.shape}; expected one for each of the "
                    f"{len(self.test[1])} test rows."
                )
            object.__setattr__(self, "groups", groups)
        if self.radius is not None and not (isinstance(self.radius, int | float) and self.radius > 0):
            raise SpecificationError(f"subject '{self.name}': radius={self.radius!r}; expected a number above 0.")
        self._check_labels()

    def _check_network(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SpecificationError(f"subject: name={self.name!r}; expected a text, which tables call it.")
        if not isinstance(self.model, nn.Module | Classifier):
            raise SpecificationError(
                f"subject '{self.name}': model is a {type(self.model).__name__}; expected a torch module or a "
                "repairopt.Classifier."
            )
        if getattr(self.model, "outputs", "") in UNORDERED:
            raise SpecificationError(
                f"subject '{self.name}': the model has outputs='{self.model.outputs}'; methods are compared by right "
                "and wrong classes, which such a network does not give."
            )

    def _check_labels(self) -> None:
        """The network takes a row of each part, and all classes are outputs of it."""
        classes = 0
        for part in PARTS:
            if (pair := getattr(self, part)) is None:
                continue
            try:
                classes = self.outputs(self.network, pair[0][:1]).shape[1]
            except RepairError as error:
                raise SpecificationError(f"subject '{self.name}': inputs of {part}: {error}") from error
            if classes == 1:
                raise SpecificationError(
                    f"subject '{self.name}': the network has one output; expected one for each class. Say what it "
                    "means: Classifier(model, outputs='one logit'), or 'one probability'."
                )
            check_labels(f"subject '{self.name}': {part}", pair[1], classes)
        favorable = self.favorable
        if favorable is not None and (not isinstance(favorable, int | np.integer) or not 0 <= favorable < classes):
            raise SpecificationError(
                f"subject '{self.name}': favorable={favorable!r}; expected a class index, 0 to {classes - 1}, or None."
            )

    @classmethod
    @public
    def divide(
        cls,
        name: str,
        model: nn.Module | Classifier,
        inputs: Any,
        labels: Any = None,
        *,
        groups: Any = None,
        shares: tuple[float, float, float, float] = SHARES,
        seed: int = 0,
        **options: Any,
    ) -> Subject:
        """Divide one set of rows at random; equal inputs come into one part.

        Args:
            name: What tables call the subject.
            model: The network.
            inputs: Rows ``(N, ...)``, or a dataset or loader of pairs.
            labels: Classes ``(N,)``.
            groups: Group of each row ``(N,)``, or None.
            shares: Of the rows that come into train, validation, repair and test.
            seed: Random seed.
            **options: Further attributes of the class.

        Raises:
            SpecificationError: As for the class.
        """
        x, y = check_labelled(f"subject '{name}'", inputs, labels, integers=True)
        if len(shares) != len(PARTS) or min(shares) <= 0 or not np.isclose(sum(shares), 1):
            raise SpecificationError(
                f"subject '{name}': shares={shares}; expected four numbers above 0 whose sum is 1."
            )
        if not isinstance(seed, int) or seed < 0:
            raise SpecificationError(f"subject '{name}': seed={shown(seed)}; expected a whole number, 0 or more.")
        groups = None if groups is None else _as_groups(name, groups)
        if groups is not None and np.shape(groups) != (len(x),):
            raise SpecificationError(
                f"subject '{name}': groups have shape {np.shape(groups)}; expected one for each of the {len(x)} rows."
            )
        keys = row_keys(x)
        order = {key: k for k, key in enumerate(dict.fromkeys(keys))}
        draw = np.random.default_rng(seed)
        place = draw.permutation(len(order))[[order[key] for key in keys]] / len(order)
        part = np.searchsorted(np.cumsum(shares)[:-1], place, side="right")
        rows = {one: torch.as_tensor(np.flatnonzero(part == k)) for k, one in enumerate(PARTS)}
        own = None if groups is None else groups[rows["test"].numpy()]
        parts: Any = {one: (x[ix.to(x.device)], y[ix.to(y.device)]) for one, ix in rows.items()}
        return cls(name=name, model=model, **parts, groups=own, **options)

    def outputs(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` of a network of this kind, read as the subject's model is."""
        forward_fn = split_model(self.model)[1]
        with torch.no_grad():
            return Engine(network, {}, forward_fn=forward_fn).predict()(inputs)

    @property
    def network(self) -> nn.Module:
        """The module of the model."""
        return split_model(self.model)[0]

    @property
    def data(self) -> list[Pair]:
        """The training rows, as ``data=`` of a repair takes them."""
        return [self.repair if self.train is None else self.train]

    def specification(self) -> Specification:
        """Goal and constraints that every method is given.

        Raises:
            SpecificationError: No goal is given, and the network labels all of the repair part right.
        """
        if self.goal is not None:
            return make_specification(self.goal, self.constraints, (), self.data)
        x, y = self.repair
        wrong = self.outputs(self.network, x).argmax(1).cpu() != y.cpu()
        if not bool(wrong.any()):
            raise SpecificationError(
                f"subject '{self.name}': the network labels all {len(x)} rows of the repair part right, so nothing is "
                "to be repaired. Give more rows, or a goal."
            )
        goal = ErrorRate(x[wrong.to(x.device)], y[wrong.to(y.device)], target=0.0, name=FAILING)
        keep = KeepLabels(x[~wrong.to(x.device)], y[~wrong.to(y.device)], name=RIGHT)
        return make_specification(goal, (keep,), (), self.data)

    def given_to(self, method: Any) -> Any:
        """A method with the material of the subject in those of its fields that are named for it and not set yet."""
        material = {
            "validation": self.validation,
            "history": self.history,
            "pool": self.repair,
            "protected": self.protected,
        }
        unset = {
            name: value
            for name, value in material.items()
            if not _unset(value) and hasattr(method, name) and _unset(getattr(method, name))
        }
        return replace(method, **unset) if unset else method

    def digest(self) -> str:
        """A hash of the network, the rows, goal and constraints, and everything else that outcomes depend on."""
        return hash_stated({field.name: getattr(self, field.name) for field in fields(self)})


def _unset(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and not value)


def row_keys(inputs: Tensor) -> list[bytes]:
    """For each row a hash of its contents; equal rows have equal hashes."""
    rows = np.ascontiguousarray(inputs.detach().cpu().flatten(1).numpy())
    rows = rows + 0 if rows.dtype.kind == "f" else rows  # -0.0 is 0.0
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
