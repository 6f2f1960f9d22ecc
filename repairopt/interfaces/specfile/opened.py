"""A spec with everything that it names: the network, the rows, goal and bounds on them."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repairopt.errors import LanguageError, PatchError, RepairError, SpecFileError, public
from repairopt.interfaces.specfile.language.bind import BoundStatement, bind_statement
from repairopt.interfaces.specfile.language.python_code import load_code
from repairopt.interfaces.specfile.language.row_sets import Data
from repairopt.interfaces.specfile.language.statements import Statement
from repairopt.patches import check_archive, listed, load_weights

from .load_rows import load_data
from .module_files import advice_on
from .nnet_file import read_nnet
from .reader import SpecFile, check_spec, read_spec
from .stated_regions import load_regions, points_around


def load_model(file: SpecFile, rows: Tensor | None = None) -> nn.Module:
    """Build the network of a spec and fill in its weights; in evaluation mode, on the CPU.

    ``rows`` are a few inputs, on which an ONNX file is compared with ONNX Runtime; random ones by default.
    """
    model = file.spec.model
    if model.onnx is not None:
        from .onnx_model import load_onnx

        try:
            return load_onnx(file.existing(("model", "onnx"), model.onnx), rows, output=model.output, fixed=model.fixed)
        except RepairError as error:
            if isinstance(error, SpecFileError):
                raise
            raise file.fail(("model", "onnx"), str(error)) from error
    assert model.factory is not None
    try:
        factory = load_code(model.factory, file.folder)
    except RepairError as error:
        raise file.fail(("model", "factory"), str(error)) from error
    try:
        network = factory(**model.arguments)
    except (Exception, SystemExit) as error:
        where = ("model", "arguments") if model.arguments else ("model", "factory")
        reason = f"{model.factory} failed with {type(error).__name__}: {error}. Arguments: {model.arguments or 'none'}."
        raise file.fail(where, reason) from error
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise file.fail(("model", "factory"), f"{model.factory} returned a {kind}; expected a torch.nn.Module.")
    if model.weights is not None:
        fill_weights(file, network, file.existing(("model", "weights"), model.weights))
    return _evaluating(network)


def _evaluating(network: nn.Module) -> nn.Module:
    """The network in evaluation mode; of a program of torch.export, which has one mode, a copy that takes the call."""
    try:
        return network.eval()
    except NotImplementedError:
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # of torch's own copies
        return copy.deepcopy(network).eval()


def read_state(file: SpecFile, path: Path) -> Mapping[str, Tensor]:
    """A state dict from safetensors, ``torch.save`` or .nnet; nothing in the file is executed, else a SpecFileError."""
    where = ("model", "weights")
    if not path.is_file():
        raise file.fail(where, f"there is no file '{path}'")
    if path.suffix == ".safetensors":
        try:
            return load_weights(path)
        except RepairError as error:
            raise file.fail(where, str(error)) from error
    if path.suffix == ".nnet":
        return read_nnet(path).state()
    try:
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles of a kind that torch does not write
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except PatchError as error:
        raise file.fail(where, str(error)) from error
    except Exception as error:
        first = str(error).split(". ")[0].strip() or type(error).__name__  # what follows is advice to trust the file
        raise file.fail(where, advice_on(path, first)) from None
    states = _states(found)
    if len(states) > 1 and "state_dict" not in states:
        reason = f"'{path}' holds several state dicts, {listed(list(states))}; save the one to be repaired alone"
        raise file.fail(where, reason)
    if not states:
        raise file.fail(where, f"'{path}' holds a {type(found).__name__}; expected a state dict, names to tensors.")
    return states.get("state_dict", next(iter(states.values())))


def _states(found: Any) -> dict[str, Mapping[str, Tensor]]:
    """The state dict that was saved, or those in a checkpoint by their keys."""
    if not isinstance(found, Mapping):
        return {}
    if all(isinstance(value, Tensor) for value in found.values()):
        return {"": found}
    inside = {str(key): value for key, value in found.items() if isinstance(value, Mapping) and value}
    return {key: value for key, value in inside.items() if all(isinstance(one, Tensor) for one in value.values())}


def fill_weights(file: SpecFile, network: nn.Module, path: Path) -> None:
    """Load a file of weights, safetensors or a state dict of ``torch.save``, into a network in place."""
    state = read_state(file, path)
    own = network.state_dict()
    missing, extra = [n for n in own if n not in state], [n for n in state if n not in own]
    wrong = [n for n in own if n in state and own[n].shape != state[n].shape]
    if missing or extra or wrong:
        texts = [f"missing: {listed(missing)}"] if missing else []
        texts += [f"not in the network: {listed(extra)}"] if extra else []
        texts += [f"{n} has shape {tuple(state[n].shape)}, expected {tuple(own[n].shape)}" for n in wrong[:3]]
        hint = _prefix_hint(own, state)
        reason = f"'{path}' does not fit {file.spec.model.factory}: {'; '.join(texts)}.{hint}"
        raise file.fail(("model", "weights"), reason)
    network.load_state_dict(state)


def _prefix_hint(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What to do where all names of a file, or of the network, have something in front, as wrappers put it there."""
    for longer, shorter, what in ((state, own, "the file"), (own, state, "the network")):
        first = next(iter(shorter), "")
        fronts = [name.removesuffix(first) for name in longer if first and name.endswith(f".{first}")]
        front = next((one for one in fronts if {one + name for name in shorter} == set(longer)), None)
        if front is not None:
            makers = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}
            made = ", ".join(maker for part, maker in makers.items() if part in front)
            made = f", as {made} makes them" if made else ""
            return (
                f" The names of {what} begin with {front!r}{made}. Save the weights of the module inside, or rename: "
                f"{{name.removeprefix({front!r}): value for name, value in state.items()}}."
            )
    return ""


