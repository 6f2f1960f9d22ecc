"""Goals and constraints that are measured by hand, on a module or a Classifier, as in ``goal.value(network)``."""

import pytest
import torch
from torch import nn

from repairopt import (
    AccuracyDrop,
    CalibrationError,
    ErrorRate,
    GroupGap,
    KeepLabels,
    KeepOutputs,
    ModelError,
    OddsGap,
    OutputBounds,
    WorstGroup,
)
from repairopt.network import Classifier, Engine
from repairopt.specify import (
    AdversarialError,
    AttackSuccess,
    BrokenRows,
    CertifiedRadius,
    ConfusionRate,
    ExpectedCost,
    FixLabels,
    FlipRate,
    KeepLabelSets,
    KeepLowest,
    LabelSetErrors,
    MissRate,
    UnfixedRate,
    anchor,
    margins_at,
)

torch.manual_seed(0)
ROWS = torch.rand(40, 3)
LABELS, GROUPS = (ROWS[:, 0] > 0.5).long(), torch.arange(40) % 2
SETS = torch.stack([LABELS, 1 - LABELS], 1)
BY_GROUP = {"sensitive_features": GROUPS}
GOALS = [
    lambda x: ErrorRate(x, LABELS),
    lambda x: MissRate(x, LABELS),
    lambda x: ConfusionRate(x, LABELS, label=1, answer=0),
    lambda x: ExpectedCost(x, LABELS, costs=[[0, 1], [2, 0]]),
    lambda x: AccuracyDrop(x, LABELS),
    lambda x: FlipRate(x, LABELS),
    lambda x: UnfixedRate(x, LABELS),
    lambda x: LabelSetErrors(x, SETS),
    lambda x: BrokenRows(FixLabels(x, LABELS, weight=None)),
    lambda x: GroupGap.observed(x, **BY_GROUP),
    lambda x: OddsGap.observed(x, LABELS, **BY_GROUP),
    lambda x: WorstGroup.observed(x, LABELS, **BY_GROUP),
    lambda x: CalibrationError.observed(x, LABELS, **BY_GROUP),
    lambda x: AdversarialError(x, LABELS, radius=0.1),
    lambda x: AttackSuccess(x, LABELS, radius=0.1),
    lambda x: CertifiedRadius(x, LABELS, target=30.0),
]
CONSTRAINTS = [
    lambda x: KeepLabels(x, LABELS),
    lambda x: FixLabels(x, LABELS),
    lambda x: KeepOutputs(x, distance=0.1),
    lambda x: OutputBounds(x, [[1.0, -1.0]], [1.0]),
    lambda x: KeepLowest(x),
    lambda x: KeepLabelSets(x, SETS),
]


def network(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("rows", [ROWS.double(), ROWS, ROWS > 0.5], ids=["float64", "float32", "bool"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_any_precision_are_read_as_a_repair_reads_them(dtype, rows):
    model, before = network(dtype), rows.clone()
    engine = Engine(model).predict()
    for make in GOALS:
        by_hand, in_a_repair = anchor(make(rows), model), anchor(make(rows), engine)
        for way in ("value", "soft_value"):
            found, expected = getattr(by_hand, way)(model), getattr(in_a_repair, way)(engine)
            assert float(found) == pytest.approx(float(expected), abs=1e-5), (by_hand.name, way)
        if hasattr(by_hand, "interval"):
            assert by_hand.interval(model) == in_a_repair.interval(engine), by_hand.name
    for make in CONSTRAINTS:
        (expected,) = margins_at(engine, [anchor(make(rows), engine)])
        found = anchor(make(rows), model).margins(model).detach().numpy()
        assert found == pytest.approx(expected, abs=1e-5), make(rows).name
    assert torch.equal(rows, before)


def test_a_classifier_says_what_its_outputs_mean():
    torch.manual_seed(2)
    model = nn.Linear(3, 1)
    right = ((model(ROWS)[:, 0] > 0).long() == LABELS).double().mean()
    found = ErrorRate(ROWS, LABELS).value(Classifier(model, outputs="one logit"))
    assert float(found) == pytest.approx(1 - float(right))


def test_indices_stay_whole_numbers_where_a_network_reads_them():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    tokens = torch.randint(0, 5, (40, 4))
    wrong = (model(tokens).argmax(1) != LABELS).double().mean()
    assert float(ErrorRate(tokens, LABELS).value(model)) == float(wrong)


class Named(nn.Module):
    def forward(self, x):
        return {"logits": x[:, :2], "features": x}


@pytest.mark.parametrize(
    ("model", "rows", "said"),
    [
        (network(), ROWS[:, :2], r"Sequential: cannot run on inputs of shape \(40, 2\)"),
        (nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), ROWS, r"returned shape \(40,\).*'?one logit"),
        (Named(), ROWS, r"returned dict of shapes.*model\(x\)\['logits'\]"),
    ],
)
def test_what_gives_no_logits_is_refused_in_words(model, rows, said):
    with pytest.raises(ModelError, match=said):
        ErrorRate(rows, LABELS).value(model)
