"""Several repairs of a spec, each with another bound on its goal: a patch of each, and a page to choose among them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from repairopt.compare import Frontier, trace_frontier
from repairopt.errors import ResultError, SpecFileError
from repairopt.interfaces.commandline.bars import Bars, Step
from repairopt.interfaces.specfile.claim_rows import all_met, plain
from repairopt.interfaces.specfile.in_words import decode
from repairopt.interfaces.specfile.measure import measure_claims
from repairopt.interfaces.specfile.opened import OpenSpec, open_spec
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.interfaces.specfile.stated_weights import chosen_weights
from repairopt.methods import SQP
from repairopt.network import Classifier
from repairopt.patches import whole_file
from repairopt.pipeline import Settings
from repairopt.verify import Round

from .results import FrontierLine, FrontierResult
from .solve_run import Progress, twins
from .told_rounds import ToldRounds

PAGE, RESULT = "frontier.html", "frontier.json"


def trace_spec(
    source: str | Path,
    out: str | Path,
    *,
    points: int = 5,
    bounds: Sequence[float] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FrontierResult:
    """Repair the network of a spec for each bound on its goal, loosest first.

    Args:
        source: The spec file.
        out: Folder to write to.
        points: Number of bounds, where none are given: from the goal's value now to the bound of the spec.
        bounds: The bounds.
        overwrite: Whether the folder may hold something.
        progress: What the user is told meanwhile.

    Raises:
        SpecFileError: The spec has no goal, or it is met by a network as it is and no bounds are given.
        ResultError: The folder exists.
    """
    tell, started, folder = progress or Bars(quiet=True), time.perf_counter(), Path(out)
    file = read_spec(source)
    if file.goal is None:
        raise SpecFileError(f"{file.path}: has no goal, so there is nothing to repair.")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        raise ResultError(f"'{folder}' exists. Use --overwrite to write into it, or another --out.")
    with tell.stage("reading model and data"):
        spec = open_spec(file)
        if spec.goal is None or not spec.goal.is_property:
            raise SpecFileError(f"{file.path}: its goal counts rows; a frontier needs one with a value, as a gap.")
        before = measure_claims(spec)
        targets = _targets(spec, next(row.value for row in before if row.role == "goal"), points, bounds)
    with tell.stage("repairing", len(targets) * 40) as step:
        frontier = _trace(spec, targets, step)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    with tell.stage("measuring every claim", len(frontier.points)) as step:
        for k, point in enumerate(frontier.points):
            assert point.repair is not None
            positions = {name: ix.tolist() for name, ix in point.repair.report.location.indices.items()}
            claims = measure_claims(_with_bound(spec, point.target), point.repair.model, location=positions)
            path = folder / f"patch-{k + 1}.safetensors"
            of_spec = measure_claims(spec, point.repair.model)  # as `verify` recomputes them from the patch alone
            point.repair.as_patch(spec.model, spec_hash=file.hash, claims=plain(of_spec)).save(path)
            verdict, met = str(point.repair.report.verdict), all_met(claims) and point.met
            bound = spec.goal.shown(point.target)
            lines.append(FrontierLine(bound=bound, verdict=verdict, met=met, claims=claims, patch=str(path)))
            step(f"bound {bound:.4g}", (k + 1) / len(frontier.points))
    result = FrontierResult(
        exit_code=0 if any(line.met for line in lines) else 1,
        spec=str(file.path),
        out=str(folder / PAGE),
        original=before,
        repairs=lines,
        stopped=frontier.stopped,
        seconds=time.perf_counter() - started,
    )
    with tell.stage("writing"):
        names, rows = [Path(line.patch).name for line in lines], [plain(line.claims) for line in lines]
        frontier.save_html(folder / PAGE, claims=rows, words=lambda found: decode(spec, found), patches=names)
        with whole_file(folder / RESULT) as part:
            part.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return result


def _targets(spec: OpenSpec, now: float | None, points: int, bounds: Sequence[float]) -> list[float]:
    """The bounds in the unit of the library."""
    goal = spec.goal
    assert goal is not None
    if bounds:
        return [float(goal.shown(bound)) for bound in bounds]  # each way leads back by itself
    start, end = goal.shown(float("nan") if now is None else now), float(goal.item.target)
    if not start > end:
        raise SpecFileError(
            f"{spec.file.path}: {goal.statement.text} holds already, so there are no bounds between what it is and "
            f"what it shall be. Give tighter ones, such as --bound {0.5 * (now or 0.0):.4g}."
        )
    return [*(float(f"{target:.4g}") for target in np.linspace(start, end, points + 1)[1:-1]), end]


def _trace(spec: OpenSpec, targets: Sequence[float], step: Step) -> Frontier:
    said, rows, goal = spec.file.spec, spec.data.sets["repair"], spec.goal
    assert goal is not None
    if said.method not in ("sqp", "auto"):
        raise spec.file.fail(("method",), f"a frontier is traced by method sqp; got {said.method}")
    held_out = spec.data.sets.get("held_out")
    others = twins(spec)
    told: dict[str, ToldRounds] = {}  # by part of the sweep, whose name each step begins with

    def note(entry: Round) -> None:
        part = entry.step.partition(",")[0]
        words = told.setdefault(part, ToldRounds(goal.shown))(entry)
        step(words, (len(told) - 1) / (len(targets) + 1))

    known = held_out is not None and held_out.labels is not None
    unseen = (held_out.inputs, held_out.labels, held_out.weights) if held_out is not None and known else None
    return trace_frontier(
        Classifier(spec.model, outputs=said.model.outputs),
        goal.as_goal(),
        tuple(bound.as_constraint() for bound in spec.bounds),
        targets=targets,
        data=None if rows.labels is None else (rows.inputs, rows.labels, rows.weights),
        held_out=unseen,
        held_out_goal=others or None,
        weights=chosen_weights(spec),
        method=SQP(objective=said.change.minimize, confidence=None),
        settings=Settings(solver=said.solver, time_limit=said.time_limit, seed=said.seed, progress=note),
    )


def _with_bound(spec: OpenSpec, target: float) -> OpenSpec:
    """The spec with another bound on its goal, ``target`` in the unit of the library."""
    goal = spec.goal
    assert goal is not None
    relation, limit = goal.statement.bounds[0][0], goal.shown(target)
    statement = replace(
        goal.statement, bounds=((relation, limit),), text=f"{goal.statement.name} {relation} {limit:.6g}"
    )
    held_out = tuple(
        replace(item, statement=statement) if item.statement is goal.statement else item for item in spec.held_out
    )
    return replace(spec, goal=replace(goal, statement=statement), held_out=held_out)
