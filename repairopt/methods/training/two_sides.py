"""Training on two sides, rows that fail and rows to keep, with multipliers for what has no labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repairopt.methods.adam import Adam
from repairopt.methods.task import Array, Task
from repairopt.network import identity, time_left
from repairopt.specify import (
    ChangeBox,
    goal_value,
    inputs_of,
)

from .activations import Kept, blocks_of, kept_by, lay_by_pixel, quick_forward, run_blocks_again
from .all_rows import AllRows
from .distillation import distance, known_answers
from .draws import draw_batches
from .multiplier import Multiplier
from .pass_cost import operations
from .rates import natural_rate
from .sides import Sides
from .step_plan import StepPlan, plan_steps

STAGES, STAGES_OF_FEW = 4, 2  # of a run, each twice as long as the one before; of few rows
LEARNED = 0.05  # share of wrong rows at which a run ends
TRIED = 2  # rows of a pass whose memory is measured
STILL, STILL_OF_FEW = 0.75, 0.5  # of the wrong rows of the stage before, at which it still learns; of few rows
FEW_TAUGHT = 150  # rows, of which a few more or less are noise, and other methods are quick
OF_OTHERS = 0.4  # of the time that is left, for what comes after a run
AVERAGED = 0.5  # of the steps of a stage, the last ones, over whose weights the mean is taken
NOTHING: list[list[Tensor]] = [[], []]  # drawn of two sides
FEW_ROWS = 16  # that fit into memory, below which blocks are run again in the backward pass


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run of training ends with.

    Attributes:
        change: Weight change ``(n,)``.
        prices: Multiplier of each limit without labels, by name: decrease of the loss per unit of relaxation.
        work: Floating-point operations that it took, about.
    """

    change: Array
    prices: dict[str, float]
    work: float


