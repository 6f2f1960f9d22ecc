"""compare_repairs(): subjects whose parts share no row, metrics, letters, processes, what is taken up again."""

import copy
import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from forked import Fork
from html_pages import Page
from small_spec import write_spec
from torch import nn

from repairopt import (
    AttackSuccess,
    Bound,
    Classifier,
    ErrorRate,
    FineTune,
    FlipRate,
    GroupGap,
    KeepLabels,
    Specification,
    SpecificationError,
    Subject,
    UnfixedRate,
    compare_repairs,
    solve_repair,
)
from repairopt.compare import (
    Cell,
    CellOutcome,
    Comparison,
    Limits,
    fixing_rates,
    group_rates,
    letter_groups,
    list_systems,
    loan_decisions,
    named_methods,
    read_cells,
    recommend_methods,
)
from repairopt.compare.cell import Job, run_here
from repairopt.compare.fixing_metrics import measure_fixing
from repairopt.errors import ResultError
from repairopt.localize import NewWeights
from repairopt.methods import Outcome, available_methods
from repairopt.program import Status
from repairopt.report.comparison_page import shown_letters
from repairopt.specify import AdversarialError


@pytest.fixture(scope="module")
def subject():
    model, x, y = loan_decisions(700)
    return Subject.divide("loans", model, x, y, groups=x[:, 5].numpy(), favorable=1, radius=0.1)


@dataclass(frozen=True)
class Nothing:
    """Proposes the original network."""

    def run(self, task):
        return Outcome(task.judge.original.candidate, Status.OPTIMAL)


@dataclass(frozen=True)
class Sleeps(Nothing):
    """Never ends."""

    def run(self, task):
        while True:
            time.sleep(0.1)


@dataclass(frozen=True)
class Crashes(Nothing):
    """Ends its process."""

    def run(self, task):
        os._exit(7)


@dataclass(frozen=True)
class Eats(Nothing):
    """Takes more and more memory."""

    def run(self, task):
        eaten = []
        while True:
            eaten.append(np.ones(2**26))


@dataclass(frozen=True)
class Looks(Nothing):
    """Tells what it finds in its process, and leaves something there."""

    left = []

    def run(self, task):
        self.left.append(1)
        forked_from = psutil.Process(os.getppid()).num_threads() if sys.platform == "linux" else 1
        drawn = np.random.rand()  # noqa: NPY002
        raise ValueError(json.dumps([len(self.left), forked_from, os.getsid(0) == os.getpid(), drawn]))


@dataclass(frozen=True)
class Refuses(Nothing):
    """Does not fit any network."""

    def run(self, task):
        raise SpecificationError("method Refuses: needs a network of another kind.")


@dataclass(frozen=True)
class Ruins(Nothing):
    """A published method whose product is a ruin."""

    systems = {"Ruins": {}}
    uses = frozenset({"weights"})

    def run(self, task):
        state = {name: torch.zeros_like(value) for name, value in task.engine.model.state_dict().items()}
        return Outcome(task.judge(NewWeights(state)).candidate, Status.FEASIBLE)


def test_metrics_match_a_confusion_table_made_by_hand():
    labels, before, after = (
        np.array(v) for v in ([0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0, 1], [0, 1, 0, 1, 1, 1, 0, 1])
    )
    found = fixing_rates(before, after, labels)
    assert found == {"accuracy_before": 0.5, "accuracy": 0.625, "repair_rate": 0.5, "negative_flips": 0.125}
    assert found["accuracy"] == pytest.approx(0.5 + found["repair_rate"] * 0.5 - found["negative_flips"])
    groups = np.array([0, 0, 1, 1, 0, 1, 0, 1])
    rates = group_rates(after, labels, groups, 1)
    # group 0: answers 0 1 1 0 to labels 0 0 1 1; group 1: answers 0 1 1 1 to labels 0 1 1 0
    assert rates == {"average_odds": pytest.approx((0.5 + 0.0) / 2), "parity": 0.25, "opportunity": 0.5}


