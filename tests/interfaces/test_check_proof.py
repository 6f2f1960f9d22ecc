"""repairopt check-proof: proved, refuted, undecided, refused, with exit codes; tampering is found."""

import json
import subprocess
import sys
from decimal import Decimal
from importlib.util import find_spec

import numpy as np
import pytest

from repairopt.interfaces.commandline.commands import main
from repairopt.interfaces.commandline.runs.run_folder import PATCH, PROOF, RESULT
from repairopt.interfaces.specfile.opened import load_model
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.patches import load_patch, save_weights
from repairopt.program import OutputRows, RegionProof
from repairopt.verify import layered_copy, load_proof, save_proof


@pytest.fixture
def deployed(folder):
    return load_patch(folder / "run" / PATCH).apply(load_model(read_spec(folder / "spec.yaml")))


def write(folder, network, slack):
    """A proof that the gap of the scores is above its least sampled value less ``slack`` on a box."""
    copy = layered_copy(network, (2,))
    lower, upper = np.array([0.5, 0.0]), np.array([0.75, 1.0])
    outputs = copy.run(lower + (upper - lower) * np.random.default_rng(0).random((20000, 2)))
    rows = OutputRows([[1.0, -1.0]], [(outputs[:, 0] - outputs[:, 1]).min() - slack], [0])
    leaves = np.array([[0.5, 0], [0.5, 0.5]]), np.array([[0.75, 0.5], [0.75, 1]])
    save_proof(RegionProof([lower], [upper], [rows], *leaves, [0, 0], copy.fingerprint), folder / "run" / PROOF)


def vnnlib(folder, upper):
    """The claim of ``write``, as a property of the spec, with another upper side of the first input."""
    proof = load_proof(folder / "run" / PROOF)
    text = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))
    sides = zip(proof.lower[0], (upper, proof.upper[0, 1]), strict=True)
    text += "".join(f"(assert (>= X_{i} {low}))(assert (<= X_{i} {high}))\n" for i, (low, high) in enumerate(sides))
    offset = Decimal(float(proof.rows[0].offset[0]))
    (folder / "claim.vnnlib").write_text(f"{text}(assert (<= (- Y_0 Y_1) {offset}))\n")
    spec = (folder / "spec.yaml").read_text().split("regions:")[0]
    (folder / "spec.yaml").write_text(f"{spec}regions: [{{vnnlib: claim.vnnlib}}]\n")


def run(folder, capsys, *options):
    with pytest.raises(SystemExit) as ended:
        main(["check-proof", str(folder / "run"), "--spec", str(folder / "spec.yaml"), "--quiet", *options])
    return ended.value.code, capsys.readouterr().out


def test_a_proof_of_the_repaired_network_is_checked(folder, deployed, capsys):
    write(folder, deployed, slack=0.1)
    code, text = run(folder, capsys, "--samples", "5000")
    assert code == 0
    assert text.startswith("PROVED")
    assert "in every run in float32" in text
    code, text = run(folder, capsys, "--samples", "5000", "--json")
    found = json.loads(text)
    assert (code, found["status"], found["share"], found["leaves"]) == (0, "proved", 1, 2)
    assert found["least"] > 0


def test_a_violation_is_told_with_its_point(folder, deployed, capsys):
    write(folder, deployed, slack=-0.1)
    code, text = run(folder, capsys, "--json")
    found = json.loads(text)
    assert (code, found["status"]) == (1, "refuted")
    assert found["outputs"] == pytest.approx(layered_copy(deployed, (2,)).run(np.array([found["point"]]))[0], rel=1e-4)
    assert "Violated at input" in run(folder, capsys)[1]


def test_without_samples_and_time_it_stays_undecided(folder, deployed, capsys):
    write(folder, deployed, slack=0.1)
    code, text = run(folder, capsys, "--samples", "0", "--time-limit", "1e-9")
    assert code == 1
    assert text.startswith("UNDECIDED")
    assert "Proved on 0.000000% of the volume; 2 smaller boxes are open." in text


def test_what_does_not_belong_together_is_refused(folder, deployed, capsys):
    write(folder, deployed, slack=0.1)
    path = folder / "run" / PROOF
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, text = run(folder, capsys)
    assert (code, text.startswith("REFUSED")) == (1, True)
    path.write_bytes(whole)
    said = json.loads((folder / "run" / RESULT).read_text())
    (folder / "run" / RESULT).write_text(json.dumps({**said, "hashes": {**said["hashes"], PROOF: "0" * 64}}))
    assert "is not the file that the run wrote" in run(folder, capsys)[1]
    (folder / "run" / RESULT).write_text(json.dumps(said))
    other = load_model(read_spec(folder / "spec.yaml"))
    other[0].weight.data[0, 0] += 1
    save_weights(other, folder / "weights.safetensors")
    assert run(folder, capsys)[0] == 1
    path.unlink()
    assert run(folder, capsys)[0] == 2


def test_regions_of_the_spec_have_to_be_those_of_the_proof(folder, deployed, capsys):
    write(folder, deployed, slack=0.1)
    vnnlib(folder, 0.75)
    code, text = run(folder, capsys, "--samples", "1000")
    assert (code, "all 1 of the spec are in the proof" in text) == (0, True)
    vnnlib(folder, 0.80)
    code, text = run(folder, capsys, "--samples", "1000")
    assert (code, text.startswith("REFUSED")) == (1, True)
    assert "does not speak of 'claim'" in text


def test_a_fresh_process_checks_without_the_code_that_searches(folder, deployed):
    write(folder, deployed, slack=0.1)
    code = (
        "import sys\nfrom repairopt.interfaces.commandline.commands import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n    print('code', ended.code)\n"
        "rooms = {m.split('.')[1] for m in sys.modules if m.startswith('repairopt.')}\n"
        "print(sorted(rooms & {'pipeline', 'methods', 'surrogate', 'localize'}))"
    )
    command = ["check-proof", str(folder / "run"), "--spec", str(folder / "spec.yaml"), "--samples", "1000"]
    found = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-2:] == ["code 0", "[]"]


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="Matplotlib is not installed")
def test_a_slice_of_the_regions_is_drawn(folder, deployed, capsys, tmp_path):
    write(folder, deployed, slack=-0.1)
    assert run(folder, capsys, "--samples", "1000", "--picture", str(tmp_path / "slice.png"))[0] == 1
    assert (tmp_path / "slice.png").read_bytes()[:4] == b"\x89PNG"
    assert run(folder, capsys, "--picture", "slice.pdf")[0] == 2
