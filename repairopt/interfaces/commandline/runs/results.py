"""What the commands print with ``--json``, as pydantic models, and their JSON schemas."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from repairopt.errors import SpecificationError
from repairopt.interfaces.specfile.claim_rows import ClaimRow
from repairopt.interfaces.specfile.language.statements import did_you_mean
from repairopt.interfaces.specfile.models import Spec, Strict


class Result(Strict):
    """What all have in common."""

    format: Literal[1] = Field(default=1, description="of this output")
    exit_code: Literal[0, 1, 2] = Field(description="0 met, 1 not met or violated, 2 usage or input error")


class CheckResult(Result):
    """What ``repairopt check`` prints."""

    command: Literal["check"] = "check"
    spec: str
    spec_hash: str
    met: bool = Field(description="goal and bounds hold")
    constant: bool = Field(default=False, description="a patch made the network give all rows one class: not met")
    claims: list[ClaimRow]
    rows: dict[str, int] = Field(description="of each set")
    accuracy: dict[str, float] = Field(description="of each set with labels: share of its rows that are right")
    most_frequent: dict[str, float] = Field(description="share that are right where all get the most frequent label")
    weights: str = Field(description="SHA-256 of the weights that were judged")


class Changed(Strict):
    """The weights."""

    chosen: int = Field(description="weights that could change")
    changed: int
    largest_change: float
    parameters: dict[str, int] = Field(description="chosen weights of each parameter")


class SolveResult(Result):
    """What ``repairopt solve`` and ``repairopt demo`` print; also ``result.json``."""

    command: Literal["solve", "demo"] = "solve"
    spec: str
    spec_hash: str = Field(description="SHA-256 of what the spec says")
    verdict: str
    meaning: str
    met: bool = Field(description="goal and bounds hold on the rows of the repair")
    stopped: str = Field(description="why it ended early, or empty")
    claims: list[ClaimRow]
    notes: list[str]
    method: str
    solver: str
    seed: int
    seconds: float
    weights: Changed
    base: str = Field(description="SHA-256 of the weights before")
    repaired: str = Field(description="SHA-256 of the weights after")
    patch: str = Field(description="content hash of the patch")
    inputs: dict[str, str] = Field(description="SHA-256 of each file that the spec names")
    versions: dict[str, str]
    files: dict[str, str] = Field(description="what was written, by kind")
    hashes: dict[str, str] = Field(default={}, description="SHA-256 of the other files of the run, by name")
    audit: str = Field(default="", description="hash of the line of the audit log in which the repair ended")
    location: dict[str, list[int]] | None = Field(default=None, description="chosen weights, for bounds by linear_rows")
    report: dict[str, Any] = Field(description="everything the library reports")


class CheckLine(Strict):
    """One thing that verify looked at."""

    what: str
    ok: bool | None = Field(description="null where there is nothing to look at")
    detail: str


class VerifyResult(Result):
    """What ``repairopt verify`` prints."""

    command: Literal["verify"] = "verify"
    spec: str
    patch: str
    sound: bool = Field(description="every file fits, and every stated claim is what was recomputed")
    met: bool = Field(description="goal and bounds hold, recomputed")
    constant: bool = Field(default=False, description="the patch made the network give all rows one class: not met")
    checks: list[CheckLine]
    claims: list[ClaimRow]


class ProofResult(Result):
    """What ``repairopt check-proof`` prints."""

    command: Literal["check-proof"] = "check-proof"
    run: str
    status: Literal["proved", "refuted", "undecided", "refused"]
    meaning: str
    execution: str = Field(default="", description="the runs that are covered: float32 or float64")
    share: float = Field(default=0.0, description="of the volume of the boxes on which the property was proved")
    boxes: int = 0
    leaves: int = Field(default=0, description="boxes that the proof consists of")
    splits: int = Field(default=0, description="further splits that the check made")
    open_boxes: int = Field(default=0, description="smaller boxes that stay undecided")
    least: float | None = Field(default=None, description="how far the rows hold at least, where proved")
    samples: int = Field(default=0, description="points at which the repaired network was run")
    sampled_least: float | None = Field(default=None, description="how far the rows hold at these at least")
    point: list[float] | None = Field(default=None, description="an input that violates the property")
    outputs: list[float] | None = Field(default=None, description="its outputs")
    seconds: float = Field(default=0.0, description="processor time of the check")
    checks: list[CheckLine]


class InitResult(Result):
    """What ``repairopt init`` prints."""

    command: Literal["init"] = "init"
    out: str
    inputs: str = Field(description="how they were found")
    label: str
    sensitive_features: str
    candidates: list[dict[str, Any]] = Field(description="measures that can be the goal, with their value now")


class TrialLine(Strict):
    """A trial repair."""

    weights: str = Field(description="which weights could change")
    count: int
    rows: int = Field(description="of the trial")
    verdict: str
    seconds: float = Field(description="processor time of the trial")
    expected_seconds: float = Field(description="the same for all rows")
    expected_bytes: int = Field(description="memory of the process at its peak, for all rows")
    at_least: bool = Field(
        default=False, description="the trial ended at its time limit: a repair takes more than expected_seconds"
    )


class DoctorResult(Result):
    """What ``repairopt doctor`` prints."""

    command: Literal["doctor"] = "doctor"
    source: str
    model: str
    basis: str = Field(description="the rows that were used")
    rows: int = Field(description="that the repair will have")
    usable: bool = Field(description="whether the network can be repaired at all")
    findings: list[CheckLine]
    trials: list[TrialLine]


class FrontierLine(Strict):
    """One repair of a sweep."""

    bound: float = Field(description="on the goal")
    verdict: str
    met: bool = Field(description="goal and bounds hold on the rows of the repair")
    claims: list[ClaimRow]
    patch: str = Field(description="file of the patch")


class FrontierResult(Result):
    """Of ``repairopt frontier``; its exit code is 0 where goal and bounds hold for some repair."""

    command: Literal["frontier"] = "frontier"
    spec: str
    out: str = Field(description="the page")
    original: list[ClaimRow]
    repairs: list[FrontierLine]
    stopped: str = Field(default="", description="why it ended before its last bound, or empty")
    seconds: float


class CellLine(Strict):
    """One method on one subject, once."""

    method: str
    subject: str
    repetition: int
    outcome: Literal["measured", "corrupted", "failure", "unadaptable"]
    reason: str
    metrics: dict[str, float]
    seconds: float | None = Field(description="wall time of the method; null where it did not end")
    key: str = Field(description="hash of what the outcome depends on")


class CompareResult(Result):
    """What ``repairopt compare`` prints."""

    command: Literal["compare"] = "compare"
    source: str
    out: str = Field(description="the page")
    methods: list[str]
    subjects: list[str]
    cells: list[CellLine]
    letters: dict[str, dict[str, str]] = Field(description="by metric the letters of each method; a is best")
    advice: list[str] = Field(description="methods, the most advisable first")
    table: str
    seconds: float


class SystemLine(Strict):
    """A method or a system of the literature."""

    name: str
    method: str = Field(description="the registered method, or where a tool is in the library")
    family: str
    needs: list[str] = Field(description="beside the specification")
    paper: str
    what: str


class SystemsResult(Result):
    """What ``repairopt compare --list`` prints."""

    command: Literal["systems"] = "systems"
    systems: list[SystemLine]


class MoveResult(Result):
    """What ``repairopt apply`` and ``repairopt revert`` print."""

    command: Literal["apply", "revert"]
    out: str
    kind: Literal["safetensors", "onnx", "state dict", "adapter"]
    weights: str = Field(description="SHA-256 of the weights written")
    largest_difference: float | None = Field(default=None, description="between ONNX Runtime and torch, for ONNX files")


class PatchResult(Result):
    """What ``repairopt show`` prints."""

    command: Literal["show"] = "show"
    patch: str
    content_hash: str
    base: str
    repaired: str
    changes: list[dict[str, Any]]
    info: dict[str, Any]


class ReportResult(Result):
    """What ``repairopt report`` prints."""

    command: Literal["report"] = "report"
    out: str


class SolverLine(Strict):
    """A back end."""

    name: str
    installed: bool
    licensed: bool | None = Field(description="null where it needs no licence, or is not installed")
    kinds: list[str]
    needs: list[str] = Field(description="libraries")
    version: str


class SolversResult(Result):
    """What ``repairopt solvers`` prints."""

    command: Literal["solvers"] = "solvers"
    solvers: list[SolverLine]


class ErrorResult(Result):
    """What any command prints that could not run."""

    command: Literal["error"] = "error"
    error: str = Field(description="class of the exception")
    message: str


RESULTS: dict[str, type[Result]] = {
    command: one for one in Result.__subclasses__() for command in get_args(one.model_fields["command"].annotation)
}


def schema_text(what: str = "spec") -> str:
    """The JSON schema of spec files, ``"spec"``, or of what a command prints."""
    known: dict[str, type[BaseModel]] = {"spec": Spec, **RESULTS}
    if what not in known:
        raise SpecificationError(f"there is no schema of '{what}'; {did_you_mean(what, list(known))}.")
    found = known[what].model_json_schema(mode="validation" if what == "spec" else "serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=1)
