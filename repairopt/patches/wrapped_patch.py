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

from repairopt.errors import PatchError, WrongBaseError, public, visible

from .claims import PatchInfo
from .patch import CONTENT, HEADER, Patch, content_hash, origin_lines, patch_info, read_checked
from .restated import AsLogits, AsStated
from .safe_files import read_tensors, write_tensors
from .weights import Fingerprint, copy_model, fingerprint

WRAPPED_HEADER, FORMAT = "repairopt_wrapped", 1
GROUP = "repairopt.wrappers"


def wrap(kind: str, network: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module of a registered kind around a network, which becomes a part of it, in the mode of the network.

    ``settings`` may have ``network_outputs``, what the outputs of the network mean, and ``network_flat``, whether they
    are ``(N,)``: the kind is put around its logits then, and the outputs of the module mean the same again.
    """
    known = _kinds()
    if kind not in known:
        raise PatchError(
            f"wrapper kind {kind!r} is not registered; known are {', '.join(sorted(known)) or 'none'}. Install the "
            f"package that made the patch, with its entry point in the group '{GROUP}'."
        )
    own = dict(settings)
    form, flat = own.pop("network_outputs", None), bool(own.pop("network_flat", False))
    try:
        inside = network if form is None else AsLogits(network, form)
        made: nn.Module = known[kind].load()(inside, own, dict(tensors))
        made = made if form is None else AsStated(made, form, flat)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PatchError(f"wrapper kind {kind!r}: its settings or tensors do not fit the model ({error}).") from error
    for module in set(made.modules()) - set(network.modules()):
        module.training = network.training
    return made


@cache
def _kinds() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


@dataclass(frozen=True, eq=False)
class WrappedPatch:
    """A wrapper as a file: what it adds, the kind that puts it around a network, and the network that it is for.

    Attributes:
        kind: Name of the wrapper, an entry point.
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
    @public
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
        header = {"format": FORMAT, "kind": self.kind, "settings": dict(self.settings)}
        header |= {"base": self.base.tensors, "repaired": self.repaired.tensors, "info": self.info.to_dict()}
        return json.dumps(header, allow_nan=False)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of everything in the patch."""
        return content_hash(self._header, dict(self.tensors))

    @public
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, which is there whole or not at all; its folder must exist."""
        write_tensors(path, self.tensors, {WRAPPED_HEADER: self._header, CONTENT: self.content_hash})

    @public
    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the model inside of the wrapper.

        Raises:
            WrongBaseError: The model has other weights; the message names the tensors.
            PatchError: The kind is not registered, does not fit, or makes something else than when the patch was made.
        """
        self.check_base(model)
        return self.around_weights(model, self.repaired)

    def around_weights(self, model: nn.Module, wanted: Fingerprint | None = None) -> nn.Module:
        """A copy of any model inside of the wrapper; a PatchError where it is not what is ``wanted``."""
        made = wrap(self.kind, copy_model(model), self.settings, self.tensors)
        if wanted is not None and (found := fingerprint(made)) != wanted:
            raise PatchError(
                f"wrapper kind {self.kind!r}: makes another network than when the patch was made; "
                f"{wanted.differences(found)}. Install the version of the package that made the patch."
            )
        return made

    @public
    def revert(self, model: nn.Module) -> nn.Module:
        """A copy of the network inside of a wrapped model, whose weights are checked."""
        inside = getattr(model, "network", None)
        if not isinstance(inside, nn.Module):
            raise PatchError(f"model {type(model).__name__}: is not wrapped, so the patch is not applied to it.")
        self.check_base(model, back=True)
        self.check_base(inside)
        return copy_model(inside)

    def check_base(self, weights: Any, back: bool = False) -> None:
        """Check that weights are the base, ``back`` the repaired ones; a WrongBaseError names tensors that are not."""
        wanted, found = self.repaired if back else self.base, fingerprint(weights)
        if found != wanted:
            goal = "led to" if back else "was made for"
            raise WrongBaseError(
                f"the patch does not fit: these are not the weights that it {goal}; {wanted.differences(found)}. Load "
                f"the right weights."
            )

    def __str__(self) -> str:
        count = sum(tensor.numel() for tensor in self.tensors.values())
        head = f"patch that puts a '{self.kind}' with {count} numbers around the network"
        return visible("\n".join([head, *origin_lines(self.base, self.repaired, self.content_hash, self.info)]))


@public
def load_patch(path: str | os.PathLike[str], *, expected_hash: str | None = None) -> Patch | WrappedPatch:
    """Read a patch of weights or a wrapped patch that ``save`` wrote; nothing in the file is executed."""
    texts = read_tensors(path)[1]
    if HEADER in texts or WRAPPED_HEADER not in texts:
        return Patch.load(path, expected_hash=expected_hash)
    text, tensors = read_checked(path, WRAPPED_HEADER, expected_hash)
    what = f"'{os.fspath(path)}'"
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
