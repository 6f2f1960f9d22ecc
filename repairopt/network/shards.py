"""Several processes that do the same repair and share the rows of its passes.

Every process has the same data and takes the same steps. Of the rows of a pass each runs its own part, whatever their
number, and outputs, gradients and counts are summed over the processes; what could differ from one to the other, such
as the solution of a program, is that of the first process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed as dist

from repairopt.errors import SpecificationError

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """This process among all: its number from 0, and how many there are."""

    rank: int
    count: int

    @classmethod
    def of_processes(cls) -> Shards:
        """Those of the process group; a SpecificationError where there is none."""
        if not dist.is_available() or not dist.is_initialized():
            raise SpecificationError(
                "sharded=True: there is no process group. Start the script by torchrun, and call "
                "torch.distributed.init_process_group() in it before the repair."
            )
        return cls(dist.get_rank(), dist.get_world_size())

    def own(self, rows: int) -> slice:
        """The rows of this process; parts differ by one row at most, and none is added."""
        return slice(self.rank * rows // self.count, (self.rank + 1) * rows // self.count)

    def joined(self, part: Tensor, rows: int) -> Tensor:
        """The parts of all processes ``(R, ...)`` below each other, ``(rows, ...)``."""
        found = part.new_zeros(rows, *part.shape[1:])
        found[self.own(rows)] = part
        dist.all_reduce(found)
        return found

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one kind by their sums over the processes, in one message."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view(tensor.shape))

    def of_first(self, compute: Callable[[], T]) -> T:
        """What the first process computes, or the error that it ends with."""
        sent: list[Any] = [None, None]
        if self.rank == 0:
            try:
                sent[0] = compute()
            except Exception as error:
                sent[1] = error
        dist.broadcast_object_list(sent, src=0)
        if sent[1] is not None:
            raise sent[1]
        found: T = sent[0]
        return found
