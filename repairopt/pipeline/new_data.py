"""What the report claims of new data: of the network delivered alone, and nothing that other rows contradict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from repairopt.methods import Outcome
from repairopt.network import Remembering
from repairopt.specify import PropertyBound, Specification, anchor, goal_value, measured, stands_for_population
from repairopt.verify import Claim, Judgement, make_claim

from .prepare import Prepared


def claims_on(
    prepared: Prepared,
    outcome: Outcome,
    final: Judgement,
    both: tuple[Remembering, Remembering],
    confidence: float,
) -> tuple[Claim, ...]:
    """The claims of the method, each withheld where it is not one about the network delivered, and of held-out data.

    Args:
        prepared: The repair.
        outcome: What the method proposed.
        final: What is delivered.
        both: The original network and the one delivered.
        confidence: Of the claims about held-out data, one-sided.

    Returns:
        All claims, those of the method first.
    """
    held_out = _held_out_claims(prepared.specification, both, confidence)
    unseen = {claim.name: claim for claim in held_out}
    values = dict(_values(prepared.specification, both)) if outcome.claims else {}
    same = _is_same(outcome.candidate, final.candidate)
    found = [_confirmed(claim, same, values.get(claim.name), unseen.get(claim.name)) for claim in outcome.claims]
    return (*found, *held_out)


def _confirmed(claim: Claim, same: bool, value: float | None, unseen: Claim | None) -> Claim:
    """The claim, withheld where the delivered network, its value on the repair data or held-out data contradict it."""
    if claim.withheld or not claim.met:
        return claim
    if not same:
        return replace(claim, withheld="another network is delivered than the one that was validated")
    if value is not None and value > claim.limit:
        return replace(claim, withheld=f"on the repair data itself the network delivered has {value:.4f}")
    if unseen is not None and unseen.interval.low > unseen.limit:
        return replace(claim, withheld=f"held-out data contradict it, {unseen.interval.value:.4f} there")
    return claim


def _is_same(proposed: Any, delivered: Any) -> bool:
    if isinstance(proposed, np.ndarray) and isinstance(delivered, np.ndarray):
        return bool(np.array_equal(proposed, delivered))
    return proposed is delivered


def _values(spec: Specification, both: tuple[Remembering, Remembering]) -> Iterator[tuple[str, float]]:
    """Of goal and bounds by name the value of the network delivered on the repair data."""
    original, now = both
    for item in (spec.goal, *spec.on_outputs):
        prop = measured(anchor(item, original))
        if item is spec.goal or isinstance(item, PropertyBound):
            yield item.name, goal_value(prop, now)


def _held_out_claims(spec: Specification, both: tuple[Remembering, Remembering], confidence: float) -> list[Claim]:
    """What held-out data say of goal and bounds, where they know their sampling error."""
    original, now = both
    found = []
    for item in spec.held_out:
        known = anchor(item, original)
        prop, bound = measured(known), known if isinstance(known, PropertyBound) else None
        limit = getattr(known, "target", None) if bound is None else bound.limit
        if limit is not None and stands_for_population(prop):
            options: Any = {"confidence": confidence, "source": "held-out data"}
            options["original"] = original if bound is not None and bound.relative else None
            found.append(make_claim(item.name, prop, float(limit), now, **options))
    return [claim for claim in found if claim is not None]
