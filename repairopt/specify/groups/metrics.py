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
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from repairopt.errors import SpecificationError, require_extra

Metric = Callable[[Any, Any], float]
METHODS = ("between_groups", "to_overall")


def selection_rate(y_true: Any, y_pred: Any, *, pos_label: Any = 1) -> float:
    """Share of the answers that are ``pos_label``; ``y_true`` is not used."""
    return float(np.mean(np.asarray(y_pred) == pos_label))


def accuracy_score(y_true: Any, y_pred: Any) -> float:
    """Share of right answers, as scikit-learn's."""
    return float(np.mean(np.asarray(y_true) == np.asarray(y_pred)))


def true_positive_rate(y_true: Any, y_pred: Any, *, pos_label: Any = 1) -> float:
    """Share of the answers ``pos_label`` where that is true; 0 where it never is, as in fairlearn."""
    return _share(np.asarray(y_pred)[np.asarray(y_true) == pos_label] == pos_label)


def false_positive_rate(y_true: Any, y_pred: Any, *, pos_label: Any = 1) -> float:
    """Share of the answers ``pos_label`` where that is false."""
    return _share(np.asarray(y_pred)[np.asarray(y_true) != pos_label] == pos_label)


def count(y_true: Any, y_pred: Any) -> float:
    """Number of samples."""
    return float(len(np.asarray(y_true)))


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

    Raises:
        SpecificationError: Sizes disagree, or nothing is given.

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

    def __post_init__(self) -> None:
        for name in ("y_true", "y_pred", "sensitive_features"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        sizes = [self.y_true.shape, self.y_pred.shape, self.sensitive_features.shape]
        if len(set(sizes)) > 1 or self.y_true.ndim != 1 or not len(self.y_true):
            raise SpecificationError(
                f"GroupMetrics: y_true, y_pred and sensitive_features have shapes {', '.join(map(str, sizes))}; "
                f"expected (N,) for each with the same N, at least 1."
            )
        if not self.metrics:
            rates = (selection_rate, true_positive_rate, false_positive_rate)
            named = {one.__name__: partial(one, pos_label=self.pos_label) for one in rates}
            object.__setattr__(self, "metrics", {"count": count, "accuracy_score": accuracy_score, **named})

    @cached_property
    def groups(self) -> tuple[Any, ...]:
        """The groups that occur, sorted."""
        return tuple(np.unique(self.sensitive_features).tolist())

    @cached_property
    def overall(self) -> dict[str, float]:
        """Each metric over all samples."""
        return {name: float(metric(self.y_true, self.y_pred)) for name, metric in self.metrics.items()}

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

        data = {"y_true": self.y_true, "y_pred": self.y_pred, "sensitive_features": self.sensitive_features}
        return MetricFrame(metrics=dict(self.metrics), **data)

    def _in_groups(self, metric: Metric) -> dict[Any, float]:
        rows = ((group, self.sensitive_features == group) for group in self.groups)
        return {group: float(metric(self.y_true[own], self.y_pred[own])) for group, own in rows}

    def _rate_spread(self, rate: Callable[..., float], method: str) -> float:
        return self._spread(partial(rate, pos_label=self.pos_label), method)

    def _spread(self, metric: Metric, method: str) -> float:
        values = list(self._in_groups(metric).values())
        if _checked(method) == "between_groups":
            return max(values) - min(values)
        overall = float(metric(self.y_true, self.y_pred))
        return max(abs(value - overall) for value in values)


def _checked(method: str) -> str:
    if method not in METHODS:
        raise SpecificationError(f"GroupMetrics: method={method!r}; choose {' or '.join(METHODS)}.")
    return method


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else 0.0


def _ratio(values: list[float], overall: float | None) -> float:
    """Smaller over larger; not a number where both are 0."""
    pairs = [(min(values), max(values))] if overall is None else [(value, overall) for value in values]
    return float(np.min([min(a, b) / max(a, b) if max(a, b) else math.nan for a, b in pairs]))
