"""Verify a patch: every stated claim recomputed from the original weights and the patch alone.

None of the code that solves is used or imported. Looked at, where it is there: the patch and its hash, the spec it was
made for, its base, the weights it leads to, what it says of the change, each claim in it; beside it ``result.json``,
``audit.jsonl``, the hashes of ``report.html`` and ``evidence.npz``, and a signature of ``result.json``, which names all
other files by their hashes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from repairopt.errors import AuditError, PatchError, ResultError, WrongBaseError
from repairopt.interfaces.commandline.bars import Bars, Step
from repairopt.interfaces.specfile.claim_rows import ClaimRow, all_met
from repairopt.interfaces.specfile.measure import PlainNetwork, became_constant, measure_accuracy, measure_claims
from repairopt.interfaces.specfile.opened import OpenSpec, open_spec
from repairopt.patches import Patch, WrappedPatch, fingerprint, load_patch, verify_log

from .checked_regions import take_proof
from .results import CheckLine, CheckResult, SolveResult, VerifyResult
from .run_folder import AUDIT, EVIDENCE, PROOF, REPORT, RESULT, SIGNATURE, read_result

FIXED = ("text", "name", "role", "data", "bound", "met", "shown", "rows", "unit")
FIGURES = ("before", "value", "low", "high", "confidence")
CLOSE = 1e-6  # between stated and recomputed figures, relative: another machine may add in another order


def verify_patch(
    source: str | Path,
    patch_path: str | Path,
    *,
    result: str | Path | None = None,
    audit: str | Path | None = None,
    expected_hash: str | None = None,
    expected_log: str | None = None,
    signers: str | Path | None = None,
    signer: str | None = None,
    strict: bool = False,
    progress: Bars | None = None,
) -> VerifyResult:
    """Recompute what a patch and its result claim; options are those of ``repairopt verify``.

    ``result`` and ``audit`` are by default the files beside the patch, where they are there. A patch that cannot be
    read or applied is not sound.
    """
    if not Path(patch_path).is_file():
        raise PatchError(
            f"'{patch_path}': no such file. `repairopt solve SPEC --out DIR` writes DIR/patch.safetensors."
        )
    if (signers is None) != (signer is None):
        raise ResultError(
            "a signature is checked with both, a file of allowed --signers and the --signer it is to be of."
        )
    bars, beside = progress or Bars(quiet=True), Path(patch_path).parent
    with bars.stage("reading model and data"):
        check = _Verifier(open_spec(source), Path(patch_path))
    with bars.stage("recomputing every claim", len(check.spec.statements)) as step:
        claims = check.patch(expected_hash, step)
    with bars.stage("reading result and log"):
        check.result(_given(result, beside / RESULT), claims)
        check.log(_given(audit, beside / AUDIT), expected_log, claims)
        check.files(beside)
        check.signature(_given(result, beside / RESULT), signers, signer)
    sound = all(line.ok is not False for line in check.lines)
    met = bool(claims) and all_met(claims, strict) and not check.constant
    return VerifyResult(
        exit_code=0 if sound and met else 1,
        spec=str(check.spec.file.path),
        patch=str(patch_path),
        sound=sound,
        met=met,
        constant=check.constant,
        checks=check.lines,
        claims=claims,
    )


def _given(path: str | Path | None, beside: Path) -> Path | None:
    if path is not None:
        return Path(path)
    return beside if beside.is_file() else None


class _Verifier:
    """One verification: the lines it found."""

    def __init__(self, spec: OpenSpec, path: Path) -> None:
        self.spec, self.path = spec, path
        self.lines: list[CheckLine] = []
        self.found: Patch | WrappedPatch | None = None
        self.stated: SolveResult | None = None
        self.result_hash = ""
        self.hashes: dict[str, str] = {}
        self.largest: tuple[int, float] | None = None
        self.constant = False

    def say(self, what: str, ok: bool | None, detail: str) -> None:
        self.lines.append(CheckLine(what=what, ok=ok, detail=detail))

    def patch(self, expected_hash: str | None, tell: Step) -> list[ClaimRow]:
        """The patch file, its base, what it leads to, and each of its claims."""
        try:
            patch = self.found = load_patch(self.path, expected_hash=expected_hash)
        except PatchError as error:
            self.say("patch", False, str(error))
            return []
        self.say("patch", True, f"whole; content hash {patch.content_hash}")
        same = patch.info.spec_hash == self.spec.file.hash
        self.say("spec", same, "the patch was made for this spec" if same else "the patch was made for another spec")
        try:
            model = patch.apply(self.spec.model)
        except (WrongBaseError, PatchError) as error:
            self.say("base", False, str(error))
            return []
        exact = fingerprint(model) == patch.repaired
        self.say("base", True, f"applies to these weights, SHA-256 {patch.base.total}")
        self.say("weights", exact, f"lead to SHA-256 {patch.repaired.total}" if exact else "lead to other weights")
        if isinstance(patch, Patch):
            wrong = patch.misstated(self.spec.model, model)
            count = f"{len(patch.changes)} changed weights recomputed"
            self.say("changes", not wrong, "; ".join(wrong) or f"{count}: names, numbers of entries, largest changes")
            self.largest = _largest(self.spec.model, model)
        if (proof := take_proof(self.spec, model, self.path.parent)) is not None:
            self.say("regions", *proof)
        claims = measure_claims(self.spec, model, location=self._location(), tell=tell)
        self.constant = became_constant(self.spec, model)
        wrong = _differences(patch.info.claims, claims)
        count = f"{len(claims)} claims recomputed"
        self.say("claims of the patch", not wrong, "; ".join(wrong) if wrong else f"{count}, all as stated")
        return claims

    def _location(self) -> dict[str, list[int]] | None:
        """The weights that the user's own rows speak of; only the result knows them."""
        try:
            return read_result(self.path.parent / RESULT)[0].location
        except ResultError:
            return None

    def result(self, path: Path | None, claims: Sequence[ClaimRow]) -> None:
        """The result: of this patch and spec, its claims as recomputed, its verdict no better than they allow."""
        if path is None:
            self.say("result.json", None, "there is none beside the patch")
            return
        try:
            stated, raw = read_result(path)
        except ResultError as error:
            self.say("result.json", False, str(error))
            return
        self.stated, self.result_hash = stated, hashlib.sha256(raw).hexdigest()
        self.hashes |= stated.hashes
        wrong = self._identity(stated) + _differences([c.model_dump(mode="json") for c in stated.claims], claims)
        met = bool(claims) and all_met(claims) and not self.constant
        if stated.met != met:
            wrong.append(f"says met: {stated.met}, recomputed: {met}")
        for says, good in (("repaired", stated.verdict == "repaired"), ("exit code 0", stated.exit_code == 0)):
            wrong += [f"says {says}, but a goal or bound is not met"] if good and not met else []
        hashes = self.spec.hashes()
        wrong += [f"'{n}' is not the file it was" for n, digest in stated.inputs.items() if hashes.get(n) != digest]
        self.say("result.json", not wrong, "; ".join(wrong) or "fits the patch, the spec and what was recomputed")

    def _identity(self, stated: SolveResult) -> list[str]:
        wrong = [] if stated.spec_hash == self.spec.file.hash else ["is of another spec"]
        if self.found is not None:
            pairs = {
                "patch": (stated.patch, self.found.content_hash),
                "base": (stated.base, self.found.base.total),
                "repaired weights": (stated.repaired, self.found.repaired.total),
                "seed": (stated.seed, self.found.info.seed),
                "solver": (stated.solver, self.found.info.solver),
            }
            if self.largest is not None:
                said = stated.weights.changed, stated.weights.largest_change
                pairs["number of changed weights"] = said[0], self.largest[0]
                pairs["largest change"] = _close(said[1], self.largest[1]), True
            wrong += [f"names another {what}" for what, (said, own) in pairs.items() if said != own]
        return wrong

    def log(self, path: Path | None, expected: str | None, claims: Sequence[ClaimRow]) -> None:
        """The chain of the log, that patch and result stand in it, and that it tells of the same run."""
        if path is None:
            self.say("audit.jsonl", None, "there is none beside the patch")
            return
        try:
            end = verify_log(path, expected=expected or (self.stated.audit or None if self.stated else None))
        except AuditError as error:
            self.say("audit.jsonl", False, str(error))
            return
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        wrong = []
        if self.found is not None and not _logged(entries, "repair ended", "patch", self.found.content_hash):
            wrong.append("does not name this patch")
        if self.stated is not None and not _logged(entries, "result", "sha256", self.result_hash):
            wrong.append("does not name this result.json, which was changed or is of another run")
        wrong += self._told(entries, claims)
        text = f"chain of {end.count} lines is whole; last hash {end.hash}"
        self.say("audit.jsonl", not wrong, "; ".join(wrong) or text)

    def _told(self, entries: Sequence[Any], claims: Sequence[ClaimRow]) -> list[str]:
        """Where the log tells of another run than the files: its start, its end, its result."""
        wrong, last = [], {entry["event"]: entry["data"] for entry in entries}
        start = last.get("run resumed", last.get("run started", {}))
        own: dict[str, Any] = {"spec": self.spec.file.hash, "inputs": self.spec.hashes()}
        if self.found is not None:
            own |= {"weights": self.found.base.total, "seed": self.found.info.seed}
        wrong += [f"starts with another {key}" for key in own if key in start and start[key] != own[key]]
        ended = last.get("repair ended", {})
        if claims and "claims" in ended:
            wrong += _differences(ended["claims"], claims)
        if self.stated is not None:
            says = {"verdict": self.stated.verdict, "met": self.stated.met}
            for entry in (ended, last.get("result", {})):
                wrong += [f"says {key} {entry[key]}" for key in says if key in entry and entry[key] != says[key]]
            wrong += ["names other files than result.json"] if ended.get("hashes", self.hashes) != self.hashes else []
        self.hashes |= last.get("report written", {}).get("hashes", {})
        return wrong

    def files(self, beside: Path) -> None:
        """The hashes of the report, its pictures and a proof of regions, which are not read."""
        for name in (PROOF, REPORT, EVIDENCE):
            path = beside / name
            if not path.is_file():
                if name in self.hashes:
                    self.say(name, None, "is not there any more; the run wrote one")
                continue
            if name not in self.hashes:
                self.say(name, None, "neither result.json nor the log has a hash of it")
                continue
            same = hashlib.sha256(path.read_bytes()).hexdigest() == self.hashes[name]
            self.say(name, same, "is as it was written" if same else "is not the file that was written")

    def signature(self, path: Path | None, signers: str | Path | None, signer: str | None) -> None:
        """A signature of the result by ssh-keygen of OpenSSH, made by a key that is trusted."""
        if signers is None or signer is None:
            self.say("signature", None, "no key was given, so nothing shows who wrote these files")
            return
        signature = (path or Path(RESULT)).with_name(SIGNATURE)
        try:
            if path is None or not signature.is_file():
                raise ResultError(f"there is no '{signature}'")
            command = ["ssh-keygen", "-Y", "verify", "-f", os.fspath(signers), "-I", signer, "-n", "repairopt", "-s"]
            ran = subprocess.run([*command, os.fspath(signature)], input=path.read_bytes(), capture_output=True)
        except (ResultError, OSError) as error:
            self.say("signature", False, f"cannot be checked: {error}")
            return
        text = f"{RESULT}, which names all other files, is signed by {signer}"
        problem = ran.stderr.decode(errors="replace").strip() or "the signature does not fit"
        self.say("signature", ran.returncode == 0, text if ran.returncode == 0 else problem)


