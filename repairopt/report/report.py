"""Report: every stage's result, the verdict, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from repairopt.errors import RepairFailedError, SpecificationError, public
from repairopt.localize import Location
from repairopt.patches import whole_file
from repairopt.program import (
    Conflict,
    Program,
    ProofStatus,
    ProofVerdict,
    RegionProof,
    Source,
    Status,
    explain_conflict,
)
from repairopt.report.pictures import plots
from repairopt.report.pictures.collect import ReportSources, collect_evidence, evidence_from_dict, map_regions
from repairopt.report.pictures.evidence import Evidence
from repairopt.surrogate import Surrogate
from repairopt.verify import Check, Claim, LabelCounts, Measure, Round, Verification

from .as_patch import patch_info
from .html_page import on_frontier, render_fragment, render_page
from .text import report_text


class Verdict(StrEnum):
    """What the true network says, on the repair data. ``.meaning`` says what happened, likely causes, what to try."""

    REPAIRED = "repaired"
    IMPROVED = "improved"
    VIOLATED = "violated"
    INFEASIBLE = "infeasible"
    UNSOLVED = "unsolved"

    @property
    def meaning(self) -> str:
        """One or two sentences: what happened, likely causes, what to try."""
        return _MEANING[self]


_MORE_LAYERS = "more layers (weights='last2' or 'all'; in a spec file change: {layers: last2}), "
_PROVED = (
    "The goal is met and every constraint holds: regions are proved, and points are checked with the true network."
)
_MEANING = {
    Verdict.REPAIRED: "The goal is met and every constraint holds, checked on the repair data with the true network.",
    Verdict.IMPROVED: (
        "Every constraint holds, and the goal is nearer or a constraint that failed holds now, but the target is "
        "missed. Likely: too few or the wrong weights, too small a trust radius, or a target in conflict with the "
        f"constraints. Try {_MORE_LAYERS}a larger trust_radius, or a larger tolerance."
    ),
    Verdict.VIOLATED: (
        "A constraint fails on the true network, or it now gives all inputs one label. Likely: the linearization does "
        "not hold that far. Try a smaller trust_radius, a margin, or fewer weights."
    ),
    Verdict.INFEASIBLE: (
        "No weight change satisfies the hard rows together; the rows that gave way are listed. Give constraints a "
        "weight (soft rows) or a tolerance, or choose more weights."
    ),
    Verdict.UNSOLVED: (
        "No better network was found; the copy equals the original. See the notes. Try other weights, another "
        "surrogate or method, or a longer time_limit."
    ),
}


@dataclass(frozen=True, eq=False)
class Trust:
    """Three numbers that tell whether to believe the method.

    Attributes:
        fit_error: Error of the surrogate on fresh samples: ``1 - R2``; NaN where it was not sampled.
        linearization_error: Largest difference between linearized and true margins at the result, in logits.
        improvement_ratio: Actual over predicted improvement of the goal; near 1 where the model was right.
    """

    fit_error: float = math.nan
    linearization_error: float = math.nan
    improvement_ratio: float = math.nan


@dataclass(frozen=True, eq=False)
class Report:
    """What was done and what came of it; ``to_html()``, ``save_html(path)`` and ``plot_*()`` show it.

    Attributes:
        verdict: On the repair data and the true network.
        verification: All measures, checks and counts, repair data and held-out data.
        location: The weights that could change.
        changed: Number of weights that did change, or numbers that were added.
        largest_change: Largest change of a weight.
        candidate: What is applied, in a line.
        status: Status of the last solve.
        method: The method and its settings.
        surrogate: The model of the property that was used last, or None.
        rounds: Every solve.
        rows_used: Most rows in one program.
        gave_way: Hard rows that the elastic program had to violate.
        infeasible: The last program that had no solution, for :meth:`explain_conflict`; None where there was none.
        prices: Shadow price of each bound at the last step: decrease of the objective per unit of relaxation.
        out_of_reach: Bounds that the last step missed, which cost their price or more.
        claims: What is known of the bounds on new data, from cross-validation and from held-out data.
        buffers: What was taken off goal and bounds in the rows, by name.
        margins: Logits by which their points had to lead, by name of the goal and bounds that asked for it.
        proof: Of whole input regions, for the repaired network; None where the repair speaks of none.
        proof_verdict: What the check of the proof found.
        trust: Whether to believe the method.
        seconds: Wall time of each stage.
        cpu_seconds: Processor time of the whole call.
        stopped: ``"time limit"``, ``"interrupted"`` or ``"solver failed"`` where it ended early, with the best point so
            far; else empty.
        notes: Anything worth knowing.
        seed: Random seed.
        versions: Versions of the libraries.
        subjects: The networks and the specification, for pictures; references only, and not pickled.
    """

    verdict: Verdict
    verification: Verification
    location: Location
    changed: int
    largest_change: float
    status: Status
    method: str
    candidate: str = ""
    surrogate: Surrogate | None = None
    rounds: tuple[Round, ...] = ()
    rows_used: int = 0
    gave_way: tuple[Source, ...] = ()
    infeasible: Program | None = field(default=None, repr=False)
    prices: dict[str, float] = field(default_factory=dict)
    out_of_reach: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    buffers: dict[str, float] = field(default_factory=dict)
    margins: dict[str, float] = field(default_factory=dict)
    proof: RegionProof | None = field(default=None, repr=False)
    proof_verdict: ProofVerdict | None = None
    trust: Trust = Trust()
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float = math.nan
    stopped: str = ""
    notes: tuple[str, ...] = ()
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    subjects: ReportSources | None = field(default=None, repr=False)

    @cached_property
    @public
    def evidence(self) -> Evidence:
        """What the pictures show; the first call runs both networks over the data of goal and constraints."""
        if self.subjects is None:
            return evidence_from_dict(self.to_dict())
        found = collect_evidence(self.subjects, self.verification, self.to_dict())
        if self.proof is None or self.proof_verdict is None:
            return found
        return replace(found, regions=map_regions(self.subjects, self.proof, self.proof_verdict))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "subjects": None}

    @property
    def meaning(self) -> str:
        """One or two sentences on the verdict of this repair: what happened, likely causes, what to try."""
        if self.verdict is Verdict.REPAIRED and self.proof_verdict is not None:
            return _PROVED if self.proof_verdict.status is ProofStatus.PROVED else self.verdict.meaning
        return self.verdict.meaning.replace(_MORE_LAYERS, "") if self.location.method == "all" else self.verdict.meaning

    def raise_if_failed(self) -> Report:
        """This report, or an exception where the verdict is not REPAIRED.

        Raises:
            RepairFailedError: Carries the report.
        """
        if self.verdict is not Verdict.REPAIRED:
            raise RepairFailedError(f"repair ended '{self.verdict}'. {self.meaning}", self)
        return self

    def explain_conflict(self, *, time_limit: float | None = None) -> Conflict | None:
        """Which constraints, and which samples of them, cannot hold together, none of which could be left out.

        Speaks of the linear model at the last step that had no solution: exact for the last linear layer.

        Args:
            time_limit: Seconds; what has been reached is returned then.

        Returns:
            An irreducible set with its proof, in the names of the constraints; None where every step had a solution.
        """
        return None if self.infeasible is None else explain_conflict(self.infeasible, time_limit=time_limit)

    def labels(self, held_out: bool = False) -> LabelCounts | None:
        """The counts of the first labelled data set, of the repair data or the held-out data."""
        return next((c for c in self.verification.labels if c.held_out == held_out), None)

    def measure(self, name: str | None = None, held_out: bool = False) -> Measure | None:
        """The measure of a name (the goal's by default), on repair data or held-out data."""
        wanted = self.verification.measures[0].name if name is None else name
        return next((m for m in self.verification.measures if m.name == wanted and m.held_out == held_out), None)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers; NaN and infinity become None, so it is JSON."""
        location, verified = self.location, self.verification
        weights = {
            "method": location.method,
            "size": location.size,
            "changed": self.changed,
            "largest_change": self.largest_change,
            "parameters": {name: len(ix) for name, ix in location.indices.items()},
        }
        claims = [{**vars(c), "interval": vars(c.interval), "met": c.met, "text": str(c)} for c in self.claims]
        plain = {
            "verdict": str(self.verdict),
            "meaning": self.meaning,
            "status": str(self.status),
            "weights": weights,
            "measures": [vars(m) for m in verified.measures],
            "checks": [_check_dict(c) for c in verified.checks],
            "labels": [vars(c) for c in verified.labels],
            "constant": verified.constant,
            "surrogate": _surrogate_dict(self.surrogate),
            "trust": vars(self.trust),
            "rounds": [vars(r) for r in self.rounds],
            "gave_way": [str(source) for source in self.gave_way],
            "claims": claims,
            "proof": _proof_dict(self.proof_verdict),
        }
        return _plain(plain | {name: getattr(self, name) for name in AS_THEY_ARE})

    def __str__(self) -> str:
        return report_text(self)

    def patch_info(self) -> dict[str, Any]:
        """What a patch says of the repair: fields of :class:`repairopt.patches.PatchInfo`."""
        return patch_info(self)

    @public
    def to_html(
        self,
        *,
        title: str = "Repair report",
        frontier: Any = (),
        features: Sequence[str] = (),
        claims: Sequence[Mapping[str, Any]] = (),
        evidence: Evidence | None = None,
    ) -> str:
        """The report as one HTML page that needs no network; runs both networks over the data once more.

        Args:
            title: Heading of the page.
            frontier: From :func:`repairopt.trace_frontier`, or points with ``value`` and ``accuracy``.
            features: Names of the input columns, for the table of the most affected inputs.
            claims: Claims of a spec file, which are shown as they are.
            evidence: What the pictures show; by default :attr:`evidence`.
        """
        options: dict[str, Any] = {"title": title, "frontier": frontier, "features": features, "claims": claims}
        return render_page(self.to_dict(), self.evidence if evidence is None else evidence, **options)

    @public
    def save_html(self, path: str | Path, **options: Any) -> Path:
        """Write the page of :meth:`to_html` to a file, whole or not at all."""
        page = self.to_html(**options)
        with whole_file(path) as file:
            file.write_text(page, encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        return render_fragment(self.to_dict())

    def plot_groups(self, name: str | None = None, held_out: bool = False) -> Any:
        """Matplotlib figure: rate of each group, or recall of each class, before and after.

        ``name`` is that of a property or labelled set; None for the first.
        """
        return plots.plot_rates(_pick("rates by group", self.evidence.rates, name, held_out))

    def plot_margins(self, name: str | None = None, held_out: bool = False) -> Any:
        """Matplotlib figure: lead of the true label of each sample before and after, and which samples crossed.

        ``name`` is that of a labelled set or robustness property; None for the first.
        """
        return plots.plot_margins(_pick("margins", self.evidence.margins, name, held_out))

    def plot_slack(self, name: str | None = None, held_out: bool = False) -> Any:
        """Matplotlib figure: histogram of the slack of a constraint; None for the first."""
        return plots.plot_slack(_pick("constraints by sample", self.evidence.slacks, name, held_out))

    def plot_weights(self, parameter: str | None = None) -> Any:
        """Matplotlib figure: change of each parameter, or of one as a heat map."""
        layers = self.evidence.layers
        if parameter is None and len(layers) != 1:
            return plots.plot_layers(layers)
        return plots.plot_layer(_pick("parameters that could change", layers, parameter, None))

    def plot_convergence(self) -> Any:
        """Matplotlib figure: the goal after each round."""
        progress = self.evidence.progress
        if progress is None:
            raise SpecificationError("report: no rounds were run, so there is no progress to plot. See report.notes.")
        return plots.plot_convergence(progress)

    def plot_frontier(self, points: Any) -> Any:
        """Matplotlib figure: accuracy against the property, with this repair marked.

        ``points`` come from :func:`repairopt.trace_frontier`, or have ``value`` and ``accuracy``.
        """
        return plots.plot_frontier(points, *on_frontier(self.to_dict()))

    def plot_inputs(self, name: str | None = None, held_out: bool = False) -> Any:
        """Matplotlib figure: the images of a labelled set (None for the first) whose answers changed most."""
        return plots.plot_inputs(_pick("affected inputs", self.evidence.affected, name, held_out))


def _pick(what: str, found: Sequence[Any], name: str | None, held_out: bool | None) -> Any:
    """The first of a name and of the data asked for."""
    for one in found:
        if name in (None, one.name) and held_out in (None, getattr(one, "held_out", None)):
            return one
    known = ", ".join(
        f"'{one.name}'" + (" (held_out=True)" if getattr(one, "held_out", False) else "") for one in found
    )
    raise SpecificationError(
        f"report: no {what} named {name!r}{'' if held_out is None else f' with held_out={held_out}'}. "
        f"There are: {known or 'none'}."
    )


AS_THEY_ARE = (
    *("stopped", "method", "candidate", "rows_used", "prices", "out_of_reach", "buffers", "margins"),
    *("seconds", "cpu_seconds", "notes", "seed", "versions"),
)


def _check_dict(check: Check) -> dict[str, Any]:
    names = ("constraint", "held_out", "applied", "failed", "allowed", "unit", "soft", "holds")
    return {
        **{name: getattr(check, name) for name in names},
        "failed_before": check.failed_before,
        "smallest_margin_before": float(check.before.min()) if len(check.before) else None,
        "smallest_margin_after": float(check.after.min()) if len(check.after) else None,
    }


def _proof_dict(verdict: ProofVerdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    names = ("share", "leaves", "splits", "samples", "sampled_least", "execution", "seconds")
    point = None if verdict.point is None else verdict.point.tolist()
    status = {"status": str(verdict.status), "meaning": verdict.status.meaning}
    return {**status, **{name: getattr(verdict, name) for name in names}, "point": point}


def _surrogate_dict(surrogate: Surrogate | None) -> dict[str, Any] | None:
    if surrogate is None:
        return None
    names = ("kind", "power", "trusted", "convexification", "shift")
    error = None if surrogate.fit_error is None else vars(surrogate.fit_error)
    return {**{name: getattr(surrogate, name) for name in names}, "fit_error": error}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
