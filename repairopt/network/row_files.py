"""Data that are larger than memory: tensors whose rows lie in a temporary file and are read when they are used.

A loader is read once, batch by batch, so a row is the same wherever it is used, whatever its transform drew. The file
has no name once it is open: it goes with the tensor, also where the process is killed. ``TMPDIR`` says where it lies.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MOST_BYTES = 2**30  # of a set that is held in memory
PIECE = 2**24  # bytes that are copied at a time


@dataclass(eq=False)
class Spool:
    """Collects blocks of rows, in memory as long as they are small, then in a file.

    Attributes:
        blocks: What is in memory, in order.
        bytes: Of all blocks.
        rows: Of all blocks.
    """

    blocks: list[Tensor] = field(default_factory=list)
    bytes: int = 0
    rows: int = 0
    _path: str = ""

    def add(self, block: Tensor) -> None:
        """Take up rows ``(B, ...)``."""
        if self.blocks and self._path and (block.dtype, block.shape[1:]) != (self.blocks[0].dtype, self._shape):
            raise RuntimeError(f"rows of shape {tuple(block.shape[1:])} after rows of shape {tuple(self._shape)}")
        self.bytes += block.numel() * block.element_size()
        self.rows += len(block)
        if not self._path and self.bytes <= MOST_BYTES:
            self.blocks.append(block)
            return
        if not self._path:
            handle, self._path = tempfile.mkstemp(prefix="repairopt-rows-")
            os.close(handle)
            first = [*self.blocks, block]
            self.blocks = [block[:0].clone()]
            self._write(first)
            return
        self._write([block])

    @property
    def _shape(self) -> torch.Size:
        return self.blocks[0].shape[1:]

    def _write(self, blocks: Sequence[Tensor]) -> None:
        with open(self._path, "ab") as file:
            for block in blocks:
                block.detach().cpu().contiguous().numpy().tofile(file)

    def tensor(self) -> Tensor:
        """All rows, ``(N, ...)``."""
        if not self._path:
            return torch.cat(self.blocks)
        path, self._path = self._path, ""
        try:
            count = self.bytes // self.blocks[0].element_size()
            found = torch.from_file(path, shared=True, size=count, dtype=self.blocks[0].dtype)
        finally:
            os.unlink(path)
        return found.view(self.rows, *self._shape)

    def __del__(self) -> None:
        if self._path and os.path.exists(self._path):
            os.unlink(self._path)


def spooled(rows: Iterable[Tensor]) -> Tensor:
    """Blocks of rows below each other."""
    spool = Spool()
    for block in rows:
        spool.add(block)
    return spool.tensor()


def as_type(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows in another type; in a file where they are too large for memory."""
    if rows.numel() * torch.empty(0, dtype=dtype).element_size() <= MOST_BYTES:
        return rows.to(dtype)
    return spooled(block.to(dtype) for block in pieces(rows))


def pieces(rows: Tensor) -> Iterator[Tensor]:
    """Rows in blocks that are small beside memory."""
    size = max(1, rows[0].numel() * rows.element_size())
    return iter(rows.split(max(1, PIECE // size)))
