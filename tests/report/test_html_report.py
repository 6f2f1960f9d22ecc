"""The page of a repair: whole, without network, with every claim and picture, and honest where something is missing."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from biased_task import task
from html_pages import CHROMIUM, Page, look_at
from torch import nn

from repairopt import (
    SQP,
    Bound,
    ErrorRate,
    FixLabels,
    GroupGap,
    KeepLabels,
    MissRate,
    OddsGap,
    RepairError,
    SpecificationError,
    errors,
    solve_repair,
    trace_frontier,
)
from repairopt.errors import MissingExtraError, PatchError
from repairopt.report.html_page import NO_PICTURES, WIDEST, input_table
from repairopt.report.pictures import plots
from repairopt.report.pictures.drawing_library import font_families, load_matplotlib
from repairopt.report.pictures.evidence import FILE, Evidence, load_evidence, save_evidence
from repairopt.report.repair import write_html
from repairopt.specify import AdversarialError

matplotlib = pytest.importorskip("matplotlib", reason="the pictures need the extra 'report'")


@pytest.fixture(scope="module")
def fair():
    """A gap that is closed, with cross-validated claims, a bound on recall and held-out data."""
    toy = task(count=400)
    gap = GroupGap.observed(toy.inputs, column=1, target=0.1)
    miss = Bound(MissRate(toy.inputs, toy.labels, 1), slack=0.1, name="missed ones")
    return solve_repair(
        toy.model, gap, [toy.keep(0.3), miss], held_out=toy.held_out, weights="last", method=SQP(max_steps=8)
    )


@pytest.fixture(scope="module")
def wide(fair) -> str:
    return fair.to_html(features=["a very long name of a column", "group"])


@pytest.fixture(scope="module")
def page(fair) -> Page:
    return Page(fair.to_html(features=["merit", "group"]))


def images(count: int = 60) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network that tells bright left halves from bright right halves of 6 x 6 images, by one bias too many."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(count, 1, 6, 6, generator=draw), torch.arange(count) % 2
    x[y == 0, :, :, :3] += 0.3
    x[y == 1, :, :, 3:] += 0.3
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        half = torch.tensor([[1.0, 1, 1, -1, -1, -1]] * 6).flatten()
        model[1].weight.copy_(torch.stack([half, -half]) / 10)
        model[1].bias.copy_(torch.tensor([0.9, -0.9]))
    return model.eval(), x, y


def test_the_verdict_is_a_sentence_and_the_caveats_follow_it(fair, page):
    sentence = re.search(r"group gap fell from [\d.]+ to [\d.]+", page.text)
    assert sentence
    assert "answers became wrong" in page.text or "answer became wrong" in page.text
    assert "On data that the repair never saw, group gap fell from" in page.text
    for line in str(fair.report).splitlines():
        if line.startswith("! "):
            assert line[2:40] in page.text
            assert page.text.index(sentence[0]) < page.text.index(line[2:40])


def test_every_claim_has_value_interval_limit_data_and_result(fair, page):
    goal = fair.report.measure()
    here = page.row("group gap", "repair data")
    assert here[2:4] == [f"{goal.before:.4f}", f"{goal.after:.4f}"]
    assert here[4:] == ["", "at most 0.1000", "met" if goal.after <= 0.1 else "not met"]
    (claim,) = (one for one in fair.report.claims if one.name == "group gap" and one.source == "cross-validation")
    crossed = page.row("group gap", "cross-validation")
    assert crossed[3] == f"{claim.interval.value:.4f}"
    assert crossed[4] == f"{claim.interval.low:.4f} to {claim.interval.high:.4f}".replace("0.0000", "0")
    assert ("95 % confidence" in crossed[6]) == (claim.met or claim.interval.value <= 0.1)
    unseen = page.row("group gap", "held-out data")
    assert re.fullmatch(r"[\d.]+ to [\d.]+", unseen[4])
    assert page.row("keep labels", "repair data")[3].endswith("fail")
    assert page.row("missed ones", "held-out data")[5].startswith("at most 0.")
    assert page.row("group gap", f"{fair.report.buffers['group gap']:.4f}")


def test_metrics_by_group_are_those_of_the_networks(fair, page):
    toy = task(count=400)
    (first,) = (one for one in fair.report.evidence.tables if not one.held_out)
    answers = fair.model(toy.inputs).argmax(1)
    for a in (0, 1):
        own = toy.inputs[:, 1] == a
        cells = dict(zip(first.metrics, first.after[a], strict=True))
        assert cells["count"] == int(own.sum())
        assert cells["selection_rate"] == pytest.approx(float((answers[own] == 1).float().mean()))
        assert cells["true_positive_rate"] == pytest.approx(
            float((answers[own & (toy.labels == 1)] == 1).float().mean())
        )
    assert first.gaps["demographic parity difference"][1] == pytest.approx(fair.report.measure().after, abs=1e-6)
    assert page.row("demographic parity difference")[1] == f"{fair.report.measure().before:.4f}"


def test_the_page_needs_no_network_and_no_script(page):
    sources = [
        value for _, attributes in page.attributes for key, value in attributes.items() if key in ("src", "href")
    ]
    assert len(sources) >= 8
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not [tag for tag, _ in page.attributes if tag in ("script", "link", "iframe")]
    pictures = [attributes for tag, attributes in page.attributes if tag == "img"]
    assert all(len(attributes["alt"]) > 20 for attributes in pictures)


@pytest.mark.usefixtures("without_pictures")
def test_text_of_the_user_is_escaped(fair):
    found = fair.to_html(title="<script>alert(1)</script>", features=["<b>", "&"])
    assert "<script>" not in found
    assert "&lt;b&gt;" in found
    assert "<b>" not in found


def test_margins_tell_which_samples_crossed(fair):
    toy = task(count=400)
    counts = fair.report.labels()
    (margins,) = (one for one in fair.report.evidence.margins if not one.held_out)
    assert margins.crossed == (counts.newly_wrong, counts.newly_right)
    outputs = fair.model(toy.inputs)
    lead = outputs.gather(1, toy.labels[:, None])[:, 0] - outputs.gather(1, 1 - toy.labels[:, None])[:, 0]
    np.testing.assert_allclose(margins.after, lead.detach().numpy(), atol=1e-6)
    slack = next(one for one in fair.report.evidence.slacks if one.name == "keep labels" and not one.held_out)
    check = fair.report.verification.checks[0]
    assert int((slack.after < 0).sum()) == check.failed
    assert slack.allowed == check.allowed


def test_layers_show_the_change(fair):
    weights = dict(task().model.named_parameters())
    for layer in fair.report.evidence.layers:
        change = fair.delta[layer.name]
        assert layer.changed == int((change != 0).sum())
        assert layer.shape == tuple(change.shape)
        if float(weights[layer.name].detach().norm()):
            assert layer.relative == pytest.approx(float(change.norm() / weights[layer.name].detach().norm()), rel=1e-6)


def test_a_large_layer_is_shown_in_few_cells_and_its_largest_change_survives():
    from repairopt.report.pictures.collect import CELLS, _layer

    model = nn.Linear(300, 200)
    change = torch.zeros(200, 300)
    change[150, 299] = -2.0
    layer = _layer("weight", change, model)
    assert layer.cells.shape == (CELLS, CELLS)
    assert layer.cells.min() == pytest.approx(-2.0 / float(model.weight.detach().double().square().mean().sqrt()))
    assert (layer.cells != 0).sum() == 1


def test_every_picture_can_be_had_alone(fair):
    report = fair.report
    points = [SimpleNamespace(target=t, value=t, accuracy=0.9 + t) for t in (0.02, 0.05)]
    figures = {
        "groups": report.plot_groups(),
        "held out": report.plot_groups(held_out=True),
        "margins": report.plot_margins(),
        "slack": report.plot_slack("keep labels"),
        "weights": report.plot_weights(),
        "one": report.plot_weights("2.weight"),
        "convergence": report.plot_convergence(),
        "frontier": report.plot_frontier(points),
    }
    for name, figure in figures.items():
        assert figure._repr_png_().startswith(b"\x89PNG"), name
        assert figure.axes[0].get_title(loc="left"), name
    drawn = figures["groups"].axes[0].get_lines()
    after = next(line for line in drawn if line.get_label() == "after")
    rates = [pair[1] for key, pair in report.measure().details.items() if key.startswith("favorable rate")]
    np.testing.assert_allclose(sorted(after.get_xdata()), sorted(rates), atol=1e-6)
    chosen = next(line for line in figures["frontier"].axes[0].get_lines() if line.get_label() == "this repair")
    assert chosen.get_ydata() == [100 * report.labels().accuracy[1]]


def test_a_traced_frontier_is_drawn_with_the_repair_on_it():
    toy = task(count=200)
    gap = GroupGap.observed(toy.inputs, column=1, target=0.2)
    options = {"weights": "last", "held_out": toy.held_out}
    frontier = trace_frontier(toy.model, gap, [toy.keep(0.4)], targets=[0.3, 0.2], **options)
    repair = frontier.points[-1].repair
    figure = repair.report.plot_frontier(frontier)
    curve = next(line for line in figure.axes[0].get_lines() if line.get_label().startswith("repairs"))
    assert sorted(curve.get_xdata()) == sorted(point.value for point in frontier.points)
    assert f"Frontier of {len(frontier.points)} repairs" in repair.to_html(frontier=frontier)


def test_a_picture_that_does_not_exist_is_named_with_those_that_do(fair):
    with pytest.raises(SpecificationError, match="no constraints by sample named 'keep label'.*'keep labels'"):
        fair.report.plot_slack("keep label")
    with pytest.raises(SpecificationError, match="are no images"):
        fair.report.plot_inputs()
    with pytest.raises(SpecificationError, match="trace_frontier"):
        fair.report.plot_frontier([])


def test_the_same_page_from_a_folder_and_a_lesser_one_without_evidence(fair, tmp_path):
    whole = fair.save_html(tmp_path / "whole.html").read_text(encoding="utf-8")
    folder = tmp_path / "out"
    save_evidence(fair.report.evidence, folder)
    (folder / "result.json").write_text(json.dumps({"report": fair.report.to_dict()}), encoding="utf-8")
    assert write_html(folder, tmp_path / "again.html").read_text(encoding="utf-8") == whole
    (folder / FILE).unlink()
    lesser = Page(write_html(folder, tmp_path / "lesser.html").read_text(encoding="utf-8"))
    assert "pictures of single samples, weights and inputs are missing" in lesser.text
    assert 0 < sum(tag == "img" for tag, _ in lesser.attributes) < whole.count("<img")
    assert lesser.row("group gap", "repair data") == Page(whole).row("group gap", "repair data")


@pytest.mark.usefixtures("without_pictures")
def test_folders_without_a_result_are_named(fair, tmp_path):
    with pytest.raises(SpecificationError, match=r"holds no readable result\.json"):
        write_html(tmp_path, tmp_path / "page.html")
    (tmp_path / "result.json").write_text("{", encoding="utf-8")
    with pytest.raises(SpecificationError, match="is not JSON"):
        write_html(tmp_path, tmp_path / "page.html")
    (tmp_path / "result.json").write_text('{"verdict": "repaired"}', encoding="utf-8")
    with pytest.raises(SpecificationError, match="lacks meaning, measures"):
        write_html(tmp_path, tmp_path / "page.html")
    (tmp_path / "result.json").write_text(json.dumps(fair.report.to_dict()), encoding="utf-8")
    (tmp_path / FILE).write_bytes(b"PK no archive")
    with pytest.raises(SpecificationError, match="is not the evidence of a repair"):
        write_html(tmp_path, tmp_path / "page.html")
    with pytest.raises(SpecificationError, match="got a int"):
        write_html(3, tmp_path / "page.html")
    with pytest.raises(PatchError, match="there is no folder"):
        fair.save_html(tmp_path / "nowhere" / "page.html")
    assert not list(tmp_path.glob("*.html"))


def test_a_pickle_in_the_place_of_evidence_is_refused(tmp_path):
    np.savez(tmp_path / "evidence.npz", tree=np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(SpecificationError, match="is not the evidence"):
        load_evidence(tmp_path)


def test_without_matplotlib_the_page_is_made_and_says_so(fair, monkeypatch):
    for module in (plots, errors):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    plots.figure_class.cache_clear()
    found = Page(fair.to_html())
    assert NO_PICTURES in found.text
    assert found.row("group gap", "repair data")
    assert not [tag for tag, _ in found.attributes if tag == "img"]
    with pytest.raises(MissingExtraError, match=r"pip install repairopt\[report\]") as error:
        fair.report.plot_groups()
    assert isinstance(error.value, RepairError)
    plots.figure_class.cache_clear()


@pytest.mark.slow
def test_where_home_cannot_be_written_to_pictures_are_drawn_without_a_word(tmp_path):
    home = tmp_path / "home"
    home.write_text("a file, in which nobody can make a folder")
    names = ("HOME", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "USERPROFILE")
    surroundings = {key: value for key, value in os.environ.items() if key not in names} | {"HOME": str(home)}
    code = "from repairopt.report.pictures.plots import drawing, picture_bytes\n"
    code += "with drawing(2.0, 'a title') as (figure, axes):\n    axes.plot([0, 1])\n"
    code += "print(len(picture_bytes(figure)) > 1000)"
    ended = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


def test_names_are_written_in_an_installed_font_that_has_their_letters(monkeypatch):
    manager = load_matplotlib().font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [*manager.ttflist, SimpleNamespace(name="Noto Sans CJK SC")])
    font_families.cache_clear()
    assert font_families()[0] == "DejaVu Sans"
    assert "Noto Sans CJK SC" in font_families()
    font_families.cache_clear()


def test_long_names_of_groups_keep_out_of_each_others_way():
    assert plots.wrapped("a long name of a group " * 9, most=3).count("\n") == 2
    assert plots.wrapped("a long name of a group " * 9, most=3).endswith(" ...")
    assert plots.wrapped("a name of two lines at most", most=3) == "a name of two\nlines at most"


@pytest.mark.usefixtures("without_pictures")
def test_images_are_shown_as_images_and_without_matplotlib_as_numbers(monkeypatch):
    model, x, y = images()
    wrong = model(x).argmax(1) != y
    goal = ErrorRate(x[wrong], y[wrong], target=0.2)
    repair = solve_repair(model, goal, [KeepLabels(x, y), FixLabels(x[wrong], y[wrong])], weights="last")
    (shown, *_) = repair.report.evidence.affected
    assert shown.are_images
    figure = repair.report.plot_inputs()
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == len(shown.rows)
    assert "1" in titles[0]
    torch.testing.assert_close(torch.as_tensor(shown.inputs), x[wrong][torch.as_tensor(shown.rows)])
    assert "No held-out data were given" in repair.to_html()
    named = plots.plot_inputs(shown, Evidence(classes=("left", "right")).label)
    (first, *_) = (axes.get_title() for axes in named.axes if axes.get_title())
    assert first == titles[0].replace("0", "left").replace("1", "right")


def test_robustness_is_shown_by_sample():
    model, x, y = images(24)
    goal = AdversarialError(x, y, radius=0.02, target=0.1, lower=-1.0, upper=2.0)
    repair = solve_repair(model, goal, [KeepLabels(x, y)], weights="last")
    leads = next(one for one in repair.report.evidence.margins if one.quantity.startswith("lead under attack"))
    assert float((leads.after <= 0).mean()) == pytest.approx(repair.report.measure().after, abs=1e-6)
    assert leads.name == "error under attack"
    assert repair.report.evidence.margins[0].quantity.startswith("lead of the true label")


def test_odds_by_label_have_intervals_around_them():
    toy = task(count=300)
    gap = OddsGap.observed(toy.inputs, toy.labels, column=1, target=0.2)
    repair = solve_repair(toy.model, gap, [toy.keep(0.2)], weights="last", method="sequential")
    rates = repair.report.evidence.rates[0]
    assert rates.groups == tuple(f"column 1 = {a}, label {label}" for label in (0, 1) for a in (0, 1))
    assert np.all(rates.low <= rates.after)
    assert np.all(rates.after <= rates.high)


def test_notebooks_show_claims_and_reports_stay_light(fair):
    fragment = fair._repr_html_()
    assert fragment == fair.report._repr_html_()
    assert "<td>keep labels</td>" in fragment
    assert len(fragment) < 20_000
    again = pickle.loads(pickle.dumps(fair.report))
    assert again.subjects is None
    assert str(again) == str(fair.report)
    assert isinstance(again.evidence, Evidence)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with")
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window_and_every_figure_is_in_sight(wide, tmp_path, width):
    found = look_at(
        wide,
        """
        const right = one => one.getBoundingClientRect().right;
        const out = [...doc.querySelectorAll("main *:not(thead *)")].filter(one => right(one) > doc.wide);
        const hidden = [...doc.querySelectorAll("td")].filter(one => one.textContent && !one.closest("details")
          && !(one.getClientRects().length && one.getBoundingClientRect().left >= 0));
        const scrolls = [...doc.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth).length;
        const broken = [...doc.images].filter(image => !image.complete || !image.naturalWidth).length;
        const card = doc.querySelector("td.number");
        const label = doc.defaultView.getComputedStyle(card, "::before").content;
        const role = doc.querySelector("table").getAttribute("role");
        return {out: out.map(one => one.tagName), hidden: hidden.length, scrolls, broken, label, role,
          wide: doc.documentElement.scrollWidth};
        """,
        tmp_path,
        width,
    )
    assert (found["out"], found["hidden"], found["broken"], found["scrolls"]) == ([], 0, 0, 0)
    assert found["wide"] <= width
    assert (found["label"] == '"before"') == (width == 400), "on a phone each figure stands beside its name"
    assert found["role"] == "table", "a table stays one to screen readers, however it is laid out"


@pytest.mark.parametrize(("width", "shown"), [(2, True), (40, True), (100, True), (101, False), (300, False)])
def test_a_page_lists_the_numbers_of_inputs_that_have_few(width, shown):
    torch.manual_seed(0)
    network, inputs = nn.Linear(width, 2), torch.randn(12, width)
    said = network(inputs).argmax(1)
    repair = solve_repair(network, ErrorRate(inputs[:2], 1 - said[:2]), weights="last", held_out=(inputs, said))
    evidence = repair.report.evidence
    table = input_table(evidence.affected[0], evidence, (), WIDEST)
    assert ("numbers of each input are left out" in table["title"]) != shown
    assert {len(row) for row in table["rows"]} == {len(table["head"])} == {5 + width if shown else 5}