def test_average_odds_of_several_classes_is_the_mean_of_one_against_the_rest():
    draw = np.random.default_rng(0)
    labels, answers, groups = (draw.integers(0, k, 400) for k in (3, 3, 2))
    single = [group_rates(answers, labels, groups, kind)["average_odds"] for kind in range(3)]
    assert group_rates(answers, labels, groups, None)["average_odds"] == pytest.approx(np.mean(single))


def test_letters_of_a_toy_example():
    """Two clear levels and one method between them that differs from neither."""
    draw = np.random.default_rng(1)
    noise = draw.normal(size=12)
    levels = {"high": 5 + 0.1 * noise, "low": 0.1 * draw.normal(size=12), "between": 2.5 + 6 * draw.normal(size=12)}
    values = {name: dict(enumerate(own)) for name, own in levels.items()}
    assert letter_groups(values, better=1) == {"high": "a", "between": "ab", "low": "b"}
    assert list(letter_groups(values, better=-1)) == ["low", "between", "high"]


def test_letters_of_methods_that_do_the_same_are_shared():
    same = {(s, k): 0.5 for s in "xy" for k in range(3)}
    assert letter_groups({"a": same, "b": dict(same), "c": {}}, better=1) == {"a": "a", "b": "a"}


def test_letters_keep_the_order_of_the_means():
    draw = np.random.default_rng(2)
    values = {f"m{k}": dict(enumerate(k + 0.5 * draw.normal(size=6))) for k in range(9)}
    found = letter_groups(values, better=1)
    assert list(found) == [f"m{k}" for k in range(8, -1, -1)]
    first = [min(letters) for letters in found.values()]
    assert first == sorted(first)
    assert found["m8"] == "a"
    assert found["m0"] != "a"


def test_parts_share_no_row_and_equal_rows_stay_together():
    x = torch.arange(40.0).reshape(20, 2).repeat(3, 1)
    y = torch.arange(60) % 2
    found = Subject.divide("twins", nn.Linear(2, 2), x, y, seed=3)
    sets = [
        {tuple(row) for row in getattr(found, part)[0].tolist()} for part in ("train", "validation", "repair", "test")
    ]
    assert sum(map(len, sets)) == 20
    assert sum(len(getattr(found, part)[1]) for part in ("train", "validation", "repair", "test")) == 60
    with pytest.raises(SpecificationError, match="1 inputs of test occur in repair"):
        Subject("shared", nn.Linear(2, 2), None, None, (x[:3], y[:3]), (x[2:4], y[2:4]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shares": (0.5, 0.5, 0.0, 0.0)}, "four numbers above 0"),
        ({"radius": -1.0}, "radius"),
        ({"groups": [0]}, "one for each"),
    ],
)
def test_malformed_subjects_are_refused(options, said):
    model, x, y = loan_decisions(200)
    if "groups" in options:
        with pytest.raises(SpecificationError, match=said):
            Subject("s", model, None, None, (x[:100], y[:100]), (x[100:], y[100:]), **options)
    else:
        with pytest.raises(SpecificationError, match=said):
            Subject.divide("s", model, x, y, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repair": None}, "repair is a NoneType; expected a pair"),
        ({"train": torch.zeros(3, 6)}, "train is a Tensor; expected a pair"),
        ({"test": (torch.zeros(3, 4), [0, 1, 0])}, "inputs of test: model Sequential: cannot run"),
        ({"test": (torch.zeros(3, 6), [0, 1, 2])}, "test: label 2 at row 2 is out of range"),
        ({"favorable": "granted"}, "favorable='granted'"),
        ({"radius": "wide"}, "radius='wide'"),
        ({"name": 3}, "name=3"),
        ({"model": "network.pt"}, "model is a str"),
        ({"model": nn.Linear(6, 1)}, "one output.*outputs='one logit'"),
        ({"model": Classifier(nn.Linear(6, 2), outputs="regression")}, "outputs='regression'"),
    ],
)
def test_what_no_cell_could_measure_is_refused_before_anything_runs(options, said):
    model, x, y = loan_decisions(30)
    rows = {"train": None, "validation": None, "repair": (x[:10], y[:10]), "test": (x[10:], y[10:])}
    with pytest.raises(SpecificationError, match=said):
        Subject(**{"name": "s", "model": model, **rows, **options})


