"""A network under a weight change: runs, derivatives, bounds of sets."""

from .candidate import Array, Candidate, ModuleCandidate, network_of
from .changed_network import Caller as Caller, ForwardFunction
from .classifier import UNORDERED, Classifier, Reading, meaning_of, second_of_two, split_model
from .deadline import Stop, check_time, is_late, limited, time_left
from .differentiate import hessian, jacobian, pull_back, sample_rows, tangent
from .direct_calls import outputs_of
from .engine import CACHE_BYTES, Engine, Predict, Remembering, batched
from .inference_tensors import usable
from .inputs import (
    as_tensor,
    check_beside,
    check_inputs,
    check_labelled,
    check_labels,
    column_names,
    column_position,
    is_dataset,
    is_frame,
    to_tensors,
)
from .layer_rows import LayerRows, LayersOfRows
from .model_checks import agree, shadow, telling_rows, writes_into
from .remembered import identity
from .row_values import check_same_index, is_missing_word, listed_values, missing_values, refuse_missing
from .sets.activation_lines import Lines, lines
from .sets.certifier import Bound, Certifier
from .sets.counterexamples import Search, attack, attacked_radius
from .sets.crown import Boxes, relax, relax_in_parts
from .sets.evidence import Evidence, digest_of, divided, evidence_of, examine_regions, input_shape
from .sets.frames import Frame
from .sets.leaves import LastLayer, Leaves, own_last_layer
from .sets.network_steps import NetworkSteps
from .sets.propagate_zonotope import Slope, said_of_softmax as said_of_softmax
from .sets.region_attack import RegionSearch, attack_regions
from .sets.row_groups import RowGroups
from .sets.zonotope_layers import Call, Zonotope, relaxation
from .shards import Shards
from .split_graph import run_and_keep
from .tracing import ONE_AT_A_TIME, network_name, trace_network, writes_in_place
from .whiten import Whitening, whitening
