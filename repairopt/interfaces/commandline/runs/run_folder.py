"""The folder of a run: what is in it is whole, whenever the process is killed.

While a run goes on there are ``audit.jsonl`` and, from the first better point on, ``checkpoint.safetensors``. At the
end come ``patch.safetensors``, for regions ``proof.safetensors``, ``report.html`` and, last, ``result.json``: a folder
without it is an unfinished run, which ``--resume`` continues. Each file but the log takes its place in one step; the
log is cut to its last whole line. One process at a time works in a folder: it holds the lock of the file ``.lock``,
which the system frees at its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from repairopt.errors import PatchError, ResultError
from repairopt.patches import read_tensors, whole_file, write_tensors

PATCH, RESULT, REPORT, AUDIT = "patch.safetensors", "result.json", "report.html", "audit.jsonl"
CHECKPOINT, EVIDENCE, LOCK, SIGNATURE = "checkpoint.safetensors", "evidence.npz", ".lock", "result.json.sig"
STATE, PROOF = "repairopt_checkpoint", "proof.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def finished(self) -> bool:
        """Whether a run has ended here."""
        return (self.path / RESULT).exists()

    @property
    def started(self) -> bool:
        """Whether anything of a run is here."""
        return any((self.path / name).exists() for name in (PATCH, RESULT, AUDIT, CHECKPOINT))

    @contextmanager
    def working(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Work in the folder, alone: make it, or continue or throw away what is in it; else a ResultError."""
        try:
            if self.path.exists() and not self.path.is_dir():
                raise ResultError(f"'{self.path}' is a file; expected the name of a folder. Give another --out.")
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / LOCK, timeout=0):
                self._begin(resume, overwrite)
                yield
        except KeyboardInterrupt as stop:
            stop.add_note(f"The same command with --resume continues what '{self.path}' holds.")
            raise
        except Timeout:
            raise ResultError(
                f"'{self.path}': another process is at work in it. Wait for its end, or give another --out."
            ) from None
        except OSError as error:
            raise ResultError(
                f"'{self.path}': cannot be written to ({error.strerror or error}). Give another --out."
            ) from error

    def _begin(self, resume: bool, overwrite: bool) -> None:
        if self.started and overwrite:
            for name in (RESULT, CHECKPOINT, PATCH, PROOF, REPORT, AUDIT, EVIDENCE, SIGNATURE):
                (self.path / name).unlink(missing_ok=True)
        elif self.started and not resume:
            what = "the result of an earlier run" if self.finished else "an unfinished run"
            use = "--overwrite to replace it" if self.finished else "--resume to continue it, --overwrite to begin anew"
            raise ResultError(f"'{self.path}' holds {what}. Use {use}, or another --out.")
        for left in self.path.glob(".*.unfinished"):
            left.unlink(missing_ok=True)

    def save_checkpoint(self, change: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep the best change so far by parameter, and what it belongs to: hashes of spec and weights, the seed."""
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in change.items()}
        write_tensors(self.path / CHECKPOINT, tensors, {STATE: json.dumps(dict(state), sort_keys=True)})

    def load_checkpoint(self, state: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Best change of an unfinished run by parameter, or None; a ResultError where ``state`` is another."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            tensors, texts = read_tensors(path)
            found = json.loads(texts[STATE])
        except (PatchError, KeyError, ValueError) as error:
            raise ResultError(f"'{path}': is no checkpoint ({error}). Use --overwrite to begin anew.") from error
        self.check_state(found if isinstance(found, dict) else {}, state, CHECKPOINT)
        return tensors

    def check_state(self, found: Mapping[str, Any], state: Mapping[str, Any], name: str) -> None:
        """A ResultError where a file of the folder was made from another spec, weights, data or seed."""
        if other := [key for key in state if found.get(key) != state[key]]:
            raise ResultError(
                f"'{self.path / name}': was made with another {' and '.join(other)}. Use --overwrite to begin anew, or "
                f"another --out."
            )

    def write_result(self, text: str) -> None:
        """Write ``result.json``, which ends the run."""
        with whole_file(self.path / RESULT) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        (self.path / CHECKPOINT).unlink(missing_ok=True)


def read_result(path: str | os.PathLike[str]) -> tuple[Any, bytes]:
    """A ``result.json`` as a ``SolveResult``, and its bytes; a ResultError where it is not what solve wrote."""
    from pydantic import ValidationError

    from .results import SolveResult

    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ResultError(
            f"'{path}': cannot be read ({error.strerror}). Did the run end? `solve --resume` ends it."
        ) from error
    try:
        return SolveResult.model_validate_json(raw), raw
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ResultError(
            f"'{path}': is not what solve writes ({where}: {first['msg']}). It was changed or damaged."
        ) from None
