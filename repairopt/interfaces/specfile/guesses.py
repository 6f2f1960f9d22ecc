"""Guess the spec of a network and a file of rows: which columns it reads and how, labels, groups, and three goals.

A guess is tried on the rows: of several ways to encode the inputs, the one that the network is most often right with is
taken. What was guessed is said in comments, for a person to look at.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import RepairError, SpecFileError
from repairopt.localize import LayerGraph

from .given_model import bare_spec, model_entry, relative
from .measure import PlainNetwork, measure_claims
from .opened import OpenSpec, load_model, open_spec
from .read_table import read_columns

LABELS = ("label", "labels", "target", "y", "class", "decision", "outcome", "approved", "default", "income", "response")
SENSITIVE = ("sex", "gender", "race", "ethnicity", "ethnic", "age_group", "nationality", "religion", "disability")
IDENTIFIERS = ("id", "index", "row", "uuid", "key")
FEW, MANY = 12, 40  # values of a column: a group at most, categories at most
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HELD_OUT = 0.3
FILLER = {"bounds": ["max_change <= 1"]}  # makes a spec of content without a goal
ROWS = 20_000  # on which ways to encode are tried
SHOWN = 8  # rows that show an ONNX file sizes that it leaves open


@dataclass(frozen=True)
class Guess:
    """A spec as a dict, and in words how it was come by.

    Attributes:
        content: What the spec file says, without goal, bounds and watched measures.
        label: How the label was found.
        inputs: How the inputs were found.
        sensitive: How the groups were found.
        candidates: Statements that can be the goal, each with its value on the network as it is.
    """

    content: dict[str, Any]
    label: str
    inputs: str
    sensitive: str
    candidates: tuple[tuple[str, float], ...] = field(default=())


@dataclass(frozen=True)
class _Asked:
    """What a guess starts from: the spec so far, the network, the columns by name, and what the user said."""

    content: dict[str, Any]
    network: nn.Module
    columns: Mapping[str, Any]
    label: str | None
    sensitive: tuple[str, ...]
    path: Path


def guess_spec(
    model: str,
    data: str | Path,
    path: Path,
    *,
    weights: str | Path | None = None,
    label: str | None = None,
    sensitive: Sequence[str] = (),
    fixed: Mapping[str, float] | None = None,
) -> Guess:
    """Guess what a spec file at ``path`` would say of a model and a file of rows.

    Args:
        model: As on the command line: an ONNX file, ``package.module:function``, or a file of weights.
        data: CSV, Parquet or npz.
        path: Where the spec file will be; file names in it are relative to its folder.
        weights: Weights for ``package.module:function``.
        label: The column of the true class; guessed by its name, else the last one.
        sensitive: Columns that tell groups apart; guessed by their names.
        fixed: Numbers that fill other inputs of an ONNX file, by name.

    Raises:
        SpecFileError: The model or the data cannot be read, or no columns fit the inputs of the network.
    """
    entry = model_entry(model, weights, path.parent)
    if fixed and "onnx" not in entry:
        raise SpecFileError(f"model '{model}': --fixed fills inputs of an ONNX file, and this is none; leave it out.")
    entry |= {"fixed": dict(fixed)} if fixed else {}
    rows: dict[str, Any] = {"file": relative(data, path.parent)}
    if not Path(data).is_file():
        raise SpecFileError(f"data '{data}': there is no such file; expected CSV, Parquet or npz.")
    rows |= _separator(Path(data))
    bare = bare_spec(entry, path, data={"repair": rows})
    columns = read_columns(bare, "repair", bare.folder / rows["file"])
    network = load_model(bare, _shown_rows(columns, label))
    content = {"model": entry, "data": {"repair": rows}, "split": {"held_out": HELD_OUT}}
    made = _of_arrays if Path(data).suffix == ".npz" else _of_table
    guess = made(_Asked(content, network, columns, label, tuple(sensitive), path))
    return Guess(guess.content, guess.label, guess.inputs, guess.sensitive, _candidates(guess.content, path))


def _shown_rows(columns: Mapping[str, Any], label: str | None) -> Tensor | None:
    """A few rows of the first array that may be the inputs, for ONNX files that leave their sizes open."""
    arrays = [v for name, v in columns.items() if name != label and v.ndim > 1 and v.dtype.kind in "fiub" and len(v)]
    if not arrays:
        return None
    rows = torch.as_tensor(np.array(arrays[0][:SHOWN]))
    return rows.float() if rows.is_floating_point() else rows.long()


def _separator(data: Path) -> dict[str, str]:
    """What a CSV file has between its cells, where that is no comma."""
    if data.suffix != ".csv":
        return {}
    with data.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
    counts = {sign: len(next(csv.reader([first], delimiter=sign), [])) for sign in ",;\t|"}
    best = max(counts, key=lambda sign: counts[sign])
    return {} if counts[best] == counts[","] else {"separator": best}


# -------------------------------------------------------------------------------------------- tables


def _of_table(asked: _Asked) -> Guess:
    content, columns = asked.content, asked.columns
    chosen, how_label = _label_column(columns, asked.label)
    left = [name for name in columns if name != chosen]
    groups, how_groups = _groups(columns, left, asked.sensitive)
    width = _width(asked.network)
    encodings = list(_encodings(columns, left, groups, width))
    if not encodings:
        raise SpecFileError(
            f"data '{content['data']['repair']['file']}': no choice of its columns fits the network, which reads "
            f"{width} inputs. Without the label '{chosen}' there are {len(left)}: {', '.join(left[:12])}. Leave out of "
            f"the file what the network does not read, name the label by --label, or write the spec by hand."
        )
    content["sensitive_features"] = list(groups)
    labels = [{"column": chosen} | ({} if order is None else {"classes": order}) for order in _orders(columns[chosen])]
    ways = [{"inputs": inputs, "label": said} for inputs, said in itertools.product(encodings, labels)]
    found, how = _best_way(asked, content, ways)
    return Guess(found, how_label, f"{len(found['inputs'])} columns; {how}", how_groups)


def _best_way(asked: _Asked, content: dict[str, Any], ways: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The content with the way to read the rows on which the network is most often right, and how often that is."""
    best, chosen, problem = -1.0, ways[0], ""
    for way in ways:
        try:
            right = _accuracy(open_spec(_checked(content | way | FILLER, asked.path)), asked.network)
        except RepairError as error:
            problem = problem or str(error)
            continue
        if right > best:
            best, chosen = right, way
    if best < 0:
        raise SpecFileError(f"data: no way to read it fits the network. The first try said: {problem}")
    how = f"the network is right on {best:.1%} of the rows"
    return content | chosen, how + (f", the best of {len(ways)} ways to read them" if len(ways) > 1 else "")


