"""Arrays, frames and loaders of odd kinds: the same numbers as from plain ones, or an error that says what came."""

import copy

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from repairopt import ErrorRate, GroupGap, KeepLabels, ModelError, Settings, SpecificationError, solve_repair
from repairopt.localize import Inputs, localize
from repairopt.network import Engine, Remembering, to_tensors

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
        [[0, 1], [2]] * 6,
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


TRACKED = {
    "leaf": lambda x: (x, x),
    "rows of a leaf": lambda x: (x, x[:12]),
    "what a layer gives": lambda x: (x, x * 2),
    "a parameter": lambda x: (found := nn.Parameter(x.detach()), found),
    "a dataset": lambda x: (x, TensorDataset(x, torch.arange(12) % 2)),
    "a loader": lambda x: (x, DataLoader(TensorDataset(x[:12], torch.arange(12) % 2), batch_size=5)),
}


@pytest.mark.parametrize("kind", TRACKED)
def test_rows_that_track_gradients_get_none(kind):
    torch.manual_seed(0)
    leaf, given = TRACKED[kind](torch.tensor(PLAIN, requires_grad=True))
    labels = np.arange(12) % 2 if isinstance(given, torch.Tensor) else None
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    solve_repair(network, ErrorRate(given, labels), weights="all")
    assert leaf.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())


def calls_another(network, where):
    """The network with a forward, or hook, that calls the layers of the original, whatever module it is copied into."""
    if where == "forward of the root":
        own = network.forward
        network.forward = lambda rows: own(rows) * 2
    elif where == "forward of the last layer":
        last = network[2].forward
        network[2].forward = lambda rows: last(rows)
    elif where == "a function over the network":
        whole = copy.deepcopy(network)
        network.forward = lambda rows: whole(rows)
    elif where == "a hook in place of the output":
        other = copy.deepcopy(network[2])
        network[2].register_forward_hook(lambda module, given, out: other(given[0]))
    else:
        network[2].forward = lambda rows: torch.from_numpy(np.tanh(rows.detach().numpy())[:, :2])
    return network


@pytest.mark.parametrize(
    "where",
    [
        "forward of the root",
        "forward of the last layer",
        "a function over the network",
        "a hook in place of the output",
        "no weight is read",
    ],
)
def test_a_network_that_does_not_read_its_weights_is_refused(where):
    network = calls_another(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), where)
    with pytest.raises(ModelError, match=r"do not change with the chosen weights|no linear"):
        solve_repair(network, ErrorRate(PLAIN, np.arange(12) % 2), weights=["2.weight", "2.bias"])


def test_inputs_that_are_made_anew_are_not_taken_for_each_other():
    """Rows that nobody keeps leave their memory to others of the same shape."""
    rows, network = torch.as_tensor(PLAIN), nn.Linear(PLAIN.shape[1], 2)
    engine = Engine(network, {"weight": torch.arange(2)})
    remembering = Remembering(engine)
    for factor in range(1, 40):
        made = rows * factor
        torch.testing.assert_close(remembering(made), network(made).detach())
        for other in range(4):  # other points push out what the engine remembers
            engine.predict(torch.full((2,), float(other)))(rows)
        del made
    made = rows.clone()
    remembering(made)
    made += 1
    torch.testing.assert_close(remembering(made), network(made).detach())


@pytest.mark.parametrize("rows", [PLAIN, PLAIN.tolist(), pd.DataFrame(PLAIN), PLAIN[0], None])
def test_what_a_property_asks_of_the_network_is_a_tensor(rows):
    with pytest.raises(SpecificationError, match=r"predict: got inputs of type .*expected a tensor"):
        solve_repair(nn.Linear(PLAIN.shape[1], 2), lambda predict: predict(rows).mean(), weights="all")


def test_a_last_layer_wider_than_memory_is_repaired():
    torch.manual_seed(0)
    network, rows = nn.Linear(3000, 2), torch.randn(8, 3000)
    said = network(rows).argmax(1)
    settings = Settings(memory_limit=2**26)  # the second moment of its inputs alone is larger
    found = solve_repair(network, ErrorRate(rows[:2], 1 - said[:2]), method="sqp", weights="last", settings=settings)
    assert found.report.verdict == "repaired"


def test_several_held_out_pairs_are_to_be_put_together():
    labels = np.arange(12) % 2
    pairs = [(PLAIN, labels), (PLAIN, labels)]
    with pytest.raises(SpecificationError, match=r"list of pairs.*torch\.cat"):
        solve_repair(nn.Linear(3, 2), ErrorRate(PLAIN, labels, target=0.9), held_out=pairs)


def test_an_embedding_has_no_input_features_to_choose_from_none():
    network = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(SpecificationError, match="at least one"):
        localize(network, Inputs([]), inputs=torch.zeros(4, 2, dtype=torch.long))
