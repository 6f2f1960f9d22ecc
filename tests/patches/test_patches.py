"""Patches: exact to the bit in both directions, only on the right weights, and never on the user's own model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from biased_task import repair as repair_with, task
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from sample_networks import CASES, Convolutional, Tied, chain
from torch import nn

from repairopt import ModelError
from repairopt.errors import PatchError, WrongBaseError
from repairopt.patches import Patch, fingerprint, hash_spec
from repairopt.patches.differences import FORMS, Kind, make_difference
from repairopt.patches.tensor_bits import from_bits, round_to_bits, spacing, to_bits, to_float64

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OTHERS = [torch.int64, torch.int16, torch.uint8, torch.int8, torch.float8_e4m3fn]


def special_bits(dtype: torch.dtype) -> list[int]:
    """0.0, -0.0, the smallest and largest subnormal, 1, the largest number, infinity, quiet and signaling NaN."""
    info, size = torch.finfo(dtype), dtype.itemsize * 8
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, info.max, info.min, info.tiny, torch.inf, -torch.inf], dtype=dtype)
    known = [int(b) for b in to_bits(values)]
    infinity = int(to_bits(torch.tensor([torch.inf], dtype=dtype))[0])
    return [*known, 1, int(to_bits(torch.tensor([info.tiny], dtype=dtype))[0]) - 1, infinity + 1, 2**size - 1]


@st.composite
def pairs(draw, dtypes=FLOATS):
    """Bits before and after, of one type and shape; any bits, special ones, and changes of every size."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=3, max_side=6))
    unsigned = np.dtype(f"u{dtype.itemsize}")
    top = 2 ** (8 * dtype.itemsize) - 1
    entry = st.integers(0, top)
    if dtype in FLOATS:
        usual = st.floats(-3, 3, width=64).map(lambda x: int(round_to_bits(np.array([x]), dtype)[0]))
        entry = st.one_of(entry, st.sampled_from(special_bits(dtype)), usual)
    size = int(np.prod(shape))
    before = draw(arrays.arrays(unsigned, size, elements=entry))
    after = draw(arrays.arrays(unsigned, size, elements=entry))
    if dtype in FLOATS and draw(st.booleans()):  # old plus a matrix of rank 1, of tiny to huge size
        draws = np.random.default_rng(draw(st.integers(0, 99)))
        product = np.multiply.outer(draws.normal(size=shape[0]), draws.normal(size=size // shape[0])).reshape(-1)
        with np.errstate(all="ignore"):
            moved = to_float64(before, dtype) + product * 10.0 ** draw(st.integers(-30, 30))
            rounded = round_to_bits(np.nan_to_num(moved, nan=1.0), dtype)
        after = np.where(np.isfinite(moved), rounded, before)
    stays = draw(arrays.arrays(np.bool_, size))
    return Kind(dtype, shape), before, np.where(stays, before, after)


@pytest.mark.parametrize("form", ["auto", *FORMS])
@settings(max_examples=60)
@given(pair=pairs())
def test_every_form_is_exact_to_the_bit_both_ways(form, pair):
    kind, before, after = pair
    given_bits = before.copy(), after.copy()
    difference = make_difference(kind, before, after, form)
    again = type(difference).from_parts(kind, *difference.parts())
    for made in (difference, again):
        np.testing.assert_array_equal(made.move(before), after)
        np.testing.assert_array_equal(made.move(after, back=True), before)
        assert not len(made.stale(before))
        assert not len(made.stale(after, back=True))
    assert set(np.flatnonzero(before != after)) <= set(difference.touched)
    assert (before == given_bits[0]).all()
    assert (after == given_bits[1]).all()


@pytest.mark.parametrize("form", ["auto", *FORMS])
@given(pair=pairs(OTHERS))
def test_other_types_change_exactly_too(form, pair):
    kind, before, after = pair
    difference = make_difference(kind, before, after, form)
    np.testing.assert_array_equal(difference.move(before), after)
    np.testing.assert_array_equal(difference.move(after, back=True), before)


@given(pair=pairs(), data=st.data())
def test_a_patch_of_a_state_dict_goes_there_and_back(pair, data):
    kind, before, after = pair
    old, new = ({"w": from_bits(b, kind.dtype, kind.shape), "other": torch.ones(2)} for b in (before, after))
    patch = Patch.between(old, new, form=data.draw(st.sampled_from(["auto", *FORMS])))
    moved = patch.apply_to_state_dict(old)
    assert (to_bits(moved["w"]) == after).all()
    assert (to_bits(patch.revert_state_dict(moved)["w"]) == before).all()
    assert moved["other"] is old["other"]


@given(st.lists(st.floats(allow_nan=False, width=64), min_size=1))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rounding_agrees_with_torch(dtype, values):
    numbers = np.array(values)
    with np.errstate(all="ignore"):
        rounded = round_to_bits(numbers, dtype)
    by_way_of = torch.float32 if dtype == torch.bfloat16 else torch.float64
    expected = torch.from_numpy(numbers).to(by_way_of).to(dtype)
    if dtype == torch.float16:  # torch rounds twice, by way of float32; within one step of the nearest
        near = torch.from_numpy(rounded.view(np.float16).astype(np.float64)) - expected.double()
        steps = near.nan_to_num(0.0).abs().numpy() / np.maximum(spacing(numbers, dtype), 2.0**-24)
        assert steps.max() <= 1
    else:
        assert (to_bits(expected) == rounded).all()
    assert to_float64(rounded, dtype).tolist() == from_bits(rounded, dtype, (len(values),)).double().tolist()


@pytest.mark.parametrize(("changed", "form"), [(5, "sparse"), (900, "dense")])
def test_the_smallest_form_is_taken(changed, form):
    old = torch.randn(30, 30)
    new = old.clone()
    new.view(-1)[:changed] += torch.rand(changed) + 1
    (change,) = Patch.between({"w": old}, {"w": new}).changes
    assert change.difference.form == form
    assert change.count == changed
    assert change.largest == pytest.approx(float((new - old).abs().max()))
    sizes = {name: make_difference(change.difference.kind, to_bits(old), to_bits(new), name).bytes for name in FORMS}
    assert change.difference.bytes == min(sizes.values())


def shaken(model: nn.Module, *names: str) -> nn.Module:
    """A copy with noise on some weights, or on all."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if not names or name in names:
                weight += 0.1 * torch.randn(weight.shape, dtype=torch.float64).to(weight)
    return other


@pytest.mark.parametrize("form", ["auto", "sparse", "dense"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_models_of_every_kind_go_there_and_back(case, form, fingerprint):
    model = case.model()
    repaired = shaken(model)
    patch = Patch.between(model, repaired, form=form)
    before = fingerprint(model)
    applied = patch.apply(model)
    assert fingerprint(model) == before
    inputs = case.inputs()
    assert torch.equal(case.logits(applied, inputs), case.logits(repaired, inputs))
    applied_before = fingerprint(applied)
    reverted = patch.revert(applied)
    assert fingerprint(applied) == applied_before
    assert torch.equal(case.logits(reverted, inputs), case.logits(model, inputs))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_copy_keeps_mode_flags_and_ties(dtype):
    model = Tied().to(dtype).train()
    model.out.requires_grad_(False)
    repaired = shaken(model, "first.weight")
    patch = Patch.between(model, repaired)
    applied = patch.apply(model)
    assert applied.training
    assert not applied.out.weight.requires_grad
    assert applied.first.weight.requires_grad
    assert applied.second.weight is applied.first.weight
    assert patch.changes[0].names == ("first.weight", "second.weight")
    assert torch.equal(applied.first.weight, repaired.first.weight)


def test_a_tied_weight_may_stand_in_a_state_dict_once():
    model = Tied()
    repaired = shaken(model, "first.weight")
    patch = Patch.between(model, repaired)
    state = model.state_dict()
    del state["second.weight"]
    moved = patch.apply_to_state_dict(state)
    assert list(moved) == list(state)
    assert torch.equal(moved["first.weight"], repaired.first.weight)
    whole = patch.apply_to_state_dict(model.state_dict())
    assert whole["first.weight"] is whole["second.weight"]


def test_different_values_for_one_tied_weight_are_refused():
    model = Tied()
    untied = {name: value.clone() for name, value in model.state_dict().items()}
    other = {**untied, "first.weight": untied["first.weight"] + 1}
    with pytest.raises(PatchError, match=r"'first.weight', 'second.weight' are one tied weight in the base, but diff"):
        Patch.between(model, other)
    with pytest.raises(PatchError, match=r"are one tied weight, but the patch gives them different values"):
        Patch.between(untied, other).apply(model)


def test_buffers_are_part_of_the_base():
    model = Convolutional()
    patch = Patch.between(model, shaken(model, "fc.weight"))
    trained_on = copy.deepcopy(model)
    trained_on.bn.running_mean += 1
    with pytest.raises(WrongBaseError, match=r"1 differ: 'bn.running_mean'\. Load the right weights"):
        patch.apply(trained_on)


def test_buffers_that_changed_are_patched_as_well():
    model = Convolutional().train()
    trained_on = copy.deepcopy(model)
    trained_on(torch.randn(5, 1, 6, 6))
    patch = Patch.between(model, trained_on)
    assert {name for change in patch.changes for name in change.names} == {
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    }
    assert fingerprint(patch.apply(model)) == fingerprint(trained_on)


class Transient(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)


def test_buffers_outside_of_the_state_dict_are_no_part_but_must_not_differ():
    one, two = Transient(1.0), Transient(2.0)
    assert fingerprint(one) == fingerprint(one.state_dict())
    with pytest.raises(PatchError, match=r"buffers outside of the state dict: 1 differ: 'scale'"):
        Patch.between(one, two)


def test_layout_in_memory_and_order_of_names_do_not_matter():
    model = chain()
    turned = copy.deepcopy(model)
    turned[2].weight = nn.Parameter(turned[2].weight.detach().t().contiguous().t())
    assert not turned[2].weight.is_contiguous()
    backwards = dict(reversed(model.state_dict().items()))
    assert fingerprint(turned) == fingerprint(model) == fingerprint(backwards)
    patch = Patch.between(model, shaken(model))
    applied = patch.apply(turned)
    assert applied[2].weight.stride() == turned[2].weight.stride()
    assert fingerprint(patch.revert(applied)) == fingerprint(model)
    assert list(patch.apply_to_state_dict(backwards)) == list(backwards)


def test_hashes_tell_bits_types_shapes_and_names_apart():
    states = [
        {"w": torch.zeros(4)},
        {"w": -torch.zeros(4)},
        {"w": torch.zeros(4, dtype=torch.int32)},
        {"w": torch.zeros(2, 2)},
        {"v": torch.zeros(4)},
        {"w": torch.zeros(4), "v": torch.zeros(0)},
    ]
    nans = [from_bits(np.array([bits], dtype=np.uint32), torch.float32, (1,)) for bits in (0x7FC00000, 0x7FC00001)]
    totals = [fingerprint(state).total for state in [*states, *({"w": nan} for nan in nans)]]
    assert len(set(totals)) == len(totals)


def test_nothing_to_change_is_a_patch_too(tmp_path):
    model = chain()
    patch = Patch.between(model, copy.deepcopy(model))
    patch.save(tmp_path / "none.safetensors")
    again = Patch.load(tmp_path / "none.safetensors")
    assert not again.changes
    assert fingerprint(again.apply(model)) == fingerprint(model)


def test_a_second_application_says_so():
    model = chain()
    patch = Patch.between(model, shaken(model))
    applied = patch.apply(model)
    with pytest.raises(WrongBaseError, match="is applied to these weights already; there is nothing to do"):
        patch.apply(applied)
    with pytest.raises(WrongBaseError, match="is not applied to these weights; there is nothing to do"):
        patch.revert(model)


def test_a_wrong_base_is_refused_by_the_names_of_its_tensors(fingerprint):
    model = chain()
    patch = Patch.between(model, shaken(model, "4.weight"))
    other = shaken(model, "0.bias", "2.weight")
    before = fingerprint(other)
    with pytest.raises(WrongBaseError, match=r"not the weights that it was made for .* 2 differ: '0.bias', '2.weight'"):
        patch.apply(other)
    assert fingerprint(other) == before
    with pytest.raises(WrongBaseError, match=r"4 are missing: .*; 2 are not expected: 'weight', 'bias'"):
        Patch.between(
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        ).apply(nn.Linear(2, 2))
    with pytest.raises(WrongBaseError, match=r"6 differ"):
        patch.apply(copy.deepcopy(model).double())
    with pytest.raises(WrongBaseError, match=r"1 differ: '4.bias'"):
        patch.apply_to_state_dict({**model.state_dict(), "4.bias": torch.zeros(3)})


def test_a_difference_that_does_not_lead_to_the_hash_is_refused():
    base = {"w": torch.zeros(3)}
    one, two = (Patch.between(base, {"w": torch.full((3,), value)}) for value in (1.0, 2.0))
    forged = Patch(one.changes, one.base, two.repaired)
    with pytest.raises(PatchError, match=r"weight 'w': the result is not what the patch promises"):
        forged.apply_to_state_dict(base)


@pytest.mark.parametrize(
    ("base", "repaired", "message"),
    [
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "only the base weights have 'a'"),
        ({"a": torch.ones(2)}, {"a": torch.ones(3)}, r"weight 'a': is torch.float32 \(2,\) in the base but"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2).double()}, r"float64 \(2,\) in the repaired weights.* Cast before"),
        (
            {"a": torch.ones(2, dtype=torch.complex64)},
            {"a": torch.zeros(2, dtype=torch.complex64)},
            r"weight 'a': has type torch.complex64, which patches cannot change",
        ),
    ],
)
def test_weights_of_other_kinds_are_refused(base, repaired, message):
    with pytest.raises(PatchError, match=message):
        Patch.between(base, repaired)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("weights.pt", r"expected a torch.nn.Module or a state dict, got str.*load_weights"),
        ({"a": [1.0]}, r"model, 'a': expected a tensor, got list"),
        ({"a": torch.ones(2, device="meta")}, r"'a': has no data yet"),
        (nn.LazyLinear(3), r"'weight': has no data yet"),
        ({"a": torch.eye(3).to_sparse()}, r"'a': is sparse or quantized"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, r"expected entries of at most 8 bytes"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_is_no_weights_is_refused(weights, message):
    with pytest.raises(ModelError, match=message):
        fingerprint(weights)


def test_forms_are_checked():
    base, new = {"w": torch.ones(3)}, {"w": torch.zeros(3)}
    with pytest.raises(PatchError, match=r"weight 'w': form='best': choose auto, sparse, dense"):
        Patch.between(base, new, form="best")
    with pytest.raises(PatchError, match=r"form: the weights have no 'v'"):
        Patch.between(base, new, form={"v": "sparse"})
    assert Patch.between(base, new, form={"w": "dense"}).changes[0].difference.form == "dense"


def test_expanded_tensors_are_refused():
    model = nn.Linear(3, 2)
    model.register_buffer("mean", torch.zeros(1).expand(2))
    patch = Patch.between(model.state_dict(), {**model.state_dict(), "mean": torch.ones(2)})
    with pytest.raises(PatchError, match=r"weight 'mean': is an expanded tensor"):
        patch.apply(model)


def test_state_that_overlaps_in_part_is_noticed():
    model = nn.Linear(2, 2)
    memory = torch.arange(5.0)
    model.register_buffer("mean", memory[:2])
    model.register_buffer("view", memory[1:3])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    patch = Patch.between(state, {**state, "mean": torch.tensor([7.0, 8.0])})
    with pytest.raises(PatchError, match=r"the copy is not what the patch promises: 1 differ: 'view'"):
        patch.apply(model)


def test_models_that_cannot_be_copied_are_named():
    model = nn.Linear(2, 2)
    patch = Patch.between(model, shaken(model))
    model.lock = (number for number in range(3))
    with pytest.raises(ModelError, match=r"model Linear: cannot be copied .*Patch its state dict instead"):
        patch.apply(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_models_on_a_gpu_stay_there():
    model = nn.Sequential(nn.Linear(4, 8), nn.LSTM(8, 8), nn.Linear(8, 3)).cuda()
    repaired = shaken(model)
    patch = Patch.between(model, repaired)
    assert fingerprint(model) == fingerprint(copy.deepcopy(model).cpu())
    applied = patch.apply(model)
    assert {p.device.type for p in applied.parameters()} == {"cuda"}
    assert fingerprint(applied) == fingerprint(repaired)
    assert fingerprint(patch.apply(copy.deepcopy(model).cpu())) == fingerprint(repaired)
    assert {v.device.type for v in patch.apply_to_state_dict(model.state_dict()).values()} == {"cuda"}


@pytest.fixture(scope="module")
def repaired_task():
    toy = task(count=200, dtype=torch.float32)
    options = {"weights": "last", "held_out": toy.held_out, "method": "incremental", "seed": 3}
    return toy, repair_with(toy.model, toy.gap(), [toy.keep()], **options)


def test_a_repair_becomes_a_patch_that_says_where_it_is_from(repaired_task, tmp_path):
    toy, repair = repaired_task
    patch = Patch.from_repair(repair, toy.model, spec={"gap": 0.05})
    assert fingerprint(patch.apply(toy.model)) == fingerprint(repair.model)
    info = patch.info
    assert info.seed == 3
    assert info.solver in str([entry.solver for entry in repair.report.rounds])
    assert info.spec_hash == hash_spec({"gap": 0.05})
    assert {"repairopt", "torch", "python"} <= set(info.versions)
    assert info.created.endswith("+00:00")
    goal, held_out = info.claims[:2]
    assert goal["value"] == repair.report.verification.goal_after
    assert goal["bound"] == 0.05
    assert goal["met"] is (goal["value"] <= 0.05)
    assert {claim["data"] for claim in info.claims} == {"repair", "held-out"}
    assert {"keep labels", goal["name"]} <= {claim["name"] for claim in info.claims}
    assert all(set(claim) == {"name", "value", "before", "bound", "met", "data", "basis"} for claim in info.claims)
    assert "NOT MET" in str(Patch.from_repair(repair, toy.model, claims=[{**held_out, "met": False}]))


def test_a_repair_of_another_model_is_refused(repaired_task):
    toy, repair = repaired_task
    with pytest.raises(
        WrongBaseError, match=r"base_model: '0.weight' differ from the repaired model by something else"
    ):
        Patch.from_repair(repair, shaken(toy.model, "0.weight"))
    with pytest.raises(WrongBaseError, match=r"base_model: '2.weight' differ"):
        Patch.from_repair(repair, shaken(toy.model, "2.weight"))


def test_what_is_said_about_a_patch_is_checked():
    base, new = {"w": torch.ones(3)}, {"w": torch.zeros(3)}
    with pytest.raises(PatchError, match=r"claims\[0\], 'gap': is not JSON .*finite"):
        Patch.between(base, new, claims=[{"name": "gap", "value": float("nan")}])
    with pytest.raises(PatchError, match=r"claims\[0\]: expected a dict, got str"):
        Patch.between(base, new, claims=["fine"])
    with pytest.raises(PatchError, match=r"spec_hash='abc': expected 64 hexadecimal digits"):
        Patch.between(base, new, spec_hash="abc")
    with pytest.raises(PatchError, match=r"spec and spec_hash were both given"):
        Patch.between(base, new, spec="x", spec_hash=hash_spec("x"))
    with pytest.raises(PatchError, match=r"a patch has no field sover; choose of solver, seed"):
        Patch.between(base, new, sover="daqp")
    with pytest.raises(PatchError, match=r"spec of type object: is not JSON"):
        hash_spec(object())


def test_a_specification_is_hashed_as_text_file_or_json(tmp_path):
    path = tmp_path / "spec.txt"
    path.write_text("gap <= 0.05", encoding="utf-8")
    assert hash_spec(path) == hash_spec("gap <= 0.05") == hash_spec(b"gap <= 0.05")
    assert hash_spec([1, 2]) != hash_spec([2, 1])
    with pytest.raises(PatchError, match=r"spec '.*none.txt': cannot be read"):
        hash_spec(tmp_path / "none.txt")