def _largest(before: nn.Module, after: nn.Module) -> tuple[int, float]:
    """How many entries of parameters differ, and the largest difference."""
    new = dict(after.named_parameters())
    moved = [(new[name] - value).detach().abs() for name, value in before.named_parameters()]
    return sum(int((one != 0).sum()) for one in moved), max(
        (float(one.max()) for one in moved if one.numel()), default=0.0
    )


def _logged(entries: Sequence[Any], event: str, key: str, value: str) -> bool:
    return any(entry["event"] == event and entry["data"].get(key) == value for entry in entries)


def _differences(stated: Sequence[Any], found: Sequence[ClaimRow]) -> list[str]:
    """In words, where stated claims are not what was recomputed."""
    own = {(claim.text, claim.data): claim.model_dump(mode="json") for claim in found}
    said = {(str(claim.get("text")), str(claim.get("data"))): claim for claim in stated}
    wrong = [] if len(said) == len(stated) else ["a claim is stated twice"]
    for key in dict.fromkeys([*own, *said]):
        name = f"claim '{key[0]}' on {key[1] or 'the change'}"
        if key not in said or key not in own:
            wrong.append(f"{name} is {'missing' if key in own else 'not of the spec'}")
            continue
        claim, other = own[key], said[key]
        parts = [part for part in FIXED if other.get(part) != claim[part]]
        parts += [part for part in FIGURES if not _close(other.get(part), claim[part])]
        off = [f"{part} {other.get(part)!r}, recomputed {claim[part]!r}" for part in parts]
        wrong += [f"{name}: states {'; '.join(off)}"] if off else []
    return wrong


