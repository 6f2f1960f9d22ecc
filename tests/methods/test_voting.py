"""Votes of the original network and a repaired one, and the reject option: what the table of systems asks of each."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from digits import learned, proposal
from torch import nn

from repairopt import ErrorRate, GroupGap, Settings, SpecificationError, methods, solve_repair
from repairopt.compare import loan_decisions
from repairopt.localize import NewWeights
from repairopt.methods import Outcome
from repairopt.methods.material import material_of
from repairopt.patches import export_onnx, load_patch
from repairopt.program import Status


@dataclass(frozen=True)
class Retrained:
    """Forty steps on the repair rows alone: fixes much, breaks some."""

    uses: ClassVar[frozenset[str]] = frozenset()

    def run(self, task):
        model = copy.deepcopy(task.engine.model)
        x, y = task.goal.inputs, task.goal.labels
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        weights = {name: value.detach() for name, value in model.state_dict().items()}
        candidate = NewWeights(weights)
        task.judge.keep(candidate)
        return Outcome(candidate, Status.FEASIBLE)


VOTES = {
    "vote": methods.Vote(of=Retrained(), shares=(0.5,)),
    "hard_voting": methods.HardVoting(of=Retrained()),
    "perturbation_alignment": methods.PerturbationAlignment(of=Retrained()),
    "dropout_alignment": methods.DropoutAlignment(of=Retrained()),
    "temperature_alignment": methods.TemperatureAlignment(of=Retrained()),
}


@pytest.fixture(scope="module")
def both(digits):
    """The original, the repaired one, and for each vote the network that comes of it."""
    wrong = digits.wrong(digits.model, digits.repair)
    some = torch.cat([wrong.nonzero().flatten(), (~wrong).nonzero().flatten()[:20]])
    goal = ErrorRate(digits.repair[0][some], digits.repair[1][some])
    every = {"": Retrained(), **VOTES}
    made = {name: proposal(vote, digits.model, goal, data=digits.training) for name, vote in every.items()}
    return digits.model, made[""][2], {name: one[2] for name, one in made.items()}, goal


def _chances(models, x):
    with torch.no_grad():
        return [torch.softmax(model(x), 1) for model in models]


def test_SV_is_the_argmax_of_the_mean(digits, both):
    x = digits.test[0]
    first, second, mixed = _chances([both[0], both[1], both[2]["vote"]], x)
    torch.testing.assert_close(mixed, (first + second) / 2, atol=1e-6, rtol=1e-5)


def test_HV_a_tie_goes_to_the_more_confident(digits, both):
    x = digits.test[0]
    first, second, found = _chances([both[0], both[1], both[2]["hard_voting"]], x)
    wanted = torch.where(second.amax(1) > first.amax(1), second.argmax(1), first.argmax(1))
    differ = first.argmax(1) != second.argmax(1)
    assert differ.any()
    assert torch.equal(found.argmax(1), wanted)
    assert torch.equal(found.argmax(1)[~differ], first.argmax(1)[~differ])


def test_UP_the_less_uncertain_network_decides(digits, both):
    x, vote = digits.test[0], both[2]["perturbation_alignment"]
    assert vote.noise.shape == (10, 64)
    width = digits.training[0].amax(0) - digits.training[0].amin(0)
    assert float((vote.noise.std(0) / width.clamp(min=1e-9))[width > 0].mean()) == pytest.approx(0.02, rel=0.15)
    doubt = []
    for model in both[:2]:
        mean = torch.stack([_chances([model], x + one)[0] for one in vote.noise]).mean(0)
        doubt.append(-(mean * mean.log()).sum(1))
    first, second, found = _chances([both[0], both[1], vote], x)
    torch.testing.assert_close(found, torch.where((doubt[1] < doubt[0])[:, None], second, first))


def test_UD_the_less_uncertain_network_decides(digits, both):
    x, vote = digits.test[0], both[2]["dropout_alignment"]
    assert vote.places == ("2",), "the input of each layer but the first"
    mask = vote.masked[0][2].masks
    doubt = []
    for model in both[:2]:
        with torch.no_grad():
            hidden = torch.relu(model[0](x))
            mean = torch.stack([torch.softmax(model[2](hidden * one), 1) for one in mask]).mean(0)
        doubt.append(-(mean * mean.log()).sum(1))
    first, second, found = _chances([both[0], both[1], vote], x)
    torch.testing.assert_close(found, torch.where((doubt[1] < doubt[0])[:, None], second, first))
    assert float((mask == 0).double().mean()) == pytest.approx(0.1, abs=0.06)


def test_UD_takes_the_dropout_layers_of_the_network():
    torch.manual_seed(0)
    own = learned(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 10)), steps=10)
    vote = methods.DropoutAlignment(of=Retrained(), copies=20)
    _, _, found = proposal(vote, own.model, ErrorRate(*own.repair), data=own.training)
    assert found.places == ("2",)
    assert float((found.masked[0][2].masks == 0).double().mean()) == pytest.approx(0.4, abs=0.1)


def _calibration(chance, labels):
    sure, right = chance.max(1).values, chance.argmax(1) == labels
    bins = (sure * 10).long().clamp(max=9)
    parts = [(bins == k) for k in range(10) if (bins == k).any()]
    return sum(float(p.double().mean()) * abs(float(sure[p].mean()) - float(right[p].double().mean())) for p in parts)


def test_US_the_calibration_error_falls(digits, both):
    vote, (x, y) = both[2]["temperature_alignment"], digits.test
    scaled = [torch.softmax(torch.log(c) / t, 1) for c, t in zip(_chances(both[:2], x), vote.temperatures, strict=True)]
    torch.testing.assert_close(_chances([vote], x)[0], (scaled[0] + scaled[1]) / 2, atol=1e-5, rtol=1e-4)
    sharp = nn.Sequential(both[0], _Times(6.0))
    vote = methods.TemperatureAlignment(of=Retrained(), validation=digits.repair)
    _, _, found = proposal(vote, sharp, both[3], data=digits.training)
    (before,) = _chances([sharp], x)
    after = torch.softmax(sharp(x) / found.temperatures[0], 1).detach()
    assert found.temperatures[0] > 1.5
    assert _calibration(after, y) < _calibration(before, y)


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize("name", VOTES)
def test_a_vote_breaks_less_and_is_a_file(name, digits, both, fingerprint, tmp_path):
    model, repaired, found, goal = both
    right = ~digits.wrong(model, digits.test)
    broken = [int((right & digits.wrong(one, digits.test)).sum()) for one in (repaired, found[name])]
    assert broken[1] < broken[0]
    before = fingerprint(model)
    runs = [
        solve_repair(model, goal, method=VOTES[name], data=digits.training, settings=Settings(seed=1)) for _ in "ab"
    ]
    assert fingerprint(model) == before
    assert runs[0].report.verdict in ("repaired", "improved")
    assert torch.equal(runs[0].model(digits.test[0]), runs[1].model(digits.test[0]))
    halves = torch.cat([runs[0].model(part) for part in digits.test[0].split(100)])
    torch.testing.assert_close(halves, runs[0].model(digits.test[0]), msg="an answer depends on its own row alone")
    patch = runs[0].as_patch(model)
    patch.save(tmp_path / "vote.safetensors")
    again = load_patch(tmp_path / "vote.safetensors")
    assert torch.equal(again.apply(model)(digits.test[0]), runs[0].model(digits.test[0]))
    assert torch.equal(again.revert(runs[0].model)(digits.test[0]), model(digits.test[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", VOTES)
def test_a_vote_is_exported(name, digits, both, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    assert export_onnx(both[2][name], digits.test[0][:8], tmp_path / "vote.onnx").largest_difference < 1e-3


def test_ROC_meets_its_bound_with_the_best_balanced_accuracy():
    model, x, y = loan_decisions(2000)
    gap = GroupGap.observed(x, column=5, favorable=1, target=0.05)
    task, outcome, found = proposal(methods.RejectOption(), model, gap, data=(x[:1500], y[:1500]))
    settings = outcome.candidate.settings
    rows, labels = (part for part in _training(task))
    chance, poor = _chances([model], rows)[0][:, 1].double().numpy(), rows[:, 5].numpy() == 0
    wanted, best = labels.numpy() == 1, (-1.0, None)
    for threshold in np.linspace(0.01, 0.99, 100)[::9]:
        for margin in np.linspace(0, min(threshold, 1 - threshold), 50)[::7]:
            given = np.where(np.abs(chance - threshold) <= margin, poor, chance > threshold)
            if abs(given[poor].mean() - given[~poor].mean()) <= 0.05:
                best = max(best, ((given[wanted].mean() + (~given[~wanted]).mean()) / 2, (threshold, margin)))
    decided = found(rows).argmax(1).numpy() == 1
    assert abs(decided[poor].mean() - decided[~poor].mean()) <= 0.05
    assert (decided[wanted].mean() + (~decided[~wanted]).mean()) / 2 >= best[0]
    assert set(settings) >= {"threshold", "margin", "favorable"}
    with pytest.raises(SpecificationError, match="favorable"):
        proposal(methods.RejectOption(), model, ErrorRate(x, y), data=(x, y))


def _training(task):
    return material_of(task, failing=False).training


@pytest.mark.parametrize("metric", ["statistical parity", "average odds", "equal opportunity"])
def test_ROC_decides_as_aif360(metric):
    """The same grid, the same bound: AIF360 decides the same rows, or others of the same balanced accuracy."""
    datasets = pytest.importorskip("aif360.datasets", reason="the extra bench is not installed")
    pd = pytest.importorskip("pandas")
    from aif360.algorithms.postprocessing import RejectOptionClassification

    model, x, y = loan_decisions(600)
    gap = GroupGap.observed(x, column=5, favorable=1, target=0.05)
    method = methods.RejectOption(metric=metric, thresholds=12, margins=6)
    task, outcome, found = proposal(method, model, gap, data=(x, y))
    rows, labels = (part.numpy() for part in _training(task))
    (chances,) = _chances([model], torch.from_numpy(rows))
    table = pd.DataFrame({"group": rows[:, 5], "label": labels}, dtype=float)
    true = datasets.BinaryLabelDataset(df=table, label_names=["label"], protected_attribute_names=["group"])
    answered = true.copy()
    answered.scores = chances[:, 1:].double().numpy()
    answered.labels = (answered.scores > 0.5).astype(float)
    settings = {"num_class_thresh": 12, "num_ROC_margin": 6, "metric_name": f"{metric.capitalize()} difference"}
    theirs = RejectOptionClassification([{"group": 0}], [{"group": 1}], **settings).fit(true, answered)
    decided = theirs.predict(answered).labels[:, 0]
    own = found(torch.from_numpy(rows)).argmax(1).numpy()
    balanced = [((one[labels == 1] == 1).mean() + (one[labels == 0] == 0).mean()) / 2 for one in (own, decided)]
    assert balanced[0] == pytest.approx(balanced[1], abs=1e-9)
    assert (own == decided).mean() > 0.99


def test_ROC_is_a_file(tmp_path, fingerprint):
    model, x, y = loan_decisions(1000)
    gap = GroupGap.observed(x, column=5, favorable=1, target=0.06)
    before = fingerprint(model)
    found = solve_repair(model, gap, method="reject_option", data=(x, y))
    assert fingerprint(model) == before
    assert found.report.verdict == "repaired"
    found.as_patch(model).save(tmp_path / "option.safetensors")
    assert torch.equal(load_patch(tmp_path / "option.safetensors").apply(model)(x), found.model(x))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("PerturbationAlignment", {"copies": 0}),
        ("PerturbationAlignment", {"sigma": 0.0}),
        ("DropoutAlignment", {"rate": 1.0}),
        ("TemperatureAlignment", {"combine": "sum"}),
        ("RejectOption", {"metric": "luck"}),
        ("RejectOption", {"bound": 2.0}),
    ],
)
def test_wrong_settings_are_refused(name, settings):
    with pytest.raises(SpecificationError, match=next(iter(settings))):
        getattr(methods, name)(**settings)
