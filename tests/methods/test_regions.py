"""Repair of whole regions: proved by the default call, for the deployed weights."""

from __future__ import annotations

import re

import pytest
import torch
from clipped_law import controller
from linear_regions import box, is_violated_exactly
from torch import nn

from repairopt import Settings, solve_repair
from repairopt.errors import SpecificationError, UnsupportedError
from repairopt.methods import LeafDescent, RegionRepair
from repairopt.methods.regions.last_layer import RegionSearchState
from repairopt.methods.regions.least_change import LeastChange
from repairopt.network import LastLayer, Leaves, NetworkSteps, RegionSearch, own_last_layer
from repairopt.report import Verdict
from repairopt.specify import KeepLowest, KeepOutputs, KeepRegions, Region, UnprovedRegions
from repairopt.verify import load_proof, save_proof


def limits(bound: float) -> Region:
    return Region([-1.0, -1.0], [1.0, 1.0], [[1.0], [-1.0]], [-bound, -bound], name="the command stays in its range")


def worst(model: nn.Module, region: Region) -> float:
    """Least value on 200,000 random points, and where an attack goes from the lowest of them."""
    draw = torch.Generator().manual_seed(9)
    lower, upper = region.lower.float(), region.upper.float()
    x = lower + (upper - lower) * torch.rand(200_000, 2, generator=draw)
    with torch.no_grad():
        found = values = _least(model, region, x)
    x = x[values.argsort()[:2000]]
    for step in range(20):
        x.requires_grad_()
        values = _least(model, region, x)
        (slope,) = torch.autograd.grad(values.sum(), x)
        found = torch.minimum(found.amin(), values.detach().amin())
        x = torch.clamp(x.detach() - 0.05 * 0.8**step * (upper - lower) * slope.sign(), lower, upper)
    return float(found)


def _least(model: nn.Module, region: Region, x: torch.Tensor) -> torch.Tensor:
    return (model(x).double() @ region.matrix.T - region.offset).amin(1)


@pytest.mark.parametrize("method", ["sqp", "swarm", "fine_tune", "incremental", "hudd"])
def test_methods_that_read_points_alone_refuse_regions(method: str) -> None:
    with pytest.raises(SpecificationError, match=r"regions not proved.*points alone.* Leave method= out"):
        solve_repair(controller(), limits(1.03), method=method)


def violated(model: nn.Sequential, region: Region) -> bool:
    """Whether the unsafe set is reached, by all linear regions of the network in rational arithmetic."""
    layers = [(one.weight.detach().numpy(), one.bias.detach().numpy()) for one in model if isinstance(one, nn.Linear)]
    return is_violated_exactly(layers, region, box(region.lower.tolist(), region.upper.tolist()))


def test_default_call_proves_a_region() -> None:
    model = controller()
    region = limits(1.03)
    assert worst(model, region) < 0
    assert violated(model, region)
    x = 2 * torch.rand(2000, 2) - 1
    repair = solve_repair(model, region, [KeepOutputs(x, 0.1, weight=1.0, tolerance=1.0)], settings=Settings(seed=1))
    assert repair.report.verdict is Verdict.REPAIRED
    assert "regions are proved" in repair.report.meaning
    assert "RegionRepair" in repair.report.method
    assert worst(repair.model, region) > 0
    assert not violated(repair.model, region)
    details = repair.report.verification.measures[0].details
    assert details["share of the volume proved"][1] == 1.0
    assert details["regions with a counterexample"] == (1.0, 0.0)
    with torch.no_grad():
        assert float((repair.model(x) - model(x)).abs().mean()) < 0.1


def test_optimized_lines_need_fewer_boxes() -> None:
    boxes = []
    for steps in (0, 10):
        method = RegionRepair(alpha_steps=steps, refinements=0)
        report = solve_repair(controller(), limits(1.03), method=method).report
        assert report.verdict is Verdict.REPAIRED
        assert report.proof_verdict is not None
        assert report.proof_verdict.status == "proved"
        boxes.append(report.proof_verdict.leaves)
    assert boxes[1] < boxes[0]


