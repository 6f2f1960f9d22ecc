"""What a report can show of itself: the page, a fragment for notebooks, one picture at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repairopt.errors import SpecificationError
from repairopt.report.pictures.evidence import Evidence
from repairopt.report.pictures.input_plots import plot_inputs
from repairopt.report.pictures.plot_groups import plot_rates
from repairopt.report.pictures.plot_progress import plot_convergence, plot_frontier
from repairopt.report.pictures.plot_samples import plot_margins, plot_slack
from repairopt.report.pictures.plot_weights import plot_layer, plot_layers

from .html_page import on_frontier, render_fragment, render_page


class Shown:
    """Mixed into :class:`repairopt.Report`: pictures and pages, made when asked for."""

    @property
    def evidence(self) -> Evidence:
        """What the pictures show."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        raise NotImplementedError

    def patch_info(self) -> dict[str, Any]:
        """What a patch says of the repair: fields of :class:`repairopt.patches.PatchInfo`."""
        from .as_patch import patch_info

        return patch_info(self)

    def to_html(self, *, title: str = "Repair report", frontier: Any = (), features: Sequence[str] = ()) -> str:
        """The report as one HTML page that needs no network; runs both networks over the data once more.

        Args:
            title: Heading of the page.
            frontier: From :func:`repairopt.trace_frontier`, or points with ``value`` and ``accuracy``.
            features: Names of the input columns, for the table of the most affected inputs.
        """
        return render_page(self.to_dict(), self.evidence, title=title, frontier=frontier, features=features)

    def save_html(self, path: str | Path, **options: Any) -> Path:
        """Write the page of :meth:`to_html` to a file, whole or not at all."""
        from repairopt.patches import whole_file

        page = self.to_html(**options)
        with whole_file(path) as file:
            file.write_text(page, encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        return render_fragment(self.to_dict())

    def plot_groups(self, name: str | None = None, held_out: bool = False) -> Any:
        """A Matplotlib figure: rate of each group, or recall of each class, before and after.

        ``name`` is that of a property or labelled set; None for the first.
        """
        return plot_rates(_pick("rates by group", self.evidence.rates, name, held_out))

    def plot_margins(self, name: str | None = None, held_out: bool = False) -> Any:
        """A Matplotlib figure: lead of the true label of each sample before and after, and which samples crossed.

        ``name`` is that of a labelled set or robustness property; None for the first.
        """
        return plot_margins(_pick("margins", self.evidence.margins, name, held_out))

    def plot_slack(self, name: str | None = None, held_out: bool = False) -> Any:
        """A Matplotlib figure: histogram of the slack of a constraint; None for the first."""
        return plot_slack(_pick("constraints by sample", self.evidence.slacks, name, held_out))

    def plot_weights(self, parameter: str | None = None) -> Any:
        """A Matplotlib figure: change of each parameter, or of one as a heat map."""
        layers = self.evidence.layers
        if parameter is None and len(layers) != 1:
            return plot_layers(layers)
        return plot_layer(_pick("parameters that could change", layers, parameter, None))

    def plot_convergence(self) -> Any:
        """A Matplotlib figure: the goal after each round."""
        progress = self.evidence.progress
        if progress is None:
            raise SpecificationError("report: no rounds were run, so there is no progress to plot. See report.notes.")
        return plot_convergence(progress)

    def plot_frontier(self, points: Any) -> Any:
        """A Matplotlib figure: accuracy against the property, with this repair marked.

        ``points`` come from :func:`repairopt.trace_frontier`, or have ``value`` and ``accuracy``.
        """
        return plot_frontier(points, *on_frontier(self.to_dict()))

    def plot_inputs(self, name: str | None = None, held_out: bool = False) -> Any:
        """A Matplotlib figure: the images of a labelled set (None for the first) whose answers changed most."""
        return plot_inputs(_pick("affected inputs", self.evidence.affected, name, held_out))


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
