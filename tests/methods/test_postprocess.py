"""Offsets and thresholds by group, and votes: what they find and need, and that they are files like any repair."""

import json

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with, task
from forked import run_forked
from small_spec import SPEC, write_spec
from torch import nn

from repairopt import (
    SQP,
    CallableProperty,
    ChangeLimit,
    Classifier,
    GroupGap,
    OddsGap,
    OffsetsByGroup,
    SpecificationError,
    Swarm,
    Thresholds,
    Vote,
)
from repairopt.errors import PatchError, WrongBaseError
from repairopt.interfaces.commandline.runs.move_run import move_patch
from repairopt.interfaces.commandline.runs.show_run import show_patch
from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec
from repairopt.interfaces.commandline.runs.verify_run import verify_patch
from repairopt.interfaces.testing import check_method
from repairopt.localize import Wrapped
from repairopt.methods import available_methods, threshold_frontier
from repairopt.methods.postprocess.group_columns import find_columns
from repairopt.patches import export_onnx, load_patch, wrap

NEW = ("swarm", "fine_tune", "offsets", "thresholds", "vote")


@pytest.fixture(scope="module")
def given():
    return task(count=1000, dtype=torch.float32)


def observed(given, target=0.05, **options):
    return GroupGap.observed(given.inputs, 1, target=target, **options)


@pytest.mark.parametrize("method", [OffsetsByGroup(), Thresholds(), Vote(of=Swarm(particles=10, iterations=20))])
def test_they_pass_the_checks(method):
    assert {"gap: better", "gap: patch", "gap: kept by the judge", "gap: time limit"} <= set(check_method(method))


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("method", NEW)
def test_each_is_a_repair_like_any_other(method, given, tmp_path):
    data = (given.inputs, given.labels)
    bounds = [given.keep(0.2), ChangeLimit(absolute=5.0)]
    found = repair_with(given.model, observed(given), bounds, method=method, data=data, held_out=given.held_out)
    assert found.report.verdict == "repaired"
    assert found.report.measure(held_out=True).after < found.report.measure(held_out=True).before
    text, page = str(found.report), found.to_html()
    assert found.report.candidate.split(",")[0] in text or "chosen weights" in text
    assert "REPAIRED" in text
    assert "<h2>How it was done</h2>" in page
    patch = found.as_patch(given.model, spec="gap <= 0.05")
    assert patch.info.seed == 0
    assert patch.info.spec_hash
    assert any(claim["met"] for claim in patch.info.claims)
    patch.save(tmp_path / "gap.safetensors")
    again = load_patch(tmp_path / "gap.safetensors")
    assert torch.equal(again.apply(given.model)(given.inputs), found.model(given.inputs))
    assert torch.equal(again.revert(found.model)(given.inputs), given.model(given.inputs))
    other = task(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), dtype=torch.float32).model
    with pytest.raises(WrongBaseError, match="the repair did not start from it"):
        found.as_patch(other)
    if method in ("offsets", "thresholds", "vote"):
        assert isinstance(found.candidate, Wrapped)
        assert found.delta == {}
        assert "wrapped: " in page


@pytest.mark.parametrize("method", NEW)
def test_each_runs_from_a_spec_file_and_is_verified_from_the_files_alone(method, tmp_path):
    text = SPEC.replace("change: {layers: last}\n", "").replace("  - flips(guard) <= 3\n", "")
    spec = write_spec(tmp_path, f"{text}method: {method}\n")
    result = solve_spec(spec, tmp_path / "out", Options(report=False))
    assert (result.verdict, result.met) == ("repaired", True), result.notes
    patch = result.files["patch"]
    checked = verify_patch(spec, patch)
    assert checked.sound, [line for line in checked.checks if line.ok is False]
    assert checked.met
    assert show_patch(patch).content_hash == result.patch
    forward = move_patch(spec, patch, tmp_path / "new.safetensors")
    assert forward.weights == result.repaired
    back = move_patch(spec, patch, tmp_path / "old.safetensors", back=True, weights=tmp_path / "new.safetensors")
    assert back.weights == result.base
    stated = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stated["report"]["candidate"]


