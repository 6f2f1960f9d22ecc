"""What must become true and what must stay true: properties, constraints, groups, margins, intervals."""

from .bound import Bound
from .broken_rows import BrokenRows
from .change_limits import ChangeLimit, LinearRows
from .constraints import FixLabels, KeepLabels, KeepOutputs, OutputBounds, ShareRows
from .contracts import (
    Anchored,
    Attacked,
    Certified,
    ChangeBox,
    ChangeConstraint,
    Constraint,
    Detailed,
    Differentiable,
    Divided,
    Grouped,
    GroupRates,
    Keep,
    Labelled,
    Property,
    PropertyBound,
    Residuals,
    Restrictable,
    SampleConstraint,
    SampleShare,
    SignedParts,
    Statistical,
    Subsampled,
    Transferable,
    Undesired,
    answers_only,
    has_signed_parts,
    inputs_of,
    is_strict,
    labels_of,
    measured,
    of_real_rows,
    price_of,
    refuse_void,
    restricted,
    rows_left_out,
    soft_margins,
    soft_value,
    stands_for_population,
    tolerance_of,
)
from .contradictions import said_of_contradictions as said_of_contradictions
from .costs import ExpectedCost
from .expected import (
    Expected as Expected,
    are_numbers as are_numbers,
    is_one_of as is_one_of,
    is_sequence as is_sequence,
    keep_plain as keep_plain,
)
from .fixing import AttackSuccess, UnfixedRate
from .folds import Folds, distinct_rows, overlap, tied_sets
from .groups.calibration import CalibrationError
from .groups.gaps import GroupGap, spread_of
from .groups.metrics import GroupMetrics
from .groups.odds import OddsGap
from .groups.partial_pooling import LEAST_GROUPS, pooled_gap
from .groups.worst import WorstGroup
from .intervals import Interval, normal_quantile, rate_interval
from .keep_lowest import KeepLowest
from .label_sets import KeepLabelSets, LabelSetErrors
from .margins import (
    ROUNDING,
    SHARE_ROUNDING,
    allowed_samples,
    anchor,
    beyond,
    broken_samples,
    fails_by_sample,
    goal_value,
    holds_change,
    labelled_data,
    margins_at,
    margins_of_samples,
    required_margins,
    sample_count,
    samples_in,
)
from .measures import REQUIRED, ROWS, UP, WAYS, Argument, Given, Measure
from .properties import AccuracyDrop, ConfusionRate, ErrorRate, FlipRate, MissRate
from .region_goals import KeepRegions, UnprovedRegions, as_region_goal, is_of_regions, place_in
from .regions import Region
from .repeatable import check_repeatable as check_repeatable
from .robustness import AdversarialError, CertifiedRadius
from .sample_weights import (
    LabelledPair,
    Weightable,
    is_weighted,
    loss_by_weight,
    row_weights,
    said_of_weights,
    scaled_weights,
    sum_by_weight,
    weight_of,
    weighted,
)
from .specification import (
    CallableProperty,
    LabelledRows,
    Specification,
    as_property,
    labelled_pairs,
    make_specification,
    repeated_rows,
)
from .vnnlib import read_vnnlib
from .vnnlib_cases import VnnlibCase