@dataclass(frozen=True, eq=False)
class OpenSpec:
    """A repair, ready to be checked, solved or verified; ``held_out`` has the statements on held-out rows."""

    file: SpecFile
    model: nn.Module
    data: Data
    goal: BoundStatement | None
    bounds: tuple[BoundStatement, ...]
    watch: tuple[BoundStatement, ...]
    held_out: tuple[BoundStatement, ...] = field(default=())

    @property
    def statements(self) -> tuple[BoundStatement, ...]:
        """Goal, bounds, those on held-out rows, and what is watched, in this order."""
        goal = () if self.goal is None else (self.goal,)
        return (*goal, *self.bounds, *self.held_out, *self.watch)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that the spec names."""
        spec, found = self.file.spec, {}
        names = [entry.file for entry in spec.data.values()]
        names += [region.vnnlib for region in spec.regions if region.vnnlib is not None]
        names += [name for name in (spec.model.weights, spec.model.onnx) if name is not None]
        for name in dict.fromkeys(names):
            with (self.file.folder / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found


@public
def open_spec(source: str | Path | SpecFile | Mapping[str, Any]) -> OpenSpec:
    """Load the network and the rows of a spec, by path, as read, or as a dict, and bind goal and bounds to them.

    Where no goal is stated, the first bound that speaks of rows is the goal.
    """
    if isinstance(source, Mapping):
        file = check_spec(Path("spec"), dict(source))
    else:
        file = source if isinstance(source, SpecFile) else read_spec(source)
    data, model = _loaded(file)
    goal = None if file.goal is None else _bind(file, file.goal, data, ("goal",))
    bounds = tuple(_bind(file, bound, data, ("bounds", i)) for i, bound in enumerate(file.bounds))
    watch = tuple(_bind(file, item, data, ("watch", i)) for i, item in enumerate(file.watch))
    if goal is None and (first := next((k for k, bound in enumerate(bounds) if bound.can_be_goal), None)) is not None:
        goal, bounds = bounds[first], (*bounds[:first], *bounds[first + 1 :])
    own = [item for item in (goal, *bounds, *watch) if item is not None and item.data == "repair"]
    where = ("data", "held_out")
    twins = [_bind(file, item.statement, data, where, "held_out") for item in own if "held_out" in data.sets]
    if goal is not None:
        goal.as_goal()
    return OpenSpec(file, model, data, goal, bounds, watch, tuple(twins))


def _loaded(file: SpecFile) -> tuple[Data, nn.Module]:
    """Rows and network; where a spec names no data, points around its regions stand for them."""
    if file.spec.data:
        rows = load_data(file)
        data = _cast(rows, model := load_model(file, rows.sets["repair"].inputs))
    else:
        model = load_model(file)
        data = _cast(Data({"repair": points_around(file, model)}, [], (), file.folder), model)
    return replace(data, regions=load_regions(file, data, model)), model


def _bind(file: SpecFile, statement: Statement, data: Data, where: Any, on: str | None = None) -> BoundStatement:
    try:
        return bind_statement(statement, data, on)
    except LanguageError as error:
        raise file.fail(where, str(error)) from error


def _cast(data: Data, model: nn.Module) -> Data:
    """Inputs with fractions in the precision of the network."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    sets = dict(data.sets)
    for name, rows in data.sets.items():
        if rows.inputs.is_floating_point():
            sets[name] = replace(rows, inputs=rows.inputs.to(dtype))
    return replace(data, sets=sets)
