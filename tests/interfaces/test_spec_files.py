"""Spec files: read, checked with the line of every error, and opened with model and data."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from doc_pages import fences
from small_spec import SPEC, write_spec
from torch import nn

from repairopt.errors import RepairError, SpecFileError
from repairopt.interfaces.specfile.claim_rows import all_met
from repairopt.interfaces.specfile.measure import PlainNetwork, measure_accuracy, measure_claims
from repairopt.interfaces.specfile.networks import mlp
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.patches import load_weights, save_weights


def changed(old: str, new: str) -> str:
    assert old in SPEC
    return SPEC.replace(old, new)


def line(text: str, start: str) -> int:
    """Number of the line that starts so."""
    return next(i for i, row in enumerate(text.splitlines(), 1) if row.strip().startswith(start))


def refused(folder: Path, text: str) -> str:
    with pytest.raises(SpecFileError) as caught:
        open_spec(write_spec(folder, text))
    return str(caught.value)


def test_opens_with_model_data_goal_and_twins(tmp_path):
    spec = open_spec(write_spec(tmp_path))
    assert {name: len(rows) for name, rows in spec.data.sets.items()}["repair"] == 400
    assert spec.data.input_columns == ("merit", "group")
    assert set(spec.data.sets["guard"].columns["merit"] >= 0.8) == {True}
    assert [item.statement.name for item in spec.held_out] == [
        'gap(group, favorable="yes", kind=parity)',
        'recall("yes")',
        "equalized_odds_difference(group)",
    ]
    assert not spec.model.training


def test_comments_and_order_do_not_change_the_hash(tmp_path):
    first = read_spec(write_spec(tmp_path)).hash
    parts = SPEC.split("watch:")
    other = f"# why\nwatch:{parts[1]}{parts[0]}"
    assert first == read_spec(write_spec(tmp_path, other)).hash
    assert first != read_spec(write_spec(tmp_path, changed("<= 0.1", "<= 0.2"))).hash


@pytest.mark.parametrize(
    ("old", "new", "start", "message"),
    [
        ("change:", "confidence: 0.4\nchange:", "confidence", "greater than or equal to 0.5"),
        ("change:", "desing: 1\nchange:", "desing", "unknown key 'desing'"),
        ("{layers: last}", "{layer: last}", "change", "unknown key 'layer' in change; did you mean 'layers'?"),
        ("{layers: last}", "{minimize: l3}", "change", "expected 'auto', 'cross_entropy', 'closeness', 'l2'"),
        ("{layers: last}", "{count: 0}", "change", "greater than or equal to 1"),
        ("  factory: repairopt.interfaces.specfile.networks:mlp\n", "", "model", "expected either factory"),
        ("networks:mlp", "networks.mlp", "factory", "string should match pattern"),
        ("  repair: {", "  repeir: {", "data", "needs a set 'repair'"),
        ('rows: "0:400"}', 'rows: "0-400"}', "repair", "string should match pattern"),
        ("merit >= 0.8", "merit => 0.8", "guard", "unknown sign"),
        ("<= 0.1\n", "<= 0,1\n", "goal", "is no measure"),
        ('recall("yes")', 'recal("yes")', "- recal", "did you mean 'recall'?"),
        ("goal: gap", "goal: max_change <= 1 # gap", "goal", "is a bound, not a goal"),
        ("- max_change <= 2", "- max_change", "- max", "compared with a number"),
        ("- max_change <= 2", '- recall("yes") >= 0.9', '- recall("yes") >= 0.9', "stands on line"),
        ("watch: [", "watch: [accuracy >= 0.1, ", "watch", "without a comparison"),
        ("goal: gap", "goal: accuracy >= 0.9\ngoal: gap", "goal: gap", "stands on line"),
        ("label: {", "label: {]", "label", "no valid YAML"),
    ],
)
def test_errors_name_the_line_and_what_is_allowed(tmp_path, old, new, start, message):
    text = changed(old, new)
    said = refused(tmp_path, text)
    assert message in said
    assert f"spec.yaml, line {line(text, start)}: " in said


def test_bounds_on_average_are_confidence_one_half(tmp_path):
    assert read_spec(write_spec(tmp_path, changed("change:", "confidence: 0.5\nchange:"))).spec.confidence == 0.5


def test_several_errors_are_reported_at_once(tmp_path):
    said = refused(tmp_path, changed("change: {layers: last}", "change: {layer: last}\nsolvr: x"))
    assert len(said.splitlines()) == 2


def test_bounds_that_yaml_splits_are_joined_again(tmp_path):
    text = SPEC.split("bounds:")[0] + 'bounds: [recall("yes", repair) >= 0.5, accuracy >= 0.1]\n'
    assert [str(bound) for bound in read_spec(write_spec(tmp_path, text)).bounds] == [
        'recall("yes", repair) >= 0.5',
        "accuracy >= 0.1",
    ]
    assert "Is it cut off?" in refused(tmp_path, SPEC.split("bounds:")[0] + "bounds: [recall(yes, repair]\n")


def test_yaml_tags_run_no_code(tmp_path):
    text = changed("merit:", f'merit: !!python/object/apply:os.mkdir ["{tmp_path / "made"}"]')
    assert "Tags that make Python objects are refused" in refused(tmp_path, text)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"- 1\n- 2\n", b"", b"a: &x [*x]\n", b"x: " + b"[" * 60 + b"]" * 60]
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "spec.yaml").write_bytes(content)
    with pytest.raises(SpecFileError):
        read_spec(tmp_path / "spec.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("guard: {file: rows.csv", "guard: {file: row.csv", "did you mean 'rows.csv'?"),
        ("  merit:", "  merits:", "has no column 'merits'; did you mean 'merit'?"),
        ("column: decision", "column: decisoin", "did you mean 'decision'?"),
        ("{categories: [women, men]}", "", "holds texts (men, women, ...); give categories: or one_hot:"),
        ("[women, men]", "[women, other]", "values that are not listed, such as 'men'"),
        ('["no", "yes"]', '["no", "maybe"]', "values that are not listed"),
        ("sensitive_features: [group]", "sensitive_features: [grup]", "did you mean 'group'?"),
        ("gap(group", "gap(grup", "there is no column 'grup'"),
        ("weights: weights.safetensors", "weights: w.safetensors", "did you mean 'weights.safetensors'?"),
        ("[2, 4, 2]", "[2, 5, 2]", "has shape (4, 2), expected (5, 2)"),
        ("[2, 4, 2]", "[2]", "failed with ValueError: sizes=[2]"),
        ("networks:mlp", "networks:mpl", "has no 'mpl'"),
        ("repairopt.interfaces.specfile.networks:mlp", "nosuch:mlp", "cannot be imported"),
        ('rows: "400:800"', 'rows: "900:"', "none of the 800 rows"),
        ("merit >= 0.8", "merit >= 80", "no row fulfils"),
    ],
)
def test_what_it_names_and_does_not_find(tmp_path, old, new, message):
    text = changed(old, new)
    if new.endswith("grup"):
        text = text.replace("equalized_odds_difference(group)", "accuracy")
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize("front", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.backbone."])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_names_with_something_in_front_get_a_hint(tmp_path, front, name):
    write_spec(tmp_path)
    state = {front + key: value.contiguous() for key, value in load_weights(tmp_path / "weights.safetensors").items()}
    torch.save(state, tmp_path / name) if name.endswith(".pt") else save_weights(state, tmp_path / name)
    said = refused(tmp_path, changed("weights: weights.safetensors", f"weights: {name}"))
    assert f"begin with '{front}'" in said
    assert f"removeprefix('{front}')" in said
    assert ("DataParallel" in said) == ("module." in front)
    assert ("torch.compile" in said) == ("_orig_mod." in front)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pt", "evil.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_as_weights_is_refused_and_nothing_runs(tmp_path, name, zipped):
    made = tmp_path / "made"
    write_spec(tmp_path)
    if zipped:
        torch.save({"0.weight": Evil(made)}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"0.weight": Evil(made)}))
    said = refused(tmp_path, changed("weights: weights.safetensors", f"weights: {name}"))
    assert "pickle" in said or "need code" in said
    assert not made.exists()


def test_a_pickle_as_data_is_refused_and_nothing_runs(tmp_path):
    made = tmp_path / "made"
    array = np.empty(1, dtype=object)
    array[0] = Evil(made)
    np.savez(tmp_path / "rows.npz", x=array)
    said = refused(tmp_path, changed("guard: {file: rows.csv", "guard: {file: rows.npz"))
    assert "pickles, which are refused" in said
    assert not made.exists()


def test_a_state_dict_of_torch_save_is_read(tmp_path):
    spec = open_spec(write_spec(tmp_path))
    torch.save({"state_dict": spec.model.state_dict()}, tmp_path / "weights.pt")
    again = open_spec(write_spec(tmp_path, changed("weights.safetensors", "weights.pt")))
    for first, second in zip(spec.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(first, second)


NPZ = """\
model: {factory: "repairopt.interfaces.specfile.networks:mlp", arguments: {sizes: [3, 2]}}
data: {repair: rows.npz}
split: {held_out: 0.25, guard: 0.25, seed: 1}
array: {name: x, columns: [a, b, c], mean: 1, std: 2}
label: y
sensitive_features: [sex]
goal: accuracy >= 0
bounds: [gap(sex, kind=parity) <= 1, flips(guard) <= 100, "gap(c, kind=sampled, values=[0, 1], count=50) <= 1"]
"""


def test_npz_with_split_and_scaled_array(tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 3))
    np.savez(tmp_path / "rows.npz", x=x, y=np.arange(80) % 2, sex=np.arange(80) % 2)
    (tmp_path / "spec.yaml").write_text(NPZ)
    spec = open_spec(tmp_path / "spec.yaml")
    sizes = {name: len(rows) for name, rows in spec.data.sets.items()}
    assert sizes == {"repair": 40, "held_out": 20, "guard": 20}
    everything = torch.cat([rows.inputs for rows in spec.data.sets.values()]).sort(0).values
    assert torch.allclose(everything, torch.tensor((np.sort(x, 0) - 1) / 2).float())
    assert all_met(measure_claims(spec), strict=True)


def test_parquet_is_read_as_csv_is(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    first = open_spec(write_spec(tmp_path))
    pandas.read_csv(tmp_path / "rows.csv").to_parquet(tmp_path / "rows.parquet")
    again = open_spec(write_spec(tmp_path, SPEC.replace("rows.csv", "rows.parquet")))
    assert torch.equal(first.data.sets["repair"].inputs, again.data.sets["repair"].inputs)


def test_missing_values_need_a_word(tmp_path):
    path = write_spec(tmp_path)
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    rows[3] = rows[3].replace("women", "").replace("men", "")
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(SpecFileError, match="1 missing values, first in row 2; give fill:"):
        open_spec(path)
    text = changed("{categories: [women, men]}", "{categories: [women, men], fill: men}")
    path.write_text(text.replace("gap(group, ", "gap(group, values=[women, men], ").replace("watch: [equal", "#"))
    assert float(open_spec(path).data.sets["repair"].inputs[2, 1]) == 1.0


def test_one_hot_and_scale(tmp_path):
    text = changed("  merit:", "  merit: {scale: [-2, 2]}").replace("{categories: [", "{one_hot: [")
    spec = open_spec(
        write_spec(tmp_path, text.replace("[2, 4, 2]", "[3, 4, 2]").replace("  weights: weights.safetensors\n", ""))
    )
    plain = open_spec(write_spec(tmp_path))
    assert spec.data.input_columns == ("merit", "group=women", "group=men")
    ours, theirs = spec.data.sets["repair"].inputs, plain.data.sets["repair"].inputs
    assert torch.allclose(ours[:, 0], (theirs[:, 0] + 2) / 4, atol=1e-6)
    assert torch.equal(ours[:, 1:].argmax(1), theirs[:, 1].long())


def test_claims_agree_with_the_librarys_own_verification(tmp_path):
    """Two paths to the same figures: plain torch modules here, the engine there."""
    from repairopt.specify import Specification
    from repairopt.verify import verify

    spec = open_spec(write_spec(tmp_path))
    torch.manual_seed(3)
    other = mlp([2, 4, 2]).eval()
    claims = {(c.name, c.data): c for c in measure_claims(spec, other)}
    bounds = [bound.as_constraint() for bound in spec.bounds if bound.data]
    found = verify(spec.model, other, Specification(spec.goal.as_goal(), bounds))
    assert claims[spec.goal.statement.name, "repair"].value == pytest.approx(found.goal_after, abs=1e-6)
    checks = {check.constraint: check for check in found.checks}
    assert claims["flips(guard)", "guard"].value == checks["flips(guard)"].failed
    assert claims["flips(guard)", "guard"].met == checks["flips(guard)"].holds
    assert claims['recall("yes")', "repair"].met == checks['1 - recall("yes")'].holds


def test_a_network_that_cannot_take_the_rows_is_named(tmp_path):
    spec = open_spec(write_spec(tmp_path))
    with pytest.raises(RepairError, match="cannot take inputs of shape"):
        PlainNetwork(nn.Linear(5, 2))(spec.data.sets["repair"].inputs)


def test_the_spec_and_the_workflow_of_the_docs_are_valid(tmp_path):
    pages = Path(__file__).resolve().parents[2] / "docs" / "howto"
    spec, workflow = (
        next(fence.body for fence in fences((pages / page).read_text(encoding="utf-8")) if fence.language == "yaml")
        for page in ("spec_files.md", "ci.md")
    )
    (tmp_path / "spec.yaml").write_text(spec)
    assert len(read_spec(tmp_path / "spec.yaml").bounds) == 3
    commands = [step["run"] for step in yaml.safe_load(workflow)["jobs"]["bounds"]["steps"] if "run" in step]
    assert any(command.startswith("repairopt verify") for command in commands)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, -1, 1] * 20), "is -1 in row 2; classes count from 0"),
        (np.array([[0], [1]] * 40), r"has shape \(80, 1\); expected one label a row, such as by .squeeze\(1\)"),
        (np.eye(2, dtype=np.int64)[[0, 1] * 40], r"has shape \(80, 2\); .*argmax\(1\)"),
        (np.array([0, 1, 2, 1] * 20), "label 2 of 'repair' is none of the network's 2 classes"),
        (np.zeros(0, dtype=np.int64), "has no rows"),
    ],
)
def test_labels_of_arrays_that_no_class_has_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).normal(size=(len(labels), 3)), y=labels)
    weights = torch.nn.Linear(3, 2)
    save_weights(torch.nn.Sequential(weights), tmp_path / "w.safetensors")
    (tmp_path / "spec.yaml").write_text(
        "model: {factory: 'repairopt.interfaces.specfile.networks:mlp', arguments: {sizes: [3, 2]}, "
        "weights: w.safetensors}\ndata: {repair: rows.npz}\narray: {name: x}\nlabel: {column: y}\n"
        "goal: gap(repair) <= 0.1\n".replace("gap(repair)", "error_rate")
    )
    with pytest.raises(SpecFileError, match=message):
        measure_accuracy(spec := open_spec(tmp_path / "spec.yaml"), PlainNetwork(spec.model))


ARRAYS = """\
model:
  factory: repairopt.interfaces.specfile.networks:mlp
  arguments: {{sizes: [4, 6, 2]}}
  weights: w.safetensors
