"""Arrays, frames and loaders of odd kinds: the same numbers as from plain ones, or an error that says what came."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from repairopt import ErrorRate, GroupGap, KeepLabels, ModelError, SpecificationError, solve_repair
from repairopt.network import Engine, to_tensors

PLAIN = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def locked(values):
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    "odd",
    [
        PLAIN[::-1].copy()[::-1],
        PLAIN.astype(">f4"),
        PLAIN.astype(np.longdouble),
        PLAIN.astype(object),
        scipy.sparse.csr_matrix(PLAIN),
        scipy.sparse.coo_array(PLAIN),
        torch.from_numpy(PLAIN).to_sparse(),
        list(torch.from_numpy(PLAIN)),
        locked(PLAIN.copy()),
        np.asfortranarray(PLAIN),
        np.ma.array(PLAIN, mask=False),
    ],
)
def test_numbers_are_the_same_however_they_are_stored(odd):
    found, _ = to_tensors(odd)
    assert found.layout is torch.strided
    np.testing.assert_array_equal(found.numpy().astype(np.float32), PLAIN)


def test_plain_arrays_are_not_copied():
    values = PLAIN.copy()
    assert to_tensors(values)[0].data_ptr() == values.__array_interface__["data"][0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.zeros(12, 3, device="meta"), "meta"),
        (lambda: torch.zeros(12, 3, dtype=torch.complex64), "complex"),
        (lambda: PLAIN.astype(np.complex128), "complex"),
        (lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)], layout=torch.jagged), "nested"),
        (lambda: np.ma.array(PLAIN, mask=PLAIN > 1), "NaN"),
        (lambda: PLAIN.astype(str), "numbers"),
    ],
)
def test_what_holds_no_real_numbers_is_refused(make, said):
    with pytest.raises(SpecificationError, match=said):
        ErrorRate(make(), np.zeros(12, int))


@pytest.mark.parametrize(
    "labels",
    [
        np.ma.array(np.zeros(12, int), mask=np.arange(12) == 3),
        np.array([0] * 11 + [None], dtype=object),
        torch.zeros(12, dtype=torch.complex64),
        torch.zeros(12, device="meta"),
        [0.0] * 11 + [float("nan")],
    ],
)
def test_labels_that_are_missing_or_no_real_numbers_are_refused(labels):
    with pytest.raises(SpecificationError, match=r"label"):
        ErrorRate(PLAIN, labels)


class Samples(Dataset):
    def __init__(self, sample):
        self.sample = sample

    def __len__(self):
        return 12

    def __getitem__(self, row):
        return self.sample(row)


@pytest.mark.parametrize(
    "sample",
    [
        lambda row: (PLAIN[row], None),
        lambda row: (PLAIN[row, : 1 + row % 3], 0),
        lambda row: (torch.zeros(row + 1), 0),
        lambda row: (PLAIN[row], "yes"),
        lambda row: (PLAIN[row], object()),
        lambda row: (PLAIN[row], [0] * (1 + row % 2)),
    ],
)
def test_samples_that_are_no_pairs_of_numbers_of_one_shape_are_refused(sample):
    with pytest.raises(SpecificationError, match="Samples"):
        ErrorRate(Samples(sample))


@pytest.mark.parametrize(
    ("column", "said"), [(0, "position 2"), (1.5, "1.5"), (True, "True"), (None, "either"), (9, "9")]
)
def test_columns_that_are_no_position_or_stand_elsewhere_are_refused(column, said):
    frame = pd.DataFrame(np.c_[PLAIN[:, :2], np.arange(12) % 2], columns=[2, 1, 0])
    with pytest.raises(SpecificationError, match=said):
        GroupGap.observed(frame, column=column)


@pytest.mark.parametrize(
    "groups",
    [
        [(row % 2, float("nan") if row == 3 else 1.0) for row in range(12)],
        [("a", None) if row == 3 else ("b", 1) for row in range(12)],
        [("a", pd.NA) if row % 2 else ("b", 1) for row in range(12)],
        [("a", ("x", np.nan)) if row % 2 else ("b", ("x", 1)) for row in range(12)],
        np.ma.array(np.arange(12) % 2, mask=np.arange(12) == 2),
    ],
)
def test_groups_that_are_missing_in_part_are_refused(groups):
    with pytest.raises(SpecificationError, match="missing"):
        GroupGap.observed(PLAIN, sensitive_features=groups)


@pytest.mark.parametrize(
    "given",
    [
        {"column": 1},
        {"sensitive_features": list(range(12))},
        {"sensitive_features": PLAIN[:, 0]},
        {"sensitive_features": [f"customer {row}" for row in range(12)]},
        {"sensitive_features": [str(max(row, 1)) for row in range(12)]},
    ],
)
def test_next_to_one_group_for_each_row_is_refused(given):
    with pytest.raises(SpecificationError, match="groups for 12 rows"):
        GroupGap.observed(PLAIN, **given)


class Numbers(nn.Module):
    def forward(self, inputs):
        return inputs.round().long()


def embedding(**options):
    return nn.Sequential(nn.Embedding(6, 3, **options), nn.Flatten(), nn.Linear(6, 2)).eval()


@pytest.mark.parametrize(
    ("network", "inputs", "said"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)), PLAIN, "not on one alone"),
        (nn.Sequential(nn.Linear(3, 2), Numbers()), PLAIN, "int64"),
        (nn.Linear(3, 2, device="meta"), PLAIN, "meta device"),
        (embedding(), torch.full((12, 2), 6), "range"),
        (embedding(max_norm=0.1), torch.arange(24).reshape(12, 2) % 6, "writes into its parameter"),
        (nn.LazyLinear(2), PLAIN, "uninitialized"),
    ],
)
def test_networks_that_cannot_be_repaired_are_refused_by_what_they_do(network, inputs, said):
    with pytest.raises(ModelError, match=said):
        solve_repair(network, ErrorRate(inputs, np.arange(12) % 2), weights="all")


def test_an_embedding_that_limits_its_norms_is_not_written_whatever_rows_come_first():
    torch.manual_seed(0)
    network = embedding(max_norm=1.0)
    network[0].weight.data[:5] *= 0.1
    network[0].weight.data[5] = 3.0
    before = network[0].weight.detach().clone()
    rows = torch.arange(60).reshape(30, 2) % 5
    engine = Engine(network)
    engine.predict()(rows)
    engine.predict()(torch.full((4, 2), 5))
    assert torch.equal(network[0].weight, before)


@pytest.mark.parametrize("shape", [(6, 2), (6, 4), (6, 3, 1), (6,), (6, 0)])
def test_held_out_rows_of_another_shape_are_refused(shape):
    goal = ErrorRate(PLAIN, np.arange(12) % 2, target=0.9)
    held_out = TensorDataset(torch.zeros(shape), torch.zeros(6))
    with pytest.raises(ModelError, match=r"cannot run on inputs of shape|model Linear"):
        solve_repair(nn.Linear(3, 2), goal, [KeepLabels(PLAIN, np.arange(12) % 2)], held_out=held_out, weights="last")
