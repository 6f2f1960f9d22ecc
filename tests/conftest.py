"""Fixtures for all tests: a seed, one thread, tiny networks and tasks, the folder of real networks."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from digits import Digits, learned
from hypothesis import settings
from sample_networks import chain
from torch import Tensor, nn

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process of the tests compiles them and the library anew
PROJECT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)
gc.set_threshold(100_000, 20, 50)  # torch and what it loads are a million objects that no collection frees
settings.register_profile("repairopt", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repairopt")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each process gets files as a whole, whose fixtures and libraries it then loads alone, until it runs out."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_finish():
    """What is loaded and collected by now stays to the end: no collection of garbage needs to look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.default_generator.manual_seed(0)  # torch.manual_seed records a stack trace for each kind of GPU


@pytest.fixture(autouse=True)
def _one_table_of_onnx_operators():
    """torch reads the source of its ONNX operators anew for each export, which is half of it; here it does so once."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    tables = getattr(module, "ONNXRegistry", None)
    if hasattr(tables, "from_torchlib") and not hasattr(tables.from_torchlib, "cache_info"):
        tables.from_torchlib = staticmethod(cache(tables.from_torchlib))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that REPAIROPT_DATA points to, or ``../shared/data`` beside the project."""
    folder = Path(os.environ.get("REPAIROPT_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set REPAIROPT_DATA to the folder that holds autoric/")
    return folder


@pytest.fixture(scope="session")
def digits() -> Digits:
    """A network 64-32-10 that learned from the digits of scikit-learn; not to be modified."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return learned(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))


@pytest.fixture
def small_net() -> nn.Module:
    """4 inputs, 3 classes, float64, in evaluation mode."""
    return chain().double().eval()


@pytest.fixture
def small_inputs() -> Tensor:
    return torch.randn(30, 4, dtype=torch.float64)


@pytest.fixture
def without_pictures(monkeypatch):
    """Pages of words alone, where nothing is asked of the pictures; drawing them is most of the time of a page."""
    monkeypatch.setattr("repairopt.report.html_page.draw_gallery", lambda *_: [])


@pytest.fixture
def fingerprint():
    """A function from a model to everything about it that a repair must leave alone."""

    def of(model: nn.Module) -> tuple[object, ...]:
        digest = hashlib.sha256()
        state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
        for name, value in state:
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        flags = tuple((name, value.requires_grad, value.grad is None, id(value)) for name, value in state)
        modes = tuple((name, module.training) for name, module in model.named_modules())
        return digest.hexdigest(), flags, modes

    return of
