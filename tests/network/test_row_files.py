"""Data that are larger than memory are read once from their loader, into a file, and used from there."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from forked import run_forked
from torch.utils.data import DataLoader, Dataset

from repairopt import ErrorRate, KeepLabels, Settings, SpecificationError, solve_repair
from repairopt.compare import loan_decisions
from repairopt.network import check_inputs, row_files, to_tensors


class Computed(Dataset):
    """Rows that are computed when they are read, ``noise`` times anew."""

    def __init__(self, count: int, dtype: torch.dtype = torch.float32, noise: float = 0.0) -> None:
        self.count, self.dtype, self.noise = count, dtype, noise

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        row = torch.arange(6) * 7919 % (index + 2) + self.noise * torch.rand(6)
        return row.to(self.dtype), index % 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_rows_in_a_file_are_those_of_the_loader(monkeypatch, tmp_path, dtype, workers):
    loader = DataLoader(Computed(300, dtype), batch_size=16, num_workers=workers)
    there, labels = to_tensors(loader)
    monkeypatch.setattr(row_files, "MOST_BYTES", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found, own = to_tensors(loader)
    assert found.dtype == dtype
    assert torch.equal(found, there)
    assert torch.equal(own, labels)
    assert not list(tmp_path.iterdir()), "the file keeps a name"
    numbers, _ = check_inputs("data", loader)
    assert numbers.dtype == torch.float32
    assert torch.equal(numbers, there.float())
    assert not list(tmp_path.iterdir())


def test_random_transforms_are_refused_there_too(monkeypatch):
    monkeypatch.setattr(row_files, "MOST_BYTES", 1000)
    with pytest.raises(SpecificationError, match="other samples"):
        to_tensors(DataLoader(Computed(300, noise=1.0), batch_size=16))


def test_a_loader_that_breaks_leaves_no_file(monkeypatch, tmp_path):
    class Broken(Computed):
        def __getitem__(self, index: int):
            if index > 200:
                raise ValueError("no such row")
            return super().__getitem__(index)

    monkeypatch.setattr(row_files, "MOST_BYTES", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="no such row"):
        to_tensors(DataLoader(Broken(300), batch_size=16))
    assert not list(tmp_path.iterdir())


def test_a_repair_from_files_is_that_from_memory(monkeypatch):
    model, x, y = loan_decisions()
    right = model(x[:400]).argmax(1) == y[:400]
    keep, wrong = DataLoader(torch.utils.data.TensorDataset(x[:400][right], y[:400][right]), batch_size=32), ~right

    class Kept(Dataset):
        def __len__(self) -> int:
            return int(right.sum())

        def __getitem__(self, index: int):
            return keep.dataset[index]

    def repaired():
        goal = ErrorRate(x[:400][wrong], y[:400][wrong], target=0.5)
        constraint = KeepLabels(DataLoader(Kept(), batch_size=32), tolerance=0.05)
        return solve_repair(
            model, goal, [constraint], weights="all", method="train_then_correct", settings=Settings(seed=1)
        )

    there = repaired()
    monkeypatch.setattr(row_files, "MOST_BYTES", 1000)
    found = repaired()
    assert found.report.verdict is there.report.verdict
    for one, two in zip(found.model.parameters(), there.model.parameters(), strict=True):
        assert torch.equal(one, two)


SCRIPT = """
import ctypes, resource
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from repairopt import ErrorRate, KeepLabels, Settings, TrainThenCorrect, solve_repair
from repairopt.network import row_files

torch.set_num_threads(1)
row_files.MOST_BYTES = 2**24
COUNT, WIDTH = 100_000, 1_000  # 400 MB each of what is to keep and of what fails


class Rows(Dataset):
    def __init__(self, shift):
        self.shift = shift

    def __len__(self):
        return COUNT

    def __getitems__(self, indices):
        draw = torch.Generator().manual_seed(indices[0])
        x = torch.randn(len(indices), WIDTH, generator=draw)
        y = (x[:, 0] > 0).long()
        x[:, :2] += torch.tensor([self.shift, 5 * self.shift])
        return [(row, label) for row, label in zip(x, y)]


model = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 2))
with torch.no_grad():
    model[0].weight.mul_(0.1)[:, 0] = torch.linspace(-1, 1, 32)
    model[2].weight.copy_(torch.stack([-torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32)]))
model.requires_grad_(False)
loaders = [DataLoader(Rows(shift), batch_size=1000) for shift in (0.8, 0.0)]
# M_MMAP_THRESHOLD: what is freed goes back at once; else the C library keeps from run to run up to 100 MB more or less.
ctypes.CDLL(None).mallopt(-3, 2**17)
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 300 * 2**20,) * 2)  # less than either; 152 are used
goal, keep = ErrorRate(loaders[0], target=0.1), KeepLabels(loaders[1], tolerance=0.1)
method = TrainThenCorrect(epochs=1, batch=512)
repair = solve_repair(model, goal, [keep], weights="all", method=method, settings=Settings(memory_limit=2**26))
print(repair.report.verdict, repair.report.verification.goal_before, repair.report.verification.goal_after, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits of memory are read from /proc")
def test_a_repair_of_data_that_are_larger_than_memory():
    verdict, before, after = run_forked(SCRIPT).split()
    assert float(after) <= float(before) / 2
    assert verdict in ("repaired", "improved")
