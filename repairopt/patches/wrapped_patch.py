"""Wrapped patches: a network around the original one as a file; tensors and a registered kind, no code.

The kinds are entry points of the group ``repairopt.wrappers``. Each is a function of a network, plain settings and
tensors that returns a module with the network as its attribute ``network``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import Tensor, nn

from repairopt.errors import PatchError, WrongBaseError

from .claims import PatchInfo
from .fingerprints import Fingerprint, fingerprint
from .patch import Patch, patch_info
from .patch_header import CONTENT, HEADER, content_hash
from .safe_files import read_tensors, write_tensors
from .weights import copy_model

WRAPPED_HEADER, FORMAT = "repairopt_wrapped", 1
GROUP = "repairopt.wrappers"


def wrap(kind: str, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module of a registered kind around a network.

    Args:
        kind: Name of the entry point.
        network: Becomes a part of the module; it is not copied.
        settings: Plain values.
        tensors: By name.

    Returns:
        The module, in the mode of the network.

    Raises:
        PatchError: No such kind, or settings and tensors that do not fit it.
    """
    known = _kinds()
    if kind not in known:
        raise PatchError(
            f"wrapper kind {kind!r} is not registered; known are {', '.join(sorted(known)) or 'none'}. Install the "
            f"package that made the patch, with its entry point in the group '{GROUP}'."
        )
    try:
        made: nn.Module = known[kind].load()(network, dict(settings), dict(tensors))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PatchError(f"wrapper kind {kind!r}: its settings or tensors do not fit the model ({error}).") from error
    own = set(network.modules())
    for module in made.modules():
        if module not in own:
            module.training = network.training
    return made


@cache
def _kinds() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


@dataclass(frozen=True, eq=False)
class WrappedPatch:
    """A wrapper as a file: what it adds, the kind that puts it around a network, and the network that it is for.

    Attributes:
        kind: Name of the wrapper.
        settings: Plain values of the wrapper.
        tensors: What it adds, by name.
        base: SHA-256 of the weights of the network that it goes around.
        repaired: SHA-256 of the weights of the module that comes of it.
        info: Solver, seed, claims, notes, versions, date.
    """

    kind: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    base: Fingerprint
    repaired: Fingerprint
    info: PatchInfo = field(default_factory=PatchInfo)

    @classmethod
    def around(
        cls,
        model: nn.Module,
        kind: str,
        settings: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        spec: Any = None,
        **info: Any,
    ) -> WrappedPatch:
        """The patch that puts a wrapper around a model; the arguments are those of :class:`Patch` and :func:`wrap`."""
        held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        made = wrap(kind, copy_model(model), settings, held)
        return cls(kind, dict(settings), held, fingerprint(model), fingerprint(made), patch_info(spec, info))

    @cached_property
    def _header(self) -> str:
        header = {
            "format": FORMAT,
            "kind": self.kind,
            "settings": dict(self.settings),
            "base": self.base.tensors,
            "repaired": self.repaired.tensors,
            "info": self.info.to_dict(),
        }
        return json.dumps(header, allow_nan=False)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of everything in the patch."""
        return content_hash(self._header, dict(self.tensors))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, which is there whole or not at all.

        Raises:
            PatchError: The folder does not exist.
        """
        write_tensors(path, self.tensors, {WRAPPED_HEADER: self._header, CONTENT: self.content_hash})

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the model inside of the wrapper.

        Raises:
            WrongBaseError: The model has other weights; the message names the tensors.
            PatchError: The kind is not registered, does not fit the model, or makes something else of it than when the
                patch was made.
        """
        self.check_base(model)
        return self.around_weights(model, self.repaired)

    def around_weights(self, model: nn.Module, wanted: Fingerprint | None = None) -> nn.Module:
        """A copy of a model inside of the wrapper, whatever its weights: to be filled with others.

        Args:
            model: Not modified.
            wanted: What the result must be, or None.

        Raises:
            PatchError: The kind is not registered, does not fit the model, or the result is another one.
        """
        made = wrap(self.kind, copy_model(model), self.settings, self.tensors)
        if wanted is not None and (found := fingerprint(made)) != wanted:
            raise PatchError(
                f"wrapper kind {self.kind!r}: makes another network than when the patch was made; "
                f"{wanted.differences(found)}. Install the version of the package that made the patch."
            )
        return made

    def revert(self, model: nn.Module) -> nn.Module:
        """A copy of the network inside of a wrapped model.

        Raises:
            PatchError: The model has no ``network`` inside.
            WrongBaseError: The network inside is another one.
        """
        inside = getattr(model, "network", None)
        if not isinstance(inside, nn.Module):
            raise PatchError(f"model {type(model).__name__}: is not wrapped, so the patch is not applied to it.")
        self.check_base(model, back=True)
        self.check_base(inside)
        return copy_model(inside)

    def check_base(self, weights: Any, back: bool = False) -> None:
        """Check that weights are those of the network that the patch is for; with ``back`` those that it leads to.

        Raises:
            WrongBaseError: They are others; the message names the tensors.
        """
        wanted, found = self.repaired if back else self.base, fingerprint(weights)
        if found != wanted:
            goal = "led to" if back else "was made for"
            raise WrongBaseError(
                f"the patch does not fit: these are not the weights that it {goal}; {wanted.differences(found)}. Load "
                f"the right weights."
            )

    def __str__(self) -> str:
        count = sum(tensor.numel() for tensor in self.tensors.values())
        lines = [f"patch that puts a '{self.kind}' with {count} numbers around the network"]
        lines += [f"base      {self.base.total}", f"repaired  {self.repaired.total}", f"content   {self.content_hash}"]
        lines += [f"created   {self.info.created}; solver {self.info.solver or 'none'}; seed {self.info.seed}"]
        lines += [f"notes     {self.info.notes}"] if self.info.notes else []
        return "\n".join(lines + [f"claim     {claim}" for claim in self.info.claim_lines()])


def load_patch(path: str | os.PathLike[str], *, expected_hash: str | None = None) -> Patch | WrappedPatch:
    """Read a patch of either kind. Nothing in the file is executed.

    Args:
        path: Of a file that ``save`` wrote.
        expected_hash: The content hash that it must have, from where you trust.

    Returns:
        A patch of weights or a wrapped patch.

    Raises:
        PatchError: Another kind of file, changed or damaged, of another format, or with another content hash.
    """
    tensors, texts = read_tensors(path)
    if HEADER in texts or WRAPPED_HEADER not in texts:
        return Patch.load(path, expected_hash=expected_hash)
    what, text = f"'{os.fspath(path)}'", texts[WRAPPED_HEADER]
    found = content_hash(text, tensors)
    if found != texts.get(CONTENT):
        raise PatchError(f"{what}: its content does not match its hash; it was changed or damaged. Get it again.")
    if expected_hash is not None and found != expected_hash:
        raise PatchError(f"{what}: has content hash {found}, expected {expected_hash}. It is another patch.")
    try:
        header = json.loads(text)
        if header["format"] != FORMAT:
            raise PatchError(f"{what}: is of format {header['format']}; this version reads {FORMAT}. Update repairopt.")
        base, repaired = (Fingerprint(dict(header[which])) for which in ("base", "repaired"))
        return WrappedPatch(header["kind"], header["settings"], tensors, base, repaired, PatchInfo(**header["info"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PatchError):
            raise
        raise PatchError(f"{what}: has a malformed header ({error!r}). Get it again.") from error
