"""repairopt frontier: a repair for each bound, with its patch, on one page; in the units of the statement."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner
from html_pages import Page
from small_spec import SPEC, write_spec

from repairopt.errors import ResultError, SpecFileError
from repairopt.interfaces.commandline.commands import cli
from repairopt.interfaces.commandline.runs.frontier_run import PAGE, RESULT, trace_spec
from repairopt.interfaces.commandline.runs.results import FrontierResult
from repairopt.interfaces.commandline.runs.verify_run import check_spec_file, verify_patch

pytestmark = pytest.mark.slow

GAP = 'gap(group, favorable="yes", kind=parity)'


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    write_spec(folder)
    return trace_spec(folder / "spec.yaml", folder / "all", points=3), folder


def test_bounds_lead_from_what_the_goal_is_to_what_it_shall_be(traced):
    result, folder = traced
    now = next(row.value for row in result.original if row.role == "goal")
    bounds = [line.bound for line in result.repairs]
    assert bounds == pytest.approx([now - (now - 0.1) / 3, now - 2 * (now - 0.1) / 3, 0.1], abs=1e-3)
    assert bounds[-1] == 0.1
    assert (result.exit_code, {line.verdict for line in result.repairs}) == (0, {"repaired"})
    assert json.loads((folder / "all" / RESULT).read_text())["repairs"] == result.model_dump(mode="json")["repairs"]


def test_each_patch_does_what_its_line_says(traced):
    result, folder = traced
    for line in result.repairs:
        goal = next(row for row in line.claims if row.role == "goal" and row.data == "repair")
        assert goal.bound == f"<= {line.bound:g}"
        assert goal.met
        assert goal.value <= line.bound
        again = {
            (row.name, row.data): row.value for row in check_spec_file(folder / "spec.yaml", patch=line.patch).claims
        }
        assert {(row.name, row.data): row.value for row in line.claims} == pytest.approx(again, abs=1e-6)


def test_each_patch_can_be_verified_against_the_spec(traced):
    result, folder = traced
    found = [verify_patch(folder / "spec.yaml", line.patch) for line in result.repairs]
    assert [one.sound for one in found] == [True] * 3
    values = [next(row.value for row in line.claims if row.role == "goal") for line in result.repairs]
    assert [one.met for one in found] == [value <= 0.1 for value in values], "the spec's bound, not the point's"


def test_the_page_shows_every_claim_and_the_words_of_the_data(traced):
    result, folder = traced
    page = Page((folder / "all" / PAGE).read_text(encoding="utf-8"))
    assert sum(tag == "article" for tag, _ in page.attributes) == 3
    rows = [cells for cells in page.cells if cells[:1] == ['recall("yes")'] and cells[1] == "held-out data"]
    assert [cells[5] for cells in rows] == [">= 0.6"] * 3
    wanted = [row for line in result.repairs for row in line.claims if row.name == 'recall("yes")']
    assert [cells[3] for cells in rows] == [f"{row.value:.4f}" for row in wanted if row.data == "held_out"]
    assert "patch-3.safetensors" in page.text
    head = page.row("row of the file, from 0", "true label")
    affected = next(cells for cells in page.cells if len(cells) == len(head) and cells[1] in ("no", "yes"))
    assert head[-2:] == ["merit", "group"]
    assert affected[-1] in ("women", "men")


def test_a_goal_that_shall_rise_has_its_bounds_from_below(tmp_path):
    write_spec(tmp_path, SPEC.replace(f"goal: {GAP} <= 0.1", 'goal: recall("no") >= 0.9').replace(">= 0.6", ">= 0.3"))
    result = trace_spec(tmp_path / "spec.yaml", tmp_path / "all", bounds=[0.9, 0.84])
    assert [line.bound for line in result.repairs] == pytest.approx([0.84, 0.9])
    for line in result.repairs:
        goal = next(row for row in line.claims if row.role == "goal" and row.data == "repair")
        assert goal.bound == f">= {line.bound:g}"
        assert goal.met == (goal.value >= line.bound)
    page = Page((tmp_path / "all" / PAGE).read_text(encoding="utf-8"))
    said = [a["data-said"] for tag, a in page.attributes if tag == "article"]
    assert ["at least 0.8400" in said[0], "at least 0.9000" in said[1]] == [True, True]
    assert "1 - recall" not in page.text


def test_the_command_prints_the_curve_and_its_schema_fits(traced, tmp_path):
    _, folder = traced
    ran = CliRunner().invoke(
        cli, ["frontier", str(folder / "spec.yaml"), "--out", str(tmp_path / "a"), "--bound", "0.2"]
    )
    assert ran.exit_code == 0, ran.output
    assert ran.output.splitlines()[0] == GAP
    assert str(tmp_path / "a" / PAGE) in ran.output
    options = ["frontier", str(folder / "spec.yaml"), "--out", str(tmp_path / "b"), "--bound", "0.2", "--json"]
    assert FrontierResult.model_validate_json(CliRunner().invoke(cli, options).output).repairs[0].bound == 0.2


@pytest.mark.parametrize(
    ("change", "options", "error", "text"),
    [
        ({"goal": f"{GAP} <= 0.9"}, {}, SpecFileError, "holds already, .* Give tighter ones, such as --bound 0."),
        ({"goal": None}, {}, SpecFileError, "has no goal"),
        ({"method": "swarm"}, {}, SpecFileError, "a frontier is traced by method sqp; got swarm"),
        ({}, {"overwrite": False}, ResultError, "exists. Use --overwrite"),
        ({"goal": "accuracy >= 0.1"}, {}, SpecFileError, "accuracy >= 0.1 holds already"),
    ],
)
def test_what_cannot_be_traced_is_said(tmp_path, change, options, error, text):
    content = {key: value for key, value in {**yaml.safe_load(SPEC), **change}.items() if value is not None}
    write_spec(tmp_path, yaml.safe_dump(content))
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "old").write_text("kept")
    with pytest.raises(error, match=text):
        trace_spec(tmp_path / "spec.yaml", tmp_path / "all", **{"overwrite": True, **options})
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["old"]