def _label_column(columns: Mapping[str, Any], label: str | None) -> tuple[str, str]:
    if label is not None:
        if label not in columns:
            raise SpecFileError(f"--label {label}: there is no such column; columns: {', '.join(columns)}.")
        return label, "as you said"
    for name in reversed(list(columns)):
        if name.lower() in LABELS:
            return name, f"guessed by the name '{name}'"
    name = list(columns)[-1]
    return name, f"guessed: '{name}' is the last column"


def _groups(columns: Mapping[str, Any], left: Sequence[str], sensitive: Sequence[str]) -> tuple[list[str], str]:
    if sensitive:
        unknown = [name for name in sensitive if name not in columns]
        if unknown:
            raise SpecFileError(f"--sensitive {unknown[0]}: there is no such column; columns: {', '.join(columns)}.")
        return list(sensitive), "as you said"
    few = [name for name in left if 2 <= len(_distinct(columns[name])) <= FEW]
    named = [name for name in few if name.lower().replace("-", "_") in SENSITIVE]
    if named:
        return named[:2], "guessed by name"
    texts = [name for name in few if columns[name].dtype.kind in "OUS"]
    return texts[:1], "guessed: a column of few texts" if texts else "none found; name them by --sensitive"


def _distinct(values: Any) -> list[Any]:
    import pandas

    return list(pandas.unique(pandas.Series(values).dropna()))


def _width(network: nn.Module) -> int | None:
    """How many numbers a row of the network has, where its first layer says so."""
    layers = LayerGraph(network).layers
    if not layers or layers[0].kind != "linear":
        return None
    return int(dict(network.named_parameters())[layers[0].weights[0]].shape[1])


def _encodings(columns: Mapping[str, Any], left: list[str], groups: Sequence[str], width: int | None) -> Any:
    """Choices of columns, each with its encoding, whose width is that of the network; the most natural first."""
    named = [name for name in left if name.lower() not in IDENTIFIERS]
    numbers = [name for name in named if columns[name].dtype.kind in "fiub"]
    selections = [left, named, [n for n in named if n not in groups], numbers, [n for n in numbers if n not in groups]]
    seen: list[Any] = []
    for selection in selections:
        for text, scaling in itertools.product(("categories", "one_hot"), ("", "standard", "unit")):
            found = {name: _encoding(columns[name], text, scaling) for name in selection}
            wide = sum(len(how.get("one_hot", [0])) for how in found.values() if how is not None)
            fits = None not in found.values() and found and (width is None or wide == width)
            if fits and found not in seen:
                seen.append(found)
                yield found


def _encoding(values: Any, text: str, scaling: str) -> dict[str, Any] | None:
    """How one column is read; None for texts of too many kinds."""
    if values.dtype.kind in "OUSb":
        kinds = sorted(map(str, _distinct(values)))
        return {text: kinds} if 2 <= len(kinds) <= MANY else None
    numbers = values.astype(float)
    mean, std = float(np.nanmean(numbers)), float(np.nanstd(numbers))
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    if scaling == "standard" and std > 0 and not (abs(mean) < 0.3 and 0.5 < std < 2):
        return {"mean": float(f"{mean:.6g}"), "std": float(f"{std:.6g}")}
    if scaling == "unit" and high > low and not (low >= 0 and 0.5 < high <= 1):
        return {"scale": [low, high]}
    return {}


