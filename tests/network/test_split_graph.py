"""The split: suffix after prefix equals the whole, and the prefix holds everything before the first changed weight."""

import pytest
import torch
from sample_networks import CASES, Residual, Tied, chain
from torch import nn

from repairopt import ErrorRate, solve_repair
from repairopt.errors import ModelError
from repairopt.network import Engine
from repairopt.network.split_graph import split_at


class Shell(nn.Module):
    """As the engine wraps a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


def names_of(part):
    return set() if part is None else {name.removeprefix("model.") for name, _ in part.named_parameters()}


@pytest.mark.parametrize("case", [c for c in CASES if c.forward_fn is None], ids=lambda case: case.name)
def test_suffix_after_prefix_is_the_whole_network(case):
    model, inputs = case.model(), case.inputs(8)
    with torch.no_grad():
        whole = model(inputs)
        for names in (case.early, (case.last,)):
            split = split_at(Shell(model), {f"model.{name}" for name in names}, inputs[:5])
            if case.name in ("untraceable", "reads data") and names != (case.last,):
                assert split is None  # where the last module alone changes, a hook finds what it reads
                continue
            frontier = (inputs,) if split.prefix is None else split.prefix(inputs)
            assert all(part.shape[0] == 8 for part in frontier)
            torch.testing.assert_close(split.suffix(*frontier), whole)
            assert set(names) <= names_of(split.suffix)
            assert not set(names) & names_of(split.prefix)


def test_the_prefix_of_a_chain_ends_right_before_the_changed_layer():
    model = chain().eval()
    split = split_at(Shell(model), {"model.2.weight"}, torch.randn(5, 4))
    assert names_of(split.prefix) == {"0.weight", "0.bias"}
    assert names_of(split.suffix) == {"2.weight", "2.bias", "4.weight", "4.bias"}
    assert split.last_linear is None
    assert split.widest == 6
    assert split.floats == 6 + 6 + 3


def test_the_first_of_several_changed_layers_decides():
    model = chain().eval()
    split = split_at(Shell(model), {"model.4.weight", "model.2.bias"}, torch.randn(5, 4))
    assert names_of(split.prefix) == {"0.weight", "0.bias"}
    assert split_at(Shell(model), {"model.4.weight", "model.0.bias"}, torch.randn(5, 4)).prefix is None


@pytest.mark.parametrize("changed", [{"model.4.weight"}, {"model.4.bias"}, {"model.4.weight", "model.4.bias"}])
def test_the_last_linear_layer_is_known_as_such(changed):
    assert split_at(Shell(chain().eval()), changed, torch.randn(5, 4)).last_linear == "model.4"


def test_a_layer_behind_the_last_linear_one_means_it_is_not_affine():
    model = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)).eval()
    assert split_at(Shell(model), {"model.0.weight"}, torch.randn(5, 4)).last_linear is None
    lazy = nn.Sequential(nn.Linear(4, 3), nn.Identity()).eval()
    assert split_at(Shell(lazy), {"model.0.weight"}, torch.randn(5, 4)).last_linear is None


def test_the_frontier_of_a_residual_network_holds_both_branches():
    model, inputs = Residual().eval(), torch.randn(6, 4)
    split = split_at(Shell(model), {"model.inner.weight"}, inputs[:5])
    assert names_of(split.prefix) == {"stem.weight", "stem.bias"}
    assert sorted(part.shape[1] for part in split.prefix(inputs)) == [4, 6]  # the input again, and the stem's output


def test_a_parameter_that_is_shared_counts_where_it_enters_first():
    split = split_at(Shell(Tied().eval()), {"model.first.weight"}, torch.randn(5, 4))
    assert split.prefix is None


def test_a_tied_change_acts_at_both_places():
    model = Tied().double().eval()
    inputs = torch.randn(7, 4, dtype=torch.float64)
    engine = Engine(model, {"first.weight": torch.arange(16)})
    delta = torch.randn(16, dtype=torch.float64)
    found = engine.predict(delta)(inputs)
    with torch.no_grad():
        model.first.weight += delta.view(4, 4)
    assert model.second.weight is model.first.weight
    torch.testing.assert_close(found, model(inputs).detach())


class BatchSizes(nn.Module):
    """Uses the batch size and a weight that is no input; both have to be made again inside the suffix."""

    def __init__(self):
        super().__init__()
        self.shift, self.first, self.last = nn.Parameter(torch.randn(6)), nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x):
        x = self.first(x) + torch.exp(self.shift)
        return self.last(x.reshape(x.shape[0], 2, 3).sum(1) + torch.ones(x.shape[0], 1, dtype=x.dtype))


def test_sizes_and_weights_are_made_again_in_the_suffix():
    model, inputs = BatchSizes().double().eval(), torch.randn(9, 4, dtype=torch.float64)
    engine = Engine(model, {"last.weight": torch.arange(6)})
    torch.testing.assert_close(engine.predict()(inputs), model(inputs).detach())
    torch.testing.assert_close(engine.predict()(inputs[:3]), model(inputs[:3]).detach())


class DependsOnBatchSize(nn.Module):
    """Makes a tensor of the size of the batch on its way."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).clamp(max=torch.full((x.size(0), 1), 0.5)))


def test_values_that_depend_on_the_batch_size_follow_it():
    model = DependsOnBatchSize().eval()
    engine = Engine(model, {"first.weight": torch.arange(24)})
    for count in (1, 5, 13):
        inputs = torch.randn(count, 4)
        torch.testing.assert_close(engine.predict()(inputs), model(inputs).detach())


def test_a_changed_parameter_that_the_output_does_not_use_is_run_whole():
    model = nn.Module()
    model.used, model.idle = nn.Linear(4, 2), nn.Linear(4, 2)
    model.forward = lambda x: model.used(x)
    engine = Engine(Shell(model), {"model.idle.weight": torch.arange(8)})
    inputs = torch.randn(6, 4)
    torch.testing.assert_close(engine.predict(torch.ones(8))(inputs), model.used(inputs).detach())


class HalfInside(nn.Sequential):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


def test_a_network_that_turns_on_autocast_is_run_whole_since_a_trace_of_it_is_another_network():
    torch.manual_seed(0)
    net = HalfInside(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.randn(40, 4)
    y = (net(x).float() + torch.randn(40, 3) / 3).argmax(1)
    assert split_at(net, {"2.weight"}, x) is None
    repair = solve_repair(net, ErrorRate(x, y, target=0.05), weights="all")
    before, after = (float((one(x).argmax(1) != y).float().mean()) for one in (net, repair.model))
    assert after == pytest.approx(repair.report.measure().after)
    assert after < before
    with pytest.raises(ModelError, match="trace and a plain run disagree"):
        solve_repair(net, ErrorRate(x, y, target=0.05), method="inner")
    for method in ("hudd", "nnrepair"):
        assert solve_repair(net, ErrorRate(x, y, target=0.05), method=method).report.verdict
