"""RepairedClassifier is a scikit-learn classifier by scikit-learn's own checks, and repairs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from biased_task import task
from torch import nn

from repairopt import Settings, SpecificationError, Verdict
from repairopt.errors import MissingExtraError

sklearn = pytest.importorskip("sklearn", reason="the extra 'sklearn'")

from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from repairopt import Classifier as Adapter  # noqa: E402
from repairopt.interfaces import sklearn_classifier  # noqa: E402
from repairopt.interfaces.sklearn_classifier import RepairedClassifier  # noqa: E402


def train(inputs: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None = None) -> nn.Module:
    """A small network on scaled inputs."""
    share = torch.ones(len(inputs), dtype=torch.float64) if sample_weight is None else sample_weight.double()
    share = (share / share.sum())[:, None]
    middle = (share * inputs).sum(0).float()
    spread = (share * (inputs - middle) ** 2).sum(0).sqrt().clamp(min=1e-3).float()
    classes = max(2, int(labels.max()) + 1)
    model = nn.Sequential(nn.Linear(inputs.shape[1], 16), nn.ReLU(), nn.Linear(16, classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(model((inputs - middle) / spread), labels, reduction="none")
        (losses * share[:, 0]).sum().backward()
        optimizer.step()
    with torch.no_grad():  # the scaling goes into the first layer
        model[0].weight.div_(spread)
        model[0].bias.sub_(model[0].weight @ middle)
    return model.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_it_passes_the_estimator_checks_of_scikit_learn():
    options = {"weights": "last", "method": "sequential"}
    estimator = RepairedClassifier(train, target=0.5, tolerance=1.0, options=options)
    close = "weights and repeated rows are compared to 1e-7; training in float32 differs by more"
    known = {"check_sample_weight_equivalence_on_dense_data": close}
    results = check_estimator(estimator, on_fail=None, expected_failed_checks=known)
    failed = {one["check_name"]: str(one["exception"])[:300] for one in results if one["status"] == "failed"}
    assert not failed
    assert sum(one["status"] == "passed" for one in results) > 40


def test_a_gap_is_closed_with_fairlearns_words():
    toy = task(count=300, dtype=torch.float32)
    groups = np.where(toy.inputs[:, 1] == 1, "m", "f")
    y = np.where(toy.labels == 1, "yes", "no")
    model = RepairedClassifier(
        toy.model, "demographic_parity", target=0.1, favorable="yes", tolerance=0.3, options={"weights": "last"}
    )
    assert model.fit(toy.inputs.numpy(), y, sensitive_features=groups) is model
    assert model.repair_.report.verdict is Verdict.REPAIRED
    answers = model.predict(toy.inputs.numpy())
    rates = [(answers[groups == group] == "yes").mean() for group in ("f", "m")]
    assert abs(rates[0] - rates[1]) <= 0.1 + 1e-6
    assert model.original_ is toy.model
    assert list(model.classes_) == ["no", "yes"]
    np.testing.assert_allclose(model.predict_proba(toy.inputs.numpy()).sum(axis=1), 1.0)


@pytest.mark.parametrize(("goal", "given"), [("equalized_odds", (0, 1)), ("equal_opportunity", (1,))])
def test_odds_compare_within_labels(goal, given):
    toy = task(count=200, dtype=torch.float32)
    model = RepairedClassifier(toy.model, goal, target=0.2, tolerance=0.3, options={"method": "sequential"})
    model.fit(toy.inputs.numpy(), toy.labels.numpy(), sensitive_features=toy.inputs[:, 1].numpy())
    assert model.repair_.report.subjects.specification.goal.given == given
    assert model.repair_.report.measure().after < model.repair_.report.measure().before


def test_it_goes_into_pipelines_searches_and_files():
    toy = task(count=150, dtype=torch.float32)
    x, y = toy.inputs.numpy(), toy.labels.numpy()
    options = {"weights": "last", "method": "sequential"}
    pipeline = make_pipeline(StandardScaler(), RepairedClassifier(train, target=0.3, options=options))
    assert cross_val_score(pipeline, x, y, cv=2).min() > 0.7
    search = GridSearchCV(RepairedClassifier(train, options=options), {"target": [0.5, 0.4]}, cv=2).fit(x, y)
    assert search.best_params_["target"] in (0.5, 0.4)
    fitted = search.best_estimator_
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(x), fitted.predict(x))
    assert clone(fitted).get_params()["model"] is train


def test_misuse_is_explained():
    toy = task(count=30, dtype=torch.float32)
    x, y = toy.inputs.numpy(), toy.labels.numpy()
    with pytest.raises(SpecificationError, match="model=None; expected a trained torch module"):
        RepairedClassifier().fit(x, y)
    with pytest.raises(SpecificationError, match="returned a int; expected a torch module"):
        RepairedClassifier(lambda inputs, labels: 3).fit(x, y)
    with pytest.raises(SpecificationError, match="goal='parity'; choose error_rate, demographic_parity"):
        RepairedClassifier(toy.model, "parity").fit(x, y)
    with pytest.raises(SpecificationError, match="compares groups. Pass sensitive_features="):
        RepairedClassifier(toy.model, "equalized_odds").fit(x, y)
    with pytest.raises(SpecificationError, match="label 1 is none of the classes 0, 7"):
        RepairedClassifier(toy.model, classes=[0, 7]).fit(x, y)
    with pytest.raises(sklearn.exceptions.NotFittedError):
        RepairedClassifier(toy.model).predict(x)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("repairopt.errors.find_spec", lambda name: None)
    sklearn_classifier._classifier.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install repairopt\[sklearn\]"):
        _ = sklearn_classifier.RepairedClassifier
    sklearn_classifier._classifier.cache_clear()
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = sklearn_classifier.Nothing


@pytest.mark.parametrize("end", ["logits", "softmax", "one logit", "one probability"])
def test_probabilities_are_those_of_the_network_whatever_its_outputs(end):
    toy = task(count=200, dtype=torch.float32)
    last = nn.Linear(2, 1)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[-1.0, 1.0]]))
        last.bias.zero_()
    ends = {"logits": [], "softmax": [nn.Softmax(1)], "one logit": [last], "one probability": [last, nn.Sigmoid()]}
    module = nn.Sequential(toy.model, *ends[end])
    model = Adapter(module, outputs=end) if end.startswith("one") else module
    fitted = RepairedClassifier(model, target=0.9, tolerance=1.0, options={"weights": "all", "method": "one_shot"})
    fitted.fit(toy.inputs.numpy(), toy.labels.numpy())
    expected = toy.model(toy.inputs).softmax(1).detach().numpy()
    assert np.allclose(fitted.predict_proba(toy.inputs.numpy()), expected, atol=1e-5)


def test_ctrl_c_ends_fit_and_what_was_found_is_kept():
    def progress(entry):
        raise KeyboardInterrupt

    toy = task()
    fair = RepairedClassifier(toy.model, options={"weights": "last", "settings": Settings(progress=progress)})
    with pytest.raises(KeyboardInterrupt):
        fair.fit(toy.inputs.numpy(), toy.labels.numpy())
    assert fair.repair_.report.stopped == "interrupted"