def _orders(values: Any) -> list[list[Any] | None]:
    """Ways to number the classes: as they are, or the texts in each order where these are few."""
    kinds = sorted(_distinct(values), key=str)
    plain = [item.item() if isinstance(item, np.generic) else item for item in kinds]
    if values.dtype.kind in "fiu" and plain == list(range(len(plain))):
        return [None]
    names = [str(item) if not isinstance(item, int | float) else int(item) for item in plain]
    return [list(order) for order in itertools.permutations(names)] if len(names) <= 3 else [names]


def _checked(content: dict[str, Any], path: Path) -> Any:
    from .reader import check_spec

    return check_spec(path, content)


def _accuracy(spec: OpenSpec, network: nn.Module) -> float:
    rows = spec.data.sets["repair"]
    outputs = PlainNetwork(network)(rows.inputs[:ROWS])
    assert rows.labels is not None
    if int(rows.labels.max()) >= outputs.shape[1]:
        raise SpecFileError(
            f"label: has {int(rows.labels.max()) + 1} classes, the network {outputs.shape[1]}. Name it by --label."
        )
    return float((outputs.argmax(1) == rows.labels[:ROWS]).double().mean())


# -------------------------------------------------------------------------------------------- arrays


def _of_arrays(asked: _Asked) -> Guess:
    columns, label = asked.columns, asked.label
    if asked.sensitive:
        raise SpecFileError(f"--sensitive {asked.sensitive[0]}: groups of npz files are named under array: columns:.")
    wide = {name: values for name, values in columns.items() if values.ndim >= 2 and values.dtype.kind in "fiub"}
    if not wide:
        raise SpecFileError(f"data: has no array of rows, (N, ...); arrays: {', '.join(columns)}.")
    name = max(wide, key=lambda one: wide[one][0].size * len(wide[one]))
    flat = [n for n, values in columns.items() if values.ndim == 1 and len(values) == len(wide[name])]
    whole = [n for n in flat if columns[n].dtype.kind in "iub"]
    chosen = label or next((n for n in whole if n.lower() in LABELS), whole[0] if whole else None)
    if chosen not in flat:
        raise SpecFileError(f"data: has no array of {len(wide[name])} labels; name it by --label.")
    how = "as you said" if label else f"guessed: '{chosen}' has a whole number for each row"
    array: dict[str, Any] = {"name": name}
    embeds = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in asked.network.modules())
    array |= {"integers": True} if embeds else {}
    shape, bytes_ = wide[name].shape[1:], not embeds and float(wide[name].max()) > 1
    shapes = [None, [int(np.prod(shape))], [1, *shape]] if len(shape) > 1 else [None]
    ways = []
    for scale, size in itertools.product([None, [0, 255]] if bytes_ else [None], shapes):
        said = {key: value for key, value in (("scale", scale), ("shape", size)) if value is not None}
        ways.append({"array": array | said, "label": {"column": chosen}})
    found, right = _best_way(asked, asked.content, ways)
    return Guess(found, how, f"the array '{name}'; {right}", "none; name columns of the array under array: columns:")


# ------------------------------------------------------------------------------------------- goals


def _candidates(content: dict[str, Any], path: Path) -> tuple[tuple[str, float], ...]:
    """Three goals that most people have, with what the network comes to today and a target that is better."""
    spec = open_spec(_checked(content | FILLER, path))
    rows = spec.data.sets["repair"]
    assert rows.labels is not None
    outputs = PlainNetwork(spec.model)(rows.inputs)
    answers, classes = outputs.argmax(1), outputs.shape[1]
    hits = {k: float((answers[rows.labels == k] == k).double().mean()) for k in torch.unique(rows.labels).tolist()}
    known = [set(one.labels.tolist()) for one in spec.data.sets.values() if one.labels is not None]
    everywhere = set.intersection(*known)  # a rare class may be in one part of the rows alone
    worst = [_class_name(content, k) for k in sorted(hits, key=lambda k: hits[k]) if k in everywhere]
    favorable = _class_name(content, classes - 1)
    gaps = [f"gap({_quoted(c)}, favorable={favorable}, kind=parity)" for c in content.get("sensitive_features", [])]
    measures = [*gaps[:1], "error_rate", *(f"recall({name})" for name in worst[:2])]
    watched = content | FILLER | {"watch": measures}
    claims = measure_claims(open_spec(_checked(watched, path)))
    values = {claim.text: claim.value for claim in claims if claim.data == "repair"}
    return tuple((text, float(values[text] or 0.0)) for text in measures[:3] if text in values)


def _class_name(content: dict[str, Any], k: int) -> str:
    classes = content["label"].get("classes")
    return str(k) if classes is None else _quoted(classes[k])


def _quoted(value: Any) -> str:
    text = str(value)
    return text if PLAIN.fullmatch(text) or text.isdigit() else json.dumps(text, ensure_ascii=False)


def target(measure: str, value: float) -> str:
    """A measure with a bound that its value does not meet yet."""
    if measure.startswith("recall"):
        return f"{measure} >= {min(1.0, value + 0.5 * (1 - value)):.2f}"
    return f"{measure} <= {0.5 * value:.3g}"
