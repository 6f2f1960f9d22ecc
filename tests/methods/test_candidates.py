"""Candidates and wrapped patches: what a repair proposes is a file that is saved, checked, applied and reverted."""

import copy
import json
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from biased_task import task
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from repairopt import ChangeLimit, GroupOffsets, ModelError
from repairopt.errors import PatchError, WrongBaseError
from repairopt.localize import Location, NewWeights, WeightChange, Wrapped
from repairopt.network import Candidate, Engine
from repairopt.patches import Patch, WrappedPatch, load_patch, wrap, wrapped_patch
from repairopt.specify import Specification
from repairopt.verify import Judge


@pytest.fixture
def given():
    return task(dtype=torch.float32)


def offsets(given, size=0.5):
    module = GroupOffsets(given.model, given.inputs, 1)
    with torch.no_grad():
        module.offsets[1, 0] = size
    return Wrapped("group_offsets", *module.parts())


def other_weights(model):
    return {"2.weight": model[2].weight.detach() + 0.1}


KINDS = {
    "weight change": lambda given: WeightChange(Location({"2.bias": torch.arange(2)}), np.array([0.25, -0.5])),
    "new weights": lambda given: NewWeights(other_weights(given.model), 3),
    "offsets": offsets,
    "vote": lambda given: Wrapped("vote", {"weight": 0.25}, other_weights(given.model)),
    "vote with offsets": lambda given: Wrapped(
        "vote", {"weight": 0.5, "kind": "group_offsets", "settings": offsets(given).settings}, offsets(given).tensors
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_file_that_leads_there_and_back(kind, given, tmp_path, fingerprint):
    candidate, before = KINDS[kind](given), fingerprint(given.model)
    assert isinstance(candidate, Candidate)
    changed = candidate.apply(given.model)
    indices = {"2.bias": torch.arange(2)} if kind == "weight change" else {}
    predict = candidate.predict(Engine(given.model, indices))
    assert torch.allclose(predict(given.inputs), changed(given.inputs), atol=1e-6)
    assert not torch.allclose(changed(given.inputs), given.model(given.inputs), atol=1e-3)
    patch = candidate.as_patch(given.model, notes="by hand", seed=3)
    patch.save(tmp_path / "it.safetensors")
    again = load_patch(tmp_path / "it.safetensors", expected_hash=patch.content_hash)
    assert type(again) is (WrappedPatch if isinstance(candidate, Wrapped) else Patch)
    assert (again.info.notes, again.info.seed) == ("by hand", 3)
    assert str(again) == str(patch)
    assert patch.content_hash in str(patch)
    applied = again.apply(given.model)
    assert torch.equal(applied(given.inputs), changed(given.inputs))
    assert torch.equal(again.revert(applied)(given.inputs), given.model(given.inputs))
    assert fingerprint(given.model) == before
    assert candidate.size() > 0
    assert candidate.describe()


@pytest.mark.parametrize("mode", [True, False])
def test_the_modes_of_the_modules_stay(mode, given):
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 2)).train(mode)
    model[1].train(not mode)
    wrapped = offsets(given)
    made = wrapped.as_patch(model).apply(model)
    assert made.training is mode
    assert [m.training for m in made.network] == [mode, not mode, mode]


def test_wrong_weights_are_refused_both_ways(given):
    patch = offsets(given).as_patch(given.model)
    other = copy.deepcopy(given.model)
    with torch.no_grad():
        other[0].bias[0] += 1
    with pytest.raises(WrongBaseError, match=r"was made for.*'0.bias'"):
        patch.apply(other)
    with pytest.raises(PatchError, match="is not wrapped"):
        patch.revert(given.model)
    with pytest.raises(WrongBaseError, match="led to"):
        patch.revert(offsets(given, 0.75).apply(given.model))


