"""Which weights may change, and how a change is written into a copy of the model."""

from .attribution import care_neurons
from .candidates import NewArchitecture, NewWeights, WeightChange, Wrapped
from .follow_units import input_columns, weights_reading
from .localizers import available_localizers
from .location import LARGE, Location, frozen_parameters, localize, locate
from .low_rank import Factored, LowRankChange, add_factors, is_factor, layers_for_factors, wants_factors
from .probes import Probes, train_probe
from .question import Neuron, NeuronLocalizer, Question, WeightLocalizer, best_neurons
from .significance import Significance
from .slicing import NNSlicer, Slice, Slicer, by_unit
from .spectrum import AdversarialSpectrum, DeepFault, Spectrum, spectrum_of
from .synapses import (
    Bidirectional,
    ForwardImpact,
    GradientLoss,
    InfluenceRatio,
    affine_layer,
    by_class,
    forward_impact,
    gradient_loss,
    parameter_slopes,
    weight_spectrum,
)
from .trace_layers import LayerGraph, first_inputs
from .weight_selectors import CARE, Gradient, Inputs, Layers, LowRank, Neurons
from .write_change import apply, by_parameter, changed_parameters, gather_change, gather_moved