def test_groups_of_another_length_are_refused_before_rows_are_divided():
    model, x, y = loan_decisions(100)
    with pytest.raises(SpecificationError, match=r"groups have shape \(2,\); expected one for each of the 100 rows"):
        Subject.divide("s", model, x, y, groups=[0, 1])


@pytest.mark.slow
def test_every_outcome_is_told_and_a_stopped_comparison_goes_on(subject, tmp_path):
    methods = {"nothing": Nothing(), "ruin": Ruins(), "refuse": Refuses(), "crash": Crashes()}
    methods |= {"look": Looks(), "look again": Looks()}
    told = []
    found = compare_repairs(
        subject,
        methods,
        repetitions=1,
        limits=Limits(seconds=20),
        folder=tmp_path,
        processes=2,
        progress=lambda done, count, left, cell: told.append((done, count, cell.method)),
    )
    ends = {cell.method: cell for cell in found.cells}
    assert {name: str(cell.outcome) for name, cell in ends.items()} == {
        "nothing": "measured",
        "ruin": "corrupted",
        "refuse": "unadaptable",
        "crash": "failure",
        "look": "failure",
        "look again": "failure",
    }
    first, second = (json.loads(re.search(r"\[.*?\]", ends[name].reason)[0]) for name in ("look", "look again"))
    assert first[:3] == second[:3] == [1, 1, True]  # nothing is left from another cell, nor did threads run
    assert first[3] != second[3]
    assert "another kind" in ends["refuse"].reason
    assert "code 7" in ends["crash"].reason
    same = ends["nothing"].metrics
    assert same["repair_rate"] == same["negative_flips"] == same["change"] == 0
    for name in ("accuracy", "average_odds", "parity", "opportunity", "attack_success"):
        assert same[name] == same[f"{name}_before"]
    assert [one[:2] for one in told] == [(k, 6) for k in range(1, 7)]
    lines = (tmp_path / "cells.jsonl").read_text().splitlines()
    (tmp_path / "cells.jsonl").write_text("\n".join([*lines[:5], lines[5][:40]]))  # as a kill leaves it
    told.clear()
    again = compare_repairs(
        subject,
        methods,
        repetitions=1,
        limits=Limits(seconds=20),
        folder=tmp_path,
        progress=lambda *a: told.append(a[3].method),
    )
    assert len(told) == 1
    assert {c.method: c.outcome for c in again.cells} == {c.method: c.outcome for c in found.cells}
    assert len(read_cells(tmp_path)) == 6
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    assert "another kind" in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.slow
def test_a_method_beyond_a_limit_is_killed(subject, monkeypatch):
    monkeypatch.setattr("repairopt.compare.cell_runner.LOADING", 6.0)
    methods, limits = {"sleep": Sleeps(), "eat": Eats()}, Limits(1.0, 2**30)
    found = compare_repairs(subject, methods, repetitions=1, limits=limits, processes=2)
    assert [str(cell.outcome) for cell in found.cells] == ["failure", "failure"]
    assert [cell.reason for cell in found.cells] == ["no result within 1 s", "more than 1.0 GiB of memory"]


@dataclass(frozen=True)
class SlowToMeasure(Nothing):
    """Ends at once; what is measured of its network takes longer than the method may."""

    takes: float

    def run(self, task):
        import repairopt.compare.cell as cell

        measure = cell.measure_fixing
        cell.measure_fixing = lambda *given: (time.sleep(self.takes), measure(*given))[1]
        return super().run(task)


