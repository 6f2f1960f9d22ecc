"""All pictures of a report in the order in which a reader wants them, each with a caption and a text in its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from repairopt.errors import SpecificationError, shown

from . import plots
from .evidence import Evidence
from .plots import data_uri, split_name
from .region_maps import plot_region_map

MOST = 6  # pictures of a kind
Drawn = Iterator[tuple[Any, str, str]]  # figure, text in its place, caption


@dataclass(frozen=True)
class Picture:
    """A picture in the page: the address that holds it, a text for readers who do not see it, how to read it."""

    source: str
    alt: str
    caption: str


def draw_gallery(
    evidence: Evidence,
    frontier: Any = (),
    chosen: tuple[float, float] | None = None,
    original: tuple[float, float] | None = None,
) -> list[Picture]:
    """Draw everything that there is evidence for; the frontier's arguments are those of ``plot_frontier``."""
    drawn = [*_regions(evidence), *_groups(evidence)]
    given = getattr(frontier, "points", frontier)
    if not isinstance(given, list | tuple) or not all(hasattr(p, "value") and hasattr(p, "accuracy") for p in given):
        raise SpecificationError(f"frontier: got {shown(frontier)}; expected what trace_frontier returned, or points.")
    points = list(given)
    if points:
        figure = plots.plot_frontier(points, chosen, original)
        text = "What accuracy each level of the property costs; the square is this repair."
        drawn.append((figure, f"Frontier of {len(points)} repairs.", text))
    drawn += [*_samples(evidence), *_weights(evidence)]
    if evidence.progress is not None and len(evidence.progress.goal) > 1:
        figure = plots.plot_convergence(evidence.progress)
        alt = f"{evidence.progress.name} over {len(evidence.progress.goal) - 1} rounds."
        drawn.append((figure, alt, "Each round on the true network, original network first."))
    drawn += [*_images(evidence)]
    return [Picture(data_uri(figure), alt, caption) for figure, alt, caption in drawn]


def _regions(evidence: Evidence) -> Drawn:
    for region in evidence.regions[:MOST]:
        before, after = (float(broken.mean()) for broken in (region.broken_before, region.broken_after))
        shares = f"fails on {before:.2%} before and {after:.2%} after"
        alt = f"Slice of {region.name}: {shares}; {len(region.leaves)} leaves."
        caption = (
            "Colors are answers. Hatched: the property fails. Outlined boxes are leaves of the proof; filled ones "
            "are not proved."
        )
        yield plot_region_map(region, evidence.label), alt, caption


def _groups(evidence: Evidence) -> Drawn:
    for rates in evidence.rates[:MOST]:
        sides = zip(rates.groups, rates.before, rates.after, strict=True)
        pairs = ", ".join(f"{group} {before:.3f} to {after:.3f}" for group, before, after in sides)
        bars = " Bars: 95 % sampling intervals." if rates.quantity != "recall" else ""
        caption = f"{rates.quantity.capitalize()} before (hollow) and after (full), {split_name(rates.held_out)}.{bars}"
        yield plots.plot_rates(rates), f"{rates.name}: {pairs}.", caption


def _samples(evidence: Evidence) -> Drawn:
    for margins in evidence.margins[:MOST]:
        fell, rose = margins.crossed
        alt = f"{margins.name}: {fell} samples fell below the threshold, {rose} rose above it."
        caption = (
            f"Each point is a sample, the dashed lines are the threshold of {margins.threshold:.3g}: {fell:,} fell "
            f"below it (crosses), {rose:,} rose above it (triangles)."
        )
        yield plots.plot_margins(margins), alt, caption
    for slack in evidence.slacks[:MOST]:
        failed = int((slack.after < slack.threshold).sum())
        alt = f"{slack.name}: {failed} of {len(slack.after)} samples fail after the repair."
        caption = "How far each sample is from breaking the constraint; left of the dashed line it does."
        yield plots.plot_slack(slack), alt, caption


def _weights(evidence: Evidence) -> Drawn:
    layers = [layer for layer in evidence.layers if layer.changed]
    if len(layers) > 1:
        alt = "; ".join(f"{layer.name} by {100 * layer.relative:.2g} %" for layer in layers)
        yield (
            plots.plot_layers(layers),
            f"Change by parameter: {alt}.",
            "How much of its size each parameter changed by.",
        )
    for layer in sorted(layers, key=lambda one: -one.relative)[:MOST]:
        if len(layer.shape) > 1 or len(layers) == 1:
            alt = f"Heat map of {layer.name}: {layer.changed} weights changed."
            yield plots.plot_layer(layer), alt, "White is unchanged; brown grew smaller, violet larger."


def _images(evidence: Evidence) -> Drawn:
    for affected in evidence.affected:
        if affected.are_images:
            changed = int((affected.before != affected.after).sum())
            alt = f"{len(affected.rows)} images of {affected.name}; {changed} have a new answer."
            caption = "The inputs whose probabilities changed most, with the answer before → after."
            yield plots.plot_inputs(affected, evidence.label), alt, caption
