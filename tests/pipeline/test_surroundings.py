"""Whatever surrounds a call (modes of torch, threads, a fork) changes no result and is as it was afterwards."""

import contextlib
import copy
import multiprocessing
import threading
import warnings

import pytest
import torch
from torch import nn

from repairopt import ErrorRate, GroupGap, KeepLabels, KeepOutputs, RepairError, Settings, Verdict, solve_repair
from repairopt.errors import ForeignError, public
from repairopt.network.tracing import trace_network

X = torch.randn(80, 3, generator=torch.Generator().manual_seed(3))
Y = (X[:, 0] + 0.3 * X[:, 1] > 0).long()
NET = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
with torch.no_grad():
    for k, parameter in enumerate(NET.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)))


def repaired(model=NET, x=X, y=Y):
    """Everything that a user sees of a repair, from statements made where it is called."""
    goal, keep = ErrorRate(x, y, target=0.2), KeepOutputs(x[:10], 2.0)
    found = solve_repair(model, goal, [keep], weights="last", method="one_shot")
    change = torch.cat([part.flatten() for part in found.delta.values()])
    parts = [*found.delta.values(), *found.model.parameters()]
    return found.report.verdict, found.report.measure().after, change.tolist(), any(p.is_inference() for p in parts)


REFERENCE = repaired()


@contextlib.contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": double,
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_results_are_those_without(name):
    with SURROUNDINGS[name]():
        assert repaired() == REFERENCE


@pytest.mark.parametrize("parts", ["model", "rows", "labels", "all"])
def test_tensors_made_in_inference_mode_are_as_good_as_others(parts):
    model, x, y = NET, X, Y
    with torch.inference_mode():
        if parts in ("model", "all"):
            model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
            model.load_state_dict(NET.state_dict())
        if parts in ("rows", "all"):
            x = X.clone()
        if parts in ("labels", "all"):
            y = Y.clone()
        assert repaired(model, x, y) == REFERENCE


def test_statements_on_groups_made_in_inference_mode():
    rows = torch.cat([X[:, :2], (torch.arange(80) % 2).float()[:, None]], 1)
    with torch.inference_mode():
        gap = GroupGap.observed(rows.clone(), column=2, favorable=1, target=0.02)
        keep = KeepLabels(rows.clone(), Y.clone(), tolerance=0.2)
    found = solve_repair(NET, gap, [keep], weights="last", method="one_shot")
    assert found.report.verdict in (Verdict.REPAIRED, Verdict.IMPROVED)


def test_threads_do_not_disturb_each_other_nor_others():
    bystander, failed, results, done = copy.deepcopy(NET), [], [], threading.Event()
    expected = bystander(X)

    def serve():
        while not done.is_set():
            try:
                assert torch.equal(bystander(X), expected)
            except BaseException as error:
                failed.append(error)

    def work():
        try:
            results.append(repaired() == REFERENCE)
        except BaseException as error:
            failed.append(error)

    before = list(warnings.filters)
    watcher, workers = threading.Thread(target=serve), [threading.Thread(target=work) for _ in range(8)]
    for thread in (watcher, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    watcher.join()
    assert not failed
    assert results == [True] * 8
    assert warnings.filters == before
    assert "wrapper" not in nn.Module.__call__.__qualname__


def test_tracing_leaves_modules_of_other_threads_alone():
    other, seen = nn.Linear(3, 2), []

    class Waits(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Linear(3, 2)

        def forward(self, x):
            thread = threading.Thread(target=lambda: seen.append(other(X)))
            thread.start()
            thread.join()
            return self.own(x)

    graph = trace_network(Waits())
    assert torch.equal(seen[0], other(X))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]


def _child(queue):
    queue.put(repaired() == REFERENCE)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_process_repairs_alike():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue,))
    process.start()
    try:
        assert queue.get(timeout=60)
    finally:
        process.kill()


@pytest.mark.parametrize("kind", [IndexError, KeyError, ZeroDivisionError, AttributeError, UnicodeError, StopIteration])
def test_only_errors_of_the_library_leave(kind):
    @public
    def enter():
        raise kind("what happened")

    with pytest.raises(RepairError, match=f"enter: {kind.__name__}: .*what happened") as caught:
        enter()
    assert isinstance(caught.value, kind)
    assert isinstance(caught.value, ForeignError)
    assert type(caught.value.__cause__) is kind


def test_an_exception_that_needs_more_arguments_leaves_as_one_of_the_library():
    @public
    def enter():
        b"\xff".decode("ascii")

    with pytest.raises(RepairError, match="enter: UnicodeDecodeError"):
        enter()


def test_progress_that_fails_is_told_of():
    def progress(entry):
        raise LookupError("my own progress")

    goal = ErrorRate(X, Y, target=0.0)
    with pytest.warns(RuntimeWarning, match="my own progress"):
        solve_repair(NET, goal, weights="last", method="incremental", settings=Settings(progress=progress))
