"""Localizers: formulae on counts by hand, planted faults, and that any of them feeds any method."""

import pytest
import torch
from digits import learned
from torch import nn

from repairopt import ErrorRate, ModelError, Settings, SpecificationError, solve_repair
from repairopt.localize import (
    AdversarialSpectrum,
    Bidirectional,
    DeepFault,
    ForwardImpact,
    GradientLoss,
    InfluenceRatio,
    LayerGraph,
    Probes,
    Question,
    Significance,
    Spectrum,
    available_localizers,
    localize,
)
from repairopt.localize.synapses import forward_impact, pareto_front, weight_spectrum
from repairopt.network import Engine

PLANTED = 7  # the unit of the first layer that fires where it must not


@pytest.fixture(scope="module")
def faulty(digits):
    """A copy whose unit 7 adds much to class 3 on rows where it should be silent."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model.load_state_dict(digits.model.state_dict())
    with torch.no_grad():
        model[0].weight[PLANTED] = 0.5 * torch.randn(64, generator=torch.Generator().manual_seed(4))
        model[0].bias[PLANTED] = 0.0
        model[2].weight[:, PLANTED] = 0.0
        model[2].weight[3, PLANTED] = 8.0
    return model


@pytest.fixture(scope="module")
def goal(digits):
    return ErrorRate(*digits.repair)


def _question(model, goal):
    return Question.about(Engine(model), goal)


def test_formulae_match_counts_by_hand():
    counts = [torch.tensor(row, dtype=torch.float64) for row in ([4, 0, 3], [0, 4, 1], [2, 5, 0], [8, 5, 10])]
    made = Spectrum(*counts)
    torch.testing.assert_close(made.tarantula, torch.tensor([1 / 1.2, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(made.ochiai, torch.tensor([4 / 24**0.5, 0.0, 3 / 12**0.5], dtype=torch.float64))
    torch.testing.assert_close(made.dstar(3), torch.tensor([32.0, 0.0, 27.0], dtype=torch.float64))
    nothing = Spectrum(*(torch.zeros(2, dtype=torch.float64) for _ in range(4)))
    assert not nothing.tarantula.any()
    assert not nothing.ochiai.any()
    assert not nothing.dstar(3).any()


@pytest.mark.parametrize("measure", ["tarantula", "ochiai", "dstar"])
def test_DeepFault_finds_a_planted_neuron(faulty, goal, measure):
    ranked = DeepFault(count=5, measure=measure).neurons(_question(faulty, goal))
    assert ("0", PLANTED) in [one[:2] for one in ranked]


def test_formula_6_on_four_neurons():
    scores = {"a": torch.tensor([0.5, 1.0]).double(), "b": torch.tensor([0.2, 0.4]).double()}
    slopes = {"a": torch.tensor([0.1, 0.5]).double(), "b": torch.tensor([0.2, 0.2]).double()}
    from repairopt.localize.spectrum import weighted

    mean = torch.tensor((0.3 + 0.2) / 2).double()
    found, clipped = weighted(scores, slopes, mean), weighted(scores, slopes, mean, signed=True)
    torch.testing.assert_close(found["a"], torch.tensor([0.6 * 0.5, 1.0]).double())
    torch.testing.assert_close(found["b"], torch.tensor([0.2 * 0.2, 0.2 * 0.4]).double())
    assert clipped["a"].tolist() == [0.0, 1.0]
    assert not clipped["b"].any()


def test_AdversarialSpectrum_finds_a_planted_block():
    """As the paper counts: 100 failing rows, the ten most vulnerable neurons."""
    found = 0
    for seed in range(5):
        torch.manual_seed(seed)
        blocks = [nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()) for _ in range(3)]
        own = learned(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), *blocks, nn.Linear(16, 10)), steps=80)
        guilty = 2 + seed % 3
        for layer in (own.model[guilty][0], own.model[guilty][2]):
            layer.reset_parameters()
        wrong = own.wrong(own.model, own.repair)
        rows = torch.cat([wrong.nonzero().flatten()[:100], (~wrong).nonzero().flatten()])
        goal = ErrorRate(own.repair[0][rows], own.repair[1][rows])
        found += AdversarialSpectrum(top=10).chosen(_question(own.model, goal)) == str(guilty)
    assert found == 5


def test_forward_impact_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -3.0], [2.0, 2.0]]))
    rows = (torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 0]))
    question = Question.of(Engine(model), rows, rows)
    expected = torch.tensor([[(1 / 4 + 1) / 2, (3 / 4) / 2], [(1 / 2 + 1) / 2, (1 / 2) / 2]]).double() / 2
    torch.testing.assert_close(forward_impact(question, question.graph.affine[-1], rows), expected)


def test_a_convolution_has_the_forward_impact_of_its_matrix():
    conv = nn.Conv2d(1, 2, 2)
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(2, 2))
    rows = (torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2))
    with torch.no_grad():
        linear[1].weight.copy_(conv.weight.flatten(1))
        linear[1].bias.copy_(conv.bias)
    linear[2].load_state_dict(model[2].state_dict())
    one, other = (Question.of(Engine(net), rows, rows) for net in (model, linear))
    first = forward_impact(one, one.graph.affine[0], rows)
    torch.testing.assert_close(first.flatten(1), forward_impact(other, other.graph.affine[0], rows))


def test_a_linear_layer_of_sequences_has_its_forward_impact():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2))
    rows = (torch.rand(6, 4, 3), torch.zeros(6, dtype=torch.int64))
    question = Question.of(Engine(model), rows, rows)
    found = forward_impact(question, question.graph.affine[0], rows)
    assert found.shape == (5, 3)
    torch.testing.assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64), msg="both factors are shares")


def test_the_spectrum_of_weights_counts_what_adds_to_a_unit():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
    failing = (torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([0, 0]))
    passing = (torch.tensor([[-1.0, 1.0]]), torch.tensor([0]))
    question = Question.of(Engine(model), failing, passing)
    found = weight_spectrum(question, question.graph.affine[0])
    assert found.active_failing.tolist() == [[2.0, 1.0], [0.0, 1.0]]
    assert found.active_passing.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert found.tarantula[0].tolist() == [1.0, 1.0]


def test_the_front_is_that_of_all_pairs():
    points = torch.randint(0, 6, (60, 2), generator=torch.Generator().manual_seed(0)).double()
    first, second = points.T
    for k, kept in enumerate(pareto_front(first, second).tolist()):
        beaten = ((first >= first[k]) & (second >= second[k]) & ((first > first[k]) | (second > second[k]))).any()
        assert kept != bool(beaten)


def test_InfluenceRatio_is_the_ratio_of_derivatives(digits, goal):
    found = localize(digits.model, InfluenceRatio(ratio=2.0), goal=goal)
    wrong = digits.wrong(digits.model, digits.repair)
    x, y = digits.repair
    parts = []
    special = nn.functional.cross_entropy(digits.model(x[wrong]), y[wrong])
    for value in (special, digits.model(x[~wrong]).abs().sum(1).mean()):
        parts.append(torch.autograd.grad(value, digits.model[2].weight)[0].abs().double())
    expected = ((parts[0] + 1e-8) / (2 * parts[1] + 1e-8) >= 1).flatten().nonzero().flatten()
    assert found.indices["2.weight"].tolist() == expected.tolist()


def test_INNER_probes_find_the_planted_neuron(faulty, goal):
    ranked = Probes(share=0.1, layer="0").neurons(_question(faulty, goal))
    assert len(ranked) == 4
    assert ("0", PLANTED) in [one[:2] for one in ranked]


def test_VeRe_significance_is_the_gain_where_the_rest_is_linear(digits, goal):
    question = _question(digits.model, goal)
    gain, end = Significance(layer="0").gains(question)["0"]
    x, y = (part[:100] for part in question.failing)
    hidden = torch.relu(digits.model[0](x)).double()
    last = digits.model[2].double()
    try:
        with torch.no_grad():
            for unit in (0, 5, 9):
                moved = hidden.clone()
                moved[:, unit] = end[:, unit]
                margins = []
                for values in (hidden, moved):
                    out = last(values)
                    own = out.gather(1, y[:, None])
                    margins.append((own - out.scatter(1, y[:, None], -torch.inf)).amin(1))
                torch.testing.assert_close(gain[:, unit], margins[1] - margins[0], atol=1e-4, rtol=1e-4)
    finally:
        digits.model.float()


@pytest.mark.parametrize("name", available_localizers())
def test_every_localizer_feeds_the_solver(name, digits, goal):
    location = localize(digits.model, name, goal=goal)
    assert 0 < location.size <= sum(p.numel() for p in digits.model.parameters())
    assert {name: len(own) for name, own in location.scores.items()} == {
        name: len(places) for name, places in location.indices.items()
    }
    aim = ErrorRate(*digits.repair, target=0.02)
    found = solve_repair(digits.model, aim, weights=name, settings=Settings(time_limit=0.5))
    old = dict(digits.model.named_parameters())
    for name, new in found.model.named_parameters():
        moved = (new != old[name]).flatten().nonzero()[:, 0].tolist()
        assert set(moved) <= set(location.indices.get(name, torch.zeros(0)).tolist()), "only what was localized changes"
    goal = found.report.measure()
    assert goal.after <= goal.before
    assert found.report.location.size == location.size


def test_what_cannot_be_localized_is_told(digits, goal):
    right = ~digits.wrong(digits.model, digits.repair)
    solved = ErrorRate(digits.repair[0][right], digits.repair[1][right])
    with pytest.raises(SpecificationError, match="rows that fail"):
        localize(digits.model, DeepFault(), goal=solved)
    with pytest.raises(ModelError, match="no neurons"):
        localize(nn.Linear(64, 10), DeepFault(), goal=goal)
    with pytest.raises(SpecificationError, match="measure"):
        DeepFault(measure="jaccard")
    with pytest.raises(SpecificationError, match="count"):
        ForwardImpact(count=0)
    with pytest.raises(SpecificationError, match="level"):
        AdversarialSpectrum(level="row")
    with pytest.raises(ModelError, match="nowhere"):
        localize(digits.model, GradientLoss(layer="nowhere"), goal=goal)
    assert LayerGraph(digits.model, None, digits.repair[0][:3]).layers
    assert localize(digits.model, Bidirectional(), goal=goal).size < 30