@pytest.mark.slow
def test_measuring_does_not_count_as_time_of_the_method(subject, monkeypatch):
    for name, seconds in (("LOADING", 1.5), ("GRACE", 0.0), ("MEASURING", 4.0)):
        monkeypatch.setattr(f"repairopt.compare.cell_runner.{name}", seconds)
    methods = {"slow": SlowToMeasure(4.0), "endless": SlowToMeasure(60.0)}
    slow, endless = compare_repairs(subject, methods, repetitions=1, limits=Limits(2.0), processes=2).cells
    assert str(slow.outcome) == "measured"
    assert str(endless.outcome) == "failure"
    assert "could not be measured" in endless.reason


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_comparison_leaves_no_process_and_is_taken_up(tmp_path, sent):
    code = f"""
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
from dataclasses import dataclass
from repairopt.compare import Subject, compare_repairs, loan_decisions
from repairopt.methods import Outcome
from repairopt.program import Status
from repairopt.report.comparison_page import shown_letters
from pathlib import Path
@dataclass(frozen=True)
class Waits:
    def run(self, task):
        Path({str(tmp_path / "began")!r}).write_text("x")
        time.sleep(60)
@dataclass(frozen=True)
class Quick:
    def run(self, task):
        return Outcome(task.judge.original.candidate, Status.OPTIMAL)
model, x, y = loan_decisions(300)
subject = Subject.divide("loans", model, x, y)
compare_repairs(subject, {{"quick": Quick(), "waits": Waits()}}, repetitions=1, folder={str(tmp_path / "out")!r})
"""
    end = time.monotonic() + 60
    with Fork(code, TMPDIR=str(tmp_path)) as process:
        while not (tmp_path / "began").exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert (tmp_path / "began").exists()
        process.send_signal(sent)
        process.wait(timeout=20)  # of 60 s that the method waits

    def left():  # this test's own processes, whose files for a while are in its directory
        found = []
        for one in psutil.process_iter(["environ", "status"]):
            if (one.info["environ"] or {}).get("TMPDIR") == str(tmp_path) and one.info["status"] != "zombie":
                found.append(one)
        return found

    while left() and time.monotonic() < end:
        time.sleep(0.1)
    assert not left(), "the process of a cell ends with its parent"
    assert [cell.method for cell in read_cells(tmp_path / "out").values()] == ["quick"]


