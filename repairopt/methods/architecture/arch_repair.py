"""ArchRepair: architecture and weights of the most vulnerable block are searched for together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repairopt.errors import ModelError, SpecificationError
from repairopt.localize import AdversarialSpectrum, NewArchitecture, Question
from repairopt.methods.material import material_of
from repairopt.methods.outcome import Outcome
from repairopt.methods.settings import Expected, check_settings, is_one_of
from repairopt.methods.task import Task
from repairopt.network import Caller
from repairopt.program import Status

from .bilevel import Pair, Schedule, search_cell, train_block
from .cell import FixedCell, RelaxedCell, node_shapes, segments_of
from .rebuilt import BLOCK, REST, replace_block


@dataclass(frozen=True, kw_only=True)
class ArchRepair:
    """The most vulnerable block, or layer, becomes a graph of operations, which is searched for with its weights.

    Spectrum analysis weighted by gradients finds the block. It is relaxed to a graph: every node takes a mixture of
    operations (none, skip, average and maximum pool, separable and dilated convolution) of every earlier node, and
    between consecutive nodes also the original layer, with which the graph begins, so that it computes what the block
    does. Weights and strengths of operations are trained alternately on two halves of the training and the failing
    rows. Then the strongest operation of each edge is kept, and the block, or the whole network, is fine-tuned.

    Attributes:
        level: ``"block"`` or ``"layer"``.
        block: Name of the module; None for the one that spectrum analysis finds.
        blocks: Names of the modules that are blocks, for that; empty for the network's own.
        top: Vulnerable neurons that are counted.
        epochs: At most so many, of the search and of the fine-tuning.
        patience: Epochs without a smaller validation loss after which either ends.
        batch: Rows of a step.
        rate: Learning rate.
        decay: Weight decay.
        start: Strength of the operations that the graph begins with.
        finetune: ``"block"`` or ``"all"``.
        validation: Inputs and labels that choose epochs of the fine-tuning; None for a tenth of the data.

    References:
        Qi et al., ArchRepair: Block-Level Architecture-Oriented Repairing for Deep Neural Networks, TOSEM 2023. Xu et
        al., PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search, ICLR 2020. The learning
        rate is 0.01, since the paper's 0.1 destroys a trained block. The paper wants the original block inside of the
        search space and does not say how; here it is an operation of its own. Channels that a mixture does not touch,
        three of four, take the operation that their edge began with; PC-DARTS hands them on. A block whose module is no
        Sequential is one operation layer.
    """

    uses: ClassVar[frozenset[str]] = frozenset()
    systems: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ArchRepair": {},
        "ArchRepair layer-level variant": {"level": "layer"},
    }

    level: str = "block"
    block: str | None = None
    blocks: Sequence[str] = ()
    top: int = 50
    epochs: int = 500
    patience: int = 10
    batch: int = 128
    rate: float = 0.01
    decay: float = 5e-4
    start: float = 8.0
    finetune: str = "block"
    validation: Pair | None = None

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("epochs", "patience", "batch", "top"), Expected(low=1, whole=True))
        numbers = {"rate": Expected(above=True), "decay": Expected(), "start": Expected()}
        check_settings(self, {**counts, **numbers})
        for name, known in (("level", ("block", "layer")), ("finetune", ("block", "all"))):
            if not is_one_of(getattr(self, name), known):
                raise SpecificationError(
                    f"method ArchRepair: {name}={getattr(self, name)!r}; choose {' or '.join(known)}."
                )

    def run(self, task: Task) -> Outcome:
        """Find the block, relax it, search, keep the strongest operations, fine-tune."""
        rows = material_of(task, validation=self.validation)
        with task.timed("localize"):
            name = self._located(task, rows.failing, rows.passing)
        network = Caller(copy.deepcopy(task.engine.model), task.engine.forward_fn, task.engine.caller.copies).eval()
        convert = Question.of(task.engine, rows.failing, rows.passing).graph.convert
        everything = [(convert(x), y) for x, y in (rows.training, rows.failing)]
        repair = (torch.cat([x for x, _ in everything]), torch.cat([y for _, y in everything]))
        cell = self._relaxed(task, network, name, repair[0])
        order = torch.randperm(len(repair[0]), generator=torch.Generator().manual_seed(task.seed)).to(repair[0].device)
        halves = [(repair[0][part], repair[1][part]) for part in order.tensor_split(2)]
        settings: Any = {name: getattr(self, name) for name in ("epochs", "patience", "batch", "rate", "decay")}
        schedule = Schedule(**settings, seed=task.seed, check=task.judge.check_time)
        with task.timed("search"):
            losses = search_cell(network, cell, halves[0], halves[1], schedule)
        task.log.last = (0, len(cell.architecture()), None)
        text = f"loss {losses[0]:.4g} to {min(losses):.4g}"
        task.record(f"search of '{name}', {len(losses) - 1} epochs", note=text)
        genotype, fixed = cell.genotype(), cell.fixed()
        replace_block(network.model, name, fixed)
        with task.timed("fine-tune"):
            chosen = (convert(rows.validation[0]), rows.validation[1])
            trains = network.model if self.finetune == "all" else fixed
            own = [one.requires_grad_() for one in trains.parameters() if one.is_floating_point()]
            train_block(network, trains, own, repair, chosen, schedule)
        candidate = self._candidate(task, network, name, genotype, cell)
        task.record(f"'{name}' fine-tuned", task.judge.keep(candidate))
        kept = ", ".join(f"{one['from']}-{one['to']} {one['operation']}" for one in genotype)
        task.log.note(f"ArchRepair rebuilt '{name}': {kept}.")
        return Outcome(candidate, Status.FEASIBLE, on_target=True, indivisible=True)

    def _located(self, task: Task, failing: Pair, passing: Pair) -> str:
        """The name of the most vulnerable block whose inputs and outputs are feature maps."""
        if self.block is not None:
            if self.block not in dict(task.engine.model.named_modules()) or not self.block:
                raise ModelError(f"method ArchRepair: block='{self.block}'; the model has no module of that name.")
            return self.block
        question = Question.of(task.engine, failing, passing, goal=task.goal, seed=task.seed)
        ranked = AdversarialSpectrum(level=self.level, top=self.top, blocks=self.blocks).ranked(question)
        for name in ranked:
            try:
                self._shapes(task, name, failing[0])
            except ModelError:
                continue
            return name
        raise ModelError(
            f"method ArchRepair: none of the {self.level}s {', '.join(ranked)} reads and makes feature maps "
            f"(N, C, H, W), which its operations are of."
        )

    def _shapes(self, task: Task, name: str, inputs: Tensor) -> list[tuple[int, int, int]]:
        network = Caller(copy.deepcopy(task.engine.model), task.engine.forward_fn, task.engine.caller.copies).eval()
        return node_shapes(segments_of(network.model.get_submodule(name)), _read_by(network, name, task, inputs))

    def _relaxed(self, task: Task, network: Caller, name: str, inputs: Tensor) -> RelaxedCell:
        """Put the relaxed block into the network; only it can be trained."""
        segments = segments_of(network.model.get_submodule(name))
        shapes = node_shapes(segments, _read_by(network, name, task, inputs))
        network.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            cell = RelaxedCell(segments, shapes, self.start, task.seed)
        like = inputs if inputs.is_floating_point() else next(network.parameters())
        cell.to(device=like.device, dtype=like.dtype).eval()
        replace_block(network.model, name, cell)
        cell.requires_grad_(True)
        return cell

    def _candidate(
        self, task: Task, network: Caller, name: str, genotype: Sequence[Mapping[str, Any]], cell: RelaxedCell
    ) -> NewArchitecture:
        block = network.model.get_submodule(name)
        assert isinstance(block, FixedCell)
        tensors = {BLOCK + key: one.detach().clone() for key, one in block.state_dict().items()}
        if self.finetune == "all":
            old = task.engine.model.state_dict()
            for key, one in network.model.state_dict().items():
                if not key.startswith(name + ".") and not torch.equal(one, old[key]):
                    tensors[REST + key] = one.detach().clone()
        settings = {"name": name, "genotype": list(genotype), "shapes": [list(shape) for shape in cell.shapes]}
        return NewArchitecture("rebuilt", settings, tensors)


def _read_by(network: nn.Module, name: str, task: Task, inputs: Tensor) -> Tensor:
    """What a block reads at two rows."""
    seen: list[Tensor] = []
    module = network.get_submodule(f"model.{name}")
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.no_grad():
            few = inputs[:2].to(task.engine.device)
            network(few.to(task.engine.dtype) if few.is_floating_point() else few)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ModelError(f"method ArchRepair: block '{name}' is called {len(seen)} times in a run; expected once.")
    return seen[0]
