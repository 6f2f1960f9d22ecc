"""A column of weights in a spec file, and ``sample_weight`` of the scikit-learn classifier."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from biased_task import task
from small_spec import SPEC, write_spec

from repairopt import Verdict
from repairopt.errors import SpecFileError, SpecificationError
from repairopt.interfaces.commandline.runs.run_folder import PATCH
from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec
from repairopt.interfaces.commandline.runs.verify_run import verify_patch
from repairopt.interfaces.specfile.measure import measure_claims
from repairopt.interfaces.specfile.opened import open_spec

WEIGHTED = SPEC.replace("sensitive_features:", "weight: stands_for\nsensitive_features:").replace(
    "watch: [", 'watch: [accuracy, error_rate, gap(group, favorable="yes", kind=odds), '
)


def write(folder, weights, text=WEIGHTED):
    """The small spec with a column of weights."""
    spec = write_spec(folder, text)
    rows = pd.read_csv(folder / "rows.csv")
    rows["stands_for"] = weights(rows)
    rows.to_csv(folder / "rows.csv", index=False)
    return spec


def test_a_spec_measures_by_the_weight_of_each_row(tmp_path):
    spec = open_spec(write(tmp_path, lambda rows: 1 + 3 * (rows.decision == "yes")))
    rows = pd.read_csv(tmp_path / "rows.csv")
    inputs = torch.tensor(np.c_[rows.merit, rows.group == "men"], dtype=torch.float32)
    yes = spec.model(inputs).argmax(1).numpy() == 1
    found = measure_claims(spec)
    claims = {(claim.name, claim.data): claim.value for claim in found}
    assert sum("counted by weight" in claim.basis for claim in found) == len(found) - 2
    for name, start in (("repair", 0), ("held_out", 400)):
        part = rows[start : start + 400]
        said, weights = yes[start : start + 400], part.stands_for
        rates = [np.average(said[part.group == one], weights=weights[part.group == one]) for one in ("women", "men")]
        right = np.average(said == (part.decision == "yes"), weights=weights)
        assert claims['gap(group, favorable="yes", kind=parity)', name] == pytest.approx(
            abs(rates[0] - rates[1]), abs=1e-9
        )
        assert claims["accuracy", name] == pytest.approx(right, abs=1e-9)


def test_a_spec_with_weights_is_solved_and_verified(tmp_path):
    spec = write(tmp_path, lambda rows: 0.5 + rows.merit.abs())
    solve_spec(spec, tmp_path / "run", Options(report=False))
    assert verify_patch(spec, tmp_path / "run" / PATCH).exit_code == 0


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (lambda rows: np.where(rows.index == 3, np.nan, 1.0), "weight 'stands_for' of .* is missing in 1 of 400 rows"),
        (lambda rows: np.where(rows.index == 3, "NA", "1"), "is missing in 1 of 400 rows, first in row 3"),
        (lambda rows: np.where(rows.index == 3, -2.0, 1.0), "sample_weight is -2 in row 3"),
        (lambda rows: np.where(rows.index == 3, "much", "1"), "holds 'much'; expected numbers"),
        (lambda rows: np.zeros(len(rows)), "is a weight of zero in every row"),
        (lambda rows: np.where(rows.index == 3, np.inf, 1.0), "sample_weight is inf in row 3"),
    ],
)
def test_odd_weights_of_a_file_point_at_the_spec(tmp_path, weights, said):
    with pytest.raises(SpecFileError, match=said):
        open_spec(write(tmp_path, weights))


def test_an_unknown_column_of_weights_is_named(tmp_path):
    with pytest.raises(SpecFileError, match=r"no column 'stand_for'; .*stands_for"):
        open_spec(write(tmp_path, lambda rows: 1.0, WEIGHTED.replace("stands_for", "stand_for")))


def test_what_takes_no_weights_is_refused(tmp_path):
    text = WEIGHTED.replace("watch: [", "watch: [attack_error(radius=0.01), ")
    with pytest.raises(SpecFileError, match="AdversarialError takes no sample weights"):
        open_spec(write(tmp_path, lambda rows: 1.0, text))


def test_the_classifier_repairs_by_weight():
    pytest.importorskip("sklearn")
    from repairopt.interfaces.sklearn_classifier import RepairedClassifier

    toy = task(count=300, dtype=torch.float32)
    x, y, groups = toy.inputs.numpy(), toy.labels.numpy(), toy.inputs[:, 1].numpy()
    weights = np.where(y == 1, 4.0, 1.0)
    weights[:30] = 0.0
    model = RepairedClassifier(toy.model, "demographic_parity", target=0.1, tolerance=0.3, options={"weights": "last"})
    model.fit(x, y, sensitive_features=groups, sample_weight=weights)
    assert model.repair_.report.verdict is Verdict.REPAIRED
    rates = [np.average(model.predict(x)[groups == one] == 1, weights=weights[groups == one]) for one in (0, 1)]
    assert abs(rates[0] - rates[1]) <= 0.1 + 1e-9
    assert len(model.repair_.report.subjects.specification.goal.sample_weight) == 270
    times = np.random.default_rng(0).integers(1, 4, 300)
    repeated = [np.repeat(part, times, axis=0) for part in (x, y)]
    options = {"method": "sequential", "weights": "last"}
    both = [RepairedClassifier(toy.model, target=0.02, tolerance=1.0, options=options) for _ in range(2)]
    both[0].fit(x, y, sample_weight=times)
    both[1].fit(*repeated)
    np.testing.assert_allclose(both[0].predict_proba(x), both[1].predict_proba(x), atol=1e-3)
    with pytest.raises(SpecificationError, match="trains without weights"):
        RepairedClassifier(lambda inputs, labels: toy.model).fit(x, y, sample_weight=weights)
    with pytest.raises(SpecificationError, match="different indexes"):
        model.fit(pd.DataFrame(x), y, groups, sample_weight=pd.Series(weights, index=np.arange(300)[::-1]))
