"""TrainThenCorrect: many weights. Training proposes; rows that were not trained on and a quadratic program decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from repairopt.errors import SpecificationError
from repairopt.methods.corrections import hard_constraints, keep_corrected, rows_of_goal
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Array, Task
from repairopt.network import Shards
from repairopt.program import Status
from repairopt.verify import Claim, Judgement

from .sides import Sides
from .two_sides import train
from .unseen_rows import said_of_unseen_rows
from .way_back import find_way

MOST_WORK = 2e12  # floating-point operations of training, up to which a second one says what unseen rows get
TINY = 1e-300  # square of a proposal that is none
WAYS = (0.1, 0.2, *(k / 20 for k in range(6, 21)))  # in steps of 0.05 from 0.3 on: one more test costs no confidence
HALVINGS = 8  # of the shortest way, where not even that can be gone
CLAIMED = 0.95  # confidence of claims where bounds are to hold on average only


@dataclass(frozen=True, kw_only=True)
class TrainThenCorrect:
    """Repair of many weights: training proposes, unseen rows and a program decide.

    A run of Adam at a constant rate starts at the original weights and learns the labels, smoothed, of the rows that
    fail and of those to keep, and where ``closeness`` asks for it the original's outputs on those to keep that it gets
    right (distillation); the mean of its weights over its last half is the proposal. Goals and bounds without
    labels enter with multipliers, as in :class:`FineTune`. Where bounds stand for new data, the same is done without a
    part of the rows each, and the way from the original to the proposal is gone as far as the bounds are shown to hold
    on rows that were not trained on. Last, every hard row is made to hold: by the smallest change of the last layer, or
    where that cannot, of all linear and convolutional layers, in the second moment of their features, by a quadratic
    program in the violated rows alone; of given points that are to become right, all layers are tried first. The true
    network is counted.

    Batch normalization is frozen and dropout is off. Batches whose activations do not fit into memory are taken in
    parts, and where few rows fit, blocks in a row (of a ResNet, a Transformer) keep what they are given alone and are
    run again in the backward pass (gradient checkpointing). Data of a loader that are larger than memory are read from
    a file as they are used.

    Attributes:
        epochs: Passes over the rows that fail and those to keep, in the first stage of a run; of few rows more, and
            while more than one row in twenty is wrong and their share still falls, a stage of twice the length follows.
        batch: Rows of each of the two in a step, at most. Steps are of a half or a quarter, and more, where the update
            of the weights is cheap beside the passes, as of convolutions, Transformers and LSTMs.
        rate: Learning rate of Adam, in units of the root mean square of each parameter; at most 0.01 in all.
        keep: Weight of the labels of the rows to keep.
        closeness: Weight of the distance from the original's outputs on those that it gets right. With 0.5, and 1 for
            ``keep``, an LSTM and a Transformer lost fewer right answers on new data; where rows to keep are of the kind
            that fails, as rotated digits beside rotated digits, less was learned of it.
        temperature: By which outputs are divided before they are compared with the original's: the higher, the more do
            all classes count and not the largest outputs alone.
        smoothing: Share of a label that is given to all classes alike.
        margin: Logits by which corrected rows lead, where what is stated asks for less.
        ways: Shares of the way that are tested where bounds stand for new data.
        folds: Parts of the rows for that; each is left out once.
        confidence: Confidence with which such bounds are to hold on new data; None or up to one half for on average.
        precision: ``"own"``, or ``"bfloat16"`` for the passes of training in the operations that ``torch.autocast``
            lowers: quicker on recent GPUs. Weights, corrections and every count keep the network's own precision.
        channels_last: Whether images and weights of convolutions lie in memory pixel by pixel during training, which is
            quicker on GPUs.
        sharded: Whether the processes of ``torchrun`` share the rows of each pass. All of them make the same call, on
            the same data and on machines of one kind, and all get the repair; there is no time limit then.

    References:
        Izmailov and others, Averaging weights leads to wider optima and better generalization, UAI 2018 (means of
        weights). Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, 2015. Wortsman and others,
        Robust fine-tuning of zero-shot models, CVPR 2022 (the way back). Kingma and Ba, Adam, ICLR 2015. Chen, Xu,
        Zhang and Guestrin, Training deep nets with sublinear memory cost, 2016.

    Example:
        >>> TrainThenCorrect(epochs=5).rate
        0.04
    """

    uses: ClassVar[frozenset[str]] = frozenset({"weights"})

    epochs: int = 8
    batch: int = 128
    rate: float = 0.04
    keep: float = 3.0
    closeness: float = 0.0
    temperature: float = 2.0
    smoothing: float = 0.01
    margin: float = 0.5
    ways: tuple[float, ...] = WAYS
    folds: int = 4
    confidence: float | None = 0.95
    precision: Literal["own", "bfloat16"] = "own"
    channels_last: bool = False
    sharded: bool = False

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("epochs", "batch"), Expected(low=1, whole=True))
        numbers = {
            "rate": Expected(above=True),
            "keep": Expected(),
            "closeness": Expected(),
            "temperature": Expected(above=True),
            "margin": Expected(),
            "smoothing": Expected(high=1, below=True),
        }
        share = {"confidence": Expected(high=1, below=True, none=True), "folds": Expected(low=2, whole=True)}
        check_settings(self, counts | numbers | share)
        way_ends, listed = Expected(high=1, above=True), isinstance(self.ways, tuple | list) and self.ways
        if not listed or not all(way_ends.fits(way) for way in self.ways):
            raise SpecificationError(f"method TrainThenCorrect: ways={self.ways!r}; expected shares, 0 to 1.")
        if not is_one_of(self.precision, ("own", "bfloat16")):
            raise SpecificationError(
                f"method TrainThenCorrect: precision={self.precision!r}; expected 'own' or 'bfloat16'."
            )
        for name in ("channels_last", "sharded"):
            if not isinstance(getattr(self, name), bool):
                raise SpecificationError(
                    f"method TrainThenCorrect: {name}={getattr(self, name)!r}; expected True or False."
                )

    def run(self, task: Task) -> Outcome:
        """Train, go as far as the bounds allow, correct; the judge keeps the best."""
        if not self.sharded:
            return self._run(task)
        if task.judge.deadline is not None:
            raise SpecificationError(
                "method TrainThenCorrect: sharded=True does not go with a time limit, at which each process would end "
                "at another point. Leave time_limit out, or sharded."
            )
        task.engine.shards = Shards.of_processes()
        try:
            return self._run(task)
        finally:
            task.engine.shards = None

    def _run(self, task: Task) -> Outcome:
        sides = Sides.of(task)
        asked: Any = {"ways": self.ways, "folds": self.folds, "confidence": self.confidence, "keep": self.keep}
        way = find_way(task, sides, lambda part: train(task, part, self).change, **asked)
        trained = train(task, sides, self)
        self._go(task, trained.change, way.share)
        best = task.judge.best.candidate
        claims: tuple[Claim, ...] = ()
        if isinstance(best, np.ndarray) and self.confidence is not None:
            claims = way.claims(task, best, self.confidence if self.confidence > 0.5 else CLAIMED)
        better = task.judge.best.feasible and task.judge.best is not task.judge.original
        told = better and trained.work <= MOST_WORK and not task.new_counts
        without_them = partial(self._repair_part, gone=_share_of_way(best, trained.change) if told else 0.0)
        return Outcome(
            best,
            Status.FEASIBLE,
            on_target=True,
            claims=claims,
            prices={**trained.prices, **way.prices},
            said_of_unseen=partial(said_of_unseen_rows, task, without_them) if told else None,
        )

    def _repair_part(self, part: Task, gone: float) -> Array:
        """As long a part of the way, corrected where it can be."""
        change = gone * train(part, Sides.of(part), self).change
        self._judged(part, change, "a part of the rows")
        best = part.judge.best
        return change if best is part.judge.original else np.asarray(best.candidate)

    def _go(self, task: Task, change: Array, most: float) -> None:
        """As far towards a proposal, up to a share of the way, as what must stay true allows; the best is kept."""
        shares = sorted(share for share in self.ways if share <= most)
        low, at = 0, len(shares) - 1
        high = at
        while low <= high:  # the longest first; where its hard rows are out of reach, shares are halved
            judged = self._judged(task, shares[at] * change, f"{100 * shares[at]:.0f} % of the proposal")
            if judged.feasible or not _breaks_hard_rows(task, judged):
                low = at + 1
            else:
                high = at - 1
            at = (low + high) // 2
        if task.judge.best is task.judge.original:
            fits = lambda judged: judged.feasible and not judged.constant  # noqa: E731
            shorter = task.judge.bisect(np.zeros_like(change), min(self.ways) * change, fits, HALVINGS)
            if shorter is not None:
                task.judge.keep(shorter.candidate)
                task.record("a shorter way", shorter, accepted=task.judge.best is not task.judge.original)

    def _judged(self, task: Task, change: Array, step: str) -> Judgement:
        """The proposal with its hard rows corrected, as the true network is; both are kept."""
        before = task.judge.keep(change)
        task.log.last = (0, task.engine.n, None)
        task.record(step, before, accepted=task.judge.best is before)
        points, hard = bool(rows_of_goal(task)), bool(hard_constraints(task))
        judged = keep_corrected(task, change, self.margin) if hard or (points and not before.met) else None
        return judged or before


def _share_of_way(change: Any, proposal: Array) -> float:
    """How far a change ``(n,)`` goes towards a proposal."""
    if not isinstance(change, np.ndarray):
        return 0.0
    return float(change @ proposal) / max(float(proposal @ proposal), TINY)


def _breaks_hard_rows(task: Task, judged: Judgement) -> bool:
    """Whether a constraint by sample is what is broken."""
    hard = {id(c) for c in hard_constraints(task)}
    broken: Sequence[Any] = [
        c for c, b, a in zip(task.constraints, judged.broken, judged.allowed, strict=True) if b > a
    ]
    return any(id(c) in hard for c in broken)
