"""Metrics in each group and disparities between groups, with the names and definitions of fairlearn.

:class:`GroupMetrics` has the members of fairlearn's ``MetricFrame`` that a report needs, without pandas;
:meth:`GroupMetrics.frame` is the ``MetricFrame`` itself, which also gives ``difference`` and ``ratio`` where fairlearn
is installed. Definitions were compared with fairlearn 0.15, see tests/specify/test_group_metrics.py.

References:
    Weerts, Dudik, Edgar, Jalali, Lutz and Madaio, Fairlearn: assessing and improving fairness of AI systems, JMLR 2023.
    Hardt, Price and Srebro, Equality of Opportunity in Supervised Learning, NeurIPS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from repairopt.errors import SpecificationError, public, require_extra
from repairopt.network import check_same_index, listed_values, refuse_missing
from repairopt.specify.sample_weights import row_weights

Metric = Callable[..., float]
METHODS = ("between_groups", "to_overall")


def selection_rate(y_true: Any, y_pred: Any, *, pos_label: Any = 1, sample_weight: Any = None) -> float:
    """Share of the answers that are ``pos_label``; ``y_true`` is not used."""
    return float(np.average(_favorable(y_pred, pos_label), weights=sample_weight))


def accuracy_score(y_true: Any, y_pred: Any, *, sample_weight: Any = None) -> float:
    """Share of right answers, as scikit-learn's."""
    return float(np.average(np.asarray(y_true) == np.asarray(y_pred), weights=sample_weight))


def true_positive_rate(y_true: Any, y_pred: Any, *, pos_label: Any = 1, sample_weight: Any = None) -> float:
    """Share of the answers ``pos_label`` where that is true; 0 where it never is, as in fairlearn."""
    return _share(_favorable(y_pred, pos_label), _favorable(y_true, pos_label), sample_weight)


def false_positive_rate(y_true: Any, y_pred: Any, *, pos_label: Any = 1, sample_weight: Any = None) -> float:
    """Share of the answers ``pos_label`` where that is false."""
    return _share(_favorable(y_pred, pos_label), ~_favorable(y_true, pos_label), sample_weight)


def count(y_true: Any, y_pred: Any, *, sample_weight: Any = None) -> float:
    """Number of samples, whatever their weights."""
    return float(len(np.asarray(y_true)))


