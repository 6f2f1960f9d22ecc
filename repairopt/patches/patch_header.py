"""A patch as the tensors and the JSON header of a safetensors file, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from repairopt.errors import PatchError

from .changes import Change
from .claims import PatchInfo
from .differences import FORMS, Kind
from .fingerprints import Fingerprint, digest_tensor
from .low_rank import LowRank
from .tensor_bits import DTYPES, dtype_name
from .weights import Ties

FORMAT = 1
READ = {**FORMS, LowRank.form: LowRank}
Content = tuple[tuple[Change, ...], Fingerprint, Fingerprint, Ties, PatchInfo]  # fields of a patch, in order
HEADER, CONTENT = "repairopt_patch", "content_sha256"


def to_parts(content: Content) -> tuple[str, dict[str, Tensor]]:
    """The header as JSON text, and the tensors, named ``weight:part``."""
    changed_weights, base, repaired, ties, info = content
    tensors: dict[str, Tensor] = {}
    changes = []
    for change in changed_weights:
        parts, facts = change.difference.parts()
        tensors |= {f"{change.names[0]}:{part}": tensor for part, tensor in parts.items()}
        kind = change.difference.kind
        described: dict[str, Any] = {"dtype": dtype_name(kind.dtype), "shape": list(kind.shape)}
        described |= {"form": change.difference.form, "count": change.count, "largest": change.largest, "facts": facts}
        changes.append({"names": list(change.names), **described})
    changed = {name: digest for name, digest in repaired.tensors.items() if base.tensors[name] != digest}
    header = {
        "format": FORMAT,
        "base": {"total": base.total, "tensors": base.tensors},
        "repaired": {"total": repaired.total, "changed": changed},
        "ties": [list(group) for group in ties],
        "changes": changes,
        "info": info.to_dict(),
    }
    return json.dumps(header, allow_nan=False), tensors


def from_parts(text: str, tensors: Mapping[str, Tensor]) -> Content:
    """What ``to_parts`` was given; a PatchError for another format or a header that does not fit the tensors."""
    try:
        header = json.loads(text)
        if header["format"] != FORMAT:
            raise PatchError(f"is a patch of format {header['format']}; this version reads {FORMAT}. Update repairopt.")
        changes = tuple(_read_change(entry, tensors) for entry in header["changes"])
        base = Fingerprint(dict(header["base"]["tensors"]))
        repaired = base.with_tensors(header["repaired"]["changed"])
        totals = (header["base"]["total"], header["repaired"]["total"])
        ties = tuple(tuple(group) for group in header["ties"])
        info = PatchInfo(**header["info"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, PatchError):
            raise
        raise PatchError(f"has a malformed header ({error!r}). The file is damaged; get it again.") from error
    if (base.total, repaired.total) != totals:
        raise PatchError("has hashes of tensors that do not give the total. The file is damaged; get it again.")
    return changes, base, repaired, ties, info


def _read_change(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> Change:
    kind = Kind(DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"]))
    name = entry["names"][0]
    parts = {key.rpartition(":")[2]: tensor for key, tensor in tensors.items() if key.rpartition(":")[0] == name}
    difference = READ[entry["form"]].from_parts(kind, parts, entry["facts"])
    return Change(tuple(entry["names"]), difference, int(entry["count"]), entry["largest"])


def content_hash(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a header and tensors, whatever the order of the tensors in a file."""
    digest = hashlib.sha256(text.encode() + b"\0")
    digest.update(Fingerprint({name: digest_tensor(tensor) for name, tensor in tensors.items()}).total.encode())
    return digest.hexdigest()
