"""Audit log: what was done, in lines of JSON each of which holds the hash of the line before.

Whoever changes, removes, adds or moves a line breaks the chain at that line. Lines cut off at the end leave a chain
that is whole, and so does a log written anew from the start: keep the hash of the last line elsewhere, and give it to
:func:`verify_log`. Each line is an object with sorted keys: ``number`` from 0, ``time`` (UTC), ``event``, ``data``,
``previous`` (the hash of the line before, zeros at the start) and ``hash``, the SHA-256 of the line without it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

from repairopt.errors import AuditError, path_of, public

from .safe_files import sync_folder

START = "0" * 64
_HEAD = b'{"data":{'  # how every line starts
_FIELDS = {"number", "time", "event", "data", "previous", "hash"}


@dataclass(frozen=True)
class LogEnd:
    """The end of a chain: the number of lines, and the hash of the last one (zeros where there is none)."""

    count: int = 0
    hash: str = START


@public
class AuditLog:
    """Appends events to a file; several processes may append to the same one.

    A line that a killed process left unfinished is cut off when the log is next opened, and that is logged. A log whose
    chain is broken is not written to.

    Args:
        path: File of the log; made where it does not exist, its folder must.

    Attributes:
        end: The last line that this object has seen.

    Raises:
        AuditError: The chain in the file is broken, or its folder does not exist.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> log = AuditLog(f"{folder.name}/repair.jsonl")
        >>> end = log.append("started", seed=0)
        >>> verify_log(log.path, expected=end.hash).count
        1
        >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path_of(path, "audit log", written=True)
        if not self.path.parent.is_dir():
            raise AuditError(f"audit log '{self.path}': there is no folder '{self.path.parent}'. Make it before.")
        self.end, self._size = LogEnd(), 0
        new = not self.path.exists()
        with self._locked() as file:
            self._read_on(file)
        if new:
            sync_folder(self.path.parent)

    @public
    def append(self, event: str, /, **data: Any) -> LogEnd:
        """Write one line, to the disk; returns the new end of the chain.

        Args:
            event: What happened.
            **data: Anything that JSON knows; NaN and infinity become strings, tuples lists.

        Raises:
            AuditError: Data that JSON does not know; or another process broke the chain.
        """
        plain = _plain(event, data)
        with self._locked() as file:
            self._read_on(file)
            self._write(file, event, plain)
        return self.end

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """The open file, for this process alone where the system has such locks."""
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise AuditError(f"audit log '{self.path}': cannot be written to ({error}). Give another path.") from error
        with open(handle, "r+b") as file:
            try:
                import fcntl
            except ImportError:  # Windows: one process a log
                yield file
                return
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _read_on(self, file: IO[bytes]) -> None:
        """Check what came since the last time, and cut off an unfinished last line."""
        size = os.fstat(file.fileno()).st_size
        if size < self._size:
            raise AuditError(f"audit log '{self.path}': became shorter since it was opened. Do not edit it.")
        file.seek(self._size)
        added = file.read()
        whole, newline, rest = added.rpartition(b"\n")
        if newline:
            self.end = _follow(str(self.path), self.end, whole.split(b"\n"))
        self._size = size - len(rest)
        if rest:
            if rest[: len(_HEAD)] != _HEAD[: len(rest)]:
                raise AuditError(
                    f"audit log '{self.path}', line {self.end.count + 1}: is neither finished nor the start of an "
                    f"entry; this is no audit log. Give another path."
                )
            file.truncate(self._size)
            lost = {"bytes": len(rest), "sha256": hashlib.sha256(rest).hexdigest()}
            self._write(file, "an unfinished line was cut off", lost)

    def _write(self, file: IO[bytes], event: str, data: dict[str, Any]) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"number": self.end.count, "time": time, "event": event, "data": data, "previous": self.end.hash}
        entry["hash"] = _hash(entry)
        line = _text(entry) + b"\n"
        file.seek(self._size)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        self._size += len(line)
        self.end = LogEnd(self.end.count + 1, str(entry["hash"]))


@public
def verify_log(path: str | os.PathLike[str], *, expected: str | None = None) -> LogEnd:
    """Check the chain of an audit log, which is only read; returns its end.

    ``expected`` is the hash of a line that must be there, such as the last one known.

    Raises:
        AuditError: There is no such file; a line is unfinished, malformed, changed, removed, added or moved, with its
            number counted from 1; or no line has the expected hash.
    """
    path = path_of(path, "audit log")
    what = os.fspath(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise AuditError(f"audit log '{what}': cannot be read ({error}).") from error
    if lines.pop():
        raise AuditError(
            f"audit log '{what}', line {len(lines) + 1}: is unfinished; the writing process was killed, or the file "
            f"was cut. AuditLog cuts it off and says so in the log."
        )
    end = _follow(str(what), LogEnd(), lines)
    if expected is not None and not any(json.loads(line)["hash"] == expected for line in lines):
        raise AuditError(
            f"audit log '{what}': no line has the hash {expected}. Lines were cut off at the end, or the log was "
            f"written anew."
        )
    return end


def _follow(what: str, end: LogEnd, lines: list[bytes]) -> LogEnd:
    """The end of the chain after some lines; an AuditError names the first that does not fit the one before it."""
    for line in lines:
        where = f"audit log '{what}', line {end.count + 1}"
        try:
            entry = json.loads(line)
            text = _text(entry)
        except (ValueError, TypeError, RecursionError) as error:
            raise AuditError(f"{where}: is not JSON ({error}). The log was damaged or edited.") from error
        if not isinstance(entry, dict) or set(entry) != _FIELDS:
            raise AuditError(f"{where}: is no entry of an audit log; expected an object with {sorted(_FIELDS)}.")
        if (entry["number"], entry["previous"]) != (end.count, end.hash):
            raise AuditError(f"{where}: does not follow the line before. Lines were removed, added, moved or changed.")
        stated = entry.pop("hash")
        if stated != _hash(entry) or text != line:
            raise AuditError(f"{where}: does not have the hash of its content. The line was changed.")
        end = LogEnd(end.count + 1, stated)
    return end


def _text(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(entry)).hexdigest()


def _plain(event: str, data: Mapping[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in data.items():
        try:
            plain[key] = json.loads(json.dumps(_finite(value), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise AuditError(
                f"audit event '{event}': '{key}' is not JSON ({error}). Use numbers, strings, lists, dicts, True, "
                f"False, None; of a tensor log its hash or shape."
            ) from error
    return plain


def _finite(value: Any) -> Any:
    if getattr(value, "ndim", 1) == 0:  # a number of NumPy or torch
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
