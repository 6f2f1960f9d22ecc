"""The result of a repair: the repaired copy, its change, the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repairopt.errors import WrongBaseError
from repairopt.patches import fingerprint

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

    def as_patch(self, model: nn.Module, **info: Any) -> Any:
        """The repair as a file for the original model.

        Args:
            model: The model that was given to :func:`solve_repair`.
            **info: Fields of :class:`repairopt.patches.PatchInfo`, and ``spec``; what is not given is taken from the
                report: solvers, seed, claims, notes, versions.

        Returns:
            A :class:`repairopt.patches.Patch`, or for a wrapped network a :class:`repairopt.patches.WrappedPatch`.

        Raises:
            WrongBaseError: ``model`` is not the model that was repaired.
        """
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

    def save_html(self, path: str | Path, **options: Any) -> Path:
        """Write the page to a file, see :meth:`repairopt.Report.save_html`."""
        return self.report.save_html(path, **options)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
