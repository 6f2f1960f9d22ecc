"""Patch: a repair as a file that can be reviewed, shipped, applied to a model and reverted, exactly.

A patch knows the SHA-256 of the weights that it was made for and of those that it leads to. It refuses other weights
and names the tensors that differ; what it wrote is hashed again and compared. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from repairopt.errors import PatchError, WrongBaseError, public, visible

from .claims import PatchInfo, hash_spec, library_versions
from .differences import FORMS, Change, Kind, check_is_base, compare
from .low_rank import LowRank
from .safe_files import read_tensors, write_tensors
from .tensor_bits import DTYPES, Bits, dtype_name, from_bits, to_bits
from .weights import (
    Fingerprint,
    Ties,
    Weights,
    digest_bits,
    digest_tensor,
    fill_ties,
    fingerprint,
    listed,
    state_of,
    written_copy,
)

FORMAT = 1
READ = {**FORMS, LowRank.form: LowRank}
Content = tuple[tuple[Change, ...], Fingerprint, Fingerprint, Ties, PatchInfo]  # fields of a patch, in order
HEADER, CONTENT = "repairopt_patch", "content_sha256"


@dataclass(frozen=True, eq=False)
class Patch:
    """The difference between two sets of weights, with what is known about it. ``print`` it to review it.

    Attributes:
        changes: One for each weight that changes.
        base: SHA-256 of the weights that it applies to.
        repaired: SHA-256 of the weights that it leads to.
        ties: Names of tied weights of the base.
        info: Solver, seed, hash of the specification, claims, notes, versions, date.

    Example:
        >>> import torch
        >>> base = {"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
        >>> patch = Patch.between(base, {"weight": torch.tensor([[1.0, 2.5], [3.0, 4.0]])}, notes="by hand")
        >>> print(patch.changes[0])
        weight  float32 (2, 2)  1 of 4 entries, largest change 0.5; sparse, 12 bytes
        >>> patch.apply_to_state_dict(base)["weight"]
        tensor([[1.0000, 2.5000],
                [3.0000, 4.0000]])
    """

    changes: tuple[Change, ...]
    base: Fingerprint
    repaired: Fingerprint
    ties: Ties = ()
    info: PatchInfo = field(default_factory=PatchInfo)

    @classmethod
    @public
    def between(
        cls, base: Weights, repaired: Weights, *, form: str | Mapping[str, str] = "auto", spec: Any = None, **info: Any
    ) -> Patch:
        """The patch that leads from some weights to others.

        Args:
            base: A module or state dict; neither is modified or kept.
            repaired: The same with other values. Parameters and persistent buffers are compared.
            form: ``"sparse"``, ``"dense"``, ``"auto"`` (the smaller), or these by name of the weight.
            spec: What the repair was for; its SHA-256 is kept. See :func:`repairopt.patches.hash_spec`.
            **info: Fields of :class:`PatchInfo`.

        Raises:
            PatchError: The two differ in names, types, shapes or ties; a form that a tensor cannot have.
            ModelError: No weights.
        """
        return cls(*compare(base, repaired, form), patch_info(spec, info))

    @classmethod
    @public
    def from_repair(cls, repair: Any, base_model: nn.Module, *, spec: Any = None, **info: Any) -> Patch:
        """The patch of a repair.

        Args:
            repair: What :func:`repairopt.solve_repair` returned: its ``model``, ``delta`` and ``report.patch_info()``.
            base_model: The model that was given to it.
            spec: What the repair was for; its SHA-256 is kept.
            **info: Fields of :class:`PatchInfo`, and ``form``; by default from the report.

        Raises:
            WrongBaseError: ``base_model`` is not the model that was repaired.
            PatchError: ``repair`` is no repair.
        """
        if not all(hasattr(repair, part) for part in ("model", "delta", "report")):
            raise PatchError(f"repair: got a {type(repair).__name__}; expected a repair. Pass (repair, base_model).")
        found = compare(base_model, repair.model, info.pop("form", "auto"))
        check_is_base(found[0], base_model, repair.model, repair.delta)
        return cls(*found, patch_info(spec, {**repair.report.patch_info(), **info}))

    @cached_property
    def _parts(self) -> tuple[str, dict[str, Tensor]]:
        return to_parts((self.changes, self.base, self.repaired, self.ties, self.info))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of everything in the patch. Keep it elsewhere: it tells a patch from one that was made to look so."""
        return content_hash(*self._parts)

    @public
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the patch as a safetensors file, which is there whole or not at all; its folder must exist."""
        text, tensors = self._parts
        write_tensors(path, tensors, {HEADER: text, CONTENT: self.content_hash})

    @classmethod
    @public
    def load(cls, path: str | os.PathLike[str], *, expected_hash: str | None = None) -> Patch:
        """Read a patch. Nothing in the file is executed.

        Args:
            path: File that ``save`` wrote.
            expected_hash: The :attr:`content_hash` that it must have, from where you trust. Without it damage and
                careless edits are found, but not an edit that updates the hash in the file as well.

        Raises:
            PatchError: Another kind of file, cut short, changed, of another format, or with another content hash.
        """
        parts = read_checked(path, HEADER, expected_hash)
        try:
            return cls(*from_parts(*parts))
        except PatchError as error:
            raise PatchError(f"'{os.fspath(path)}': {error}") from error

    @public
    def apply(self, model: nn.Module) -> nn.Module:
        """A repaired copy of a model, whose weights are those of the repair to the bit; checked by their hash.

        Raises:
            WrongBaseError: The model has other weights than the base; the message names the tensors.
            PatchError: The copy does not have the hash of the repair.
        """
        return self._moved_copy(model, back=False)

    @public
    def revert(self, model: nn.Module) -> nn.Module:
        """A copy of a patched model with the weights from before; as :meth:`apply`, the other way."""
        return self._moved_copy(model, back=True)

    @public
    def apply_to_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The repaired state dict: a new dict with the same keys in the same order.

        Weights that do not change are the same tensors, those that change are new ones on the device of the old. Of
        tied weights one name is enough.

        Raises:
            WrongBaseError: The weights are others than the base; the message names the tensors.
            PatchError: The result does not have the hash of the repair.
        """
        return self._moved_state(state, back=False)

    @public
    def revert_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict from before; as :meth:`apply_to_state_dict`, the other way."""
        return self._moved_state(state, back=True)

    def _moved_copy(self, model: nn.Module, back: bool) -> nn.Module:
        if not isinstance(model, nn.Module):
            raise PatchError(
                f"model: expected a torch.nn.Module, got {type(model).__name__}. For weights alone use "
                f"apply_to_state_dict or revert_state_dict."
            )
        what = f"model {type(model).__name__}: the copy is not what the patch promises"
        return written_copy(model, self._new_bits(state_of(model), back), self.base if back else self.repaired, what)

    def _moved_state(self, state: Mapping[str, Tensor], back: bool) -> dict[str, Tensor]:
        present = state_of(state, "state dict")
        new = self._new_bits(fill_ties(present, self.ties), back)
        made: dict[str, Tensor] = {}
        for change in self.changes:
            kind = change.difference.kind
            device = next(present[name].device for name in change.names if name in present)
            tensor = from_bits(new[change.names[0]], kind.dtype, kind.shape).to(device)
            made |= dict.fromkeys(change.names, tensor)
        return {name: made.get(name, value) for name, value in state.items()}

    def _new_bits(self, state: Mapping[str, Tensor], back: bool) -> dict[str, Bits]:
        """For each weight that changes its new bits, checked before and after."""
        self.check_base(state, back)
        new: dict[str, Bits] = {}
        for change in self.changes:
            new |= dict.fromkeys(change.names, change.difference.move(to_bits(state[change.names[0]]), back))
        wanted = (self.base if back else self.repaired).tensors
        for change in self.changes:
            kind = change.difference.kind
            digest = digest_bits(new[change.names[0]], dtype_name(kind.dtype), kind.shape)
            if any(digest != wanted[name] for name in change.names):
                raise PatchError(
                    f"weight '{change.names[0]}': the result is not what the patch promises. Either the patch is "
                    f"damaged, or this process flushes subnormal numbers: call torch.set_flush_denormal(False) first."
                )
        return new

    def check_base(self, weights: Weights, back: bool = False) -> None:
        """Check that weights are the base, ``back`` the repaired ones; a WrongBaseError names tensors that are not."""
        found = fingerprint(fill_ties(state_of(weights), self.ties))
        wanted, other = (self.repaired, self.base) if back else (self.base, self.repaired)
        if found == wanted:
            return
        if found == other:
            state = "is not applied to these weights" if back else "is applied to these weights already"
            raise WrongBaseError(f"the patch {state}; there is nothing to do.")
        goal = "the weights that it led to" if back else "the weights that it was made for"
        raise WrongBaseError(
            f"the patch does not fit: these are not {goal} (SHA-256 {found.total[:12]}, expected "
            f"{wanted.total[:12]}); {wanted.differences(found)}. Load the right weights, or make a patch for these."
        )

    def misstated(self, base: Weights, repaired: Weights) -> list[str]:
        """In words, what the header says of the change between two sets of weights that is not so."""
        forms = {change.names[0]: change.difference.form for change in self.changes}
        own = compare(base, repaired, {name: form if form in FORMS else "auto" for name, form in forms.items()})
        stated, found = (json.loads(to_parts((*parts, PatchInfo()))[0]) for parts in (self._compared, own))
        wrong = [
            f"states other {key} than recomputed" for key in ("base", "repaired", "ties") if stated[key] != found[key]
        ]
        said, true = ({tuple(one["names"]): one for one in each["changes"]} for each in (stated, found))
        if said.keys() != true.keys():
            return [
                *wrong,
                f"states changes of {listed([n for n, *_ in said])}, recomputed {listed([n for n, *_ in true])}",
            ]
        for names, one in true.items():
            keys = one if forms[names[0]] in FORMS else ("names", "dtype", "shape", "count", "largest")
            off = [
                f"{key} {said[names][key]!r}, recomputed {one[key]!r}" for key in keys if said[names][key] != one[key]
            ]
            wrong += [f"weight '{names[0]}': states {'; '.join(off)}"] if off else []
        return wrong

    @property
    def _compared(self) -> tuple[tuple[Change, ...], Fingerprint, Fingerprint, Ties]:
        return self.changes, self.base, self.repaired, self.ties

    def __str__(self) -> str:
        lines = [f"patch of {sum(c.count for c in self.changes)} entries in {len(self.changes)} weights"]
        lines += [f"  {change}" for change in self.changes]
        return visible("\n".join(lines + origin_lines(self.base, self.repaired, self.content_hash, self.info)))


def patch_info(spec: Any, info: dict[str, Any]) -> PatchInfo:
    """What is known of a patch, from keywords; the hash of what it was made for is taken here."""
    if unknown := set(info) - set(PatchInfo.__dataclass_fields__):
        known = ", ".join(PatchInfo.__dataclass_fields__)
        raise PatchError(
            f"a patch has no field {', '.join(sorted(unknown))}; choose of {known}, or put it into claims."
        )
    if spec is not None:
        if info.get("spec_hash"):
            raise PatchError("spec and spec_hash were both given; give one of them.")
        info = {**info, "spec_hash": hash_spec(spec)}
    return PatchInfo(**{"versions": library_versions(), **info})


def to_parts(content: Content) -> tuple[str, dict[str, Tensor]]:
    """The header as JSON text, and the tensors, named ``weight:part``."""
    changed_weights, base, repaired, ties, info = content
    tensors: dict[str, Tensor] = {}
    changes = []
    for change in changed_weights:
        kind, (parts, facts) = change.difference.kind, change.difference.parts()
        tensors |= {f"{change.names[0]}:{part}": tensor for part, tensor in parts.items()}
        described = {"names": list(change.names), "dtype": dtype_name(kind.dtype), "shape": list(kind.shape)}
        figures = {"form": change.difference.form, "count": change.count, "largest": change.largest, "facts": facts}
        changes.append(described | figures)
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


def merged_state_dict(weights: Weights, patch: Patch) -> dict[str, Tensor]:
    """The weights of the base with a patch applied: contiguous, on the CPU, sharing no memory, ties included."""
    state = dict(weights) if isinstance(weights, Mapping) else state_of(weights)
    return _standalone(patch.apply_to_state_dict(state))


def _standalone(weights: Weights) -> dict[str, Tensor]:
    state = state_of(weights, "weights")
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


@public
def save_weights(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write or replace a safetensors file of weights, whole or not at all; tied weights under each name."""
    state = _standalone(weights)
    write_tensors(path, state, {"format": "pt", "repairopt_weights_sha256": fingerprint(state).total})


@public
def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a safetensors file, on the CPU; a PatchError for a pickle, a patch, or changed weights."""
    tensors, texts = read_tensors(path)
    if HEADER in texts:
        raise PatchError(f"'{os.fspath(path)}': is a patch, not weights. Patch.load reads it.")
    expected = texts.get("repairopt_weights_sha256")
    if expected is not None and fingerprint(tensors).total != expected:
        raise PatchError(f"'{os.fspath(path)}': its weights do not match their hash; they were changed. Get it again.")
    return tensors
