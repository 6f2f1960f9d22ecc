"""Whatever holds inputs and labels is accepted wherever they are, and converted in one place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with, task
from torch import nn
from torch.utils.data import ChainDataset, DataLoader, Dataset, IterableDataset, TensorDataset

from repairopt import (
    AccuracyDrop,
    Bound,
    ErrorRate,
    FixLabels,
    FlipRate,
    GroupGap,
    KeepLabels,
    KeepOutputs,
    MissRate,
    OddsGap,
    SpecificationError,
    solve_repair,
)
from repairopt.network import to_tensors
from repairopt.specify import AdversarialError, CertifiedRadius


class Pairs(Dataset):
    """A dataset that gives one sample at a time."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int):
        return self.inputs[index], int(self.labels[index])


@pytest.fixture
def toy():
    return task(count=60)


def forms(x: torch.Tensor, y: torch.Tensor) -> dict[str, tuple]:
    """The same data in every form, as positional arguments."""
    return {
        "tensors": (x, y),
        "arrays": (x.numpy(), y.numpy()),
        "lists": (x.tolist(), y.tolist()),
        "tensor dataset": (TensorDataset(x, y),),
        "dataset": (Pairs(x, y),),
        "loader": (DataLoader(TensorDataset(x, y), batch_size=7),),
    }


@pytest.mark.parametrize("form", ["tensors", "arrays", "lists", "tensor dataset", "dataset", "loader"])
@pytest.mark.parametrize("make", [KeepLabels, FixLabels, ErrorRate, MissRate, AccuracyDrop, FlipRate])
def test_labelled_pieces_take_every_form(toy, make, form):
    made = make(*forms(toy.inputs, toy.labels)[form])
    torch.testing.assert_close(made.inputs.double(), toy.inputs)
    torch.testing.assert_close(made.labels, toy.labels)


def test_robustness_groups_and_plain_inputs_take_datasets(toy):
    data = TensorDataset(toy.inputs, toy.labels)
    assert torch.equal(CertifiedRadius(data, target=10.0).labels, toy.labels)
    assert torch.equal(AdversarialError(data, radius=0.1).inputs, toy.inputs)
    assert torch.equal(KeepOutputs(data, 0.1).inputs, toy.inputs)
    odds = OddsGap.observed(data, column=1)
    assert torch.equal(odds.labels, toy.labels)
    gap = GroupGap.observed(data, column=1)
    assert float(gap.value(toy.model)) == pytest.approx(float(GroupGap.observed(toy.inputs, 1).value(toy.model)))


@pytest.mark.parametrize("form", ["tensors", "tensor dataset", "loader"])
def test_a_repair_is_the_same_whatever_form_its_data_have(toy, form):
    here, there = forms(toy.inputs, toy.labels)[form], forms(*toy.held_out)[form]
    held_out = there if len(there) == 2 else there[0]
    data = here if len(here) == 2 else here[0]
    goal = ErrorRate(*here, target=0.05)
    options = {"weights": "last", "method": "sequential"}
    repair = repair_with(toy.model, goal, [KeepLabels(*here)], held_out=held_out, data=data, **options)
    plain = repair_with(
        toy.model,
        ErrorRate(toy.inputs, toy.labels, target=0.05),
        [KeepLabels(toy.inputs, toy.labels)],
        held_out=toy.held_out,
        data=[(toy.inputs, toy.labels)],
        **options,
    )
    assert repair.report.measure(held_out=True).after == pytest.approx(plain.report.measure(held_out=True).after)
    torch.testing.assert_close(repair.delta["2.weight"], plain.delta["2.weight"], rtol=1e-4, atol=1e-6)


def test_mistakes_with_datasets_are_explained(toy):
    x, y = toy.inputs, toy.labels
    with pytest.raises(SpecificationError, match="labels were given beside a TensorDataset"):
        KeepLabels(TensorDataset(x, y), y)
    with pytest.raises(SpecificationError, match="'keep labels': no labels; expected inputs and labels"):
        KeepLabels(x)
    with pytest.raises(SpecificationError, match="'error rate': no labels"):
        ErrorRate(DataLoader(x, batch_size=10))
    with pytest.raises(SpecificationError, match="are 3 parts; expected pairs"):
        ErrorRate(TensorDataset(x, x, y))
    dicts = [{"input_ids": x[i], "labels": y[i]} for i in range(4)]
    with pytest.raises(SpecificationError, match="dicts of 'input_ids', 'labels'.*PackedInputs"):
        ErrorRate(DataLoader(dicts, batch_size=2))
    with pytest.raises(SpecificationError, match=r"inputs are a dict of 'input_ids'.*PackedInputs"):
        KeepOutputs({"input_ids": x}, 0.1)

    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield x[0], 0

    with pytest.raises(SpecificationError, match="may never end"):
        KeepLabels(Endless())
    with pytest.raises(SpecificationError, match="pairs"):
        solve_repair(toy.model, ErrorRate(x, y), data=[x])


def test_names_of_classes_are_not_guessed(toy):
    with pytest.raises(SpecificationError, match=r"labels: ndarray is not an array of numbers.*pandas\.factorize"):
        KeepLabels(toy.inputs, np.array(["yes", "no"] * 30))