def test_the_reduced_change_is_near_its_lower_bound_and_its_slopes_are_checked(tmp_path) -> None:
    x = 2 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) - 1
    goal = UnprovedRegions(limits(1.03), keep=x)
    report = solve_repair(controller(), goal).report
    assert report.verdict is Verdict.REPAIRED
    gaps = [re.findall(r"[\d.]+(?=%)", one.step) for one in report.rounds if "gap" in one.step]
    own, whole = map(float, gaps[-1])
    assert own < 5.0, "the least change at the margin that it keeps"
    assert whole < 60.0, "and not far from the least that any repair of these rows makes"
    assert report.proof.leaf_slopes is not None
    save_proof(report.proof, tmp_path / "proof.safetensors")
    found = load_proof(tmp_path / "proof.safetensors")
    assert (found.leaf_slopes == report.proof.leaf_slopes).all()


def test_where_boxes_are_many_the_search_starts_anew_with_cuts(monkeypatch) -> None:
    region = limits(1.03)
    boxes = []
    for most in (6000, 3):
        monkeypatch.setattr("repairopt.methods.regions.region_repair.CUT_AT", most)
        repair = solve_repair(controller(), region, method=RegionRepair(refinements=0))
        assert repair.report.verdict is Verdict.REPAIRED
        assert worst(repair.model, region) > 0
        boxes.append(repair.report.proof_verdict.leaves)
    assert boxes[1] <= 12 < boxes[0]


def test_a_region_that_holds_is_proved_and_nothing_changes() -> None:
    model = controller()
    repair = solve_repair(model, limits(3.0))
    assert repair.report.verdict is Verdict.REPAIRED
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), repair.model.parameters(), strict=True))


def test_regions_as_a_bound() -> None:
    model = controller()
    keep = KeepRegions(limits(1.03), name="range")
    goal = UnprovedRegions(Region([-0.1, -0.1], [0.1, 0.1], [[1.0]], [-0.5], name="near zero"))
    repair = solve_repair(model, goal, [keep], method="regions")
    assert repair.report.verification.checks[0].holds
    assert worst(repair.model, keep.regions[0]) > 0


def test_what_cannot_be_proved_is_marked_so() -> None:
    model = controller()
    impossible = [
        Region([-1.0, -1.0], [1.0, 1.0], [[1.0]], [0.5], name="above"),
        Region([-1.0, -1.0], [1.0, 1.0], [[-1.0]], [0.5], name="below"),
    ]
    repair = solve_repair(model, impossible, settings=Settings(time_limit=1.0))
    assert repair.report.verdict is not Verdict.REPAIRED
    assert repair.report.verification.goal_after > 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([0.0], [1.0, 2.0], [[1.0]]), "one shape"),
        (([1.0], [0.0], [[1.0]]), "above upper"),
        (([0.0], [1.0], [[1.0]], [0.0, 1.0]), "do not fit"),
        (([0.0], [1.0], [[1.0]], [0.0], [1]), "without gaps"),
        (([0.0], [float("inf")], [[1.0]]), "not finite"),
    ],
)
def test_malformed_regions_are_refused(arguments: tuple, text: str) -> None:
    with pytest.raises(SpecificationError, match=text):
        Region(*arguments)


def test_other_numbers_of_outputs_are_refused() -> None:
    with pytest.raises(SpecificationError, match="speak of 2 outputs"):
        solve_repair(controller(), Region([0.0, 0.0], [1.0, 1.0], [[1.0, -1.0]]))


class Ending(nn.Module):
    """A small network whose outputs have another form."""

    def __init__(self, end) -> None:
        super().__init__()
        self.body, self.end = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1)), end

    def forward(self, x):
        return self.end(self.body(x))


