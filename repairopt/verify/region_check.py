"""Proofs of regions as files, and their check on the deployed torch network."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import PatchError, ProofError, path_of, public
from repairopt.network import shadow
from repairopt.patches import fingerprint, read_tensors, write_tensors
from repairopt.program import Array, OutputRows, ProofVerdict, RegionProof, check_proof

from .numpy_copy import execution_of, layered_copy

HEADER, CONTENT = "repairopt_proof", "repairopt_proof_sha256"
FORMAT, WITH_MORE = 1, 2  # formats of proofs of boxes alone, and of proofs with convex hulls or slopes
PARTS = ("lower", "upper", "leaf_lower", "leaf_upper", "leaf_box", "matrix", "offset", "group", "rows")
MORE = ("vertices", "hull", "leaf_slopes")


@public
def check_deployed(
    network: nn.Module,
    proof: RegionProof,
    *,
    samples: int = 1_000_000,
    time_limit: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProofVerdict:
    """Check a proof against a deployed network, whose own runs decide what is a violation.

    Args:
        network: The network as deployed, in float32 or float64; not changed.
        proof: What is claimed of it.
        samples: Points, spread over the boxes, at which the network is run.
        time_limit: Seconds of processor time for bounds; None for none.
        seed: Of the points.
        progress: Called with the leaves that are done and their number.

    Raises:
        ProofError: The proof is of other weights or of another precision, or its leaves do not tile its boxes.
        UnsupportedError: The network has an operation that the check does not know.
    """
    if proof.execution not in (execution_of(network), "exact"):
        raise ProofError(
            f"proof of a region: it is of runs in {proof.execution}, the network is run in {execution_of(network)}."
        )
    copy, run = layered_copy(network, proof.shape), runner_of(network, proof.shape)
    return check_proof(copy, proof, samples=samples, run=run, time_limit=time_limit, seed=seed, progress=progress)


def runner_of(network: nn.Module, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """The network as a function from arrays ``(N, d)`` to arrays ``(N, k)``, run in its own precision."""
    runner, dtype = shadow(network), getattr(torch, execution_of(network))

    def run(points: Array) -> Array:
        with torch.no_grad():
            return runner(torch.from_numpy(points).to(dtype).unflatten(1, shape)).numpy()

    return run


@public
def save_proof(proof: RegionProof, path: str | os.PathLike[str]) -> str:
    """Write or replace a proof as a safetensors file, whole or not at all; the SHA-256 of its content."""
    sizes = [len(rows.offset) for rows in proof.rows]
    arrays = {name: getattr(proof, name) for name in PARTS[:5]}
    arrays |= {name: np.concatenate([getattr(rows, name) for rows in proof.rows]) for name in PARTS[5:8]}
    arrays["rows"] = np.array(sizes, dtype=np.int64)
    arrays |= {name: getattr(proof, name) for name in MORE if getattr(proof, name) is not None}
    if proof.hull is not None:
        arrays["hull"] = proof.hull.astype(np.int64)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    facts = {"fingerprint": proof.fingerprint, "execution": proof.execution, "shape": list(proof.shape)}
    number = FORMAT if set(arrays) == set(PARTS) else WITH_MORE
    text = json.dumps({"format": number, **facts}, sort_keys=True)
    content = _digest(text, tensors)
    write_tensors(path, tensors, {HEADER: text, CONTENT: content})
    return content


@public
def load_proof(path: str | os.PathLike[str], *, expected_hash: str | None = None) -> RegionProof:
    """Read a proof; a ProofError for a damaged or changed file, or one whose content has another hash than expected."""
    path = path_of(path, "proof")
    what = f"'{path}'"
    try:
        tensors, texts = read_tensors(path)
    except PatchError as error:
        raise ProofError(str(error)) from error
    text = texts.get(HEADER)
    if text is None:
        raise ProofError(f"{what}: is a safetensors file, but no proof of repairopt.")
    found = _digest(text, tensors)
    if found != texts.get(CONTENT) or expected_hash not in (None, found):
        raise ProofError(f"{what}: its content has another hash than is stated; it was changed or damaged.")
    try:
        return _proof_of(json.loads(text), tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ProofError):
            raise ProofError(f"{what}: {error}") from error
        raise ProofError(f"{what}: is malformed ({error!r}); it was changed or damaged.") from error


def _proof_of(facts: dict[str, Any], tensors: dict[str, Tensor]) -> RegionProof:
    more = set(tensors) - set(PARTS)
    known: set[str] | None = {FORMAT: set(), WITH_MORE: set(MORE)}.get(facts["format"])
    if known is None or not set(PARTS) <= set(tensors) or not more <= known:
        raise ProofError(
            f"is of format {facts['format']} with {sorted(tensors)}; this version reads {FORMAT} and {WITH_MORE}."
        )
    arrays = {name: tensors[name].numpy() for name in tensors}
    ends = np.cumsum(arrays["rows"])
    if ends[-1:] != len(arrays["offset"]) or (arrays["rows"] < 1).any():
        raise ProofError("has rows that do not belong to its boxes.")
    pieces = [np.split(arrays[name], ends[:-1]) for name in PARTS[5:8]]
    rows = tuple(OutputRows(*one) for one in zip(*pieces, strict=True))
    shape = tuple(int(size) for size in facts["shape"])
    said: dict[str, Any] = {"fingerprint": str(facts["fingerprint"]), "execution": str(facts["execution"])}
    said |= {name: arrays[name] for name in (*PARTS[:5], *MORE) if name in arrays}
    return RegionProof(rows=rows, shape=shape, **said)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(text.encode() + b"\0" + fingerprint(tensors).total.encode()).hexdigest()
