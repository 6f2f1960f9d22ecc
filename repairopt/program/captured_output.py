"""Keep what a native library prints: it writes to the process's own file descriptors, past Python's ``sys.stdout``."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST_LOG = 1_000_000  # characters that are kept; of longer logs the beginning and the end


_ONE_AT_A_TIME = threading.RLock()  # two threads that redirect at once would put back each other's descriptors


@dataclass
class NativeOutput:
    """What was printed; filled when the block ends."""

    text: str = ""


@contextlib.contextmanager
def native_output(*, wanted: bool, echo: bool = True) -> Iterator[NativeOutput]:
    """Take what native code prints within the block, where ``wanted``, and print it through ``sys.stdout`` afterwards.

    So it appears in notebooks too, which never see the process's own output. Not while other threads print: the file
    descriptors belong to the whole process.
    """
    found = NativeOutput()
    if not wanted:
        yield found
        return
    with _ONE_AT_A_TIME:
        yield from _redirected(found, echo)


def _redirected(found: NativeOutput, echo: bool) -> Iterator[NativeOutput]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved: list[tuple[int, int]] = []
    with tempfile.TemporaryFile() as file:
        try:
            for descriptor in (1, 2):
                with contextlib.suppress(OSError):  # a process without standard output
                    saved.append((descriptor, os.dup(descriptor)))
                    os.dup2(file.fileno(), descriptor)
            yield found
        finally:
            sys.stdout.flush()
            for descriptor, copy in saved:
                os.dup2(copy, descriptor)
                os.close(copy)
            file.seek(0)
            found.text = _shortened(file.read().decode("utf-8", errors="replace"))
            if echo:
                sys.stdout.write(found.text)
                sys.stdout.flush()


def _shortened(text: str) -> str:
    if len(text) <= LARGEST_LOG:
        return text
    half = LARGEST_LOG // 2
    return f"{text[:half]}\n... {len(text) - LARGEST_LOG:,} characters left out ...\n{text[-half:]}"
