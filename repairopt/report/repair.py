"""The result of a repair: the repaired copy, its change, the report; and the report as an HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repairopt.errors import RepairError, SpecificationError, WrongBaseError, path_of, public
from repairopt.network import Classifier, split_model
from repairopt.patches import fingerprint, whole_file
from repairopt.report.pictures.collect import evidence_from_dict
from repairopt.report.pictures.evidence import FILE, Evidence, load_evidence

from .html_page import render_page
from .report import Report


@dataclass(frozen=True, eq=False)
class Repair:
    """The result of :func:`solve_repair`.

    Attributes:
        model: The repaired copy; the original is untouched. Equals the original where nothing better was found.
        delta: For each parameter that could change its change, a tensor of its shape.
        report: What was done and what came of it.
        candidate: What was applied: a weight change, new weights, or a wrapped network.
    """

    model: nn.Module
    delta: dict[str, Tensor]
    report: Report
    candidate: Any = None

    @public
    def as_patch(self, model: nn.Module | Classifier, **info: Any) -> Any:
        """The repair as a file for the original model.

        Args:
            model: The model, or the Classifier, that was given to :func:`solve_repair`.
            **info: Fields of :class:`repairopt.patches.PatchInfo`, and ``spec``; what is not given is taken from the
                report: solvers, seed, claims, notes, versions.

        Returns:
            A :class:`repairopt.patches.Patch`, or for a wrapped network a :class:`repairopt.patches.WrappedPatch`.

        Raises:
            WrongBaseError: ``model`` is not the model that was repaired.
        """
        model = split_model(model)[0]
        patch = self.candidate.as_patch(model, **{**self.report.patch_info(), **info})
        subjects, leads = self.report.subjects, fingerprint(self.model)
        own = fingerprint(model if subjects is None else subjects.original)
        wrong = own.differences(patch.base) if patch.base != own else leads.differences(patch.repaired)
        if patch.base != own or patch.repaired != leads:
            raise WrongBaseError(
                f"model {type(model).__name__}: the repair did not start from it; {wrong}. Pass the model that was "
                f"given to solve_repair, as it was then."
            )
        return patch

    def to_html(self, **options: Any) -> str:
        """The report as one HTML page, see :meth:`repairopt.Report.to_html`."""
        return self.report.to_html(**options)

    @public
    def save_html(self, path: str | Path, **options: Any) -> Path:
        """Write the page to a file, see :meth:`repairopt.Report.save_html`."""
        return self.report.save_html(path, **options)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


RESULT = "result.json"
NEEDED = ("verdict", "meaning", "measures", "checks", "labels", "rounds", "weights")


@public
def write_html(
    result: Repair | Report | str | Path,
    path: str | Path,
    *,
    title: str = "Repair report",
    frontier: Any = (),
    features: Sequence[str] = (),
    claims: Sequence[Mapping[str, Any]] = (),
    evidence: Evidence | None = None,
) -> Path:
    """Write a report as one HTML page that needs no network.

    Args:
        result: A repair, its report, or a folder that holds ``result.json`` (a report as JSON, from
            :meth:`repairopt.Report.to_dict`, or an object that has it under ``"report"``) and, for pictures of samples,
            weights and inputs, ``evidence.npz`` (from :func:`repairopt.report.pictures.evidence.save_evidence`).
        path: File of the page, written whole or not at all.
        title: Heading of the page.
        frontier: From :func:`repairopt.trace_frontier`, or points with ``value`` and ``accuracy``.
        features: Names of the input columns.
        claims: The claims of a spec file, shown as they are; those of ``result.json`` by default.
        evidence: What the pictures of a repair show, where it is not what the repair collects itself.

    Raises:
        SpecificationError: The folder holds no result, or one that is not a report.
        PatchError: The folder of the page does not exist.
    """
    options: dict[str, Any] = {"title": title, "frontier": frontier, "features": features, "claims": claims}
    if isinstance(result, Repair | Report):
        page = result.to_html(**options, evidence=evidence)
    elif isinstance(result, str | Path):
        try:
            plain, evidence, stated, complete = _read(path_of(result, "folder of a run"))
            page = render_page(plain, evidence, complete=complete, **{**options, "claims": claims or stated})
        except RepairError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise SpecificationError(
                f"'{result}': {RESULT} or {FILE} in it is not what a repair wrote ({type(error).__name__}: {error}). "
                f"It was changed or damaged; get it again, or run the repair again."
            ) from error
    else:
        raise SpecificationError(
            f"write_html: got a {type(result).__name__}; expected a Repair, a Report, or a folder with {RESULT}."
        )
    with whole_file(path) as file:
        file.write_text(page, encoding="utf-8")
    return Path(path)


def _read(folder: Path) -> tuple[dict[str, Any], Evidence, list[Any], bool]:
    """Report, evidence, claims of a spec file, and whether that was collected from networks and data."""
    file = folder / RESULT
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecificationError(
            f"'{folder}': holds no readable {RESULT} ({error}). Pass the folder that a solve wrote to."
        ) from error
    except ValueError as error:
        raise SpecificationError(f"'{file}': is not JSON ({error}). Get it again, or run the repair again.") from error
    stated: list[Any] = []
    if isinstance(plain, dict) and isinstance(plain.get("report"), dict):
        stated, plain = plain.get("claims", []), plain["report"]
    missing = [name for name in NEEDED if not isinstance(plain, dict) or name not in plain]
    if missing:
        raise SpecificationError(
            f"'{file}': is not the report of a repair; it lacks {', '.join(missing)}. Write it with "
            f"json.dumps(repair.report.to_dict())."
        )
    if (folder / FILE).is_file():
        return plain, load_evidence(folder), stated, True
    return plain, evidence_from_dict(plain), stated, False