@pytest.mark.parametrize("options", [{"shuffle": True}, {"drop_last": True}, {"shuffle": True, "drop_last": True}])
def test_a_loader_is_read_whole_and_in_the_order_of_its_dataset(toy, options):
    state = torch.get_rng_state()
    x, y = to_tensors(DataLoader(TensorDataset(toy.inputs, toy.labels), batch_size=7, **options))
    assert torch.equal(x, toy.inputs)
    assert torch.equal(y, toy.labels)
    assert torch.equal(state, torch.get_rng_state())


class TestFrames:
    """pandas frames and series."""

    @pytest.fixture
    def pandas(self):
        return pytest.importorskip("pandas", reason="pandas comes with the extra 'fairlearn'")

    @pytest.fixture
    def frame(self, pandas, toy):
        return pandas.DataFrame({"merit": toy.inputs[:, 0].numpy(), "sex": toy.inputs[:, 1].numpy().astype(int)})

    def test_a_frame_and_a_series_are_inputs_and_labels(self, pandas, frame, toy):
        made = KeepLabels(frame, pandas.Series(toy.labels.numpy()))
        torch.testing.assert_close(made.inputs, toy.inputs)
        torch.testing.assert_close(made.labels, toy.labels)

    def test_columns_have_names(self, frame, toy):
        gap = GroupGap.observed(frame, column="sex")
        assert gap.samples.names == ("sex = 0", "sex = 1")
        assert float(gap.value(toy.model)) == pytest.approx(float(GroupGap.observed(toy.inputs, 1).value(toy.model)))
        assert gap.on(toy.other_inputs).samples.names == gap.samples.names
        assert GroupGap.sampled(frame, "sex", count=10).samples.names == gap.samples.names
        assert GroupGap.sampled(frame, "sex", count=10).on(toy.other_inputs).samples.names == gap.samples.names
        assert OddsGap.observed(frame, toy.labels, column="sex").samples.names == gap.samples.names
        by_row = GroupGap.observed(frame, sensitive_features=frame["sex"].map({0: "f", 1: "m"}))
        assert by_row.samples.names == ("f", "m")

    def test_a_repair_from_frames(self, pandas, frame, toy):
        other = pandas.DataFrame(toy.other_inputs.numpy(), columns=["merit", "sex"])
        gap = GroupGap.observed(frame, column="sex", target=0.3)
        keep = KeepLabels(frame, toy.labels.numpy(), tolerance=0.3)
        options = {"weights": "last", "method": "sequential"}
        repair = repair_with(toy.model, gap, [keep], held_out=(other, pandas.Series(toy.other_labels)), **options)
        plain = repair_with(
            *(toy.model, GroupGap.observed(toy.inputs, 1, target=0.3)),
            [KeepLabels(toy.inputs, toy.labels, tolerance=0.3)],
            **{"held_out": toy.held_out, **options},
        )
        assert repair.report.measure(held_out=True).after == pytest.approx(plain.report.measure(held_out=True).after)
        assert "favorable rate, sex = 1" in repair.report.measure(held_out=True).details
        with pytest.raises(SpecificationError, match="held_out: its columns are sex, merit; those of 'group gap'"):
            repair_with(toy.model, gap, [keep], held_out=(other[["sex", "merit"]], toy.other_labels), **options)

    def test_what_is_no_number_is_named(self, pandas, frame, toy):
        frame["job"], frame["since"] = "clerk", pandas.Timestamp("2020-01-01")
        with pytest.raises(SpecificationError, match="columns 'job', 'since' are not numbers.*get_dummies"):
            KeepLabels(frame, toy.labels)
        with pytest.raises(
            SpecificationError, match="no column 'gender' in the DataFrame; its columns: merit, sex, job"
        ):
            GroupGap.observed(frame, column="gender")
        with pytest.raises(SpecificationError, match="no column 'sex' in the Tensor, which has no names"):
            GroupGap.observed(toy.inputs, column="sex")

    def test_missing_numbers_are_found(self, pandas, frame, toy):
        frame["merit"] = frame["merit"].astype("Float64")
        torch.testing.assert_close(KeepLabels(frame, toy.labels).inputs, toy.inputs)
        frame.loc[3, "merit"] = pandas.NA
        with pytest.raises(SpecificationError, match="hold NaN or infinite numbers, the first is row 3"):
            KeepLabels(frame, toy.labels)

    def test_a_model_in_single_precision_takes_a_frame(self, frame, toy):
        model = nn.Linear(2, 2)
        bound = Bound(MissRate(frame, toy.labels), slack=0.5)
        repair = solve_repair(model, ErrorRate(frame, toy.labels, target=0.1), [bound], method="sequential")
        assert repair.report.measure().after <= repair.report.measure().before


@pytest.mark.parametrize("rows", [40, 60, None])
def test_a_stream_of_another_length_than_it_says_is_refused(rows):
    class Stream(IterableDataset):
        def __len__(self):
            return 50

        def __iter__(self):
            return ((torch.ones(3) * k, k % 2) for k in (itertools.count() if rows is None else range(rows)))

    with pytest.raises(SpecificationError, match="50 samples of the Stream became"):
        ErrorRate(Stream())
    with pytest.raises(SpecificationError, match="may never end"):
        ErrorRate(ChainDataset([TensorDataset(torch.ones(3))]))  # it adds up lengths, and asserts that all are streams
