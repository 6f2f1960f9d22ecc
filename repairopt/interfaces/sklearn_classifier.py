"""A torch model and its repair as a scikit-learn classifier, for pipelines, cross-validation and grid search.

scikit-learn is imported when ``RepairedClassifier`` is first asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repairopt.errors import SpecificationError, public, require_extra
from repairopt.methods import find_method, uses
from repairopt.network import Classifier as Adapter, Engine, check_same_index
from repairopt.pipeline import Settings, solve_repair, unless_interrupted
from repairopt.report import Repair
from repairopt.specify import ErrorRate, GroupGap, KeepLabels, OddsGap, Property, row_weights, weighted

Array = npt.NDArray[Any]
GOALS = ("error_rate", "demographic_parity", "equalized_odds", "equal_opportunity")
Train = Callable[[Tensor, Tensor], nn.Module]


class Classifier:
    """A torch model and its repair as a scikit-learn classifier.

    ``fit`` repairs: with a trained module it brings the goal to its target on the rows given; with a function that
    trains a module it trains first, as cross-validation wants it.

    Args:
        model: A trained torch module whose call gives logits ``(N, k)``, never modified, or a
            :class:`repairopt.Classifier`, which says how others are read; or a function of ``(inputs, labels)``,
            tensors, that trains one.
        goal: ``"error_rate"``, ``"demographic_parity"``, ``"equalized_odds"``, ``"equal_opportunity"`` (these three
            with ``sensitive_features`` in ``fit``), or a function of ``(inputs, labels)`` that returns a property.
        target: The goal's target.
        favorable: The favorable class; None for the last.
        tolerance: Share of the right answers that may turn wrong.
        constraints: A function of ``(inputs, labels)`` that returns constraints in place of that.
        classes: Classes in the order of the model's outputs; None for those that occur in ``y``, sorted.
        options: Further options of :func:`repairopt.solve_repair`.
        random_state: Seed of training and repair.
    """

    def __init__(
        self,
        model: nn.Module | Adapter | Train | None = None,
        goal: str | Callable[..., Property] = "error_rate",
        *,
        target: float = 0.05,
        favorable: Any = None,
        tolerance: float = 0.01,
        constraints: Callable[[Tensor, Tensor], list[Any]] | None = None,
        classes: Any = None,
        options: Mapping[str, Any] | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.goal = goal
        self.target = target
        self.favorable = favorable
        self.tolerance = tolerance
        self.constraints = constraints
        self.classes = classes
        self.options = options
        self.random_state = random_state

    @public
    def fit(self, X: Any, y: Any, sensitive_features: Any = None, sample_weight: Any = None) -> Any:  # noqa: N803
        """Train the model if there is something to train, and repair it.

        Args:
            X: Rows ``(N, d)``: array or frame of numbers.
            y: Their classes ``(N,)``, of any type.
            sensitive_features: The group of each row ``(N,)``, for the goals that compare groups.
            sample_weight: How much each row counts ``(N,)`` in the goal and in the loss that is kept small; None for
                all the same. Rows of weight 0 are left out; ``tolerance`` is a share of rows all the same. A function
                that trains the model is given them as ``sample_weight=``; what functions make of rows is weighted.

        Returns:
            This classifier, with ``classes_``, ``n_features_in_``, ``model_`` (the repaired network), ``original_``
            and ``repair_`` (whose ``report`` says what came of it).

        Raises:
            SpecificationError: No model, an unknown goal, or classes that the model has no outputs for.
        """
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import validate_data

        beside = {"sensitive_features": sensitive_features, "sample_weight": sample_weight}
        check_same_index("RepairedClassifier.fit", X=X, y=y, **beside)
        X, y = validate_data(self, X, y, dtype="numeric")
        check_classification_targets(y)
        self.classes_ = np.unique(y) if self.classes is None else np.asarray(self.classes)
        if len(self.classes_) < 2:
            raise SpecificationError(
                f"RepairedClassifier: y holds one class, {self.classes_[0]!r}; a classifier needs two or more. Pass "
                f"classes= where these rows lack some."
            )
        codes = _codes(y, self.classes_)
        inputs, labels = torch.as_tensor(np.asarray(X, dtype=np.float32)), torch.as_tensor(codes)
        plain = None if sample_weight is None else np.asarray(sample_weight)
        weights = row_weights("RepairedClassifier.fit", plain, None, len(inputs))
        if weights is not None and not bool((weights > 0).all()):
            rows = weights > 0
            inputs, labels, weights = inputs[rows], labels[rows], weights[rows]
            sensitive_features = _rows_of(sensitive_features, rows.numpy())
        self.original_ = self._trained(inputs, labels, weights)
        goal = weighted(self._goal(inputs, labels, sensitive_features), weights)
        kept: list[Any] = [KeepLabels(inputs, labels, tolerance=self.tolerance)]
        kept = kept if self.constraints is None else [weighted(c, weights) for c in self.constraints(inputs, labels)]
        options: dict[str, Any] = {"settings": Settings(seed=self.random_state), **(self.options or {})}
        if weights is not None and "sample_weight" in uses(find_method(options.get("method", "auto"))):
            options.setdefault("data", (inputs, labels, weights))
        found: Repair = solve_repair(self.original_, goal, kept, **options)
        self.repair_, self.model_ = found, found.model
        self._forward = None if found.report.subjects is None else found.report.subjects.forward_fn
        unless_interrupted(found)  # a search over settings is to end; what was found is kept
        return self

    @public
    def predict_proba(self, X: Any) -> Array:  # noqa: N803
        """Probabilities ``(N, k)`` of the classes, in the order of ``classes_``."""
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self, "model_")
        rows = torch.as_tensor(np.asarray(validate_data(self, X, dtype="numeric", reset=False), dtype=np.float32))
        outputs = Engine(self.model_, forward_fn=self._forward).predict()(rows)
        return torch.softmax(outputs.double(), dim=1).cpu().numpy()

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Classes ``(N,)``, of the type that ``fit`` was given."""
        best = self.predict_proba(X).argmax(axis=1)  # before classes_, so that an unfitted one says what it is
        return self.classes_[best]

    def _trained(self, inputs: Tensor, labels: Tensor, weights: Tensor | None) -> nn.Module | Adapter:
        if isinstance(self.model, nn.Module | Adapter):
            return self.model
        if not callable(self.model):
            raise SpecificationError(
                f"RepairedClassifier: model={self.model!r}; expected a trained torch module, or a function of "
                f"(inputs, labels) that trains one."
            )
        torch.manual_seed(self.random_state)
        given: dict[str, Any] = {} if weights is None else {"sample_weight": weights}
        if given and "sample_weight" not in inspect.signature(self.model).parameters:
            raise SpecificationError(
                "RepairedClassifier: model(inputs, labels) trains without weights, and fit was given sample_weight. "
                "Give the function a parameter sample_weight, or pass a trained module."
            )
        found = self.model(inputs, labels, **given)
        if not isinstance(found, nn.Module | Adapter):
            raise SpecificationError(
                f"RepairedClassifier: model(inputs, labels) returned a {type(found).__name__}; expected a torch module."
            )
        return found

    def _goal(self, inputs: Tensor, labels: Tensor, groups: Any) -> Any:
        if not isinstance(self.goal, str):
            return self.goal(inputs, labels)
        if self.goal not in GOALS:
            raise SpecificationError(
                f"RepairedClassifier: goal={self.goal!r}; choose {', '.join(GOALS)}, or pass a function of "
                f"(inputs, labels) that returns a property."
            )
        if self.goal == "error_rate":
            return ErrorRate(inputs, labels, target=self.target)
        if groups is None:
            raise SpecificationError(
                f"RepairedClassifier: goal={self.goal!r} compares groups. Pass sensitive_features= to fit, one entry "
                f"for each row."
            )
        favorable = len(self.classes_) - 1
        if self.favorable is not None:
            favorable = int(_codes([self.favorable], self.classes_)[0])
        options: dict[str, Any] = {"sensitive_features": groups, "favorable": favorable, "target": self.target}
        if self.goal == "demographic_parity":
            return GroupGap.observed(inputs, score="max_difference", **options)
        options |= {"given": (favorable,)} if self.goal == "equal_opportunity" else {}
        return OddsGap.observed(inputs, labels, **options)


