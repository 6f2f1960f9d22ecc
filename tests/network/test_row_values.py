"""What belongs to rows stays with them, and missing values are counted: loaders, indexes, labels, groups."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from repairopt import ErrorRate, GroupGap, KeepLabels, OddsGap, SpecificationError, solve_repair
from repairopt.network import is_missing_word, missing_values
from repairopt.specify import GroupMetrics, make_specification

COUNT = 40
GROUP = torch.arange(COUNT) % 2
X = torch.stack([GROUP.float(), torch.linspace(-1, 1, COUNT)], 1)
Y = (X[:, 1] > 0).long()
PAIRS = TensorDataset(X, Y)
BY_GROUP = lambda x: torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1)  # noqa: E731 answers by the group alone


class Noisy(Dataset):
    """Each reading adds noise, by any generator."""

    def __init__(self, draw) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int):
        return X[row] + self.draw(), int(Y[row])


class Streamed(IterableDataset):
    """A stream with a length that it may not keep."""

    def __init__(self, rows, length: int = COUNT) -> None:
        self.rows, self.length = rows, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        return ((X[row], int(Y[row])) for row in self.rows())


def shuffled() -> list[int]:
    return random.sample(range(COUNT), COUNT)


CHOOSING = {
    "subset": lambda: DataLoader(PAIRS, sampler=SubsetRandomSampler(range(10))),
    "with replacement": lambda: DataLoader(PAIRS, sampler=RandomSampler(PAIRS, replacement=True)),
    "weighted": lambda: DataLoader(PAIRS, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT)),
    "fewer": lambda: DataLoader(PAIRS, sampler=RandomSampler(PAIRS, num_samples=5)),
    "own order": lambda: DataLoader(PAIRS, sampler=[3, 1, 2]),
    "batches": lambda: DataLoader(PAIRS, batch_sampler=[[0, 1], [2]]),
}


@pytest.mark.parametrize("make", [GroupGap.observed, OddsGap.observed])
@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"drop_last": True, "batch_size": 7},
        {"sampler": RandomSampler(PAIRS)},
        {"batch_sampler": BatchSampler(RandomSampler(PAIRS), 7, True)},
    ],
)
def test_groups_beside_a_loader_in_another_order_are_refused(make, options):
    with pytest.raises(SpecificationError, match=r"sensitive_features beside a DataLoader.*shuffle=False"):
        make(DataLoader(PAIRS, **options), sensitive_features=GROUP)
    gap = make(DataLoader(PAIRS, batch_size=7), sensitive_features=GROUP)
    assert float(gap.value(BY_GROUP)) == pytest.approx(1.0)
    assert float(make(DataLoader(PAIRS, **options), column=0).value(BY_GROUP)) == pytest.approx(
        1.0
    )  # the group comes with the rows


@pytest.mark.parametrize("name", CHOOSING)
def test_loaders_that_choose_samples_are_refused_everywhere(name):
    loader = CHOOSING[name]()
    for use in (
        lambda: ErrorRate(loader),
        lambda: KeepLabels(loader),
        lambda: GroupGap.observed(loader, 0),
        lambda: make_specification(ErrorRate(PAIRS), (), loader),
        lambda: solve_repair(torch.nn.Linear(2, 2), ErrorRate(PAIRS), data=loader),
    ):
        with pytest.raises(SpecificationError, match=r"chooses or orders samples.*Subset\(dataset, rows\)"):
            use()


@pytest.mark.parametrize(
    "data",
    [
        Noisy(lambda: torch.randn(2)),
        Noisy(lambda: np.random.default_rng().normal()),
        Noisy(random.random),
        Streamed(shuffled),
        DataLoader(Noisy(lambda: torch.rand(()))),
        DataLoader(Noisy(lambda: torch.rand(())), shuffle=True, batch_size=8),
    ],
    ids=["torch", "numpy", "random", "stream", "loader", "shuffling loader"],
)
def test_random_readings_are_refused(data):
    with pytest.raises(SpecificationError, match=r"other samples, or another order, each time"):
        ErrorRate(data)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (Streamed(lambda: range(COUNT - 3)), COUNT - 3),
        (Streamed(lambda: [*range(COUNT), 0]), COUNT + 1),
        (
            DataLoader(
                PAIRS, batch_size=4, collate_fn=lambda batch: tuple(map(torch.stack, zip(*batch[1:], strict=True)))
            ),
            30,
        ),
    ],
)
def test_samples_that_are_lost_or_doubled_are_counted(data, rows):
    with pytest.raises(SpecificationError, match=f"{COUNT} samples of the .* became {rows} rows"):
        ErrorRate(data)


def test_a_stream_in_order_is_read():
    assert torch.equal(ErrorRate(Streamed(lambda: range(COUNT))).inputs, X)
    dropping = DataLoader(Streamed(lambda: range(COUNT)), batch_size=7, drop_last=True)
    assert torch.equal(ErrorRate(dropping).labels, Y)
    whole = DataLoader(TensorDataset(X[None], Y[None]), batch_size=None)  # batches made by the dataset itself
    assert torch.equal(ErrorRate(whole).labels, Y)
    with pytest.raises(SpecificationError, match="single samples, without a batch_size"):
        ErrorRate(DataLoader(PAIRS, batch_size=None))


MISSING = {
    "None": ["a", None] * 20,
    "nan": ["a", float("nan")] * 20,
    "nan among numbers": [0.0, float("nan")] * 20,
    "NumPy": np.array(["a", np.nan] * 20, dtype=object),
    "tensor": torch.tensor([0.0, float("nan")] * 20),
    "times": np.array(["2020-01-01", "NaT"] * 20, dtype="datetime64[D]"),
}


def test_missing_values_of_every_kind_are_seen():
    pandas = pytest.importorskip("pandas")
    kinds = [*MISSING.values(), pandas.Series(["a", None] * 20), pandas.Series([1, pandas.NA] * 20, dtype="Int64")]
    kinds += [pandas.Series(pandas.Categorical(["a", None] * 20)), pandas.Series([True, None] * 20)]
    for values in kinds:
        assert missing_values(values).tolist() == [False, True] * 20
    words = ["NA", "None", "null", "n/a", "nan", "", "a"]
    assert not missing_values(words).any()
    assert [is_missing_word(word) for word in words] == [True] * 5 + [False] * 2


@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_group_is_counted_the_same_way_everywhere(kind):
    groups, said = MISSING[kind], "the group of 20 of 40 rows is missing, the first is row 1"
    for use in (
        lambda: GroupGap.observed(X, sensitive_features=groups),
        lambda: OddsGap.observed(X, Y, sensitive_features=groups),
        lambda: GroupMetrics(Y, Y, groups),
    ):
        with pytest.raises(SpecificationError, match=said):
            use()


def test_rows_that_values_leave_out_are_counted():
    groups = ["NA", "ZA", None, "US"] * 10
    gap = GroupGap.observed(X, sensitive_features=groups, values=["NA", "ZA"])
    assert gap.samples.names == ("NA", "ZA")
    assert gap.details(BY_GROUP)["rows left out, in no group compared"] == 20.0
    odds = OddsGap.observed(X, Y, sensitive_features=groups, values=["NA", "ZA"])
    assert odds.details(BY_GROUP)["rows left out, in no group compared"] == 20.0
    whole = GroupGap.observed(X, sensitive_features=["NA", "None"] * 20)
    assert (whole.samples.names, whole.samples.details()) == (("NA", "None"), {})


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, None] * 20, "the label of 20 of 40 rows is missing, the first is row 1"),
        ([0.0, float("nan")] * 20, "the label of 20 of 40 rows is missing"),
        (np.array([1, None] * 20, dtype=object), "the label of 20 of 40 rows is missing"),
        (Y[:, None], r"One column of class indices: pass its values, labels\[:, 0\]"),
        (Y.numpy()[:, None].tolist(), r"labels\[:, 0\]"),
        (torch.nn.functional.one_hot(Y, 2), r"One-hot labels: pass labels.argmax\(1\)"),
    ],
)
def test_missing_and_oddly_shaped_labels_are_explained(labels, said):
    for make in (ErrorRate, KeepLabels, lambda x, y: OddsGap.observed(x, y, 0)):
        with pytest.raises(SpecificationError, match=said) as caught:
            make(X, labels)
        assert ("argmax" in str(caught.value)) == ("argmax" in said)
    soft = torch.rand(COUNT, 2)
    with pytest.raises(SpecificationError, match=r"expected \(40,\), one class index for each input\.$"):
        ErrorRate(X, soft)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.zeros(COUNT, 2, 2), r"got shape \(40, 2, 2\)"),
        (torch.zeros(COUNT, 2), "only one group"),
        ({"a", "b"}, "got a set"),
        ({"a": 1}, "got a int"),
        ([["a"], ["b"]] * 20, "one list for each feature, not one for each row"),
        (7, "got a int"),
    ],
)
def test_groups_that_are_not_one_for_each_row_are_refused(features, said):
    with pytest.raises(SpecificationError, match=said):
        GroupGap.observed(X, sensitive_features=features)


class TestIndexes:
    """Indexes of pandas."""

    @pytest.fixture
    def pandas(self):
        return pytest.importorskip("pandas")

    def test_another_index_is_refused_everywhere(self, pandas):
        frame = pandas.DataFrame(X.numpy(), columns=["group", "merit"])
        order = np.random.default_rng(0).permutation(COUNT)
        labels, groups = pandas.Series(Y.numpy())[order], pandas.Series(GROUP.numpy())[order]
        for use in (
            lambda: ErrorRate(frame, labels),
            lambda: KeepLabels(frame, pandas.Series(Y.numpy(), index=range(100, 100 + COUNT))),
            lambda: GroupGap.observed(frame, sensitive_features=groups),
            lambda: OddsGap.observed(frame, Y, sensitive_features=groups),
            lambda: OddsGap.observed(frame, labels, "group"),
            lambda: GroupMetrics(labels, pandas.Series(Y.numpy()), GROUP),
            lambda: make_specification(ErrorRate(X, Y), (), (frame, labels)),
        ):
            with pytest.raises(SpecificationError, match=r"different indexes.*\.loc\[.*\.to_numpy\(\)"):
                use()
        gap = GroupGap.observed(frame, sensitive_features=groups.loc[frame.index])
        assert float(gap.value(BY_GROUP)) == pytest.approx(1.0)

    def test_columns_of_one_name_are_refused(self, pandas):
        frame = pandas.DataFrame(X.numpy(), columns=["a", "a"])
        for use in (lambda: ErrorRate(frame, Y), lambda: GroupGap.observed(frame, "a")):
            with pytest.raises(SpecificationError, match="2 columns, of which several are called 'a'"):
                use()


@pytest.mark.parametrize(
    ("true", "answers", "options", "said"),
    [
        (["no", "yes"] * 3, ["no"] * 6, {}, "pos_label is 1, which no row has; the labels are 'no', 'yes'"),
        (["no", "yes"] * 3, ["no"] * 6, {"pos_label": "Yes"}, "pos_label is 'Yes', which no row has"),
        ([2, 3] * 3, [2] * 6, {}, "pos_label is 1, which no row has; the labels are 2, 3"),
        ([0, 1] * 3, [0] * 6, {"pos_label": "1"}, "labels are no texts, such as 0, and pos_label is '1'"),
        (["0", "1"] * 3, [0, 1] * 3, {"pos_label": "1"}, "labels are no texts"),
        ([0, 1] * 3, [0, None] * 3, {}, "the answer of 3 of 6 rows is missing"),
        ([0, float("nan")] * 3, [0, 1] * 3, {}, "the true label of 3 of 6 rows is missing"),
    ],
)
def test_metrics_of_labels_without_a_favorable_one_are_refused(true, answers, options, said):
    with pytest.raises(SpecificationError, match=said):
        GroupMetrics(true, answers, list("aaabbb"), **options).equalized_odds_difference()


def test_metrics_of_odd_groups():
    found = GroupMetrics([0, 1, 1, 0], [0, 1, 0, 0], [1, "NA", 1, "NA"])
    assert found.groups == (1, "NA")
    both = GroupMetrics([0, 1, 1, 0], [0, 1, 0, 0], [("f", 1), ("m", 2), ("f", 1), ("m", 2)])
    assert both.groups == (("f", 1), ("m", 2))
    assert both.by_group["selection_rate"] == {("f", 1): 0.0, ("m", 2): 0.5}
    pytest.importorskip("fairlearn")
    assert both.difference()["selection_rate"] == found.difference()["selection_rate"] == 0.5
    assert GroupMetrics([0, 0], [0, 0], ["a", "b"]).demographic_parity_difference() == 0.0
    assert GroupMetrics([-1, -1], [-1, -1], ["a", "b"]).demographic_parity_difference() == 0.0
