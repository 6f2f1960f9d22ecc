"""What a method returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from repairopt.network import Candidate
from repairopt.program import ProofVerdict, RegionProof, Source, Status
from repairopt.surrogate import Linearization, Surrogate
from repairopt.verify import Claim

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method returns.

    Attributes:
        candidate: What it proposes: a weight change ``(n,)``, or a candidate of another kind.
        status: Status of the solve that made it.
        surrogate: The model of the property that was used last, or None.
        linearization: The linearized constraints that were used last, or None.
        step: The step from ``linearization.delta`` to ``delta``, ``(n,)``, or None.
        gave_way: Hard rows that the elastic program had to violate.
        predicted: Improvement of the goal that the surrogates predicted, or NaN.
        on_target: Whether the method aimed at the target itself, so that going back towards the original gains nothing.
        prices: For each bound by how much the objective fell for each unit by which it were loosened, at the last step.
        out_of_reach: Bounds that the last step missed; what they cost is at least their price, which is the most that a
            step pays.
        claims: About new data.
        buffers: What was taken off goal and bounds, by name.
        margins: Logits by which their points had to lead, by name.
        proof: Of whole input regions, for the candidate, or None.
        proof_verdict: What the check of the proof found.
        said_of_unseen: Makes a sentence about inputs that the repair has not seen, from further repairs that leave some
            out; it is asked only of the proposal that is taken, and may raise what a method may.
        indivisible: Whether only the whole change makes sense, as on a grid, and no part of it.
    """

    candidate: Candidate | Array
    status: Status
    surrogate: Surrogate | None = None
    linearization: Linearization | None = None
    step: Array | None = None
    gave_way: tuple[Source, ...] = ()
    predicted: float = float("nan")
    on_target: bool = False
    prices: dict[str, float] = field(default_factory=dict)
    out_of_reach: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    buffers: dict[str, float] = field(default_factory=dict)
    margins: dict[str, float] = field(default_factory=dict)
    said_of_unseen: Callable[[], str] | None = None
    indivisible: bool = False
    proof: RegionProof | None = None
    proof_verdict: ProofVerdict | None = None

    @property
    def delta(self) -> Array:
        """The proposed weight change ``(n,)``; only methods that change weights have one."""
        assert isinstance(self.candidate, np.ndarray), "the candidate is no weight change"
        return self.candidate