@pytest.mark.parametrize("end", [lambda z: z, lambda z: z.squeeze(1)], ids=["one logit", "flat"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_regions_of_networks_with_one_output_are_proved(end, sign) -> None:
    torch.manual_seed(1)
    region = Region([-0.1, -0.1], [0.1, 0.1], [[sign]])
    found = solve_repair(Ending(end).eval(), UnprovedRegions([region]))
    assert found.report.verdict is Verdict.REPAIRED
    assert "PROVED" in str(found.report)
    with torch.no_grad():
        outputs = found.model(0.2 * torch.rand(10_000, 2) - 0.1)
    assert bool((sign * outputs > 0).all())


@pytest.mark.parametrize(
    ("end", "row", "words"),
    [
        (lambda z: (z, z.sum()), [1.0], "returns a tuple"),
        (lambda z: {"logits": z}, [1.0], "returns a dict"),
        (lambda z: torch.softmax(z, 1), [1.0], "give the network without it"),
        (torch.sigmoid, [1.0], "does not end in a linear layer"),
    ],
    ids=["tuple", "dict", "softmax", "probability"],
)
def test_regions_of_networks_with_other_outputs_are_refused_by_name(end, row, words) -> None:
    with pytest.raises((UnsupportedError, SpecificationError), match=words):
        solve_repair(Ending(end).eval(), UnprovedRegions([Region([-0.1, -0.1], [0.1, 0.1], [row])]))


@pytest.mark.slow
@pytest.mark.data
def test_acas_xu_property_2_is_proved_by_the_default_call(data_dir) -> None:
    pytest.importorskip("onnxruntime")
    from repairopt.interfaces.specfile.onnx_model import load_onnx

    folder = data_dir / "provable" / "acasxu"
    model = load_onnx(folder / "acasxu_2_1.onnx")
    goal = Region.from_vnnlib(folder / "prop_2.vnnlib")
    low = torch.tensor([-0.328422877, -0.5, -0.5, -0.5, -0.5])
    x = (low + (torch.tensor([0.679857769, 0.5, 0.5, 0.5, 0.5]) - low) * torch.rand(1000, 5)).reshape(-1, 1, 1, 5)
    repair = solve_repair(model, goal, [KeepLowest(x)])
    assert repair.report.verdict is Verdict.REPAIRED
    with torch.no_grad():
        same = model(x).argmin(1) == repair.model(x).argmin(1)
    assert float(same.float().mean()) > 0.99


@pytest.mark.slow
def test_balls_in_many_dimensions_are_proved_by_all_layers() -> None:
    torch.manual_seed(0)
    x = torch.rand(300, 40)
    y = (x[:, :20].sum(1) > x[:, 20:].sum(1)).long()
    model = nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wrong = torch.nonzero(model(x).argmax(1) != y)[:2, 0]
    goal = [Region.label(x[i], 0.01, int(y[i]), 2, name=f"row {int(i)}") for i in wrong]
    repair = solve_repair(model.eval(), goal, data=(x, y))
    assert repair.report.verdict is Verdict.REPAIRED
    assert "RegionRepair" in repair.report.method
    assert repair.report.proof_verdict is not None
    assert repair.report.proof_verdict.status == "proved"
    assert any("all layers" in entry.step for entry in repair.report.rounds)
    assert bool((repair.model(x[wrong]).argmax(1) == y[wrong]).all())


def test_a_planted_violation_of_no_volume_is_never_proved() -> None:
    """A spike of width 2e-9 between random weights, in double precision; an attack does not see it."""
    where, width = 0.3, 1e-9
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(3, 1))
        model[0].bias.copy_(torch.tensor([-where + width, -where, -where - width], dtype=torch.float64))
        model[2].weight.copy_(torch.tensor([[-2.0, 4.0, -2.0]]).double() / width)
        model[2].bias.fill_(1.0)
    region = Region([0.0], [1.0], [[1.0]], name="above 0")
    assert float(model(torch.tensor([[where]], dtype=torch.float64)).detach()) < 0
    found = UnprovedRegions(region, splits=2000)
    assert float(found.value(model)) == 1.0
    assert found.details(model)["share of the volume proved"] < 1.0


@pytest.mark.usefixtures("without_pictures")
def test_the_page_says_what_the_proof_is() -> None:
    repair = solve_repair(controller(), limits(1.03))
    page = repair.report.to_html()
    assert "Proof of the regions" in page
    assert "PROVED. The property holds for every input of every box." in page
    assert "proof: PROVED" in str(repair.report)
    assert "No held-out data were given" not in page + str(repair.report), "a proof leaves no input out"


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
def test_all_layers_move_on_boxes_with_a_small_change(monkeypatch, finished: bool) -> None:
    """The last layer finishes it on the way back; where it makes no proof there, the last one of all layers stands."""
    if not finished:
        at = "repairopt.methods.regions.descend_leaves.proved_at"
        monkeypatch.setattr(at, lambda state, margin, best, leaves, most: (leaves, None, 0))
    model, x = controller(), 2 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) - 1
    method = RegionRepair(layers="all", leaf_descent=LeafDescent(leaves=20, steps=40, after=10))
    repair = solve_repair(model, UnprovedRegions(limits(1.03), keep=x), method=method)
    assert repair.report.verdict is Verdict.REPAIRED
    assert worst(repair.model, limits(1.03)) > 0
    assert any("all layers" in one.step and "then the last" not in one.step for one in repair.report.rounds)
    assert not torch.equal(repair.model[0].weight, model[0].weight)
    with torch.no_grad():
        moved = float((repair.model(x) - model(x)).square().mean().sqrt() / model(x).std())
    assert moved < (0.1 if finished else 0.5)