@public
@dataclass(frozen=True, eq=False)
class GroupMetrics:
    """Metrics over all samples and in each group.

    Attributes:
        y_true: True labels ``(N,)``.
        y_pred: Answers ``(N,)``.
        sensitive_features: The group of each sample ``(N,)``, any type.
        pos_label: The favorable label.
        metrics: Functions of ``(y_true, y_pred)`` by name, fairlearn's among them; by default count, accuracy,
            selection rate, true and false positive rate.
        sample_weight: How much each sample counts ``(N,)``; metrics are given it under this name. None for all the
            same.

    Raises:
        SpecificationError: Sizes or indexes disagree, nothing is given, a value is missing, or no label is the
            favorable one.

    Example:
        >>> found = GroupMetrics([1, 1, 0, 0], [1, 0, 1, 0], ["a", "a", "b", "b"])
        >>> found.by_group["true_positive_rate"]
        {'a': 0.5, 'b': 0.0}
        >>> found.demographic_parity_difference(), found.equalized_odds_difference()
        (0.0, 0.5)
    """

    y_true: Any
    y_pred: Any
    sensitive_features: Any
    pos_label: Any = 1
    metrics: dict[str, Metric] = field(default_factory=dict)
    sample_weight: Any = None

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("y_true", "y_pred", "sensitive_features")}
        check_same_index("GroupMetrics", **parts)
        for name, values in parts.items():
            object.__setattr__(self, name, _array(name, values))
        sizes = [self.y_true.shape, self.y_pred.shape, self.sensitive_features.shape]
        if len(set(sizes)) > 1 or self.y_true.ndim != 1 or not len(self.y_true):
            raise SpecificationError(
                f"GroupMetrics: y_true, y_pred and sensitive_features have shapes {', '.join(map(str, sizes))}; "
                f"expected (N,) for each with the same N, at least 1."
            )
        weights = row_weights("GroupMetrics", self.sample_weight, None, len(self.y_true))
        check_same_index("GroupMetrics", **parts, sample_weight=self.sample_weight)
        object.__setattr__(self, "sample_weight", None if weights is None else weights.numpy())
        if weights is not None:
            counts = np.bincount(self._member, weights=weights)
            if not counts.all():
                group = self.groups[int(counts.argmin())]
                raise SpecificationError(f"GroupMetrics: every row of group {group!r} has weight 0. Leave it out.")
        if self.metrics is not None and not isinstance(self.metrics, Mapping):
            raise SpecificationError(
                f"GroupMetrics: metrics is a {type(self.metrics).__name__}; expected functions by name."
            )
        if not self.metrics:
            self._check_favorable()
            rates = (selection_rate, true_positive_rate, false_positive_rate)
            named = {one.__name__: partial(one, pos_label=self.pos_label) for one in rates}
            object.__setattr__(self, "metrics", {"count": count, "accuracy_score": accuracy_score, **named})

    @cached_property
    def groups(self) -> tuple[Any, ...]:
        """The groups that occur, sorted."""
        found = set(self.sensitive_features.tolist())
        try:
            return tuple(sorted(found))
        except TypeError:  # texts and numbers
            return tuple(sorted(found, key=str))

    @cached_property
    def _member(self) -> npt.NDArray[np.int64]:
        """Position of the group of each sample ``(N,)``."""
        place = {group: k for k, group in enumerate(self.groups)}
        return np.array([place[group] for group in self.sensitive_features.tolist()])

    @cached_property
    def overall(self) -> dict[str, float]:
        """Each metric over all samples."""
        return {
            name: float(metric(self.y_true, self.y_pred, **self._beside())) for name, metric in self.metrics.items()
        }

    @cached_property
    def by_group(self) -> dict[str, dict[Any, float]]:
        """Each metric in each group."""
        return {name: self._in_groups(metric) for name, metric in self.metrics.items()}

    def difference(self, method: str = "between_groups") -> dict[str, float]:
        """Largest difference of each metric, between two groups or between a group and all samples."""
        if _checked(method) and find_spec("fairlearn") is not None:
            return self.frame().difference(method=method).to_dict()
        return {name: self._spread(metric, method) for name, metric in self.metrics.items()}

    def ratio(self, method: str = "between_groups") -> dict[str, float]:
        """Smallest ratio of each metric, between two groups or between a group and all samples; at most 1."""
        if _checked(method) and find_spec("fairlearn") is not None:
            return self.frame().ratio(method=method).to_dict()
        return {
            name: _ratio(list(values.values()), None if method == METHODS[0] else self.overall[name])
            for name, values in self.by_group.items()
        }

    def demographic_parity_difference(self, method: str = "between_groups") -> float:
        """Largest difference of the selection rates."""
        return self._rate_spread(selection_rate, method)

    def equalized_odds_difference(self, method: str = "between_groups", agg: str = "worst_case") -> float:
        """The larger (``agg="worst_case"``) or mean (``"mean"``) difference of true and false positive rates.

        Raises:
            SpecificationError: Another ``agg``.
        """
        if agg not in ("worst_case", "mean"):
            raise SpecificationError(f"equalized_odds_difference: agg={agg!r}; choose worst_case or mean.")
        found = [self._rate_spread(rate, method) for rate in (true_positive_rate, false_positive_rate)]
        return max(found) if agg == "worst_case" else sum(found) / 2

    def equal_opportunity_difference(self, method: str = "between_groups") -> float:
        """Largest difference of the true positive rates."""
        return self._rate_spread(true_positive_rate, method)

    def frame(self) -> Any:
        """The same as a ``fairlearn.metrics.MetricFrame``.

        Raises:
            MissingExtraError: fairlearn is not installed.
        """
        hint = ". The figures themselves are in by_group, overall, difference() and ratio()."
        require_extra("fairlearn", "GroupMetrics.frame()", "fairlearn", hint=hint)
        from fairlearn.metrics import MetricFrame

        groups = self.sensitive_features
        if groups.dtype.kind == "O":  # pandas sorts by them and takes tuples apart
            groups = np.array([str(group) for group in groups.tolist()])
        data = {"y_true": self.y_true, "y_pred": self.y_pred, "sensitive_features": groups}
        if self.sample_weight is not None:
            data["sample_params"] = {name: {"sample_weight": self.sample_weight} for name in self.metrics}
        return MetricFrame(metrics=dict(self.metrics), **data)

    def _in_groups(self, metric: Metric) -> dict[Any, float]:
        rows = ((group, self._member == k) for k, group in enumerate(self.groups))
        return {group: float(metric(self.y_true[own], self.y_pred[own], **self._beside(own))) for group, own in rows}

    def _beside(self, rows: Any = slice(None)) -> dict[str, Any]:
        """The weights of some samples, for metrics, where there are any."""
        return {} if self.sample_weight is None else {"sample_weight": self.sample_weight[rows]}

    def _check_favorable(self) -> None:
        """Whether ``pos_label`` is a label; 0 and 1, or -1 and 1, need not occur."""
        if self.y_pred.dtype.kind == "f" and (self.y_pred != self.y_pred.round()).any():
            raise SpecificationError(
                f"GroupMetrics: y_pred holds numbers such as {self.y_pred[self.y_pred != self.y_pred.round()][0]:.3g}; "
                f"expected answers. Compare scores with a threshold, or take argmax(1) of outputs."
            )
        labels = {*self.y_true.tolist(), *self.y_pred.tolist()}
        single = isinstance(self.pos_label, Hashable)
        if not (single and self.pos_label in labels) and not (labels <= {0, 1} or labels <= {-1, 1}):
            shown = ", ".join(repr(label) for label in sorted(labels, key=str)[:8])
            raise SpecificationError(
                f"GroupMetrics: pos_label is {self.pos_label!r}, which no row has; the labels are {shown}. Pass the "
                f"favorable one as pos_label."
            )

    def _rate_spread(self, rate: Callable[..., float], method: str) -> float:
        self._check_favorable()
        return self._spread(partial(rate, pos_label=self.pos_label), method)

    def _spread(self, metric: Metric, method: str) -> float:
        values = list(self._in_groups(metric).values())
        if _checked(method) == "between_groups":
            return max(values) - min(values)
        overall = float(metric(self.y_true, self.y_pred, **self._beside()))
        return max(abs(value - overall) for value in values)


