"""What outputs mean: stated by a Classifier, else seen from them and said, or refused."""

import pytest
import torch
from torch import nn

from repairopt import (
    CallableProperty,
    Classifier,
    ErrorRate,
    GroupGap,
    KeepLabels,
    KeepOutputs,
    ModelError,
    Region,
    Settings,
    Verdict,
    solve_repair,
)
from repairopt.errors import SpecificationError, UnsupportedError
from repairopt.localize import LayerGraph
from repairopt.methods import NNRepair
from repairopt.patches import load_patch
from repairopt.specify import CertifiedRadius

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(5))
Y = (X[:, 0] - 0.5 * X[:, 1] + 0.3 * X[:, 2] > 0).long()
GOOD = slice(6, 120)


def logits():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()
    return net


NET = logits()
SMALL = {"weights": "last", "settings": Settings(time_limit=20)}


class Functional(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.net, self.end = NET, end

    def forward(self, x):
        return self.end(self.net(x))


ENDS = {
    "functional softmax": (lambda z: nn.functional.softmax(z, dim=1), "probabilities"),
    "method softmax": (lambda z: z.softmax(-1), "probabilities"),
    "sigmoid of both": (
        lambda z: torch.stack([torch.sigmoid(z[:, 0] - z[:, 1]), torch.sigmoid(z[:, 1] - z[:, 0])], 1),
        "probabilities",
    ),
    "log-softmax": (lambda z: nn.functional.log_softmax(z, 1), "log-probabilities"),
    "exp of log-softmax": (lambda z: nn.functional.log_softmax(z, 1).exp(), "probabilities"),
}


@pytest.mark.parametrize("name", ENDS)
def test_probabilities_are_repaired_like_their_logits(name):
    end, word = ENDS[name]
    labels = NET(X).argmax(1)
    points = X[:6], 1 - labels[:6]
    keep = KeepLabels(X[GOOD], labels[GOOD], tolerance=0.3)
    plain = solve_repair(NET, ErrorRate(*points), [keep], **SMALL)
    model = Functional(end)
    found = solve_repair(
        model, ErrorRate(*points), [keep], weights=["net.2.weight", "net.2.bias"], settings=SMALL["settings"]
    )
    assert abs(found.report.measure().after - plain.report.measure().after) <= 1 / 6 + 1e-6
    assert found.report.measure().after < found.report.measure().before
    assert any(f"gives {word}" in note for note in found.report.notes)
    assert float((found.model(X[:6]).argmax(1) != points[1]).float().mean()) == pytest.approx(
        found.report.measure().after
    )


class Halves(nn.Module):
    """Two outputs of a linear layer that sum to 1 until the layer changes."""

    def __init__(self, size):
        super().__init__()
        self.out = nn.Linear(4, 2)
        with torch.no_grad():
            self.out.weight.copy_(torch.stack([-size * torch.ones(4), size * torch.ones(4)]))
            self.out.bias.copy_(torch.tensor([0.5, 0.5]) if size else torch.tensor([0.0, 1.0]))

    def forward(self, x):
        return self.out(x)


@pytest.mark.parametrize("size", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("method", ["sqp", "one_shot"])
def test_outputs_that_sum_to_1_without_a_softmax_keep_their_order(size, method):
    """A change takes them below 0, where a logarithm has no value."""
    model = Halves(size)
    goal, gap = ErrorRate(X, Y, target=0.1), GroupGap.observed(torch.cat([X[:, :3], Y[:, None].float()], 1), 3)
    found = solve_repair(model, goal, **SMALL, method=method)
    wrong = float((found.model(X).argmax(1) != Y).double().mean())
    assert found.report.measure().after == pytest.approx(wrong, abs=1e-6)
    found = solve_repair(model, gap, **SMALL, data=[(gap.samples.inputs, Y)], method=method)
    answers = found.model(gap.samples.inputs).argmax(1)
    apart = abs(float(answers[Y == 1].double().mean() - answers[Y == 0].double().mean()))
    assert found.report.measure().after == pytest.approx(apart, abs=1e-6)


@pytest.mark.parametrize("reads", ["own goal", "own watch", "outputs"])
def test_what_reads_the_size_of_probabilities_gets_probabilities(reads):
    model = Functional(lambda z: z.softmax(1))
    mean = CallableProperty(lambda predict: predict(X)[:, 1].mean(), 0.3, "mean chance")
    if reads == "own goal":
        found = solve_repair(model, mean, weights=["net.2.bias"], method="one_shot")
        assert found.report.measure().before == pytest.approx(float(model(X)[:, 1].detach().mean()), abs=1e-6)
    else:
        from repairopt import Specification

        keep = [KeepOutputs(X[:5], 0.9)] if reads == "outputs" else []
        watch = [mean] if reads == "own watch" else []
        spec = Specification(ErrorRate(X, 1 - Y, target=0.6), keep, watch=watch)
        found = solve_repair(model, spec, weights=["net.2.bias"], method="one_shot")
    assert any("taken as they are" in note for note in found.report.notes)


ONE = nn.Linear(8, 1)
ONE.load_state_dict({"weight": NET[2].weight[1:] - NET[2].weight[:1], "bias": NET[2].bias[1:] - NET[2].bias[:1]})
ONE_LOGIT = nn.Sequential(NET[0], NET[1], ONE)


@pytest.mark.parametrize(
    ("end", "word"),
    [
        ([], "one logit"),
        ([nn.Flatten(0)], "one logit"),
        ([nn.Sigmoid()], "one probability"),
        ([nn.Sigmoid(), nn.Flatten(0)], "one probability"),
    ],
)
def test_one_output_is_read_as_stated_and_refused_where_nothing_is(end, word):
    model = nn.Sequential(ONE_LOGIT, *end)
    goal = ErrorRate(X, Y, target=0.01)
    with pytest.raises(ModelError, match=r"one logit.*one probability.*regression"):
        solve_repair(model, goal, **SMALL)
    with pytest.raises(ModelError, match="one logit"):
        solve_repair(model, GroupGap.observed(X, sensitive_features=Y.numpy(), favorable=1, target=0.1), **SMALL)
    found = solve_repair(Classifier(model, outputs=word), goal, weights=["0.2.weight", "0.2.bias"], method="one_shot")
    wrong = float(((NET(X).argmax(1)) != Y).float().mean())
    assert found.report.measure().before == pytest.approx(wrong, abs=1e-6)


READ = [
    (ONE_LOGIT, "one logit"),
    (nn.Sequential(ONE_LOGIT, nn.Flatten(0)), "one logit"),
    (nn.Sequential(ONE_LOGIT, nn.Sigmoid()), "one probability"),
    (nn.Sequential(NET, nn.Softmax(1)), "probabilities"),
    (nn.Sequential(NET, nn.Sigmoid()), "several probabilities"),
]


@pytest.mark.parametrize(("model", "word"), READ)
def test_layers_and_units_are_seen_however_outputs_are_read(model, word):
    read = Classifier(model, outputs=word)
    graph = LayerGraph(model, forward_fn=read.run, example=X)
    assert [layer.kind for layer in graph.layers] == ["linear", "linear"]
    assert graph.is_traceable, "the trace computes what a plain run computes"
    if word != "several probabilities":
        found = solve_repair(read, ErrorRate(X[:6], 1 - Y[:6], target=0.5), method="birdnn_ft", data=(X, Y))
        assert found.report.measure().after <= found.report.measure().before


def test_one_logit_has_a_certified_radius_and_regions_that_are_proved():
    read, at = Classifier(ONE_LOGIT, outputs="one logit"), X[:3]
    answers = (ONE_LOGIT(at).flatten() > 0).long()
    radius = CertifiedRadius(at, answers, target=1e6, lower=-4, upper=4)
    own, twin = (solve_repair(one, radius).report.measure().before for one in (read, NET))
    assert own == pytest.approx(twin, rel=1e-3)
    region = Region.label(at[0], 0.01, 1 - int(answers[0]), 2, lower=-4, upper=4)
    found = solve_repair(read, region, [KeepLabels(at[1:], answers[1:])], settings=Settings(time_limit=20))
    assert found.report.verdict is Verdict.REPAIRED
    assert int(found.model(at[:1]) > 0) == 1 - int(answers[0])


REGRESSIONS = {
    "(N, 1)": (lambda: nn.Linear(4, 1), lambda model: model),
    "(N,)": (lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), lambda m: Classifier(m, outputs="regression")),
    "two stated": (lambda: nn.Linear(4, 2), lambda model: Classifier(model, outputs="regression")),
    "far apart": (lambda: nn.Sequential(nn.Linear(4, 2), Shift()), lambda model: model),
    "dict": (lambda: Wrapped("dict"), lambda m: Classifier(m, lambda model, x: model(x)["value"], "regression")),
}


class Shift(nn.Module):
    def forward(self, x):
        return x + torch.tensor([0.0, 50.0])


class Wrapped(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = nn.Linear(4, 1), kind

    def forward(self, x):
        value = self.net(x)
        kinds = {"dict": {"value": value, "aux": x}, "tuple": (value, x), "list": [value], "text": "no tensor"}
        return kinds[self.kind]


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regression_that_meets_its_target_is_repaired(name):
    make, adapt = REGRESSIONS[name]
    torch.manual_seed(0)
    model = make()
    half = X[:, 3] > 0
    gap = CallableProperty(lambda p: (p(X)[half, 0].mean() - p(X)[~half, 0].mean()).abs(), 0.05, "gap")
    found = solve_repair(adapt(model), gap, weights="all", method="one_shot")
    assert found.report.measure().before > 0.05 >= found.report.measure().after
    assert found.report.verdict is Verdict.REPAIRED, str(found.report)


@pytest.mark.parametrize(
    ("kind", "words"), [("dict", "'value'"), ("tuple", r"\[0\]"), ("list", r"\[0\]"), ("text", "str")]
)
def test_structures_are_refused_with_the_way_to_read_them(kind, words):
    with pytest.raises(ModelError, match=f"its call returned {'' if kind == 'text' else kind}.*{words}"):
        solve_repair(Wrapped(kind), CallableProperty(lambda predict: predict(X).mean(), 0.0), weights="all")


def test_independent_sigmoids_are_named():
    model = Functional(torch.sigmoid)
    found = solve_repair(model, ErrorRate(X, 1 - Y, target=0.6), weights=["net.2.bias"], method="one_shot")
    assert any("sigmoid for each label" in note for note in found.report.notes)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2).double()

    def forward(self, x):
        return self.b(torch.relu(self.a(x.float())).double())


@pytest.mark.parametrize("weights", ["last", "all", ["a.weight"]])
def test_mixed_precision_is_refused_or_right(weights):
    with pytest.raises(ModelError, match="float32 and float64"):
        solve_repair(Mixed(), ErrorRate(X, Y, target=0.1), weights=weights)


class Cast(nn.Module):
    """What is done to the outputs of a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


@pytest.mark.parametrize("outside", [lambda z: z.double(), lambda z: z.half()])
@pytest.mark.parametrize("method", ["one_shot", "sequential", "sqp"])
def test_outputs_of_another_precision_than_the_weights_are_repaired(outside, method):
    model = nn.Sequential(*NET, Cast(outside)).eval()
    found = solve_repair(model, ErrorRate(X, 1 - Y, target=0.8), weights="last", method=method)
    assert found.report.verification.goal_after <= found.report.verification.goal_before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
def test_modules_that_hide_their_layers_say_what_to_pass():
    goal = ErrorRate(X, Y, target=0.1)
    with pytest.raises(ModelError, match="compiled by torch.compile, .* Pass model._orig_mod"):
        solve_repair(torch.compile(NET, backend="eager"), goal)
    with pytest.raises(ModelError, match="scripted or traced by torch.jit"):
        solve_repair(torch.jit.trace(NET, X[:2]), goal)
    with pytest.raises(ModelError, match="its outputs are sparse"):
        solve_repair(nn.Sequential(NET, Cast(lambda z: z.to_sparse())), goal, weights="last")
    exported = torch.export.export(NET, (X,))
    with pytest.raises(ModelError, match=r"an ExportedProgram\. Pass its module\(\)"):
        solve_repair(exported, goal)
    with pytest.raises(ModelError, match=r"Guard failed.*Export it with a dynamic first dimension"):
        solve_repair(exported.module(), goal)


def two_classes(count=40):
    torch.manual_seed(1)
    x = torch.randn(count, 3)
    return x, (x[:, 0] > 0).long()


def hidden(outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, outputs))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = hidden()

    def forward(self, x):
        return {"logits": self.inside(x), "features": x}


ANSWERS = {
    "softmax": (lambda: nn.Sequential(hidden(), nn.Softmax(1)), lambda out: out.argmax(1)),
    "one logit": (lambda: Classifier(hidden(1), outputs="one logit"), lambda out: (out[:, 0] > 0).long()),
    "one probability": (
        lambda: Classifier(nn.Sequential(hidden(1), nn.Sigmoid()), outputs="one probability"),
        lambda out: (out[:, 0] > 0.5).long(),
    ),
    "named": (lambda: Classifier(Named(), lambda m, x: m(x)["logits"]), lambda out: out["logits"].argmax(1)),
}


@pytest.mark.parametrize("weights", ["last", "*0.weight"])
@pytest.mark.parametrize("name", ANSWERS)
def test_prdnn_repairs_networks_whatever_their_outputs_mean(name, weights, tmp_path):
    make, answers = ANSWERS[name]
    (x, y), model = two_classes(), make()
    asked = {"method": "prdnn", "weights": weights}
    if name == "named" and weights != "last":  # what a decoupled network gives is no dict
        with pytest.raises(SpecificationError, match="Put its forward_fn into a module"):
            solve_repair(model, ErrorRate(x, y, target=0.0), **asked)
        return
    repair = solve_repair(model, ErrorRate(x, y, target=0.0), **asked)
    assert repair.report.verdict is Verdict.REPAIRED
    assert answers(repair.model(x)).tolist() == y.tolist()
    if name == "softmax":
        assert torch.allclose(repair.model(x).sum(1), torch.ones(len(x)))
    repair.as_patch(model).save(tmp_path / "patch.safetensors")
    plain = model.model if isinstance(model, Classifier) else model
    again = load_patch(tmp_path / "patch.safetensors").apply(plain)
    assert answers(again(x)).tolist() == y.tolist()


@pytest.mark.parametrize("layer", ["last", "intermediate"])
def test_nnrepair_finds_behind_a_softmax_what_it_finds_for_logits(layer):
    x, y = two_classes()
    plain, behind = hidden(), nn.Sequential(hidden(), nn.Softmax(1))
    goal, method = ErrorRate(x, y, target=0.0), NNRepair(layer=layer)
    first, second = (solve_repair(model, goal, method=method) for model in (plain, behind))
    assert first.report.verification.goal_after == second.report.verification.goal_after
    assert torch.allclose(torch.softmax(first.model(x), 1), second.model(x), atol=1e-5)


def test_a_network_of_one_number_has_no_row_for_each_class():
    x, y = two_classes()
    with pytest.raises(SpecificationError, match="one number for two classes"):
        solve_repair(Classifier(hidden(1), outputs="one logit"), ErrorRate(x, y), method="nnrepair")


def test_bounds_say_that_a_softmax_may_be_left_out():
    region = Region([0.2, -0.1, -0.1], [0.3, 0.1, 0.1], [[-1.0, 1.0]])
    with pytest.raises(UnsupportedError, match="give the network without it"):
        solve_repair(nn.Sequential(hidden(), nn.Softmax(1)), region)


@pytest.mark.parametrize("target", [0.19, 0.1, 0.0])
def test_a_table_of_answers_is_no_softmax(target):
    """Its outputs are 0 and 1 on all rows, whose logarithms have no slope."""
    table = nn.Linear(20, 2, bias=False)
    table.weight.data = torch.tensor([[0.0] * 4 + [1.0] * 16, [1.0] * 4 + [0.0] * 16])
    found = solve_repair(table, ErrorRate(torch.eye(20), torch.zeros(20, dtype=torch.long), target=target))
    assert found.report.verdict is Verdict.REPAIRED
    assert found.report.verification.goal_after <= target


def test_a_softmax_that_is_sure_of_every_row_is_to_be_left_out():
    torch.manual_seed(0)
    sure = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    sure[0].weight.data *= 1e6
    x = torch.randn(20, 4)
    found = solve_repair(sure, ErrorRate(x, (sure(x).argmax(1) + 1) % 3))
    assert "Give the network without it." in " ".join(found.report.notes)