def test_a_folder_belongs_to_one_process(subject, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(ResultError, match="another process"):
        compare_repairs(subject, {"nothing": Nothing()}, repetitions=1, folder=tmp_path)


def test_a_stated_goal_is_measured_on_the_test_rows(subject):
    from repairopt.compare.cell import run_here

    (x, y), (_, members) = subject.repair, (None, None)
    assert members is None
    goal = GroupGap.observed(x, column=5, favorable=1, target=0.05)
    own = Subject(
        "gap", subject.model, subject.train, subject.validation, (x, y), subject.test, goal=goal, groups=subject.groups
    )
    cell = run_here(Job("nothing", Nothing(), own, 0, Limits()))
    assert cell.metrics["goal"] == cell.metrics["goal_before"] > 0.05
    assert cell.metrics["met"] == 0.0


def test_wrong_arguments_name_what_is_meant(subject):
    with pytest.raises(SpecificationError, match="--list"):
        compare_repairs(subject, ["no such method"])
    with pytest.raises(SpecificationError, match="Did you mean NNRepair"):
        named_methods(["nnrepair last"])
    with pytest.raises(SpecificationError, match="occurs twice"):
        named_methods(["sqp", "sqp"])
    with pytest.raises(SpecificationError, match="repetitions=0"):
        compare_repairs(subject, repetitions=0)
    with pytest.raises(SpecificationError, match="seconds above 0"):
        Limits(seconds=0)
    right = subject.model(subject.repair[0]).argmax(1)
    faultless = Subject("right", subject.model, None, None, (subject.repair[0], right), subject.test)
    with pytest.raises(SpecificationError, match="right, so nothing"):
        faultless.specification()


def test_every_registered_method_is_listed_once():
    found = list_systems()
    names = [one.name for one in found]
    assert len(names) == len(set(names))
    assert {one.method for one in found} == set(available_methods())
    for one in found:
        assert one.summary.endswith(".") or one.summary, one.name
        made = one.make()
        assert all(getattr(made, name) == value for name, value in one.settings)


def _cells(method, rr, nfr, outcome=CellOutcome.MEASURED):
    figures = [{"repair_rate": rr + 0.01 * k, "negative_flips": nfr + 0.001 * k, "cpu_seconds": 1.0} for k in range(4)]
    return [Cell(method, "s", k, outcome, metrics=own) for k, own in enumerate(figures)]


def test_advice_comes_from_the_cells():
    bad = _cells("bad", 0.9, 0.0, CellOutcome.CORRUPTED)
    found = Comparison((*_cells("much", 0.6, 0.05), *_cells("little", 0.1, 0.0), *_cells("both", 0.6, 0.0), *bad))
    advice = recommend_methods(found, "repair", "compatibility")
    assert [one.method for one in advice][0] == "both"
    assert advice[0].best_in_all
    assert recommend_methods(found, "repair")[0].method in ("much", "both")
    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    asked = Specification(ErrorRate(x, y, target=0.0), (Bound(FlipRate(x, y), 0.01),))
    assert [list(one.letters) for one in recommend_methods(found, asked)][0] == ["repair", "compatibility"]
    assert "bad" not in [one.method for one in advice]
    with pytest.raises(SpecificationError, match="no figures of ASR"):
        recommend_methods(found, "robustness")
    with pytest.raises(SpecificationError, match="choose among"):
        recommend_methods(found, "beauty")


def test_cells_are_lines_that_read_back():
    for cell in (*_cells("m", 0.5, 0.1), Cell("m", "s", 0, CellOutcome.FAILURE, "x\ny")):
        line = cell.to_json()
        assert "\n" not in line
        back = Cell.from_json(line)
        assert back.to_json() == line
        assert json.loads(line)["seconds"] is None


def test_a_study_is_read_run_and_written(tmp_path):
    from repairopt.interfaces.specfile.study import read_study

    path = Path(tmp_path / "study.yaml")
    path.write_text("subjects: [a.yaml]\nmethods: [sqp]\nrepetitons: 2\n")
    with pytest.raises(SpecificationError, match="line 3: unknown key 'repetitons'.*repetitions"):
        read_study(path)
    write_spec(tmp_path)
    path.write_text("subjects: [spec.yaml]\nmethods: [fine_tune, {method: fine_tune, settings: {epochs: 9}}]\n")
    with pytest.raises(SpecificationError, match="'fine_tune' occurs twice.*label"):
        read_study(path)
    path.write_text("subjects: [spec.yaml]\nmethods: [{method: fine_tune, settings: {epoch: 9}}]\n")
    with pytest.raises(SpecificationError, match="no setting 'epoch'; it has .*epochs"):
        read_study(path)


def test_cells_of_another_goal_network_or_method_are_not_taken_for_these():
    model, x, y = loan_decisions(100)
    rows = {"train": None, "validation": None, "repair": (x[:50], y[:50]), "test": (x[50:], y[50:])}

    def key(net=model, epochs=1, **options):
        subject = Subject("s", net, **rows, **options)
        return Job("m", FineTune(epochs=epochs), subject, 0, Limits()).key(subject.digest())

    smooth = nn.Sequential(model[0], nn.Tanh(), *model[2:])
    keys = [
        key(),
        key(smooth),
        key(Classifier(model, outputs="probabilities")),
        key(epochs=3),
        key(goal=ErrorRate(x[:5], y[:5])),
        key(goal=ErrorRate(x[5:10], y[5:10])),
        key(goal=ErrorRate(x[:5], y[:5]), constraints=KeepLabels(x[:5], y[:5])),
        key(goal=ErrorRate(x[:5], y[:5]), constraints=KeepLabels(x[:5], y[:5], tolerance=0.5)),
        key(goal=lambda predict: float(predict(x[:5]).mean())),
        key(goal=lambda predict: float(predict(x[:5]).std())),
    ]
    assert len(set(keys)) == len(keys)
    assert key(goal=ErrorRate(x[:5], y[:5])) == key(goal=ErrorRate(x[:5].clone(), y[:5].clone()))
    assert key(copy.deepcopy(model)) == key()


def test_where_nothing_was_measured_page_and_table_say_why():
    found = Comparison((Cell("m", "s", 0, CellOutcome.UNADAPTABLE, "needs history"),))
    assert "not measured: m on s, unadaptable: needs history" in str(found)
    assert "needs history" in found.to_html()
    assert "Nothing was measured" in found.to_html()
    assert "Ranks" not in found.to_html()


@pytest.mark.slow
def test_a_study_in_which_nothing_was_measured_is_written_and_needs_are_checked_first(tmp_path):
    from repairopt.interfaces.commandline.runs.compare_run import RESULT, compare_study

    write_spec(tmp_path)
    with pytest.raises(SpecificationError, match="need 'speed': choose among accuracy"):
        compare_study(tmp_path / "spec.yaml", tmp_path / "out", methods=("NeuRecover (NR)",), needs=("speed",))
    assert not (tmp_path / "out").exists()
    found = compare_study(tmp_path / "spec.yaml", tmp_path / "out", methods=("NeuRecover (NR)",), repetitions=1)
    assert "needs the states of earlier epochs" in found.table
    assert found.advice == ["none, need 'repair': the comparison has no figures of RR (repair_rate)."]
    assert json.loads((tmp_path / "out" / RESULT).read_text())["cells"][0]["outcome"] == "unadaptable"


def test_attack_success_counts_right_rows_alone():
    """A linear network of one input: the sign of x - 0.5; radius 0.1 reaches over the threshold from 0.45 and 0.55."""
    net = nn.Linear(1, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        net.bias.copy_(torch.tensor([0.5, -0.5]))
    x, y = torch.tensor([[0.2], [0.45], [0.55], [0.9], [0.7]]), torch.tensor([0, 0, 1, 1, 0])
    found = AttackSuccess(x, y, radius=0.1)
    assert float(found.value(net)) == pytest.approx(0.5)  # two of four right rows; the fifth is wrong anyway
    assert float(AdversarialError(x, y, radius=0.1).value(net)) == pytest.approx(0.6)
    assert found.details(net) == {"right points": 4.0, "attacked points": pytest.approx(2.0)}


def test_attacks_reach_500_rows_that_both_networks_label_right():
    """Thresholds at 0.5 and 0.55: an attack wins rows within a third of the radius, and none beyond the radius."""

    def threshold(at):
        net = nn.Linear(1, 2)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            net.bias.copy_(torch.tensor([at, -at]))
        return net

    x = torch.linspace(0, 1, 1501)[:, None]
    y, radius = (x[:, 0] > 0.5).long(), 0.1
    apart = Subject("line", threshold(0.5), None, None, (x[:40] + 2, y[:40]), (x, y), radius=radius)
    found = measure_fixing(apart, threshold(0.5), threshold(0.55), seed=3)
    both = np.flatnonzero(((x[:, 0] > 0.5) == (x[:, 0] > 0.55)).numpy())
    drawn = x[np.random.default_rng(3).permutation(both)[:500], 0].double()
    for name, at in (("attack_success_before", 0.5), ("attack_success", 0.55)):
        near = [float(((drawn - at).abs() < share * radius).double().mean()) for share in (1 / 3, 1)]
        assert near[0] <= found[name] <= near[1]  # 40 steps of a 30th of the radius, from any point of the interval
    few = Subject("line", threshold(0.5), None, None, (x[:40] + 2, y[:40]), (x[:900:9], y[:900:9]), radius=radius)
    assert np.isfinite(measure_fixing(few, threshold(0.5), threshold(0.5))["attack_success"])


@pytest.mark.parametrize("name", ["CARE", "PVNN"])
def test_systems_that_repair_a_gap_between_groups_are_hosted(name):
    """Both are run by the platform on one specification, and measured by their own product on new rows."""
    model, x, y = loan_decisions(3000)
    goal = GroupGap.sampled(x, 5, count=1000, favorable=1, target=0.02)
    loans = Subject.divide("loans", model, x, y, groups=x[:, 5].numpy(), favorable=1, goal=goal, protected=(5,))
    cell = run_here(Job(name, named_methods([name])[name], loans, 0, Limits()))
    assert cell.outcome in (CellOutcome.MEASURED, CellOutcome.CORRUPTED), cell.reason
    assert cell.metrics["goal"] < 0.6 * cell.metrics["goal_before"]
    assert cell.metrics["parity"] < cell.metrics["parity_before"]


def test_unfixed_rate_is_one_minus_the_repair_rate():
    labels = torch.tensor([0, 0, 1, 1])
    before, after = torch.eye(2)[[0, 1, 0, 1]], torch.eye(2)[[0, 0, 0, 0]]
    x = torch.arange(4.0)[:, None]
    goal = UnfixedRate(x, labels).anchor(lambda inputs: before)
    assert float(goal.value(lambda inputs: after)) == 0.5
    assert goal.counted.tolist() == [1, 2]
    rates = fixing_rates(before.argmax(1).numpy(), after.argmax(1).numpy(), labels.numpy())
    assert rates["repair_rate"] == 0.5


def test_auto_is_the_default_call():
    model, x, y = loan_decisions(300)
    subject = Subject.divide("loans", model, x, y)
    assert named_methods(["auto"]) == {"auto": "auto"}
    cell = run_here(Job("auto", "auto", subject, 0, Limits()))
    again = solve_repair(subject.model, subject.specification(), data=subject.data)
    answers = subject.outputs(again.model, subject.test[0]).argmax(1)
    assert cell.metrics["accuracy"] == float((answers == subject.test[1]).double().mean())


def test_published_figures_are_read_and_shown(tmp_path):
    from repairopt.interfaces.specfile.study import read_published

    path = tmp_path / "papers.csv"
    path.write_text("subject,system,metric,value\nLeNet5,Apricot,RR,0.7397\n")
    found = Comparison(tuple(_cells("m", 0.5, 0.1)), read_published(path))
    page = found.to_html()
    assert "Figures of the papers" in page
    assert "0.7397" in page
    path.write_text("subject,system,value\nLeNet5,Apricot,x\n")
    with pytest.raises(SpecificationError, match="columns subject, system, metric and value"):
        read_published(path)


def test_the_page_says_on_how_many_runs_a_mean_rests_and_letters_are_short():
    few = _cells("few", 0.9, 0.0)[:1]
    page = Comparison((*_cells("many", 0.5, 0.1), *few)).to_html()
    text = Page(page).text
    assert "4 of 4" in text
    assert "1 of 1" in text
    assert [shown_letters(one) for one in ("a", "ab", "abc", "acd", "abcdg", "defghxyz")] == [
        "a",
        "ab",
        "a-c",
        "acd",
        "a-d, g",
        "d-h, x-z",
    ]


def test_values_that_are_nearly_the_same_are_compared_without_a_warning():
    """One method repeats itself but for rounding; no two have a cell in common, so that Welch's test is used."""
    steady = {("x", k): 0.1 + 1e-17 * k for k in range(3)}
    spread = {("y", k): 0.5 + 0.01 * k for k in range(3)}
    close = {("z", k): 0.1 for k in range(3)}
    assert letter_groups({"steady": steady, "spread": spread, "close": close}, better=1) == {
        "spread": "a",
        "steady": "b",
        "close": "b",
    }