def _rows_of(features: Any, rows: Array) -> Any:
    """Some rows of sensitive features, which are an array, a frame, a list, or several of these by name."""
    if isinstance(features, Mapping):
        return {name: _rows_of(part, rows) for name, part in features.items()}
    if features is None or hasattr(features, "loc"):
        return None if features is None else features.loc[rows]
    return np.asarray(features)[rows]


def _codes(y: Any, classes: Array) -> Array:
    """Positions of labels among the classes."""
    place = {value: k for k, value in enumerate(classes.tolist())}
    found = [place.get(value, -1) for value in np.asarray(y).tolist()]
    if -1 in found:
        raise SpecificationError(
            f"RepairedClassifier: label {np.asarray(y).tolist()[found.index(-1)]!r} is none of the classes "
            f"{', '.join(map(repr, classes.tolist()[:20]))}. Pass classes= in the order of the model's outputs."
        )
    return np.array(found, dtype=np.int64)


@cache
def _classifier() -> Any:
    require_extra("sklearn", "RepairedClassifier", "sklearn")
    from sklearn.base import BaseEstimator, ClassifierMixin

    names = {"__doc__": Classifier.__doc__, "__module__": __name__, "__qualname__": "RepairedClassifier"}
    return type("RepairedClassifier", (Classifier, ClassifierMixin, BaseEstimator), names)


def __getattr__(name: str) -> Any:
    if name == "RepairedClassifier":
        return _classifier()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