def tampered(path, target, *, header=None, tensors=None):
    with safe_open(path, "pt") as file:
        texts, found = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header is not None:
        key = next(key for key in texts if key == "repairopt_wrapped")
        texts[key] = json.dumps({**json.loads(texts[key]), **header})
    save_file({**found, **(tensors or {})}, target, texts)
    return target


@pytest.mark.parametrize("change", [{"header": {"kind": "vote"}}, {"tensors": {"offsets": torch.ones(2, 2)}}])
def test_a_file_that_was_changed_is_refused(change, given, tmp_path):
    path = tmp_path / "it.safetensors"
    patch = offsets(given).as_patch(given.model)
    patch.save(path)
    with pytest.raises(PatchError, match="changed or damaged"):
        load_patch(tampered(path, tmp_path / "other.safetensors", **change))
    with pytest.raises(PatchError, match="another patch"):
        load_patch(path, expected_hash="0" * 64)


def test_kinds_that_are_unknown_or_do_not_fit_are_refused(given, tmp_path):
    good = offsets(given)
    with pytest.raises(PatchError, match=r"'mirror' is not registered; known are .*group_offsets, .*vote"):
        Wrapped("mirror").as_patch(given.model)
    for settings, tensors in [
        ({}, good.tensors),
        (good.settings, {}),
        (good.settings, {**good.tensors, "offsets": torch.zeros(3, 2)}),
    ]:
        with pytest.raises(PatchError, match="'group_offsets': its settings or tensors do not fit"):
            wrap("group_offsets", given.model, settings, tensors)
    for weight, tensors in [(1.5, {}), (0.5, {"2.weight": torch.zeros(1)}), (0.5, {"no such": torch.zeros(1)})]:
        with pytest.raises(PatchError, match="'vote': its settings or tensors do not fit"):
            wrap("vote", given.model, {"weight": weight}, tensors)


def test_a_wrapper_that_makes_something_else_is_noticed(given, monkeypatch):
    patch = offsets(given).as_patch(given.model)
    points = {"group_offsets": EntryPoint("group_offsets", f"{__name__}:doubled", wrapped_patch.GROUP)}
    monkeypatch.setattr(wrapped_patch, "_kinds", lambda: points)
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("sys").modules[__name__])
    with pytest.raises(PatchError, match="another network than when the patch was made"):
        patch.apply(given.model)


def doubled(network, settings, tensors):
    return GroupOffsets.from_parts(network, settings, {**tensors, "offsets": 2 * tensors["offsets"]})


def test_new_weights_that_do_not_fit_are_named(given):
    with pytest.raises(ModelError, match=r"'2.bias' have shape \(3,\); expected shape \(2,\)"):
        NewWeights({"2.bias": torch.zeros(3)}).apply(given.model)
    with pytest.raises(ModelError, match="'9.bias'.*expected a name"):
        NewWeights({"9.bias": torch.zeros(3)}).apply(given.model)


def test_limits_on_the_change_are_judged_for_every_kind(given):
    engine = Engine(given.model, {"2.weight": torch.arange(8)})
    judge = Judge(engine, Specification(given.gap(), [ChangeLimit(absolute=0.05)]))
    assert not judge(NewWeights(other_weights(given.model))).change_holds
    assert judge(NewWeights({"2.weight": given.model[2].weight.detach() + 0.04})).change_holds
    assert judge(KINDS["vote"](given)).change_holds, "the original's weights stay"
    assert judge(offsets(given)).change_holds


def test_exploring_is_not_remembered_but_keeping_is(given):
    judge = Judge(Engine(given.model), Specification(given.gap()))
    fair = offsets(given, 0.0)
    moved = dict(fair.tensors)
    moved["offsets"] = torch.tensor([[0.8, 0.0], [2.4, 0.0]])
    better = Wrapped("group_offsets", fair.settings, moved)
    assert judge(better).better_than(judge.original)
    assert judge.best is judge.original
    assert judge.keep(better) is judge.best