@pytest.mark.slow
def test_all_layers_are_taken_where_the_last_one_costs_more_than_it_must(monkeypatch) -> None:
    at = "repairopt.methods.regions.region_repair."
    for name, number in (("DEAR", 0.0), ("MUCH", 0.0), ("BETTER", 100.0)):
        monkeypatch.setattr(at + name, number)
    method = RegionRepair(refinements=1, leaf_descent=LeafDescent(leaves=20, steps=40, after=10))
    repair = solve_repair(controller(), limits(1.03), method=method)
    assert repair.report.verdict is Verdict.REPAIRED
    assert worst(repair.model, limits(1.03)) > 0
    steps = [one.step for one in repair.report.rounds]
    assert any("gap" in step for step in steps)
    assert any("all layers, then the last one" in step for step in steps)
    monkeypatch.setattr(at + "BETTER", 0.0)
    again = solve_repair(controller(), limits(1.03), method=method)
    assert torch.equal(again.model[0].weight, controller()[0].weight), "the change of all layers was not smaller"
    assert again.report.verdict is Verdict.REPAIRED


@torch.no_grad()
def test_rows_of_points_are_chosen_anew_for_what_costs_less() -> None:
    """Of ``y0 > 0 or y1 > 0`` at one point the program holds the dear row; what is proved meets the other one."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    region = Region([-1.0], [1.0], torch.eye(2), [0.0, 0.0], [0, 0])
    steps = NetworkSteps(model, (1,))
    last, matrix, offset = own_last_layer(steps)
    rows = UnprovedRegions(region).rows.through(matrix, offset)
    sides = region.lower[None], region.upper[None]
    leaves = Leaves.of(steps, *sides, rows, torch.zeros(1, dtype=torch.int64))
    far = LastLayer(last.weight * 0, torch.tensor([-1.0, -5.0]).double())  # as if these were the outputs before
    program = LeastChange.on(torch.ones(4, 3).double(), 2)
    state = RegionSearchState(steps, *sides, RegionSearch(), leaves, far, program, 1.0, lambda one: one, lambda: False)
    program.margin = 0.1
    one, where = state.features(torch.zeros(1, 1).double()), torch.zeros(1, dtype=torch.int64)
    dear = LastLayer(far.weight, torch.tensor([-5.0, -1.0]).double())
    assert state.add_points(one, where, far, choice=dear) == 1
    before = program.solve().objective
    state.choose_anew(LastLayer(far.weight, torch.tensor([1.0, -5.0]).double()))
    assert len(program) == 1
    assert program.solve().objective < before / 10


def test_what_the_check_alone_proves_is_proved() -> None:
    """The time ends before the search divides anything; the check divides the region, and the report says so."""
    repair = solve_repair(controller(), limits(1.03), method="regions", settings=Settings(time_limit=0.01))
    assert repair.report.proof_verdict.status == "proved"
    assert repair.report.proof_verdict.splits > 0
    assert repair.report.verdict is Verdict.REPAIRED
