"""Read and write safetensors files, whole or not at all; never pickles, which run code when they are loaded.

Archives that would unpack to far more than they hold are refused before anything is unpacked.
"""

from __future__ import annotations

import gzip
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from repairopt.errors import PatchError, path_of, require_extra

UNPACKED = 2**26  # bytes that any archive may unpack to
RATIO = 100  # times its own size that a larger one may unpack to; deflate reaches 1,000 on zeros


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a whole safetensors file by name, on the CPU, and the texts of its header."""
    from safetensors import SafetensorError, safe_open

    path = path_of(path, "file of tensors")
    if not path.is_file():
        what = "is a folder; expected a safetensors file." if path.is_dir() else "no such file."
        raise PatchError(f"'{path}': {what}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise PatchError(f"'{os.fspath(path)}': {_what_it_is(path)} ({error}). Nothing was loaded.") from error


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    kind = ""
    if start.startswith(b"PK\x03\x04"):
        kind = "is a zip archive such as torch.save writes, whose pickle"
    elif start[:1] == b"\x80" and start[1:2] in b"\x01\x02\x03\x04\x05":
        kind = "is a pickle, which"
    if kind:
        return (
            f"{kind} can run any code when it is loaded; expected safetensors. Convert it where you trust it, by "
            f"repairopt.patches.save_weights"
        )
    return "is not a whole safetensors file; it was cut short, damaged, or is of another kind. Get it again"


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arrays of an ``.npz`` file by name; pickles and archives that unpack to far more than they hold are refused.

    Raises:
        PatchError: The archive is too large unpacked.
        OSError, ValueError: As of ``numpy.load``.
    """
    check_archive(path)
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
    except (MemoryError, zipfile.BadZipFile, zlib.error, EOFError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"no whole archive of arrays: {error or type(error).__name__}") from error
    for key, value in found.items():
        if not isinstance(value, np.ndarray):
            raise ValueError(f"no whole archive of arrays: '{key}' in it is no array")
    return found


def check_archive(path: str | os.PathLike[str]) -> None:
    """Raise a PatchError for a zip, gzip or Parquet file that unpacks to over 64 MiB and over 100 times its size."""
    most = max(UNPACKED, RATIO * Path(path).stat().st_size)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
    elif Path(path).suffix == ".gz":
        size = 0
        with gzip.open(path) as stream:
            while size <= most and (block := stream.read(2**20)):
                size += len(block)
    elif Path(path).suffix == ".parquet":
        size = _size_of_table(path)
    else:
        return
    if size > most:
        raise PatchError(
            f"'{os.fspath(path)}': unpacks to more than {RATIO} times its size, {most:,} bytes or more. Where that is "
            f"right, store it without compression, such as by numpy.savez."
        )


def _size_of_table(path: str | os.PathLike[str]) -> int:
    """Bytes of a Parquet file as a table of numbers of 8 bytes, which the file may say in a few."""
    require_extra("tables", f"reading '{Path(path).name}'", "pyarrow")
    from pyarrow.parquet import read_metadata

    said = read_metadata(path)
    return int(8 * said.num_rows * said.num_columns)


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write or replace a safetensors file of contiguous CPU tensors that share no memory, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole_file(path) as unfinished:
        try:
            save_file(dict(tensors), unfinished, dict(texts))
        except SafetensorError as error:  # the disk is full
            raise OSError(str(error)) from error


def place_of(path: str | os.PathLike[str]) -> Path:
    """Where a file is written: what a link points to. Devices and pipes are refused, and folders that are not there.

    Raises:
        PatchError: Nothing can be written there.
    """
    target = path_of(path, "file to write", written=True)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise PatchError(
            f"'{os.fspath(path)}': is a device or a pipe, and files are written whole or not at all. Give the path of "
            f"a file."
        )
    target = target.resolve() if target.is_symlink() else target
    if not target.parent.is_dir():
        raise PatchError(f"'{os.fspath(path)}': there is no folder '{target.parent}'. Make it before.")
    return target


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` after the block, and is removed after an exception."""
    target = place_of(path)
    unfinished = target.parent / f".{target.name}.{secrets.token_hex(4)}.unfinished"
    try:
        handle = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(handle).st_mode & 0o777  # what the user's mask leaves; safetensors would give 0600
        os.close(handle)
        yield unfinished
        unfinished.chmod(mode)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, target)
        sync_folder(target.parent)
    except OSError as error:
        raise PatchError(
            f"'{target}': cannot be written ({error.strerror or error}). Nothing was replaced; free the disk or the "
            f"folder's permissions, or give another path."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
