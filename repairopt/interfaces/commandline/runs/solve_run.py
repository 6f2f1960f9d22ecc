"""Solve a spec: repair, measure every claim on the true network, write patch, report, log and result."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from repairopt.errors import SpecFileError, SpecificationError, forgiven
from repairopt.interfaces.commandline.bars import Bars, Step
from repairopt.interfaces.specfile.claim_rows import ClaimRow, all_met, plain
from repairopt.interfaces.specfile.in_words import decode
from repairopt.interfaces.specfile.measure import measure_claims
from repairopt.interfaces.specfile.opened import OpenSpec, open_spec
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.interfaces.specfile.stated_weights import chosen_weights
from repairopt.localize import LowRank, layers_for_factors, localize
from repairopt.methods import SQP, find_method, uses
from repairopt.network import Classifier, identity
from repairopt.patches import AuditLog, fingerprint, library_versions
from repairopt.pipeline import Settings, solve_repair
from repairopt.program import load_solver
from repairopt.report import Repair, Verdict, list_warnings
from repairopt.specify import LabelledRows, Specification
from repairopt.verify import Round, save_proof

from .results import Changed, SolveResult
from .run_folder import AUDIT, PATCH, PROOF, REPORT, RESULT, RunFolder, read_result
from .show_run import file_hashes, write_report
from .told_rounds import ToldRounds

STEPS = 40  # of the method, an upper bound for the progress bar


def check_choices(spec: OpenSpec) -> None:
    """Look at what a spec says of the repair: a solver, method, layer or column that is not there is an error."""
    if spec.file.spec.solver is not None:
        load_solver(spec.file.spec.solver)
    _method(spec)
    weights = chosen_weights(spec)
    if isinstance(weights, LowRank):
        layers_for_factors(spec.model, weights)
    named = weights if isinstance(weights, list) else [weights]
    names = [one for one in named if isinstance(one, str) and one not in ("auto", "care", "gradient", "all", "last")]
    if names:
        localize(spec.model, names, inputs=spec.data.sets["repair"].inputs[:3])


class Progress(Protocol):
    """What a run tells the user while it goes on."""

    def stage(self, name: str, steps: int = 0) -> AbstractContextManager[Step]:
        """A part of the run; what it returns is called after each step of it, with a word on where it stands."""
        ...


@dataclass(frozen=True)
class Options:
    """What the command line decides, over the spec; without ``report`` there is no ``report.html``."""

    time_limit: float | None = None
    solver: str | None = None
    seed: int | None = None
    resume: bool = False
    overwrite: bool = False
    report: bool = True


def solve_spec(
    source: str | Path,
    out: str | Path,
    options: Options = Options(),  # noqa: B008
    progress: Progress | None = None,
    *,
    command: Literal["solve", "demo"] = "solve",
) -> SolveResult:
    """Repair the network of a spec file; what is returned is written to ``result.json`` as well.

    A run that had ended in the folder ``out`` is not repeated where it is resumed.
    """
    tell = progress or Bars(quiet=True)
    file = read_spec(source)
    solver = options.solver if options.solver is not None else file.spec.solver
    if solver is not None:
        load_solver(solver)
    with tell.stage("reading model and data"):
        spec = open_spec(file)
        if spec.goal is None:
            raise SpecFileError(f"{file.path}: has no goal, and no bound on rows, so there is nothing to repair.")
        weights = chosen_weights(spec)
        inputs = spec.hashes()
    run = _Run(spec, RunFolder(Path(out)), options, tell, inputs, command)
    with run.folder.working(resume=options.resume, overwrite=options.overwrite):
        return run.earlier() if options.resume and run.folder.finished else run.go(weights, solver)


class _Run:
    """One run of solve."""

    def __init__(
        self, spec: OpenSpec, folder: RunFolder, options: Options, tell: Progress, inputs: dict[str, str], command: Any
    ) -> None:
        self.spec, self.folder, self.options, self.tell, self.inputs = spec, folder, options, tell, inputs
        self.command, self.started = command, time.perf_counter()
        self.gaps: list[str] = []  # in the audit log
        said = spec.file.spec
        self.seed = said.seed if options.seed is None else options.seed
        self.time_limit = said.time_limit if options.time_limit is None else options.time_limit
        self.base = fingerprint(spec.model).total
        self.state = {"spec": spec.file.hash, "weights": self.base, "seed": self.seed, "data": inputs}

    def earlier(self) -> SolveResult:
        """The result of the run that ended in the folder, where it was made from the same."""
        result: SolveResult = read_result(self.folder.path / RESULT)[0]
        made = {"spec": result.spec_hash, "weights": result.base, "seed": result.seed, "data": result.inputs}
        solver = self.options.solver or self.spec.file.spec.solver
        self.folder.check_state(made | self._logged("solver", solver), self.state | {"solver": solver}, RESULT)
        return result

    def _logged(self, key: str, otherwise: Any) -> dict[str, Any]:
        """What the log says that the run of the folder began with; ``otherwise`` where it does not say so."""
        found = otherwise
        with suppress(OSError, ValueError, KeyError, TypeError):
            for line in (self.folder.path / AUDIT).read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                if entry["event"] in ("run started", "run resumed"):
                    found = entry["data"].get(key, otherwise)
        return {key: found}

    def go(self, weights: Any, solver: str | None) -> SolveResult:
        start = self.folder.load_checkpoint(self.state)
        if start is not None and weights == "auto":  # the search for weights is over: those that changed go on
            weights = {name: change != 0 for name, change in start.items() if bool((change != 0).any())} or weights
        log = AuditLog(self.folder.path / AUDIT)
        log.append(
            "run resumed" if start is not None else "run started",
            spec=self.spec.file.hash,
            weights=self.base,
            inputs=self.inputs,
            seed=self.seed,
            solver=solver,
            time_limit=self.time_limit,
            versions=library_versions(),
        )
        with self.tell.stage("repairing", STEPS) as step, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(audit log|settings: checkpoint) failed")  # which the notes say
            repair = self._repair(weights, solver, log, step, start)
        positions = {name: ix.tolist() for name, ix in repair.report.location.indices.items()}
        own_rows = any(bound.by_location for bound in self.spec.bounds)
        with self.tell.stage("measuring every claim", len(self.spec.statements)) as step:
            claims = measure_claims(self.spec, repair.model, location=positions if own_rows else None, tell=step)
        with self.tell.stage("writing"):
            return self._write(repair, claims, positions if own_rows else None, log)

    def _repair(self, weights: Any, solver: str | None, log: AuditLog, step: Step, start: Any) -> Repair:
        spec = self.spec
        assert spec.goal is not None
        told = ToldRounds(spec.goal.shown)

        append = forgiven("audit log", log.append, again=True, tell=self.gaps.append)  # its end is written, or an error

        def note(entry: Round) -> None:
            append("round", **{key: value for key, value in vars(entry).items() if key != "log"})
            step(told(entry))

        method = _method(spec)
        fixed = weights != "auto" and not isinstance(weights, LowRank)  # what a start can be a change of
        may_start = fixed and "start" in uses(find_method(method) if isinstance(method, str) else method)
        bounds, watched = tuple(bound.as_constraint() for bound in spec.bounds), tuple(item.item for item in spec.watch)
        return solve_repair(
            Classifier(spec.model, outputs=spec.file.spec.model.outputs),
            Specification(spec.goal.as_goal(), bounds, watch=watched, **_about_inputs(spec)),
            data=_labelled(spec),
            held_out=twins(spec),
            weights=weights,
            method=method,
            settings=Settings(
                solver=solver,
                time_limit=self.time_limit,
                seed=self.seed,
                progress=note,
                start=start if may_start else None,
                checkpoint=lambda change: self.folder.save_checkpoint(change, self.state),
            ),
        )

    def _report(self, repair: Repair, claims: Any) -> str:
        """Write the page; a fault in it is a note, for it may not cost the result."""
        folder = self.folder.path
        try:
            return write_report(repair, folder / REPORT, claims, decode(self.spec, repair.report.evidence))
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            return f"report.html could not be written ({what}); `repairopt report {folder}` tries again."

    def _write(self, repair: Repair, claims: list[ClaimRow], location: Any, log: AuditLog) -> SolveResult:
        folder, spec, report = self.folder.path, self.spec, repair.report
        kept = plain(claims)
        patch = repair.as_patch(spec.model, spec_hash=spec.file.hash, claims=kept, seed=self.seed)
        patch.save(folder / PATCH)
        constant = report.verification.constant and not report.verification.constant_before
        met = all_met(claims) and not constant
        done = report.verdict is Verdict.REPAIRED
        notes = [*list_warnings(report.to_dict(), kept), *report.notes, *self.gaps]
        files = {"patch": PATCH, "result": RESULT, "report": REPORT, "audit": AUDIT}
        files |= _write_proof(repair, folder)
        problem = self._report(repair, kept) if self.options.report else ""
        if problem or not self.options.report:
            files.pop("report")
        if problem:
            notes.append(problem)
        hashes = file_hashes(folder)
        end = log.append(
            "repair ended",
            hashes=hashes,
            verdict=str(report.verdict),
            patch=patch.content_hash,
            claims=kept,
            notes=notes,
        )
        result = SolveResult(
            exit_code=0 if met and done else 1,
            command=self.command,
            spec=str(spec.file.path),
            spec_hash=spec.file.hash,
            verdict=str(report.verdict),
            meaning=report.meaning,
            met=met,
            stopped=report.stopped,
            claims=claims,
            notes=notes,
            method=report.method,
            solver=patch.info.solver,
            seed=self.seed,
            seconds=time.perf_counter() - self.started,
            weights=Changed(
                chosen=report.location.size,
                changed=report.changed,
                largest_change=report.largest_change,
                parameters={name: len(ix) for name, ix in report.location.indices.items()},
            ),
            base=self.base,
            repaired=patch.repaired.total,
            patch=patch.content_hash,
            inputs=self.inputs,
            versions=dict(report.versions),
            files={kind: str(folder / name) for kind, name in files.items()},
            hashes=hashes,
            audit=end.hash,
            location=location,
            report=report.to_dict(),
        )
        text = result.model_dump_json(indent=1) + "\n"
        log.append("result", sha256=hashlib.sha256(text.encode()).hexdigest(), verdict=str(report.verdict), met=met)
        self.folder.write_result(text)
        return result


def _write_proof(repair: Repair, folder: Path) -> dict[str, str]:
    """Write the proof of input regions, where there is one; its kind and name."""
    if repair.report.proof is None:
        return {}
    save_proof(repair.report.proof, folder / PROOF)
    return {"proof": PROOF}


def _labelled(spec: OpenSpec) -> list[Any]:
    """The rows whose loss is kept small: those of the repair, and of other sets that goal and bounds speak of."""
    sets = [spec.data.sets["repair"]]
    sets += [
        item.rows
        for item in (spec.goal, *spec.bounds)
        if item is not None and item.rows is not None and item.data not in ("repair", "held_out")
    ]
    known = {identity(rows.inputs): rows for rows in sets if rows.labels is not None}
    return [(rows.inputs, rows.labels, rows.weights) for rows in known.values()]


def _about_inputs(spec: OpenSpec) -> dict[str, Any]:
    """Names of the input columns, those of protected attributes that nothing is asked of, and held-out labels."""
    asked = {str(item.statement.arguments.get("column")) for item in (spec.goal, *spec.bounds) if item is not None}
    known, protected = [str(name) for name in spec.data.input_columns], []
    for name in spec.file.spec.sensitive_features:
        own = [k for k, column in enumerate(known) if column == name or column.startswith(f"{name}=")]
        protected += own if name not in asked else []
    return {"columns": tuple(known), "protected": tuple(protected), "labelled": _held_out_labels(spec)}


def _held_out_labels(spec: OpenSpec) -> tuple[LabelledRows, ...]:
    """Held-out rows with their labels, for accuracy and recalls whatever is stated."""
    rows = spec.data.sets.get("held_out")
    if rows is None or rows.labels is None:
        return ()
    return (LabelledRows("held_out", rows.inputs, rows.labels, held_out=True),)


def twins(spec: OpenSpec) -> list[Any]:
    """Goal, bounds and watched measures on held-out rows, the goal's first."""
    goal = spec.goal
    return [item.as_goal() if goal and item.statement is goal.statement else _twin(item) for item in spec.held_out]


def _twin(item: Any) -> Any:
    """A bound or watched measure on held-out rows: its value where it has one, else the constraint."""
    return item.item if not item.statement.bounds and item.is_property else item.as_constraint()


def _method(spec: OpenSpec) -> Any:
    """SQP with the spec's objective and confidence, or what the spec names."""
    said = spec.file.spec
    objective = said.change.minimize
    unset = objective == "auto" and said.confidence == type(said).model_fields["confidence"].default
    if said.method == "auto" and (unset or isinstance(getattr(spec.goal and spec.goal.item, "method", None), str)):
        return "auto"  # chosen as in Python
    if said.method in ("sqp", "auto"):
        return SQP(objective=objective, confidence=said.confidence)
    if objective != "auto":
        reason = f"minimize: {objective} is for method sqp; it does not go with method {said.method}"
        raise spec.file.fail(("change", "minimize"), reason)
    try:
        return find_method(said.method)
    except SpecificationError as error:
        raise spec.file.fail(("method",), str(error)) from error
