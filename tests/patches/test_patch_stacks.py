"""Several patches on one model: chains, side by side, conflicts."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, strategies as st
from sample_networks import Tied, chain

from repairopt.errors import PatchConflictError, PatchError, WrongBaseError
from repairopt.patches import Patch, fingerprint
from repairopt.patches.stack import apply_all, find_conflicts, revert_all


def moved(state, **entries):
    """A copy of a state with some entries set: ``name=(position, value)``, dots as ``__``."""
    new = {name: value.clone() for name, value in state.items()}
    for name, (position, value) in entries.items():
        new[name.replace("__", ".")[1:]].view(-1)[position] = value
    return new


@pytest.fixture
def model():
    return chain()


def make(state, form="auto", **entries):
    return Patch.between(state, moved(state, **entries), form=form)


def test_a_chain_applies_in_order_and_reverts_in_reverse(model, fingerprint):
    first = make(model.state_dict(), _4__bias=(0, 5.0))
    second = make(first.apply_to_state_dict(model.state_dict()), _4__bias=(0, 6.0), _0__weight=(3, 1.0))
    before = fingerprint(model)
    both = apply_all(model, [first, second])
    assert fingerprint(model) == before
    assert both[4].bias[0].item() == 6
    assert not find_conflicts([first, second])
    back = revert_all(both, [first, second])
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))
    with pytest.raises(WrongBaseError, match=r"patches\[0\]: the patch does not fit.*1 differ: '4.bias'"):
        apply_all(model, [second, first])


def test_patches_side_by_side_need_to_be_asked_for(model):
    state = model.state_dict()
    patches = [make(state, _4__bias=(0, 5.0)), make(state, _4__bias=(1, 6.0))]
    with pytest.raises(PatchConflictError, match=r"patches\[1\] was made on the weights before .*same_base=True"):
        apply_all(model, patches)
    both = apply_all(model, patches, same_base=True)
    assert both[4].bias[:2].tolist() == [5, 6]
    assert fingerprint(revert_all(both, patches, same_base=True)) == fingerprint(model)


@pytest.mark.parametrize("forms", list(itertools.product(["sparse", "dense"], repeat=2)), ids=str)
@given(split=st.lists(st.sampled_from([0, 1, 2]), min_size=48, max_size=48))
def test_disjoint_patches_commute(forms, split):
    torch.manual_seed(1)
    state = {"w": torch.randn(6, 8), "b": torch.zeros(2)}
    owner = torch.tensor(split).view(6, 8)
    wanted = torch.randn(6, 8)
    patches = [
        Patch.between(state, {**state, "w": torch.where(owner == i, wanted, state["w"])}, form=forms[i]) for i in (0, 1)
    ]
    assert not find_conflicts(patches)
    expected = {**state, "w": torch.where(owner < 2, wanted, state["w"])}
    net = torch.nn.Module()
    for name, value in state.items():
        net.register_buffer(name, value)
    for order in (patches, patches[::-1]):
        both = apply_all(net, order, same_base=True)
        assert fingerprint(both) == fingerprint(expected)
        assert fingerprint(revert_all(both, order, same_base=True)) == fingerprint(net)


@pytest.mark.parametrize("forms", list(itertools.product(["sparse", "dense"], repeat=2)), ids=str)
def test_overlaps_are_reported_by_weight_count_and_positions(model, forms):
    state = model.state_dict()
    one = {name: value.clone() for name, value in state.items()}
    two = {name: value.clone() for name, value in state.items()}
    one["2.weight"].view(-1)[10:30] += 1
    two["2.weight"].view(-1)[20:40] += 2
    two["4.bias"][0] += 1
    patches = [Patch.between(state, new, form=form) for new, form in zip((one, two), forms, strict=True)]
    (conflict,) = find_conflicts(patches)
    assert (conflict.first, conflict.second, conflict.weight) == (0, 1, "2.weight")
    assert conflict.count == 10
    assert conflict.positions == (20, 21, 22, 23, 24)
    assert str(conflict) == "patches 0 and 1: '2.weight', 10 entries at 20, 21, 22, 23, 24, ..."
    with pytest.raises(
        PatchConflictError, match=r"patches are in conflict:\n  patches 0 and 1: '2.weight', 10"
    ) as raised:
        apply_all(model, patches, same_base=True)
    assert raised.value.conflicts == (conflict,)


def test_the_same_change_twice_is_a_conflict(model):
    patch = make(model.state_dict(), _4__bias=(0, 5.0))
    assert [c.count for c in find_conflicts([patch, patch])] == [1]


def test_a_chain_with_one_beside_it(model):
    state = model.state_dict()
    first, beside = make(state, _4__bias=(0, 5.0)), make(state, _4__bias=(1, 6.0))
    second = make(first.apply_to_state_dict(state), _4__bias=(0, 7.0), _2__bias=(0, 1.0))
    for order in ([first, beside, second], [first, second, beside], [beside, first, second]):
        assert not find_conflicts(order)
        both = apply_all(model, order, same_base=True)
        assert both[4].bias[:2].tolist() == [7, 6]
        assert both[2].bias[0].item() == 1
        assert fingerprint(revert_all(both, order, same_base=True)) == fingerprint(model)
    against = make(state, _2__bias=(0, 2.0))
    assert [(c.first, c.second, c.weight) for c in find_conflicts([first, second, against])] == [(1, 2, "2.bias")]


def test_patches_of_other_weights_are_a_conflict(model):
    patches = [make(model.state_dict(), _4__bias=(0, 5.0)), make(chain().state_dict(), _4__bias=(1, 5.0))]
    (conflict,) = find_conflicts(patches)
    assert str(conflict) == "patches 0 and 1: made for different weights, and neither on top of the other"
    with pytest.raises(PatchConflictError, match="made for different weights"):
        apply_all(model, patches, same_base=True)
    with pytest.raises(WrongBaseError, match=r"patches\[1\]: the patch does not fit"):
        apply_all(model, patches)


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_reverting_after_another_change_to_a_touched_entry_is_refused(model, form):
    state = model.state_dict()
    patches = [make(state, form, _4__bias=(0, 5.0)), make(state, form, _4__bias=(1, 6.0))]
    both = apply_all(model, patches, same_base=True)
    with torch.no_grad():
        both[4].bias[1] = 9
    with pytest.raises(
        WrongBaseError, match=r"patches\[1\]: '4.bias' does not have the values of the repair in .* at 1"
    ):
        revert_all(both, patches, same_base=True)


def test_reverting_after_a_change_elsewhere_is_refused(model):
    state = model.state_dict()
    patches = [make(state, _4__bias=(0, 5.0)), make(state, _4__bias=(1, 6.0))]
    both = apply_all(model, patches, same_base=True)
    with torch.no_grad():
        both[0].bias[0] = 9
    with pytest.raises(WrongBaseError, match=r"1 differ: '0.bias'"):
        revert_all(both, patches, same_base=True)


def test_ties_conflict_under_either_name():
    model = Tied()
    loose = {name: value.clone() for name, value in model.state_dict().items()}
    one = Patch.between(
        model,
        {
            **moved(loose, _first__weight=(0, 1.0)),
            "second.weight": moved(loose, _first__weight=(0, 1.0))["first.weight"],
        },
    )
    two = make(loose, _second__weight=(0, 2.0))
    (conflict,) = find_conflicts([one, two])
    assert conflict.count == 1


def test_no_patches_give_a_plain_copy(model):
    for copied in (apply_all(model, []), revert_all(model, [])):
        assert copied is not model
        assert fingerprint(copied) == fingerprint(model)
    assert find_conflicts([]) == []


def test_errors_are_patch_errors():
    assert issubclass(WrongBaseError, PatchError)
    assert issubclass(PatchConflictError, PatchError)