data: {{repair: a.npz, held_out: {held_out}.npz, guard: {guard}.npz}}
array: {{name: x{more}}}
label: {{column: y}}
goal: error_rate <= 0.1
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": "narrow"}, r"rows of 'held_out' \('narrow.npz'\) have shape \(3,\), those of 'repair' \(4,\)"),
        ({"guard": "narrow"}, r"rows of 'guard' \('narrow.npz'\) have shape \(3,\), those of 'repair' \(4,\)"),
        ({"guard": "deep"}, r"rows of 'guard' \('deep.npz'\) have shape \(4, 1\)"),
        ({"more": ", integers: true"}, r"array 'x' of '.*a.npz' holds fractions, first in row 0"),
        ({"more": ", integers: true, scale: [0, 255]"}, r"integers keeps whole numbers; leave scale"),
        ({"more": ", integers: true, mean: 1.0"}, r"integers keeps whole numbers; leave scale"),
    ],
)
def test_sets_that_one_network_cannot_read_are_refused_by_name(tmp_path, change, message):
    save_weights(mlp([4, 6, 2]), tmp_path / "w.safetensors")
    x, y = np.linspace(-1, 1, 80).reshape(20, 4).astype(np.float32), np.arange(20) % 2
    for name, rows in {"a": x, "narrow": x[:, :3], "deep": x[:, :, None]}.items():
        np.savez(tmp_path / f"{name}.npz", x=rows, y=y)
    path = tmp_path / "spec.yaml"
    path.write_text(ARRAYS.format(**({"held_out": "a", "guard": "a", "more": ""} | change)))
    with pytest.raises(SpecFileError, match=message):
        open_spec(path)


