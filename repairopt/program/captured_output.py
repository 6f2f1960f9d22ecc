"""Keep what a native library prints: it writes to the process's own file descriptors, past Python's ``sys.stdout``."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LOCK = threading.RLock()  # the file descriptors belong to the whole process
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
    with _LOCK, tempfile.TemporaryFile() as file:
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


@contextlib.contextmanager
def without_noise(descriptor: int, noise: Sequence[str], *, wanted: bool = True) -> Iterator[None]:
    """Leave out lines that begin so, of what native code prints to file descriptor 1 or 2 within the block.

    For libraries that print them whatever their options say. Other lines are printed when the block ends.
    """
    if not wanted:
        yield
        return
    beginnings = tuple(one.encode() for one in noise)
    with _LOCK, tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
        stream = sys.stdout if descriptor == 1 else sys.stderr
        stream.flush()
        with contextlib.suppress(OSError):  # a process without such output
            copy = os.dup(descriptor)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, descriptor)
            os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            stream.flush()
            stack.close()
            file.seek(0)
            for line in file:
                if not line.startswith(beginnings):
                    with contextlib.suppress(OSError):
                        os.write(descriptor, line)


def _shortened(text: str) -> str:
    if len(text) <= LARGEST_LOG:
        return text
    half = LARGEST_LOG // 2
    return f"{text[:half]}\n... {len(text) - LARGEST_LOG:,} characters left out ...\n{text[-half:]}"
