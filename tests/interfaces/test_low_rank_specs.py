"""Spec files that let factors of low rank change, from solve to the adapter."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from small_spec import SPEC, write_spec

from repairopt import LowRank
from repairopt.errors import ModelError, SpecFileError
from repairopt.interfaces.commandline.commands import cli
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.interfaces.specfile.stated_weights import chosen_weights

RANKED = SPEC.replace("  - max_change <= 2\n", "").replace("{layers: last}", "{layers: %s, rank: 1}")


def weights_of(folder, layers: str):
    return chosen_weights(open_spec(read_spec(write_spec(folder, RANKED % layers))))


@pytest.mark.parametrize(
    ("layers", "names"),
    [("all", ()), ("last", ("2",)), ("last2", ("0", "2")), ("['2']", ("2",)), ("'[02]'", ("[02]",))],
)
def test_layers_are_those_that_get_factors(tmp_path, layers, names):
    assert weights_of(tmp_path, layers) == LowRank(1, names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{rank: 1, columns: group}", "columns chooses weights, and rank changes factors"),
        ("{rank: 1, count: 3}", "count chooses weights, and rank changes factors"),
        ("{rank: 1, layers: care}", "'care' chooses weights; with rank, name layers, or all"),
        ("{rank: 0}", "greater than or equal to 1"),
    ],
)
def test_what_does_not_go_with_a_rank_is_said(tmp_path, change, message):
    spec = write_spec(tmp_path, SPEC.replace("{layers: last}", change))
    with pytest.raises(SpecFileError, match=message):
        chosen_weights(open_spec(read_spec(spec)))


@pytest.mark.parametrize("layers", ["lats", "'3'", "'1'"], ids=["a typing error", "no layer", "an activation"])
def test_check_refuses_layers_that_no_factors_go_beside(tmp_path, layers):
    done = CliRunner().invoke(cli, ["check", str(write_spec(tmp_path, RANKED % layers))])
    assert isinstance(done.exception, ModelError)
    assert layers.strip("'") in str(done.exception)


@pytest.mark.slow
def test_from_solve_to_the_adapter(tmp_path):
    peft = pytest.importorskip("peft")

    def run(*words: str) -> str:
        done = CliRunner().invoke(cli, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    spec, out = write_spec(tmp_path, RANKED % "all"), tmp_path / "run"
    run("solve", spec, "--out", out, "--no-report")
    result = json.loads((out / "result.json").read_text())
    assert result["verdict"] == "repaired"
    assert set(result["weights"]["parameters"]) == {"0.weight", "2.weight"}
    run("verify", spec, "--patch", out / "patch.safetensors")
    run("apply", spec, out / "patch.safetensors", "--out", tmp_path / "adapter")
    run("apply", spec, out / "patch.safetensors", "--out", tmp_path / "new.pt")
    model = open_spec(read_spec(spec)).model
    served = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    new = torch.load(tmp_path / "new.pt", weights_only=True)
    for name, value in served.state_dict().items():
        torch.testing.assert_close(value, new[name], rtol=1e-5, atol=1e-6)
    back = CliRunner().invoke(
        cli, ["revert", str(spec), str(out / "patch.safetensors"), "--out", str(tmp_path / "old")]
    )
    assert back.exit_code != 0
    assert "unknown kind of file ''" in str(back.exception)