def test_rows_with_equal_inputs_stay_in_one_set(tmp_path):
    inputs = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).repeat(3, 1)[:150]
    np.savez(tmp_path / "rows.npz", x=inputs.numpy(), y=(inputs[:, 0] > 0).long().numpy())
    save_weights(mlp([2, 4, 2]), tmp_path / "w.safetensors")
    plain = {
        "model": {
            "factory": "repairopt.interfaces.specfile.networks:mlp",
            "arguments": {"sizes": [2, 4, 2]},
            "weights": str(tmp_path / "w.safetensors"),
        },
        "data": {"repair": str(tmp_path / "rows.npz")},
        "split": {"held_out": 0.3, "guard": 0.2},
        "array": {"name": "x"},
        "label": {"column": "y"},
        "goal": "error_rate <= 0.1",
    }

    def shared(split):
        sets = open_spec(plain | {"split": plain["split"] | split}).data.sets
        kinds = {name: {tuple(row) for row in rows.inputs.tolist()} for name, rows in sets.items()}
        assert sum(len(rows) for rows in sets.values()) == 150
        assert all(abs(len(sets[name]) - 150 * share) <= 3 for name, share in plain["split"].items())
        return {one for one in kinds["held_out"] if one in kinds["repair"] | kinds["guard"]}

    assert shared({})
    assert not shared({"together": True})