def train(task: Task, sides: Sides, settings: Any) -> Trained:
    """From the original weights to the mean of those in the last half of a run of Adam.

    The run goes on with twice the steps while many of the rows are wrong and it still learns, first from those that the
    original gets wrong: few rows need more passes than many. Where that would take more than half of the time that is
    left, it ends with what it has, and so does a run that has taken its share of the time, which others need too.

    Args:
        task: The repair; its engine says which weights may change.
        sides: Rows.
        settings: Has ``epochs``, ``batch``, ``rate``, ``keep``, ``closeness``, ``temperature`` and ``smoothing``.

    References:
        Izmailov and others, Averaging weights leads to wider optima and better generalization, UAI 2018. Szegedy and
        others, Rethinking the Inception architecture, CVPR 2016 (label smoothing).
    """
    run, shards = _Run(task, sides, settings), task.engine.shards
    steps, before = run.planned.count, run.wrong_at_first()
    reserved = OF_OTHERS * time_left()
    stages, still = (STAGES_OF_FEW, STILL_OF_FEW) if sides.count < FEW_TAUGHT else (STAGES, STILL)
    for _ in range(stages):
        left = time_left()
        wrong = run.take(steps, reserved)
        took = left - time_left()  # NaN without a deadline
        if wrong <= LEARNED or wrong > still * before or 2 * took > time_left() / 2:
            break
        steps, before = 2 * steps, wrong
    change = run.change() if shards is None else shards.of_first(run.change)
    return Trained(change, {limit.name: limit.shadow_price() for limit in run.limits}, run.work)


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows of a set in a step, their labels, what the original says of those to keep, and their weight."""

    inputs: Tensor
    rows: Tensor
    labels: Tensor
    original: Tensor | None
    weight: float
    closeness: float
    tally: list[int] | None


class _Run:
    """The network in training, with what each row is to learn."""

    def __init__(self, task: Task, sides: Sides, settings: Any) -> None:
        self.task, self.sides, self.settings, self.shards = task, sides, settings, task.engine.shards
        self.network, self.parameters, self.masks = _trainable(task)
        self.kept: dict[torch.Size, Kept] = {}
        self.late: dict[Any, bool] = {}
        self.run_again = False
        known = [x for x, _ in (*sides.failing, *sides.kept)]
        known += [x for _, item, _ in sides.soft if (x := inputs_of(item)) is not None]
        if any([self.rows_that_fit(x) < FEW_ROWS for x in known]):
            self._save_memory(known)
        if known and task.engine.device.type == "cpu":
            lay_by_pixel(self.network, self._converted(known[0][:TRIED]))
        self.quick = quick_forward(self.network, settings.precision, settings.channels_last)
        rates = {name: natural_rate(name, self.network.model, settings.rate) for name in self.parameters}
        groups = [{"params": [weight], "lr": rates[name]} for name, weight in self.parameters.items()]
        self.optimizer = Adam(groups, fused=True)
        self.draw = torch.Generator().manual_seed(task.seed)
        self.average: list[Tensor] = []
        self.work, self.planned = 0.0, self.plan()
        self.all_rows, self.wanted = self._all_rows(), list[Tensor]()
        before = task.engine.predict()
        kept = [x for x, _ in sides.kept]
        self.answers = known_answers(task, kept) if settings.closeness else [None] * len(kept)
        self.limits = [
            Multiplier(name, item, limit, goal_value(item, before), self) for name, item, limit in sides.soft
        ]

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` of the network in training, as quickly as is asked for."""
        return self.quick(self._converted(inputs))

    def _converted(self, inputs: Tensor) -> Tensor:
        """Inputs as the network takes them; those of an attack, which have gradients, are so already."""
        return inputs if inputs.requires_grad else self.task.engine.converted(inputs)

    def _starts_late(self, inputs: Tensor) -> bool:
        """Whether weights that do not change come first, whose outputs the engine knows."""
        key = identity(inputs)
        if key not in self.late:
            plain = self.settings.precision == "own" and not self.settings.channels_last and not self.run_again
            probe = self.task.engine.frontier(inputs[:1]) if plain and not inputs.requires_grad else ()
            given = self._converted(inputs[:1]) if len(probe) == 1 else None
            same = given is not None and given.shape == probe[0].shape and torch.equal(given, probe[0])
            self.late[key] = bool(probe) and not same
        return self.late[key]

    def _all_rows(self) -> AllRows | None:
        """All rows, where every step takes all and they are few and alike; None elsewhere."""
        failing, kept = self.sides.failing, self.sides.kept
        known, most = [x for x, _ in (*failing, *kept)], self.planned.batch
        kinds = {(x.shape[1:], x.dtype, x.device, self._starts_late(x)) for x in known}
        plain = not self.settings.closeness and self.shards is None
        small = self.sides.count < FEW_TAUGHT and all([sum(len(y) for _, y in own) <= most for own in (failing, kept)])
        if not (plain and small and len(kinds) == 1) or self.sides.count > self.rows_that_fit(known[0]):
            return None
        late = self._starts_late(known[0])
        read = [self._read_late(x, torch.arange(len(x))) if late else (x,) for x in known]
        return AllRows.of(read, failing, kept, self.settings.keep)

    def _loss_of_all(self, rows: AllRows, tally: list[int] | None) -> Tensor:
        """The losses of all rows in one pass and one sum, which takes half the time of one for each side."""
        late = self._starts_late(next(x for x, _ in (*self.sides.failing, *self.sides.kept)))
        outputs = self.task.engine.run(self.parameters, rows.read) if late else self.forward(*rows.read)
        if not self.wanted:
            self.wanted.append(rows.wanted(outputs, self.settings.smoothing))
        if tally is not None:
            tally[0] += rows.wrong(outputs)
            tally[1] += len(rows.failing)
        return -(torch.log_softmax(outputs, 1) * self.wanted[0]).sum()

    def _outputs(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
        """Outputs ``(len(rows), k)`` of some rows of each set; of the few rows of small steps in one pass, if alike."""
        kinds = {(x.shape[1:], x.dtype, x.device, self._starts_late(x)) for x, _ in parts}
        if len(parts) > 1 and (len(kinds) > 1 or self.planned.batch == self.settings.batch):
            return [self._outputs([part])[0] for part in parts]
        late = self._starts_late(parts[0][0])
        read = [self._read_late(x, rows) if late else (x[rows],) for x, rows in parts]
        given = read[0] if len(read) == 1 else tuple(torch.cat(one) for one in zip(*read, strict=True))
        outputs = self.task.engine.run(self.parameters, given) if late else self.forward(*given)
        return outputs.split([len(rows) for _, rows in parts])

    def _read_late(self, inputs: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """What the first changed layers read of some rows."""
        parts = [part for _, part in self.task.engine.batches(inputs, rows, 1)]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(one) for one in zip(*parts, strict=True))

    def plan(self) -> StepPlan:
        """Steps of the first stage; of soft limits, which every step counts anew, batches are not divided."""
        rows = [sum(len(y) for _, y in pairs) for pairs in (self.sides.failing, self.sides.kept)]
        known = [x for x, _ in (*self.sides.failing, *self.sides.kept)]

        def cost(batch: int) -> float:
            rows_of_step = sum(min(count, batch) for count in rows)
            if not rows_of_step:
                return 0.0
            part = known[0][: min(rows_of_step, self.rows_that_fit(known[0]))]
            passes = 3 * rows_of_step / len(part)  # backward counts as two
            return float(passes * operations(self.network, self._converted(part)))

        sizes = [len(positions) for positions in self.task.engine.indices.values()]
        return plan_steps(rows, self.settings, cost, sizes=sizes, divisible=not self.sides.soft)

    def wrong_at_first(self) -> float:
        """Share of the failing rows that the original gets wrong; 1 where there are limits without labels."""
        pairs, predict = self.sides.failing, self.task.engine.predict()
        if self.limits or not pairs:
            return 1.0
        wrong = sum(int((predict(x).argmax(-1) != y.to(self.task.engine.device)).sum()) for x, y in pairs)
        return wrong / max(1, sum(len(y) for _, y in pairs))

    def take(self, steps: int, reserved: float) -> float:
        """Train; the share of wrong rows in the last quarter of the steps, or by which limits are missed.

        Of small steps, whose weights are restless, it is the share of the mean weights. It ends early where fewer than
        ``reserved`` seconds are left; infinite where there is no limit.
        """
        every = max(1, steps // self.settings.epochs)
        self.work += steps * self.planned.work
        tally, weights, count = [0, 0], list(self.parameters.values()), 0
        sides = [[len(y) for _, y in pairs] for pairs in (self.sides.failing, self.sides.kept)]
        drawn = draw_batches(sides, self.planned.batch, steps, self.draw)
        for step, (failing, kept) in enumerate(repeat(NOTHING, steps) if self.all_rows else drawn):
            self.task.judge.check_time()
            if time_left() < reserved:
                break
            self.optimizer.zero_grad()
            penalties = [limit.penalty(update=step % every == 0) for limit in self.limits]
            learned = False
            for loss in self._losses(failing, kept, penalties, tally if 4 * step >= 3 * steps else None):
                if isinstance(loss, Tensor) and loss.requires_grad:
                    loss.backward()
                    learned = True
            if self.shards is not None:
                self._sum_gradients()
            elif not learned:
                return 0.0
            for name, mask in self.masks.items():
                gradient = self.parameters[name].grad
                if gradient is not None:
                    gradient *= mask
            self.optimizer.step()
            if step >= (1 - AVERAGED) * steps:
                count += 1
                self._take_into_average(weights, count)
        missed = max((limit.missed() for limit in self.limits), default=0.0)
        if self.average and self.planned.batch < self.settings.batch:
            tally = self._tally_of_mean()
        if self.shards is not None:
            counts = torch.tensor(tally, device=self.task.engine.device)
            self.shards.sum([counts])
            tally = counts.tolist()
        return max(tally[0] / max(1, tally[1]), missed)

    def _sum_gradients(self) -> None:
        """The gradient of the whole batch, which the processes have in parts."""
        assert self.shards is not None
        for weight in self.parameters.values():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        self.shards.sum([weight.grad for weight in self.parameters.values() if weight.grad is not None])

    @torch.no_grad()
    def _take_into_average(self, weights: list[nn.Parameter], count: int) -> None:
        if count == 1:
            self.average = [weight.detach().clone() for weight in weights]
        else:
            torch._foreach_lerp_(self.average, [weight.detach() for weight in weights], 1 / count)

    @torch.no_grad()
    def _tally_of_mean(self) -> list[int]:
        """Rows of the failing side that the mean weights get wrong, and all of them."""
        tally, weights = [0, 0], list[Tensor](self.parameters.values())
        last = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, self.average)
        for x, y in self.sides.failing:
            own = slice(None) if self.shards is None else self.shards.own(len(y))
            if len(y[own]):
                outputs = self.predict(x[own])
                _count_wrong(outputs, y[own].to(outputs.device), tally)
        torch._foreach_copy_(weights, last)
        return tally

    def change(self) -> Array:
        """The change from the original to the mean weights, ``(n,)``, within what the user allows."""
        found: Array = np.empty(self.task.engine.n)
        means = dict(zip(self.parameters, self.average or list(self.parameters.values()), strict=True))
        start = 0
        for name, positions in self.task.engine.indices.items():
            moved = means[name].detach() - self.task.engine.model.get_parameter(name).detach()
            found[start : start + len(positions)] = moved.flatten()[positions].cpu()
            start += len(positions)
        if any(isinstance(constraint, ChangeBox) for constraint in self.task.change):
            return np.clip(found, *self.task.box(np.zeros(self.task.engine.n), np.inf))
        return found

    def _losses(
        self, failing: list[Tensor], kept: list[Tensor], penalties: list[Tensor], tally: list[int] | None
    ) -> Iterator[Any]:
        """Losses of a batch of each side, in parts that fit into memory, and penalties; adds to ``tally``."""
        if self.all_rows:
            yield self._loss_of_all(self.all_rows, tally)
            if penalties:
                yield sum(penalties)
            return
        sides: list[Any] = [(self.sides.failing, failing, [None] * len(failing), 1.0, tally)]
        sides += [(self.sides.kept, kept, self.answers, self.settings.keep, None)]
        parts, most = list[_Part](), 0  # rows that do not fit
        for pairs, chosen, answers, weight, counted in sides:
            total, close = sum(map(len, chosen)), self.settings.closeness
            for (x, y), rows, answer in zip(pairs, chosen, answers, strict=True):
                own = rows if self.shards is None else rows[self.shards.own(len(rows))]
                most = max(most, len(own) - self.rows_that_fit(x))
                for piece in own.split(self.rows_that_fit(x)):
                    if len(piece):
                        before = None if answer is None else answer[piece]
                        parts.append(_Part(x, piece, y[piece], before, weight / total, close / total, counted))
        fits = most <= 0
        for group in [parts] if fits else [[part] for part in parts]:
            if group:
                outputs = self._outputs([(part.inputs, part.rows) for part in group])
                yield sum(self._loss(found, part) for found, part in zip(outputs, group, strict=True))
        if penalties:
            yield sum(penalties) / (1 if self.shards is None else self.shards.count)  # each process has the whole

    def predict(self, inputs: Tensor) -> Tensor:
        """Outputs ``(N, k)`` of the network in training, in parts that fit into memory."""
        most = self.rows_that_fit(inputs)
        if not torch.is_grad_enabled():
            most = min(most, self.task.engine.rows_in_cache(inputs) or most)
        taken = inputs.split(most) if len(inputs) > most else [inputs]
        parts = [self.network(self._converted(part)) for part in taken]
        found: Tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found

    def rows_that_fit(self, inputs: Tensor) -> int:
        """Rows of a batch whose activations stay within half of the memory limit."""
        shape = inputs.shape[1:]
        if shape not in self.kept and not self.run_again:
            self.kept[shape] = kept_by(self.network, self._converted(inputs[:TRIED]).clone())
        found = self.kept.get(shape) or max(self.kept.values(), key=lambda kept: kept.again)
        size = found.again if self.run_again else found.plain
        return max(1, int(self.task.engine.memory_limit // 2 / max(1.0, size)))

    def _save_memory(self, inputs: Sequence[Tensor]) -> None:
        """Keep nothing of blocks but what they are given, where more rows fit then."""
        before = [self.rows_that_fit(x) for x in inputs]
        self.run_again = True
        self.run_again = any(self.rows_that_fit(x) > fit for x, fit in zip(inputs, before, strict=True))
        if self.run_again:
            run_blocks_again(blocks_of(self.network))

    def _loss(self, outputs: Tensor, part: _Part) -> Tensor:
        """Sum of the losses of some rows, times their weight; adds wrong rows and rows to their tally."""
        aim, smoothing = part.labels.to(outputs.device), self.settings.smoothing
        if part.tally is not None:
            _count_wrong(outputs, aim, part.tally)
        loss = part.weight * F.cross_entropy(outputs, aim, reduction="sum", label_smoothing=smoothing)
        if part.original is None:
            return loss
        return loss + part.closeness * distance(outputs, aim, part.original, self.settings.temperature)


def _count_wrong(outputs: Tensor, labels: Tensor, tally: list[int]) -> None:
    tally[0] += int((outputs.detach().argmax(1) != labels).sum())
    tally[1] += len(labels)


def _trainable(task: Task) -> tuple[nn.Module, dict[str, nn.Parameter], dict[str, Tensor]]:
    """A copy of the network whose chosen parameters are trained, and masks of those that change in part."""
    network: Any = copy.deepcopy(task.engine.caller).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    parameters, masks = {}, {}
    for name, positions in task.engine.indices.items():
        parameter = network.model.get_parameter(name).requires_grad_()
        parameters[name] = parameter
        if len(positions) < parameter.numel():
            mask = torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
            mask[positions.to(parameter.device)] = 1.0
            masks[name] = mask.view_as(parameter)
    return network, parameters, masks