@pytest.mark.parametrize("method", ["offsets", "vote", "reject_option"])
def test_wrapped_networks_go_through_onnx(method, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    text = SPEC.replace("change: {layers: last}\n", "").replace("  - flips(guard) <= 3\n", "")
    spec = write_spec(tmp_path, f"{text}method: {method}\n")
    patch = solve_spec(spec, tmp_path / "out", Options(report=False)).files["patch"]
    moved = move_patch(spec, patch, tmp_path / "new.onnx")
    assert moved.kind == "onnx"
    assert moved.largest_difference < 1e-5


class Lead(nn.Module):
    """The lead of the second of two logits, ``(N, 1)``."""

    def forward(self, logits):
        return logits[:, 1:] - logits[:, :1]


STATED = {
    "one logit": [Lead()],
    "one logit, flat": [Lead(), nn.Flatten(0)],
    "probabilities": [nn.Softmax(1)],
    "one probability, flat": [Lead(), nn.Sigmoid(), nn.Flatten(0)],
}


READ = [(name, "thresholds") for name in STATED]
READ += [("one logit, flat", name) for name in ("reject_option", "vote", "hard_voting")]
READ += [("probabilities", name) for name in ("offsets", "dropout_alignment")]


@pytest.mark.parametrize(("name", "method"), READ)
def test_networks_of_one_number_and_of_probabilities_are_wrapped_like_their_logits(name, method, given, tmp_path):
    network = nn.Sequential(given.model, *STATED[name]).eval()
    read = Classifier(network, outputs=name.partition(",")[0])
    options = {"data": (given.inputs, given.labels), "method": method}
    found = repair_with(read, observed(given), **options)
    wanted = repair_with(given.model, observed(given), **options).report.measure().after
    assert found.report.measure().after == pytest.approx(wanted, abs=0.03)
    own, before = found.model(given.inputs), network(given.inputs)
    assert own.shape == before.shape
    assert not torch.equal(own, before)
    assert "logit" in name or bool(((own >= 0) & (own <= 1)).all())
    found.as_patch(read).save(tmp_path / "gap.safetensors")
    again = load_patch(tmp_path / "gap.safetensors")
    assert torch.equal(again.apply(network)(given.inputs), own)
    assert torch.equal(again.revert(found.model)(given.inputs), before)


def test_the_form_of_outputs_is_seen_on_inputs_of_a_function_too():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
    x = torch.randn(60, 3)
    share = CallableProperty(lambda predict: predict(x).softmax(-1)[:, 1].mean(), 0.1, "share")
    found = repair_with(Classifier(network, outputs="one logit"), share, method="vote")
    assert found.model(x).shape == (60,)
    assert found.report.measure().after < found.report.measure().before


@pytest.mark.parametrize("name", STATED)
def test_such_wrapped_networks_are_exported(name, given, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    network = nn.Sequential(given.model, *STATED[name]).eval()
    settings = {"weight": 0.4, "network_outputs": name.partition(",")[0], "network_flat": "flat" in name}
    vote = wrap("vote", network, settings, {key: 1.5 * value for key, value in network.state_dict().items()})
    assert export_onnx(vote, given.inputs[:8], tmp_path / "vote.onnx").largest_difference < 1e-5


def test_a_wrapped_patch_is_not_reverted_on_what_is_not_wrapped(tmp_path):
    spec = write_spec(tmp_path, SPEC.replace("change: {layers: last}\n", "method: thresholds\n"))
    patch = solve_spec(spec, tmp_path / "out", Options(report=False)).files["patch"]
    with pytest.raises(PatchError, match="is not wrapped"):
        move_patch(spec, patch, tmp_path / "old.safetensors", back=True)


# ---------------------------------------------------------------- thresholds and offsets


def test_thresholds_are_the_optimum_of_the_frontier(given):
    data = (given.inputs, given.labels)
    gap = observed(given)
    (best,) = threshold_frontier(given.model, gap, [0.05], data, None)
    found = repair_with(given.model, gap, method="thresholds", data=data)
    with torch.no_grad():
        right = float((found.model(given.inputs).argmax(1) == given.labels).double().mean())
        value = float(gap.value(found.model))
    assert right == pytest.approx(best.accuracy)
    assert value == pytest.approx(best.value, abs=1e-5)


def test_a_closer_gap_is_taken_where_the_bounds_ask_for_it():
    draw = torch.Generator().manual_seed(0)
    merit = torch.randn(400, generator=draw, dtype=torch.float64)
    inputs = torch.stack([merit, (torch.arange(400) % 2).double()], 1)
    model = task().model
    gap = GroupGap.observed(inputs, 1, target=0.2)
    closer = GroupGap.observed(inputs, 1, target=0.06, name="closer")
    from repairopt import Bound

    labels = model(inputs).argmax(1)
    found = repair_with(model, gap, [Bound(closer, 0.06)], method="thresholds", data=(inputs, labels)).report
    assert found.verdict == "repaired"
    assert found.verification.goal_after <= 0.06


def test_sampled_gaps_are_measured_on_their_own_inputs(given):
    gap = GroupGap.sampled(given.inputs, 1, count=500, target=0.05)
    found = repair_with(given.model, gap, method="thresholds", data=(given.inputs, given.labels)).report
    assert found.verdict == "repaired"


def test_groups_are_found_by_values_by_one_hot_columns_and_by_ranges():
    draw = torch.Generator().manual_seed(0)
    member = torch.arange(90) % 3
    x = torch.randn(90, 6, generator=draw)
    assert find_columns(x, member) is None
    x[:, 4] = torch.tensor([20.0, 40.0, 70.0])[member] + torch.rand(90, generator=draw)
    found = find_columns(x, member)
    assert found["column"] == 4
    assert torch.equal(torch.bucketize(x[:, 4].contiguous(), torch.tensor(found["cuts"]), right=True), member)
    one_hot = x.clone()
    one_hot[:, [0, 2, 5]] = torch.eye(3)[member]
    assert find_columns(one_hot, member) == {"column": [0, 2, 5]}
    one_hot[:, 1] = torch.tensor([7.0, 8.0, 9.0, 10.0])[torch.where(member == 2, 2 + torch.arange(90) % 2, member)]
    assert find_columns(one_hot, member) == {"column": 1, "values": [[7.0], [8.0], [9.0, 10.0]]}
    assert find_columns(torch.zeros(90, 3, 3), member) is None


def test_offsets_are_those_of_the_same_repair_of_the_module(given):
    from repairopt import GroupOffsets

    data = (given.inputs, given.labels)
    wrapped = GroupOffsets(given.model, given.inputs, 1)
    method = SQP(confidence=None)
    own = repair_with(wrapped, observed(given), method=method, weights="offsets", data=data)
    found = repair_with(given.model, observed(given), method=OffsetsByGroup(of=method), data=data)
    assert torch.allclose(found.model(given.inputs), own.model(given.inputs), atol=1e-5)
    assert found.report.method.startswith("OffsetsByGroup(of=SQP(")


def test_what_they_need_is_said(given):
    data = (given.inputs, given.labels)
    gap = observed(given)
    names = ["ab"[k % 2] for k in range(len(given.inputs))]
    unreadable = GroupGap.observed(given.inputs, sensitive_features=names, target=-1.0)
    with pytest.raises(SpecificationError, match="neither the goal 'wrong' nor a bound compares groups"):
        repair_with(given.model, CallableProperty(lambda p: p(given.inputs).mean(), -9.0, "wrong"), method="offsets")
    with pytest.raises(SpecificationError, match="no column of the inputs .* tells the groups a, b"):
        repair_with(given.model, unreadable, method="offsets")
    with pytest.raises(SpecificationError, match="goal 'odds gap' is no difference of favorable rates"):
        repair_with(given.model, OddsGap.observed(*data, 1, target=0.01), method="thresholds", data=data)
    with pytest.raises(SpecificationError, match="no labelled samples"):
        repair_with(given.model, gap, method="thresholds")
    three = nn.Sequential(given.model, nn.Linear(2, 3)).eval()
    with pytest.raises(SpecificationError, match="3 classes; expected 2"):
        repair_with(three, observed(given, 0.0, favorable=1), method="thresholds", data=data)
    read = Classifier(given.model, lambda model, x: 2 * model(x))
    for method in ("offsets", "thresholds", "vote"):
        with pytest.raises(SpecificationError, match="in another way. Put its forward_fn into a module"):
            repair_with(read, gap, method=method, data=data)
    with pytest.raises(SpecificationError, match="pass column= as well"):
        repair_with(given.model, gap, method=OffsetsByGroup(cuts=[0.5]))
    for method in ("offsets", "thresholds"):
        with pytest.raises(SpecificationError, match="weights=: method .* does not use it"):
            repair_with(given.model, gap, method=method, weights="last", data=data)
    with pytest.raises(SpecificationError, match="solver=: method Thresholds does not use it"):
        repair_with(given.model, gap, method="thresholds", solver="daqp", data=data)


def test_what_ends_the_method_within_leaves_the_best_offsets(given):
    seen = []

    def stop(entry):
        seen.append(entry.goal)
        if len(seen) == 4:
            raise KeyboardInterrupt

    options = {"method": OffsetsByGroup(of=Swarm()), "data": (given.inputs, given.labels)}
    found = repair_with(given.model, observed(given, 0.0), progress=stop, **options)
    assert found.report.stopped == "interrupted"
    assert isinstance(found.candidate, Wrapped)
    assert found.report.verification.goal_after == pytest.approx(seen[-1], abs=1e-6)


# ---------------------------------------------------------------- votes


def test_a_vote_mixes_probabilities(given):
    data = (given.inputs, given.labels)
    found = repair_with(given.model, observed(given), method=Vote(shares=(0.25, 0.9)), weights="last", data=data)
    share = found.candidate.settings["weight"]
    assert share in (0.25, 0.9)
    with torch.no_grad():
        parts = [torch.softmax(model(given.inputs), 1) for model in (given.model, found.model.other)]
        assert torch.allclose(found.model(given.inputs).exp(), (1 - share) * parts[0] + share * parts[1], atol=1e-6)
    assert set(found.candidate.tensors) <= {"2.weight", "2.bias"}


def test_a_vote_with_a_wrapped_network(given):
    data = (given.inputs, given.labels)
    found = repair_with(given.model, observed(given, 0.1), method=Vote(of="thresholds"), data=data)
    assert found.report.verdict == "repaired"
    assert found.candidate.settings["kind"] == "group_offsets"
    with pytest.raises(SpecificationError, match="weights=: method Vote does not use it"):
        repair_with(given.model, observed(given), method=Vote(of="thresholds"), weights="last", data=data)
    for wrong in ((), (0.0,), (1.0,), "0.5"):
        with pytest.raises(SpecificationError, match="method Vote: shares="):
            Vote(shares=wrong)


# ---------------------------------------------------------------- from outside

OUTSIDE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from repairopt.localize import Wrapped
from repairopt.methods import Outcome
from repairopt.program import Status


class Shifted(nn.Module):
    def __init__(self, network, settings, tensors):
        super().__init__()
        self.network, self.column = network, int(settings["column"])
        self.register_buffer("shift", tensors["shift"])

    def forward(self, inputs):
        return self.network(inputs) - inputs[:, self.column, None] * self.shift


@dataclass(frozen=True)
class Shifting:
    uses: ClassVar[frozenset[str]] = frozenset()

    def run(self, task):
        best = task.judge.original
        for size in torch.linspace(0, 1, 41):
            candidate = Wrapped("outside_shift", {"column": -1}, {"shift": torch.stack([-size, size])})
            judged = task.judge(candidate)
            if judged.better_than(best):
                best = task.judge.keep(candidate)
                task.record(f"shift {float(size):.3f}", best)
        return Outcome(best.candidate, Status.FEASIBLE)
"""
POINTS = """[repairopt.methods]
outside_shifting = outside_methods:Shifting

[repairopt.wrappers]
outside_shift = outside_methods:Shifted
"""
USE = """
import sys

sys.path.insert(0, sys.argv[3])
from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec
from repairopt.interfaces.commandline.runs.verify_run import verify_patch
from repairopt.interfaces.testing import check_method
from repairopt.methods import available_methods, find_method

assert "outside_shifting" in available_methods()
check_method(find_method("outside_shifting"))
result = solve_spec(sys.argv[1], sys.argv[2], Options(report=False))
checked = verify_patch(sys.argv[1], result.files["patch"])
print(result.verdict, result.method, checked.sound, checked.met)
"""


def test_a_method_and_a_wrapper_from_outside_the_package(tmp_path):
    outside = tmp_path / "outside"
    info = outside / "outside_methods-1.0.dist-info"
    info.mkdir(parents=True)
    (outside / "outside_methods.py").write_text(OUTSIDE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    text = SPEC.replace("change: {layers: last}\n", "method: outside_shifting\n").replace("  - flips(guard) <= 3\n", "")
    spec = write_spec(tmp_path, text)
    assert run_forked(USE, spec, tmp_path / "out", outside).split() == ["repaired", "Shifting()", "True", "True"]
    patch = tmp_path / "out" / "patch.safetensors"
    assert np.array_equal(load_patch(patch).settings["column"], -1)
    checked = verify_patch(spec, patch)
    assert not checked.sound, "without the package its wrapper is not known"
    assert any("'outside_shift' is not registered" in line.detail for line in checked.checks)
    assert "outside_shifting" not in available_methods()