def _checked(method: str) -> str:
    if method not in METHODS:
        raise SpecificationError(f"GroupMetrics: method={method!r}; choose {' or '.join(METHODS)}.")
    return method


def _array(name: str, values: Any) -> npt.NDArray[Any]:
    """Values of rows as an array; of texts and numbers together each stays what it is."""
    what = {"y_true": "true label", "y_pred": "answer"}.get(name, "group")
    refuse_missing("GroupMetrics", what, values)
    try:
        found = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (ValueError, TypeError) as error:
        raise SpecificationError(f"GroupMetrics: {name} are no array ({error}); expected one value a row.") from error
    if isinstance(values, list | tuple) and (found.ndim > 1 or found.dtype.kind in "US"):
        listed = listed_values("GroupMetrics", name, values)
        if found.ndim > 1 or any(not isinstance(value, str | bytes) for value in listed):
            found = np.empty(len(listed), dtype=object)
            for row, value in enumerate(listed):
                found[row] = value  # at once, NumPy would take tuples apart
    return found


def _favorable(labels: Any, pos_label: Any) -> npt.NDArray[np.bool_]:
    """Which labels are the favorable one; texts are compared with texts."""
    array = np.asarray(labels)
    texts = array.dtype.kind in "US" or (array.dtype.kind == "O" and all(isinstance(one, str) for one in array))
    if array.size and texts != isinstance(pos_label, str | bytes):
        raise SpecificationError(
            f"rates of groups: labels are {'texts' if texts else 'no texts'}, such as {array.tolist()[0]!r}, and "
            f"pos_label is {pos_label!r}. Pass the favorable label as pos_label."
        )
    return np.asarray(array == pos_label)


def _share(hits: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_], weights: Any) -> float:
    """Share of hits among some samples; 0 where none of these counts."""
    own = np.ones(len(hits)) if weights is None else np.asarray(weights)
    return float(np.average(hits[among], weights=own[among])) if own[among].sum() > 0 else 0.0


def _ratio(values: list[float], overall: float | None) -> float:
    """Smaller over larger; not a number where both are 0."""
    pairs = [(min(values), max(values))] if overall is None else [(value, overall) for value in values]
    return float(np.min([min(a, b) / max(a, b) if max(a, b) else math.nan for a, b in pairs]))