def _close(first: Any, second: Any) -> bool:
    numbers = [x for x in (first, second) if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(numbers) < 2:
        return bool(first == second)
    return math.isclose(float(first), float(second), rel_tol=CLOSE, abs_tol=CLOSE)


def check_spec_file(
    source: str | Path | OpenSpec,
    *,
    patch: str | Path | None = None,
    strict: bool = False,
    model: nn.Module | None = None,
    tell: Step = lambda text, share=0.0: None,
) -> CheckResult:
    """Measure goal and bounds of a spec on its network, with a patch applied, or on ``model``; nothing is changed."""
    spec = source if isinstance(source, OpenSpec) else open_spec(source)
    judged = spec.model if model is None else model
    if patch is not None:
        judged = Patch.load(patch).apply(judged)
        take_proof(spec, judged, Path(patch).parent)
    network = PlainNetwork(judged, spec.file.spec.model.outputs)
    claims = measure_claims(spec, judged, network=network, tell=tell)
    accuracy = measure_accuracy(spec, network)
    constant = became_constant(spec, judged)
    met = all_met(claims, strict) and not constant
    return CheckResult(
        exit_code=0 if met else 1,
        spec=str(spec.file.path),
        spec_hash=spec.file.hash,
        met=met,
        constant=constant,
        claims=claims,
        rows={name: len(rows) for name, rows in spec.data.sets.items()},
        accuracy={name: right for name, (right, _) in accuracy.items()},
        most_frequent={name: usual for name, (_, usual) in accuracy.items()},
        weights=fingerprint(judged).total,
    )
