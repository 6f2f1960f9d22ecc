"""Inputs come back in the units and categories of the data, and classes by their names, on the page of a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from html_pages import Page
from small_spec import SPEC, write_spec

from repairopt.interfaces.commandline.runs.run_folder import REPORT
from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec
from repairopt.interfaces.specfile.in_words import decode
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.report.pictures.evidence import AffectedInputs, Evidence, Rates

COLUMNS = {
    "plain": ({}, [0.5, -3.25, 1234.5], ["0.5", "-3.25", "1234.5"]),
    "mean and std": ({"mean": 45, "std": 12}, [18, 45, 71], ["18", "45", "71"]),
    "scale": ({"scale": [10, 90]}, [10, 37, 90], ["10", "37", "90"]),
    "scale turned": ({"scale": [1, 0]}, [0, 0.25, 1], ["0", "0.25", "1"]),
    "categories": ({"categories": ["low", "a <b>", 7]}, ["a <b>", 7, "low"], ["a <b>", "7", "low"]),
    "one hot": ({"one_hot": ["x", "y", "z"]}, ["z", "x", "y"], ["z", "x", "y"]),
    "fill": ({"mean": 2, "std": 4, "fill": 6}, [6, "", 2], ["6", "6", "2"]),
}


@pytest.mark.parametrize(("how", "raw", "shown"), COLUMNS.values(), ids=COLUMNS)
def test_a_column_comes_back_as_it_stands_in_the_file(tmp_path, how, raw, shown):
    write_spec(tmp_path)
    lines = [f"{value},men,yes,{number}" for number, value in enumerate(raw)]
    (tmp_path / "rows.csv").write_text("\n".join(["merit,group,decision,last", *lines]) + "\n", encoding="utf-8")
    content = yaml.safe_load(SPEC)
    content["inputs"] = {"merit": how, "last": {"mean": 1, "std": 2}}
    content["data"] = {"repair": {"file": "rows.csv"}}
    content["model"]["arguments"]["sizes"] = [1 + len(how.get("one_hot", [0])), 4, 2]
    del content["model"]["weights"]
    content |= {"goal": "error_rate <= 0.5", "bounds": [], "watch": []}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    spec = open_spec(tmp_path / "spec.yaml")
    inputs, some = spec.data.sets["repair"].inputs.numpy(), np.zeros(3)
    affected = AffectedInputs("error_rate", False, np.arange(3), inputs, some, some, some, some)
    rates = Rates("recall", False, "recall", ("class 0", "class 7", "a, label 1"), some, some, some, some)
    found = decode(spec, Evidence(affected=(affected,), rates=(rates,)))
    assert found.affected[0].features == ("merit", "last")
    assert found.affected[0].cells == tuple(zip(shown, ["0", "1", "2"], strict=True))
    assert found.rates[0].groups == ("no", "class 7", "a, label yes")
    assert [found.label(number) for number in (0, 1, 7, -1)] == ["no", "yes", "7", "-1"]


def test_an_array_comes_back_unscaled(tmp_path):
    write_spec(tmp_path)
    rows = np.array([[10.0, 250.0], [0.0, 125.0]])
    np.savez(tmp_path / "rows.npz", x=rows, y=np.array([0, 1]))
    content = yaml.safe_load(SPEC)
    del content["inputs"], content["sensitive_features"]
    content["array"] = {"name": "x", "columns": ["one", "two"], "scale": [0, 255], "mean": 0.5, "std": 0.25}
    content |= {"data": {"repair": {"file": "rows.npz"}}, "label": {"column": "y"}, "bounds": [], "watch": []}
    content["goal"] = "error_rate <= 0.5"
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    spec = open_spec(tmp_path / "spec.yaml")
    inputs, some = spec.data.sets["repair"].inputs.numpy(), np.zeros(2)
    (found,) = decode(
        spec, Evidence(affected=(AffectedInputs("e", False, some, inputs, some, some, some, some),))
    ).affected
    assert (found.features, found.cells) == (("one", "two"), (("10", "250"), ("0", "125")))
    assert found.places == ("0", "1")


@pytest.mark.usefixtures("without_pictures")
def test_the_page_of_a_run_and_the_page_made_again_speak_of_classes_and_units(tmp_path):
    torch.manual_seed(0)
    write_spec(tmp_path, SPEC.replace("  merit:\n", "  merit: {mean: 0, std: 1}\n"))
    solve_spec(tmp_path / "spec.yaml", tmp_path / "run", Options())
    page = Page((tmp_path / "run" / REPORT).read_text(encoding="utf-8"))
    head = page.row("row of the file, from 0", "true label")
    assert head[-2:] == ["merit", "group"]
    rows = [cells for cells in page.cells if len(cells) == len(head) and cells != head]
    affected = [cells for cells in rows if cells[1] in ("no", "yes") and cells[-1] in ("women", "men")]
    assert affected
    assert {cell for cells in affected for cell in cells[1:4]} == {"no", "yes"}
    assert "favorable label yes" in page.text


def test_affected_rows_are_those_of_the_file_whatever_part_of_it_a_set_takes(tmp_path):
    torch.manual_seed(0)
    text = SPEC.replace("  merit:\n", "  merit: {mean: 0, std: 1}\n")
    content = yaml.safe_load(text)
    write_spec(tmp_path, text)
    name = content["data"]["repair"]["file"]
    content["data"] = {"repair": {"file": name, "where": "merit > 0"}}
    content |= {"split": {"held_out": 0.3, "guard": 0.2, "seed": 3}, "watch": []}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    spec = open_spec(tmp_path / "spec.yaml")
    table = pd.read_csv(tmp_path / name)
    for key, held_out in (("repair", False), ("held_out", True)):
        some, zeros = spec.data.sets[key].inputs.numpy()[[5, 0]], np.zeros(2)
        one = AffectedInputs(key, held_out, np.array([5, 0]), some, zeros, zeros, zeros, zeros)
        (found,) = decode(spec, Evidence(affected=(one,))).affected
        rows = [int(place.replace(",", "")) for place in found.places]
        np.testing.assert_allclose(table["merit"][rows], some[:, 1], rtol=1e-6)
    made = AffectedInputs("sampled", False, zeros, some + 0.123, zeros, zeros, zeros, zeros)
    assert decode(spec, Evidence(affected=(made,))).affected[0].places == ()
