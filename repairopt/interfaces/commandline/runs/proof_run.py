"""Check the proof of a run that speaks of whole input regions, on the network that its patch leads to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from repairopt.errors import PatchError, ProofError, ResultError, WrongBaseError
from repairopt.interfaces.commandline.bars import Bars
from repairopt.interfaces.specfile.opened import load_model, open_spec
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.patches import fingerprint, load_patch, whole_file
from repairopt.program import ProofVerdict, RegionProof
from repairopt.specify import Region, place_in
from repairopt.verify import check_deployed, load_proof, runner_of

from .results import CheckLine, ProofResult
from .run_folder import PATCH, PROOF, RESULT, read_result

STEPS = 50  # of the progress bar


def check_run_proof(
    folder: str | Path,
    *,
    spec: str | Path | None = None,
    samples: int = 1_000_000,
    time_limit: float | None = None,
    seed: int = 0,
    picture: str | Path | None = None,
    lowest: bool = False,
    progress: Bars,
) -> ProofResult:
    """Check ``proof.safetensors`` in the folder of a run; nothing is written.

    Args:
        folder: Of the run: proof, patch and result.
        spec: The spec file, by default the one that the result names.
        samples: Points of the regions at which the repaired network is run.
        time_limit: Seconds of processor time for bounds.
        seed: Of the points.
        picture: A file to draw a slice to, .svg or .png.
        lowest: Whether the lowest output is the answer, in the picture.
        progress: What is told while the check goes on.

    Raises:
        ResultError: There is no proof, or no result, in the folder, or the picture has another ending.
        MissingExtraError: A picture is to be drawn, and Matplotlib is not installed.
    """
    run = Path(folder)
    if not (run / PROOF).is_file():
        raise ResultError(f"'{run / PROOF}': no such file; only repairs of input regions have a proof.")
    if picture is not None and Path(picture).suffix not in (".svg", ".png"):
        raise ResultError(f"'{picture}': a picture is drawn as .svg or .png.")
    stated = read_result(run / RESULT)[0]
    source = Path(spec) if spec is not None else Path(stated.spec)
    lines: list[CheckLine] = []

    def refused(what: str, reason: str) -> ProofResult:
        lines.append(CheckLine(what=what, ok=False, detail=reason))
        meaning = "The proof was not checked: the files of the run do not belong together, or were changed."
        return ProofResult(exit_code=1, run=str(run), status="refused", meaning=meaning, checks=lines)

    with (run / PROOF).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if stated.hashes.get(PROOF, digest) != digest:
        return refused(PROOF, "is not the file that the run wrote")
    try:
        with progress.stage("reading model and proof"):
            proof = load_proof(run / PROOF)
            patch = load_patch(run / PATCH, expected_hash=stated.patch)
            original, stated_regions = _read(source)
            network = patch.apply(original)
    except (ProofError, PatchError, WrongBaseError) as error:
        return refused("files", str(error))
    missing = [region.name for region in stated_regions if place_in(proof, region) is None]
    if missing:
        return refused("regions", f"the proof does not speak of '{missing[0]}', as the spec has it")
    if stated_regions:
        detail = f"all {len(stated_regions)} of the spec are in the proof"
        lines.append(CheckLine(what="regions", ok=True, detail=detail))
    found_in = {PROOF: f"whole; {len(proof.lower)} boxes, {len(proof.leaf_box)} leaves"}
    found_in[PATCH] = f"leads to weights with SHA-256 {fingerprint(network).total}"
    lines += [CheckLine(what=what, ok=True, detail=detail) for what, detail in found_in.items()]
    try:
        with progress.stage("checking the proof", STEPS) as step:
            done = 0

            def tell(now: int, of: int) -> None:
                nonlocal done
                while done < STEPS * now // of:
                    done += 1
                    step(f"{now} of {of} leaves")

            found = check_deployed(network, proof, samples=samples, time_limit=time_limit, seed=seed, progress=tell)
    except ProofError as error:
        return refused("proof", str(error))
    if picture is not None:
        _draw((original, network), proof, found, Path(picture), lowest)
    return _result(run, proof, found, lines)


def _read(source: Path) -> tuple[nn.Module, tuple[Region, ...]]:
    """The network of a spec, and its regions."""
    file = read_spec(source)
    if not file.spec.regions:
        return load_model(file), ()
    spec = open_spec(file)
    return spec.model, tuple(spec.data.regions)


def _result(run: Path, proof: RegionProof, found: ProofVerdict, lines: list[CheckLine]) -> ProofResult:
    return ProofResult(
        exit_code=0 if found.status == "proved" else 1,
        run=str(run),
        status=found.status.value,
        meaning=found.status.meaning,
        execution=found.execution,
        share=found.share,
        boxes=len(proof.lower),
        leaves=found.leaves,
        splits=found.splits,
        open_boxes=len(found.open_lower),
        least=found.least if found.status == "proved" else None,
        samples=found.samples,
        sampled_least=found.sampled_least if found.samples else None,
        point=None if found.point is None else found.point.tolist(),
        outputs=None if found.outputs is None else found.outputs.tolist(),
        seconds=found.seconds,
        checks=lines,
    )


def _draw(
    networks: tuple[nn.Module, nn.Module], proof: RegionProof, found: ProofVerdict, path: Path, lowest: bool
) -> None:
    from repairopt.report import map_region, picture_bytes, plot_region_map

    before, after = (runner_of(one, proof.shape) for one in networks)
    figure = plot_region_map(map_region(before, after, proof, found, box=max(found.point_box, 0), lowest=lowest))
    with whole_file(path) as unfinished:
        unfinished.write_bytes(picture_bytes(figure, path.suffix[1:]))
