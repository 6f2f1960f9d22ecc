"""What must become true and what must stay true: properties, constraints, groups, margins, intervals."""

from .constraints import Bound, ChangeLimit, FixLabels, KeepLabels, KeepOutputs, LinearRows, OutputBounds
from .folds import Folds, overlap
from .groups.gaps import GroupGap, OddsGap
from .groups.metrics import GroupMetrics
from .groups.rates import spread_of
from .held_out import labelled_pairs, make_specification, repeated_rows
from .intervals import Interval, normal_quantile, rate_interval
from .margins import (
    allowed_samples,
    anchor,
    broken_samples,
    goal_value,
    holds_change,
    labelled_data,
    margins_at,
    margins_of_samples,
    required_margins,
    sample_count,
    samples_in,
)
from .properties import AccuracyDrop, ErrorRate, FlipRate, MissRate
from .robustness import AdversarialError, CertifiedRadius
from .specification import CallableProperty, ChangeConstraint, Constraint, Property, SampleConstraint, Specification
