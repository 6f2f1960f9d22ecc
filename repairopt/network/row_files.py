"""Data that are larger than memory: tensors whose rows lie in a temporary file and are read when they are used.

A loader is read once, batch by batch, so a row is the same wherever it is used, whatever its transform drew. The file
has no name once it is open: it goes with the tensor, also where the process is killed. ``TMPDIR`` says where it lies.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

MOST_BYTES = 2**30  # of a set that is held in memory
PIECE = 2**24  # bytes that are copied at a time


class Spool:
    """Collects blocks of rows in one piece of memory, and in a file from ``MOST_BYTES`` on."""

    def __init__(self) -> None:
        # one piece of memory: small blocks that stay between large ones that go would pin it
        self._memory = bytearray()
        self._path = ""
        self._first: Tensor | None = None
        self._rows = 0

    def add(self, block: Tensor) -> None:
        """Take up rows ``(B, ...)``; a RuntimeError where they are of another kind than those before."""
        block = block.detach().cpu().contiguous()
        self._first = block[:0].clone() if self._first is None else self._first
        if (block.dtype, block.shape[1:]) != (self._first.dtype, self._first.shape[1:]):
            raise RuntimeError(
                f"batches of {self._first.dtype} {tuple(self._first.shape[1:])} and of {block.dtype} "
                f"{tuple(block.shape[1:])} cannot be put into one tensor"
            )
        self._rows += len(block)
        self._memory += block.view(-1).view(torch.uint8).numpy().data
        if self._path or len(self._memory) > MOST_BYTES:
            self._write()

    def _write(self) -> None:
        if not self._path:
            handle, self._path = tempfile.mkstemp(prefix="repairopt-rows-")
            os.close(handle)
        with open(self._path, "ab") as file:
            file.write(self._memory)
        self._memory = bytearray()

    def tensor(self) -> Tensor:
        """All rows, ``(N, ...)``; the spool is empty afterwards."""
        assert self._first is not None
        count, dtype = self._rows * self._first[:0].new_empty(self._first.shape[1:]).numel(), self._first.dtype
        if not self._path:
            found = torch.frombuffer(self._memory, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        else:
            path, self._path = self._path, ""
            try:
                found = torch.from_file(path, shared=True, size=count, dtype=dtype)
            finally:
                os.unlink(path)
        return found.view(self._rows, *self._first.shape[1:])

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
