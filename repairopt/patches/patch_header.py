"""A patch as the tensors and the JSON header of a safetensors file, and back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from repairopt.errors import PatchError

from .changes import Change
from .claims import PatchInfo
from .differences import FORMS, Kind
from .fingerprints import Fingerprint, digest_tensor
from .low_rank import LowRank
from .safe_files import read_tensors
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


def read_checked(path: str | os.PathLike[str], header: str, expected_hash: str | None) -> tuple[str, dict[str, Tensor]]:
    """JSON text and tensors of a whole patch file whose content has its hash, and the one expected, if any."""
    tensors, texts = read_tensors(path)
    what = f"'{os.fspath(path)}'"
    if header not in texts:
        raise PatchError(f"{what}: is a safetensors file, but no patch of repairopt. load_weights reads weights.")
    found = content_hash(texts[header], tensors)
    if found != texts.get(CONTENT):
        raise PatchError(f"{what}: its content does not match its hash; it was changed or damaged. Get it again.")
    if expected_hash is not None and found != expected_hash:
        raise PatchError(f"{what}: has content hash {found}, expected {expected_hash}. It is another patch.")
    return texts[header], tensors


def origin_lines(base: Fingerprint, repaired: Fingerprint, content: str, info: PatchInfo) -> list[str]:
    """Hashes, origin and claims of a patch, for its text."""
    lines = [f"base      {base.total}", f"repaired  {repaired.total}", f"content   {content}"]
    lines += [f"spec      {info.spec_hash}"] if info.spec_hash else []
    lines += [f"created   {info.created}; solver {info.solver or 'not given'}; seed {info.seed}"]
    lines += [f"notes     {info.notes}"] if info.notes else []
    return lines + [f"claim     {claim}" for claim in info.claim_lines()]
