"""One pass, several derivatives: equal to autograd's for each sample, made only where they can be."""

import copy
import subprocess
import sys

import pytest
import torch
from sample_networks import CASES, Tied, chain
from torch import nn

from repairopt.network import Engine

WEIGHTS = {
    "one layer": {"2.weight": [0, 3, 7, 20, 47], "2.bias": [1, 5]},
    "all layers": {"0.weight": range(32), "2.weight": range(48), "2.bias": range(6), "4.weight": range(18)},
    "a bias alone": {"0.bias": [2, 4]},
}


def engine_of(model, weights):
    return Engine(model, {name: torch.tensor(list(positions)) for name, positions in weights.items()})


def autograd_jacobian(model, engine, inputs, delta):
    """Derivatives of each output of each sample in the chosen weights, ``(N, k, n)``, one at a time."""
    moved = copy.deepcopy(model)
    parameters = dict(moved.named_parameters())
    for name, value in engine.weights(delta).items():
        parameters[name].data.copy_(value)
    outputs, chosen = moved(inputs), [parameters[name] for name in engine.indices]

    def row(output):
        found = torch.autograd.grad(output, chosen, retain_graph=True)
        return torch.cat([g.flatten()[index] for g, index in zip(found, engine.indices.values(), strict=True)])

    return torch.stack([torch.stack([row(output) for output in sample]) for sample in outputs])


def tape_of(engine, inputs, delta):
    [(span, tape)] = engine.tapes(inputs, delta)
    assert span == slice(0, len(inputs))
    return tape


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_derivatives_are_those_of_autograd_for_each_sample(small_net, small_inputs, weights):
    engine = engine_of(small_net, weights)
    delta = 0.1 * torch.randn(engine.n, dtype=torch.float64)
    tape = tape_of(engine, small_inputs, delta)
    known = autograd_jacobian(small_net, engine, small_inputs, delta)
    assert tape.flat
    assert torch.allclose(tape.outputs, engine.predict(delta)(small_inputs), atol=1e-14)
    cotangent = torch.randn(30, 3, dtype=torch.float64)
    assert torch.allclose(tape.pull_back(cotangent), torch.einsum("nk,nkw->w", cotangent, known), atol=1e-12)
    samples = torch.tensor([4, 4, 0, 29, 4, 0])  # rows of one sample need passes of their own
    chosen = torch.randn(6, 3, dtype=torch.float64)
    wanted = torch.einsum("rk,rkw->rw", chosen, known[samples])
    assert torch.allclose(tape.rows(samples, chosen), wanted, atol=1e-12)
    assert torch.allclose(tape.rows(samples, chosen), wanted, atol=1e-12), "a tape can be used again"
    assert tape.rows(samples[:0], chosen[:0]).shape == (0, engine.n)


def test_activations_that_are_written_over_do_no_harm(small_inputs):
    plain, written = chain().double(), chain().double()
    written.load_state_dict(plain.state_dict())
    written[1] = nn.ReLU(inplace=True)
    cotangent = torch.randn(30, 3, dtype=torch.float64)
    found = []
    for model in (plain.eval(), written.eval()):
        engine = engine_of(model, WEIGHTS["all layers"])
        found.append(tape_of(engine, small_inputs, engine.as_delta(None)).pull_back(cotangent))
        assert engine.writes_into_outputs == (model is written), "seen at the first pass, and remembered"
        assert torch.equal(tape_of(engine, small_inputs, engine.as_delta(None)).pull_back(cotangent), found[-1])
    assert torch.equal(*found)


def test_layers_that_see_sequences_are_pulled_back_but_give_no_rows():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3)).double().eval()
    inputs = torch.randn(9, 3, 4, dtype=torch.float64)
    engine = engine_of(model, {"0.weight": range(20), "0.bias": range(5)})
    tape = tape_of(engine, inputs, engine.as_delta(None))
    assert not tape.flat
    cotangent = torch.randn(9, 3, dtype=torch.float64)
    known = autograd_jacobian(model, engine, inputs, engine.as_delta(None))
    assert torch.allclose(tape.pull_back(cotangent), torch.einsum("nk,nkw->w", cotangent, known), atol=1e-12)


@pytest.mark.parametrize("step", ["sign", "heaviside", "comparison"])
def test_before_steps_there_are_zeros(step, small_inputs):
    case = next(case for case in CASES if case.name == step)
    engine = engine_of(case.model(), {"first.weight": range(24)})
    tape = tape_of(engine, small_inputs, engine.as_delta(None))
    assert not tape.pull_back(torch.ones(30, 3, dtype=torch.float64)).any()
    assert not tape.rows(torch.arange(30), torch.ones(30, 3, dtype=torch.float64)).any()


def test_there_is_no_tape_where_weights_are_not_those_of_linear_layers(small_inputs):
    tied = Tied().double().eval()
    assert engine_of(tied, {"first.weight": range(16)}).tapes(small_inputs, torch.zeros(16).double()) is None
    functional = next(case for case in CASES if case.name == "functional").model()
    assert engine_of(functional, {"weight": range(30)}).tapes(small_inputs, torch.zeros(30).double()) is None
    convolutional = next(case for case in CASES if case.name == "convolutional")
    engine = engine_of(convolutional.model(), {"conv2.weight": range(9)})
    assert engine.tapes(convolutional.inputs(), torch.zeros(9).double()) is None


def test_a_tape_is_kept_until_the_inputs_change(small_net, small_inputs):
    engine = engine_of(small_net, WEIGHTS["one layer"])
    zero = engine.as_delta(None)
    first = tape_of(engine, small_inputs, zero)
    assert tape_of(engine, small_inputs, zero) is first
    small_inputs[0] += 1.0
    again = tape_of(engine, small_inputs, zero)
    assert again is not first
    assert torch.allclose(again.outputs, small_net(small_inputs), atol=1e-14)


def test_derivatives_import_no_symbolic_algebra():
    code = """
import sys, torch
from repairopt.network import Engine, pull_back
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
engine = Engine(model, {"0.weight": torch.arange(12)})
x, delta = torch.randn(5, 3), torch.zeros(12)
assert engine.tapes(x, delta) is not None, "else this shows nothing"
assert pull_back(engine, x, torch.ones(5, 2), delta).abs().sum() > 0
sys.exit("sympy" in sys.modules)  # torch takes most of a second to import it
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
