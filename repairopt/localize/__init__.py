"""Which weights may change, and how a change is written into a copy of the model."""

from .candidates import NewWeights, WeightChange, Wrapped
from .follow_units import input_columns
from .location import Location, localize
from .slicing import Slice, Slicer, by_unit
from .trace_layers import LayerGraph, first_inputs
from .weight_selectors import CARE, Gradient, Inputs, Layers, Neurons
from .write_change import apply, by_parameter, changed_parameters, gather_change, gather_moved
